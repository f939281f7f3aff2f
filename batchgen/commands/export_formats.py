"""The forms in which results are exported, each a function that makes a file or folder of them, synced."""

import heapq
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError, warn
from ..host.safeopen import sync_folder
from ..input import ids
from ..input.plan import COMPRESSION_BY_ENDING, Shard
from ..output import shard
from . import dataset_card
from .results import Results

ROW_GROUP_BYTES = 32 << 20  # of Arrow data
HF_FILE_BYTES = 256 << 20  # of shards that go into one file; hubs and readers are slow with thousands of small ones
HF_NAMES = ("README.md", "data", "data/train-*-of-*.parquet")


# --- Parquet


def _parquet(results: Results, made: Path) -> None:
    _write_parquet(results, results.shards, made)


def _write_parquet(results: Results, shards: list[Shard], made: Path) -> None:
    """One file; its metadata are those of the shards, in a JSON list where they differ."""
    about = {name: values[0] if len(values) == 1 else _json(values) for name, values in results.facts.items()}
    about["counts"] = _json(msgspec.to_builtins(results.counts))
    about["shards"] = f"{len(results.shards)} of {len(results.record.plan.shards)}"
    with made.open("wb") as stream, pq.ParquetWriter(stream, results.schema, compression="zstd") as writer:
        for batches in _row_groups(results.batches(shards, results.schema.names)):
            writer.write_table(pa.Table.from_batches(batches).replace_schema_metadata(None))
        writer.add_key_value_metadata({shard.PREFIX + name: value for name, value in about.items()})
    sync_folder(made)


def _row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Batches in groups of about ROW_GROUP_BYTES."""
    group, size = [], 0
    for batch in batches:
        group.append(batch)
        size += batch.nbytes
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


# --- JSON lines


def _jsonl(results: Results, made: Path) -> None:
    are_lines = results.is_of_lines and results.schema.names == ["record"]
    with _text_file(made) as write:
        for row in _rows(results, results.shards, results.schema.names):
            # An element of a JSON file may go over several lines.
            write(msgspec.Raw(row["record"].replace("\n", " ").encode()) if are_lines else row)


def _rows(results: Results, shards: Iterable[Shard], columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows as JSON has them: columns of type json are the values they hold the text of."""
    passed = results.record.settings["output"]["columns"]
    is_text = {field.name for field in results.schema if pa.types.is_string(field.type)}
    json_columns = [name for name in columns if passed.get(name) == "json" and name in is_text]
    for batch in results.batches(shards, columns):
        for row in _without_nanoseconds(batch).to_pylist():
            for name in json_columns:
                if row[name] is not None:
                    row[name] = msgspec.Raw(row[name].encode())
            yield row


def _without_nanoseconds(batch: pa.RecordBatch) -> pa.Table:
    """Python's times end at microseconds: what lies below needs pandas, and would depend on its being there."""
    table = pa.Table.from_batches([batch])
    for index, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            micro = table.column(index).cast(pa.timestamp("us", field.type.tz), safe=False)
            table = table.set_column(index, field.name, micro)
    return table


@contextmanager
def _text_file(made: Path) -> Iterator[Callable[[Any], object]]:
    """Gives a function that writes a value as a line of JSON. The ending tells the compression, if any."""
    encoder = msgspec.json.Encoder(enc_hook=str)
    with made.open("wb") as stream:
        if made.suffix in COMPRESSION_BY_ENDING:
            with pa.CompressedOutputStream(stream, COMPRESSION_BY_ENDING[made.suffix]) as compressed:
                yield lambda value: compressed.write(encoder.encode(value) + b"\n")
        else:
            yield lambda value: stream.write(encoder.encode(value) + b"\n")
    sync_folder(made)


# --- OpenAI's batch output


def _openai_batch(results: Results, made: Path) -> None:
    """A line per row; its samples are the choices of one completion, and a rejected row is an error."""
    model = msgspec.json.decode(results.facts["model"][0])["name"]
    columns = ["id", "row", "response", "finish_reason", "prompt_tokens", "response_tokens", "sampling"]
    columns += [name for name in ("logprobs", "adapter") if name in results.schema.names]
    columns += ["reasoning"] if results.record.settings["model"].get("reasoning_parser") else []
    named = array("q")
    with _text_file(made) as write:
        for planned in results.shards:
            rows = itertools.groupby(_rows(results, [planned], columns), itemgetter("row"))
            answers = ((number, list(samples)) for number, samples in rows)
            rejects = ((line["row"], [line]) for line in shard.read_rejects(results.out, planned))
            for number, lines in heapq.merge(answers, rejects, key=itemgetter(0)):
                named.append(ids.digest(lines[0]["id"]))
                write(_openai_line(f"{results.record.fingerprint}-{number}", model, lines))
    if repeated := len(ids.repeats(named)):
        warn(f"{repeated:,} line(s) have the custom_id of an earlier line; the rows had one id")


def _openai_line(name: str, model: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """name: of the row in this job, from which all ids are made; lines: its samples, or its one reject line."""
    first, response, error = lines[0], None, None
    if "reason" in first:
        error = {"code": first["reason"], "message": first["detail"]}
    else:
        response = {"status_code": 200, "request_id": f"req_{name}", "body": _completion(name, model, lines)}
    return {"id": f"batch_req_{name}", "custom_id": first["id"], "response": response, "error": error}


def _completion(name: str, model: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    prompt, response = samples[0]["prompt_tokens"], sum(sample["response_tokens"] for sample in samples)
    adapter = samples[0].get("adapter")
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": 0,  # must be a number; results hold no times, so that they are the same whenever they are made
        "model": f"{model}:{adapter}" if adapter else model,
        "choices": [
            {
                "index": index,
                "message": _message(sample),
                "logprobs": _openai_logprobs(sample),
                "finish_reason": sample["finish_reason"],
            }
            for index, sample in enumerate(samples)
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": response, "total_tokens": prompt + response},
    }


def _message(sample: dict[str, Any]) -> dict[str, Any]:
    """`reasoning` is as vLLM's server has it: OpenAI's has no such field."""
    thought = {"reasoning": sample["reasoning"]} if "reasoning" in sample else {}
    return {"role": "assistant", "content": sample["response"], "refusal": None, **thought}


def _openai_logprobs(sample: dict[str, Any]) -> dict[str, Any] | None:
    """Shards hold no texts of tokens: they go by their ids, as with vLLM's return_tokens_as_token_ids."""
    if sample.get("logprobs") is None:
        return None
    most = sample["sampling"]["logprobs"]
    steps = []
    for step in sample["logprobs"]:
        tokens = [
            # OpenAI's number for tokens that could not come: JSON has no infinity.
            {"token": f"token_id:{each['token_id']}", "logprob": max(each["logprob"], -9999.0), "bytes": None}
            for each in step
        ]
        likeliest = sorted(tokens, key=lambda token: -token["logprob"])[:most]
        steps.append({**tokens[0], "top_logprobs": likeliest})
    return {"content": steps, "refusal": None}


# --- a Hugging Face dataset


def _hugging_face(results: Results, made: Path) -> None:
    if not results.counts.responses:
        raise JobError(f"{results.out}: has no responses, and Hugging Face datasets opens no dataset without rows")
    data = made / "data"
    data.mkdir(parents=True)
    files = _hf_files(results)
    for index, shards in enumerate(files):
        _write_parquet(results, shards, data / f"train-{index:05}-of-{len(files):05}.parquet")
    text = dataset_card.text(made.name, results.record, results.counts, results.facts, results.schema, results.missing)
    (made / "README.md").write_bytes(text.encode())
    for path in (made / "README.md", data, made):
        sync_folder(path)


def _hf_files(results: Results) -> list[list[Shard]]:
    """The shards of each file, about HF_FILE_BYTES of them."""
    files: list[list[Shard]] = []
    room = 0
    for planned in results.shards:
        size = shard.size(results.out, planned)
        if not files or size > room:
            files.append([])
            room = HF_FILE_BYTES
        files[-1].append(planned)
        room -= size
    return files


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


WRITERS = {"parquet": _parquet, "jsonl": _jsonl, "openai-batch": _openai_batch, "hf": _hugging_face}
