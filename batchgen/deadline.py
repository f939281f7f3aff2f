"""When a run has to be over: at a moment that its user names, or at the end of its Slurm allocation."""

import re
import time
from datetime import datetime, timedelta

from . import slurm

# Seconds kept free before that: one engine step, the journal, the commit of a shard, claims, and asking Slurm.
MARGIN = 30.0


def of_run(stop_at: str) -> float | None:
    """Until when, in seconds since the epoch, requests may run; None if there is no end."""
    ends = [slurm.allocation_end(), moment(stop_at) if stop_at else None]
    return min((end - MARGIN for end in ends if end is not None), default=None)


def moment(text: str) -> float:
    """Seconds since the epoch of an ISO time, of the next "HH:MM" by the local clock, or of such seconds as text.

    Raises ValueError.
    """
    if re.fullmatch(r"\d{9,}", text):
        return float(text)
    if clock := re.fullmatch(r"(\d{1,2}):(\d\d)", text):
        now = datetime.now()
        today = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return (today if today > now else today + timedelta(days=1)).timestamp()
    return datetime.fromisoformat(text).timestamp()


def monotonic(epoch: float) -> float:
    """The same moment on the clock that nobody sets."""
    return time.monotonic() + epoch - time.time()
