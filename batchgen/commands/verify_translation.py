"""Proves the shards of a translation: every record is its source but for the chosen texts, and these are what
`_segments/` says they are."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

import msgspec
import pyarrow as pa

from ..errors import Reject
from ..input import columns
from ..input.plan import Shard
from ..input.rows import Reader
from ..output import layout, segments, shard
from ..output.counts import Counts
from ..runner.prepare import Job
from ..task.flow import work_of
from ..task.segment_rows import SegmentRow
from ..task.translate import Part, Translate, Translation, count_in

AT_ONCE = 256  # rows that are compared at a time


def problem(job: Job, task: Translate, planned: Shard, reader: Reader, unforeseen: Iterable[str]) -> tuple[Counts, str]:
    """The counts of a shard, and what is wrong with it; empty if nothing is.

    The records are made again of the input and of the answers in `_segments/`, without the model.
    unforeseen: reasons of rejects that only the run knew
    """
    rejects = {line["row"]: line for line in shard.read_rejects(job.out, planned)}
    audit = [row for some in segments.read(job.out, planned) for row in some]
    unmade = frozenset(row for row, line in rejects.items() if line["reason"] in unforeseen)
    again = dataclasses.replace(task, skip=unmade, memory={row.key: row for row in audit}.get)
    reasons = Counter(line["reason"] for line in rejects.values())
    found, used = _found(job, planned), dict[str, SegmentRow]()
    counts = Counts(rows=len(planned.row_numbers), rejects=dict(reasons), segments=len(audit))
    try:
        works = _works(again, reader, planned, rejects, unmade)
        while some := list(itertools.islice(works, AT_ONCE)):
            counts = msgspec.structs.replace(counts, responses=counts.responses + len(some))
            _compare(again, some, found, used)
        if (more := found.read(1)).num_rows:
            raise _Differs(f"has {more.num_rows} more rows than the input says")
        _check_audit(again, audit, list(used.values()))
    except _Differs as why:
        return counts, str(why)
    return counts, ""


class _Differs(Exception):
    pass


class _Rows:
    """The rows of a shard, read on from where the last ones ended."""

    def __init__(self, table: pa.Table):
        self._table, self._place = table, 0

    def read(self, rows: int) -> pa.Table:
        begin, self._place = self._place, self._place + rows
        return self._table.slice(begin, rows)


def _found(job: Job, planned: Shard) -> _Rows:
    return _Rows(shard.read(job.out, planned, job.task.schema.names))


def _works(
    task: Translate, reader: Reader, planned: Shard, rejects: dict[int, dict[str, Any]], unmade: frozenset[int]
) -> Iterator[Translation]:
    """The rows that the shard must have. Raises _Differs where a row is rejected and must not be, or the other way."""
    for row, work in work_of(task, reader, [planned]):
        line = rejects.get(row.number)
        if isinstance(work, Reject):
            if line is None or (row.number not in unmade and line["reason"] != work.reason):
                raise _Differs(f"row {row.number} is not rejected, the input says {work.reason}: {work.detail}")
        elif line is not None:
            raise _Differs(f"row {row.number} is rejected for {line['reason']}, the input says nothing of it")
        elif part := _unanswered(work):
            raise _Differs(f"row {row.number}: {part.path}: nothing in {layout.SEGMENTS}/ answers {part.source!r:.80}")
        else:
            yield work


def _unanswered(work: Translation) -> Part | None:
    """A segment of a row, or a piece of one that was split, that is not in `_segments/`."""
    split = (part.split for part in work.parts if part.split and part.known and part.known.split)
    needed = [*work.used, *(number for text in split for number in text.parts)]
    return next((work.parts[number] for number in needed if not work.parts[number].known), None)


def _compare(task: Translate, works: list[Translation], found: _Rows, used: dict[str, SegmentRow]) -> None:
    """used: gets the segments of the rows. Raises _Differs."""
    rows = []
    for work in works:
        try:
            rows += task.output(work, [])
        except Reject as why:
            raise _Differs(f"row {work.row} is not rejected, its segments say {why.reason}: {why.detail}") from None
        count_in(work, used)
    should = shard.as_table(rows, task.schema)
    has = found.read(len(works))
    if has.num_rows != should.num_rows:
        raise _Differs(f"has {has.num_rows - should.num_rows} rows less than the input says")
    for name in task.schema.names:
        if not _are_same(has[name], should[name]):
            row = next(
                work.row
                for place, work in enumerate(works)
                if not _are_same(has[name].slice(place, 1), should[name].slice(place, 1))
            )
            raise _Differs(f"row {row}: {name} is not what the input and {layout.SEGMENTS}/ make it")


def _are_same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if one.equals(other):
        return True
    # NaN is no reason to differ, and neither is another dictionary.
    return repr(_values(one)) == repr(_values(other))


def _values(column: pa.ChunkedArray) -> list[Any]:
    return [value for chunk in column.chunks for value in columns.pythons(chunk)]


def _check_audit(task: Translate, audit: list[SegmentRow], used: list[SegmentRow]) -> None:
    """Raises _Differs if `_segments/` has not just the segments that the records have, each where it is first and as
    often as it is there, or one with a seed that it cannot have."""
    for has, should in zip_longest(audit, used):
        if has != should:
            source = (has or should).source
            raise _Differs(f"{layout.SEGMENTS}/: {source!r:.80} is not what the input says, or not where and as often")
        if not task.spec.translate.memory and has.seed not in task.seeds_of(has.key):  # or else another job's
            raise _Differs(f"{layout.SEGMENTS}/: {has.source!r:.80} has a seed that no try of it has")
