"""Makes complete shards final."""

from typing import Any

from ..errors import Reject, in_one_line
from ..input.conversation import Row
from ..output import journal, shard
from ..output.opening import Fence
from ..task.task import Task
from .messages import Totals
from .open_shard import OpenShard
from .prepare import Job


class Committer:
    """Writes the shards of one job. Raises Stopped if the folder is another job's by now."""

    def __init__(self, job: Job, fence: Fence, dtype: str, device: str):
        self._job, self._fence = job, fence
        self._task: Task = job.task
        self._facts = {
            "versions": job.record.versions,
            "model": {"name": job.model.name, "revision": job.model.revision, "digests": job.record.results["model"]},
            "dtype": dtype,
            "device": device,
        }

    def commit(self, opened: OpenShard, totals: Totals) -> None:
        """Writes a complete shard, counts it into `totals`, and removes its journals."""
        self._fence.check()
        out, planned = self._job.out, opened.shard
        answers = self._output(opened)
        if not shard.is_finished(out, planned):  # whoever took this worker for dead may have been faster
            answers = self._write(opened, answers)
        opened.journal.close()
        journal.remove(out, planned.index)
        rows = len(planned.row_numbers)
        totals.rows += rows
        totals.add_rejects(shard.counts(rows, answers, list(opened.rejects.values()))["rejects"])

    def _write(self, opened: OpenShard, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What was written: without the rows that no shard can hold, which become rejects."""
        planned = opened.shard
        facts = {"fingerprint": self._job.fingerprint_of(planned), **self._facts}
        try:
            shard.commit(self._job.out, planned, answers, list(opened.rejects.values()), self._task.schema, facts)
        except shard.DOES_NOT_FIT:
            if not self._reject_unwritable(opened):
                raise
            answers = self._output(opened)
            shard.commit(self._job.out, planned, answers, list(opened.rejects.values()), self._task.schema, facts)
        return answers

    def _output(self, opened: OpenShard) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for work, answers in opened.finished:
            if work.row not in opened.rejects:
                try:
                    rows += self._task.output(work, answers)
                except Reject as why:
                    opened.reject(Row(work.row, {}), work.id, why)
        return rows

    def _reject_unwritable(self, opened: OpenShard) -> bool:
        """Rejects the rows whose output no shard can hold; False if there are none."""
        before = len(opened.rejects)
        for work, answers in opened.finished:
            try:
                shard.as_parquet(self._task.output(work, answers), self._task.schema, {})
            except shard.DOES_NOT_FIT as error:
                why = Reject("engine_error", f"cannot be written: {in_one_line(error)}")
                opened.reject(Row(work.row, {}), work.id, why)
        return len(opened.rejects) > before
