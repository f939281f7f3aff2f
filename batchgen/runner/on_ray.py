"""A job on a Ray cluster: Ray finds room for workers, and starts those anew whose nodes are lost. Which rows are whose
they settle by claims in the output, as workers do anywhere; so every node has to see it, as a folder or in a bucket."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..engine.installed import needs_gpu
from ..errors import JobError, MachineError, NoRows, Stopped, Stopping
from ..host import events, signals
from ..host.clock import moment
from ..host.lifeline import die_with_parent
from ..job.spec import JobSpec
from . import gpus
from .outcome import EXIT_CODES, Outcome
from .prepare import prepare
from .run import missing_shards, opened, run

DONE, REJECTS = EXIT_CODES["done"], EXIT_CODES["too_many_rejects"]
REFUSED, STOPPED = EXIT_CODES["refused"], EXIT_CODES["stopped"]
TRIES = 3  # of a worker that fails or stops by itself, wherever Ray places it
PAUSE = 10.0  # seconds before the next one
TICK = 0.5  # seconds between two looks at signals and at what has ended
CPUS = 8.0  # of a worker without a GPU, or all that the largest node has
GRACE = 60.0  # seconds beyond `drain` that workers have to end in once they are asked to


def run_on_ray(spec: JobSpec, arguments: Sequence[str], address: str, discard: bool = False) -> Outcome:
    """Brings a job to its end on a cluster. It is planned here, so that what is wrong with it shows at once; each
    worker is a `batchgen run`.

    arguments: of that command; address: of the cluster, as ray.init takes it; discard: drops what another job has left
    in the folder. Raises JobError, MachineError or Stopped.
    """
    if spec.input.limit is not None:
        raise JobError("--ray: --limit tries the first rows, with one engine; leave one of the two out")
    ray = _connected(address)
    arguments = _of_worker(arguments, spec.output.stop_at)
    prepared = partial(prepare, spec, discard=discard)
    with suppress(NoRows):  # which the run below tells
        while missing := missing_shards(job := opened(prepared(), prepared, None, discard)):
            room, most = room_for_workers(ray.nodes(), gpus.per_worker(spec.engine))
            workers = min(spec.output.workers or most, len(missing))
            each = ", ".join(f"{number:g} {kind}" for kind, number in room.items())
            said = f"workers on the Ray cluster: {workers}, each with {each} of one node"
            events.note(events.Level.info, "ray", said, workers=workers)
            place = ray.remote(work).options(max_retries=-1, num_cpus=room["CPU"], num_gpus=room.get("GPU"))
            start = partial(place.remote, arguments, os.getcwd())
            bring_to_its_end(ray, start, workers, spec.output.drain + GRACE)
            if missing_shards(job):
                return Outcome(job.out, spec.output.max_rejects)  # held by workers that are not of this cluster
    return run(spec, discard)


def _of_worker(arguments: Sequence[str], stop_at: str) -> list[str]:
    """Those of one worker. stop_at: as in the job; one that is started again must not take it for tomorrow's."""
    own = ["--workers", "1", *(["--stop-at", f"{moment(stop_at):.0f}"] if stop_at else [])]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:end], *own, *arguments[end:]]


def room_for_workers(nodes: Sequence[dict[str, Any]], gpus_each: int) -> tuple[dict[str, float], int]:
    """What Ray sets aside for a worker on one node, and how many workers there is room for: at least one, as a cluster
    may grow when it is asked for more.

    nodes: as ray.nodes() lists them; gpus_each: of a worker
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if needs_gpu():
        each = {"GPU": float(gpus_each), "CPU": 1.0}  # with more CPUs, GPUs of a large node could be left over
    else:
        each = {"CPU": min(CPUS, max((node.get("CPU", 0.0) for node in alive), default=0.0) or CPUS)}
    fits = (min(node.get(kind, 0.0) // number for kind, number in each.items()) for node in alive)
    return each, max(1, int(sum(fits)))


def work(arguments: list[str], folder: str) -> int:
    """What one worker exits with. This runs on a node; if that is lost, Ray calls it again on another one.

    folder: where the command was typed, and where it runs if the node has such a folder
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "batchgen", "run", *arguments],
        cwd=folder if Path(folder).is_dir() else None,
        preexec_fn=partial(die_with_parent, signal.SIGTERM),  # it drains if Ray ends this process
    )
    try:
        while process.poll() is None:
            time.sleep(TICK)
    except KeyboardInterrupt:  # Ray cancels by it
        process.terminate()
    return process.wait()


def bring_to_its_end(ray: Any, start: Callable[[], Any], workers: int, patience: float = 90.0) -> int:
    """Runs so many workers at a time. One that finds nothing left ends and makes room, so that those whose nodes were
    lost need no others. Gives what a run of the job exits with now.

    start: has Ray start a worker, and gives the reference to what that will exit with; patience: seconds that workers
    have to drain in, once this process is asked to stop. Raises Stopped, JobError or MachineError.
    """
    asked: list[int] = []
    codes: set[int] = set()
    tries = {start(): 1 for _ in range(workers)}
    with signals.caught(lambda number, _: asked.append(number), signal.SIGINT, signal.SIGTERM):
        while tries and not asked and REFUSED not in codes:
            for ended in ray.wait(list(tries), timeout=TICK)[0]:
                tried, code = tries.pop(ended), ray.get(ended)
                if code not in (DONE, REJECTS, REFUSED) and tried < TRIES:
                    time.sleep(PAUSE)
                    tries[start()] = tried + 1
                else:
                    codes.add(code)
        for running in tries:
            ray.cancel(running)
        if tries:
            ray.wait(list(tries), num_returns=len(tries), timeout=patience)
    if REFUSED in codes:
        raise JobError("--ray: a worker was refused; the lines of its node, above, say why")
    if asked or codes == {STOPPED}:
        raise Stopped(why=Stopping.AS_ASKED)
    if done := codes.intersection((DONE, REJECTS)):
        return max(done)
    raise MachineError("--ray: all workers failed; the lines of their nodes, above, say why")


def _connected(address: str) -> Any:
    """Ray's module, connected to a cluster. Raises JobError or MachineError."""
    try:
        import ray
    except ImportError:
        raise JobError("--ray: Ray is not installed; pip install ray, here and on all nodes") from None
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, logging_level="ERROR")
    except ConnectionError:
        where = "on this node: start this by `ray job submit`, or name one by its HOST:PORT"
        raise MachineError(f"--ray {address}: no cluster answers {where if address == 'auto' else 'there'}") from None
    except (RuntimeError, ValueError) as error:
        raise MachineError(f"--ray {address}: {' '.join(str(error).split())}") from None
    signal.signal(signal.SIGTERM, before)  # Ray took it
    return ray
