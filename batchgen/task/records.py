"""Records whose texts are replaced: lines of JSON to the byte, rows of a columnar file in Arrow's types."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from ..input import arrow_leaves, json_leaves
from ..input.arrow_leaves import ArrowLeaf
from ..input.columns import Cell, Column
from ..input.conversation import Row, Unreadable
from ..input.json_leaves import JsonLeaf
from ..input.paths import FieldPath, Found, Leaf


class Record(Protocol):
    """A record with its texts."""

    @property
    def leaves(self) -> Sequence[Leaf]: ...

    @property
    def missing(self) -> list[FieldPath]:
        """The paths that lead to nothing in it, or to null."""
        ...

    @property
    def mistyped(self) -> list[FieldPath]:
        """The paths that lead to something else than a text."""
        ...

    def replaced(self, texts: Sequence[str | None]) -> dict[str, Any]:
        """Its output row, with these texts in place of its own; None is null."""
        ...


class Records(Protocol):
    """The records of a job.

    schema: of the output rows
    columns: that are passed through
    """

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def columns(self) -> list[Column]: ...

    def of(self, row: Row, id: str) -> Record:
        """Raises Reject."""
        ...


# --- lines of JSON, and what is read as such


@dataclass(frozen=True)
class JsonRecords:
    """Of JSONL, JSON and CSV: an output row has the line with its texts replaced.

    report: the column that says how the translation went, and its type
    """

    paths: list[FieldPath]
    report: pa.Field

    @cached_property
    def schema(self) -> pa.Schema:
        own = [("id", pa.string()), ("row", pa.int64()), ("record", pa.string())]
        return pa.schema([*(pa.field(name, kind, nullable=False) for name, kind in own), self.report])

    @property
    def columns(self) -> list[Column]:
        return []

    def of(self, row: Row, id: str) -> "JsonRecord":
        record = row.record()  # what is none is rejected here
        line = row.raw if isinstance(row.raw, bytes) else _as_line(record)
        return JsonRecord(row.number, id, line, json_leaves.find(line, self.paths))


class JsonRecord(msgspec.Struct, frozen=True, gc=False):
    """line: of the input, without its end"""

    row: int
    id: str
    line: bytes
    found: Found[JsonLeaf]

    @property
    def leaves(self) -> list[JsonLeaf]:
        return self.found.leaves

    @property
    def missing(self) -> list[FieldPath]:
        return self.found.missing

    @property
    def mistyped(self) -> list[FieldPath]:
        return self.found.mistyped

    def replaced(self, texts: Sequence[str | None]) -> dict[str, Any]:
        record = json_leaves.splice(self.line, self.leaves, texts).decode()
        return {"id": self.id, "row": self.row, "record": record}


def _as_line(record: dict[str, Any]) -> bytes:
    """A row of CSV as a line of JSON. Raises Reject."""
    for name, value in dict.items(record):
        if isinstance(value, Unreadable):
            raise value.why(name)
    return msgspec.json.encode(dict(record))


# --- rows of a columnar file


@dataclass(frozen=True)
class ArrowRecords:
    """Of Parquet and Arrow files: an output row has the columns of the input.

    columns: all that the input has
    input_schema: theirs
    """

    paths: list[FieldPath]
    columns: list[Column]
    input_schema: pa.Schema
    report: pa.Field

    @cached_property
    def schema(self) -> pa.Schema:
        return self.input_schema.append(self.report)

    @cached_property
    def _by_column(self) -> dict[str, dict[int, FieldPath]]:
        """The paths with their numbers."""
        found: dict[str, dict[int, FieldPath]] = {}
        for number, path in enumerate(self.paths):
            found.setdefault(path.column, {})[number] = path
        return found

    def of(self, row: Row, id: str) -> "ArrowRecord":
        if row.fault:
            raise row.fault
        assert row.cells
        cells = {column.name: row.cells(column) for column in self.columns}
        leaves = {}
        for name, paths in self._by_column.items():
            if cell := cells[name]:
                in_cell = arrow_leaves.find(cell.array.slice(cell.place, 1), list(paths.values()))
                leaves[name] = _numbered(in_cell, list(paths))
            else:
                leaves[name] = Found([], list(paths.values()), [])
        return ArrowRecord(cells, leaves)


def _numbered(found: Found[ArrowLeaf], numbers: list[int]) -> Found[ArrowLeaf]:
    """Texts of a column whose `chosen_by` are numbers of all paths, not of the column's."""
    if numbers == list(range(len(numbers))):
        return found
    leaves = [leaf._replace(chosen_by=tuple(numbers[each] for each in leaf.chosen_by)) for leaf in found.leaves]
    return found._replace(leaves=leaves)


class ArrowRecord(msgspec.Struct, frozen=True, gc=False):
    """cells: by column; by_column: the texts in each"""

    cells: dict[str, Cell | None]
    by_column: dict[str, Found[ArrowLeaf]]

    @property
    def leaves(self) -> list[ArrowLeaf]:
        return [leaf for found in self.by_column.values() for leaf in found.leaves]

    @property
    def missing(self) -> list[FieldPath]:
        return [path for found in self.by_column.values() for path in found.missing]

    @property
    def mistyped(self) -> list[FieldPath]:
        return [path for found in self.by_column.values() for path in found.mistyped]

    def replaced(self, texts: Sequence[str | None]) -> dict[str, Any]:
        made: dict[str, Any] = dict(self.cells)
        rest = iter(texts)
        for name, (leaves, _, _) in self.by_column.items():
            some = list(islice(rest, len(leaves)))
            if (cell := self.cells[name]) and some != [leaf.text for leaf in leaves]:
                array = arrow_leaves.replace(cell.array.slice(cell.place, 1), leaves, some)
                made[name] = Cell(array, 0, array.nbytes)
        return made
