"""One pass over each input file: its rows are counted, its text is digested, and the rows are found that begin shards.

Several files are read side by side, a thread each: reading, counting and hashing release Python's lock. Which rows of
a file begin shards is known once the files before it have been counted. A file that is read earlier than that notes
where its blocks of lines lie, and looks into them later.
"""

import contextlib
import hashlib
import itertools
import os
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import numpy as np

from ..errors import JobError, Reject, shown, warn
from . import files as filing
from .conversation import Row
from .file_formats import BY_BYTE, CHUNK, COLUMNAR, Table, chunks, csv_rows, detect, elements

NEWLINE = ord("\n")
BLOCK = 1 << 16  # bytes in which newlines are counted before their places are looked for
MOST_THREADS = 16  # more would wait for Python's lock, which each needs for a twentieth of its time
AHEAD = 2  # files that are read or waiting, as a multiple of the threads
MOST_KEPT = 1 << 24  # bytes of a compressed file's newlines that are kept until it is known which of them count
# Compression by file ending, as 0.1.0 recognised it; exports still choose theirs this way.
COMPRESSION_BY_ENDING = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


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
    ending = os.path.splitext(path.partition("?")[0] if "://" in path else path)[1]
    return ("parquet", "") if ending == ".parquet" else ("jsonl", COMPRESSION_BY_ENDING.get(ending, ""))


class Part(NamedTuple):
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


# The positions of rows first, first + step, ... of a file, given `first`. May raise JobError or Stopped.
Positions = Callable[[int], list[int]]


class Scan:
    """The pass over one part, on a thread of its own."""

    def __init__(self, part: Part, step: int, growth: int, incremental: bool):
        """step: rows of a shard; growth, incremental: see `InputFile` and `plan_input`."""
        self._part, self._step, self._growth, self._incremental = part, step, growth, incremental
        self._first: Future[int] = Future()  # the first of its rows that begins a shard
        self._end = part.start  # of the text that was read
        self._is_given_up = False
        self._unfinished = False
        self._done: Future[tuple[InputFile, Positions]] | None = None

    def start(self, pool: ThreadPoolExecutor) -> "Scan":
        if not _is_small(self._part.path):
            self._done = pool.submit(self._run)
        return self

    def result(self, first: int) -> tuple[InputFile, list[int]]:
        """The part as an InputFile, and the positions of its rows first, first + step, first + 2 * step, ...

        Raises JobError or Stopped. Warnings and errors come here, so in the order of the files.
        """
        self._first.set_result(first)
        file, positions = self._done.result() if self._done else self._run()
        if self._unfinished:
            warn_of_unfinished(file.path)
        return file, positions(first)

    def give_up(self) -> None:
        """Ends the pass at its next piece of text."""
        self._is_given_up = True
        self._first.cancel()

    def _run(self) -> tuple[InputFile, Positions]:
        path, start, digest, old = self._part
        size, mtime_ns = filing.facts(path)
        known_kind = old is not None and (start or not old.kind)
        kind, compression = old.format if old and known_kind else detect(path)
        file = InputFile(path, size, mtime_ns, "", 0, size, start, self._growth, kind, compression)
        if old and not old.kind:
            file = msgspec.structs.replace(file, kind="", compression="")
        if kind == "jsonl":
            rows, positions = self._lines(file)
        elif kind in BY_BYTE:
            rows, positions = self._elements(file)
        else:
            rows, positions = self._counted(file)
        return msgspec.structs.replace(file, digest=digest.hexdigest(), rows=rows, end=self._end), positions

    def _text(self, file: InputFile, end: int | None = None) -> Iterator[bytes]:
        """The text of the part, digested as it is read."""
        for piece in chunks(file.path, file.format[1], position=file.start, end=end):
            if self._is_given_up:
                raise CancelledError
            self._part.digest.update(piece)
            self._end += len(piece)
            yield piece

    def _lines(self, file: InputFile) -> tuple[int, Positions]:
        """(rows, positions) of JSONL.

        A last line without a newline is a row like any other, unless the job is incremental and the line is not a
        complete object: a writer may be in the middle of it, so it is left for the run that finds it complete.
        """
        # A file that is being written to counts as far as it went when its size was read.
        end = file.size if file.may_grow else None
        if self._incremental and file.may_grow:
            end, self._unfinished = _end_of_rows(file)
        lines = Lines(file, self._step, self._first)
        for piece in self._text(file, end):
            lines.add(piece)
        return lines.rows, lines.begins

    def _elements(self, file: InputFile) -> tuple[int, Positions]:
        """The same of JSON. It waits for the files before this one: finding elements keeps Python's lock."""
        first = self._first.result()
        rows, found = 0, []
        for rows, (begin, _, _) in enumerate(elements(self._text(file), file.format[0], 0), 1):
            if (rows - 1 - first) % self._step == 0:
                found.append(begin)
        return rows, lambda _: found

    def _counted(self, file: InputFile) -> tuple[int, Positions]:
        """The same of CSV and of columnar files, whose positions are the numbers of their rows."""
        if file.is_columnar:
            rows = Table(file.path, file.format[0]).rows()
            for _ in self._text(file):
                pass
        else:
            rows = sum(1 for _ in csv_rows(self._text(file), file.path))
        return rows, lambda first: list(range(first, rows, self._step))


def _is_small(path: str) -> bool:
    """Whether a file is read when its turn comes: what is done around reading a small one keeps Python's lock."""
    with contextlib.suppress(OSError):  # told of when it is read
        return "://" not in path and os.stat(path).st_size < CHUNK
    return False


def scans(parts: Iterable[Part], step: int, growth: int, incremental: bool) -> Generator[Scan, None, None]:
    """A scan of each part, in order, of which some are ahead. Close it to end them."""
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    pool = ThreadPoolExecutor(threads, "scan")
    begun = (Scan(part, step, growth, incremental).start(pool) for part in parts)
    ahead = deque(itertools.islice(begun, AHEAD * threads))
    try:
        while ahead:
            yield ahead[0]
            ahead.popleft()
            ahead.extend(itertools.islice(begun, 1))
    finally:
        for scan in ahead:
            scan.give_up()
        pool.shutdown(cancel_futures=True)


def _newlines(values: np.ndarray) -> np.ndarray:
    return values == NEWLINE


class _Block(NamedTuple):
    """Some bytes of a text: `lines` newlines come before them, they begin at byte `begin`, `found` are in them."""

    lines: int
    begin: int
    found: int

    def has_wanted(self, first: int, step: int) -> bool:
        """Whether one of the rows first, first + step, ... begins behind one of its newlines."""
        return self._wanted(first, step) < self.found

    def _wanted(self, first: int, step: int) -> int:
        return (first - self.lines - 1) % step

    def begins(self, places: np.ndarray, first: int, step: int) -> list[int]:
        """Where these rows begin. places: of its newlines, counted from its first byte."""
        wanted = places[self._wanted(first, step) : self.found : step]
        return (wanted.astype(np.int64) + (self.begin + 1)).tolist()


class Lines:
    """The lines of a text, and where those that begin shards begin.

    Counting newlines takes a quarter of the time of looking for their places (11 and 2.8 GB/s), so these are looked
    for only in blocks behind whose newlines a wanted line begins. As long as it is not known which lines are wanted,
    blocks are put aside. They are read again when it is; the newlines of those that cannot be, of a compressed or
    remote file, are kept.
    """

    def __init__(self, file: InputFile, step: int, first: "Future[int]"):
        self._path, self._step, self._first = file.path, step, first
        self._is_kept = bool(file.format[1]) or "://" in file.path
        self._start = self._end = file.start
        self._newlines = 0
        self._is_open = False  # whether there is text behind the last newline
        self._aside = array("Q")  # the fields of the blocks that were put aside
        self._kept: list[np.ndarray] = []  # their newlines' places
        self._bytes_kept = 0
        self._found: list[int] = []  # in all other blocks

    @property
    def rows(self) -> int:
        return self._newlines + self._is_open

    def add(self, text: bytes) -> None:
        """Takes the next piece of the text."""
        values = np.frombuffer(text, np.uint8)
        for offset in range(0, len(values), BLOCK):
            self._add(_newlines(values[offset : offset + BLOCK]))
        self._is_open = not text.endswith(b"\n")

    def _add(self, newlines: np.ndarray) -> None:
        block = _Block(self._newlines, self._end, int(np.count_nonzero(newlines)))
        self._newlines += block.found
        self._end += len(newlines)
        if not self._first.done() and self._bytes_kept < MOST_KEPT:
            self._put_aside(block, newlines)
        elif block.has_wanted(first := self._first.result(), self._step):
            self._found += block.begins(np.flatnonzero(newlines), first, self._step)

    def _put_aside(self, block: _Block, newlines: np.ndarray) -> None:
        self._aside.extend(block)
        if self._is_kept:
            self._kept.append(np.flatnonzero(newlines).astype(np.uint16))
            self._bytes_kept += self._kept[-1].nbytes + 128

    def begins(self, first: int) -> list[int]:
        """Where the lines first, first + step, ... begin. Raises JobError or Stopped."""
        found = [self._start] if first == 0 else []
        if self._aside:
            found += self._begins_aside(first)
        # Behind the last newline no line begins.
        return [begin for begin in (*found, *self._found) if begin < self._end]

    def _begins_aside(self, first: int) -> Iterator[int]:
        aside = map(_Block._make, zip(*[iter(self._aside)] * len(_Block._fields), strict=True))
        asked = [(number, block) for number, block in enumerate(aside) if block.has_wanted(first, self._step)]
        again = self._read_again([block for _, block in asked])
        for number, block in asked:
            yield from block.begins(self._kept[number] if self._is_kept else next(again), first, self._step)

    def _read_again(self, blocks: Iterable[_Block]) -> Iterator[np.ndarray]:
        """The places of their newlines."""
        with contextlib.closing(filing.open_raw(self._path)) as raw:
            for block in blocks:
                with filing.reading(self._path):
                    raw.seek(block.begin)
                    places = np.flatnonzero(_newlines(np.frombuffer(raw.read(BLOCK), np.uint8)))
                if len(places) < block.found:
                    raise JobError(f"{shown(self._path)}: changed while it was counted; run the same command again")
                yield places


def _end_of_rows(file: InputFile) -> tuple[int, bool]:
    """The byte at which the rows of a file end to which somebody may be writing, and whether text behind it waits for
    its end. (An object ends with its closing brace, so an unfinished line is never taken for a complete one.)"""
    begin, end = file.start, file.size
    while end > begin:
        before = max(begin, end - CHUNK)
        place = b"".join(chunks(file.path, position=before, end=end)).rfind(b"\n")
        if place >= 0:
            begin = before + place + 1
            break
        end = before
    tail = b"".join(chunks(file.path, position=begin, end=file.size)) if begin < file.size else b""
    if not tail or _is_object(tail):
        return file.size, False
    return begin, bool(tail.strip())


def _is_object(line: bytes) -> bool:
    try:
        Row(0, line).record()
    except Reject:
        return False
    return True


def warn_of_unfinished(path: str) -> None:
    """Tells of a last line that is left for a later run."""
    warn(f"{shown(path)}: the last line has no newline and is not a complete JSON object yet; a later run will read it")


def digest_of(file: InputFile, end: int | None = None) -> "hashlib._Hash":
    """The digest of a file's text (of its bytes, if columnar), up to byte `end` if given."""
    digest = hashlib.sha256()  # with SHA instructions 2.3 times as fast as blake2b
    for chunk in chunks(file.path, file.format[1], end=end):
        digest.update(chunk)
    return digest
