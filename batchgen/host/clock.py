"""The clock that workers go by, and points in time as users write them in a job file or in the environment.

All that claims, journals and generates asks the time here: a simulation of a fleet puts its own clock in this place
(tests/bench/fleet.py).
"""

import re
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta


def monotonic() -> float:
    """Seconds since some moment, by a clock that nobody can set and all processes of a machine share."""
    return time.monotonic()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    """Calls `act` again and again, on a thread of its own, until what is returned is called."""
    stop = threading.Event()

    def keep_on() -> None:
        while not stop.wait(seconds):
            act()

    threading.Thread(target=keep_on, daemon=True).start()
    return stop.set


def moment(text: str) -> float:
    """Seconds since the epoch, from an ISO time, "HH:MM" (the next one on the local clock), or epoch seconds.

    Raises ValueError.
    """
    if re.fullmatch(r"\d{9,}", text):
        return float(text)
    if clock := re.fullmatch(r"(\d{1,2}):(\d\d)", text):
        now = datetime.now()
        today = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return (today if today > now else today + timedelta(days=1)).timestamp()
    return datetime.fromisoformat(text).timestamp()
