"""Output folders that no engine made, for pages about them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from faulty import spec_of

from batchgen.job.sampling import Sampling
from batchgen.output import opening, shard
from batchgen.output.counts import Counts
from batchgen.output.store import at
from batchgen.run.prepare import prepare
from batchgen.task.output_columns import as_column

SAMPLING = as_column(Sampling())
MADE_BY = {
    "model": {"name": "made-up", "revision": None, "digests": {}},
    "versions": {"batchgen": "0"},
    "dtype": "float32",
    "device": "cpu",
    "runner": "V1",
    "noise": "SplitMix64",
}


def response(row: int, text: str = "はい", **columns: Any) -> dict[str, Any]:
    usual = {
        "id": f"r{row}",
        "row": row,
        "sample": 0,
        "conversation": [{"speaker": "ユーザー", "text": f"question {row}"}],
        "response": text,
        "finish_reason": "stop",
        "prompt_tokens": 10 + row % 7,
        "truncated": 0,
        "response_tokens": len(text),
        "seed": 1,
        "sampling": SAMPLING,
    }
    return usual | columns


def reject(row: int, reason: str = "empty", detail: str = "it has no text", raw: str = "{}") -> dict[str, Any]:
    return {"row": row, "id": str(row), "reason": reason, "detail": detail, "raw": raw}


def answered(
    out: Path,
    shards: Iterable[Sequence[dict[str, Any]]],
    rows: int | None = None,
    shard_rows: int = 4,
    rejects: Sequence[dict[str, Any]] = (),
    made_by: dict[str, Any] = MADE_BY,
    **output: Any,
) -> Path:
    """A job with these rows in its finished shards, a shard for each sequence; of a reject its shard has the line.

    rows: of the input, if there are more than in the shards
    """
    shards = shards if rows else list(shards)
    source = out.with_suffix(".jsonl")
    number = rows or shard_rows * len(shards)  # type: ignore[arg-type]
    with source.open("w") as lines:
        lines.writelines(json.dumps({"text": f"row {row}"}) + "\n" for row in range(number))
    job = prepare(spec_of(source, out, shard_rows, output=output))
    opening.open_job(job.out, job.record)
    facts = {"fingerprint": job.record.fingerprint, **made_by}
    for planned, answers in zip(job.plan.shards, shards, strict=False):
        lines = [line for line in rejects if line["row"] in planned.row_numbers]
        counts = Counts(
            rows=len({each["row"] for each in answers}) + len(lines),
            responses=len(answers),
            rejects={reason: 1 for reason in sorted({line["reason"] for line in lines})},
            prompt_tokens=sum(each["prompt_tokens"] for each in answers),
            response_tokens=sum(each["response_tokens"] for each in answers),
        )
        shard.commit(at(out), planned, list(answers), lines, job.task.schema, counts, facts)
    return out
