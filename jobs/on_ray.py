"""batchgen on a Ray cluster: a worker wherever there is room for one, whatever node is lost meanwhile.

    ray job submit -- python jobs/on_ray.py s3://my-bucket/job.toml --workers 8 --gpus 1
    python jobs/on_ray.py /shared/job.toml --workers 8 -- --max-tokens 100     what follows -- goes to batchgen run

Every node needs batchgen (in the image of the cluster; `ray` from PyPI beside it changes nothing of it), and sees the
job file, the model and the output: in a bucket, or in a folder that all have. Ray places the workers; who does what
they settle by themselves. One whose node is lost is started anew where there is room; until there is, the others do its
part. Exits with 0 or 3 when the job is done, as `batchgen run` does.
"""

import argparse
import ctypes
import signal
import subprocess
import sys
import time

import ray

DONE, BROKEN, USAGE, REJECTS, STOPPED = 0, 1, 2, 3, 75  # what `batchgen run` exits with
TRIES = 3  # of a worker that ends with BROKEN
PAUSE = 10.0  # seconds before one that stopped is started again
SET_PARENT_DEATH_SIGNAL = 1  # of prctl


def stop_with_parent() -> None:
    """So that the run drains, as after any SIGTERM, when Ray ends the process that started it."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


@ray.remote(max_retries=-1)
def work(command: list[str]) -> int:
    """What one worker exits with. If its node is lost, Ray calls this again on another one."""
    return subprocess.run(command, preexec_fn=stop_with_parent).returncode


def bring_to_its_end(command: list[str], workers: int, **room: float) -> int:
    """Runs so many workers. One that finds nothing left ends and makes room, so that those whose nodes were lost need
    no others. room: what Ray sets aside for each, on one node."""
    place = work.options(**room)
    tries = {place.remote(command): 1 for _ in range(workers)}
    codes = set()
    while tries:
        [ended], _ = ray.wait(list(tries))
        tried, code = tries.pop(ended), ray.get(ended)
        if code == USAGE:
            return USAGE  # it would be the same for all; Ray ends them with this process
        if code == STOPPED or (code not in (DONE, REJECTS) and tried < TRIES):
            time.sleep(PAUSE)
            tries[place.remote(command)] = tried + (code != STOPPED)
        else:
            codes.add(code)
    return next((code for code in (REJECTS, DONE) if code in codes), BROKEN)


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("job", help="job file: a path or a URI that every node can read")
    flags.add_argument("--workers", type=int, required=True, help="at most so many at a time")
    flags.add_argument("--gpus", type=int, default=1, help="of each: tensor_parallel_size * pipeline_parallel_size")
    flags.add_argument("--cpus", type=int, default=4, help="of each")
    flags.add_argument("--address", default="auto", help="of the cluster; auto: the one that this is started in")
    flags.add_argument("more", nargs="*", help="flags for batchgen run, after --")
    asked = flags.parse_args()
    ray.init(address=asked.address)
    command = ["batchgen", "run", asked.job, "--workers", "1", *asked.more]
    return bring_to_its_end(command, asked.workers, num_cpus=asked.cpus, num_gpus=asked.gpus)


if __name__ == "__main__":
    sys.exit(main())
