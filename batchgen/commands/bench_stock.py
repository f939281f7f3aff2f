"""The process of `bench engine` that runs vLLM as it is installed, a round whenever it is told to. A main module of its
own, so that a process which vLLM spawns from it has nothing of ours either."""

import os
import sys

import msgspec

from ..engine.scratch import adopt
from ..engine.stock import StockEngine
from ..host.lifeline import die_with_parent
from ..runner.prepare import prepare
from . import bench


class UnseededStock(bench.Unseeded, StockEngine):
    """Without the seeds of all requests."""


def main() -> None:
    """A line on stdin asks for a round; its figures are a line to the descriptor that is given. The first line there
    says that the engine is up."""
    die_with_parent()
    adopt()
    os.register_at_fork(after_in_child=die_with_parent)
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=bench.Orders)
    job = prepare(orders.spec)
    runner = (UnseededStock if orders.unseeded else StockEngine)(job.model, job.spec.engine_args, job.context)
    requests = bench.requests_of(job, runner)
    bench.bare(runner, requests[: bench.WARM_UP])
    with open(int(orders.result), "wb", buffering=0) as results:
        results.write(b"up\n")
        while sys.stdin.buffer.readline():
            results.write(msgspec.json.encode(bench.bare(runner, requests)) + b"\n")
    os._exit(0)  # as an engine's atexit handlers may wait


if __name__ == "__main__":
    main()
