"""The shard plan: every row of the input counted and digested, and cut into shards.

The plan of an incremental job grows. What a run finds beyond the plan (new files, lines appended to known ones) is
added at its end, as new entries of `files` and new shards over them. So rows keep their numbers and shards their names,
wherever the new rows are in the input; the last shard before each growth may be short.
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
from . import files as filing
from .conversation import Row
from .file_formats import COLUMNAR, Table, chunks, csv_rows, detect, elements
from .files import find

NEWLINE = ord("\n")
# The column names of a JSONL file are taken from this many rows at its head.
SAMPLE_ROWS = 1000
# Compression by file ending, as 0.1.0 recognised it; exports still choose theirs this way.
COMPRESSION_BY_ENDING = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_FIRST_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


class InputFile(msgspec.Struct, frozen=True):
    """An input file, or the part that a growth found appended to it: the rows between two bytes of its text.

    Attributes:
        path: absolute path, or URI.
        size: of the whole file when it was read, in bytes.
        mtime_ns: its modification time at that moment.
        digest: SHA-256 of the content up to `end` (of the text, if compressed), so that the last entry of a path covers
            the earlier ones.
        rows: number of rows between `start` and `end`.
        end: byte of the text at which the rows end.
        start: byte of the text at which the rows begin.
        growth: number of the growth that added it; 0 if it was there when the job began. `generation` in `_job.json`.
        kind: file format by content, see `file_formats.detect`. Empty in plans of 0.1.0, which went by file endings.
        compression: likewise.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str
    rows: int
    end: int
    start: int = 0
    growth: int = msgspec.field(default=0, name="generation")
    kind: str = ""
    compression: str = ""

    @property
    def format(self) -> tuple[str, str]:
        """(kind, compression)"""
        return (self.kind, self.compression) if self.kind else _first_format(self.path)

    @property
    def is_columnar(self) -> bool:
        """Whether it is a Parquet or Arrow file, which has a schema and whose rows are counted."""
        return self.format[0] in COLUMNAR

    @property
    def may_grow(self) -> bool:
        """Whether the file may get longer while its known part stays: true of uncompressed JSONL only."""
        return self.format == ("jsonl", "")


def _first_format(path: str) -> tuple[str, str]:
    """(kind, compression) as 0.1.0 took them from the file's ending."""
    ending = _ending(path)
    return ("parquet", "") if ending == ".parquet" else ("jsonl", COMPRESSION_BY_ENDING.get(ending, ""))


def _ending(path: str) -> str:
    return os.path.splitext(path.partition("?")[0] if "://" in path else path)[1]


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """A run of consecutive rows, which may span several files.

    Attributes:
        index: number of the shard, from 0.
        of: how many shards the job had when this one was planned; part of its name.
        first_row: number of its first row.
        rows: how many rows it spans.
        file: index in `Plan.files` of the file in which it starts.
        position: where it starts in that file: a byte of the text for JSONL and JSON, a row number for all others.
        picked: the row numbers to take, if not all of them (`batchgen retry`).
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
        """The numbers of its rows: all of them, or those that were picked."""
        return range(self.first_row, self.first_row + self.rows) if self.picked is None else self.picked


class Plan(msgspec.Struct, frozen=True):
    """The input of a job.

    Attributes:
        files: the files, and what growths have added, in the order of the row numbers.
        shards: the shards, which cover the rows of the files in order.
    """

    files: list[InputFile]
    shards: list[Shard]

    @property
    def rows(self) -> int:
        """The number of rows of all shards."""
        return sum(len(shard.row_numbers) for shard in self.shards)

    @property
    def growth(self) -> int:
        """How often the plan has grown."""
        return self.files[-1].growth

    @property
    def latest(self) -> dict[str, InputFile]:
        """The last entry of each path."""
        return {file.path: file for file in self.files}


# --- the shard plan


class _Part(NamedTuple):
    """A file from a byte of its text on.

    Attributes:
        path: absolute path, or URI.
        start: the byte.
        digest: digest so far, of everything before `start`.
        old: the last known entry of the file, if there is one.
    """

    path: str
    start: int
    digest: "hashlib._Hash"
    old: InputFile | None = None


def plan_input(
    paths: Iterable[str],
    shard_rows: int,
    known: Plan | None = None,
    incremental: bool = False,
    out: str | None = None,
    follow_links: bool = False,
) -> Plan:
    """Counts and digests every file, in one pass each, and cuts the rows into shards.

    Args:
        paths: files, folders, globs and URIs.
        shard_rows: rows of a shard.
        known: an earlier plan with the same shard_rows. If every file still has its path, size and modification time,
            it is returned unchanged, without reading anything.
        incremental: whether the plan will grow, so that an unfinished last line is left for later.
        out: see `files.find`.
        follow_links: see `files.find`.

    Raises:
        JobError, Stopped
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
    """The input of a job that 0.1.0 began, as 0.1.0 would find it: files of a folder by their endings, metadata too."""
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
    return (stem if ending in COMPRESSION_BY_ENDING else name).endswith((*_FIRST_JSON_ENDINGS, ".parquet"))


def _is_still_there(path: str) -> bool:
    inner = filing.local(path)
    return inner is not None and os.path.isfile(inner)


def grow(
    paths: Iterable[str], shard_rows: int, known: Plan, out: str | None = None, follow_links: bool = False
) -> tuple[Plan, list[str]]:
    """The known plan, grown by what the input has gained since.

    Only uncompressed JSONL files may get longer. Where a file's size or modification time differs, its known part is
    read again and compared.

    Returns:
        The plan, unchanged if the input has gained nothing; and one line for each known file whose known part has
        changed. If there are such lines, the plan has not been grown.

    Raises:
        JobError, Stopped
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
                changed.append(f"{shown(path)}: the {old.end:,} bytes that were read before have changed")
            elif old.may_grow:
                between = _line_end(old)
                if between is None:
                    changed.append(f"{shown(path)}: its last line, read when it had no newline, has been continued")
                else:
                    digest.update(between)
                    parts.append(_Part(path, old.end + len(between), digest, old))
        elif old.end < old.size and old.may_grow:
            _warn_of_unfinished(path)
    return known if changed else _extend(known, parts, shard_rows, incremental=True), changed


def _extend(known: Plan, parts: Iterable[_Part], shard_rows: int, incremental: bool) -> Plan:
    """The plan grown by these parts, or unchanged if they have no rows."""
    files = list(known.files)
    growth = known.growth + 1 if files else 0
    begin = rows = sum(file.rows for file in files)
    starts: list[tuple[int, int]] = []
    for part in parts:
        first = (begin - rows) % shard_rows  # the first row of this part that begins a shard
        file, positions = _scan(part, first, shard_rows, growth, incremental)
        if file.rows or not growth:
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


def changed_files(plan: Plan, trust_times: bool, growing: bool) -> list[str]:
    """The files of a plan whose content has changed, as shown to people.

    Args:
        trust_times: take files of the same size and modification time as unchanged, without reading them.
        growing: files may have got longer.

    Raises:
        JobError, Stopped
    """
    return [
        shown(file.path)
        for file in plan.latest.values()
        if not (trust_times and _is_untouched(file))
        and _digest(file, file.end if growing and file.may_grow else None).hexdigest() != file.digest
    ]


def _is_untouched(file: InputFile) -> bool:
    return filing.facts(file.path) == (file.size, file.mtime_ns)


def _line_end(file: InputFile) -> bytes | None:
    """What has been appended to end the last line of a file's known part: a newline, or nothing if it had one before or
    has none yet. None if the line itself has got longer."""
    last, more = b"\n", b""
    if file.end:
        around = b"".join(chunks(file.path, position=file.end - 1, end=file.end + 2))
        last, more = around[:1], around[1:]
    if last == b"\n" or more in (b"", b"\r"):
        return b""
    return next((end for end in (b"\n", b"\r\n") if more.startswith(end)), None)


def _scan(part: _Part, first: int, step: int, growth: int, incremental: bool) -> tuple[InputFile, list[int]]:
    """A part as an InputFile, and the positions of its rows first, first + step, first + 2 * step, ..."""
    path = part.path
    size, mtime_ns = filing.facts(path)
    known_kind = part.old is not None and (part.start or not part.old.kind)
    kind, compression = part.old.format if part.old and known_kind else detect(path)
    file = InputFile(path, size, mtime_ns, "", 0, size, part.start, growth, kind, compression)
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
    """(rows, positions, end of the text, digest of the text) of JSON and CSV."""
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
    """(lines, positions, end of the text, digest of the text) of JSONL.

    A last line without a newline is a row like any other, unless the job is incremental and the line is not a complete
    object: a writer may be in the middle of it, so it is left for the run that finds it complete. (An object ends with
    its closing brace, so an unfinished line is never taken for a complete one.)
    """
    path, start, digest, _ = part
    # A file that is being written to counts as far as it went when its size was read.
    until = file.size if file.may_grow else None
    lines, end = 0, start  # complete lines, and the end of the text, before this chunk
    positions = [start] if first == 0 else []
    wanted = first or step  # the next line, counted from 0, whose position is wanted
    tail = bytearray()  # text after the last newline, which an incremental job may leave out
    is_open = False  # whether there is such text
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
    # A position right after the last newline is not the start of a line.
    return lines, [position for position in positions if position < end], end, digest.hexdigest()


def _is_object(line: bytes) -> bool:
    try:
        Row(0, line).record()
    except Reject:
        return False
    return True


def _warn_of_unfinished(path: str) -> None:
    warn(f"{shown(path)}: the last line has no newline and is not a complete JSON object yet; a later run will read it")


def _digest(file: InputFile, end: int | None = None) -> "hashlib._Hash":
    """The digest of a file's text (of its bytes, if columnar), up to byte `end` if given."""
    digest = hashlib.sha256()  # with SHA instructions 2.3 times as fast as blake2b
    for chunk in chunks(file.path, file.format[1], end=end):
        digest.update(chunk)
    return digest


# --- rows of a plan


def only_rows(plan: Plan, rows: Iterable[int]) -> Plan:
    """The same plan with only these rows: the shards that have some of them, renumbered."""
    wanted = set(rows)
    picks = [(shard, [number for number in shard.row_numbers if number in wanted]) for shard in plan.shards]
    some = [(shard, picked) for shard, picked in picks if picked]
    shards = [
        msgspec.structs.replace(shard, index=index, of=len(some), picked=picked)
        for index, (shard, picked) in enumerate(some)
    ]
    return Plan(plan.files, shards)


def locator(plan: Plan) -> Callable[[int], str]:
    """A function that says where a row is: `file:line` in JSONL (counted from 1), `file row N` elsewhere (from 0)."""
    ends = list(itertools.accumulate(file.rows for file in plan.files))
    before: list[int] = []  # rows of the same file in earlier entries
    counted: dict[str, int] = {}
    for file in plan.files:
        before.append(counted.get(file.path, 0))
        counted[file.path] = before[-1] + file.rows

    def place(row: int) -> str:
        index = bisect.bisect_right(ends, row)
        if index == len(ends):
            return "beyond the end of the input"
        file = plan.files[index]
        number = row - (ends[index] - file.rows) + before[index]
        path = shown(file.path)
        return f"{path}:{number + 1}" if file.format[0] == "jsonl" else f"{path} row {number}"

    return place


def locate(plan: Plan, row: int) -> str:
    """Where a row is. For many rows, call `locator` once."""
    return locator(plan)(row)
