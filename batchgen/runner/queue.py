"""What to generate next: claims and reads shards, prepares their rows, and resumes from earlier journals."""

import dataclasses
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import Reject
from ..host import clock
from ..input.conversation import Row
from ..input.plan import Shard
from ..job.sampler import Sampler
from ..output.claims import Claims, claimed
from ..output.journal import Journal
from ..output.opening import Fence
from ..output.shard import finished, is_finished
from ..task.flow import work_of
from ..task.task import Request
from .first_look import FirstRows
from .messages import Mark, PoisonItems
from .open_shard import OpenShard
from .poison import ENDS_WORKERS
from .prepare import Job

SORTED = 8192  # requests of the last shard that are held and sorted at a time
# By the simulation of up to 1,000 workers, tests/bench/fleet.py.
MISSES = 16  # looks in a row that found a shard taken, until listings tell which are free
WATCHED = 4  # shards of others that a worker without one of its own watches: the dead are found by all of them together
LOOK_AGAIN = 0.5  # seconds between two looks at them at first
PATIENCE = 4  # later the part of the time since then


class Queue:
    """The requests of all shards that this worker can claim, in input order.

    open: shards that are claimed and not committed yet
    is_waiting: other workers hold all that is left; if they die, it can be claimed
    """

    def __init__(
        self,
        job: Job,
        claims: Claims,
        fence: Fence,
        sampler: Sampler,
        poison: PoisonItems,
        mark: Mark,
        alive: Callable[[], None] = lambda: None,
        warn: Callable[[str], None] = lambda text: None,
    ):
        """sampler: what draws the answers; alive: called for every row that is read, as many rejects in a row may take
        long."""
        self.open: list[OpenShard] = []
        self.is_waiting = False
        self._job, self._claims, self._fence, self._sampler = job, claims, fence, sampler
        self._poison, self._mark, self._alive, self._warn = poison, mark, alive, warn
        self._first_rows = FirstRows(job, warn)
        self._reader = job.reader(running=True)
        self._left: deque[Shard] = deque()
        self._held: list[Shard] = []  # by others, as far as this pass over what is left has come
        self._idle_since: float | None = None
        self._look_at = 0.0
        self._reading: tuple[OpenShard, Iterator[tuple[Row, Any]]] | None = None
        self._ready: deque[tuple[OpenShard, Request]] = deque()

    def begin(self, shards: Iterable[Shard]) -> None:
        """Without those that are finished, by one listing: they are no misses, and a worker that is alone goes on in
        order, with the shard first that was begun last."""
        done = {shard.index for shard in finished(self._job.out, self._job.plan)}
        self._left.extend(shard for shard in shards if shard.index not in done)

    @property
    def is_done(self) -> bool:
        """Whether nothing more comes, unless a task asks for further tries."""
        return not (self._ready or self._reading or self._left)

    def next(self) -> tuple[OpenShard, Request] | None:
        """The next request. None if there is none for now: a shard was read to its end and may be complete, others hold
        all that is left, or nothing is left."""
        self.is_waiting = False
        while not self._ready:
            if not self._reading and not self._claim():
                return None
            if not self._read():
                return None
        return self._ready.popleft()

    def put_back(self, opened: OpenShard, requests: list[Request]) -> None:
        """Puts requests ahead of all others: those that may not enter yet, and further tries."""
        self._ready.extendleft((opened, request) for request in reversed(requests))

    def forget(self, opened: OpenShard) -> None:
        """Drops a shard that is committed, and releases its claim."""
        self.open.remove(opened)
        self._claims.release(opened.shard.index)

    # --- shards

    def _claim(self) -> bool:
        """Opens an unfinished shard that nobody holds. False if there is none for now.

        They are tried in order. Where many are at work, those next to each other are taken by many: a miss doubles how
        many may be passed over, to be tried later.
        """
        if self._idle_since and clock.monotonic() < self._look_at:
            self.is_waiting = True
            return False
        misses = 0
        while self._left:
            shard = self._left.popleft()
            if self._take(shard):
                self._idle_since = None
                self._open(shard)
                return True
            self._alive()
            misses += 1
            was_watched = self._idle_since and self._held and self._held[-1] is not shard  # it is finished now
            if misses % MISSES == 0 or was_watched:
                self._look_around()
            else:
                self._left.rotate(-random.randrange(1 << misses % MISSES))
        self._watch()
        return False

    def _take(self, shard: Shard) -> bool:
        """Claims a shard, if it is not finished and nobody holds it."""
        out = self._job.out
        if is_finished(out, shard):
            return False
        if not self._claims.take(shard.index):
            self._held.append(shard)
            return False
        if is_finished(out, shard):  # its holder committed it before we claimed it
            self._claims.release(shard.index)
            return False
        return True

    def _look_around(self) -> None:
        """Finds out by listings which shards are finished, and which are claimed."""
        done = {shard.index for shard in finished(self._job.out, self._job.plan)}
        taken = claimed(self._job.out)
        left = [shard for shard in (*self._left, *self._held) if shard.index not in done]
        self._left = deque(shard for shard in left if shard.index not in taken)
        self._held = [shard for shard in left if shard.index in taken]
        random.shuffle(self._held)

    def _watch(self) -> None:
        """Others hold all that is left: some of it is tried again in a while, unless those who hold that are at work.
        Whoever comes to an end last watches what is left by the dead alone."""
        now = clock.monotonic()
        self._idle_since = self._idle_since or now
        self._look_at = now + max(LOOK_AGAIN, (now - self._idle_since) / PATIENCE)
        watched, self._held = self._held[-WATCHED:], self._held[:-WATCHED]
        if watched and not self._claims.at_work([shard.index for shard in watched], self._idle_since):
            self._left.extend(watched)
        else:
            self._held = []
        self.is_waiting = bool(self._left)

    def _open(self, shard: Shard) -> None:
        """Opens a shard with the answers that earlier journals hold."""
        self._fence.check()
        job = self._job
        every = job.spec.output.journal_every
        journal = Journal(job.out, shard.index, self._claims.worker, job.fingerprint_of(shard), self._sampler, every)
        entries, warnings = journal.resume()
        for warning in warnings:
            self._warn(warning)
        opened = OpenShard(shard, job.task, journal, {entry.name: entry for entry in entries})
        opened.is_cut = job.is_cut(shard)
        self.open.append(opened)
        self._reading = opened, work_of(job.task, self._reader, [shard], self._watched)

    # --- rows

    def _read(self) -> bool:
        """Reads on until there is something to generate; in the last shard, up to SORTED requests. False if the shard
        ended first."""
        assert self._reading
        opened, rows = self._reading
        is_last = not self._left
        found: list[Request] = []
        while len(found) < (SORTED if is_last else 1):
            if (made := next(rows, None)) is None:
                opened.all_read = True
                self._reading = None
                break
            self._mark.clear()
            row, work = made
            self._first_rows.take(row, work if isinstance(work, Reject) else None)
            if isinstance(work, Reject):
                opened.reject(row, self._job.task.id_of(row), work)
            else:
                found += opened.take(row, work)
        if is_last:
            found.sort(key=_length, reverse=True)
        self._ready.extend((opened, request) for request in found)
        return bool(found)

    def _watched(self, shard: Shard, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows of a shard, up to the end of a trial, each marked while it is prepared; rows that ended workers
        carry a fault."""
        self._mark.set(shard.row_numbers[0])
        end = self._job.end
        for row in rows if end is None else itertools.takewhile(lambda row: row.number < end, rows):
            self._alive()
            self._mark.set(row.number)
            poisoned = str(row.number) in self._poison.poisoned
            yield dataclasses.replace(row, fault=Reject("engine_error", ENDS_WORKERS)) if poisoned else row
            self._mark.set(row.number + 1)
        self._mark.clear()


def _length(request: Request) -> tuple[int, int]:
    """Sorts the last requests of a job, longest first, so that the engine does not end up with one long response in it.
    The length of a response is not known beforehand, but grows with its limit and its prompt."""
    return request.sampling.max_tokens, len(request.prompt_token_ids)
