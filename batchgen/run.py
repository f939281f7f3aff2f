"""One run of a job: prepare, start the engine, generate what is missing, close the accounting."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from . import folder, shard
from .engine import Engine, quiet
from .errors import JobError, MachineError
from .job import JobSpec
from .prepare import Job, prepare
from .progress import Progress, Totals
from .source import Shard
from .worker import Worker


@dataclass(frozen=True)
class Outcome:
    """totals: what this run did; counts: the whole job's accounting; seconds: of this run, and of its engine start."""

    out: Path
    totals: Totals
    counts: dict[str, Any]
    seconds: float = 0.0
    engine_start: float = 0.0


def run(spec: JobSpec) -> Outcome:
    """Brings a job to its end. Raises JobError, MachineError, or KeyboardInterrupt between two engine steps."""
    begin = time.monotonic()
    job = prepare(spec)
    folder.open_job(job.out, job.record)
    done = folder.finished(job.out, len(job.plan.shards))
    missing = [planned for planned in job.plan.shards if planned.index not in done]
    totals, engine_start = Totals(), 0.0
    if missing:
        _warn_of_other_versions(job)
        totals, engine_start = _generate(job, missing)
    return Outcome(job.out, totals, close(job), time.monotonic() - begin, engine_start)


def _generate(job: Job, missing: list[Shard]) -> tuple[Totals, float]:
    log = job.out / "_state" / "engine.log"
    rows_done = job.plan.rows - sum(planned.rows for planned in missing)
    begin = time.monotonic()
    with quiet(log) as console:
        try:
            engine = Engine(job.model, job.spec.engine, job.context)
            engine_start = time.monotonic() - begin
            progress = Progress(console, job.plan.rows, rows_done)
            worker = Worker(job, engine, progress)
            try:
                worker.run(missing)
            finally:
                progress.close(worker.totals)
        except (JobError, OSError):
            raise
        except Exception as error:  # vLLM raises whatever its parts raise; the log has the traceback
            sys.excepthook(type(error), error, error.__traceback__)
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise MachineError(f"the engine failed: {reason}; the whole story is in {log}") from error
    return worker.totals, engine_start


def _warn_of_other_versions(job: Job) -> None:
    """Results stay valid, but another vLLM may word them differently: say so once."""
    first = folder.read_job(job.out)
    if first and first.versions != job.record.versions:
        was, now = msgspec.json.encode(first.versions).decode(), msgspec.json.encode(job.record.versions).decode()
        print(f"warning: this job was begun with {was} and goes on with {now}", file=sys.stderr)


def close(job: Job) -> dict[str, Any]:
    """Adds up the counts of all shards and writes `_SUCCESS`, unless it is there."""
    success = job.out / "_SUCCESS"
    if success.exists():
        return msgspec.json.decode(success.read_bytes())
    count = len(job.plan.shards)
    totals: dict[str, Any] = {"rows": 0, "responses": 0, "rejects": {}, "prompt_tokens": 0, "response_tokens": 0}
    for index in range(count):
        part = shard.read_counts(job.out / folder.shard_name(index, count))
        for reason, number in part.pop("rejects").items():
            totals["rejects"][reason] = totals["rejects"].get(reason, 0) + number
        for key, number in part.items():
            totals[key] += number
    totals |= {"shards": count, "fingerprint": job.record.fingerprint}
    folder.publish(job.out, success, msgspec.json.format(msgspec.json.encode(totals), indent=1) + b"\n")
    return totals
