"""File formats: recognising a file by its content, and reading its rows one after the other.

Rows of text formats begin at byte positions of the (decompressed) text. `jsonl` has a row per line; `json` is one array
of rows; `objects` are JSON objects that span several lines each. Rows of `csv` and of the columnar formats are counted.
"""

import contextlib
import csv
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError, Reject, Stopped, in_one_line, shown
from ..job.row_limits import ROW_BYTES, ROW_VALUES, too_large
from .columns import TextRow
from .compressed import Damaged, compression_of, decompressed
from .conversation import BYTE_ORDER_MARK
from .files import CSV_ENDINGS, JSON_ENDINGS, base_ending, failure, name_of, open_arrow, open_raw, reading

CHUNK = 1 << 20
HEAD = 1 << 20  # bytes of text that are looked at to recognise a format
COLUMNAR = frozenset(["parquet", "arrow", "arrows"])
BY_BYTE = frozenset(["jsonl", "json", "objects"])  # kinds whose positions are bytes of the text
KINDS = COLUMNAR | BY_BYTE | {"csv", ""}  # "" in records of 0.1.0, which went by the ending
BATCH_ROWS = 1024
FEW_ROWS = 8  # rows of a batch whose texts Arrow expands while reading
MOST_ROWS = 1 << 31  # rows of a file
PART_BYTES = 64 << 20  # bytes of a table's rows that are converted to Python values at a time (at least one row)

HEAD_SHOWN = 1 << 13  # bytes that are kept of a row that is too large
TOO_LONG = " "

csv.field_size_limit(ROW_BYTES)  # characters; a file with an unclosed quote is a single field

# --- what a file is

# The first bytes of formats that are refused by name, with what to do instead.
_REFUSED = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the data; fetch the data with git lfs pull",
    b"PARE": "Parquet with an encrypted footer; write it unencrypted",
    b"FEA1": "a Feather V1 file; rewrite it with pyarrow.feather",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file; save the sheet as CSV",
    b"%PDF": "a PDF; extract its text into JSONL",
    b"SQLite format 3": "an SQLite database; write its table as JSONL, CSV or Parquet",
    b"\x93NUMPY": "a NumPy array; write it as Parquet",
    b"\x89HDF": "an HDF5 file; write it as Parquet",
    b"Obj\x01": "an Avro file; write it as Parquet",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
}
_UTF16 = "encoded as UTF-16, but must be UTF-8; convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"


def detect(path: str, running: bool = False) -> tuple[str, str]:
    """(kind, compression) of a file, going by its content.

    The kind is parquet, arrow (the IPC file format), arrows (the IPC stream format), jsonl, json, objects or csv. The
    compression is "" if there is none. Raises JobError or Stopped.
    """
    with contextlib.closing(open_raw(path, running)) as raw, reading(path, running):
        head = raw.read(64)
        compression = compression_of(head)
        if not compression and not _columnar(head):
            head = _head(itertools.chain([head], iter(lambda: raw.read(CHUNK), b"")))
    if compression:
        head = _head(chunks(path, compression, running=running))
    if kind := _columnar(head):
        if compression:
            raise JobError(f"{shown(path)}: {kind} inside {compression}; unpack it first")
        return kind, ""
    return _text_kind(path, head), compression


def _columnar(head: bytes) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    return "arrows" if head.startswith(b"\xff\xff\xff\xff") else ""


def _head(pieces: Iterable[bytes]) -> bytes:
    """The first HEAD bytes of a text, without leading white space."""
    head = b""
    for piece in pieces:
        head += piece if head else piece.removeprefix(BYTE_ORDER_MARK).lstrip()
        if len(head) >= HEAD:
            break
    return head


def _text_kind(path: str, head: bytes) -> str:
    name = name_of(path)
    ending = base_ending(name)
    what = next((what for magic, what in _REFUSED.items() if head.startswith(magic)), "")
    if head[257:262] == b"ustar":
        what = "a tar archive; unpack it"
    if re.match(rb"ORC[^ -~\s]", head):  # but not a CSV about ORCHIDS
        what = "an ORC file; write it as Parquet"
    if ending in CSV_ENDINGS and head[:2] in (b"\xff\xfe", b"\xfe\xff"):  # as Excel writes text
        what = _UTF16
    if re.match(rb"(\xff\xfe)?[\[{]\0[^\0]\0|(\xfe\xff)?\0[\[{]\0", head):
        what = _UTF16
    if what:
        raise JobError(f"{shown(path)}: {what}")
    if ending in CSV_ENDINGS:
        return "csv"
    if _is_array(head):
        return "json"
    if head[:1] == b"{":
        return "objects" if _is_spread(head) else "jsonl"
    if not head or ending in JSON_ENDINGS:
        return "jsonl"
    raise JobError(
        f"{shown(path)}: is not JSONL, JSON, Parquet or Arrow (CSV and TSV are recognised by their endings); "
        "turn plain text into one row per line: jq -Rc '{text: .}' FILE > FILE.jsonl"
    )


def _is_array(head: bytes) -> bool:
    """Whether the text is one JSON array of objects, rather than lines of which the first is an array."""
    if re.match(rb"\[\s*\]\s*$", head):
        return True
    if not re.match(rb"\[\s*\{", head):
        return False
    line, _, more = head.partition(b"\n")
    if more.strip() and _is_json(line):
        return False
    marks = Marks(level=1).find(head[1:])
    return _is_json(head[1 : marks[0][0] + 1]) if marks else len(head) >= HEAD


def _is_spread(head: bytes) -> bool:
    """Whether the first object spans several lines."""
    line, newline, _ = head.partition(b"\n")
    if not newline or _is_json(line):
        return False
    marks = Marks(level=0).find(head)
    return _is_json(head[: marks[0][0] + 1]) if marks else line.strip() == b"{" and len(head) >= HEAD


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def looks_like_data(head: bytes) -> bool:
    """Whether a file without a known ending that begins like this may be data: compressed, columnar or JSON."""
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    return bool(compression_of(head) or _columnar(head) or re.match(rb"\[?\s*\{", text))


# --- text


def chunks(
    path: str, compression: str = "", position: int = 0, end: int | None = None, running: bool = False
) -> Iterator[bytes]:
    """The text of a file from byte `position` on (up to `end`, if given). Raises JobError or Stopped."""
    read = 0
    raw = open_raw(path, running)
    try:
        if position and not compression and _sought(raw, position):
            read = position
        pieces = decompressed(raw, compression) if compression else iter(lambda: raw.read(CHUNK), b"")
        for piece in pieces:
            begin, read = read, read + len(piece)
            if begin < position or (end is not None and read > end):
                piece = piece[max(0, position - begin) : None if end is None else max(0, end - begin)]
            if piece:
                yield piece
            if end is not None and read >= end:
                return
    except Damaged as error:
        what = f"cut off or damaged {compression} after {read} bytes of text"
        raise JobError(f"{shown(path)}: {what}: {error}") from None
    except (OSError, pa.ArrowException) as error:
        raise failure(path, error, running) from error
    finally:
        raw.close()


def _sought(raw: Any, position: int) -> bool:
    try:
        raw.seek(position)
    except (OSError, ValueError, NotImplementedError):  # a web server without range requests
        return False
    return True


class Cut(NamedTuple):
    """A row that is larger than a row may be.

    Attributes:
        head: its first HEAD_SHOWN bytes.
        size: its length in bytes.
    """

    head: bytes
    size: int


class Held:
    """A row that is still being read; once it is too long, only its head is kept."""

    def __init__(self, most: int):
        self._most = most
        self._parts: list[bytes] = []
        self.size = 0

    def add(self, part: bytes) -> None:
        """Appends to the row."""
        self.size += len(part)
        self._parts.append(part)
        if self.size > self._most:
            self._parts = [b"".join(self._parts)[:HEAD_SHOWN]]

    def take(self) -> bytes | Cut:
        """The row, which is no longer held here: so that a long one is in memory only once."""
        whole, size = b"".join(self._parts), self.size
        self._parts, self.size = [], 0
        return whole if size <= self._most else Cut(whole, size)


def lines(pieces: Iterator[bytes], most: int = ROW_BYTES) -> Iterator[bytes | Cut]:
    """The lines of a text without their newlines, in time linear in its length."""
    held = Held(most)
    for piece in pieces:
        whole = piece.split(b"\n")
        held.add(whole[0])
        if len(whole) == 1:
            continue
        yield held.take()
        yield from whole[1:-1]
        held.add(whole[-1])
    if held.size:
        yield held.take()


class Marks:
    """Finds where JSON values end, chunk by chunk: the elements of an array (level 1), or values that follow each other
    (level 0). The first chunk must begin where a value does."""

    # What the bytes that matter mean: +1 opens, -1 closes, 2 is a comma, 3 a quote.
    _meanings = np.zeros(256, np.int8)
    for _signs, _meaning in ((b"[{", 1), (b"]}", -1), (b",", 2), (b'"', 3)):
        _meanings[list(_signs)] = _meaning

    def __init__(self, level: int):
        self._level = level
        self._depth = level
        self._in_text = False
        self._escaped = False

    def find(self, chunk: bytes) -> list[tuple[int, bool]]:
        """(position in the chunk, whether it is a closing bracket) of each mark: at level 1 a comma between elements or
        the bracket that ends the array; at level 0 the bracket that ends a value."""
        text = b" " + chunk[1:] if self._escaped and chunk else chunk
        text = text.replace(rb"\\", b"  ")  # pairs of backslashes; a single one that is left escapes the next byte
        self._escaped = text.endswith(b"\\")
        meaning = self._meanings[np.frombuffer(text.replace(rb"\"", b"  "), np.uint8)]
        places = np.flatnonzero(meaning)
        meaning = meaning[places]
        quotes = meaning == 3
        inside = (np.cumsum(quotes) + self._in_text) & 1
        if len(inside):
            self._in_text = bool(inside[-1])
        outside = (inside == 0) & ~quotes
        places, meaning = places[outside], meaning[outside]
        depth = self._depth + np.cumsum(np.where(meaning == 2, 0, meaning))
        # Ignore brackets that close nothing.
        depth += np.maximum(0, np.maximum.accumulate(self._level - depth)) if len(depth) else 0
        closes = (meaning == -1) & (depth == self._level)
        if self._level:
            before = np.concatenate(([self._depth], depth[:-1]))
            closes &= before == 1
            marked = closes | ((meaning == 2) & (depth == 1))
        else:
            marked = closes
        if len(depth):
            self._depth = int(depth[-1])
        return list(zip(places[marked].tolist(), closes[marked].tolist(), strict=True))


def elements(
    pieces: Iterator[bytes], kind: str, position: int, most: int = ROW_BYTES
) -> Iterator[tuple[int, int, bytes | Cut]]:
    """(where it begins, where the next one begins, text) of the elements of an array, or of consecutive values, from
    `position` on. Text after the last one is returned as one more, which is not valid JSON."""
    is_array = kind == "json"
    marks = Marks(level=int(is_array))
    if is_array and not position:
        position, pieces = _behind_bracket(pieces)
    held = Held(most)

    def hold(part: bytes) -> None:  # white space before a row does not count
        held.add(part if held.size else part.lstrip())

    first = begin = position
    for piece in pieces:
        start = 0
        for place, closes in marks.find(piece):
            hold(piece[start : place if is_array else place + 1])
            start = place + 1
            text = _stripped(held.take())
            if text or not closes:
                yield first, begin + start, text
            first = begin + start
        hold(piece[start:])
        begin += len(piece)
    if text := _stripped(held.take()):
        yield first, begin, text


def _stripped(text: bytes | Cut) -> bytes | Cut:
    return text if isinstance(text, Cut) else text.strip()


def _behind_bracket(pieces: Iterator[bytes]) -> tuple[int, Iterator[bytes]]:
    """(position, text) right after the bracket that opens the array."""
    read = 0
    for piece in pieces:
        place = piece.find(b"[")
        if place >= 0:
            return read + place + 1, itertools.chain([piece[place + 1 :]], pieces)
        read += len(piece)
    return read, iter(())


class UnfitRow(dict[str, Any]):
    """A row of CSV that does not match the header.

    Attributes:
        why: the reject.
        text: the row, for people.
    """

    def __init__(self, why: Reject, text: str):
        super().__init__()
        self.why, self.text = why, text


def csv_rows(pieces: Iterator[bytes], path: str) -> Iterator[dict[str, Any]]:
    """The rows of CSV or TSV, as dicts with the header's names. Raises JobError."""
    tab = base_ending(name_of(path)) == ".tsv"
    delimiter = "\t" if tab else ","
    read = 0  # bytes since the last row

    def text() -> Iterator[str]:
        """Line by line. A row that is too large is replaced by a field that the csv module refuses, which ends it."""
        nonlocal read
        for number, line in enumerate(lines(pieces)):
            read += line.size if isinstance(line, Cut) else len(line)
            if isinstance(line, Cut) or read > ROW_BYTES or line.count(delimiter.encode()) > ROW_VALUES:
                yield TOO_LONG * (ROW_BYTES + 1)
                continue
            bare = line if number else line.removeprefix(BYTE_ORDER_MARK)
            yield bare.decode("utf-8", "surrogateescape") + "\n"

    reader = csv.reader(text(), delimiter=delimiter)
    names: list[str] | None = None
    while True:
        read = 0
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if names is None:
                raise JobError(f"{shown(path)}: its header is not valid {'TSV' if tab else 'CSV'}: {error}") from None
            is_large = read > ROW_BYTES
            why = Reject("too_large", too_large(read)) if is_large else Reject("bad_shape", f"invalid CSV: {error}")
            yield UnfitRow(why, "")
            continue
        if not fields:
            continue  # a blank line
        if names is None:
            names = fields
            check_names(path, names)
        elif len(fields) != len(names):
            why = Reject("bad_shape", f"the row has {len(fields)} fields, the header {len(names)}")
            yield UnfitRow(why, delimiter.join(fields))
        else:
            yield TextRow(zip(names, fields, strict=True))


def check_names(path: str, names: list[str]) -> None:
    """Raises JobError if two columns have the same name."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise JobError(f"{shown(path)}: has two columns named {twice!r}; rename one of them")


# --- columnar files


class Table:
    """An open Parquet or Arrow file, read in batches from any row on."""

    def __init__(self, path: str, kind: str, running: bool = False):
        """Raises JobError or Stopped."""
        self.path, self.kind, self._running = path, kind, running
        stream = open_arrow(path, running)
        with self._reading():
            if kind == "parquet":
                plain = pq.ParquetFile(stream)
                self.schema = plain.schema_arrow
                self._plain, (packed, all_packed) = plain, _texts(plain)
                self._file = pq.ParquetFile(stream, metadata=plain.metadata, read_dictionary=packed)
                self._step = BATCH_ROWS if all_packed else FEW_ROWS
            else:
                self._stream = stream
                self._file = self._open(None)
                self.schema = self._file.schema
        check_names(path, self.schema.names)

    def _open(self, columns: list[int] | None) -> Any:
        options = pa.ipc.IpcReadOptions(included_fields=columns)
        if self.kind == "arrow":
            return pa.ipc.open_file(self._stream, options=options)
        self._stream.seek(0)
        return pa.ipc.open_stream(self._stream, options=options)

    def _reading(self) -> Any:
        return _reading_columns(self.path, self.kind, self._running)

    def rows(self) -> int:
        """The number of rows: from the footer of Parquet, counted in Arrow. Raises JobError or Stopped."""
        if self.kind == "parquet":
            about = self._file.metadata
            rows = sum(about.row_group(group).num_rows for group in range(about.num_row_groups))
            if rows != about.num_rows or not 0 <= rows < MOST_ROWS:
                raise self._damaged(f"its footer says {about.num_rows:,} rows")
            return rows
        return sum(batch.num_rows for _, batch in self.batches(0, []))

    def batches(self, row: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of the first row, batch) of at most BATCH_ROWS rows each, beginning with the batch that has `row`."""
        wanted = [number for number, name in enumerate(self.schema.names) if name in columns]
        source = self._of_parquet(row, wanted) if self.kind == "parquet" else self._of_arrow(wanted)
        while True:
            with self._reading():
                begin, batch = next(source, (0, None))
            if batch is None:
                return
            if begin + batch.num_rows <= row:
                continue
            for offset in range(0, batch.num_rows, BATCH_ROWS):
                if begin + min(offset + BATCH_ROWS, batch.num_rows) > row:
                    yield begin + offset, batch.slice(offset, BATCH_ROWS)

    def group_begin(self, row: int) -> int:
        """The first row of the row group that contains a row: where reading can begin."""
        begin = 0
        if self.kind == "parquet":
            for group in range(self._file.num_row_groups):
                rows = self._file.metadata.row_group(group).num_rows
                if begin + rows > row:
                    break
                begin += rows
        return begin

    def _of_parquet(self, row: int, wanted: list[int]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Group by group, because Arrow cannot read a batch of dictionaries inside lists across two groups.

        A text that many rows share is kept once, as in the file: expanded, a kilobyte of file may become gigabytes.
        """
        begin = 0
        names = [self.schema.names[number] for number in wanted]
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if begin + rows <= row:
                begin += rows
                continue
            end = begin + rows
            try:
                for batch in self._file.iter_batches(self._step, [group], columns=names, use_threads=False):
                    yield begin, batch.select(names)  # Arrow also takes `a.b` for a field of a column `a`
                    begin += batch.num_rows
            except OSError as error:
                if "DeltaByteArray" not in str(error):
                    raise
                read = begin - (end - rows)
                plain = self._plain.iter_batches(FEW_ROWS, [group], columns=names, use_threads=False)
                for start, batch in _numbered(plain):
                    if start >= read:
                        yield begin, batch.select(names)
                        begin += batch.num_rows
            if begin != end:
                raise self._damaged(f"group {group} has {rows - (end - begin):,} rows, not {rows:,}")

    def _damaged(self, what: str) -> JobError:
        return JobError(f"{shown(self.path)}: a damaged Parquet file: {what}")

    def _of_arrow(self, wanted: list[int]) -> Iterator[tuple[int, pa.RecordBatch]]:
        # A batch without columns has no rows, so one column is read in order to count them.
        self._file = self._open(wanted or ([0] if self.schema.names else []))
        begin = 0
        count = self._file.num_record_batches if self.kind == "arrow" else None
        for number in itertools.count() if count is None else range(count):
            try:
                batch = self._file.read_next_batch() if count is None else self._file.get_batch(number)
            except StopIteration:
                return
            yield begin, batch
            begin += batch.num_rows


def _texts(file: pq.ParquetFile) -> tuple[list[str], bool]:
    """The text columns that can be read as dictionaries, and whether that is all of them. Only the schema is used:
    asked for anything else, Arrow crashes the process if the footer is damaged."""
    fields = file.schema_arrow
    views = tuple(f"{field.name}." for field in fields if "_view" in str(field.type))
    leaves = [file.schema.column(leaf) for leaf in range(len(file.schema))]
    texts = [leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    packed = [
        leaf.path
        for leaf in texts
        if leaf.logical_type.type in ("STRING", "NONE", "JSON", "ENUM") and not f"{leaf.path}.".startswith(views)
    ]
    return packed, len(packed) == len(texts)


def _numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of the first row, batch)"""
    begin = 0
    for batch in batches:
        yield begin, batch
        begin += batch.num_rows


class _reading_columns:
    """Wraps reading by pyarrow: an error with an errno is the file system's; one without means a damaged file."""

    def __init__(self, path: str, kind: str, running: bool):
        self._path, self._kind, self._running = path, kind, running

    def __enter__(self) -> None:
        pass

    def __exit__(self, of: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, JobError | Stopped):
            return
        if isinstance(error, OSError) and (error.errno or ("://" in self._path and "AWS Error" in str(error))):
            raise failure(self._path, error, self._running) from error
        if isinstance(error, OSError | pa.ArrowException | ValueError | NotImplementedError):
            kind = "a Parquet" if self._kind == "parquet" else "an Arrow"
            raise JobError(f"{shown(self._path)}: not {kind} file, or a damaged one: {in_one_line(error)}") from None
