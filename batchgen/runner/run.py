"""One run of a job: prepare, generate what is missing, close the accounting."""

import contextlib
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .. import __version__
from ..engine.choice import require_engine, warn_of_choice
from ..errors import JobError, MachineError, NoRows, Reject, Stopped, Stopping, warn
from ..host import caller, console, events
from ..input.plan import Shard, locate
from ..job.spec import OF_RUNS, JobSpec, without
from ..output import journal, layout, opening, owners, record, shard, store, success
from ..output.counts import Counts, by_reason
from ..output.presence import Presence, has_traces
from ..task.flow import work_of
from ..task.translate import Translate
from . import deadline, header, notify, outcome, slurm
from .division import divide
from .first_look import KEYS, ROWS, FirstRows, told
from .outcome import Outcome, RunRecord
from .prepare import Job, prepare
from .progress import Progress
from .supervisor import Supervisor
from .translation import check_texts

LOOKED_AT = 100_000  # rows, for one that can be answered; 5 s at most, where an engine takes a minute to start


@dataclass
class Doing:
    """What one run is doing, and what came of it so far, however it ends.

    spec: what was asked for; job: what it came to, once it is prepared
    judged: the shards whose rejects the run has to answer for
    closed: whether it closed the job; goes_on: whether Slurm starts it again
    told: what is told of it, once it has ended
    began: in seconds since the epoch; since: the same by time.monotonic
    """

    spec: JobSpec
    job: Job | None = None
    judged: list[Shard] = field(default_factory=list)
    supervisor: Supervisor | None = None
    closed: bool = False
    goes_on: bool = False
    told: RunRecord | None = None
    began: float = field(default_factory=time.time)
    since: float = field(default_factory=time.monotonic)

    @property
    def has_worked(self) -> bool:
        return self.closed or self.supervisor is not None

    def record(self, done: Outcome | None, error: Exception | None = None) -> RunRecord:
        if not self.told:
            versions = self.job.record.versions if self.job else {"batchgen": __version__}
            done = done or (self._so_far(self.job) if self.job else None)
            self.told = outcome.record_of(done, self.spec.output.path, self.began, versions, error)
        return self.told

    def _so_far(self, job: Job) -> Outcome:
        done = Outcome(job.out, job.spec.output.max_rejects, closed=self.closed)
        if not (run := self.supervisor):
            return done
        seconds = time.monotonic() - self.since
        return dataclasses.replace(done, totals=run.totals, seconds=seconds, engine_start=run.engine_start)

    def outcome(self, job: Job, counts: Counts | None) -> Outcome:
        line, rejected = None, 0
        if counts and counts.rejected:
            line = shard.first_reject(job.out, self.judged)
            is_all = len(self.judged) == len(job.plan.shards)
            rejected = (counts if is_all else shard.Survey(job.out, self.judged).total(self.judged)).rejected
        first = told(job.plan, line["row"], line["reason"], line["detail"]) if line else ""
        whole = {planned.index for planned in job.shards if not job.is_cut(planned)}
        is_trial = job.end is not None and whole.isdisjoint(planned.index for planned in missing_shards(job))
        trial = f"the first {job.rows:,} of {job.plan.rows:,} rows" if is_trial and not counts else ""
        return dataclasses.replace(self._so_far(job), counts=counts, rejected=rejected, first_reject=first, trial=trial)


def run(spec: JobSpec, discard: bool = False) -> Outcome:
    """Brings a job to its end. discard: drops what another job has left in the folder. Raises JobError, MachineError or
    Stopped."""
    return run_job(spec, lambda: prepare(spec, discard=discard), discard)


def run_job(spec: JobSpec, prepared: Callable[[], Job], discard: bool = False) -> Outcome:
    """The same for a job that is prepared in another way."""
    doing, command = Doing(spec), spec.notify.command
    try:
        done = _run(doing, prepared, discard)
    except Exception as error:
        if command and not doing.goes_on:
            notify.tell(command, doing.record(None, error))
        raise
    if command and (doing.closed or (done.trial and doing.has_worked)):
        notify.tell(command, doing.record(done))
    return done


def _run(doing: Doing, prepared: Callable[[], Job], discard: bool) -> Outcome:
    try:
        job = prepared()
    except NoRows as why:
        if not doing.spec.input.incremental:
            raise
        return Outcome(store.at(doing.spec.output.path), nothing=str(why))
    if (counts := _done_already(job)) is not None:
        doing.judged = _judged(job, [])
        return doing.outcome(job, counts)
    _check_for_answers(job)
    with owners.writing(job.spec.output.shared):
        if not success.is_there(job.out):  # before anything is written for a run that cannot be
            require_engine(job.spec.engine)
        job.out.prepare(job.spec.output.shared)
        with Presence(job.out, job.spec.output.stale) as presence:
            doing.job = opened(job, prepared, presence, discard)
            return _logged(doing, doing.job, presence)


def _check_for_answers(job: Job) -> None:
    """Raises JobError if all rows of a job that begins here would be rejected, or more than `abort_if_rejected` allows:
    a wrong shape or column, most often, and no reason to load a model. A `max_rejects` that allows them all says that
    it is meant."""
    if job.plan.growth or shard.finished(job.out, job.plan, missing_ok=True):
        return
    if job.spec.output.abort_if_rejected is not None:
        look = FirstRows(job, warn)
        for row, work in itertools.islice(work_of(job.task_alone, job.reader(running=True), job.plan.shards), ROWS):
            look.take(row, work if isinstance(work, Reject) else None)
    if isinstance(job.task, Translate):
        reader = job.reader(running=True)
        rows = itertools.chain.from_iterable(map(reader.read, job.plan.shards))
        check_texts(job.spec, job.task.records, itertools.islice(rows, LOOKED_AT))
    rejects: Counter[str] = Counter()
    first = ""
    for row, work in itertools.islice(work_of(job.task_alone, job.reader(running=True), job.plan.shards), LOOKED_AT):
        if not isinstance(work, Reject):
            return
        first = first or f"{locate(job.plan, row.number)}: {work}"
        rejects[work.reason] += 1
    total = rejects.total()
    if job.spec.output.max_rejects is None or total > job.spec.output.max_rejects:
        which = f"all {total:,} rows" if total == job.plan.rows else f"all of the first {total:,} rows"
        [(reason, _)] = rejects.most_common(1)
        key = f", look at {KEYS[reason]}" if reason in KEYS else ""
        raise JobError(
            f"{which} would be rejected{by_reason(dict(sorted(rejects.items())))}, the first at {first}; fix that{key} "
            f"(`batchgen plan` takes the same flags), or give --max-rejects {total} to go on"
        )


def _done_already(job: Job) -> Counts | None:
    """The accounting of a job that lacks nothing, so that nothing is to be written: its folder may be read-only."""
    old = record.read_job(job.out)
    if not old or (old.fingerprint, old.plan) != (job.record.fingerprint, job.plan):
        return None
    moved = old.spec["output"]["path"] != job.out.location
    if record.spec_of(job.out, old) != without(job.spec, OF_RUNS) or (moved and job.out.is_writable()):
        return None  # the record is to say where things lie now
    survey = shard.Survey(job.out, job.plan.shards)
    if any(not survey.is_there(planned) or survey.damage(planned) for planned in job.plan.shards):
        return None
    opening.check_shards(job.out, old, survey)
    counts = survey.total(job.plan.shards)
    if not success.says(job.out, _as_success(job, counts)):
        return None
    return None if has_traces(job.out) and job.out.is_writable() else counts  # or else they are cleared away


def opened(job: Job, prepared: Callable[[], Job], presence: Presence | None, discard: bool) -> Job:
    """A job whose folder is its own; prepared again if another run was at the folder meanwhile."""
    while True:
        if opening.open_job(job.out, job.record, presence, discard):
            return job
        job = prepared()


def _logged(doing: Doing, job: Job, presence: Presence) -> Outcome:
    """Works on a job, and adds to its `_runs.jsonl` what became of it; nothing if there was nothing to do."""
    try:
        done = _at_work(doing, job, presence)
    except (JobError, MachineError, Stopped) as error:
        if doing.has_worked:
            with contextlib.suppress(JobError, Stopped):  # which may be why it ends
                outcome.log(job.out, doing.record(None, error))
        raise
    if doing.has_worked:
        try:
            outcome.log(job.out, doing.record(done))
        except (JobError, Stopped) as error:
            warn(f"no line about this run was added to {layout.RUN_LOG}: {error}")
    return done


def _at_work(doing: Doing, job: Job, presence: Presence) -> Outcome:
    _set_damaged_aside(job, opening.check_shards(job.out, job.record))
    missing = missing_shards(job)
    _warn_of_skip(job, missing)
    doing.judged = _judged(job, missing)
    if not missing:
        return doing.outcome(job, _closed(doing, job, presence))
    asked = {planned.index for planned in job.shards}
    missing = [planned for planned in missing if planned.index in asked]
    if not missing:
        return doing.outcome(job, None)
    if success.is_there(job.out):  # from before shards were set aside or the input grew
        require_engine(job.spec.engine)
        success.remove(job.out)
    warn_of_choice()
    _warn_of_other_versions(job)
    rows_done = sum(len(planned.row_numbers) for planned in job.shards) - sum(
        len(planned.row_numbers) for planned in missing
    )
    environments, text = divide(job, len(missing))
    watch = caller.current().watch or (lambda rows, done: Progress(console.stderr(), rows, done))
    progress = watch(job.rows, rows_done)
    if text:
        said = header.lines(job, text, rows_done)
        events.note(events.Level.info, "header", *said, **header.figures(job, text, rows_done))
    supervisor = Supervisor(job, progress, environments, deadline.of_run(job.spec.output.stop_at))
    doing.supervisor = supervisor
    try:
        supervisor.run()
    except Stopped as why:
        done = rows_done + max(supervisor.rows, _rows_done(job, supervisor) if supervisor.lost else 0)
        text = f"{why} ({done:,} of {job.rows:,} rows are done)"
        time_is_up = why.why is Stopping.TIME_UP
        if job.spec.output.requeue and (supervisor.signals or time_is_up):
            again = slurm.requeue(time_is_up, progress=supervisor.totals.responses > 0)
            text += f"; {again}" if again else ""
            doing.goes_on = again == slurm.AGAIN
        # 75 after a requeue too: Slurm drops the code of a job that waits again, and if it does not, 75 is the truth.
        raise Stopped(text) from None
    finally:
        progress.close(supervisor.rows)
    now = _as_it_is_now(job)
    if now is not job:
        doing.judged = _judged(now, missing)
    return doing.outcome(now, _closed(doing, now, presence) if not missing_shards(now) else None)


def _judged(job: Job, missing: list[Shard]) -> list[Shard]:
    """The shards whose rejects a run has to answer for that began when these were missing: all of them, but of a job
    that grows those of growths that were not finished then; those before have been told of."""
    plan = job.plan
    if not (job.spec.input.incremental or plan.growth):
        return plan.shards
    growths = {plan.files[planned.file].growth for planned in missing}
    if not success.is_of(job.out, job.record.fingerprint):
        growths.add(plan.growth)
    return [planned for planned in plan.shards if plan.files[planned.file].growth in growths]


def _warn_of_skip(job: Job, missing: list[Shard]) -> None:
    """Warns of rows that are to be skipped and cannot be any more: finished shards are never rewritten."""
    late = job.generate.skip.difference(*(planned.row_numbers for planned in missing))
    for planned in job.plan.shards:
        if not late.isdisjoint(planned.row_numbers):
            late -= {line["row"] for line in shard.read_rejects(job.out, planned) if line["reason"] == "skipped"}
    if late:
        warn(f"[input] skip: row {min(late)} is in a finished shard, which stays as it is, or not in the input")


def _closed(doing: Doing, job: Job, presence: Presence) -> Counts:
    counts, doing.closed = _close(job)
    presence.tidy()
    return counts


def _rows_done(job: Job, supervisor: Supervisor) -> int:
    """Rows that this run finished, by what is on the disk: a worker that was lost can no longer say what it had. How
    many answers a row of a translation or a sweep needs no journal says; of those the rows of finished shards count."""
    if job.spec.translate.fields or job.spec.sweep.method:
        return supervisor.totals.rows
    open_rows = 0
    with contextlib.suppress(Stopped):
        for planned in missing_shards(job):
            open_rows += journal.rows_done(job.out, planned.index, job.fingerprint_of(planned), job.spec.sampling.n)
    return supervisor.totals.rows + open_rows


def _as_it_is_now(job: Job) -> Job:
    """With what another run has let the job grow by meanwhile: whoever finishes the last shard closes it. Raises
    JobError or Stopped."""
    now = opening.check_owner(job.out, job.record.fingerprint)
    if now.fingerprint == job.record.fingerprint:
        return job
    return dataclasses.replace(job, record=now, plan=now.plan)


def missing_shards(job: Job) -> list[Shard]:
    done = {planned.index for planned in shard.finished(job.out, job.plan)}
    return [planned for planned in job.plan.shards if planned.index not in done]


def _set_damaged_aside(job: Job, survey: shard.Survey) -> None:
    """Shards that were cut off or lost a part go to quarantine, to be made again. `batchgen verify` looks closer."""
    for planned in filter(survey.is_there, job.plan.shards):
        with contextlib.suppress(FileNotFoundError):  # another worker set it aside already
            if what := survey.damage(planned):
                success.remove(job.out)
                aside = shard.set_aside(job.out, planned)
                warn(f"{shard.where(job.out, planned)}: {what}; moved to {aside}, to be made again")


def _warn_of_other_versions(job: Job) -> None:
    """Results stay valid, but another vLLM may word them differently: say so once."""
    first, now = record.read_job(job.out), job.record.versions
    if not first or all(now.get(name) == version for name, version in first.versions.items()):
        return  # what an older batchgen did not record may have been the same
    was, is_now = (msgspec.json.encode(versions).decode() for versions in (first.versions, now))
    warn(f"this job was begun with {was} and goes on with {is_now}")


def close(job: Job) -> Counts:
    """Adds up the counts of all shards and writes `_SUCCESS`, unless it is there and says the same. Raises Stopped, or
    JobError if there are shards of another job.

    A run that lets the job grow removes `_SUCCESS`, before and after: either it finds the one written here, or its
    growth is found here.
    """
    return _close(job)[0]


def _close(job: Job) -> tuple[Counts, bool]:
    """The same, and whether it is this run that closed it: of several that come here at once only one has."""
    counts = opening.check_shards(job.out, job.record).total(job.plan.shards)
    content = _as_success(job, counts)
    if success.says(job.out, content):
        return counts, False
    is_ours = success.write(job.out, content)
    if _as_it_is_now(job) is not job:
        success.remove(job.out)
        return counts, False
    return counts, is_ours


def _as_success(job: Job, counts: Counts) -> dict[str, Any]:
    return msgspec.to_builtins(counts) | {"shards": len(job.plan.shards), "fingerprint": job.record.fingerprint}
