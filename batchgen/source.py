"""Input files: finding them, counting and digesting their rows into a shard plan, reading one shard.

The plan of an incremental job grows by generations. What a run finds beyond the plan (new files, lines behind those
that are known) goes to its end, as new entries of `files` and new shards over them. So rows keep their numbers and
shards their names, wherever in the input's order a new row stands; the last shard of a generation may be short.
"""

import contextlib
import fnmatch
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from .conversation import Row
from .errors import JobError, Reject, warn
from .shapes import SHAPES
from .template import Template

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
GLOB_SIGNS = "*?["  # of these a URI can only hold `*`: the others are not letters of a URI's path
CHUNK = 1 << 20
NEWLINE = ord("\n")
# Types of passed-through columns are read off this many rows at the head of each JSONL file.
SAMPLE_ROWS = 1000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows programs put it at the head of a file


class InputFile(msgspec.Struct, frozen=True):
    """A file, or what a later generation found behind the part that was known: its rows from byte `start` of its text
    to byte `end`.

    path: absolute path or URI; size, mtime_ns: of the whole file when it was read; digest: SHA-256 of the content up to
    `end` (of the text, if it was compressed), so that the last entry of a path vouches for all of them.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str
    rows: int
    end: int
    start: int = 0
    generation: int = 0


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """Rows first_row .. first_row + rows - 1, which start in file `file` of the plan at `position`: a byte of
    the text of JSONL, a row of Parquet. A shard may go on into the next files.

    of: how many shards the job had when this one was planned, as its name says; picked: if given, the shard has only
    these of its rows (`batchgen retry`).
    """

    index: int
    of: int
    first_row: int
    rows: int
    file: int
    position: int
    picked: list[int] | None = None

    @property
    def name(self) -> str:
        return f"part-{self.index:05}-of-{self.of:05}"

    @property
    def row_numbers(self) -> Sequence[int]:
        return range(self.first_row, self.first_row + self.rows) if self.picked is None else self.picked


class Plan(msgspec.Struct, frozen=True):
    files: list[InputFile]
    shards: list[Shard]

    @property
    def rows(self) -> int:
        return sum(len(shard.row_numbers) for shard in self.shards)

    @property
    def generation(self) -> int:
        """How often it has grown."""
        return self.files[-1].generation

    @property
    def latest(self) -> dict[str, InputFile]:
        """The last entry of each path."""
        return {file.path: file for file in self.files}


# --- finding files


def find(paths: Iterable[str]) -> list[str]:
    """Every input file of files, folders, globs and URIs, in the order given, each sorted by name. Raises JobError."""
    found = [file for path in paths for file in _find_one(path)]
    if len(set(found)) < len(found):
        twice = next(file for file in found if found.count(file) > 1)
        raise JobError(f"{twice}: named twice in the input; each row is answered once")
    return found


def _find_one(path: str) -> list[str]:
    system, inner = _open_system(path)
    try:
        info = system.get_file_info(inner)
        if info.type == fs.FileType.File:
            files = [inner]
        elif info.type == fs.FileType.Directory:
            files = [file for file in _walk(system, inner) if _is_data(file[len(inner) :])]
            what = "folder without .jsonl, .json, .ndjson or .parquet files"
        elif any(sign in inner for sign in GLOB_SIGNS):
            files = _glob(system, inner)
            what = "no file matches"
        else:
            raise JobError(f"{path}: no such file or folder")
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"{path}: cannot be listed: {error}") from None
    if not files:
        raise JobError(f"{path}: {what}")
    return [_full_name(path, inner, file) for file in sorted(files)]


def _open_system(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path inside it."""
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        return fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise JobError(f"{path}: not a URI that can be opened: {error}") from None


def _full_name(path: str, inner: str, file: str) -> str:
    """`file`, found in the file system of `path`, named so that it opens from anywhere: with the URI's query."""
    if "://" not in path or path.startswith("file://"):
        return file
    before, _, query = path.partition("?")
    return unquote(before).removesuffix("/").removesuffix(inner) + quote(file) + (f"?{query}" if query else "")


def _walk(system: fs.FileSystem, folder: str, recursive: bool = True) -> list[str]:
    infos = system.get_file_info(fs.FileSelector(folder, recursive=recursive))
    return [info.path for info in infos if info.type == fs.FileType.File]


def _is_data(relative: str) -> bool:
    parts = relative.strip("/").split("/")
    name, extension = os.path.splitext(parts[-1])
    name = name if extension in COMPRESSIONS else parts[-1]
    return not any(part[0] in "._" for part in parts) and name.endswith((*JSON_ENDINGS, ".parquet"))


def _glob(system: fs.FileSystem, pattern: str) -> list[str]:
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in GLOB_SIGNS))
    folder = "/".join(parts[:fixed]) or "/"
    if system.get_file_info(folder).type != fs.FileType.Directory:
        return []
    files = _walk(system, folder, recursive=fixed < len(parts) - 1)
    return [file for file in files if _matches(file.split("/"), parts)]


def _matches(names: list[str], patterns: list[str]) -> bool:
    """Segment by segment; `**` stands for any number of folders."""
    if not patterns or not names:
        return names == patterns
    if patterns[0] == "**":
        return _matches(names, patterns[1:]) or _matches(names[1:], patterns)
    return fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


# --- the shard plan


class _Part(NamedTuple):
    """A file from a byte of its text on, and the digest of what stands before."""

    path: str
    start: int
    digest: "hashlib._Hash"


def plan(paths: Iterable[str], shard_rows: int, known: Plan | None = None, incremental: bool = False) -> Plan:
    """Counts and digests every file, one pass each, and cuts the rows into shards of shard_rows.

    known: an earlier plan with the same shard_rows. If every file still has its path, size and time of
    change, it is returned as it is, without reading anything. incremental: the plan is going to grow. Raises JobError.
    """
    found = find(paths)
    if known and found == [file.path for file in known.files] and all(map(_is_untouched, known.files)):
        return known
    planned = _extend(Plan([], []), [_Part(path, 0, hashlib.sha256()) for path in found], shard_rows, incremental)
    if not planned.shards:
        raise JobError(f"{', '.join(found)}: no rows; the input is empty")
    return planned


def grow(paths: Iterable[str], shard_rows: int, known: Plan) -> tuple[Plan, list[str]]:
    """The known plan with a generation more for what the input has got since, or as it is if there is nothing; and, one
    line each, what of the known part is not as it was: then there is no plan. A file is known by its path.

    Only uncompressed JSONL may get longer. If size or time of change are others, the known part is read again.
    Raises JobError.
    """
    found = find(paths)
    changed = [f"{path}: is no longer in the input" for path in known.latest if path not in set(found)]
    parts = []
    for path in found:
        old = known.latest.get(path)
        if old is None:
            parts.append(_Part(path, 0, hashlib.sha256()))
        elif not _is_untouched(old):
            digest = _digest(path, old.end if _may_grow(path) else None)
            if digest.hexdigest() != old.digest:
                changed.append(f"{path}: the {old.end:,} bytes that were read are not what they were")
            elif _may_grow(path):
                between = _line_end(old)
                if between is None:
                    changed.append(f"{path}: its last line, which was read without an end, goes on now")
                else:
                    digest.update(between)
                    parts.append(_Part(path, old.end + len(between), digest))
        elif old.end < old.size and _may_grow(path):
            _warn_of_unfinished(path)
    return known if changed else _extend(known, parts, shard_rows, incremental=True), changed


def _extend(known: Plan, parts: Iterable[_Part], shard_rows: int, incremental: bool) -> Plan:
    """The plan with a generation more over these parts, or as it is if they have no rows."""
    files = list(known.files)
    generation = known.generation + 1 if files else 0
    begin = rows = sum(file.rows for file in files)
    starts: list[tuple[int, int]] = []
    for part in parts:
        first = (begin - rows) % shard_rows  # the first row of this part that begins a shard
        file, positions = _scan(part, first, shard_rows, generation, incremental)
        if file.rows or not generation:
            starts += [(len(files), position) for position in positions]
            files.append(file)
            rows += file.rows
    if not starts:
        return known
    of = len(known.shards) + len(starts)
    shards = [
        Shard(len(known.shards) + number, of, first_row, min(shard_rows, rows - first_row), *start)
        for number, (first_row, start) in enumerate(zip(range(begin, rows, shard_rows), starts, strict=True))
    ]
    return Plan(files, known.shards + shards)


def changes(plan: Plan, trust_times: bool, growing: bool) -> list[str]:
    """The files of a plan whose content is not what it was. trust_times: files of the same size and time of change
    count as unchanged without being read; growing: they may have got longer. Raises JobError."""
    return [
        file.path
        for file in plan.latest.values()
        if not (trust_times and _is_untouched(file))
        and _digest(file.path, file.end if growing and _may_grow(file.path) else None).hexdigest() != file.digest
    ]


def _may_grow(path: str) -> bool:
    """Whether a file can get longer and still hold what it held: neither Parquet nor compressed files can."""
    return not is_parquet(path) and _ending(path) not in COMPRESSIONS


def _is_untouched(file: InputFile) -> bool:
    return _stat(file.path) == (file.path, file.size, file.mtime_ns)


def _line_end(file: InputFile) -> bytes | None:
    """What ends the last line of the known part of a file, if that had no end when it was read: a newline, or nothing
    yet. None if the line has got longer."""
    last, more = b"\n", b""
    if file.end:
        around = b"".join(_chunks(file.path, position=file.end - 1, end=file.end + 2))
        last, more = around[:1], around[1:]
    if last == b"\n" or more in (b"", b"\r"):
        return b""
    return next((end for end in (b"\n", b"\r\n") if more.startswith(end)), None)


def _stat(path: str) -> tuple[str, int, int]:
    system, inner = _open_system(path)
    info = system.get_file_info(inner)
    return path, info.size, info.mtime_ns or 0


def is_parquet(path: str) -> bool:
    return _ending(path) == ".parquet"


def _ending(path: str) -> str:
    return os.path.splitext(path.partition("?")[0] if "://" in path else path)[1]


def _scan(part: _Part, first: int, step: int, generation: int, incremental: bool) -> tuple[InputFile, list[int]]:
    """A part's facts, and the positions of its rows first, first + step, first + 2 step, ..."""
    path = part.path
    _, size, mtime_ns = _stat(path)
    if is_parquet(path):
        rows = open_parquet(path).metadata.num_rows
        positions = list(range(first, rows, step))
        end, digest = size, _digest(path).hexdigest()
    else:
        # Of a file that is being written to, what was there when its size was asked for.
        until = size if _may_grow(path) else None
        rows, positions, end, digest = _scan_lines(part, until, first, step, incremental and _may_grow(path))
    return InputFile(path, size, mtime_ns, digest, rows, end, part.start, generation), positions


def _scan_lines(
    part: _Part, until: int | None, first: int, step: int, incremental: bool
) -> tuple[int, list[int], int, str]:
    """Lines, positions, where the text ends, and the digest of all of it.

    A last line without an end is a row like any other. Not so if the job is incremental and the line is no whole object
    yet: a writer may be in the midst of it, so it is left for the run that finds its end. (An object ends with its
    closing bracket: no line that goes on passes for a whole one.)
    """
    path, start, digest = part
    lines, end = 0, start  # whole lines, and where the text ends, before this chunk
    positions = [start] if first == 0 else []
    wanted = first or step  # the next line, counted from 0, whose first byte is asked for
    tail = bytearray()  # what stands behind the last newline
    for chunk in _chunks(path, position=start, end=until):
        if end == 0 and _ending(path) == ".json" and chunk.lstrip()[:1] == b"[":
            raise JobError(f"{path}: holds one JSON array; write one object per line (JSONL)")
        newlines = np.flatnonzero(np.frombuffer(chunk, np.uint8) == NEWLINE)
        asked = newlines[wanted - lines - 1 :: step]
        positions += (asked + end + 1).tolist()
        wanted += step * len(asked)
        lines += len(newlines)
        end += len(chunk)
        if len(newlines):
            digest.update(tail)
            tail.clear()
        behind = chunk.rfind(b"\n") + 1
        digest.update(memoryview(chunk)[:behind])
        tail += memoryview(chunk)[behind:]
    if incremental and tail and not _is_object(bytes(tail)):
        end -= len(tail)
        if tail.strip():
            _warn_of_unfinished(path)
    elif tail:
        digest.update(tail)
        lines += 1
    # A position right behind the last newline begins no line.
    return lines, [position for position in positions if position < end], end, digest.hexdigest()


def _is_object(line: bytes) -> bool:
    try:
        Row(0, line.removeprefix(BYTE_ORDER_MARK)).record()
    except Reject:
        return False
    return True


def _warn_of_unfinished(path: str) -> None:
    warn(f"{path}: its last line has no newline and is no whole object yet; it is left for a later run")


def _digest(path: str, end: int | None = None) -> "hashlib._Hash":
    """Over a file's text, or that of Parquet over its bytes; up to `end`, if given."""
    digest = hashlib.sha256()  # processors have instructions for it: 2.3 times as fast as blake2b
    for chunk in _chunks(path, end=end):
        digest.update(chunk)
    return digest


def _chunks(path: str, position: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from `position` on (up to `end`, if given), decompressed by its ending. Raises JobError."""
    system, inner = _open_system(path)
    compression = COMPRESSIONS.get(_ending(path))
    read = 0
    try:
        if compression is None:
            stream = system.open_input_file(inner)
            stream.seek(position)
            read = position
        else:
            stream = system.open_input_stream(inner, compression=compression)
        with stream:
            while read < position:
                read += len(stream.read(min(CHUNK, position - read)))
            while chunk := stream.read(CHUNK if end is None else min(CHUNK, max(0, end - read))):
                read += len(chunk)
                yield chunk
    except (OSError, pa.ArrowException) as error:
        what = f"cut off or damaged {compression} after {read} bytes of text" if compression else "cannot be read"
        raise JobError(f"{path}: {what}: {error}") from None


def open_parquet(path: str) -> pq.ParquetFile:
    system, inner = _open_system(path)
    try:
        return pq.ParquetFile(system.open_input_file(inner))
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"{path}: not a Parquet file, or a damaged one: {error}") from None


# --- reading a shard


def read(plan: Plan, shard: Shard, columns: Iterable[str]) -> Iterator[Row]:
    """The rows of one shard in order; of Parquet only the given columns. Raises JobError."""
    rows = _read_on(plan, shard, columns)
    if shard.picked is None:
        yield from rows
    else:
        picked = set(shard.picked)
        yield from (row for row in rows if row.number in picked)


def _read_on(plan: Plan, shard: Shard, columns: Iterable[str]) -> Iterator[Row]:
    """All rows from the shard's first to its last, from one file into the next."""
    number, end = shard.first_row, shard.first_row + shard.rows
    position = shard.position
    ends = list(itertools.accumulate(file.rows for file in plan.files))
    for index in range(shard.file, len(plan.files)):
        file, stop = plan.files[index], min(end, ends[index])
        records = _records(file.path, position if index == shard.file else file.start, columns)
        for raw in itertools.islice(records, stop - number):
            yield Row(number, raw)
            number += 1
        if number < stop:
            raise JobError(f"{file.path}: ends before row {number}; the input changed while the job ran")
        if number == end:
            return


def pick(plan: Plan, rows: Iterable[int]) -> Plan:
    """The same plan with only these rows: each shard that has some of them, numbered anew."""
    wanted = set(rows)
    picks = [(shard, [number for number in shard.row_numbers if number in wanted]) for shard in plan.shards]
    some = [(shard, picked) for shard, picked in picks if picked]
    shards = [
        msgspec.structs.replace(shard, index=index, of=len(some), picked=picked)
        for index, (shard, picked) in enumerate(some)
    ]
    return Plan(plan.files, shards)


def place(plan: Plan, row: int) -> str:
    """Where a row stands, for people: `file:line` of JSONL (lines from 1), `file row N` of Parquet (from 0)."""
    lines: Counter[str] = Counter()  # of each file, in the generations before
    for file in plan.files:
        if row < file.rows:
            row += lines[file.path]
            return f"{file.path} row {row}" if is_parquet(file.path) else f"{file.path}:{row + 1}"
        row -= file.rows
        lines[file.path] += file.rows
    return "beyond the input"


def _records(path: str, position: int, columns: Iterable[str]) -> Iterator[bytes | dict[str, Any]]:
    return _parquet_records(path, position, columns) if is_parquet(path) else _lines(path, position)


def _lines(path: str, position: int) -> Iterator[bytes]:
    lines = _split(path, position)
    if position == 0:
        for first in lines:
            yield first.removeprefix(BYTE_ORDER_MARK)
            break
    yield from lines


def _split(path: str, position: int) -> Iterator[bytes]:
    tail = b""
    for chunk in _chunks(path, position=position):
        lines = (tail + chunk).split(b"\n")
        tail = lines.pop()
        yield from lines
    if tail:
        yield tail


def _parquet_records(path: str, position: int, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    file = open_parquet(path)
    group = 0
    while position >= (rows := file.metadata.row_group(group).num_rows):
        position -= rows
        group += 1
    wanted = [name for name in columns if name in file.schema_arrow.names]
    groups = list(range(group, file.num_row_groups))
    try:
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=wanted):
            if position >= batch.num_rows:
                position -= batch.num_rows
                continue
            yield from batch.slice(position).to_pylist()
            position = 0
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"{path}: damaged Parquet file: {error}") from None


# --- passed-through columns

# name of a type in the job file -> Arrow type; json is any value, written as JSON text
TYPES = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_(), "json": pa.string()}
_PYTHON_TYPES = {"string": (str,), "int64": (int,), "double": (int, float), "bool": (bool,)}


def check_columns(files: Iterable[InputFile], format: str, template: Template | None) -> None:
    """Every file must have the columns of the template or, Parquet files, of some shape. Raises JobError.

    The lines that an incremental job has got since are judged one by one.
    """
    for file in files:
        if file.generation and not is_parquet(file.path):
            continue
        names = columns_of(file)
        if template and (missing := template.missing(names)):
            raise JobError(
                f"{file.path}: [prompt] template names {missing[0]}, which the file does not have; "
                f"it has {', '.join(names)}"
            )
        if template or not is_parquet(file.path):
            continue
        shapes = SHAPES.values() if format == "auto" else [SHAPES[format]]
        if not any(shape.can_read(names) for shape in shapes):
            ways = ", ".join(dict.fromkeys(shape.columns[0] for shape in shapes))
            raise JobError(f"{file.path}: none of the columns {ways}; it has {', '.join(names)}")


def columns_of(file: InputFile) -> list[str]:
    """The columns of a Parquet file, or the keys of the first SAMPLE_ROWS rows of a JSONL file."""
    if is_parquet(file.path):
        return list(open_parquet(file.path).schema_arrow.names)
    return list(dict.fromkeys(name for record in _sample(file) for name in record))


def _sample(file: InputFile) -> Iterator[dict[str, Any]]:
    for line in itertools.islice(_lines(file.path, file.start), min(SAMPLE_ROWS, file.rows)):
        with contextlib.suppress(Reject):
            yield Row(0, line).record()


def column_types(files: list[InputFile], columns: Iterable[str]) -> dict[str, str | pa.DataType]:
    """name -> type of the passed-through columns: as declared (`name:type`), as in the Parquet schema, or as
    the first SAMPLE_ROWS rows of each JSONL file suggest; for an incremental job, of the files that it began with: its
    shards are one dataset. Raises JobError."""
    first = [file for file in files if not file.generation]
    types: dict[str, str | pa.DataType] = {}
    for column in columns:
        name, _, declared = column.partition(":")
        if declared and declared not in TYPES:
            raise JobError(f"column {column}: type must be one of {', '.join(TYPES)}")
        types[name] = declared or _type_of(first, name)
        for file in files[len(first) :]:
            _check_type(file, name, types[name])
    return types


def _check_type(file: InputFile, name: str, kind: str | pa.DataType) -> None:
    """A type that a Parquet file gave binds the files that came later; values of the others are judged row by row."""
    if isinstance(kind, str):
        return
    schema = open_parquet(file.path).schema_arrow if is_parquet(file.path) else pa.schema([])
    here = schema.field(name).type if name in schema.names else "no Parquet column"
    if here != kind:
        raise JobError(f"{file.path}: column {name} is {here} here and {kind} in the files that the job began with")


def _type_of(files: list[InputFile], name: str) -> str | pa.DataType:
    found: dict[str, str | pa.DataType] = {}
    for file in files:
        if is_parquet(file.path):
            schema = open_parquet(file.path).schema_arrow
            if name not in schema.names:
                raise JobError(f"{file.path}: no column {name} to pass through; it has {', '.join(schema.names)}")
            found[file.path] = schema.field(name).type
        elif sampled := _sampled_type(file, name):
            found[file.path] = sampled
    if not found:
        raise JobError(
            f"column {name}: not in the first {SAMPLE_ROWS} rows of the input; if it comes later, "
            f"give its type: {name}:string"
        )
    kinds = set(found.values())
    if kinds == {"int64", "double"}:
        return "double"
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} in {path}" for path, kind in found.items())
        raise JobError(f"column {name}: {listed}; give one type for all, such as {name}:json")
    return kinds.pop()


def _sampled_type(file: InputFile, name: str) -> str | None:
    values = [record[name] for record in _sample(file) if name in record]
    kinds = {type(value) for value in values if value is not None}
    if not values:
        return None
    for kind, python_types in _PYTHON_TYPES.items():
        if kinds <= set(python_types):
            return kind
    return "json"


def column_value(value: Any, kind: str | pa.DataType, name: str) -> Any:
    """A passed-through value as its column takes it. Raises Reject(bad_shape)."""
    if value is None or isinstance(kind, pa.DataType):
        return value
    if kind == "json":
        return msgspec.json.encode(value).decode()
    fits = isinstance(value, _PYTHON_TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
    if not fits or (kind == "int64" and not -(2**63) <= value < 2**63):
        raise Reject("bad_shape", f"column {name}: {value!r:.80} is not {kind}; declare the column as {name}:json")
    return value
