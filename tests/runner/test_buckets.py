"""Jobs whose output is in a bucket: what holds in a folder holds there."""

import random
import time

import buckets
import processes
import pytest
from adapters import OF_DEMO, write_adapter
from conftest import MODEL
from processes import until
from test_kills import mixed_rows, while_generating

from batchgen.api.results import open as open_results
from batchgen.commands import upload
from batchgen.host.bucket import Bucket
from batchgen.output.store import at

SHARDS = ["--shard-rows", 40]
QUICK = ["--stale", 3, "--journal-every", 0.5]  # so that a test need not wait for long


@pytest.mark.slow
def test_a_job_in_a_bucket_is_killed_resumed_and_the_same_as_in_a_folder(
    start, instantly, bucket, write_rows, tmp_path
):
    source, chance = write_rows(mixed_rows(400)), random.Random(1)
    expected = instantly([source], "expected", output={"shard_rows": 40})
    watch = processes.Watch(tmp_path, step=0.03)
    kills = []
    for wait in (while_generating(chance, 100), while_generating(chance, 30)):
        run = start(source, bucket.location, *SHARDS, *QUICK, env=watch.environment)
        wait(run, watch)
        run.kill()
        kills.append(time.monotonic())
    run = start(source, bucket.location, *SHARDS, *QUICK, env=watch.environment)
    assert run.wait() == 0, run.stderr
    assert buckets.dataset(bucket) == processes.dataset(expected)
    finished = watch.finished()
    last = {done.item: done.at for done in finished}
    again = [done for done in finished if done.at < last[done.item]]
    assert all(min(kill - done.at for kill in kills if kill > done.at) < 1 for done in again)


def test_of_workers_that_share_a_bucket_one_dies_and_the_others_do_its_work(
    start, instantly, bucket, write_rows, tmp_path
):
    source = write_rows(mixed_rows(400))
    expected = instantly([source], "expected", output={"shard_rows": 20})
    watch = processes.Watch(tmp_path, together=3, step=0.05)
    runs = [
        start(source, bucket.location, "--shard-rows", 20, *QUICK, "--workers", 1, env=watch.environment)
        for _ in range(3)
    ]
    until(lambda: len(watch.finished()) > 100)
    runs[0].kill()
    assert [run.wait() for run in runs[1:]] == [0, 0], [run.stderr for run in runs[1:]]
    assert buckets.dataset(bucket) == processes.dataset(expected)


def test_a_machine_needs_nothing_but_its_credentials(bucket, batchgen_process, instantly, write_rows, tmp_path):
    """Job file, input, model and output, all in a bucket."""
    rows = write_rows(mixed_rows(60))
    expected = instantly([rows], "expected", output={"shard_rows": 20}, sampling={"max_tokens": 20})
    for file in MODEL.iterdir():
        bucket.write(f"jobs/model/{file.name}", file.read_bytes())
    bucket.write("jobs/in.jsonl", rows.read_bytes())
    bucket.write(
        "jobs/job.toml",
        b'[input]\npath = "in.jsonl"\n[model]\npath = "./model"\n[output]\npath = "../results/out"\nshard_rows = 20\n'
        b"[sampling]\nmax_tokens = 20\n",
    )
    (tmp_path / "empty").mkdir()
    environment = processes.instant(tmp_path / "engine") | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    job = f"{bucket.location}/jobs/job.toml"
    done = batchgen_process("run", job, cwd=tmp_path / "empty", env=environment)
    assert done.returncode == 0, done.stderr
    out = at(f"{bucket.location}/results/out")
    assert buckets.dataset(out) == processes.dataset(expected)
    for command in (
        ["verify", out],
        ["status", out],
        ["rejects", out],
        ["export", out, "--to", "x.jsonl"],
    ):
        done = batchgen_process(*command, cwd=tmp_path / "empty", env=environment)
        assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["x.jsonl"]
    names = [found.name for found in Bucket(out.location).below()]
    assert {name.partition("/")[0] for name in names} > {"_job.json", "_state", "_rejects", "_SUCCESS"}
    assert any(name.startswith("_state/logs/") for name in names)
    assert not any(b"nobody" in name.encode() + out.read(name, 1 << 30) for name in names)  # its key is of-nobody


def test_a_folder_of_a_bucket_is_an_input_that_grows_and_its_results_are_read_as_those_of_a_folder(
    both, bucket, batchgen, tmp_path
):
    there, tables = bucket.location, {"input": {"incremental": True}, "output": {"shard_rows": 4}}
    for night in ("a", "b"):
        lines = [f'{{"id": "{night}{number}", "text": "Monday"}}\n' for number in range(6)]
        bucket.write(f"in/{night}.jsonl", "".join([*lines, '{"text": 1}\n']).encode())
        out, here = both([f"{there}/in/*.jsonl"], "out", **tables)
    results = open_results(out)
    assert [(row["id"], row["text"]) for row in results.join_input()][-1] == ("b5", "Monday")
    assert (results.dataset().count_rows(), len(results.to_pandas()), len(list(results.rejects()))) == (12, 12, 2)
    said = {
        "show": ["--id", "b5"],
        "rejects": ["--json"],
        "status": [],
        "report": ["--to", tmp_path / "page.html"],
    }
    for command, flags in said.items():
        done = batchgen(command, out, *([here] if command == "report" else []), *flags)
        assert done.exit_code == 0, done.stderr
    assert "12 rows are the same, 0 differ" in batchgen("show", out, "--diff", here).stdout
    done = batchgen("init", f"{there}/in", "--model", MODEL, "--output", out, "--to", tmp_path / "first.toml")
    assert (done.exit_code, f'path = "{out}"' in (tmp_path / "first.toml").read_text()) == (0, True), done.stderr
    done = batchgen("submit", tmp_path / "first.toml", "--dry-run", "--", "--output", f"{there}/new")
    assert (done.exit_code, f"--output {there}/new" in done.stdout) == (0, True), done.stderr


def test_an_export_to_a_bucket_is_that_to_a_folder(instantly, bucket, batchgen, write_rows, tmp_path):
    out = instantly([write_rows(mixed_rows(60))], "out", output={"shard_rows": 40})

    def exported(to: str, *flags: str) -> str:
        return batchgen("export", out, "--to", to, *flags).stderr

    for name in ("all.jsonl", "all.parquet", "dataset"):
        assert exported(f"{bucket.location}/x/{name}") == exported(tmp_path / name) == ""
    there = Bucket(f"{bucket.location}/x")
    names = {found.name for found in there.below()}
    assert names == {"all.jsonl", "all.parquet", "dataset/README.md", "dataset/data/train-00000-of-00001.parquet"}
    assert all(there.get(name)[0] == (tmp_path / name).read_bytes() for name in names)
    assert "is there already; give --overwrite" in exported(f"{bucket.location}/x/all.jsonl")
    bucket.write("x/dataset/data/train-00001-of-00002.parquet", b"of an earlier one")
    assert exported(f"{bucket.location}/x/dataset", "--overwrite") == ""
    assert {found.name for found in there.below()} == names
    bucket.write("x/dataset/mine", b"")
    for to in ("x", "x/dataset"):
        assert "holds something else" in exported(f"{bucket.location}/{to}", "--overwrite", "--format", "hf")
    assert there.get("dataset/mine")[0] == b""


def test_a_page_in_a_bucket_is_the_one_on_a_disk_and_replaces_none_but_pages(
    instantly, bucket, batchgen, write_rows, tmp_path
):
    out = instantly([write_rows(mixed_rows(20))], "out")
    page = f"{bucket.location}/page.html"
    for to in (tmp_path / "page.html", page, page):
        assert batchgen("report", out, "--to", to).exit_code == 0
    assert bucket.read("page.html", 1 << 20) == (tmp_path / "page.html").read_bytes()
    bucket.write("page.html", b"mine")
    done = batchgen("report", out, "--to", page)
    assert (done.exit_code, "is no such page" in done.stderr, bucket.read("page.html")) == (2, True, b"mine")
    assert batchgen("report", out, "--to", page, "--overwrite").exit_code == 0
    for to, why in (
        (f"{out}/page.html", "lies in the output folder"),
        ("s3://talks", "names no file"),
        ("hf://a/b", "not to this URI"),
    ):
        done = batchgen("report", out, "--to", to)
        assert (done.exit_code, why in done.stderr, len(done.stderr.splitlines())) == (2, True, 1)


def test_what_is_uploaded_may_lie_beside_an_output_and_not_in_its_place():
    out = "s3://talks/out/"
    places = ["s3://talks/out", "s3://talks/out/x.html", "s3://talks/out.html", "s3://talks/x"]
    assert [upload.lies_in(uri, out) for uri in places] == [True, True, False, False]


URI = "s3://AKIDKEY:hidden/s3cret@talks/x"
COMMANDS = [
    *(f"{name} {URI}" for name in ("run", "status", "verify", "rejects", "show", "plan", "inspect", "demo")),
    f"run in.jsonl --model {URI} --output out",
    f"run in.jsonl --model m --output {URI}",
    f"run in.jsonl --model m --output out --adapter a={URI}",
    f"run in.jsonl --model m --output out --checks {URI}.py:check",
    f"run in.jsonl --model m --output out --image-column i --image-folder {URI}",
    f"run in.jsonl --model m --output out --translate-fields x --translate-into ja --translate-glossary {URI}",
    f"run in.jsonl --model m --output out --translate-fields x --translate-into ja --translate-memory {URI}",
    "run https://host/in.jsonl?X-Amz-Signature=s3cret --model m --output out",
    f"retry {URI} --only length --output out",
    f"export {URI} --to x.jsonl",
    f"export out --to {URI}.jsonl",
    f"report {URI} --to x.html",
    f"report out --to {URI}.html",
    f"show out --diff {URI}",
    f"sweep {URI}.toml",
    f"sweep in.jsonl --model m --metrics-scorer {URI}.py:score --sweep temperature=0,1 --output out",
    f"submit {URI}.toml --dry-run",
    f"init {URI}.jsonl --model m",
    f"init in.jsonl --model {URI}",
    f"init in.jsonl --model m --to {URI}.toml",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_or_shows_a_key_in_a_uri(s3, batchgen, write_rows, command, monkeypatch, tmp_path):
    write_rows([{"text": "x"}], "in.jsonl")
    monkeypatch.chdir(tmp_path)
    done = batchgen(*command.split())
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in ("s3cret", "hidden", "AKIDKEY"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.fixture
def both(instantly, bucket, tmp_path):
    """Runs a job into a place in the bucket, and into a folder; gives both, once they are found to be the same."""

    def run(inputs, out: str, **tables):
        given = tables.pop("output", {})
        in_bucket = f"{bucket.location}/{out}"
        here = instantly(inputs, out, output=given, **with_memory(tables, lambda name: str(tmp_path / name)))
        instantly(
            inputs,
            output={**given, "path": in_bucket},
            **with_memory(tables, lambda name: f"{bucket.location}/{name}"),
        )
        assert buckets.dataset(at(in_bucket)) == processes.dataset(here)
        return in_bucket, here

    return run


def with_memory(tables: dict, place) -> dict:
    """The names of remembered outputs as they are there."""
    if "memory" not in tables.get("translate", {}):
        return tables
    return {**tables, "translate": {**tables["translate"], "memory": [place(n) for n in tables["translate"]["memory"]]}}


def test_an_incremental_job_grows_in_a_bucket(both, write_rows):
    source = write_rows(mixed_rows(50))
    tables = {"input": {"incremental": True}, "output": {"shard_rows": 20}}
    both([source], "out", **tables)
    with source.open("ab") as stream:
        stream.write(b'{"text": "one more"}\n')
    in_bucket, _ = both([source], "out", **tables)
    assert at(in_bucket).listed("", "part-")[-1] == "part-00003-of-00004.parquet"


def test_a_translation_in_a_bucket_remembers_one_in_a_bucket(both, write_rows):
    texts = [{"text": f"Hello {number}."} for number in range(50)]
    first, second = write_rows(texts[:30], "first.jsonl"), write_rows(texts[20:], "second.jsonl")
    asked = {"fields": ["text"], "from": "English", "into": "Japanese"}
    both([first], "first", translate=asked, output={"shard_rows": 20})
    both([second], "second", translate={**asked, "memory": ["first"]}, output={"shard_rows": 20})


def test_a_job_of_this_machine_has_its_glossary_memory_and_adapter_in_a_bucket(
    both, bucket, batchgen, batchgen_process, write_rows, tmp_path
):
    """A worker gets the keys to them, too."""
    texts = [{"text": f"Hello {number}."} for number in range(20)]
    asked = {"fields": ["text"], "from": "English", "into": "Japanese"}
    remembered, _ = both([write_rows(texts[:10], "first.jsonl")], "first", translate=asked)
    bucket.write("terms.tsv", "hello\tこんにちは\n".encode())
    for file in write_adapter(tmp_path / "lora", 1, OF_DEMO).iterdir():
        bucket.write(f"lora/{file.name}", file.read_bytes())
    flags = ["--model", MODEL, "--translate-fields", "text", "--translate-into", "Japanese"]
    flags += ["--template", "{glossary}: {text}", "--translate-memory", remembered]
    named = {"--adapter": f"{bucket.location}/lora", "--translate-glossary": f"{bucket.location}/terms.tsv"}
    environment = processes.instant(tmp_path / "engine") | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    source = write_rows(texts, "second.jsonl")

    def given(out, **changed):
        places = {**named, **changed}
        return ["--output", tmp_path / out, *flags, *(part for flag in places.items() for part in flag)]

    done = batchgen_process("run", source, *given("here"), env=environment)
    assert done.returncode == 0, done.stderr
    nowhere = f"{bucket.location}/none"
    for flag, why in {
        "--translate-glossary": f"[translate] glossary: {nowhere}: no such file",
        "--adapter": f"[model] adapter default: {nowhere}: no adapter is there; in a bucket it is a folder",
    }.items():
        done = batchgen("plan", source, *given("nothing", **{flag: nowhere}))
        assert (done.exit_code, why in done.stderr) == (2, True), done.stderr


def test_scores_in_a_bucket(both, write_rows):
    rows = write_rows([{"text": f"Monday {n}", "choices": ["a", "b"]} for n in range(30)])
    both([rows], "out", score={"mode": "choices", "column": "choices"}, output={"shard_rows": 20})


def test_what_went_wrong_in_a_bucket_is_tried_again_in_a_bucket(both, bucket, batchgen_process, write_rows, tmp_path):
    in_bucket, here = both([write_rows(mixed_rows(60))], "out", output={"shard_rows": 20})
    environment = processes.instant(tmp_path / "engine")
    for out, again in ((in_bucket, f"{bucket.location}/again"), (here, tmp_path / "again")):
        done = batchgen_process(
            "retry", out, "--only", "length", "--output", again, "--max-tokens", 40, env=environment
        )
        assert done.returncode == 0, done.stderr
        done = batchgen_process("export", again, "--to", tmp_path / "all.parquet", "--overwrite", env=environment)
        assert done.returncode == 0, done.stderr
    assert buckets.dataset(at(f"{bucket.location}/again")) == processes.dataset(tmp_path / "again")
    done = batchgen_process("retry", in_bucket, "--only", "length", "--output", in_bucket, env=environment)
    assert (done.returncode, "a retry needs a folder of its own" in done.stderr) == (2, True)
