"""Makes complete shards final."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from msgspec import UNSET

from ..check.loops import is_endless
from ..engine.types import Engine
from ..errors import Reject, in_one_line
from ..input.conversation import Row
from ..output import journal, shard
from ..output.counts import Counts
from ..output.opening import Fence
from ..output.record import NO_EMPTY_GROUPS
from ..task.segment_rows import SegmentRow
from ..task.task import Answer, Task, Work
from .open_shard import OpenShard
from .prepare import Job


class Committer:
    """Writes the shards of one job. Raises Stopped if the folder is another job's by now."""

    def __init__(self, job: Job, fence: Fence, engine: Engine):
        self._job, self._fence = job, fence
        self._task: Task = job.task
        self._facts = {
            "versions": job.record.versions,
            "model": {"name": job.model.name, "revision": job.model.revision, "digests": job.digests},
            "dtype": engine.dtype,
            "device": engine.device,
            "model_impl": engine.model_impl,
        }

    def commit(self, opened: OpenShard) -> Counts:
        """Writes a complete shard, and removes its journals."""
        self._fence.check()
        out, planned = self._job.out, opened.shard
        opened.finished.sort(key=lambda finished: finished[0].row)
        was_faster = shard.is_finished(out, planned)  # a worker that believed this one dead
        counts = self._made(opened).counts if was_faster else self._write(opened)
        opened.journal.close()
        journal.remove(out, planned.index)
        return counts

    def _write(self, opened: OpenShard) -> Counts:
        (rows, audit, counts), planned = self._made(opened), opened.shard
        sampler = opened.journal.sampler
        drawn = {name: getattr(sampler, name) for name in shard.DRAWN}
        facts = {"fingerprint": self._job.fingerprint_of(planned), **self._facts, **drawn}
        rejects = list(opened.rejects.values())
        schema, empty_group = self._task.schema, self._job.record.format < NO_EMPTY_GROUPS
        try:
            shard.commit(self._job.out, planned, rows, rejects, schema, counts, facts, audit or (), empty_group)
        except shard.DOES_NOT_FIT:
            if not self._reject_unwritable(opened):
                raise
            return self._write(opened)
        return counts

    def _made(self, opened: OpenShard) -> "_Made":
        rows = [row for _, rows in self._accepted(opened) for row in rows]
        audit = self._task.audit(work for work, _ in opened.finished if work.row not in opened.rejects)
        return _Made(rows, audit, self._counts(opened, rows, audit))

    def _accepted(self, opened: OpenShard) -> Iterator[tuple[Work, list[dict[str, Any]]]]:
        """The rows that are not rejected, each with its output rows. One whose answers the task rejects becomes a
        reject."""
        for work, answers in opened.finished:
            if work.row not in opened.rejects:
                try:
                    rows = self._task.output(work, answers)
                except Reject as why:
                    opened.reject(Row(work.row, {}), work.id, why)
                    continue
                yield work, rows

    def _counts(self, opened: OpenShard, rows: list[dict[str, Any]], audit: Sequence[SegmentRow] | None) -> Counts:
        reasons = Counter(sorted(line["reason"] for line in opened.rejects.values()))
        answers = _generated(opened)
        return Counts(
            rows=len(opened.shard.row_numbers),
            responses=len(rows),
            rejects=dict(reasons),
            prompt_tokens=sum(len(request.prompt_token_ids) for request, _ in answers),
            response_tokens=sum(len(entry.token_ids) for _, entry in answers),
            tries=sum(request.name.attempt > 0 for request, _ in answers) or UNSET,
            failed=sum(map(self._task.has_failed, rows)) or UNSET,
            segments=UNSET if audit is None else len(audit),
            failed_segments=UNSET if audit is None else sum(bool(row.failed_checks) for row in audit),
            **_endings(rows, audit),
        )

    def _reject_unwritable(self, opened: OpenShard) -> bool:
        """Rejects the rows whose output no shard can hold; False if there are none."""
        before = len(opened.rejects)
        for work, rows in self._accepted(opened):
            try:
                shard.as_parquet(rows, self._task.schema, {})
            except shard.DOES_NOT_FIT as error:
                why = Reject("engine_error", f"cannot be written: {in_one_line(error)}")
                opened.reject(Row(work.row, {}), work.id, why)
        return len(opened.rejects) > before


class _Made(NamedTuple):
    """Of a complete shard: its output rows, in order; what became of its segments, if the task has some; its counts."""

    rows: list[dict[str, Any]]
    audit: Sequence[SegmentRow] | None
    counts: Counts


def _endings(rows: list[dict[str, Any]], audit: Sequence[SegmentRow] | None) -> dict[str, Any]:
    """How the responses of a shard ended, or the segments of a translation: what Counts has of it."""
    if audit is not None:
        texts = [(row.finish_reason, row.answer) for row in audit]
    else:
        has_responses = bool(rows) and "response" in rows[0] and "scores" not in rows[0]
        texts = [(row["finish_reason"], row["response"]) for row in rows] if has_responses else []
    return {
        "finish_reasons": dict(Counter(sorted(reason for reason, _ in texts))) or UNSET,
        "empty": sum(text is not None and not text.strip() for _, text in texts) or UNSET,
        "repetitive": sum(is_endless(text or "", reason) for reason, text in texts) or UNSET,
    }


def _generated(opened: OpenShard) -> list[Answer]:
    """The answers to all rows that are not rejected, each of those that several requests share once."""
    answers = [answer for work, answers in opened.finished if work.row not in opened.rejects for answer in answers]
    return list({answer.request.key or answer.request.name: answer for answer in answers}.values())
