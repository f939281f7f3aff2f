"""Whether what is left of a job needs an engine at all: one takes minutes to start on a large model."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator

import pyarrow as pa

from ..engine.idle import IdleEngine
from ..errors import Reject, on_disk
from ..input.conversation import Row
from ..input.plan import Shard
from ..output import journal, shard
from ..output.journal import Journal
from ..task.flow import Watch, work_of
from .messages import Mark, PoisonItems
from .open_shard import OpenShard
from .poison import ENDS_WORKERS
from .prepare import Job

LOOKED_AT = 100_000  # rows that are all rejected, before an engine is started all the same: 5 s of looking, at most


def is_over(job: Job, missing: list[Shard], mark: Mark, poison: PoisonItems) -> bool:
    """Whether a trial has all its answers already. missing: shards that are not finished"""
    asked = {planned.index for planned in job.shards}
    left = [planned for planned in missing if planned.index in asked]
    return all(map(job.is_cut, left)) and not any(_asks(job, planned, mark, poison) for planned in left)


def stand_in(job: Job, missing: list[Shard], mark: Mark, poison: PoisonItems) -> IdleEngine | None:
    """What to commit the missing shards with, if no row of theirs has anything to ask; else None. Those that a trial
    leaves out count: their engine's name is to stand in all shards, as if there had been no trial."""
    found = work_of(job.task, job.reader(running=True), missing, _watch(None, mark, poison))
    for number, (_, work) in enumerate(found):
        if number == LOOKED_AT or (not isinstance(work, Reject) and work.requests):
            mark.clear()
            return None
    mark.clear()
    for planned in shard.finished(job.out, job.plan):
        with contextlib.suppress(OSError, ValueError, pa.ArrowException):  # damaged: another will do
            footer = shard.metadata(job.out, planned)
            return IdleEngine(shard.facts(footer), shard.sampler(footer))
    return IdleEngine()


def _asks(job: Job, planned: Shard, mark: Mark, poison: PoisonItems) -> bool:
    """Whether a row of a shard, up to the end of the trial, lacks an answer that no journal has."""
    fingerprint = job.fingerprint_of(planned)
    with on_disk(job.out):
        entries = {entry.name: entry for entry in journal.entries(job.out, planned.index, fingerprint)}
    opened = OpenShard(planned, job.task, Journal(job.out, planned.index, "", fingerprint), entries)
    rows = work_of(job.task, job.reader(running=True), [planned], _watch(job.end, mark, poison))
    asks = any(not isinstance(work, Reject) and opened.take(row, work) for row, work in rows)
    mark.clear()
    return asks


def _watch(end: int | None, mark: Mark, poison: PoisonItems) -> Watch:
    """Marks the rows that are prepared, as a worker does that goes on with them: one may end the process."""

    def watched(planned: Shard, rows: Iterator[Row]) -> Iterator[Row]:
        for row in itertools.takewhile(lambda row: end is None or row.number < end, rows):
            mark.set(row.number)
            poisoned = str(row.number) in poison.poisoned
            yield dataclasses.replace(row, fault=Reject("engine_error", ENDS_WORKERS)) if poisoned else row

    return watched
