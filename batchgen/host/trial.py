"""What a stranger's file may do to a library that reads it is tried in a child process first."""

import faulthandler
import os
import resource
import select
import signal
from collections.abc import Callable

from ..errors import in_one_line
from .lifeline import die_with_parent

MEMORY = 1 << 30  # bytes that a child may take beside what this process has
PATIENCE = 20  # times the seconds of computing: a busy machine, or a library that waits for ever


def failure(work: Callable[[], object], seconds: int) -> str | None:
    """Why it cannot be done within so many seconds of computing and MEMORY, in one line; None if it can. What it does
    to its process (a crash, a hang, a panic that no `except Exception` holds) it does to a copy of this one."""
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
    """In the child. Writes `-`, and behind it what went wrong."""
    code = 0
    try:
        die_with_parent()
        faulthandler.disable()  # a crash here is nobody's news
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each thread reserves 64 MiB of addresses
        _limit(seconds)
        work()
        os.write(to, b"-")
    except MemoryError:
        code = 1
    except BaseException as error:  # a panic of Rust is no Exception
        os.write(to, f"-{in_one_line(error)}".encode(errors="replace"))
    finally:
        os._exit(code)


def _limit(seconds: int) -> None:
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    memory = addresses() + MEMORY
    for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
        _, hard = resource.getrlimit(what)  # which only root may raise
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def addresses() -> int:
    """Bytes of memory that this process has, as RLIMIT_AS counts them."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
