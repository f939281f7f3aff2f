"""One run of a job: prepare, generate what is missing, close the accounting."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from . import deadline, engine, folder, gpus, shard, slurm
from .errors import Stopped, TimeUp, on_disk
from .job import JobSpec
from .prepare import Job, prepare
from .progress import Progress
from .report import Totals
from .source import Shard
from .supervisor import Supervisor


@dataclass(frozen=True)
class Outcome:
    """totals: what this run did; counts: the whole job's accounting, None while other workers are still at it;
    seconds: of this run, and of its engine starts."""

    out: Path
    totals: Totals = field(default_factory=Totals)
    counts: dict[str, Any] | None = None
    seconds: float = 0.0
    engine_start: float = 0.0


def run(spec: JobSpec) -> Outcome:
    """Brings a job to its end. Raises JobError, MachineError or Stopped."""
    return run_job(lambda: prepare(spec))


def run_job(prepared: Callable[[], Job]) -> Outcome:
    """The same for a job that is prepared in another way."""
    job = _open(prepared)
    begin = time.monotonic()
    with on_disk(job.out):
        _set_damaged_aside(job)
    missing = missing_shards(job)
    if not missing:
        return Outcome(job.out, counts=close(job))
    with on_disk(job.out):
        if (job.out / "_SUCCESS").exists():  # of a time when none was missing
            engine.require_vllm()
            (job.out / "_SUCCESS").unlink(missing_ok=True)
    _warn_of_other_versions(job)
    rows_done = job.plan.rows - sum(len(planned.row_numbers) for planned in missing)
    environments = gpus.environments(job.spec.output.workers, job.spec.engine)[: len(missing)]
    progress = Progress(sys.stderr, job.plan.rows, rows_done)
    supervisor = Supervisor(job, progress, environments, deadline.of_run(job.spec.output.stop_at))
    try:
        supervisor.run()
    except Stopped as why:
        done = rows_done + supervisor.rows
        text = f"{why} ({done:,} of {job.plan.rows:,} rows are done)"
        if job.spec.output.requeue and (supervisor.signals or isinstance(why, TimeUp)):
            again = slurm.requeue(isinstance(why, TimeUp), progress=supervisor.totals.response_tokens > 0)
            text += f"; {again}" if again else ""
        # 75 after a requeue too: Slurm drops the code of a job that waits again, and if it does not, 75 is the truth.
        raise Stopped(text) from None
    finally:
        progress.close(supervisor.rows)
    job = _as_it_is_now(job)
    counts = close(job) if not missing_shards(job) else None
    return Outcome(job.out, supervisor.totals, counts, time.monotonic() - begin, supervisor.engine_start)


def _open(prepared: Callable[[], Job]) -> Job:
    """A job whose folder is its own; prepared again if another run was at the folder meanwhile."""
    while True:
        job = prepared()
        with on_disk(job.out):
            if not (job.out / "_SUCCESS").exists():  # before anything is written for a run that cannot be
                engine.require_vllm()
            if folder.open_job(job.out, job.record):
                return job


def _as_it_is_now(job: Job) -> Job:
    """With what another run has let the job grow by meanwhile: whoever finishes the last shard closes it. Raises
    Stopped."""
    record = folder.read_job(job.out)
    if record is None:
        raise Stopped(f"{job.out}: has lost its _job.json; mend that and run the same command again")
    if record.fingerprint == job.record.fingerprint:
        return job
    return dataclasses.replace(job, record=record, plan=record.plan)


def missing_shards(job: Job) -> list[Shard]:
    with on_disk(job.out):
        done = {planned.index for planned in folder.finished(job.out, job.plan)}
    return [planned for planned in job.plan.shards if planned.index not in done]


def _set_damaged_aside(job: Job) -> None:
    """Shards that were cut off or lost a part go to quarantine, to be made again. `batchgen verify` looks closer."""
    for planned in folder.finished(job.out, job.plan):
        with contextlib.suppress(FileNotFoundError):  # another worker set it aside already
            if what := shard.damage(job.out, planned):
                path = folder.shard_path(job.out, planned)
                (job.out / "_SUCCESS").unlink(missing_ok=True)
                aside = folder.quarantine(job.out, path)
                print(f"batchgen: warning: {path}: {what}; moved to {aside}, to be made again", file=sys.stderr)


def _warn_of_other_versions(job: Job) -> None:
    """Results stay valid, but another vLLM may word them differently: say so once."""
    first = folder.read_job(job.out)
    if first and first.versions != job.record.versions:
        was, now = msgspec.json.encode(first.versions).decode(), msgspec.json.encode(job.record.versions).decode()
        print(f"batchgen: warning: this job was begun with {was} and goes on with {now}", file=sys.stderr)


def close(job: Job) -> dict[str, Any]:
    """Adds up the counts of all shards and writes `_SUCCESS`, unless it is there and says the same. Raises Stopped.

    A run that lets the job grow removes `_SUCCESS`, before and after: either it finds the one written here, or its
    growth is found here.
    """
    success = job.out / "_SUCCESS"
    with on_disk(job.out):
        totals = count(job.out, job.plan.shards)
        totals |= {"shards": len(job.plan.shards), "fingerprint": job.record.fingerprint}
        content = msgspec.json.format(msgspec.json.encode(totals), indent=1) + b"\n"
        if not success.exists() or success.read_bytes() != content:
            folder.publish(job.out, success, content)
            if _as_it_is_now(job) is not job:
                success.unlink(missing_ok=True)
    return totals


def count(out: Path, shards: list[Shard]) -> dict[str, Any]:
    """The accounting of finished shards, added up. Raises Stopped if a part of it is damaged."""
    totals: dict[str, Any] = {"rows": 0, "responses": 0, "rejects": {}, "prompt_tokens": 0, "response_tokens": 0}
    for planned in shards:
        try:
            part = shard.read_checksums(out, planned).counts
        except ValueError as error:
            path = folder.shard_path(out, planned)
            raise Stopped(f"{path}: its checksums are damaged ({error}); run the same command again") from None
        for reason, number in part.pop("rejects").items():
            totals["rejects"][reason] = totals["rejects"].get(reason, 0) + number
        for key, number in part.items():
            totals[key] += number
    return totals
