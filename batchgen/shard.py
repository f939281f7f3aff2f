"""Shards: the output schema, the commit, and reading their facts back."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from .conversation import Row
from .engine import Response
from .errors import Reject
from .folder import publish, shard_name
from .item import Item
from .source import TYPES, Shard
from .tokenizer import Tokenizer

PREFIX = "batchgen."

_SAMPLING = pa.struct(
    [
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("top_k", pa.int32()),
        ("min_p", pa.float64()),
        ("repetition_penalty", pa.float64()),
        ("presence_penalty", pa.float64()),
        ("frequency_penalty", pa.float64()),
        ("max_tokens", pa.int32()),
        ("min_tokens", pa.int32()),
        ("ignore_eos", pa.bool_()),
        ("stop_token_ids", pa.list_(pa.int32())),
    ]
)
_COLUMNS = [
    ("id", pa.string()),
    ("row", pa.int64()),
    ("sample", pa.int32()),
    ("conversation", pa.list_(pa.struct([("speaker", pa.string()), ("text", pa.string())]))),
    ("response", pa.string()),
    ("finish_reason", pa.string()),
    ("prompt_tokens", pa.int32()),
    ("response_tokens", pa.int32()),
    ("seed", pa.int64()),
    ("sampling", _SAMPLING),
]
_OPTIONAL = {
    "prompt": pa.string(),
    "prompt_token_ids": pa.list_(pa.int32()),
    "response_token_ids": pa.list_(pa.int32()),
}
RESERVED = frozenset([*(name for name, _ in _COLUMNS), *_OPTIONAL])


def schema(include: Iterable[str], columns: dict[str, str | pa.DataType]) -> pa.Schema:
    """The columns of every shard of a job: fixed ones, passed-through ones, optional ones."""
    passed = [(name, TYPES[kind] if isinstance(kind, str) else kind) for name, kind in columns.items()]
    return pa.schema([*_COLUMNS, *passed, *((name, _OPTIONAL[name]) for name in _OPTIONAL if name in include)])


def output_row(item: Item, response: Response, tokenizer: Tokenizer) -> dict[str, Any]:
    """One row of a shard, with all optional columns; the schema picks."""
    return {
        "id": item.id,
        "row": item.row,
        "sample": item.sample,
        "conversation": [utterance._asdict() for utterance in item.conversation],
        "response": tokenizer.decode(response.token_ids),
        "finish_reason": response.finish_reason,
        "prompt_tokens": len(item.prompt_token_ids),
        "response_tokens": len(response.token_ids),
        "seed": item.seed,
        "sampling": msgspec.structs.asdict(item.sampling),
        **item.columns,
        "prompt": item.prompt,
        "prompt_token_ids": item.prompt_token_ids,
        "response_token_ids": response.token_ids,
    }


def reject_line(row: Row, id: str, reject: Reject) -> dict[str, Any]:
    return {
        "row": row.number,
        "id": id,
        "reason": reject.reason,
        "detail": reject.detail,
        "raw": row.raw_text(),
    }


def counts(rows: int, answers: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> dict[str, Any]:
    """A shard's accounting: rows = rows with all samples + rejected rows."""
    reasons = sorted(line["reason"] for line in rejects)
    return {
        "rows": rows,
        "responses": len(answers),
        "rejects": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        "prompt_tokens": sum(answer["prompt_tokens"] for answer in answers),
        "response_tokens": sum(answer["response_tokens"] for answer in answers),
    }


def commit(
    out: Path,
    count: int,
    shard: Shard,
    answers: list[dict[str, Any]],
    rejects: list[dict[str, Any]],
    shape: pa.Schema,
    facts: dict[str, Any],
) -> None:
    """Makes a shard of the job's `count` shards final: its rejects first, then its Parquet file.

    Nothing in it depends on time, so whoever commits the same shard writes the same bytes.
    """
    if rejects:
        lines = b"".join(msgspec.json.encode(line) + b"\n" for line in sorted(rejects, key=lambda line: line["row"]))
        publish(out, out / "_rejects" / shard_name(shard.index, count, "jsonl"), lines)
    answers = sorted(answers, key=lambda answer: (answer["row"], answer["sample"]))
    table = pa.Table.from_pylist(answers, schema=shape)
    about = {
        "shard": shard.index,
        "first_row": shard.first_row,
        "counts": counts(shard.rows, answers, rejects),
        **facts,
    }
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, shape, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({PREFIX + key: _text(value) for key, value in about.items()})
    publish(out, out / shard_name(shard.index, count), memoryview(sink.getvalue()))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, order="deterministic").decode()


def read_counts(path: Path) -> dict[str, Any]:
    """The accounting of a finished shard."""
    metadata = pq.read_metadata(path).metadata
    return msgspec.json.decode(metadata[f"{PREFIX}counts".encode()])
