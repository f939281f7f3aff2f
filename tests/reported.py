"""Output folders that no engine made, and pages about them."""

import base64
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from conftest import MODEL

from batchgen.job.sampling import Sampling
from batchgen.job.spec import load
from batchgen.output import opening, shard
from batchgen.output.counts import Counts
from batchgen.output.store import at
from batchgen.runner.prepare import prepare
from batchgen.task.output_columns import as_column
from batchgen.task.segment_rows import SegmentRow

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
    given: dict[str, Any] | None = None,
    segmented: Sequence[Sequence[SegmentRow]] = (),
    **tables: dict[str, Any],
) -> Path:
    """A job with these rows in its finished shards, a shard for each sequence; of a reject its shard has the line.

    rows: of the input, if there are more than in the shards; given: what each of them
    has beside its text; tables: of the job file; segmented: of a translation, the segments of each shard
    """
    shards = shards if rows else list(shards)
    source = out.with_suffix(".jsonl")
    number = rows or shard_rows * len(shards)  # type: ignore[arg-type]
    with source.open("w") as lines:
        lines.writelines(json.dumps({"text": f"row {row}", **(given or {})}) + "\n" for row in range(number))
    tables["output"] = {"path": str(out), "shard_rows": shard_rows, **tables.get("output", {})}
    tables |= {"input": {"path": [str(source)]}, "model": {"path": str(MODEL)}}
    job = prepare(load(None, tables))
    opening.open_job(job.out, job.record)
    facts = {"fingerprint": job.record.fingerprint, **made_by}
    for planned, answers in zip(job.plan.shards, shards, strict=False):
        segments = segmented[planned.index] if segmented else ()
        lines = [line for line in rejects if line["row"] in planned.row_numbers]
        counts = Counts(
            rows=len({each["row"] for each in answers}) + len(lines),
            responses=len(answers),
            rejects={reason: 1 for reason in sorted({line["reason"] for line in lines})},
            prompt_tokens=sum(each.get("prompt_tokens", 0) for each in answers),
            response_tokens=sum(each.get("response_tokens", 0) for each in answers),
        )
        if segments:
            counts.segments = len(segments)
            counts.failed_segments = sum(bool(each.failed_checks) for each in segments)
        shard.commit(at(out), planned, list(answers), lines, job.task.schema, counts, facts, segments)
    return out


class Parsed(HTMLParser):
    """tags: of all elements; attributes: their names and values; texts: what stands in none of the page's own parts."""

    def __init__(self, page: bytes):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.texts = ""
        self._inside = ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside in ("script", "style"):
            self.scripts.append(data)
        else:
            self.texts += data

    @property
    def data(self) -> dict:
        return json.loads(gzip.decompress(base64.b64decode(self.scripts[1])))
