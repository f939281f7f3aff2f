"""A new job for the rows of a finished one that went wrong, with changed parameters."""

from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import REJECT_REASONS, JobError
from ..input.plan import changed_files, only_rows
from ..job.sampling import FINISH_REASONS
from ..job.spec import JobSpec, load, nearest
from ..job.trust import refuse_risks
from ..output import record as records
from ..output import shard, store
from ..output.quarantine import set_aside_by
from ..output.record import JobRecord
from ..output.store import Place, Store
from ..runner.outcome import Outcome
from ..runner.prepare import Job, prepare
from ..runner.run import run_job
from ..task.output_columns import always
from .verify import grows, open_finished


def check_reasons(only: str) -> list[str]:
    """The finish reasons and reject reasons of a comma-separated list. Raises JobError."""
    reasons = [reason.strip() for reason in only.split(",") if reason.strip()]
    known = (*FINISH_REASONS, *REJECT_REASONS)
    for reason in reasons:
        if reason not in known:
            raise JobError(f"--only {reason}: no such reason{nearest(reason, known)}")
    if not reasons:
        raise JobError(f"--only: name one or more of {', '.join(known)}")
    return reasons


def retry(out: Place, only: str, flags: dict[str, dict[str, Any]]) -> Outcome:
    """Generates the rows of `out` that ended for one of these reasons, in a new output folder.

    Rows keep number, id and thus seed, so that old and new can be joined. Raises what `run` raises.
    """
    reasons = check_reasons(only)
    place = store.at(out)
    record, old = open_finished(place)
    if old.translate.fields:
        raise JobError(
            f"{out}: segments that fail were tried again already; for further tries with other parameters make a job "
            "of the same input with [translate] memory naming this folder, which generates just those"
        )
    if "shard_rows" in flags.get("output", {}):
        raise JobError("--shard-rows: a retry keeps the shards of its job")
    refuse_risks(old.engine, records.where(place), flags.get("engine", {}))
    spec = _changed(old, flags)
    if _is_same(spec.output.path, place.location):
        raise JobError(f"--output {out}: a retry needs a folder of its own")
    if changed := changed_files(record.plan, trust_times=True, growing=grows(record)):
        raise JobError(f"{changed[0]}: is not what the job of {out} read; its rows cannot be found again")
    rows = _rows_that_ended(place, record, old, reasons)
    if not rows:
        raise JobError(f"{out}: no row ended with {' or '.join(reasons)}; there is nothing to retry")

    def prepared() -> Job:
        job = prepare(spec, only_rows(record.plan, rows))
        job.record.retry_of = {"path": place.location, "fingerprint": record.fingerprint, "only": reasons}
        return job

    return run_job(spec, prepared)


def _is_same(one: str, other: str) -> bool:
    return one.rstrip("/") == other or Path(one).resolve() == Path(other).resolve()


def _changed(old: JobSpec, flags: dict[str, dict[str, Any]]) -> JobSpec:
    """The old job's spec with the flags on top."""
    tables = msgspec.to_builtins(old)
    tables["output"].pop("path")
    tables["output"].pop("shared")  # who handed the old folder over does not say so of the new one
    tables["input"].pop("limit")
    tables["input"].pop("skip")  # its rows may be what is tried again
    if "path" in flags.get("model", {}):
        tables["model"].pop("revision")  # the other model's
    merged = {table: {**values, **flags.get(table, {})} for table, values in tables.items()}
    return load(None, merged)


def _rows_that_ended(out: Store, record: JobRecord, spec: JobSpec, reasons: list[str]) -> set[int]:
    finished = shard.finished(out, record.plan)
    made_by, survey = records.fingerprints(record), shard.Survey(out, finished)
    for planned in finished:
        fingerprint = made_by[record.plan.files[planned.file].growth]
        if what := survey.damage(planned) or shard.wrong_content(out, planned, fingerprint, always(spec)):
            raise JobError(f"{shard.where(out, planned)}: {what}; {set_aside_by(out)}")
    rows: set[int] = set()
    for planned in finished:
        if spec.score.mode == "off":  # a score does not end
            answers = shard.read(out, planned, ["row", "finish_reason"])
            ended = answers.filter(pc.is_in(answers["finish_reason"], pa.array(reasons)))
            rows.update(ended["row"].to_pylist())
        rows.update(line["row"] for line in shard.read_rejects(out, planned) if line["reason"] in reasons)
    return rows
