"""What the first rows of an input look like, for whoever is to write a job for them."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import JobError, Reject, shown
from . import shapes
from .conversation import is_text
from .files import find
from .heads import heads

ROWS = 1000  # that are looked at
PROSE = 15  # characters that a text has on average: below that, columns hold names, labels and dates
_LABEL = re.compile(r"[\w./:+-]*")  # an id, a URL, a date, a word


@dataclass
class ColumnLook:
    """What a column holds, as far as it was looked at.

    texts, characters: how many rows have text there, and how long these are together
    others: rows with another value
    values: distinct ones of texts and numbers
    files: that have a value there
    prose: texts with more than one word
    """

    texts: int = 0
    characters: int = 0
    others: int = 0
    prose: int = 0
    values: set[Any] = field(default_factory=set)
    is_flat: bool = True
    files: set[str] = field(default_factory=set)

    @property
    def rows(self) -> int:
        """How many have a value there."""
        return self.texts + self.others

    @property
    def length(self) -> float:
        """Characters of a text on average."""
        return self.characters / max(1, self.texts)

    @property
    def is_prose(self) -> bool:
        return self.prose > self.texts / 2 and self.length >= PROSE

    def add(self, value: Any) -> None:
        if is_text(value):
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            self.texts += 1
            self.characters += len(text)
            self.prose += not _LABEL.fullmatch(text)
            self.values.add(text)
        elif value is not None:
            self.others += 1
            self.is_flat &= isinstance(value, bool | int | float)
            self.values.add(value if isinstance(value, bool | int | float) else "")


@dataclass
class Look:
    """What the first rows of an input are.

    files: of the whole input; opened: of these, those that were looked at
    rows: that were looked at
    columns: by name
    shapes: of the rows that a job can answer as they are
    answered: how many of these end with an answer, which is to be left out
    rejects: reasons why the others cannot be, in words
    texts: by path, such as messages[*].content
    """

    files: int
    rows: int = 0
    columns: dict[str, ColumnLook] = field(default_factory=dict)
    shapes: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    texts: dict[str, ColumnLook] = field(default_factory=dict)
    opened: int = 0

    @property
    def shape(self) -> str | None:
        """The one of most rows, if most rows can be answered as they are."""
        return self.shapes.most_common(1)[0][0] if self.shapes.total() > self.rows / 2 else None

    def add(self, record: dict[str, Any], file: str) -> None:
        for name, value in record.items():
            column = self.columns.setdefault(name, ColumnLook())
            column.add(value)
            if value is not None:
                column.files.add(file)
        for path, text in _texts(record):
            self.texts.setdefault(path, ColumnLook()).add(text)
        try:
            self.shapes[self._shape_of(record)] += 1
        except Reject as why:
            self.rejects[why.detail] += 1

    def _shape_of(self, record: dict[str, Any]) -> str:
        """Raises Reject."""
        shape = shapes.shape_of(record)
        try:
            shapes.read(record, shape)
        except Reject:
            shapes.read(record, shape, drop_last_response=True)
            self.answered += 1
        return shape


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a record, each with the path that `[translate] fields` would choose it by."""
    if isinstance(value, dict):
        for key, inside in value.items():
            if re.fullmatch(r"\w+", key):
                yield from _texts(inside, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inside in value:
            yield from _texts(inside, f"{path}[*]")
    elif isinstance(value, str) and value.strip():
        yield path, value


def look(paths: list[str]) -> Look:
    """Reads the first rows of some of the files. paths: absolute ones, or URIs. Raises JobError."""
    files = find(paths)
    found = Look(len(files))
    for head in heads(files, ROWS):
        found.opened += 1
        for row in head.rows:
            found.rows += 1
            try:
                found.add(row.record(), head.path)
            except Reject as why:
                found.rejects[str(why)] += 1
    if not found.rows:
        raise JobError(f"{', '.join(map(shown, paths))}: no rows; the input is empty")
    return found
