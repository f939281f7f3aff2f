"""Which worker holds which shard: by the files alone, and as whole runs that share a folder."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from conftest import demo_records
from processes import Watch, dataset, until

from batchgen.output.claims import Claims
from batchgen.output.store import at

STALE = 0.6  # seconds
FAR = 600  # seconds that the clock of another host may be off


@pytest.fixture
def out(tmp_path) -> Path:
    for name in ("claims", "workers"):
        (tmp_path / "_state" / name).mkdir(parents=True)
    return tmp_path


class Elsewhere:
    """A worker of another host, as its files show it here: it holds shard 0."""

    def __init__(self, out: Path, clock: float = 0):
        self._file, self._clock = out / "_state" / "workers" / "elsewhere.1.x", clock
        (out / "_state" / "claims" / "part-00000").write_text("elsewhere.1.x")
        self.beat(0)

    def beat(self, number: int) -> None:
        self._file.write_text(json.dumps({"host": "elsewhere", "boot": "b", "pid": 1, "started": "1", "beat": number}))
        os.utime(self._file, (time.time() + self._clock,) * 2)


def taken_after(claims: Claims, shard: int = 0) -> float:
    """Seconds; it fails after far fewer than a claim that is stale after 60 s, or by a clock that is FAR off, takes."""
    begin = time.monotonic()
    until(lambda: claims.take(shard), timeout=30)
    return time.monotonic() - begin


# --- the files


def test_only_one_of_two_takes_a_shard(out):
    one, two = Claims(at(out), STALE), Claims(at(out), STALE)
    assert one.take(0)
    assert not two.take(0)
    assert two.take(1)


def test_a_released_shard_can_be_taken_by_another(out):
    one, two = Claims(at(out), STALE), Claims(at(out), STALE)
    assert one.take(0)
    one.release(0)
    assert two.take(0)


def test_closing_releases_everything_and_leaves_no_file(out):
    claims = Claims(at(out), STALE)
    assert claims.take(0) and claims.take(1)
    claims.close()
    assert list(out.glob("_state/*/*")) == []


def test_a_claim_that_was_taken_over_is_not_released_by_its_old_holder(out):
    one, two = Claims(at(out), STALE), Claims(at(out), STALE)
    assert one.take(0)
    (out / "_state" / "claims" / "part-00000").write_text(two.worker)
    one.release(0)
    assert (out / "_state" / "claims" / "part-00000").exists()


TAKE_AND_WAIT = """
import sys
from pathlib import Path
from batchgen.output.claims import Claims
from batchgen.output.store import at
assert Claims(at(sys.argv[1]), 60).take(0)
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("reaped", [True, False])
def test_a_claim_of_a_killed_process_of_this_host_is_taken_at_once(out, reaped):
    holder = subprocess.Popen(
        [sys.executable, "-c", TAKE_AND_WAIT, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"taken\n"
        claims = Claims(at(out), 60)
        assert not claims.take(0)
        holder.kill()
        if reaped:
            holder.wait()
        taken_after(claims)


def test_a_process_that_was_given_a_dead_workers_id_is_not_taken_for_it(out):
    dead = Claims(at(out), 60)
    assert dead.take(0)
    file = out / "_state" / "workers" / dead.worker
    file.write_text(json.dumps({**json.loads(file.read_text()), "started": "1"}))
    assert Claims(at(out), 60).take(0)


@pytest.mark.parametrize("clock", [-FAR, 0, FAR])
def test_a_silent_worker_elsewhere_loses_its_shard_after_stale_by_our_own_clock(out, clock):
    Elsewhere(out, clock)
    assert taken_after(Claims(at(out), STALE)) >= STALE


@pytest.mark.parametrize("clock", [-FAR, FAR])
def test_a_worker_elsewhere_that_beats_keeps_its_shard(out, clock):
    holder, claims = Elsewhere(out, clock), Claims(at(out), STALE)
    end, number = time.monotonic() + 4 * STALE, 0
    while time.monotonic() < end:
        number += 1
        holder.beat(number)
        assert not claims.take(0)


def test_a_claim_of_a_worker_that_has_left_is_taken_at_once(out):
    (out / "_state" / "claims" / "part-00000").write_text("elsewhere.1.x")
    assert Claims(at(out), 60).take(0)


@pytest.mark.parametrize("content", [b"\0" * 40, b"\xff\xfe/../..\n", b"no such worker", b"../claims/part-00000"])
def test_a_claim_that_names_no_worker_is_taken_at_once(out, content):
    (out / "_state" / "claims" / "part-00000").write_bytes(content)
    assert Claims(at(out), 60).take(0)


def test_an_empty_claim_is_taken_after_stale_for_its_maker_may_be_about_to_write_its_name(out):
    (out / "_state" / "claims" / "part-00000").touch()
    assert taken_after(Claims(at(out), STALE)) >= STALE


def test_a_damaged_beat_counts_as_silence(out):
    Elsewhere(out)
    (out / "_state" / "workers" / "elsewhere.1.x").write_bytes(b"\0\0{")
    assert taken_after(Claims(at(out), STALE)) >= STALE


def test_a_holder_counts_as_at_work_only_once_its_beat_went_on(out):
    holder, claims = Elsewhere(out), Claims(at(out), 60)
    holder.beat(1)
    claims.take(0)
    since = time.monotonic()
    assert not claims.at_work([0], since)
    claims.take(0)
    assert not claims.at_work([0], since)
    holder.beat(2)
    claims.take(0)
    assert claims.at_work([0], since)
    assert not claims.at_work([0], time.monotonic())


def take_all(out: Path, shards: int, number: int, barrier, taken) -> None:
    claims, order = Claims(at(out), 60), list(range(shards))
    if number % 2:
        random.Random(number).shuffle(order)
    barrier.wait()
    taken.put([shard for shard in order if claims.take(shard)])
    barrier.wait()  # alive until all are through


def take_and_die(out: Path, shards: int) -> None:
    claims = Claims(at(out), 60)
    assert all(claims.take(shard) for shard in range(shards))
    os._exit(0)


@pytest.mark.parametrize("before", ["nobody", "a dead worker"])
def test_of_many_workers_each_shard_is_taken_by_exactly_one(out, before):
    processes, shards, context = 8, 200, multiprocessing.get_context("fork")
    if before == "a dead worker":
        dead = context.Process(target=take_and_die, args=(out, shards))
        dead.start()
        dead.join()
        assert dead.exitcode == 0
    barrier, taken = context.Barrier(processes), context.Queue()
    started = [context.Process(target=take_all, args=(out, shards, n, barrier, taken)) for n in range(processes)]
    for process in started:
        process.start()
    holders = Counter(shard for _ in started for shard in taken.get(timeout=60))
    for process in started:
        process.join()
    assert holders == Counter(range(shards))


# --- whole runs


@pytest.fixture
def source(write_rows):
    rows = demo_records(600)
    for row in rows[::5]:
        row["sampling"] = {"ignore_eos": True, "max_tokens": 200}
    return write_rows([*rows, "no json"])


def test_two_runs_on_one_folder_share_the_work_and_give_the_dataset_of_one(start, instantly, source, tmp_path):
    expected = instantly([source], "expected", output={"shard_rows": 20})
    watch = Watch(tmp_path, together=2, step=0.05)
    runs = [start(source, tmp_path / "out", "--shard-rows", 20, env=watch.environment) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0], [run.stderr for run in runs]
    assert dataset(tmp_path / "out") == dataset(expected)
    assert max(Counter(done.item for done in watch.finished()).values()) == 1
    assert len({done.worker for done in watch.finished()}) == 2


@pytest.mark.slow
def test_a_run_that_was_stopped_and_lost_its_shard_ends_well_when_it_is_continued(start, generate, source, tmp_path):
    expected = generate([source], "expected", output={"shard_rows": 20})
    flags = [source, tmp_path / "out", "--shard-rows", 20, "--stale", 3]
    asleep = start(*flags)
    until(asleep.generating)
    everything = [asleep.process.pid, *asleep.workers()]
    for pid in everything:
        os.kill(pid, signal.SIGSTOP)
    held = list((tmp_path / "out" / "_state" / "claims").iterdir())
    assert held
    other = start(*flags)
    assert other.wait() == 0, other.stderr
    assert other.stdout.startswith("done: ")
    assert dataset(tmp_path / "out") == dataset(expected)
    for pid in everything:
        os.kill(pid, signal.SIGCONT)
    assert asleep.wait() == 0, asleep.stderr
    assert dataset(tmp_path / "out") == dataset(expected)
    assert ds.dataset(tmp_path / "out").count_rows() == 600
