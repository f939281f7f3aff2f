"""What is said on stderr and stdout must never end a run: a closed terminal, a pipe without a reader, a full disk or an
encoding without the sign are no reason to throw away what is running.
"""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO

import click

from . import terminal


class Console:
    """A text stream that takes everything: what the real one refuses is dropped, what it cannot spell is escaped.

    All else (isatty, fileno, encoding ...) is that of the stream; None stands for one that was closed from the start.
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
    """The process's stderr as it is now, as a Console."""
    return sys.stderr if isinstance(sys.stderr, Console) else Console(sys.stderr)


def say(text: str) -> None:
    """A line on stdout about work that is done: that it cannot be shown does not make it undone."""
    with suppress(OSError, ValueError):
        click.echo(terminal.message(text))


def set_up() -> None:
    """Makes this process's streams harmless, whatever its parent gave it. To be called before any file is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # or the next file would get its number, and what is meant for stderr would go there
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr = stderr()


def settle() -> None:
    """Drops what could not be written by now: the interpreter would try again, and exit with a code of its own."""
    for stream in (sys.stdout, getattr(sys.stderr, "_stream", sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except AttributeError:  # None
            pass
