"""`batchgen status`: what it says of a job, wherever it is asked from, and the beats that it reads."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest
from conftest import demo_records
from faulty import finished_in_shards_of_one, run_here, spec_of
from processes import instant, starting, until
from translator import Translator, job_of, work

from batchgen.commands import status
from batchgen.errors import Stopped
from batchgen.host import clock
from batchgen.output import heartbeat as beat
from batchgen.output.claims import Claims
from batchgen.output.heartbeat import Activity, Pace
from batchgen.output.store import at

BUSY = Activity(state="running", rows=10, open_rows=3, response_tokens_per_second=5.5, running=2, waiting=1)
STALE = 3  # seconds


@pytest.fixture(scope="session")
def finished(engine, tmp_path_factory):
    """A finished job of 8 shards, 2 rows each; one row is rejected."""
    place = tmp_path_factory.mktemp("finished")
    lines = [json.dumps({"text": f"May {day}"}) for day in range(1, 16)]
    (place / "in.jsonl").write_text("\n".join(["no json", *lines]) + "\n")
    run_here(engine, spec_of(place / "in.jsonl", place / "out", shard_rows=2))
    return place / "out"


def test_it_says_where_the_first_reject_is_and_why(finished, batchgen):
    seen = status.look(finished)
    assert seen.first_reject.startswith(f"{finished.parent / 'in.jsonl'}:1: invalid_json: ")
    assert f"first reject {seen.first_reject}\n" in batchgen("status", finished).stdout


def test_of_a_stopped_translation_it_counts_the_answers_in_journals(tmp_path, batchgen):
    (path := tmp_path / "in.jsonl").write_text("".join(f'{{"text": "Line {number}."}}\n' for number in range(9)))
    job = job_of([path], tmp_path / "translated", ["text"])
    with pytest.raises(Stopped):
        work(job, Translator(), stop_after=4)
    seen = status.look(tmp_path / "translated")
    assert (seen.rows_done, seen.journaled >= 4) == (0, True)
    assert f"in journals  {seen.journaled} answers of unfinished shards\n" in batchgen("status", seen.out).stdout
    work(job, Translator())
    assert status.look(tmp_path / "translated").journaled == 0


@pytest.fixture
def out(finished, tmp_path) -> Path:
    """A copy of the job that was interrupted: 3 of its 8 shards are missing."""
    copied = shutil.copytree(finished, tmp_path / "out")
    for name in ("_SUCCESS", *(f"part-{index:05}-of-00008.parquet" for index in (5, 6, 7))):
        (copied / name).unlink()
    return copied


def worker_elsewhere(out: Path, silent: float = 0, holds: tuple[int, ...] = (), activity: Activity = BUSY) -> Path:
    """The files of a worker of another host, which beat last so many seconds ago."""
    name = f"elsewhere.1.{silent:g}"
    who = {**beat.identity(name, STALE), "host": "elsewhere", "slurm": {"array_job_id": "77", "array_task_id": "3"}}
    file = out / "_state" / "workers" / name
    file.write_bytes(beat.encode(who, activity, 1))
    os.utime(file, (time.time() - silent,) * 2)
    for index in holds:
        (out / "_state" / "claims" / f"part-{index:05}").write_text(name)
    return file


def tree(out: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in out.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# --- beats


def test_a_beat_has_one_length_whatever_it_says():
    who = beat.identity("w", 60)
    most = {name: type(getattr(BUSY, name))(10**15) for name in Activity.__struct_fields__ if name != "state"}
    said = [beat.encode(who, activity, 1) for activity in (Activity(), BUSY, Activity(state="draining", **most))]
    assert len({len(each) for each in (*said, beat.encode(who, BUSY, 10**12))}) == 1
    assert beat.decode(said[1]).response_tokens_per_second == 5.5


def test_two_beats_that_are_mixed_name_the_same_process_or_cannot_be_read():
    who = beat.identity("w", 60)
    old, new = beat.encode(who, Activity(), 99), beat.encode(who, BUSY, 100)
    mixed = [beat.decode(new[:cut] + old[cut:]) for cut in range(len(old) + 1)]
    assert any(mixed)
    assert {(said.pid, said.host, said.started) for said in mixed if said} == {
        (who["pid"], who["host"], who["started"])
    }


def test_a_worker_says_what_it_does_and_its_slurm_task(out, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "80")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    claims = Claims(at(out), stale=60)
    size = (out / "_state" / "workers" / claims.worker).stat().st_size
    [worker] = status.look(out).workers
    assert (worker.state, worker.pid, worker.slurm_task) == ("starting", os.getpid(), "77_3")
    claims.tell(lambda: BUSY)
    [worker] = status.look(out).workers
    assert (worker.state, worker.rows, worker.running, worker.waiting) == ("running", 10, 2, 1)
    assert (out / "_state" / "workers" / claims.worker).stat().st_size == size
    claims.close()
    assert status.look(out).workers == []


def test_the_pace_is_that_of_the_last_30_seconds():
    with mock.patch.object(clock, "monotonic") as now:
        now.return_value = 0.0
        pace = Pace(0)
        for seconds in (10, 20, 30):
            now.return_value = float(seconds)
            assert pace.rates(seconds * 10) == [10]
        now.return_value = 60.0
        assert pace.rates(300) == [0]


# --- a folder


def test_a_finished_job(finished, batchgen):
    result = batchgen("status", finished)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"job          done, {finished}\nshards       8 done, 0 running, 0 left of 8\n")
    success = json.loads((finished / "_SUCCESS").read_text())
    found = json.loads(batchgen("status", finished, "--json").stdout)
    assert found["finished"] == {name: success[name] for name in found["finished"] if name in success} | {
        "unreadable": 0
    }
    assert (found["state"], found["eta"], found["workers"], found["rows_done"]) == ("done", 0, [], 16)
    assert found["finished"]["rejects"] == {"invalid_json": 1}
    assert found["response_tokens_per_second_overall"] > 0


def test_an_interrupted_job_is_stopped_and_has_no_eta(out):
    seen = status.look(out)
    assert (seen.state, seen.rows_done, seen.rows, seen.eta) == ("stopped", 10, 16, None)
    assert seen.shards == status.Shards(total=8, done=5, running=0, left=3)


def test_a_live_worker_of_another_host_counts_with_what_it_says(out, batchgen):
    worker_elsewhere(out, holds=(5, 6), activity=Activity(state="running", open_rows=2, rows_per_second=0.5, running=4))
    seen = status.look(out)
    assert (seen.state, seen.shards.running, seen.shards.left) == ("running", 2, 1)
    assert (seen.rows_done, seen.eta) == (12, 8.0)
    assert seen.workers[0].shards == [5, 6]
    assert "elsewhere.1.0  running  77_3   0 s ago    5,6" in batchgen("status", out).stdout


def test_a_worker_that_drains_promises_no_more_rows(out):
    worker_elsewhere(out, activity=Activity(state="draining", rows_per_second=0.5))
    assert status.look(out).eta is None


@pytest.mark.parametrize("silent, state", [(STALE - 2, "running"), (STALE + 2, "dead")])
def test_a_worker_of_another_host_is_dead_once_it_was_silent_for_the_time_it_named_itself(out, silent, state):
    worker_elsewhere(out, silent, holds=(5,))
    seen = status.look(out)
    assert [worker.state for worker in seen.workers] == [state]
    assert (len(seen.live), seen.shards.running) == ((1, 1) if state == "running" else (0, 0))
    assert seen.response_tokens_per_second == (5.5 if state == "running" else 0)


def test_this_hosts_clock_does_not_matter(out):
    worker_elsewhere(out, silent=1)
    with mock.patch.object(time, "time", lambda: 0.0):
        [worker] = status.look(out).workers
    assert (worker.state, worker.heartbeat_age) == ("running", pytest.approx(1, abs=1))


def test_a_damaged_beat_is_a_worker_of_whom_nothing_is_known_until_it_was_silent_too_long(out):
    file = worker_elsewhere(out)
    file.write_bytes(b"{\0\0")
    assert [(worker.state, worker.running) for worker in status.look(out).workers] == [("unknown", 0)]
    os.utime(file, (time.time() - 100,) * 2)
    assert status.look(out).workers[0].state == "dead"


@contextlib.contextmanager
def read_only(out: Path):
    """For a user who may read everything there and change nothing."""
    modes = {
        path: stat.S_IMODE(path.stat().st_mode) for path in (out / "_state", *out.rglob("*"), out) if path.exists()
    }
    for path, mode in modes.items():
        path.chmod(mode & 0o555 | 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


def test_where_it_may_not_write_it_calls_nobody_dead_for_silence(out, batchgen):
    worker_elsewhere(out, silent=STALE + 2)
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        moved = shutil.move(out, Path(place) / "out")
        with read_only(moved):
            seen = status.look(moved)
            text = batchgen("status", moved).stdout
    assert (seen.state, seen.clock, seen.workers[0].state) == ("unknown", "this host", "silent")
    assert "heartbeats are timed by this host's own clock" in text
    assert (seen.rows_done, seen.finished.responses) == (10, 9)


def test_a_look_changes_nothing(out, batchgen):
    worker_elsewhere(out, holds=(5,))
    worker_elsewhere(out, silent=STALE + 2, holds=(6,))
    before = tree(out)
    batchgen("status", out)
    assert tree(out) == before


def test_counts_that_cannot_be_read_are_said_to_be_missing(out, batchgen):
    (out / "_state" / "checksums" / "part-00001-of-00008.json").write_bytes(b"\0")
    (out / "_state" / "checksums" / "part-00002-of-00008.json").unlink()
    assert status.look(out).finished.unreadable == 2
    assert "those of 2 shards cannot be read" in batchgen("status", out).stdout


@pytest.mark.parametrize("kind", ["missing", "file", "other"])
def test_what_is_no_output_folder_is_refused(tmp_path, batchgen, kind):
    path = tmp_path / "x"
    if kind == "file":
        path.touch()
    if kind == "other":
        path.mkdir()
        (path / "data").touch()
    result = batchgen("status", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"batchgen: {path}: no batchgen output folder (it has no _job.json)\n"


# --- Prometheus


def test_metrics_are_in_prometheus_text_format(out, tmp_path, batchgen):
    from prometheus_client import parser  # vLLM brings it

    odd = out.rename(tmp_path / 'a "b" \\ c')
    worker_elsewhere(odd, holds=(5,))
    worker_elsewhere(odd, silent=STALE + 2)
    file = tmp_path / "out.prom"
    assert batchgen("status", odd, "--prometheus", file).exit_code == 0
    text = file.read_text()
    families = list(parser.text_string_to_metric_families(text))
    assert text.endswith("\n") and text.count("# HELP ") == text.count("# TYPE ") == len(families)
    assert all(family.documentation and family.name.startswith("batchgen_") for family in families)
    samples = [sample for family in families for sample in family.samples]
    assert all(sample.labels["out"] == str(odd) for sample in samples)
    counters = {sample.name for family in families if family.type == "counter" for sample in family.samples}
    assert counters == {sample.name for sample in samples if sample.name.endswith("_total")}
    value = {(sample.name, *list(sample.labels.values())[1:]): sample.value for sample in samples}
    assert value["batchgen_rows_total",] == 10
    assert value["batchgen_rejects_total", "invalid_json"] == 1
    assert value["batchgen_job_shards", "running"] == 1
    assert value["batchgen_workers", "dead"] == 1
    assert value["batchgen_job_state", "running"] == 1
    assert value["batchgen_requests", "waiting"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {odd.name, file.name}


# --- watching


def command(*arguments: object) -> list[str]:
    return [str(part) for part in (Path(sys.executable).with_name("batchgen"), "status", *arguments)]


def test_watch_ends_when_the_job_is_done(finished, batchgen):
    result = batchgen("status", finished, "--watch")
    assert result.stdout == "done: 16 of 16 rows, 8 of 8 shards, 0 workers, 0 tokens/s, ETA 0:00:00\n"


def test_ctrl_c_ends_watch_quietly(out):
    process = subprocess.Popen(command(out, "--watch"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline().startswith("stopped: 10 of 16 rows, 5 of 8 shards, 0 workers")
        process.send_signal(signal.SIGINT)
        assert (process.stderr.read(), process.wait()) == ("", 0)


# --- a job that runs


def test_a_real_job_from_its_start_over_a_kill_to_its_end(write_rows, tmp_path):
    source, out = write_rows(demo_records(480)), tmp_path / "out"
    states, numbers = [], []

    def look() -> status.Status:
        seen = status.look(out)
        states.append(seen.state)
        return seen

    def generates() -> bool:
        seen = look()
        numbers.extend(worker for worker in seen.workers if worker.response_tokens_per_second)
        return bool(numbers) and seen.shards.done > 0

    paced = instant(tmp_path / "instant", start=0.5, step=0.1)
    with starting() as start:
        run = start(source, out, "--shard-rows", 20, "--stale", 1000, env=paced)
        until(lambda: (out / "_job.json").exists())
        until(generates)
        worker = numbers[-1]
        assert "starting" in states
        assert (worker.pid, worker.state) == (run.workers()[0], "running")
        assert worker.running > 0 and worker.shards and worker.rows > 0 and worker.prompt_tokens > 0
        assert look().eta is not None
        run.kill()
        until(lambda: look().state == "stopped")  # at once: nobody waits for its heartbeats to be stale
        seen = look()
        assert (seen.state, seen.eta, [worker.state for worker in seen.workers]) == ("stopped", None, ["dead"])
        assert seen.workers[0].running == 0 < seen.workers[0].rows
        watched = subprocess.Popen(command(out, "--watch", "--json"), stdout=subprocess.PIPE, text=True)
        again = start(source, out, "--shard-rows", 20, "--stale", 1000, env=paced)
        lines = [json.loads(line) for line in watched.communicate(timeout=120)[0].splitlines()]
        assert (again.wait(), watched.returncode) == (0, 0), again.stderr
    assert [lines[0]["state"], lines[-1]["state"]] == ["stopped", "done"]
    assert lines[-1]["rows_done"] == lines[-1]["finished"]["rows"] == 480
    assert max(line["response_tokens_per_second"] for line in lines) > 0


@pytest.mark.slow
def test_10_000_finished_shards_are_counted_within_a_second(tmp_path, write_rows):
    path = write_rows([{"text": f"{number}"} for number in range(10_000)])
    job = finished_in_shards_of_one(path, tmp_path / "out")
    seconds = []
    for _ in range(5):
        begin = time.monotonic()
        done = subprocess.run(command(job.out), capture_output=True, text=True)
        seconds.append(time.monotonic() - begin)
        assert "shards       10,000 done, 0 running, 0 left of 10,000" in done.stdout, done.stderr
    print(f"10,000 finished shards: {min(seconds):.2f} s")
    assert min(seconds) < 1
