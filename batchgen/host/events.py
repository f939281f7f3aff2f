"""What batchgen says on stderr, in one place: each thing is an event, a line for people or a JSON object for what
collects logs. How much of it is said, and in which form, the user says once for the process.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import IntEnum
from typing import IO, Any, NamedTuple

import click
import msgspec

from . import caller, console, terminal


class Level(IntEnum):
    debug = 10
    info = 20
    warning = 30
    error = 40


COLOURS = {Level.warning: "yellow", Level.error: "red"}
UNTIMED = {"header", "error", "stopped", "problem"}  # events whose lines have no time: what begins or ends a command
BARE = {"progress", "starting"}  # events whose lines do not begin with our name
RAW = {"vllm", "traceback"}  # nor with a time: they are as others wrote them


class Style(NamedTuple):
    """quiet: only warnings and errors; verbose: what a run else keeps to itself, too; as_json: not as lines of text."""

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False

    def shows(self, level: Level, event: str) -> bool:
        if event == "vllm":  # many lines, which are in a file anyway
            return self.verbose
        least = Level.warning if self.quiet else Level.debug if self.verbose or self.as_json else Level.info
        return level >= least


_style = Style()
_above: Callable[[str], None] | None = None  # writes a line where a bar is being drawn


def style() -> Style:
    return _style


def set_style(chosen: Style) -> None:
    """From now on; with `as_json`, what others print on stderr becomes JSON as well."""
    global _style
    _style = chosen
    now = _stderr()
    sys.stderr = _Foreign(now) if chosen.as_json else now


def above_a_bar(write: Callable[[str], None] | None) -> None:
    """Has lines written by this function while a bar is being drawn, and no longer with None."""
    global _above
    _above = write


def tell(level: Level, event: str, *lines: str, stream: IO[str] | None = None, **figures: Any) -> None:
    """Says that something has happened.

    event: what kind of thing, for programs
    lines: the same for people; each is made safe to show, and free of secrets
    stream: where to, if not to stderr
    figures: of the event; only JSON has them
    """
    if not _style.shows(level, event):
        return
    to = stream.ours if isinstance(stream, _Foreign) else stream or _stderr()
    text = as_said(level, event, lines, figures, to.isatty())
    if _above and not stream:
        _above(text)
    else:
        to.write(text + "\n")
        to.flush()


def note(level: Level, event: str, *lines: str, **figures: Any) -> None:
    """The same of what a run does, which a Python program has not asked to see."""
    if not caller.current().warn:
        tell(level, event, *lines, **figures)


def as_said(level: Level, event: str, lines: Iterable[str], figures: Mapping[str, Any], on_terminal: bool) -> str:
    """What `tell` writes."""
    said = list(map(terminal.message, lines))
    if not _style.as_json:
        return "\n".join(_lines(level, event, said, on_terminal))
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    first = {"time": now, "level": level.name, "event": event, "message": "\n".join(said)}
    return terminal.document(msgspec.json.encode(first | _safe(figures)))


def _safe(value: Any) -> Any:
    """A figure as JSON may have it; its texts are those of strangers."""
    if isinstance(value, str):
        return terminal.message(value)
    if isinstance(value, Mapping):
        return {_safe(key): _safe(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(part) for part in value]
    return round(value, 3) if isinstance(value, float) else value


def _lines(level: Level, event: str, said: list[str], on_terminal: bool) -> Iterator[str]:
    """On a terminal with a little colour; elsewhere with the time: a log file has the lines of many runs."""
    if event in RAW:
        yield from said
        return
    timed = not on_terminal and event not in UNTIMED
    at = time.strftime("%Y-%m-%d %H:%M:%S ") if timed else ""
    name = "" if event in BARE else "batchgen: warning: " if event == "warning" else "batchgen: "
    if name and level in COLOURS and on_terminal and _has_colours():
        name = f"{click.style(name.rstrip(), fg=COLOURS[level])} "
    for number, line in enumerate(said):
        begin = name if level < Level.error or not number else ""  # an error's further lines are its details
        yield f"{at}{begin}{line}"


def _has_colours() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _Foreign(console.Console):
    """What others print on stderr, in a log of JSON: an event for each line."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.ours = stream
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            tell(Level.info, "other", line)
        return len(text)

    def isatty(self) -> bool:
        return False


def _stderr() -> Any:
    """stderr itself, without what makes JSON of others' lines."""
    now = console.stderr()
    return now.ours if isinstance(now, _Foreign) else now
