"""Metrics of the user's own: a function of a Python file, `scorer = "my.py:score"`.

    def score(row, response): return 0.5, or {"fluency": 0.5, "adequacy": 0.7}

row is the input record as a dict, response the text. A response for which it raises something, or returns something
else than finite numbers, has no value; the rest of the comparison goes on.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

from ..check import user
from ..errors import JobError, shown
from ..job import own_check

KEY = "[metrics] scorer"
MOST = 32  # metrics of one scorer: one whose names come from the data would make a column each
LONGEST_NAME = 40  # characters


class Scorer:
    """A scorer, with the faults of it so far.

    name: of its function; its metrics are called so, or so with a dot and their own name
    file_name: without its folder
    faults: responses for which it failed; what went wrong with the first of them is `first_fault`
    """

    def __init__(self, given: str):
        """The file is read, not run. Raises JobError if there is no such function."""
        own = own_check.parse(given)
        if not own:
            raise JobError(f"{KEY}: {given!r:.80} is no function of a file: write FILE.py:FUNCTION")
        user.require(own, KEY)
        self._own, self._file = own, own.file
        self._function: Callable[[dict[str, Any], str], Any] | None = None
        self._is_broken = False  # its file itself fails: it is not run again for every response
        self._names: set[str] = set()
        self.name, self.file_name = own.function, own.file.name
        self.faults = 0
        self.first_fault = ""

    def owns(self, metric: str) -> bool:
        """Whether a metric is, or may turn out to be, one of the scorer's."""
        return metric.partition(".")[0] == self.name

    def __call__(self, row: dict[str, Any], response: str) -> dict[str, float]:
        """Values by the names of metrics; none if it failed."""
        try:
            return self._named(self._score(row, response))
        except (Exception, SystemExit) as error:
            self.faults += 1
            if not self.first_fault:
                self.first_fault = shown(str(error) if isinstance(error, _NoScore) else user.fault(error, self._file))
            return {}

    def _score(self, row: dict[str, Any], response: str) -> Any:
        if self._function is None:
            if self._is_broken:
                raise _NoScore("its file cannot be run")
            self._is_broken = True
            self._function = user.function(self._own)
        return self._function(dict(row), response)

    def _named(self, found: Any) -> dict[str, float]:
        """What it returned, by the names of metrics. Raises _NoScore."""
        if not isinstance(found, dict):
            return {self.name: _number(self.name, found)}
        values = {f"{self.name}.{key}": value for key, value in found.items()}
        if new := values.keys() - self._names:
            if bad := [name for name in new if not _is_name(name.removeprefix(f"{self.name}."))]:
                raise _NoScore(f"{min(bad)!r:.80} cannot be the name of a metric: use letters, digits and '_'")
            if len(self._names | new) > MOST:
                raise _NoScore(f"it has more than {MOST} metrics: let it return the same names for every row")
            self._names |= new
        return {name: _number(name, value) for name, value in values.items()}


class _NoScore(Exception):
    """What a scorer returned is none. The text says why."""


def _number(name: str, value: Any) -> float:
    """A finite number. Raises _NoScore."""
    if isinstance(value, numbers.Real):
        try:
            if math.isfinite(number := float(value)):
                return number
        except OverflowError:
            pass
    said = str(value) if isinstance(value, float) else type(value).__name__
    raise _NoScore(f"{name} is {said}, which must be a finite number")


def _is_name(text: str) -> bool:
    return len(text) <= LONGEST_NAME and text.isascii() and text.replace("-", "_").isidentifier()
