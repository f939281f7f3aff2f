"""What `_runs.jsonl` says of the runs of a job."""

import json
import socket
from datetime import datetime
from pathlib import Path

import pytest
from conftest import MODEL, demo_records
from faulty import worker_here
from processes import instant, starting, until

from batchgen.engine.installed import versions
from batchgen.output import layout
from batchgen.output.store import at
from batchgen.runner import outcome

SHARDS = ["--shard-rows", 20]


@pytest.fixture
def start():
    with starting() as start:
        yield start


def runs(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "_runs.jsonl").read_text().splitlines()]


def rows(count: int) -> list[dict]:
    """Every tenth has no text."""
    return [{"id": f"a-{number}", "text": "" if number % 10 == 3 else f"row {number}"} for number in range(count)]


@pytest.fixture
def run(instant_engine, write_rows, tmp_path, batchgen):
    """`batchgen run` of 50 rows, five of which are rejected, in this process."""
    source = write_rows(rows(50))

    def command(*flags, out=tmp_path / "out", env=None):
        with worker_here(instant_engine):
            return batchgen("run", source, "--model", MODEL, "--output", out, *SHARDS, *flags)

    return command


def test_a_run_says_when_where_and_how_it_ended_and_what_it_did(run, tmp_path):
    run()
    [line] = runs(tmp_path / "out")
    start, end = (datetime.fromisoformat(line[key]) for key in ("start", "end"))
    assert start <= end
    assert start.utcoffset().total_seconds() == 0
    assert (line["host"], line["output"]) == (socket.gethostname(), str(tmp_path / "out"))
    assert line["versions"]["batchgen"]
    assert line["versions"].items() >= versions().items()
    assert (line["outcome"], line["exit_code"], line["why"]) == ("done", 0, "")
    assert (line["rows"], line["open_rows"], line["responses"], line["kept"]) == (50, 0, 45, 0)
    assert (line["rejects"], line["finish_reasons"]) == ({"empty": 5}, {"stop": 45})
    assert min(line["prompt_tokens"], line["response_tokens"], line["seconds"], line["tokens_per_second"]) > 0
    assert line["engine_start_seconds"] == 0
    assert line["first_reject"].startswith(f"{tmp_path / 'in.jsonl'}:4: empty")
    assert (line["job"]["rows"], line["job"]["rejects"]) == (50, {"empty": 5})


def test_one_that_had_too_many_rejects_says_so(run, tmp_path):
    assert run("--max-rejects", 4).exit_code == 3
    assert [(line["outcome"], line["exit_code"]) for line in runs(tmp_path / "out")] == [("too_many_rejects", 3)]


def test_over_all_runs_rows_and_rejects_add_up_to_the_jobs(run, tmp_path):
    for limit in (25, 40):
        run("--limit", limit)
    run()
    run()  # nothing to do
    lines = runs(tmp_path / "out")
    assert [line["outcome"] for line in lines] == ["trial", "trial", "done"]
    assert sum(line["rows"] for line in lines) == 50
    assert sum(line["rejects"]["empty"] for line in lines) == 5
    assert sum(line["finish_reasons"]["stop"] for line in lines) == sum(line["responses"] for line in lines) == 45


def test_a_run_that_is_stopped_and_one_whose_engine_dies_leave_their_lines_too(start, write_rows, tmp_path):
    source, out = write_rows(demo_records(400)), tmp_path / "out"
    slow = instant(tmp_path / "slow", start=0.1, step=0.1)
    stopped = start(source, out, *SHARDS, env=slow)
    until(stopped.generating)
    stopped.process.terminate()
    assert stopped.wait() == 75
    died = start(source, out, *SHARDS, env=instant(tmp_path / "dying") | {"BATCHGEN_TEST_START": "none"})
    assert died.wait() == 1
    assert start(source, out, *SHARDS, env=instant(tmp_path / "quick")).wait() == 0
    first, second, third = runs(out)
    assert (first["outcome"], first["exit_code"], first["why"]) == ("stopped", 75, stopped.stderr.splitlines()[-1][10:])
    assert first["engine_start_seconds"] >= 0.1
    assert first["rows"] + first["open_rows"] > 0
    assert (second["outcome"], second["exit_code"], second["rows"]) == ("failed", 1, 0)
    assert second["why"] in died.stderr
    assert (third["outcome"], third["exit_code"]) == ("done", 0)
    assert first["responses"] + third["responses"] == 400
    assert first["rows"] + third["rows"] == third["job"]["rows"] == 400


def test_runs_side_by_side_leave_a_line_each(start, write_rows, tmp_path):
    source, out = write_rows(demo_records(600)), tmp_path / "out"
    paced = instant(tmp_path / "paced", step=0.05)
    both = [start(source, out, *SHARDS, env=paced) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    lines = runs(out)
    assert len(lines) == 2
    assert sum(line["rows"] for line in lines) == 600
    assert {line["outcome"] for line in lines} <= {"done", "left_to_others"}


def test_in_a_bucket_there_is_a_line_for_each_run_too(run, bucket):
    run("--limit", 20, out=bucket)
    run(out=bucket)
    lines = [json.loads(line) for line in bucket.read(layout.RUN_LOG).splitlines()]
    assert [line["outcome"] for line in lines] == ["trial", "done"]


def test_a_line_that_cannot_be_added_is_a_warning_and_nothing_else(run, tmp_path):
    (tmp_path / "out").mkdir()
    assert run("--limit", 20).exit_code == 0
    (tmp_path / "out" / "_runs.jsonl").unlink()
    (tmp_path / "out" / "_runs.jsonl").symlink_to(tmp_path / "elsewhere")
    done = run()
    assert done.exit_code == 0
    assert "warning: no line about this run was added to _runs.jsonl" in done.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_no_secret_of_the_environment_gets_into_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of-nobody-at-all")
    out = at(tmp_path / "out")
    out.prepare(shared=False)
    done = outcome.Outcome(out, first_reject="said hf_of-nobody-at-all")
    outcome.log(out, outcome.record_of(done, "out", 0.0, {}, outcome.Stopped("said hf_of-nobody-at-all")))
    assert "nobody" not in (tmp_path / "out" / "_runs.jsonl").read_text()
