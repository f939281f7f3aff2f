"""What a worker and its supervisor say to each other, as JSON lines over two pipes."""

import mmap
import os
from dataclasses import dataclass, field

import msgspec

from ..job.spec import JobSpec


@dataclass
class Totals:
    """What a run did. rows: of committed shards; open_rows: finished ones of shards that are not committed yet;
    kept: responses that were found in journals."""

    rows: int = 0
    open_rows: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    response_tokens: int = 0
    kept: int = 0

    def add_rejects(self, rejects: dict[str, int]) -> None:
        for reason, number in rejects.items():
            self.rejects[reason] = self.rejects.get(reason, 0) + number

    def __add__(self, other: "Totals") -> "Totals":
        total = Totals(
            rows=self.rows + other.rows,
            open_rows=self.open_rows + other.open_rows,
            rejects=dict(self.rejects),
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            response_tokens=self.response_tokens + other.response_tokens,
            kept=self.kept + other.kept,
        )
        total.add_rejects(other.rejects)
        return total


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
