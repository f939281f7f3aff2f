"""The shard plan: every row of the input counted and digested, and cut into shards.

The plan of an incremental job grows. What a run finds beyond the plan (new files, lines appended to known ones) is
added at its end, as new entries of `files` and new shards over them. So rows keep their numbers and shards their names,
wherever the new rows are in the input; the last shard before each growth may be short.
"""

import bisect
import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from ..errors import MissingInput, NoRows, shown, warn
from . import files as filing
from .file_formats import chunks
from .files import find
from .scan import COMPRESSION_BY_ENDING, InputFile, Part, digest_of, scans, warn_of_unfinished

PICKED_ROWS = 25  # at least, of a shard of rows that were picked from all over the input, but for the last

# The column names of a JSONL file are taken from this many rows at its head.
SAMPLE_ROWS = 1000
DIGITS = 5  # of a shard's number; up to job format 4 of those above 99,999 too
_FIRST_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


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
        digits: of the number in its name, so many that the names of all shards sort.
    """

    index: int
    of: int
    first_row: int
    rows: int
    file: int
    position: int
    picked: list[int] | None = None
    digits: int = DIGITS

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
    parts = [Part(path, 0, hashlib.sha256(), latest.get(path)) for path in found]
    planned = _extend(Plan([], []), parts, shard_rows, incremental, _digits(known) if known else None)
    if not planned.shards:
        raise NoRows(f"{shown(', '.join(found))}: no rows; the input is empty")
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
    paths: Iterable[str],
    shard_rows: int,
    known: Plan,
    out: str | None = None,
    follow_links: bool = False,
    over: Collection[int] | None = None,
) -> tuple[Plan, list[str]]:
    """The known plan, grown by what the input has gained since.

    Only uncompressed JSONL files may get longer. Where a file's size or modification time differs, its known part is
    read again and compared.

    over: growths that are done with: their files may be gone, or others have their names. What is in such a file is
    known by its digest, so that it is not read again under whatever name it comes back. None: all files have to stay.

    Returns:
        The plan, unchanged if the input has gained nothing; and one line for each known file whose known part has
        changed. If there are such lines, the plan has not been grown.

    Raises:
        JobError, Stopped
    """
    paths = list(paths)
    latest = known.latest
    found = _as_before(find(paths, out, follow_links, latest, may_be_empty=over is not None), paths, latest)
    there, needed = set(found), {file.path for file in known.files if over is None or file.growth not in over}
    changed = [f"{shown(path)}: is no longer in the input" for path in latest if path in needed and path not in there]
    parts = []
    for path in found:
        old = latest.get(path)
        if old is None:
            parts.append(Part(path, 0, hashlib.sha256()))
        elif not _is_untouched(old):
            digest = digest_of(old, old.end if old.may_grow else None)
            if digest.hexdigest() != old.digest and path not in needed:
                parts.append(Part(path, 0, hashlib.sha256()))
            elif digest.hexdigest() != old.digest:
                changed.append(f"{shown(path)}: the {old.end:,} bytes that were read before have changed")
            elif old.may_grow:
                between = _line_end(old)
                if between is None:
                    changed.append(f"{shown(path)}: its last line, read when it had no newline, has been continued")
                else:
                    digest.update(between)
                    parts.append(Part(path, old.end + len(between), digest, old))
        elif old.end < old.size and old.may_grow:
            warn_of_unfinished(path)
    answered = {} if over is None else {file.digest: file.path for file in known.files if file.rows}
    return known if changed else _extend(known, parts, shard_rows, True, _digits(known), answered), changed


def _digits(plan: Plan) -> int:
    """Of the numbers of its shards: as many for those that come later, so that a name never changes."""
    return plan.shards[0].digits


def _digits_of(shards: int) -> int:
    return max(DIGITS, len(str(shards)))


def _extend(
    known: Plan,
    parts: Iterable[Part],
    shard_rows: int,
    incremental: bool,
    digits: int | None = None,
    answered: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """The plan grown by these parts, or unchanged if they have no rows. digits: of its shards, if that is settled;
    answered: digests of what is not to be read again, and what it was called."""
    files = list(known.files)
    growth = known.growth + 1 if files else 0
    begin = rows = sum(file.rows for file in files)
    starts: list[tuple[int, int]] = []
    with contextlib.closing(scans(parts, shard_rows, growth, incremental)) as running:
        for scan in running:
            first = (begin - rows) % shard_rows  # the first row of this part that begins a shard
            file, positions = scan.result(first)
            if before := answered.get(file.digest):
                warn(f"{shown(file.path)}: has the content of {shown(before)}, which is done; it is not read again")
                continue
            if file.rows or not growth:
                starts += [(len(files), position) for position in positions]
                files.append(file)
                rows += file.rows
    if not starts:
        return known
    of = len(known.shards) + len(starts)
    digits = digits or _digits_of(of)
    shards = [
        Shard(len(known.shards) + number, of, first_row, min(shard_rows, rows - first_row), *start, digits=digits)
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
        *(shown(plan.files[index].path) for index in sorted(replaced(plan))),
        *(
            shown(file.path)
            for file in plan.latest.values()
            if not (trust_times and _is_untouched(file)) and _has_changed(file, growing)
        ),
    ]


def _has_changed(file: InputFile, growing: bool) -> bool:
    return digest_of(file, file.end if growing and file.may_grow else None).hexdigest() != file.digest


def replaced(plan: Plan) -> set[int]:
    """The places in `Plan.files` of those that had rows and whose names other files have now (see `grow`)."""
    begun = {file.path: index for index, file in enumerate(plan.files) if not file.start}
    return {index for index, file in enumerate(plan.files) if file.rows and index < begun.get(file.path, index)}


def gone(plan: Plan) -> set[int]:
    """The places in `Plan.files` of those that are not there any more, or have changed. Raises JobError or Stopped."""

    def is_there(file: InputFile) -> bool:
        try:
            return not _has_changed(file, growing=True)
        except MissingInput:
            return False

    lost = {path for path, file in plan.latest.items() if not is_there(file)}
    return replaced(plan) | {index for index, file in enumerate(plan.files) if file.path in lost}


def shards_from(plan: Plan, places: Collection[int]) -> set[int]:
    """The indices of the shards with rows from any of these files, which are places in `Plan.files`."""
    wanted, ends = set(places), list(itertools.accumulate(file.rows for file in plan.files))

    def files_of(shard: Shard) -> range:
        return range(shard.file, bisect.bisect_left(ends, shard.first_row + shard.rows, shard.file) + 1)

    return {shard.index for shard in plan.shards if not wanted.isdisjoint(files_of(shard))} if wanted else set()


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


# --- rows of a plan


def only_rows(plan: Plan, rows: Iterable[int]) -> Plan:
    """The same plan with only these rows: the shards that have some of them, renumbered."""
    wanted = set(rows)
    picks = [(shard, [number for number in shard.row_numbers if number in wanted]) for shard in plan.shards]
    some = [(shard, picked) for shard, picked in picks if picked]
    shards = [
        msgspec.structs.replace(shard, index=index, of=len(some), picked=picked, digits=_digits_of(len(some)))
        for index, (shard, picked) in enumerate(some)
    ]
    return Plan(plan.files, shards)


def spread_rows(plan: Plan, rows: int, draw: Callable[[int], int]) -> Plan:
    """The same plan with so many rows, one from each of as many equal stretches of the input: data whose kinds come in
    turns is met at no fixed step. All of them, if there are no more.

    draw: a number from 0 to 2**53 - 1, of a stretch by its own number
    """
    total = plan.rows
    if rows >= total:
        return plan
    begins = [total * number // rows for number in range(rows + 1)]
    picked = [begin + draw(number) % (end - begin) for number, (begin, end) in enumerate(itertools.pairwise(begins))]
    return _joined(only_rows(plan, picked))


def _joined(plan: Plan) -> Plan:
    """The same rows in fewer shards: of few rows each, they would be many small files."""
    shards: list[Shard] = []
    for shard in plan.shards:
        last = shards[-1] if shards else None
        if last and len(last.row_numbers) < PICKED_ROWS:
            rows = shard.first_row + shard.rows - last.first_row
            both = [*last.row_numbers, *shard.row_numbers]
            shards[-1] = msgspec.structs.replace(last, rows=rows, picked=both)
        else:
            shards.append(msgspec.structs.replace(shard, index=len(shards)))
    of, digits = len(shards), _digits_of(len(shards))
    return Plan(plan.files, [msgspec.structs.replace(shard, of=of, digits=digits) for shard in shards])


def _finder(plan: Plan) -> Callable[[int], tuple[InputFile, int] | None]:
    """A function that finds a row: its file, and its number there, from 0; None if it is beyond the input."""
    ends = list(itertools.accumulate(file.rows for file in plan.files))
    before: list[int] = []  # rows of the same file in earlier entries
    counted: dict[str, int] = {}
    for file in plan.files:
        before.append(counted.get(file.path, 0) if file.start else 0)
        counted[file.path] = before[-1] + file.rows

    def find(row: int) -> tuple[InputFile, int] | None:
        index = bisect.bisect_right(ends, row)
        if index == len(ends):
            return None
        file = plan.files[index]
        return file, row - (ends[index] - file.rows) + before[index]

    return find


def locator(plan: Plan) -> Callable[[int], str]:
    """A function that says where a row is: `file:line` in JSONL (counted from 1), `file row N` elsewhere (from 0)."""
    find = _finder(plan)

    def place(row: int) -> str:
        if not (found := find(row)):
            return "beyond the end of the input"
        file, number = found
        path = shown(file.path)
        return f"{path}:{number + 1}" if file.format[0] == "jsonl" else f"{path} row {number}"

    return place


def source_finder(plan: Plan) -> Callable[[int], tuple[str, int]]:
    """A function that says which file and line a row is, for the output: the file relative to the folder that has all
    those with which the job began, so that it stays the same wherever they lie; the line from 1, in files without
    lines too."""
    find = _finder(plan)
    folders = [os.path.dirname(file.path) for file in plan.files if not file.growth]
    above = os.path.commonpath(folders) if len({"://" in folder for folder in folders}) == 1 else ""

    def source(row: int) -> tuple[str, int]:
        found = find(row)
        assert found, row
        file, number = found
        inside = above and file.path.startswith(f"{above.rstrip('/')}/")
        return file.path[len(above.rstrip("/")) + 1 :] if inside else file.path, number + 1

    return source


def locate(plan: Plan, row: int) -> str:
    """Where a row is. For many rows, call `locator` once."""
    return locator(plan)(row)
