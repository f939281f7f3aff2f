"""A folder is one job's: of several jobs that want it the first gets it, and nothing of it is lost or mixed."""

import contextlib
import json
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from conftest import MODEL, demo_records
from processes import answers_once, dataset, instant, said, until

from batchgen.job.spec import load
from batchgen.output import heartbeat as beat
from batchgen.output import opening
from batchgen.output import record as records
from batchgen.output.journal import Entry, Journal
from batchgen.output.presence import Presence
from batchgen.output.store import at
from batchgen.runner.prepare import Job, prepare

ROWS = 120
FLAGS = ("--temperature", "0.8", "--shard-rows", "40", "--max-tokens", "16")


@pytest.fixture
def source(write_rows):
    return write_rows(demo_records(ROWS))


@pytest.fixture
def slow(tmp_path):
    """Engines that take a moment to start, and more than a second for all rows."""
    return instant(tmp_path / "slow", start=0.5, step=0.1)


@pytest.fixture
def held(tmp_path) -> Path:
    """While it is there, engines of `at_work` have not done."""
    return tmp_path / "held"


@pytest.fixture
def at_work(tmp_path, held):
    return answers_once(tmp_path / "at work", held)


@pytest.fixture
def quick(tmp_path):
    return instant(tmp_path / "quick")


def has_job(out: Path) -> bool:
    return (out / "_job.json").exists()


def ends_well(run, batchgen, rows: int = ROWS) -> None:
    """A run whose folder somebody else wanted."""
    assert run.wait() == 0, run.stderr
    assert run.stdout.startswith(f"done: {rows} rows, {rows} responses, 0 rejects")
    rows_there = ds.dataset(run.out).to_table(["row"])["row"].to_pylist()
    assert sorted(rows_there) == list(range(rows))
    assert batchgen("verify", run.out).stdout.startswith(f"verified: {rows} rows, {rows} responses, 0 rejects\n")


def is_refused(run, *lines: str) -> None:
    assert run.wait() == 2, (run.stdout, run.stderr)
    assert run.stdout == ""
    for line in lines:
        assert line in run.stderr
    assert "Traceback" not in run.stderr


# --- while a run is at work


def test_a_run_whose_input_has_got_longer_is_refused(start, at_work, held, quick, source, tmp_path, batchgen):
    first = start(source, tmp_path / "out", *FLAGS, env=at_work)
    until(first.generating)
    read = source.read_bytes()
    source.write_bytes(read + read)
    is_refused(
        start(source, tmp_path / "out", *FLAGS, env=quick), "a run is at work there (", "  input.files[0].digest: "
    )
    source.write_bytes(read)
    held.unlink()
    ends_well(first, batchgen)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--shard-rows", "30"], "  output.shard_rows: 40 -> 30\n"),
        (["--seed", "1"], "  sampling.seed: 0 -> 1\n"),
        (["--temperature", "1.8"], "  sampling.temperature: 0.8 -> 1.8\n"),
        (["--column", "expected"], '  output.columns.expected: (none) -> "string"\n'),
        (["--seed", "1", "--discard"], "  sampling.seed: 0 -> 1\n"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("moment", ["engine starts", "generates"])
def test_another_job_is_refused_whatever_the_run_does(
    start, at_work, held, quick, source, tmp_path, batchgen, flags, line, moment
):
    out = tmp_path / "out"
    first = start(source, out, *FLAGS, env=at_work)
    until(lambda: has_job(out) if moment == "engine starts" else first.generating())
    is_refused(start(source, out, *FLAGS, *flags, env=quick), "a run is at work there (", line)
    held.unlink()
    ends_well(first, batchgen)


def test_the_same_job_joins_in(start, slow, source, tmp_path, batchgen):
    first, second = (start(source, tmp_path / "out", *FLAGS, env=slow) for _ in range(2))
    assert (first.wait(), second.wait()) == (0, 0), (first.stderr, second.stderr)
    assert batchgen("verify", tmp_path / "out").stdout.startswith(f"verified: {ROWS} rows")


def test_a_grid_loop_that_names_one_folder_keeps_the_first_job(start, slow, source, tmp_path, batchgen):
    out = tmp_path / "out"
    runs = []
    for temperature in ("0", "1.8", "0.5"):
        runs.append(start(source, out, "--temperature", temperature, "--shard-rows", "40", env=slow))
        time.sleep(0.3)
    codes = [run.wait() for run in runs]
    assert sorted(codes) == [0, 2, 2]
    winner = codes.index(0)
    ends_well(runs[winner], batchgen)
    temperatures = {row["temperature"] for row in ds.dataset(out).to_table(["sampling"])["sampling"].to_pylist()}
    assert temperatures == {(0.0, 1.8, 0.5)[winner]}


def change_owner(out: Path, **sampling) -> None:
    """What no run does that goes by the rules: writes another job over one that is at work."""
    record = records.read_job(at(out))
    results = {**record.results, "sampling": {**record.results["sampling"], **sampling}}
    other = {**json.loads((out / "_job.json").read_bytes()), "results": results}
    record.results, record.fingerprint = results, records.fingerprint(results)
    assert other["fingerprint"] != record.fingerprint
    records.write(at(out), record)


def test_a_worker_stops_before_it_commits_into_a_folder_that_is_another_jobs_by_now(start, slow, source, tmp_path):
    out = tmp_path / "out"
    run = start(source, out, *FLAGS, env=slow)
    until(run.generating)
    change_owner(out, seed=1)
    before = sorted(out.glob("part-*"))
    is_refused(run, "is another job's by now")
    assert len(said(run.stderr)) == 1
    assert sorted(out.glob("part-*")) == before
    assert not (out / "_SUCCESS").exists()


def test_a_worker_takes_its_plan_from_its_own_run(start, slow, source, tmp_path):
    """Another host that shares the folder has its input elsewhere, and writes where into `_job.json`."""
    out = tmp_path / "out"
    run = start(source, out, *FLAGS, env=slow)
    until(lambda: has_job(out))
    record = json.loads((out / "_job.json").read_bytes().replace(b"/in.jsonl", b"/no.jsonl"))
    del record["digest"]
    content = json.dumps({**record, "digest": records.fingerprint(record)}).encode()
    at(out).write("_job.json", content)
    assert records.read_job(at(out)).plan.files[0].path == f"{tmp_path}/no.jsonl"
    assert run.wait() == 0, run.stderr


# --- what a run has left


def test_another_job_is_told_what_it_would_drop_and_drops_it_when_told(start, slow, quick, source, tmp_path, batchgen):
    out = tmp_path / "out"
    first = start(source, out, *FLAGS, env=slow)
    until(lambda: (out / "part-00000-of-00003.parquet").exists() and any(out.glob("_state/journal/part-00001*")))
    first.kill()
    held = opening.held_in(at(out))
    assert held.shards >= 1
    assert held.responses >= 40
    is_refused(
        start(source, out, *FLAGS, "--seed", "1", env=quick),
        "holds results of a job that differs in\n  sampling.seed: 0 -> 1\n",
        f"--discard drops the {held.responses:,} responses that are there and starts anew",
    )
    assert opening.held_in(at(out)) == held
    second = start(source, out, *FLAGS, "--seed", "1", "--shard-rows", "60", "--discard", env=quick)
    ends_well(second, batchgen)
    [warning] = said(second.stderr)
    assert f"dropped {held.responses:,} responses of the job that was there, and {held.shards:,} shards" in warning
    assert [path.name for path in sorted(out.glob("part-*"))] == [f"part-0000{n}-of-00002.parquet" for n in range(2)]


def test_a_journal_alone_keeps_another_job_out(start, slow, quick, source, tmp_path, batchgen):
    out = tmp_path / "out"
    first = start(source, out, *FLAGS, "--shard-rows", "1000", env=slow)
    until(first.generating)
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 75
    held = opening.held_in(at(out))
    assert held.shards == 0
    is_refused(start(source, out, *FLAGS, env=quick), f"--discard drops the {held.responses:,} responses")
    again = start(source, out, *FLAGS, "--shard-rows", "1000", "--discard", env=quick)  # the same job loses nothing
    assert again.wait() == 0
    assert f"({held.responses:,} responses from the journal)" in again.stdout


def test_a_finished_job_is_dropped_only_when_told(start, quick, source, tmp_path, batchgen):
    out = tmp_path / "out"
    (tmp_path / "beside").mkdir()
    assert start(source, out, *FLAGS, env=quick).wait() == 0
    (out / "_rejects").symlink_to(tmp_path / "beside")
    (tmp_path / "beside" / "kept").touch()
    is_refused(start(source, out, *FLAGS, "--seed", "1", env=quick), f"drops the {ROWS} responses")
    (out / "_rejects").unlink()
    (out / "_state" / "grown").symlink_to(tmp_path / "beside")
    assert start(source, out, *FLAGS, "--seed", "1", "--discard", env=quick).wait() == 0
    assert (tmp_path / "beside" / "kept").exists()
    assert json.loads((out / "_job.json").read_bytes())["spec"]["sampling"]["seed"] == 1


def test_a_run_that_did_nothing_leaves_the_folder_to_a_mended_job(start, slow, quick, source, tmp_path, batchgen):
    out = tmp_path / "out"
    first = start(source, out, *FLAGS, env=slow)
    until(lambda: has_job(out))
    first.kill()
    ends_well(start(source, out, *FLAGS, "--seed", "1", env=quick), batchgen)


def test_what_the_dead_left_is_gone_when_the_job_closes(start, slow, quick, source, tmp_path):
    out = tmp_path / "out"
    first = start(source, out, *FLAGS, env=slow)
    until(first.generating)
    first.kill()
    (out / "_state" / "part-00000.0123456789ab.tmp").touch()
    assert list((out / "_state" / "workers").iterdir())
    assert list((out / "_state" / "runs").iterdir())
    assert start(source, out, *FLAGS, env=quick).wait() == 0
    left = [path for place in ("runs", "workers", "claims", "journal") for path in (out / "_state" / place).iterdir()]
    assert [*left, *(out / "_state").glob("*.tmp")] == []


def test_what_one_left_that_died_on_another_host_is_gone_when_that_is_known(start, quick, source, tmp_path):
    out = tmp_path / "out"
    (out / "_state" / "workers").mkdir(parents=True)
    beats(out / "_state" / "workers", "far away", age=5)
    assert start(source, out, *FLAGS, env=quick).wait() == 0
    (out / "_state" / "claims" / "part-00000").write_text("w")
    (out / "_state" / "journal" / "part-00000.w.journal").write_bytes(b"")
    before = dataset(out)
    beats(out / "_state" / "workers", "far away", age=300)
    again = start(source, out, *FLAGS, env=quick)
    assert again.wait() == 0
    assert again.stdout.startswith("all done already")
    assert dataset(out) == before
    assert [
        path for place in ("runs", "workers", "claims", "journal") for path in (out / "_state" / place).iterdir()
    ] == []


# --- in this process


def job(source: Path, out: Path, **sampling) -> Job:
    tables = {"input": {"path": [str(source)]}, "model": {"path": str(MODEL)}, "output": {"path": str(out)}}
    return prepare(load(None, {**tables, "sampling": {"temperature": 0, "max_tokens": 8, **sampling}}))


def beats(place: Path, host: str, age: float, state: str = "running") -> None:
    """A beat of another host, which cannot be asked whether its process is there."""
    who = beat.identity("w", 60) | {"host": host, "boot": "another"}
    place.mkdir(parents=True, exist_ok=True)
    (place / "w").write_bytes(beat.encode(who, beat.Activity(state=state), 1))
    os.utime(place / "w", (time.time() - age, time.time() - age))


@pytest.mark.parametrize("place", ["runs", "workers"])
@pytest.mark.parametrize(("age", "refused"), [(5, True), (300, False)])
def test_one_at_work_on_another_host_keeps_another_job_out_until_it_was_silent(source, tmp_path, place, age, refused):
    out = tmp_path / "out"
    assert opening.open_job(at(out), job(source, out).record)
    beats(out / "_state" / place, "elsewhere", age)
    if refused:
        with pytest.raises(opening.JobError, match="a run is at work there \\(elsewhere, process "):
            opening.open_job(at(out), job(source, out, seed=1).record)
    else:
        assert opening.open_job(at(out), job(source, out, seed=1).record)


def test_one_that_waits_for_its_turn_keeps_nobody_out(source, tmp_path):
    out = tmp_path / "out"
    assert opening.open_job(at(out), job(source, out).record)
    beats(out / "_state" / "runs", "elsewhere", 5, state="opening")
    assert opening.open_job(at(out), job(source, out, seed=1).record)


def test_runs_decide_one_at_a_time(source, tmp_path):
    out = tmp_path / "out"
    early, late = job(source, out), job(source, out, seed=1)
    at(out).prepare(shared=False)
    with Presence(at(out), 60) as one, Presence(at(out), 60) as two:
        with one.deciding():
            assert not two._claims.take("job")
        assert opening.open_job(at(out), early.record, one)
        assert not opening.open_job(at(out), late.record, two)  # it was prepared for an empty folder
        with pytest.raises(opening.JobError, match="a run is at work there"):
            opening.open_job(at(out), job(source, out, seed=1).record, two)
    assert opening.open_job(at(out), job(source, out, seed=1).record)


@pytest.fixture
def begun(source, tmp_path) -> Path:
    out = tmp_path / "out"
    assert opening.open_job(at(out), job(source, out).record)
    return out


def test_who_goes_on_with_the_job_waits_for_no_turn(source, begun, monkeypatch):
    again = job(source, begun)
    monkeypatch.setattr(Presence, "deciding", None)
    assert opening.open_job(at(begun), again.record)


@pytest.mark.parametrize("decides", ["still", "already"])
def test_it_waits_where_another_job_is_getting_the_folder(source, begun, monkeypatch, decides):
    other, opened = job(source, begun, seed=1), Presence.opened

    def just_before(presence: Presence) -> None:
        """The other one's turn comes when this one has read the record, and is not at work yet."""
        monkeypatch.setattr(Presence, "opened", opened)
        if decides == "already":
            assert opening.open_job(at(begun), other.record)
        else:
            (begun / "_state" / "claims" / "job").write_text("elsewhere.1.x")
        opened(presence)

    monkeypatch.setattr(Presence, "opened", just_before)
    with Presence(at(begun), 60) as presence:
        monkeypatch.setattr(presence, "waited_for_decision", lambda: False)  # the other one is dead
        assert not opening._joins(at(begun), opening._version_of_record(at(begun)), presence)
        [run] = (begun / "_state" / "runs").iterdir()
        assert beat.decode(run.read_bytes()).state == "opening"


def test_of_many_that_begin_together_one_writes_and_the_others_join(source, tmp_path, monkeypatch):
    out, turns = tmp_path / "out", []
    prepared = [job(source, out) for _ in range(8)]
    deciding = Presence.deciding

    @contextlib.contextmanager
    def counted(self, *still):
        with deciding(self, *still) as is_our_turn:
            turns.append(is_our_turn)
            yield is_our_turn

    monkeypatch.setattr(Presence, "deciding", counted)

    def begin(mine: Job) -> None:
        while not opening.open_job(at(out), mine.record):
            mine = job(source, out)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(begin, prepared))
    assert turns.count(True) < 8
    assert opening.record.read_job(at(out)).fingerprint == prepared[0].record.fingerprint


def test_a_journal_without_entries_is_nothing_to_keep(source, tmp_path):
    out = tmp_path / "out"
    one = job(source, out)
    assert opening.open_job(at(out), one.record)
    begun = Journal(at(out), 0, "w", one.record.fingerprint)
    begun._create()
    assert not opening.held_in(at(out))
    begun.append(Entry(0, 0, [5], "stop"))
    begun.flush()
    assert opening.held_in(at(out)) == (0, 1)


# --- by the dozen


@pytest.mark.slow
def test_of_50_pairs_of_jobs_that_start_within_three_seconds_one_wins_each_time(
    start, source, tmp_path, batchgen, write_rows
):
    some = random.Random(11)
    other = write_rows(demo_records(ROWS + 7)[::-1], "other.jsonl")
    environments = [instant(tmp_path / f"e{n}", some.uniform(0, 2), some.uniform(0.02, 0.2)) for n in range(5)]
    kinds = [["--seed", "1"], ["--shard-rows", "30"], ["--column", "expected"], ["--temperature", "0"], []]
    codes = []
    for number in range(50):
        out, flags = tmp_path / f"out{number}", some.choice(kinds)
        jobs = [(source, []), (source if flags else other, flags)]
        some.shuffle(jobs)
        runs = []
        for path, more in jobs:
            runs.append(start(path, out, *FLAGS, *more, env=some.choice(environments)))
            if len(runs) == 1:
                time.sleep(some.choice([0, some.uniform(0, 0.3), some.uniform(0, 3)]))
        codes.append([run.wait() for run in runs])
        assert sorted(codes[-1]) == [0, 2], [run.stderr for run in runs]
        winner = codes[-1].index(0)
        assert "Traceback" not in runs[1 - winner].stderr
        ends_well(runs[winner], batchgen, ROWS if jobs[winner][0] == source else ROWS + 7)
    print(f"the second won {codes.count([2, 0])} of 50")
