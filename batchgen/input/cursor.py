"""A position in one input file from which rows are read on, so that consecutive shards do not start over."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ..errors import JobError, Reject, shown
from ..host import arrow_sizes
from ..job.row_limits import USUAL, RowLimits, has_too_many_values, too_large, too_many_values
from . import columns
from .columns import Cell, Column, Fitted, PartlyReadableText, TextRow
from .conversation import BYTE_ORDER_MARK, PartlyReadable, Row, Unreadable
from .file_formats import (
    BY_BYTE,
    CHUNK,
    COLUMNAR,
    HEAD_SHOWN,
    PART_BYTES,
    Cut,
    Table,
    UnfitRow,
    chunks,
    csv_rows,
    elements,
    lines,
)


class Cursor(Protocol):
    """Reads the rows of a file in order.

    Attributes:
        position: of the next row, as in Shard: a byte of the text, or a row number.
    """

    position: int

    def go_to(self, position: int) -> None:
        """Moves forward to a row, in the cheapest way. Raises JobError or Stopped."""

    def take(self, rows: int, number: int) -> Iterator[Row]:
        """The next `rows` rows, or as many as are left. number: row number of the first. Raises JobError or Stopped."""

    def close(self) -> None:
        """Closes the file."""


def cursor_at(
    path: str,
    kind: str,
    compression: str,
    position: int,
    used: Sequence[str] = (),
    passed: Sequence[Column] = (),
    running: bool = False,
    limits: RowLimits = USUAL,
) -> Cursor:
    """The cursor for a file of this kind.

    Args:
        path: the file.
        kind, compression: see `file_formats.detect`.
        position: where to begin.
        used: columns whose values are looked at. Of columnar files only these and `passed` are read.
        passed: columns to pass through.
        running: the job is under way, so a file that cannot be read raises Stopped.
        limits: rows beyond them become rejects, and are never held in memory whole.
    """
    if kind in COLUMNAR:
        return TableCursor(path, kind, position, used, passed, running, limits)
    return TextCursor(path, kind, compression, position, running, limits)


class TextCursor:
    """The Cursor of a text format: JSONL, JSON or CSV, perhaps compressed."""

    def __init__(
        self,
        path: str,
        kind: str,
        compression: str,
        position: int,
        running: bool = False,
        limits: RowLimits = USUAL,
    ):
        self._path, self._kind, self._compression, self._running = path, kind, compression, running
        self._limits = limits
        self._open(position)

    def _open(self, position: int) -> None:
        by_byte = self._kind in BY_BYTE
        self._pieces = chunks(self._path, self._compression, position if by_byte else 0, running=self._running)
        self.position = position if by_byte else 0
        self._rows = self._read()
        self.go_to(position)

    def _read(self) -> Iterator[tuple[int, Any]]:
        """(position of the next row, this row)"""
        if self._kind == "jsonl":
            position = self.position
            for line in lines(self._pieces, self._limits.row_bytes):
                position += (line.size if isinstance(line, Cut) else len(line)) + 1
                yield position, line if isinstance(line, Cut) else line.removeprefix(BYTE_ORDER_MARK)
        elif self._kind == "csv":
            yield from enumerate(csv_rows(self._pieces, self._path), 1)
        else:
            for _, following, text in elements(self._pieces, self._kind, self.position, self._limits.row_bytes):
                yield following, text

    def go_to(self, position: int) -> None:
        if position - self.position > CHUNK and self._kind in BY_BYTE and not self._compression:
            self._open(position)
        while self.position < position:
            self.position, _ = next(self._rows, (position + 1, None))
        if self.position != position:
            raise JobError(
                f"{shown(self._path)}: a row no longer begins where it did; the input changed during the job"
            )

    def take(self, rows: int, number: int) -> Iterator[Row]:
        for number, (self.position, raw) in enumerate(itertools.islice(self._rows, rows), number):  # noqa: B020
            if isinstance(raw, UnfitRow):
                yield Row(number, raw.text.encode("utf-8", "surrogateescape"), fault=raw.why)
            elif isinstance(raw, dict):
                yield self._of_csv(number, raw)
            else:
                yield self._of_json(number, raw)

    def _of_json(self, number: int, raw: bytes | Cut) -> Row:
        limits = self._limits
        if isinstance(raw, Cut) or len(raw) > limits.row_bytes:
            head, size = raw if isinstance(raw, Cut) else (raw[:HEAD_SHOWN], len(raw))
            return Row(number, head, fault=Reject("too_large", too_large(size, limits.row_bytes)), size=size)
        if has_too_many_values(raw, limits.row_values):
            fault = Reject("too_large", too_many_values(limits.row_values))
            return Row(number, raw[:HEAD_SHOWN], fault=fault, size=len(raw))
        return Row(number, raw)

    def _of_csv(self, number: int, raw: dict[str, Any]) -> Row:
        most = self._limits.row_bytes
        if (size := sum(map(len, raw.values()))) > most:
            head = ",".join(value[:HEAD_SHOWN] for value in raw.values())[:HEAD_SHOWN].encode("utf-8", "replace")
            return Row(number, head, fault=Reject("too_large", too_large(size, most)), size=size)
        return Row(number, _checked(raw))

    def close(self) -> None:
        self._rows.close()  # type: ignore[attr-defined]
        self._pieces.close()  # type: ignore[attr-defined]


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """A row of CSV. A value that is not UTF-8 rejects the row only if it is looked at."""
    try:
        "".join(record.values()).encode()
        return record
    except UnicodeEncodeError:
        return PartlyReadableText((name, _checked_text(value)) for name, value in record.items())


def _checked_text(value: str) -> Any:
    try:
        value.encode()
        return value
    except UnicodeEncodeError as error:
        return Unreadable("invalid_utf8", f"character {error.start} of the text is not UTF-8")


EVERY_COLUMN = "*"  # among the columns that are looked at: all that a file has


class TableCursor:
    """The Cursor of a columnar format: Parquet or Arrow."""

    def __init__(
        self,
        path: str,
        kind: str,
        position: int,
        used: Sequence[str] = (),
        passed: Sequence[Column] = (),
        running: bool = False,
        limits: RowLimits = USUAL,
    ):
        self._table, self._limits = Table(path, kind, running), limits
        names = self._table.schema.names
        self._used = names if EVERY_COLUMN in used else [name for name in used if name in names]
        self._passed = [column for column in passed if column.source in names]
        self.position = position
        self._batches = self._from(position)

    def _from(self, position: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        wanted = [*self._used, *(column.source for column in self._passed)]
        self._batch: pa.RecordBatch | None = None
        self._begin = 0
        return self._table.batches(position, wanted)

    def go_to(self, position: int) -> None:
        """Row groups in between are skipped."""
        if self._table.group_begin(position) > max(self.position, self._end()):
            self._batches = self._from(position)
        self.position = position

    def _end(self) -> int:
        return self._begin + (self._batch.num_rows if self._batch else 0)

    def take(self, rows: int, number: int) -> Iterator[Row]:
        left = rows
        while left and self._find_batch():
            assert self._batch is not None
            offset = self.position - self._begin
            some = min(left, self._batch.num_rows - offset)
            for size, part in self._parts(self._batch.slice(offset, some)):
                for row in self._rows(part, number, size):
                    self.position += 1
                    yield row
                number += part.num_rows
                left -= part.num_rows

    def _find_batch(self) -> bool:
        """Reads on to the batch that contains the position. False at the end of the file."""
        while self.position >= self._end():
            begin, batch = next(self._batches, (0, None))
            if batch is None:
                return False
            self._begin, self._batch = begin, batch
        return True

    def _parts(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(size in bytes, part) of the batch in parts of at least one row, small enough to convert to Python values."""
        try:
            ends = np.cumsum(arrow_sizes.of_rows(batch, batch.schema.names))
        except (IndexError, ValueError):  # offsets out of range
            raise JobError(f"{shown(self._table.path)}: damaged at row {self.position} or after it") from None
        begin = 0
        while begin < batch.num_rows:
            before = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + PART_BYTES, "right")))
            yield int(ends[end - 1] - before), batch.slice(begin, end - begin)
            begin = end

    def _rows(self, batch: pa.RecordBatch, number: int, size: int) -> Iterator[Row]:
        most = self._limits.row_bytes
        if size > most and batch.num_rows > 1:  # one by one
            for index, one in enumerate(arrow_sizes.of_rows(batch, batch.schema.names).tolist()):
                yield from self._rows(batch.slice(index, 1), number + index, one)
            return
        if size > most and (why := self._too_large(batch)):
            yield Row(number, b"", fault=why, size=size)
            return
        values = [columns.pythons(self._plain(batch, name)) for name in self._used]
        are_readable = not any(type(value) is Unreadable for column in values for value in column)
        make = dict if are_readable else PartlyReadable
        is_parquet = self._table.kind == "parquet"
        fitted = {
            column.name: columns.fit(self._plain(batch, column.source), column, is_parquet) for column in self._passed
        }
        passed = list(dict.fromkeys(column.source for column in self._passed))
        shares = (arrow_sizes.of_rows(batch, passed, 0) // max(1, len(passed))).tolist()
        for index in range(batch.num_rows):
            raw = make(zip(self._used, (column[index] for column in values), strict=True))
            yield Row(number + index, raw, _Cells(fitted, index, shares[index]))

    def _too_large(self, row: pa.RecordBatch) -> Reject | None:
        limits = self._limits
        if (size := int(arrow_sizes.of_rows(row, row.schema.names, 0)[0])) > limits.row_bytes:
            return Reject("too_large", too_large(size, limits.row_bytes))
        if arrow_sizes.of_rows(row, self._used)[0] > limits.row_bytes + arrow_sizes.VALUE * limits.row_values:
            return Reject("too_large", too_many_values(limits.row_values))
        return None

    def _plain(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        """A column in the type of the file's schema; dictionary-encoded text stays encoded."""
        kind, array = self._table.schema.field(name).type, batch[name]
        if array.type == kind or pa.types.is_dictionary(array.type):
            return array
        return array.take(pa.array(np.arange(len(array)))).cast(kind)  # casting a slice would cast the whole array

    def close(self) -> None:
        self._batches.close()  # type: ignore[attr-defined]


class _Cells:
    """The passed-through values of one row, by Column. size: bytes to account for each."""

    __slots__ = ("_fitted", "_index", "_size")

    def __init__(self, fitted: dict[str, Fitted], index: int, size: int):
        self._fitted, self._index, self._size = fitted, index, size

    def __call__(self, column: Column) -> Cell | None:
        """Raises Reject."""
        if column.name not in self._fitted:
            return None  # the file has no such column
        found = self._fitted[column.name]
        if why := found.unfit.get(self._index):
            raise Reject(why.reason, why.detail)
        return Cell(found.array, self._index, self._size)


def passed_value(row: Row, record: dict[str, Any], column: Column) -> Any:
    """A passed-through value: a Cell, or a Python value. Raises Reject."""
    if row.cells is not None:
        return row.cells(column)
    return columns.fit_value(record.get(column.source), column, isinstance(record, TextRow))
