"""The results of a job as one file or folder, in the forms that other programs take."""

import contextlib
import errno
import fcntl
import heapq
import itertools
import os
import shutil
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError, on_disk, warn
from ..host.safeopen import sync_folder
from ..input import ids
from ..input.plan import COMPRESSION_BY_ENDING, Shard
from ..job.output_path import check_output_path
from ..job.spec import JobSpec, nearest
from ..output import opening, owners, shard, store
from ..output.counts import Counts
from ..output.record import JobRecord, fingerprints
from ..output.store import Store
from ..task.output_columns import always
from . import dataset_card
from .verify import open_finished, set_aside_by

BATCH_ROWS = 64  # in memory as Python objects; with 20 log probabilities of 512 tokens each that is some 170 MB
ROW_GROUP_BYTES = 32 << 20  # of Arrow data
HF_FILE_BYTES = 256 << 20  # of shards that go into one file; hubs and readers are slow with thousands of small ones
_OWN_FACTS = {"shard", "first_row", "counts"}  # what a shard's metadata says of that shard alone


@dataclass(frozen=True)
class Results:
    """What a job has finished.

    missing: shards that are not there
    schema: of the columns to export
    counts: as in `_SUCCESS`
    facts: what the shards' metadata say of the job, each with its different values as text
    """

    out: Store
    record: JobRecord
    spec: JobSpec
    shards: list[Shard]
    missing: int
    schema: pa.Schema
    counts: Counts
    facts: dict[str, list[str]]

    @property
    def is_of_lines(self) -> bool:
        """Whether it is a translation of JSON lines, whose records are the lines."""
        return bool(self.spec.translate.fields) and not any(file.is_columnar for file in self.record.plan.files)

    def batches(self, shards: Iterable[Shard], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Rows in input order, samples in order. Raises JobError if a shard is damaged."""
        made_by = fingerprints(self.record)
        for planned in shards:
            fingerprint = made_by[self.record.plan.files[planned.file].growth]
            _refuse(self.out, planned, shard.wrong_content(self.out, planned, fingerprint, always(self.spec)))
            with shard.opened(self.out, planned) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=columns):
                    yield batch.select(columns)


def export(out: Path, to: Path, format: str, columns: str, partial: bool, overwrite: bool) -> Results:
    """Writes the finished results of a job to a file, or to a folder if `format` is hf. It appears whole or not at all.

    format: parquet, jsonl, openai-batch, hf, or empty, if the ending of `to` says it; columns: names with commas
    between, or empty for all; partial: take what is there of an unfinished job. Raises JobError or Stopped.
    """
    format = format or _format_of(to)
    if columns and format == "openai-batch":
        raise JobError("--columns: lines of openai-batch have no columns to pick; leave it out")
    with on_disk(to.parent):
        check_output_path("--to", str(to))
        owners.check_link(f"--to {to}", to)
        if str(to) == "-" or (to.exists() and not (to.is_file() or to.is_dir())):
            raise JobError(
                f"--to {to}: is not a file, which alone can appear whole or not at all; name one, then read it"
            )
        results = _open(store.at(out), columns, partial)
        if results.spec.score.mode != "off" and format == "openai-batch":
            raise JobError("--format openai-batch: scores are no responses; take jsonl, parquet or hf")
        if results.spec.translate.fields:
            results = _translated(results, format, columns)
        place = to.resolve()
        _check_place(results, place, format == "hf", overwrite)
        with _taking_the_place_of(place) as made:
            _WRITERS[format](results, made)
    return results


# --- what to export


def _format_of(to: Path) -> str:
    name = to.with_suffix("") if to.suffix in COMPRESSION_BY_ENDING else to
    if to.suffix == ".parquet":
        return "parquet"
    if name.suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if to.is_dir() or not to.suffix:
        return "hf"
    raise JobError(f"--to {to}: its ending does not tell the format; give --format {', '.join(_WRITERS)}")


def _open(out: Store, columns: str, partial: bool) -> Results:
    record, spec = open_finished(out)
    planned = record.plan.shards
    shards = shard.finished(out, record.plan)
    missing = len(planned) - len(shards)
    if missing and not partial:
        raise JobError(
            f"{out}: {missing:,} of {len(planned):,} shards are missing; "
            "run the job to its end, or give --partial to export what is there"
        )
    if not shards:
        raise JobError(f"{out}: no shard is finished; there is nothing to export")
    opening.check_shards(out, record)
    for each in shards:
        _refuse(out, each, shard.damage(out, each))
    schema = _schema(out, shards[0])
    for each in shards[1:]:
        _refuse(out, each, "" if _schema(out, each) == schema else "its columns are not those of the first shard")
    schema = pa.schema([schema.field(name) for name in _picked(columns, schema.names)])
    return Results(out, record, spec, shards, missing, schema, shard.total(out, shards), _facts(out, shards))


def _translated(results: Results, format: str, columns: str) -> Results:
    """What is exported of a translation: as JSON lines the input's own records, and nothing beside them. Raises
    JobError."""
    if format == "openai-batch":
        raise JobError("--format openai-batch: translated records are no responses; take jsonl, parquet or hf")
    if format != "jsonl" or columns:
        return results
    report = results.spec.translate.report
    own = ["record"] if results.is_of_lines else [name for name in results.schema.names if name != report]
    return replace(results, schema=pa.schema([results.schema.field(name) for name in own]))


def _refuse(out: Store, planned: Shard, damage: str) -> None:
    if damage:
        raise JobError(f"{shard.where(out, planned)}: {damage}; {set_aside_by(out)}")


def _footer(out: Store, planned: Shard) -> pq.FileMetaData:
    """Raises JobError if it is damaged."""
    try:
        return shard.metadata(out, planned)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's own
        _refuse(out, planned, "is damaged: its footer cannot be read")
        raise AssertionError from error


def _schema(out: Store, planned: Shard) -> pa.Schema:
    try:
        return _footer(out, planned).schema.to_arrow_schema().remove_metadata()
    except UnicodeDecodeError as error:
        _refuse(out, planned, "is damaged: its columns have no names")
        raise AssertionError from error


def _picked(columns: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in columns.split(",") if name.strip()] if columns else known
    for name in names:
        if name not in known:
            raise JobError(f"--columns {name}: no such column{nearest(name, known)}")
        if names.count(name) > 1:
            raise JobError(f"--columns {name}: named twice")
    if not names:
        raise JobError(f"--columns: name one or more of {', '.join(known)}")
    return names


def _facts(out: Store, shards: list[Shard]) -> dict[str, list[str]]:
    facts: dict[str, list[str]] = {}
    for planned in shards:
        footer = _footer(out, planned)
        drawn = shard.sampler(footer)
        note = "" if drawn.is_recorded else " (by its vLLM's version)"
        about = shard.facts(footer) | {"runner": drawn.runner + note, "noise": drawn.noise + note}
        for name, value in about.items():
            if name not in _OWN_FACTS and value not in (values := facts.setdefault(name, [])):
                values.append(value)
    try:
        msgspec.json.decode(facts["model"][0], type=dataset_card.ModelFacts)
        [msgspec.json.decode(versions, type=dict[str, str]) for versions in facts["versions"]]
        facts["dtype"], facts["device"]
    except (KeyError, msgspec.DecodeError) as error:
        raise JobError(f"{out}: its shards do not say what made them ({error}); run the job again elsewhere") from None
    return facts


# --- where to


def _check_place(results: Results, to: Path, wants_folder: bool, overwrite: bool) -> None:
    """Raises JobError where an export would do harm or cannot be."""
    out = Path(results.out.location).resolve()
    if not to.parent.is_dir():
        raise JobError(f"{to.parent}: no such folder; make it first")
    if out in (to, *to.parents):
        raise JobError(f"{to}: lies in the output folder, which is a dataset of its own; name another place")
    if str(to) in [file.path for file in results.record.plan.files]:
        raise JobError(f"{to}: is an input of the job; name another file")
    if not to.exists():
        return
    if to.is_dir() != wants_folder or not (to.is_dir() or to.is_file()):
        raise JobError(f"{to}: is not a {'folder' if wants_folder else 'file'}; name another one")
    if not overwrite:
        raise JobError(f"{to}: is there already; give --overwrite to replace it")
    if wants_folder and (others := _not_ours(to)):
        raise JobError(f"{to}: holds something else ({', '.join(others[:3])}); name another folder")


def _not_ours(dataset: Path) -> list[str]:
    """What a folder holds that no export of ours has put there, and that must not go with it."""
    names = [path.relative_to(dataset) for path in [*dataset.iterdir(), *(dataset / "data").glob("*")]]
    return sorted(str(name) for name in names if not any(name.match(ours) for ours in _HF_NAMES))


@contextmanager
def _taking_the_place_of(to: Path) -> Iterator[Path]:
    """Gives a path to make a file or folder at, all of it synced, which then stands at `to`.

    It lies in a hidden folder beside `to`. A kill leaves that behind, and the next export to `to` takes it over.
    """
    hidden = to.with_name(f".{to.name}.batchgen")
    made, replaced = hidden / to.name, hidden / f"{to.name}.replaced"

    def put_back() -> None:
        if replaced.exists() and not to.exists():  # it went wrong between the two renames
            replaced.rename(to)

    with contextlib.suppress(FileExistsError):
        hidden.mkdir(mode=0o700)
    with _locked(hidden) as folder_of_ours:
        _check_left(hidden, folder_of_ours, {made.name, replaced.name})
        put_back()
        _empty(folder_of_ours)
        try:
            yield made
            if to.is_dir():  # a rename replaces a file, but no folder
                to.rename(replaced)
                if others := _not_ours(replaced):  # it became another one, where others may write too
                    raise JobError(f"{to}: holds something else ({', '.join(others[:3])}); name another folder")
            made.rename(to)
            sync_folder(to.parent)
        finally:
            put_back()
            with contextlib.suppress(OSError):
                _empty(folder_of_ours)
                hidden.rmdir()


def _check_left(hidden: Path, folder: int, ours: set[str]) -> None:
    """Where others may write, one of the user's own folders may have got this name. Raises JobError."""
    left = [name for name in os.listdir(folder) if not stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode)]
    if left and not (ours.issuperset(left) and stat.S_IMODE(os.fstat(folder).st_mode) == 0o700):
        raise JobError(f"{hidden}: holds what no export has put there ({left[0]}); move it away")


def _empty(folder: int) -> None:
    """Removes what lies in an open folder. By its descriptor: a name may lead elsewhere by the time it is used."""
    for name in os.listdir(folder):
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Opens a folder of ours that no other process has locked; gives its descriptor. On a file system without locks
    two exports to one place are not kept apart.

    Raises JobError if another export has it, or if it is not ours alone: in a folder that others may write to,
    whatever stands there under this name may be a link to something that must not be emptied.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise JobError(f"{path}: is no folder that an export made; remove it, or export to another place") from None
        raise
    try:
        about = os.fstat(file)
        if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise JobError(f"{path}: another user owns it or may write to it; remove it, or export to another place")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(file), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            ours = False
        except OSError:
            ours = True
        if not ours:
            raise JobError(f"{path}: another export is at work there")
        yield file
    finally:
        os.close(file)


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

_HF_NAMES = ("README.md", "data", "data/train-*-of-*.parquet")


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


_WRITERS = {"parquet": _parquet, "jsonl": _jsonl, "openai-batch": _openai_batch, "hf": _hugging_face}
