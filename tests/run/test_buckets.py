"""Jobs whose output is in a bucket: what holds in a folder holds there."""

import random
import time

import buckets
import processes
from conftest import MODEL
from processes import until
from test_kills import mixed_rows, while_generating

from batchgen.output.store import at

SHARDS = ["--shard-rows", 40]
QUICK = ["--stale", 3, "--journal-every", 0.5]  # so that a test need not wait for long


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
