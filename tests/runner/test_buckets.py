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
    assert not any(b"of-nobody" in out.read(name, 1 << 30) for name in ("_job.json", *logs_of(out)))


def logs_of(out) -> list[str]:
    """The logs that a bucket keeps."""
    return [f"_state/logs/{who}/{name}" for who in out.names("_state/logs") for name in out.names(f"_state/logs/{who}")]


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
