"""What a worker and its supervisor say to each other, as JSON lines over two pipes."""

import mmap
import os

import msgspec

from ..job.spec import JobSpec
from ..output.counts import Counts


class Totals(Counts):
    """What a run did. Of rows and rejects only those of shards that it committed count.

    open_rows: rows that are done, of shards that are not committed yet
    kept: responses that were found in journals; all others are the engine's, and so are the tokens
    """

    open_rows: int = 0
    kept: int = 0


class Accused(msgspec.Struct):
    """Items by name, and rows that were being made ready by their number as text. suspects: to be run alone; deadly: to
    be rejected. Said anew to all workers when it changes."""

    suspects: set[str] = set()
    deadly: set[str] = set()


class Mark:
    """The row that a worker is making ready, in memory that outlasts it: a report per row would cost more than the row.

    It begins before the row is read and ends when its items are there."""

    def __init__(self, file: int = -1):
        """file: of `new`; without one nobody else sees it."""
        self._memory = mmap.mmap(file, 8)

    @staticmethod
    def new() -> int:
        """A file for it, which lies nowhere."""
        file = os.memfd_create("batchgen-mark")
        os.truncate(file, 8)
        return file

    @property
    def row(self) -> int | None:
        number = int.from_bytes(self._memory[:], "little")
        return number - 1 if number else None

    def set(self, row: int) -> None:
        self._memory[:] = (row + 1).to_bytes(8, "little")

    def clear(self) -> None:
        self._memory[:] = bytes(8)


class Orders(msgspec.Struct):
    """What the supervisor asks for. job_from: file descriptor of the job's JobRecord as JSON, which is the one that was
    opened, whatever another run writes into the folder meanwhile; report_to, mark: file descriptors; supervisor:
    process id; until: when running requests have to end, by the clock that nobody sets and all processes share
    (time.monotonic)."""

    spec: JobSpec
    job_from: int
    report_to: int
    mark: int
    supervisor: int
    accused: Accused
    until: float | None = None


class Started(msgspec.Struct, tag=True):
    """The engine is up, after so many seconds."""

    seconds: float


class Work(msgspec.Struct, tag=True):
    """Before an engine step. Items by name: which came into the engine since the last report, which have left."""

    admitted: list[str]
    finished: list[str]
    totals: Totals
    running: int
    waiting: int


class Warned(msgspec.Struct, tag=True):
    text: str


class Ended(msgspec.Struct, tag=True):
    """The worker's last word. how: done | stopped | time_up | refused (a JobError) | died (the engine) | bug (ours);
    signal: what killed it, if it is known; row: that it was making ready, if that may be why."""

    how: str
    text: str
    signal: int = 0
    row: int | None = None


Report = Started | Work | Warned | Ended
