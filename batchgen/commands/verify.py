"""Proves a job's accounting: checksums, counts and ids of every shard against the job and its input."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import Reject, RejectReason
from ..input.plan import Shard, changed_files, gone, shards_from
from ..input.rows import Reader
from ..job.spec import JobSpec
from ..output import opening, owners, record, shard, store, success
from ..output.counts import Counts
from ..output.quarantine import set_aside_by
from ..output.record import JobRecord
from ..output.store import Place, Store
from ..runner.prepare import Job, prepare
from ..runner.run import close
from ..task.flow import work_of
from ..task.generate import Generate, Prompted
from ..task.output_columns import SETTING, always
from ..task.score import Score, Scored
from ..task.sweep import Swept
from ..task.translate import Translate
from . import verify_translation

# Reasons that only the run knows: whether the engine failed on a row, what a check cost on that machine, and what was
# skipped then, whatever the job says now. Such rows are not made again: they may take this process with them.
UNFORESEEN: tuple[RejectReason, ...] = ("engine_error", "too_costly", "skipped", "check_failed", "check_error")


@dataclass
class Verdict:
    """problems: one line each; the accounting closes if there are none. digest: over all shards and rejects; is_closed:
    whether `_SUCCESS` is there; closed: it was missing, and is there now; alone: shards that could not be compared with
    their input, as that is gone and may be."""

    counts: Counts = field(default_factory=Counts)
    problems: list[str] = field(default_factory=list)
    digest: str = ""
    is_closed: bool = False
    closed: bool = False
    alone: int = 0


def document(verdict: Verdict) -> dict[str, Any]:
    """A verdict for programs."""
    return {"verified": not verdict.problems, **dataclasses.asdict(verdict)}


@dataclass(frozen=True)
class Writing:
    """What `verify` may do to a folder. quarantine: set damaged shards aside; close: write `_SUCCESS` where nothing
    else is missing; shared: it is a team's."""

    quarantine: bool = False
    close: bool = False
    shared: bool = False


def open_finished(out: Store) -> tuple[JobRecord, JobSpec]:
    """The job that a folder was made by, wherever the folder is now. Raises JobError."""
    job = record.job_of(out)
    return job, record.spec_of(out, job)


def grows(job: JobRecord) -> bool:
    """Whether the input may hold more than the job has read."""
    return bool(job.spec["input"].get("incremental") or job.plan.growth)


def verify(out: Place, writing: Writing = Writing()) -> Verdict:
    """Reads every shard and the whole input, and changes nothing but what it is told to.

    Raises JobError if input or model cannot be read, or if it is to write in a folder that is not ours.
    """
    place = store.at(out)
    if not (writing.quarantine or writing.close):
        return _verify(place, writing)
    with owners.writing(writing.shared):
        place.check(writing.shared)
        return _verify(place, writing)


def _verify(out: Store, writing: Writing) -> Verdict:
    begun, spec = open_finished(out)
    verdict = Verdict()
    alone = set() if spec.input.keep else shards_from(begun.plan, gone(begun.plan))
    changed = changed_files(begun.plan, trust_times=False, growing=grows(begun)) if spec.input.keep else []
    verdict.problems += [f"{path}: the input is not what the job read" for path in changed]
    if verdict.problems:
        return verdict
    job = prepare(spec, begun=begun)
    verdict.problems += [f"{path}: is no shard of this job; move it away" for path in opening.strangers(out, begun)]
    reader, survey = job.reader(), shard.Survey(out, begun.plan.shards)
    for planned in begun.plan.shards:
        read_by = None if planned.index in alone else reader
        _verify_shard(job, planned, survey, read_by, verdict, writing.quarantine)
    if verdict.problems:
        return verdict
    verdict.digest = shard.digest_of_all(out, begun.plan.shards)
    verdict.is_closed = success.is_of(out, begun.fingerprint)
    if writing.close and not verdict.is_closed:
        close(job)
        verdict.is_closed = verdict.closed = True
    return verdict


def _verify_shard(
    job: Job, planned: Shard, survey: shard.Survey, reader: Reader | None, verdict: Verdict, quarantine: bool
) -> None:
    """reader: None if the input of the shard is gone"""
    out = job.out
    path = shard.where(out, planned)
    if not survey.is_there(planned):
        verdict.problems.append(f"{path}: missing; run the job again")
        return
    if survey.is_foreign(planned, job.fingerprint_of(planned)):
        verdict.problems.append(f"{path}: is a shard of another job; move it away and run the job again")
        return
    if what := survey.damage(planned) or shard.wrong_content(
        out, planned, job.fingerprint_of(planned), always(job.spec)
    ):
        verdict.problems.append(f"{path}: {what}; {_set_aside(out, planned) if quarantine else set_aside_by(out)}")
        return
    if reader is None:
        verdict.alone += 1
        verdict.counts += survey.checksums(planned).counts
        rows = _rows_in(job, planned)
        if rows is not None and rows != set(planned.row_numbers):
            verdict.problems.append(f"{path}: its {len(rows)} rows are not the {planned.rows} that were planned")
        return
    if isinstance(job.task, Translate):
        counts, wrong = verify_translation.problem(job, job.task, planned, reader, UNFORESEEN)
        verdict.counts += counts
        verdict.problems += [f"{path}: {wrong}"] if wrong else []
        return
    scores = isinstance(job.task, Score)
    columns = ["id", "prompt_tokens", *(["row", "scores"] if scores else [*_named_by(job.spec), "seed"])]
    columns += ["images"] if job.spec.input.image else []
    answers = shard.read(out, planned, columns).to_pylist()
    rejects = shard.read_rejects(out, planned)
    reasons = Counter(line["reason"] for line in rejects)
    verdict.counts += Counts(rows=len(planned.row_numbers), responses=len(answers), rejects=dict(reasons))
    found = list(_found(answers, rejects))
    seeds = {} if scores else {_name(row): row["seed"] for row in answers}
    expected = list(_expected(job, planned, reader, {line["row"]: line for line in rejects}, seeds))
    for has, should in zip(found, expected, strict=False):
        if has != should:
            verdict.problems.append(f"{path}: has {has}, the input says {should}")
            return
    if len(found) != len(expected):
        verdict.problems.append(f"{path}: {len(found)} responses and rejects, the input says {len(expected)}")


def _rows_in(job: Job, planned: Shard) -> set[int] | None:
    """The rows that a shard answers or rejects; None of a translation, which does not number them."""
    if isinstance(job.task, Translate):
        return None
    rejected = {line["row"] for line in shard.read_rejects(job.out, planned)}
    return rejected | set(shard.read(job.out, planned, ["row"])["row"].to_pylist())


def _set_aside(out: Store, planned: Shard) -> str:
    aside = shard.set_aside(out, planned)
    success.remove(out)
    return f"moved to {aside}; run the job again to make it again"


def _named_by(spec: JobSpec) -> list[str]:
    """The columns by which a response is one of its row's."""
    return ["row", *([SETTING] if spec.sweep.method else []), "sample"]


def _name(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[column] for column in ("row", SETTING, "sample") if column in row)


def _found(answers: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """What a shard and its rejects hold, by row, setting and sample."""
    lines: list[tuple[Any, ...]] = [(line["row"], -1, line["id"], "rejected", line["reason"]) for line in rejects]
    lines += [
        (row["row"], 0, row["id"], row["prompt_tokens"], *((each["text"], each["tokens"]) for each in row["scores"]))
        if "scores" in row
        else (*_name(row), row["id"], row["seed"], row["prompt_tokens"], *_digests(row))
        for row in answers
    ]
    yield from sorted(lines, key=lambda line: line[:3])


def _digests(row: dict[str, Any]) -> list[str]:
    """Of the images that a response was made of."""
    return [image["sha256"] for image in row.get("images") or ()]


def _expected(
    job: Job,
    planned: Shard,
    reader: Reader,
    rejected: dict[int, dict[str, Any]],
    seeds: dict[tuple[int, ...], int],
) -> Iterator[tuple[Any, ...]]:
    """What the input says they must hold. rejected: the shard's reject lines by row; seeds: its responses', by name,
    each of which may be that of any try."""
    unmade = frozenset(row for row, line in rejected.items() if line["reason"] in UNFORESEEN)
    task = dataclasses.replace(job.task, skip=unmade)  # type: ignore[type-var]
    for row, work in work_of(task, reader, [planned]):
        if row.number in unmade:
            line = rejected[row.number]
            id = line["id"] if line["id"] == str(row.number) else task.id_of(row)
            yield row.number, -1, id, "rejected", line["reason"]
        elif isinstance(work, Reject):
            yield row.number, -1, task.id_of(row), "rejected", work.reason
        elif isinstance(work, Scored):
            scored = ((target.text, len(target.token_ids)) for target in work.targets)
            yield row.number, 0, work.id, len(work.prompted.prompt_token_ids), *scored
        elif isinstance(work, Swept):
            for setting, generate in enumerate(job.task.generates):  # type: ignore[attr-defined]
                yield from _of_setting(generate, work.made[setting], (row.number, setting), seeds)
        else:
            yield from _of_setting(job.generate, work, (row.number,), seeds)


def _of_setting(
    generate: Generate, made: Prompted, name: tuple[int, ...], seeds: dict[tuple[int, ...], int]
) -> Iterator[tuple[Any, ...]]:
    """The responses of a row with its setting, which a plain job has one of. name: of both"""
    requests = made.requests
    if generate.spec.sampling.rerank:  # one of the samples, whichever the model found likeliest
        requests = [each for each in requests if (*name, each.name.sample) in seeds] or requests[:1]
    for request in requests:
        found = seeds.get(full := (*name, request.name.sample))
        seed = found if found in generate.seeds_of(made, request) else request.seed
        yield *full, made.id, seed, len(request.prompt_token_ids), *(image.digest for image in made.images)
