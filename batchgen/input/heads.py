"""The first rows of an input, read without counting or digesting the rest of it."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from .conversation import Row
from .cursor import EVERY_COLUMN, cursor_at
from .file_formats import detect

FILES = 20  # that are opened: a folder of 10,000 has the same rows in the others


class Head(NamedTuple):
    """The first rows of a file."""

    path: str
    kind: str
    rows: list[Row]


def heads(paths: list[str], rows: int) -> Iterator[Head]:
    """Of some of these files, spread over all of them, as many rows as make up `rows` together. Raises JobError."""
    some = paths[:: max(1, -(-len(paths) // FILES))]
    for path in some:
        kind, compression = detect(path)
        cursor = cursor_at(path, kind, compression, 0, [EVERY_COLUMN])
        with contextlib.closing(cursor):
            yield Head(path, kind, list(itertools.islice(cursor.take(rows, 0), -(-rows // len(some)))))
