"""The forms in which results are exported, each a function that makes a file or folder of them, synced."""

import csv
import heapq
import itertools
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError, warn
from ..host.safeopen import sync_folder
from ..input import ids
from ..input.conversation import ASSISTANT, SYSTEM, USER
from ..input.plan import COMPRESSION_BY_ENDING, Shard
from ..output import shard
from . import dataset_card
from .results import Results

ROW_GROUP_BYTES = 32 << 20  # of Arrow data
HF_FILE_BYTES = 256 << 20  # of shards that go into one file; hubs and readers are slow with thousands of small ones
STDOUT = Path("-")
HF_NAMES = ("README.md", "data", "data/train-*-of-*.parquet")
_JSON = msgspec.json.Encoder(enc_hook=str)


def check_taken(place: object, is_other_kind: bool, wants_folder: bool, overwrite: bool) -> None:
    """Raises JobError where what has the name of an export, on a disk or in a bucket, must not go. is_other_kind: it is
    a folder where a file is wanted, or the reverse"""
    if is_other_kind:
        raise JobError(f"{place}: is not a {'folder' if wants_folder else 'file'}; name another one")
    if not overwrite:
        raise JobError(f"{place}: is there already; give --overwrite to replace it")


def check_ours(place: object, names: Iterable[str]) -> None:
    """Raises JobError where a folder holds what no export of ours has put there, and what must not go with it."""
    if others := sorted(name for name in names if not any(PurePosixPath(name).match(ours) for ours in HF_NAMES)):
        raise JobError(f"{place}: holds something else ({', '.join(others[:3])}); name another folder")


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


# --- text, line by line


@contextmanager
def _stream(made: Path) -> Iterator[Any]:
    """A binary stream to a new file, or to stdout. The ending tells the compression, if any."""
    if made == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with made.open("wb") as stream:
        if made.suffix in COMPRESSION_BY_ENDING:
            with pa.CompressedOutputStream(stream, COMPRESSION_BY_ENDING[made.suffix]) as compressed:
                yield compressed
        else:
            yield stream
    sync_folder(made)


@contextmanager
def _lines(made: Path) -> Iterator[Callable[[Any], object]]:
    """Gives a function that writes a value as a line of JSON."""
    with _stream(made) as stream:
        yield lambda value: stream.write(_JSON.encode(value) + b"\n")


def _jsonl(results: Results, made: Path) -> None:
    are_lines = results.is_of_lines and results.schema.names == ["record"]
    with _lines(made) as write:
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


def _csv(results: Results, made: Path, delimiter: str = ",") -> None:
    """Lists and objects are JSON in a cell."""
    with _stream(made) as stream:
        text = SimpleNamespace(write=lambda line: stream.write(line.encode()))
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        writer.writerow(results.schema.names)
        for row in _rows(results, results.shards, results.schema.names):
            writer.writerow([_cell(value) for value in row.values()])


def _tsv(results: Results, made: Path) -> None:
    _csv(results, made, "\t")


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    encoded = _JSON.encode(value)
    if encoded == b"null":
        return ""
    return str(msgspec.json.decode(encoded)) if encoded.startswith(b'"') else encoded.decode()


# --- what trainers read

_ROLES = {USER: "user", ASSISTANT: "assistant", SYSTEM: "system"}


def _messages(results: Results, made: Path) -> None:
    """A line per response: the conversation with it at its end, as OpenAI's fine-tuning and most trainers have it."""
    _for_trainers(results, made, lambda asked, answer: {"messages": [*asked, answer]})


def _prompt_completion(results: Results, made: Path) -> None:
    """A line per response: the conversation and the response apart, so that a trainer learns the latter alone."""
    _for_trainers(results, made, lambda asked, answer: {"prompt": asked, "completion": [answer]})


Turn = dict[str, str]


def _for_trainers(results: Results, made: Path, pair: Callable[[list[Turn], Turn], dict[str, Any]]) -> None:
    """Ahead of what `pair` makes of a row stand its id and the columns that the job passes through."""
    beside = ["id", *results.record.settings["output"]["columns"]]
    if taken := [name for name in beside if name in pair([], {})]:
        raise JobError(
            f"the input has a column {taken[0]} of its own, passed through; leave it out of [output] columns"
        )
    without = 0
    with _lines(made) as write:
        for row in _rows(results, results.shards, [*beside, "conversation", "response"]):
            if row["response"] is None:
                without += 1
                continue
            asked = [{"role": _ROLES[turn["speaker"]], "content": turn["text"]} for turn in row["conversation"]]
            answer = {"role": "assistant", "content": row["response"]}
            write({name: row[name] for name in beside} | pair(asked, answer))
    if without:
        warn(f"{without:,} rows have no response, as they fail a check, and were left out")


# --- OpenAI's batch output


def _openai_batch(results: Results, made: Path) -> None:
    """A line per row; its samples are the choices of one completion, and a rejected row is an error."""
    model = msgspec.json.decode(results.facts["model"][0])["name"]
    columns = ["id", "row", "response", "finish_reason", "prompt_tokens", "response_tokens", "sampling"]
    columns += [name for name in ("logprobs", "adapter") if name in results.schema.names]
    columns += ["reasoning"] if results.record.settings["model"].get("reasoning_parser") else []
    named = array("q")
    with _lines(made) as write:
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


WRITERS = {
    "parquet": _parquet,
    "jsonl": _jsonl,
    "csv": _csv,
    "tsv": _tsv,
    "messages": _messages,
    "prompt-completion": _prompt_completion,
    "openai-batch": _openai_batch,
    "hf": _hugging_face,
}
OF_RESPONSES = ("messages", "prompt-completion", "openai-batch")  # which neither scores nor translated records are
