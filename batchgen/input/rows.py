"""Reading the rows of a shard."""

import itertools
from collections.abc import Iterable, Iterator

from ..errors import JobError, shown
from ..job.row_limits import USUAL, RowLimits
from .columns import Column
from .conversation import Row
from .cursor import Cursor, cursor_at
from .plan import Plan, Shard, replaced


def read_rows(plan: Plan, shard: Shard, columns: Iterable[str]) -> Iterator[Row]:
    """The rows of one shard in order, with only the given columns of columnar files. Raises JobError or Stopped."""
    return Reader(plan, columns).read(shard)


class Reader:
    """Reads shards. Consecutive ones are read in one go, so that a file is decompressed or decoded only once however
    many shards it has."""

    def __init__(
        self,
        plan: Plan,
        used: Iterable[str],
        passed: Iterable[Column] = (),
        running: bool = False,
        limits: RowLimits = USUAL,
    ):
        """
        Args:
            plan: the input.
            used: columns whose values are looked at.
            passed: columns to pass through.
            running: whether the job is under way: a file that cannot be read was there before, so it raises Stopped.
            limits: how large a row may be.
        """
        self._plan, self._limits = plan, limits
        self._used, self._passed, self._running = list(dict.fromkeys(used)), list(passed), running
        self._ends = list(itertools.accumulate(file.rows for file in plan.files))
        self._replaced = replaced(plan)
        self._left: tuple[int, Cursor] | None = None  # (file, cursor) where the last shard ended

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
        left, self._left = self._left, None  # taken away, so that two shards read at the same time do not share it
        if left and left[0] == index and left[1].position <= position:
            left[1].go_to(position)
            return left[1]
        if left:
            left[1].close()
        file = self._plan.files[index]
        if index in self._replaced:
            raise JobError(f"{shown(file.path)}: is another file by now than the one that row was in ([input] keep)")
        return cursor_at(file.path, *file.format, position, self._used, self._passed, self._running, self._limits)

    def _leave(self, index: int, cursor: Cursor) -> None:
        if self._left:
            self._left[1].close()
        self._left = index, cursor
