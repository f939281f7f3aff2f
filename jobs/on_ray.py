"""`batchgen run JOB --ray`, for a cluster whose nodes are not all alike: says itself what Ray sets aside for a worker.

    ray job submit -- python jobs/on_ray.py s3://my-bucket/job.toml --workers 8 --gpus 1
    python jobs/on_ray.py /shared/job.toml --workers 8 -- --max-tokens 100     what follows -- goes to batchgen run

Every node needs batchgen and ray, and sees the job file, the model and the output: in a bucket, or in a folder that all
have. Exits with 0 or 3 when the job is done, as `batchgen run` does.
"""

import argparse
import os
import sys

import ray

from batchgen.cli import exit_codes
from batchgen.runner.on_ray import bring_to_its_end, work


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
    place = ray.remote(work).options(
        max_retries=-1,  # of a worker whose node is lost
        num_gpus=asked.gpus,
        num_cpus=asked.cpus,
        # EDIT: accelerator_type="H100", resources={"spot": 1}, label_selector={"ray.io/market-type": "spot"} ...
    )
    arguments = [asked.job, "--workers", "1", *asked.more]
    with exit_codes():
        return bring_to_its_end(ray, lambda: place.remote(arguments, os.getcwd()), asked.workers)


if __name__ == "__main__":
    sys.exit(main())
