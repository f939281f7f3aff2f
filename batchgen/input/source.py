"""Input files: finding them, counting and digesting their rows into a shard plan, reading one shard.

The plan of an incremental job grows by generations. What a run finds beyond the plan (new files, lines behind those
that are known) goes to its end, as new entries of `files` and new shards over them. So rows keep their numbers and
shards their names, wherever in the input's order a new row stands; the last shard of a generation may be short.
"""

import bisect
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from ..errors import JobError, Reject, shown, warn
from ..job.lengths import USUAL, RowLimits
from . import files as filing
from .columns import Column
from .conversation import Row
from .cursor import Cursor, cursor_at
from .files import find
from .formats import COLUMNAR, Table, chunks, csv_rows, detect, elements
from .shapes import SHAPES
from .template import Template

NEWLINE = ord("\n")
# Names of the columns of JSONL are read off this many rows at the head of each file.
SAMPLE_ROWS = 1000
# Compressions by ending, as the first version knew them; exports are written by them too.
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_FIRST_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


class InputFile(msgspec.Struct, frozen=True):
    """A file, or what a later generation found behind the part that was known: its rows from byte `start` of its text
    to byte `end`.

    path: absolute path or URI; size, mtime_ns: of the whole file when it was read; digest: SHA-256 of the content up to
    `end` (of the text, if it was compressed), so that the last entry of a path vouches for all of them; kind,
    compression: as its content says (formats.detect). The first version recorded neither: it went by the ending.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str
    rows: int
    end: int
    start: int = 0
    generation: int = 0
    kind: str = ""
    compression: str = ""

    @property
    def format(self) -> tuple[str, str]:
        """(kind, compression)"""
        return (self.kind, self.compression) if self.kind else _first_format(self.path)

    @property
    def is_columnar(self) -> bool:
        return self.format[0] in COLUMNAR

    @property
    def may_grow(self) -> bool:
        """Whether it can get longer and still hold what it held: only lines that are not compressed can."""
        return self.format == ("jsonl", "")


def _first_format(path: str) -> tuple[str, str]:
    """What the first version took a file for."""
    ending = _ending(path)
    return ("parquet", "") if ending == ".parquet" else ("jsonl", COMPRESSIONS.get(ending, ""))


def _ending(path: str) -> str:
    return os.path.splitext(path.partition("?")[0] if "://" in path else path)[1]


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """Rows first_row .. first_row + rows - 1, which start in file `file` of the plan at `position`: a byte of
    the text of JSONL and JSON, a row of all others. A shard may go on into the next files.

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


# --- the shard plan


class _Part(NamedTuple):
    """A file from a byte of its text on, and the digest of what stands before; old: what is known of the file."""

    path: str
    start: int
    digest: "hashlib._Hash"
    old: InputFile | None = None


def plan(
    paths: Iterable[str],
    shard_rows: int,
    known: Plan | None = None,
    incremental: bool = False,
    out: str | None = None,
    follow_links: bool = False,
) -> Plan:
    """Counts and digests every file, one pass each, and cuts the rows into shards of shard_rows.

    known: an earlier plan with the same shard_rows. If every file still has its path, size and time of
    change, it is returned as it is, without reading anything. incremental: the plan is going to grow; out and
    follow_links: as files.find has them. Raises JobError or Stopped.
    """
    paths = list(paths)
    latest = known.latest if known else {}
    found = _as_before(find(paths, out, follow_links, latest), paths, latest)
    if known and found == [file.path for file in known.files] and all(map(_is_untouched, known.files)):
        return known
    parts = [_Part(path, 0, hashlib.sha256(), latest.get(path)) for path in found]
    planned = _extend(Plan([], []), parts, shard_rows, incremental)
    if not planned.shards:
        raise JobError(f"{', '.join(found)}: no rows; the input is empty")
    return planned


def _as_before(found: list[str], named: list[str], latest: dict[str, InputFile]) -> list[str]:
    """The input of a job that the first version began is what that would find: in folders files by their endings,
    metadata too."""
    if not any(not file.kind for file in latest.values()):
        return found
    taken = [path for path in found if path in latest or path in named or _first_took(path)]
    missing = [path for path in latest if path not in set(taken)]
    if set(taken) <= latest.keys() and all(_is_still_there(path) for path in missing):
        return list(latest)
    return taken


def _first_took(path: str) -> bool:
    name = filing.name_of(path)
    stem, ending = os.path.splitext(name)
    return (stem if ending in COMPRESSIONS else name).endswith((*_FIRST_JSON_ENDINGS, ".parquet"))


def _is_still_there(path: str) -> bool:
    inner = filing.local(path)
    return inner is not None and os.path.isfile(inner)


def grow(
    paths: Iterable[str], shard_rows: int, known: Plan, out: str | None = None, follow_links: bool = False
) -> tuple[Plan, list[str]]:
    """The known plan with a generation more for what the input has got since, or as it is if there is nothing; and, one
    line each, what of the known part is not as it was: then there is no plan. A file is known by its path.

    Only uncompressed JSONL may get longer. If size or time of change are others, the known part is read again.
    Raises JobError.
    """
    paths = list(paths)
    latest = known.latest
    found = _as_before(find(paths, out, follow_links, latest), paths, latest)
    there = set(found)
    changed = [f"{shown(path)}: is no longer in the input" for path in latest if path not in there]
    parts = []
    for path in found:
        old = latest.get(path)
        if old is None:
            parts.append(_Part(path, 0, hashlib.sha256()))
        elif not _is_untouched(old):
            digest = _digest(old, old.end if old.may_grow else None)
            if digest.hexdigest() != old.digest:
                changed.append(f"{shown(path)}: the {old.end:,} bytes that were read are not what they were")
            elif old.may_grow:
                between = _line_end(old)
                if between is None:
                    changed.append(f"{shown(path)}: its last line, which was read without an end, goes on now")
                else:
                    digest.update(between)
                    parts.append(_Part(path, old.end + len(between), digest, old))
        elif old.end < old.size and old.may_grow:
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
        shown(file.path)
        for file in plan.latest.values()
        if not (trust_times and _is_untouched(file))
        and _digest(file, file.end if growing and file.may_grow else None).hexdigest() != file.digest
    ]


def _is_untouched(file: InputFile) -> bool:
    return filing.facts(file.path) == (file.size, file.mtime_ns)


def _line_end(file: InputFile) -> bytes | None:
    """What ends the last line of the known part of a file, if that had no end when it was read: a newline, or nothing
    yet. None if the line has got longer."""
    last, more = b"\n", b""
    if file.end:
        around = b"".join(chunks(file.path, position=file.end - 1, end=file.end + 2))
        last, more = around[:1], around[1:]
    if last == b"\n" or more in (b"", b"\r"):
        return b""
    return next((end for end in (b"\n", b"\r\n") if more.startswith(end)), None)


def _scan(part: _Part, first: int, step: int, generation: int, incremental: bool) -> tuple[InputFile, list[int]]:
    """A part's facts, and the positions of its rows first, first + step, first + 2 step, ..."""
    path = part.path
    size, mtime_ns = filing.facts(path)
    known_kind = part.old is not None and (part.start or not part.old.kind)
    kind, compression = part.old.format if part.old and known_kind else detect(path)
    file = InputFile(path, size, mtime_ns, "", 0, size, part.start, generation, kind, compression)
    if part.old and not part.old.kind:
        file = msgspec.structs.replace(file, kind="", compression="")
    if file.is_columnar:
        rows = Table(path, kind).rows()
        positions = list(range(first, rows, step))
        end, digest = size, _digest(file).hexdigest()
    elif kind == "jsonl":
        rows, positions, end, digest = _scan_lines(part, file, first, step, incremental and file.may_grow)
    else:
        rows, positions, end, digest = _scan_rows(file, first, step)
    return msgspec.structs.replace(file, digest=digest, rows=rows, end=end), positions


def _scan_rows(file: InputFile, first: int, step: int) -> tuple[int, list[int], int, str]:
    """Rows, positions, where the text ends, and the digest of all of it, of JSON and CSV."""
    kind, compression = file.format
    digest = hashlib.sha256()
    end = 0

    def digested() -> Iterator[bytes]:
        nonlocal end
        for chunk in chunks(file.path, compression):
            digest.update(chunk)
            end += len(chunk)
            yield chunk

    if kind == "csv":
        begins = (number for number, _ in enumerate(csv_rows(digested(), file.path)))
    else:
        begins = (begin for begin, _, _ in elements(digested(), kind, 0))
    rows = 0
    positions = []
    for rows, begin in enumerate(begins, 1):
        if (rows - 1 - first) % step == 0 and rows > first:
            positions.append(begin)
    return rows, positions, end, digest.hexdigest()


def _scan_lines(
    part: _Part, file: InputFile, first: int, step: int, incremental: bool
) -> tuple[int, list[int], int, str]:
    """Lines, positions, where the text ends, and the digest of all of it.

    A last line without an end is a row like any other. Not so if the job is incremental and the line is no whole object
    yet: a writer may be in the midst of it, so it is left for the run that finds its end. (An object ends with its
    closing bracket: no line that goes on passes for a whole one.)
    """
    path, start, digest, _ = part
    # Of a file that is being written to, what was there when its size was asked for.
    until = file.size if file.may_grow else None
    lines, end = 0, start  # whole lines, and where the text ends, before this chunk
    positions = [start] if first == 0 else []
    wanted = first or step  # the next line, counted from 0, whose first byte is asked for
    tail = bytearray()  # what stands behind the last newline, of which an incremental job may leave it out
    is_open = False  # whether there is any
    for chunk in chunks(path, file.format[1], position=start, end=until):
        newlines = np.flatnonzero(np.frombuffer(chunk, np.uint8) == NEWLINE)
        asked = newlines[wanted - lines - 1 :: step]
        positions += (asked + end + 1).tolist()
        wanted += step * len(asked)
        lines += len(newlines)
        end += len(chunk)
        is_open = not chunk.endswith(b"\n")
        if not incremental:
            digest.update(chunk)
            continue
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
    elif is_open:
        digest.update(tail)
        lines += 1
    # A position right behind the last newline begins no line.
    return lines, [position for position in positions if position < end], end, digest.hexdigest()


def _is_object(line: bytes) -> bool:
    try:
        Row(0, line).record()
    except Reject:
        return False
    return True


def _warn_of_unfinished(path: str) -> None:
    warn(f"{shown(path)}: its last line has no newline and is no whole object yet; it is left for a later run")


def _digest(file: InputFile, end: int | None = None) -> "hashlib._Hash":
    """Over a file's text, or that of a columnar one over its bytes; up to `end`, if given."""
    digest = hashlib.sha256()  # processors have instructions for it: 2.3 times as fast as blake2b
    for chunk in chunks(file.path, file.format[1], end=end):
        digest.update(chunk)
    return digest


# --- reading a shard


def read(plan: Plan, shard: Shard, columns: Iterable[str]) -> Iterator[Row]:
    """The rows of one shard in order; of columnar files only the given columns. Raises JobError or Stopped."""
    return Reader(plan, columns).read(shard)


class Reader:
    """Reads shards, one that follows another without a new beginning: a file is decompressed or decoded once, whatever
    the number of its shards."""

    def __init__(
        self,
        plan: Plan,
        used: Iterable[str],
        passed: Iterable[Column] = (),
        running: bool = False,
        limits: RowLimits = USUAL,
    ):
        """used: columns that are looked at; passed: those that are passed through; running: a file that cannot be read
        stops the run, resumable, as it was there before; limits: of rows."""
        self._plan, self._limits = plan, limits
        self._used, self._passed, self._running = list(dict.fromkeys(used)), list(passed), running
        self._ends = list(itertools.accumulate(file.rows for file in plan.files))
        self._left: tuple[int, Cursor] | None = None  # where the last shard ended, and in which file

    def read(self, shard: Shard) -> Iterator[Row]:
        """The rows of a shard in order. Raises JobError or Stopped."""
        rows = self._read_on(shard)
        if shard.picked is None:
            yield from rows
        else:
            picked = set(shard.picked)
            yield from (row for row in rows if row.number in picked)

    def _read_on(self, shard: Shard) -> Iterator[Row]:
        """All rows from the shard's first to its last, from one file into the next."""
        number, end = shard.first_row, shard.first_row + shard.rows
        for index in range(shard.file, len(self._plan.files)):
            file, stop = self._plan.files[index], min(end, self._ends[index])
            if number == stop:
                continue  # a file without rows
            cursor = self._cursor(index, shard.position if index == shard.file else file.start)
            for row in cursor.take(stop - number, number):
                yield row
                number += 1
            if number < stop:
                raise JobError(f"{shown(file.path)}: ends before row {number}; the input changed while the job ran")
            self._leave(index, cursor)
            if number == end:
                return

    def _cursor(self, index: int, position: int) -> Cursor:
        left, self._left = self._left, None  # two shards that are read at once do not share it
        if left and left[0] == index and left[1].position <= position:
            left[1].go_to(position)
            return left[1]
        if left:
            left[1].close()
        file = self._plan.files[index]
        return cursor_at(file.path, *file.format, position, self._used, self._passed, self._running, self._limits)

    def _leave(self, index: int, cursor: Cursor) -> None:
        if self._left:
            self._left[1].close()
        self._left = index, cursor


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


def places(plan: Plan) -> Callable[[int], str]:
    """What says where a row stands, for people: `file:line` of JSONL (from 1), `file row N` of others (from 0)."""
    ends = list(itertools.accumulate(file.rows for file in plan.files))
    before: list[int] = []  # rows of the same file in the generations before
    counted: dict[str, int] = {}
    for file in plan.files:
        before.append(counted.get(file.path, 0))
        counted[file.path] = before[-1] + file.rows

    def place(row: int) -> str:
        index = bisect.bisect_right(ends, row)
        if index == len(ends):
            return "beyond the input"
        file = plan.files[index]
        number = row - (ends[index] - file.rows) + before[index]
        path = shown(file.path)
        return f"{path}:{number + 1}" if file.format[0] == "jsonl" else f"{path} row {number}"

    return place


def place(plan: Plan, row: int) -> str:
    """Where one row stands; for many, ask `places` once."""
    return places(plan)(row)


# --- columns


def check_columns(files: Iterable[InputFile], format: str, template: Template | None) -> None:
    """Every file with rows must have the columns of the template or, columnar ones, of some shape. Raises JobError.

    The lines that an incremental job has got since are judged one by one.
    """
    from .passed import names_of

    for file in files:
        has_schema = file.is_columnar or file.format[0] == "csv"
        if not file.rows or (file.generation and not has_schema) or not (template or has_schema):
            continue
        names = names_of(file)
        if template and template.missing(names):  # they may come later; rows without them are rejected one by one
            names = names_of(file, rows=None)
        if template and (missing := template.missing(names)):
            raise JobError(
                f"{shown(file.path)}: [prompt] template names {missing[0]}, which the file does not have; "
                f"it has {', '.join(names)}"
            )
        if template:
            continue
        shapes = SHAPES.values() if format == "auto" else [SHAPES[format]]
        if not any(shape.can_read(names) for shape in shapes):
            ways = ", ".join(dict.fromkeys(shape.columns[0] for shape in shapes))
            raise JobError(f"{shown(file.path)}: none of the columns {ways}; it has {', '.join(names)}")
