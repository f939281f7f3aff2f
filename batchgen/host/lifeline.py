"""Child processes that must not outlive their parent."""

import ctypes
import os
import signal
import threading
import time


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Has Linux send this process SIGKILL, or another signal, when its parent ends, so that even a `kill -9` leaves
    nothing behind.

    Its parent is the thread that started it, not the process.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def die_with_process() -> None:
    """The same within a second of the end of the process that started this one, whichever of its threads did."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
