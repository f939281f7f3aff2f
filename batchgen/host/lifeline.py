"""Child processes that must not outlive their parent."""

import ctypes
import signal


def die_with_parent() -> None:
    """Has Linux send this process SIGKILL when its parent ends, so that even a `kill -9` leaves nothing behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
