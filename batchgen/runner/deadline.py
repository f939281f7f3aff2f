"""When a run has to end: at the time of `stop_at`, or with its Slurm allocation."""

import time

from ..host.clock import moment
from . import slurm

# Seconds kept free before that, for an engine step, the journal, the commit of a shard, claims, and asking Slurm.
MARGIN = 30.0


def of_run(stop_at: str) -> float | None:
    """Until when requests may run, in seconds since the epoch; None if there is no deadline."""
    ends = [slurm.allocation_end(), moment(stop_at) if stop_at else None]
    return min((end - MARGIN for end in ends if end is not None), default=None)


def monotonic(epoch: float) -> float:
    """The same moment by time.monotonic, which nobody can set."""
    return time.monotonic() + epoch - time.time()
