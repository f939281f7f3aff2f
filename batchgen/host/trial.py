"""Reading an untrusted file with a library is tried in a child process first, as it may crash, hang or eat memory."""

import faulthandler
import os
import resource
import select
import signal
from collections.abc import Callable

from ..errors import in_one_line
from .lifeline import die_with_parent

MEMORY = 1 << 30  # bytes that the child may take on top of what this process has
PATIENCE = 20  # wall-clock limit as a multiple of the CPU limit: the machine may be busy, or the library may wait


def failure(work: Callable[[], object], seconds: int) -> str | None:
    """Runs `work` in a forked copy of this process, and says in one line why it failed; None if it succeeded.

    Whatever it does to its process (a crash, a hang, a panic that `except Exception` does not catch) happens to the
    copy.

    Args:
        seconds: limit of CPU time. MEMORY is the limit of additional memory.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        _run(work, seconds, theirs)
    os.close(theirs)
    try:
        with open(ours, "rb") as said:
            ready, _, _ = select.select([said], [], [], PATIENCE * seconds)
            told = said.read().decode(errors="replace") if ready else ""
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not ready or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) and not told):
        return f"it takes more than {seconds} s"
    if told:
        return told.removeprefix("-") or None
    return f"it takes more than {MEMORY >> 30} GiB of memory, or ends the process"


def _run(work: Callable[[], object], seconds: int, to: int) -> None:
    """In the child. Writes `-`, followed by what went wrong."""
    code = 0
    try:
        die_with_parent()
        faulthandler.disable()  # a crash here is expected: no dump
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each thread reserves 64 MiB of address space
        _limit(seconds)
        work()
        os.write(to, b"-")
    except MemoryError:
        code = 1
    except BaseException as error:  # a Rust panic is not an Exception
        os.write(to, f"-{in_one_line(error)}".encode(errors="replace"))
    finally:
        os._exit(code)


def _limit(seconds: int) -> None:
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    memory = addresses() + MEMORY
    for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
        _, hard = resource.getrlimit(what)  # only root may raise it
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def addresses() -> int:
    """Bytes of address space of this process, as RLIMIT_AS counts them."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
