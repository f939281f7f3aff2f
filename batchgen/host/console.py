"""Output to stderr and stdout that never ends a run: a closed terminal, a pipe without a reader, a full disk or an
encoding that lacks a character must not stop what is running.
"""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO

import click

from . import terminal


class Console:
    """A text stream whose `write` never fails: what the stream refuses is dropped, what it cannot encode is escaped.

    Everything else (isatty, fileno, encoding ...) is the stream's own. None stands for a stream that was closed when
    the process started.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115

    def write(self, text: str) -> int:
        try:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError as error:
                return self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError):  # ValueError: it is closed
            return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stderr() -> Any:
    """The current `sys.stderr`, as a Console."""
    return sys.stderr if isinstance(sys.stderr, Console) else Console(sys.stderr)


def say(text: str) -> None:
    """Prints a line on stdout about work that is done; if it cannot be printed, the work is still done."""
    with suppress(OSError, ValueError):
        click.echo(terminal.message(text))


def set_up() -> None:
    """Makes this process's streams safe to write to, whatever the parent passed on. Call it before opening any file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next opened file gets this number, and stderr's lines end up in it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr = stderr()


def settle() -> None:
    """Drops what could not be written: at exit the interpreter would try again, and change the exit code."""
    for stream in (sys.stdout, getattr(sys.stderr, "_stream", sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except AttributeError:  # None
            pass
