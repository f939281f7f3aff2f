"""When a run has to be over: at a moment that its user names, or at the end of its Slurm allocation."""

import time

from ..host.clock import moment
from . import slurm

# Seconds kept free before that: one engine step, the journal, the commit of a shard, claims, and asking Slurm.
MARGIN = 30.0


def of_run(stop_at: str) -> float | None:
    """Until when, in seconds since the epoch, requests may run; None if there is no end."""
    ends = [slurm.allocation_end(), moment(stop_at) if stop_at else None]
    return min((end - MARGIN for end in ends if end is not None), default=None)


def monotonic(epoch: float) -> float:
    """The same moment on the clock that nobody sets."""
    return time.monotonic() + epoch - time.time()
