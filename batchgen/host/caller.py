"""Who has called: the command line, which has a terminal and signals for itself, or a Python program, which has not
asked for anything to be printed or caught."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Seen(NamedTuple):
    """How far a run has come.

    rows, prompt_tokens, response_tokens: of this run
    running, waiting: requests in the engines
    rejected: rows of this run
    by_length: share of its responses that max_tokens or the context ended
    """

    rows: int
    prompt_tokens: int
    response_tokens: int
    running: int
    waiting: int
    rejected: int = 0
    by_length: float = 0.0


class Watching(Protocol):
    """What shows how far a run has come."""

    def starting(self) -> None:
        """No engine is up yet."""

    def show(self, seen: Seen) -> None: ...

    def close(self, rows: int) -> None: ...


@dataclass(frozen=True)
class Caller:
    """warn: takes a warning; None prints it on stderr
    watch: makes what shows a run of so many rows, so many of which are done; None draws a bar on stderr
    catches_signals: whether SIGTERM and Ctrl-C stop a run resumably; a Python program's are its own
    stop: another way to ask for that, from any thread
    """

    warn: Callable[[str], None] | None = None
    watch: Callable[[int, int], Watching] | None = None
    catches_signals: bool = True
    stop: threading.Event | None = None


_current: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039, it is frozen


def current() -> Caller:
    return _current.get()


@contextmanager
def called_by(caller: Caller) -> Iterator[None]:
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
