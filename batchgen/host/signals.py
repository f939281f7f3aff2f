"""Signals that ask this process to stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def caught(by: Callable[[int, FrameType | None], Any], *numbers: int) -> Iterator[None]:
    """Has these signals call a function instead of what they did before, and SIGHUP too unless it is ignored, which is
    how nohup leaves it."""
    also = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    before = {number: signal.signal(number, by) for number in (*numbers, *also)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
