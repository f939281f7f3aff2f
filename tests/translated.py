"""Output folders of translations that no engine made."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
from faulty import spec_of

from batchgen.job.drift import fingerprint
from batchgen.job.sampling import Sampling
from batchgen.output import opening, shard
from batchgen.output.counts import Counts
from batchgen.output.record import JobRecord
from batchgen.runner.prepare import prepare
from batchgen.task.segment_rows import SegmentRow


def key_of(source: str) -> str:
    return hashlib.blake2b(source.encode(), digest_size=16).hexdigest()


def segment(source: str, answer: str | None = "訳", failed: Sequence[str] = (), **facts) -> SegmentRow:
    usual = {
        "row": 0,
        "path": "text",
        "tries": 1,
        "finish_reason": "stop",
        "seed": 1,
        "sampling": Sampling(),
        "uses": 1,
    }
    return SegmentRow(key=key_of(source), source=source, answer=answer, failed_checks=list(failed), **usual | facts)


def translated(
    out: Path, shards: Sequence[Sequence[SegmentRow]], table: dict | None = None, **sampling: object
) -> JobRecord:
    """A finished job of shards of one row, each with these segments. table: [translate]; sampling: of [sampling]"""
    source = out.with_suffix(".jsonl")
    source.write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(len(shards))))
    job = prepare(spec_of(source, out, shard_rows=1, **sampling))
    results = {**job.record.results, "translate": {"fields": ["text"], **(table or {})}}
    record = msgspec.structs.replace(job.record, results=results, fingerprint=fingerprint(results))
    opening.open_job(job.out, record)
    facts = {"fingerprint": record.fingerprint}
    for planned, segments in zip(job.plan.shards, shards, strict=True):
        answer = {"id": str(planned.index), "row": planned.index, "sample": 0, "seed": 1, "finish_reason": "stop"}
        answer |= {"prompt_tokens": 1, "response_tokens": 1}
        counts = Counts(rows=1, responses=1, prompt_tokens=1, response_tokens=1)
        shard.commit(job.out, planned, [answer], [], job.task.schema, counts, facts, segments)
    return record
