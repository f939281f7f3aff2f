"""What a supervisor and its workers tell each other: JSON lines over two pipes, and a mark in shared memory."""

import mmap
import os
from enum import Enum

import msgspec

from ..errors import Stopping
from ..job.sampler import Sampler
from ..job.spec import JobSpec
from ..output.counts import Counts


class Totals(Counts):
    """What a run did. Of rows and rejects only those of shards that it committed count.

    open_rows: rows that are done, of shards that are not committed yet
    kept: responses that were found in journals; all others are the engine's, and so are the tokens
    open_rejects: those of the open rows that are rejected
    by_length: responses of the engine that max_tokens or the context ended
    """

    open_rows: int = 0
    kept: int = 0
    open_rejects: int = 0
    by_length: int = 0


# --- from the supervisor


class PoisonItems(msgspec.Struct):
    """Items by name, and rows by their number as text; see poison.py. Sent to all workers whenever it changes.

    suspected: to be run alone
    poisoned: to be rejected
    """

    suspected: set[str] = set()
    poisoned: set[str] = set()


class WorkerConfig(msgspec.Struct):
    """The first line that a worker is sent.

    spec: the job
    job_from: file descriptor of the job's JobRecord as JSON: the one that was opened, whatever another run writes into
        the folder meanwhile
    report_to: file descriptor for its reports
    mark: file descriptor of its Mark
    supervisor: process id
    poison: as known so far
    until: when running requests have to end, by time.monotonic, which all processes of a machine share
    """

    spec: JobSpec
    job_from: int
    report_to: int
    mark: int
    supervisor: int
    poison: PoisonItems
    until: float | None = None


# --- from a worker


class Mark:
    """The row that a worker is preparing, from before it is read until its items are there. It is in memory that
    outlasts the worker: one report per row would cost more than the row."""

    def __init__(self, file: int = -1):
        """file: made by `new`; without one nobody else sees the mark."""
        self._memory = mmap.mmap(file, 8)

    @staticmethod
    def new() -> int:
        """The descriptor of a file in memory for a mark."""
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


class Started(msgspec.Struct, tag=True):
    """The engine is up, after this many seconds. sampler: what draws its tokens; device: as
    vLLM calls it"""

    seconds: float
    sampler: Sampler
    device: str


class Work(msgspec.Struct, tag=True):
    """Sent before an engine step, so that the supervisor always knows which items would die with the engine.

    admitted, finished: items by name, since the last report
    totals: of this worker so far
    running, waiting: requests in the engine
    """

    admitted: list[str]
    finished: list[str]
    totals: Totals
    running: int
    waiting: int


class Warn(msgspec.Struct, tag=True):
    """A line for the user."""

    text: str


class Committed(msgspec.Struct, tag=True):
    """A shard, by its number, is finished."""

    shard: int
    counts: Counts


class FirstReject(msgspec.Struct, tag=True):
    """Of this worker: where the row is, and why; and the reason as it is counted."""

    text: str
    reason: str


class ExitKind(Enum):
    DONE = "done"  # no work is left for this worker
    STOPPED = "stopped"  # before that; Exit.why says why
    REFUSED = "refused"  # a JobError, which ends the run
    DIED = "died"  # the engine, or the whole process; another one may go on
    BUG = "bug"  # in batchgen, which no restart helps


class Exit(msgspec.Struct, tag=True):
    """A worker's last report, or what is found out about one that ended without any.

    kind: what becomes of the run
    text: for the user
    why: of one that STOPPED
    signal: that killed the process, or 0
    row: that was being prepared, if that may be the cause
    """

    kind: ExitKind
    text: str = ""
    why: Stopping = Stopping.NO
    signal: int = 0
    row: int | None = None


Report = Started | Work | Warn | Committed | FirstReject | Exit
