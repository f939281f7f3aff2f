"""`_segments/`: what became of each distinct segment of a finished shard, as a Parquet file in row groups that can be
read one by one: the audit of a translation, and the memory of later ones (memory.py).
"""

import binascii
import contextlib
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import JobError, in_one_line, plain
from ..input.columns import pythons
from ..input.plan import Shard
from ..job.sampling import Sampling
from ..task.output_columns import as_column, from_column
from ..task.segment_rows import SCHEMA, SegmentRow
from . import layout
from .store import Store

GROUP_ROWS = 2048  # most rows of a row group: what one look-up reads
GROUP_BYTES = 4 << 20  # of texts, after which a row group ends; a longer segment has one of its own
MOST_GROUP_ROWS = 1 << 16  # of a row group that is read, whoever wrote it
SAMPLING = "sampling"  # the only struct
KEY = "S16"  # a key in NumPy: the 16 bytes of its digest

Keys = Any  # a NumPy array of KEY
Flags = Any  # a NumPy array of bool

# Each key is there once, so a dictionary would hold all of them a second time.
_DICTIONARIES = [name for name in SCHEMA.names if name not in ("key", "source", "answer", "seed", "mean_logprob")]


def as_parquet(segments: Sequence[SegmentRow], metadata: dict[str, str]) -> memoryview:
    """The same bytes for the same segments and metadata."""
    sink = pa.BufferOutputStream()
    dictionaries = [path for path in _leaves(SCHEMA) if path.partition(".")[0] in _DICTIONARIES]
    with pq.ParquetWriter(
        sink, SCHEMA, compression="zstd", use_dictionary=dictionaries, write_statistics=False
    ) as writer:
        for group in _groups(segments):
            writer.write_table(_table_of(group))
        writer.add_key_value_metadata(metadata)
    return memoryview(sink.getvalue())


def _table_of(segments: Sequence[SegmentRow]) -> pa.Table:
    """Parameters that many segments have in common are converted once: that is most of the work."""
    shared = {id(segment.sampling): segment.sampling for segment in segments}
    place_of = {each: place for place, each in enumerate(shared)}
    sampling = pa.array([as_column(each) for each in shared.values()], SCHEMA.field(SAMPLING).type)
    columns = {
        field.name: pa.array([getattr(segment, field.name) for segment in segments], field.type)
        for field in SCHEMA
        if field.name != SAMPLING
    }
    columns[SAMPLING] = sampling.take(pa.array([place_of[id(segment.sampling)] for segment in segments], pa.int64()))
    return pa.table([columns[name] for name in SCHEMA.names], SCHEMA)


def _leaves(schema: pa.Schema) -> list[str]:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema):
        pass
    found = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [found.column(leaf).path for leaf in range(len(found))]


def _groups(segments: Sequence[SegmentRow]) -> Iterator[Sequence[SegmentRow]]:
    begin = size = 0
    for place, segment in enumerate(segments):
        length = len(segment.source.encode("utf-8", "surrogatepass")) + len(segment.answer or "")
        if place > begin and (place - begin == GROUP_ROWS or size + length > GROUP_BYTES):
            yield segments[begin:place]
            begin, size = place, 0
        size += length
    yield segments[begin:]


def read(out: Store, shard: Shard) -> Iterator[list[SegmentRow]]:
    """The segments of a finished shard in their order, a row group at a time; nothing if it has none. Raises
    JobError if they are damaged."""
    name = layout.segments(shard)
    if not out.exists(name):
        return
    file = SegmentFile(out, name)
    for number in range(len(file.groups)):
        group = file.group(number)
        yield [group[place] for place in range(len(group))]


class SegmentFile:
    """A file of `_segments/`, of which one row group at a time is read. It holds the footer, and nothing open.

    Whoever handed the folder over may have written it: a text that many rows share is kept once, as in the file, and
    rows are looked at as they are read. Every method raises JobError if it is gone, or not what batchgen writes.

    groups: rows of each row group
    """

    def __init__(self, out: Store, name: str):
        self._out, self._name = out, name
        with self._open() as stream:
            plain = pq.ParquetFile(stream)
            if not _is_of_segments(plain.schema_arrow):
                raise self._damaged("its columns are not those of segments")
            # Asked for more than the schema and rows, Arrow crashes the process if the footer is damaged.
            self._footer = plain.metadata
            leaves = [plain.schema.column(leaf) for leaf in range(len(plain.schema))]
            self._texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            self.groups = [self._footer.row_group(number).num_rows for number in range(plain.num_row_groups)]
        if not all(0 <= rows <= MOST_GROUP_ROWS for rows in self.groups):
            raise self._damaged("its footer has row groups that are too long")

    def keys(self) -> Iterator[tuple[Keys, Flags]]:
        """Of each row group: the keys of its segments, and whether each fails a check."""
        for number in range(len(self.groups)):
            with self._open() as stream:
                table = self._table(stream, number, ["key", "failed_checks"])
                found = self._keys_of(table["key"]), pc.list_value_length(table["failed_checks"]).to_numpy() > 0
            yield found

    def columns(self, number: int, names: list[str]) -> pa.Table:
        """Some columns of a row group; texts are dictionary-encoded."""
        with self._open() as stream:
            return self._table(stream, number, names)

    def keys_of(self, column: pa.ChunkedArray) -> Keys:
        """The column `key` of such a table."""
        with self._open():
            return self._keys_of(column)

    def group(self, number: int) -> "Group":
        with self._open() as stream:
            return Group(self._table(stream, number, SCHEMA.names), self._damaged)

    def _table(self, stream: BufferedReader, number: int, columns: list[str]) -> pa.Table:
        file = pq.ParquetFile(stream, metadata=self._footer, read_dictionary=self._texts)
        table = file.read_row_group(number, columns, use_threads=False).select(columns)
        if table.num_rows != self.groups[number]:
            raise self._damaged(f"row group {number} has {table.num_rows:,} rows, not {self.groups[number]:,}")
        if empty := next((name for name in columns if not SCHEMA.field(name).nullable and table[name].null_count), ""):
            raise self._damaged(f"{empty} is null in row group {number}")
        return table

    def _keys_of(self, column: pa.ChunkedArray) -> Keys:
        parts = [np.zeros(0, KEY)]
        for chunk in column.chunks:
            texts = chunk.dictionary
            if set(pc.unique(pc.binary_length(texts)).to_pylist()) - {32}:
                raise self._damaged("a key has not 32 digits")
            digits = "".join(texts.to_pylist())
            parts.append(np.frombuffer(binascii.unhexlify(digits), KEY)[chunk.indices.to_numpy()])
        return np.concatenate(parts)

    @contextlib.contextmanager
    def _open(self) -> Iterator[BufferedReader]:
        try:
            with self._out.open(self._name) as stream:
                yield stream
        except FileNotFoundError:
            raise JobError(f"{self._out.where(self._name)}: is gone; run batchgen verify {self._out}") from None
        except (pa.ArrowException, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raise self._damaged(in_one_line(error)) from None
        except OSError as error:  # the disk's own are Stopped
            if error.errno:
                raise
            raise self._damaged(in_one_line(error)) from None

    def _damaged(self, what: str) -> JobError:
        return JobError(
            f"{self._out.where(self._name)}: damaged, or not batchgen's ({what}); run batchgen verify {self._out}"
        )


def _is_of_segments(schema: pa.Schema) -> bool:
    """Parameters of sampling have come over time, and may again."""
    found = {field.name: field.type for field in schema}
    if len(found) != len(schema) or not found.keys() >= set(SCHEMA.names):
        return False
    has, known = found[SAMPLING], {field.name: field.type for field in SCHEMA.field(SAMPLING).type}
    return (
        all(found[field.name] == field.type for field in SCHEMA if field.name != SAMPLING)
        and pa.types.is_struct(has)
        and len({field.name for field in has}) == has.num_fields
        and all(known.get(field.name, field.type) == field.type for field in has)
    )


class Group:
    """The segments of one row group. Each is made, and looked at, when it is asked for. Raises JobError if it cannot be
    one."""

    def __init__(self, table: pa.Table, damaged: Callable[[str], JobError]):
        self._damaged = damaged
        self._columns: dict[str, list[Any]] = {name: [] for name in table.column_names}
        for batch in table.to_batches():
            for name, values in self._columns.items():
                values.extend(_samplings(batch[name]) if name == SAMPLING else pythons(batch[name]))

    def __len__(self) -> int:
        return len(self._columns["key"])

    def __getitem__(self, place: int) -> SegmentRow:
        try:
            return msgspec.convert({name: values[place] for name, values in self._columns.items()}, SegmentRow)
        except ValueError as error:  # msgspec's own too
            raise self._damaged(f"segment {place} of a row group: {plain(str(error))}") from None


def _samplings(array: pa.StructArray) -> list[Sampling]:
    """Those that are equal are one: most segments have the same. Raises ValueError."""
    names, parts = [field.name for field in array.type], array.flatten()
    is_constant = [part.slice(1).equals(part.slice(0, len(part) - 1)) for part in parts]
    constant = {name: part[0].as_py() for name, part, same in zip(names, parts, is_constant, strict=True) if same}
    varying = {name: pythons(part) for name, part, same in zip(names, parts, is_constant, strict=True) if not same}
    made: dict[str, Sampling] = {}
    found = []
    for place in range(len(array)):
        own = {name: values[place] for name, values in varying.items()}
        what = repr(own)
        if what not in made:
            made[what] = msgspec.convert(from_column(constant | own), Sampling)
        found.append(made[what])
    return found
