"""`batchgen export`: a job's results as one file or folder, whole or not at all, the same whenever it is made."""

import bz2
import csv
import errno
import fcntl
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import datetime
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import demo_records
from faulty import CHANGES, Disk, DiskWithOneFault, in_child
from openai.types.chat import ChatCompletion
from processes import until

from batchgen.commands import dataset_card, export, export_formats, results
from batchgen.input.plan import Plan
from batchgen.job.drift import with_defaults
from batchgen.output.counts import Counts
from batchgen.output.record import JobRecord

ROWS = [
    *demo_records(4),
    {"text": ""},
    {"id": "b", "text": "Monday", "extra": {"a": [1, None]}},
    "no",
    *demo_records(1),
]
FORMATS = {"parquet": "all.parquet", "jsonl": "all.jsonl", "openai-batch": "batch.jsonl", "hf": "dataset"}


@pytest.fixture
def out(generate, write_rows):
    """Eight rows in three shards, two of them rejected, two samples of each."""
    return generate(
        [write_rows(ROWS)],
        sampling={"max_tokens": 4, "n": 2},
        output={"shard_rows": 3, "columns": ["expected", "extra:json"]},
    )


@pytest.fixture
def exported(batchgen, tmp_path):
    """Exports a job and gives what was made."""

    def run(out, name, *flags) -> Path:
        result = batchgen("export", out, "--to", tmp_path / name, *flags)
        assert result.exit_code == 0, result.stderr
        return tmp_path / name

    return run


@pytest.fixture
def refused(batchgen, tmp_path):
    """Exports a job in vain and gives the one line that says why."""

    def run(out, to, *flags) -> str:
        result = batchgen("export", out, "--to", tmp_path / to, *flags)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
        return result.stderr

    return run


def rows_of(path) -> list[dict]:
    """The rows of a Parquet file, or of those in a folder."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    return ds.dataset([str(file) for file in files]).to_table().to_pylist()


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def content(path) -> dict[str, bytes]:
    """A file or folder, byte for byte."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


# --- Parquet


def test_parquet_is_one_file_with_the_rows_and_types_of_all_shards(out, exported):
    path = exported(out, "all.parquet")
    assert rows_of(path) == rows_of(out)
    assert pq.read_schema(path).equals(pq.read_schema(out / "part-00000-of-00003.parquet"))


def test_parquet_metadata_say_where_the_rows_come_from(out, exported):
    about = pq.read_metadata(exported(out, "all.parquet")).metadata
    job, success = (json.loads((out / name).read_text()) for name in ("_job.json", "_SUCCESS"))
    assert about[b"batchgen.fingerprint"].decode() == job["fingerprint"]
    assert json.loads(about[b"batchgen.versions"]) == job["versions"]
    assert json.loads(about[b"batchgen.model"])["name"] == "model"
    assert json.loads(about[b"batchgen.counts"]).items() <= success.items()
    assert about[b"batchgen.shards"] == b"3 of 3"
    assert b"batchgen.first_row" not in about


def test_small_shards_are_joined_in_row_groups_and_large_ones_split(out, exported, monkeypatch):
    assert pq.read_metadata(exported(out, "one.parquet")).num_row_groups == 1
    monkeypatch.setattr(export_formats, "ROW_GROUP_BYTES", 1)
    monkeypatch.setattr(results, "BATCH_ROWS", 4)
    assert pq.read_metadata(exported(out, "many.parquet")).num_row_groups == 4  # shards have 6, 2 and 4 responses


# --- JSON lines


def test_jsonl_has_the_same_rows_and_the_values_of_json_columns(out, exported):
    lines = lines_of(exported(out, "all.jsonl"))
    assert lines == [{**row, "extra": row["extra"] and json.loads(row["extra"])} for row in rows_of(out)]
    assert lines[8]["extra"] == {"a": [1, None]}
    assert list(lines[0]) == ds.dataset(out).schema.names


@pytest.mark.parametrize(("ending", "decompress"), [("gz", gzip.decompress), ("bz2", bz2.decompress), ("zst", None)])
def test_jsonl_is_compressed_as_its_ending_says(out, exported, ending, decompress):
    path = exported(out, f"all.jsonl.{ending}")
    with pa.input_stream(path, compression="zstd") if ending == "zst" else path.open("rb") as stream:
        text = decompress(stream.read()) if decompress else stream.read()
    assert text == exported(out, "all.jsonl").read_bytes()


def test_columns_of_parquet_input_survive(generate, exported, tmp_path):
    table = pa.table(
        {
            "text": ["Monday"],
            "when": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
            "where": pa.array([{"x": [1.5]}], pa.struct([("x", pa.list_(pa.float32()))])),
            "raw": [b"\xff"],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    out = generate([tmp_path / "in.parquet"], sampling={"max_tokens": 2}, output={"columns": table.column_names[1:]})
    found = pq.read_table(exported(out, "all.parquet"), columns=table.column_names[1:])
    assert found.equals(table.drop_columns("text"))
    [line] = lines_of(exported(out, "all.jsonl"))
    assert datetime.fromisoformat(line["when"]) == datetime(2023, 11, 14, 22, 13, 20, 123456)
    assert (line["where"], line["raw"]) == ({"x": [1.5]}, "/w==")


# --- OpenAI's batch output


def test_openai_batch_has_a_line_per_row_with_all_samples_and_rejects_in_their_places(out, exported):
    lines = lines_of(exported(out, "batch.jsonl", "--format", "openai-batch"))
    assert [line["custom_id"] for line in lines] == [*(f"demo-{i:05}" for i in range(4)), "4", "b", "6", "demo-00000"]
    assert all(list(line) == ["id", "custom_id", "response", "error"] for line in lines)
    assert len({line["id"] for line in lines}) == 8
    rows = iter(rows_of(out))
    for line in lines:
        if line["response"] is None:
            continue
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        completion = ChatCompletion.model_validate(line["response"]["body"], strict=True)
        samples = [next(rows), next(rows)]
        assert [choice.index for choice in completion.choices] == [0, 1]
        assert [choice.message.content for choice in completion.choices] == [row["response"] for row in samples]
        assert [choice.finish_reason for choice in completion.choices] == [row["finish_reason"] for row in samples]
        assert completion.usage.prompt_tokens == samples[0]["prompt_tokens"]
        assert completion.usage.completion_tokens == sum(row["response_tokens"] for row in samples)
        assert (completion.model, completion.created) == ("model", 0)
    assert next(rows, None) is None


def test_openai_batch_says_why_a_row_was_rejected(out, exported):
    lines = lines_of(exported(out, "batch.jsonl", "--format", "openai-batch"))
    rejects = [json.loads(line) for path in sorted(out.glob("_rejects/*")) for line in path.read_text().splitlines()]
    assert [line["error"] for line in lines if line["response"] is None] == [
        {"code": reject["reason"], "message": reject["detail"]} for reject in rejects
    ]
    assert [reject["reason"] for reject in rejects] == ["empty", "invalid_json"]


def test_openai_batch_holds_log_probabilities(generate, write_rows, exported):
    out = generate([write_rows([{"text": "Monday"}])], sampling={"max_tokens": 3, "logprobs": 2})
    [line] = lines_of(exported(out, "batch.jsonl", "--format", "openai-batch"))
    steps = ChatCompletion.model_validate(line["response"]["body"], strict=True).choices[0].logprobs.content
    [row] = rows_of(out)
    for step, found in zip(row["logprobs"], steps, strict=True):
        assert (found.token, found.logprob) == (f"token_id:{step[0]['token_id']}", step[0]["logprob"])
        likeliest = sorted(step, key=lambda token: -token["logprob"])[:2]
        assert [each.token for each in found.top_logprobs] == [f"token_id:{token['token_id']}" for token in likeliest]


# --- a Hugging Face dataset


def test_hugging_face_datasets_loads_the_folder_with_the_same_rows(out, exported, tmp_path):
    folder = exported(out, "dataset")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"].to_list() == rows_of(out)


def test_hugging_face_datasets_does_not_go_on_with_what_was_exported_before(instantly, write_rows, exported, tmp_path):
    """What it has read of a folder it keeps by its card, if that has `configs`, and else by the files of the data."""
    for number, texts in enumerate((["a"], ["a", "b"])):
        out = instantly([write_rows([{"text": text} for text in texts])], out=f"out-{number}")
        folder = exported(out, "dataset", *(["--overwrite"] if number else []))
        loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.num_rows == len(texts)


def test_small_shards_are_joined_in_files(out, exported, monkeypatch):
    assert list(content(exported(out, "one"))) == ["README.md", "data/train-00000-of-00001.parquet"]
    sizes = [path.stat().st_size for path in sorted(out.glob("part-*"))]
    monkeypatch.setattr(export_formats, "HF_FILE_BYTES", sum(sizes[:2]))
    folder = exported(out, "two")
    assert sorted(path.name for path in (folder / "data").iterdir()) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert rows_of(folder) == rows_of(out)


def test_the_card_says_what_is_known_of_the_job(out, exported):
    text = (exported(out, "dataset", "--columns", "id,response,extra") / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "size_categories": ["n<1K"],
        "tags": ["synthetic"],
    }
    job = json.loads((out / "_job.json").read_text())
    assert "12 responses of `model` to 8 conversations" in body
    assert "| rejected rows | 2 (empty 1, invalid_json 1) |" in body
    assert f"| fingerprint | `{job['fingerprint']}` |" in body
    assert "| MD5 of model.safetensors | `594f981b95bfaf7e39e425d97fc69853` |" in body
    assert "| prompt format | speaker |" in body
    assert f"vllm {job['versions']['vllm']}" in body
    assert (
        json.loads(body.split("```json\n")[1].split("```")[0])["sampling"] == with_defaults(job["results"])["sampling"]
    )
    assert body.split("## Columns\n")[1].splitlines()[3:] == [
        "| `id` | `string` | the conversation's id, or its row number |",
        "| `response` | `string` | what the model wrote |",
        "| `extra` | `string` | from the input |",
    ]
    assert str(out.parent) not in text


def test_the_card_publishes_no_argument_of_the_engine_that_may_name_what_is_the_makers_own():
    record = JobRecord(
        fingerprint="f",
        results={
            "prompt": {"format": "`raw` <img src=x>"},
            "sampling": {"seed": 0},
            "engine": {"dtype": "float32", "hf_overrides": {"a": "/home/me/secret"}},
            "output": {},
        },
        spec={},
        versions={},
        plan=Plan([], []),
    )
    model = {"name": "m`\n# evil\n<script>", "revision": None, "digests": {"[x](http://y)": "0"}}
    facts = {name: ["<b>"] for name in ("dtype", "device", "runner", "noise")} | {
        "model": [json.dumps(model)],
        "versions": ["{}"],
    }
    counts = Counts(rows=1, responses=1, prompt_tokens=1, response_tokens=1)
    schema = pa.schema([("a`|b\n", pa.string())])
    text = dataset_card.text("T\n---\nlicense: evil <img onerror=x>", record, counts, facts, schema, 0)
    assert "/home/me" not in text and '"hf_overrides": "(not shown)"' in text and '"dtype": "float32"' in text
    body = re.sub(r"`[^`\n]*`", "", text.split("---\n", 2)[2].split("```")[0])
    assert next(line for line in body.splitlines() if line.startswith("#")).startswith("# T")
    assert not re.search(r"(?<!\\)<\w|^# evil|^license|(?<!\\)\[x", body, re.MULTILINE)
    assert "| `a'\\|b\\n` |" in text


@pytest.mark.parametrize(
    ("rows", "name"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (2_500_000, "1M<n<10M"), (10**12, "n>1T")],
)
def test_size_categories_are_the_hubs(rows, name):
    assert dataset_card.size_category(rows) == name


# --- what to export


@pytest.mark.parametrize("format", FORMATS)
def test_it_is_the_same_whenever_it_is_made(out, exported, tmp_path, format):
    first = content(exported(out, FORMATS[format], "--format", format))
    (tmp_path / FORMATS[format]).rename(tmp_path / "before")
    os.utime(out / "part-00000-of-00003.parquet", (0, 0))
    assert content(exported(out, FORMATS[format], "--format", format)) == first


@pytest.mark.parametrize("name", ["all.parquet", "all.jsonl", "dataset"])
def test_columns_are_picked_and_ordered(out, exported, name):
    path = exported(out, name, "--columns", "response, extra,id")
    rows = lines_of(path) if path.suffix == ".jsonl" else rows_of(path)
    assert [list(row) for row in rows] == [["response", "extra", "id"]] * 12
    assert [row["response"] for row in rows] == [row["response"] for row in rows_of(out)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--columns", "id,respones"], "--columns respones: no such column; did you mean response?"),
        (["--columns", "id,id"], "--columns id: named twice"),
        (["--columns", ","], "--columns: name one or more of id, row, sample"),
        (["--columns", "id", "--format", "openai-batch"], "lines of openai-batch have no columns to pick"),
    ],
)
def test_columns_that_cannot_be_picked(out, refused, tmp_path, flags, message):
    assert message in refused(out, "all.jsonl", *flags)
    assert not (tmp_path / "all.jsonl").exists()


def test_an_unfinished_job_is_refused_and_exported_in_part(out, refused, batchgen, exported, tmp_path):
    (out / "part-00001-of-00003.parquet").unlink()
    message = refused(out, "all.parquet")
    assert f"{out}: 1 of 3 shards are missing; run the job to its end, or give --partial" in message
    result = batchgen("export", out, "--to", tmp_path / "all.parquet", "--partial")
    assert result.stdout == (
        f"exported: 5 rows, 8 responses, 1 rejects (invalid_json 1), 1 shards missing to {tmp_path}/all.parquet\n"
    )
    assert rows_of(tmp_path / "all.parquet") == rows_of(out)
    assert pq.read_metadata(tmp_path / "all.parquet").metadata[b"batchgen.shards"] == b"2 of 3"
    assert [
        line["custom_id"] for line in lines_of(exported(out, "b.jsonl", "--partial", "--format", "openai-batch"))
    ] == [
        *("demo-00000", "demo-00001", "demo-00002"),
        *("6", "demo-00000"),
    ]
    text = (exported(out, "dataset", "--partial") / "README.md").read_text()
    assert "1 of the job's 3 shards were not finished" in text


def test_nothing_finished_is_nothing_to_export(out, refused):
    for path in out.glob("part-*"):
        path.unlink()
    assert "no shard is finished; there is nothing to export" in refused(out, "all.parquet", "--partial")


def test_no_output_folder(refused, tmp_path):
    assert "no batchgen output folder" in refused(tmp_path / "none", "all.parquet")


def test_a_job_of_rejects_alone_gives_no_rows(generate, write_rows, exported, refused, tmp_path):
    out = generate([write_rows(["no", {"text": ""}])])
    assert pq.read_table(exported(out, "all.parquet")).num_rows == 0
    assert exported(out, "all.jsonl").read_bytes() == b""
    assert len(lines_of(exported(out, "batch.jsonl", "--format", "openai-batch"))) == 2
    assert "Hugging Face datasets opens no dataset without rows" in refused(out, "dataset")
    assert not list(tmp_path.glob("*dataset*"))


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 1000), lambda path: path.write_bytes(flipped(path))])
def test_a_damaged_shard_is_not_exported(out, refused, tmp_path, change):
    path = out / "part-00001-of-00003.parquet"
    change(path)
    assert str(path) in (message := refused(out, "all.parquet"))
    assert f"`batchgen verify {out} --quarantine` sets it aside" in message
    assert not (tmp_path / "all.parquet").exists()


def flipped(path) -> bytes:
    whole = bytearray(path.read_bytes())
    whole[500] ^= 1
    return bytes(whole)


# --- where to


@pytest.mark.parametrize("format", FORMATS)
def test_what_stands_there_is_replaced_only_if_asked(out, exported, refused, format):
    path = exported(out, FORMATS[format], "--format", format, "--partial")
    whole = content(path)
    (path / "README.md" if path.is_dir() else path).write_text("older")
    older = content(path)
    assert "is there already; give --overwrite to replace it" in refused(out, path, "--format", format)
    assert content(path) == older
    exported(out, path, "--format", format, "--overwrite")
    assert content(path) == whole
    assert not list(path.parent.glob(".*"))


def test_places_where_it_would_do_harm(out, refused, tmp_path):
    (tmp_path / "notes" / "data").mkdir(parents=True)
    (tmp_path / "notes" / "data" / "diary.txt").touch()
    assert "holds something else (data/diary.txt)" in refused(out, "notes", "--overwrite")
    assert "lies in the output folder" in refused(out, out / "all.parquet")
    assert "lies in the output folder" in refused(out, out, "--overwrite", "--format", "hf")
    assert "holds something else" in refused(out, tmp_path, "--overwrite", "--format", "hf")
    assert "is an input of the job" in refused(out, "in.jsonl", "--overwrite")


def test_places_that_cannot_be(out, refused, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert "is not a folder" in refused(out, "file", "--overwrite", "--format", "hf")
    assert "is not a file" in refused(out, "folder", "--overwrite", "--format", "jsonl")
    assert "is not a file" in refused(out, "pipe", "--overwrite", "--format", "jsonl")
    assert "nowhere: no such folder" in refused(out, "nowhere/all.jsonl")
    assert "give --format parquet, jsonl, csv, tsv, messages, prompt-completion, openai-batch, hf" in refused(
        out, "all.xlsx"
    )


def test_a_link_is_followed(out, exported, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "all.jsonl").touch()
    (tmp_path / "all.jsonl").symlink_to("real/all.jsonl")
    exported(out, "all.jsonl", "--overwrite")
    assert (tmp_path / "all.jsonl").is_symlink()
    assert len(lines_of(tmp_path / "real" / "all.jsonl")) == 12


def test_two_exports_to_one_place_do_not_meet(out, refused, exported, tmp_path):
    (tmp_path / ".all.jsonl.batchgen").mkdir()
    other = os.open(tmp_path / ".all.jsonl.batchgen", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert "another export is at work there" in refused(out, "all.jsonl")
    os.close(other)
    exported(out, "all.jsonl")


# --- whole or not at all


class SmallExport:
    """An export in a child process, on a disk that may fail, to a place where another export stands or nothing."""

    def __init__(self, out: Path, folder: Path, format: str, overwrite: bool):
        self.folder, self._format, self._before = folder, format, folder / "before"
        self._export = partial(export.export, out, partial=False)
        self.overwrite = overwrite
        if overwrite:
            other = {"format": "jsonl" if format == "openai-batch" else format, "columns": "id"}
            self._before.mkdir()
            self._export(to=self._before / FORMATS[format], overwrite=False, **other)
        to = self.place("good")
        self.run(to)
        self.good = content(to)

    def place(self, name: str) -> Path:
        folder = self.folder / name
        if self.overwrite:
            shutil.copytree(self._before, folder)
        else:
            folder.mkdir()
        return folder / FORMATS[self._format]

    def run(self, to: Path, disk: Disk | None = None) -> None:
        if disk:
            disk.watch()
        self._export(to=to, format=self._format, columns="", overwrite=self.overwrite)

    def calls(self) -> list[str]:
        to, counted = self.place("counted"), self.folder / "calls"

        def work():
            disk = Disk(to.parent)
            self.run(to, disk)
            counted.write_text("\n".join(disk.calls))

        assert in_child(work) == "done"
        return counted.read_text().split("\n")

    def disturb(self, to: Path, at: int, fault, part=0.0) -> str:
        return in_child(lambda: self.run(to, DiskWithOneFault(to.parent, at, fault, part)))


@pytest.fixture(params=[("parquet", False), ("jsonl", True), ("openai-batch", False), ("hf", True)], ids=lambda p: p[0])
def small(request, out, tmp_path):
    return SmallExport(out, tmp_path, *request.param)


def fail(error: int) -> None:
    raise OSError(error, os.strerror(error))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def found(to: Path) -> dict[str, bytes] | None:
    return content(to) if to.exists() else None


def test_a_call_that_fails_ends_it_with_one_line_and_leaves_what_was_there(small):
    calls = small.calls()
    for at, call in enumerate(calls):
        to = small.place(f"{at}")
        before = found(to)
        ended = small.disturb(to, at, partial(fail, errno.ENOSPC), part=0.5)
        if found(to) == small.good:
            continue  # only the last sync, or what there was to clear up, has failed
        assert ended == f"stopped: {to.parent}: No space left on device; fix that and run the same command again", call
        assert found(to) == before, call
        assert not list(to.parent.glob(".*/*")), f"{call}: takes room for nothing"
        small.run(to)
        assert found(to) == small.good, call
    print(f"{len(calls)} faults injected")


def test_a_kill_at_any_moment_leaves_no_half_of_it_and_the_next_export_is_whole(small):
    changes = [at for at, call in enumerate(small.calls()) if call.startswith(CHANGES)]
    for at in changes:
        to = small.place(f"{at}")
        before = found(to)
        assert small.disturb(to, at, kill, part=0.5) == "killed"
        assert found(to) in (before, None, small.good)  # nothing for an instant, where a folder is replaced
        assert {name for name in os.listdir(to.parent) if not name.startswith(".")} <= {to.name}
        if small.overwrite or not to.exists():
            small.run(to)
            assert os.listdir(to.parent) == [to.name]
        assert found(to) == small.good
    print(f"{len(changes)} kills survived")


@pytest.fixture
def large(generate, write_rows):
    """Makes a job of so many rows with a passed-through text of 250 kB each."""

    def make(rows: int) -> Path:
        source = write_rows({"text": "Monday", "noise": os.urandom(125_000).hex()} for _ in range(rows))
        return generate([source], sampling={"max_tokens": 1}, output={"shard_rows": 50, "columns": ["noise"]})

    return make


@pytest.mark.parametrize("format", ["parquet", "hf"])
def test_a_killed_command_leaves_nothing_under_the_name(large, batchgen_process, tmp_path, format):
    to = tmp_path / "made" / FORMATS[format]
    to.parent.mkdir()
    command = [Path(sys.executable).with_name("batchgen"), "export", large(400), "--to", to, "--format", format]
    process = subprocess.Popen([str(part) for part in command])
    until(lambda: any(path.stat().st_size for path in to.parent.glob(".*/**/*") if path.is_file()))
    process.kill()
    process.wait()
    assert os.listdir(to.parent) == [f".{to.name}.batchgen"]
    assert batchgen_process(*command[1:]).returncode == 0
    assert os.listdir(to.parent) == [to.name]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_job(large, tmp_path):
    """1 GB of rows; the command alone takes some 140 MB."""
    out = large(4000)
    for format, name in FORMATS.items():
        command = ["export", str(out), "--to", str(tmp_path / name), "--format", format]
        code = f"from batchgen.cli import cli; cli({command}, standalone_mode=False)"
        code += "; print(open('/proc/self/status').read())"
        status = subprocess.check_output([sys.executable, "-c", code], text=True)
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # ru_maxrss would begin with this process's own
        print(f"{format}: {peak:.0f} MiB")
        assert peak < 512


def test_a_link_in_the_place_of_its_hidden_folder_is_refused_and_what_it_leads_to_stays(out, refused, tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("x")
    (tmp_path / ".all.parquet.batchgen").symlink_to(thesis)
    assert ".all.parquet.batchgen: is no folder that an export made" in refused(out, "all.parquet")
    assert (thesis / "chapter.tex").read_text() == "x"


@pytest.mark.parametrize("made", ["by another user", "open to all"])
def test_a_hidden_folder_that_others_may_write_to_is_refused(out, refused, tmp_path, made):
    hidden = tmp_path / ".all.parquet.batchgen"
    hidden.mkdir()
    os.chown(hidden, 1001, 1001) if made == "by another user" else hidden.chmod(0o777)
    assert "another user owns it or may write to it" in refused(out, "all.parquet")


def test_a_link_that_a_kill_left_in_the_hidden_folder_is_removed_and_not_followed(out, exported, tmp_path):
    hidden = tmp_path / ".all.parquet.batchgen"
    hidden.mkdir(mode=0o700)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (hidden / "link").symlink_to(tmp_path / "precious")
    assert pq.read_table(exported(out, "all.parquet")).num_rows == 12
    assert (tmp_path / "precious" / "file").exists()
    assert not hidden.exists()


# --- spreadsheets, trainers, stdout


def test_csv_and_tsv_have_a_line_per_response_and_json_in_cells(out, exported):
    for name, delimiter in (("all.csv", ","), ("all.tsv", "\t"), ("all.csv.gz", ",")):
        made = exported(out, name)
        content = gzip.decompress(made.read_bytes()) if made.suffix == ".gz" else made.read_bytes()
        rows = list(csv.DictReader(io.StringIO(content.decode(), newline=""), delimiter=delimiter))
        table = ds.dataset(out).to_table().to_pylist()
        assert [row["response"] for row in rows] == [row["response"] for row in table]
        assert [int(row["row"]) for row in rows] == [row["row"] for row in table]
        assert json.loads(rows[0]["conversation"]) == table[0]["conversation"]
        assert json.loads(rows[8]["extra"]) == {"a": [1, None]} and rows[0]["extra"] == ""


def test_messages_end_with_the_response(out, exported):
    lines = [json.loads(line) for line in exported(out, "m.jsonl", "--format", "messages").open(encoding="utf-8")]
    table = ds.dataset(out).to_table().to_pylist()
    assert len(lines) == len(table)
    for line, row in zip(lines, table, strict=True):
        asked = [{"role": "user", "content": turn["text"]} for turn in row["conversation"]]
        assert line["messages"] == [*asked, {"role": "assistant", "content": row["response"]}]
        assert line["id"] == row["id"] and line["expected"] == row["expected"]
    assert datasets.load_dataset("json", data_files=str(out.parent / "m.jsonl"), split="train").num_rows == len(table)


def test_a_prompt_and_its_completion_are_apart(out, exported):
    made = exported(out, "p.jsonl", "--format", "prompt-completion")
    [line, *_] = [json.loads(line) for line in made.open(encoding="utf-8")]
    [row, *_] = ds.dataset(out).to_table().to_pylist()
    assert line["prompt"] == [{"role": "user", "content": row["conversation"][0]["text"]}]
    assert line["completion"] == [{"role": "assistant", "content": row["response"]}]


def test_responses_that_were_left_out_are_no_examples(generate, write_rows, batchgen, tmp_path):
    rows = [write_rows(demo_records(3))]
    failing = {"checks": ["forbidden:."], "tries": 1, "on_failure": "null"}
    out = generate(rows, sampling={"max_tokens": 4}, check=failing)
    done = batchgen("export", out, "--to", tmp_path / "m.jsonl", "--format", "messages")
    assert (tmp_path / "m.jsonl").read_bytes() == b""
    assert "3 rows have no response, as they fail a check, and were left out" in done.stderr


def test_stdout_takes_lines(out, batchgen, exported):
    done = batchgen("export", out, "--to", "-", "--columns", "id,response")
    assert done.stdout == exported(out, "some.jsonl", "--columns", "id,response").read_text("utf-8")
    assert batchgen("export", out, "--to", "-", "--format", "csv").stdout.startswith("id,row,sample,")
    refused = batchgen("export", out, "--to", "-", "--format", "hf")
    assert refused.exit_code == 2 and "stdout takes lines" in refused.stderr


def test_a_column_of_the_input_takes_no_message_away(generate, write_rows, batchgen, tmp_path):
    rows = [write_rows([{**record, "messages": "x"} for record in demo_records(2)])]
    out = generate(rows, sampling={"max_tokens": 4}, input={"format": "speaker"}, output={"columns": ["messages"]})
    done = batchgen("export", out, "--to", tmp_path / "m.jsonl", "--format", "messages")
    assert done.exit_code == 2 and "the input has a column messages of its own" in done.stderr
    assert not (tmp_path / "m.jsonl").exists()
