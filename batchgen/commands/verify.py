"""Proves a job's accounting: checksums, counts and ids of every shard against the job and its input."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ..errors import Reject, RejectReason, on_disk
from ..host import safeopen
from ..input import source
from ..input.source import Reader, Shard
from ..job.spec import JobSpec
from ..job.trust import refuse_risks
from ..output import folder, opening, owners, shard
from ..output.counts import Counts
from ..output.folder import JobRecord
from ..run.prepare import Job, prepare
from ..run.run import close, run
from ..task import item
from ..task.columns import ALWAYS, from_column

# Reasons that only the run knows: whether the engine failed on a row, what a check cost on that machine, and what was
# skipped then, whatever the job says now. Such rows are not made again: they may take this process with them.
UNFORESEEN: tuple[RejectReason, ...] = ("engine_error", "too_costly", "skipped")


@dataclass
class Verdict:
    """problems: one line each; the accounting closes if there are none. digest: over all shards and rejects; is_closed:
    whether `_SUCCESS` is there; closed: it was missing, and is there now."""

    counts: Counts = field(default_factory=Counts)
    problems: list[str] = field(default_factory=list)
    digest: str = ""
    is_closed: bool = False
    closed: bool = False


@dataclass(frozen=True)
class Writing:
    """What `verify` may do to a folder. quarantine: set damaged shards aside; close: write `_SUCCESS` where nothing
    else is missing; shared: it is a team's."""

    quarantine: bool = False
    close: bool = False
    shared: bool = False


def open_finished(out: Path) -> tuple[JobRecord, JobSpec]:
    """The job that a folder was made by, wherever the folder is now. Raises JobError."""
    record = folder.job_of(out)
    return record, folder.spec_of(out, record)


def grows(record: JobRecord) -> bool:
    """Whether the input may hold more than the job has read."""
    return bool(record.spec["input"].get("incremental") or record.plan.generation)


def verify(out: Path, writing: Writing = Writing()) -> Verdict:
    """Reads every shard and the whole input, and changes nothing but what it is told to.

    Raises JobError if input or model cannot be read, or if it is to write in a folder that is not ours.
    """
    if not (writing.quarantine or writing.close):
        return _verify(out, writing)
    with owners.writing(writing.shared):
        with on_disk(out):
            owners.check_folders(out, writing.shared)
        return _verify(out, writing)


def _verify(out: Path, writing: Writing) -> Verdict:
    record, spec = open_finished(out)
    verdict = Verdict()
    changed = source.changes(record.plan, trust_times=False, growing=grows(record))
    verdict.problems += [f"{path}: the input is not what the job read" for path in changed]
    if verdict.problems:
        return verdict
    job = prepare(spec, begun=record)
    known = {f"{planned.name}.parquet" for planned in record.plan.shards}
    strangers = [out / name for name in opening.part_names(out) if name not in known]
    verdict.problems += [f"{path}: is no shard of this job; move it away" for path in strangers]
    reader = item.reader(job)
    for planned in record.plan.shards:
        _verify_shard(job, planned, reader, verdict, writing.quarantine)
    if verdict.problems:
        return verdict
    verdict.digest = _digest(out, record.plan.shards)
    verdict.is_closed = _is_closed(out, record)
    if writing.close and not verdict.is_closed:
        close(job)
        verdict.is_closed = verdict.closed = True
    return verdict


def _digest(out: Path, shards: list[Shard]) -> str:
    """`sha256sum part-*.parquet _rejects/*.jsonl | sha256sum`: whoever keeps it needs no batchgen to compare."""
    places = [sorted(place(out, each) for each in shards) for place in (folder.shard_path, folder.rejects_path)]
    lines = []
    for path in itertools.chain(*places):
        with contextlib.suppress(FileNotFoundError), safeopen.reading(path) as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {path.relative_to(out)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_closed(out: Path, record: JobRecord) -> bool:
    """Whether `_SUCCESS` is there, and not that of a time before the job grew."""
    success = out / "_SUCCESS"
    return success.exists() and record.fingerprint.encode() in safeopen.read(success)


def _verify_shard(job: Job, planned: Shard, reader: Reader, verdict: Verdict, quarantine: bool) -> None:
    out = job.out
    path = folder.shard_path(out, planned)
    if not path.exists():
        verdict.problems.append(f"{path}: missing; run the job again")
        return
    if shard.is_foreign(out, planned, job.fingerprint_of(planned)):
        verdict.problems.append(f"{path}: is a shard of another job; move it away and run the job again")
        return
    if what := shard.damage(out, planned) or shard.wrong_content(out, planned, job.fingerprint_of(planned), ALWAYS):
        verdict.problems.append(f"{path}: {what}; {_set_aside(out, path) if quarantine else set_aside_by(out)}")
        return
    columns = ["row", "sample", "id", "seed", "prompt_tokens", "response_tokens"]
    answers = pq.read_table(path, columns=columns).to_pylist()
    rejects = shard.read_rejects(out, planned)
    verdict.counts += shard.counted(len(planned.row_numbers), answers, rejects)
    found = list(_found(answers, rejects))
    expected = list(_expected(job, planned, reader, {line["row"]: line for line in rejects}))
    for has, should in zip(found, expected, strict=False):
        if has != should:
            verdict.problems.append(f"{path}: has {has}, the input says {should}")
            return
    if len(found) != len(expected):
        verdict.problems.append(f"{path}: {len(found)} responses and rejects, the input says {len(expected)}")


def _set_aside(out: Path, path: Path) -> str:
    aside = folder.quarantine(out, path)
    (out / "_SUCCESS").unlink(missing_ok=True)
    return f"moved to {aside}; run the job again to make it again"


def set_aside_by(out: Path) -> str:
    return f"`batchgen verify {out} --quarantine` sets it aside, and the next run makes it again"


def _found(answers: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """What a shard and its rejects hold, by row and sample."""
    lines = [(line["row"], -1, line["id"], "rejected", line["reason"]) for line in rejects]
    lines += [(row["row"], row["sample"], row["id"], row["seed"], row["prompt_tokens"]) for row in answers]
    yield from sorted(lines, key=lambda line: line[:2])


def _expected(
    job: Job, planned: Shard, reader: Reader, rejected: dict[int, dict[str, Any]]
) -> Iterator[tuple[Any, ...]]:
    """What the input says they must hold. rejected: the shard's reject lines by row."""
    unmade = frozenset(row for row, line in rejected.items() if line["reason"] in UNFORESEEN)
    for row, items in item.make_all(reader.read(planned), dataclasses.replace(job, skip=unmade)):
        if row.number in unmade:
            line = rejected[row.number]
            id = line["id"] if line["id"] == str(row.number) else item.best_id(row, job)
            yield row.number, -1, id, "rejected", line["reason"]
        elif isinstance(items, Reject):
            yield row.number, -1, item.best_id(row, job), "rejected", items.reason
        else:
            for made in items:
                yield made.row, made.sample, made.id, made.seed, len(made.prompt_token_ids)


# --- replay


@dataclass(frozen=True)
class Replay:
    """matches: responses that came out the same; first: what differs in the first that did not."""

    items: int
    matches: int
    first: str


def check_engine(out: Path, given: dict[str, Any]) -> None:
    """Whoever made a folder must not say what code runs here. given: [engine] of the command line. Raises JobError."""
    refuse_risks(open_finished(out)[1].engine, f"{out}/_job.json", given)


def replay(out: Path, items: int, seed: int, given: dict[str, Any]) -> Replay:
    """Generates so many items of a finished job again, chosen by `seed`, and compares the responses. given: [engine]
    of the command line, which wins over the record's. Raises what `run` raises."""
    check_engine(out, given)
    record, spec = open_finished(out)
    columns = [
        "id",
        "row",
        "sample",
        "conversation",
        "response",
        "finish_reason",
        "response_tokens",
        "seed",
        "sampling",
    ]
    data = ds.dataset([str(path) for path in sorted(out.glob("part-*.parquet"))], format="parquet")
    total = data.count_rows()
    chosen = sorted(random.Random(seed).sample(range(total), min(items, total)))
    before = data.take(pa.array(chosen, pa.int64()), columns=columns).to_pylist()
    with tempfile.TemporaryDirectory(prefix="batchgen-replay-") as scratch:
        rows = Path(scratch) / "rows.jsonl"
        with rows.open("w", encoding="utf-8") as lines:
            for row in before:
                keep = {name: row[name] for name in ("id", "conversation", "seed", "sampling")}
                keep["sampling"] = from_column(row["sampling"])
                lines.write(json.dumps(keep, ensure_ascii=False) + "\n")
        tables = msgspec.to_builtins(spec)
        tables["input"] = {"path": [str(rows)], "id": "id"}
        tables["output"] = {"path": str(Path(scratch) / "out"), "shard_rows": max(1, len(before))}
        # Shards hold conversations as rendered.
        tables["prompt"] = {
            "format": record.settings["prompt"]["format"],
            "control_tokens": record.control_tokens,
        }
        tables["sampling"] |= {"n": 1}
        tables["engine"] |= given
        again = msgspec.convert(tables, JobSpec)
        run(again)
        after = ds.dataset(again.output.path).to_table(columns).to_pylist()
    return _compare(before, after)


def _compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Replay:
    different = [
        (was, now)
        for was, now in zip(before, after, strict=True)
        if any(was[name] != now[name] for name in ("response", "finish_reason", "response_tokens"))
    ]
    first = ""
    if different:
        was, now = different[0]
        first = f"row {was['row']} sample {was['sample']}: {was['response']!r} then, {now['response']!r} now"
    return Replay(len(before), len(before) - len(different), first)
