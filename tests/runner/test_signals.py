"""Signals to a run: it drains, journals, releases its shards, exits 75, and the same command goes on.

The engine answers at once, at a pace (paced.py), but where a name says vLLM.
"""

import os
import re
import signal
import time
from collections import Counter

import pytest
from conftest import demo_records
from processes import (
    LONG,
    Run,
    Watch,
    assert_stopped_resumable,
    dataset,
    hook,
    instant,
    is_running,
    pace,
    said,
    standing,
    until,
    waits_while,
)

STEP = 0.05  # seconds, in which eight rows are answered


def terminate(run: Run) -> None:
    run.process.terminate()


def user_signal(run: Run) -> None:
    run.process.send_signal(signal.SIGUSR1)


def ctrl_c(run: Run) -> None:
    """As a terminal does it: to the whole process group."""
    os.killpg(run.process.pid, signal.SIGINT)


def rows(short: int, long: int) -> list[dict]:
    """Short responses first, so that some are done early, then long ones."""
    demo = demo_records(short + long)
    return [*demo[:short], *({**row, "sampling": LONG} for row in demo[short:])]


def test_each_signal_drains_and_the_same_command_finishes_the_job(start, instantly, write_rows, tmp_path):
    source, flags = write_rows(rows(1600, 0)), ["--shard-rows", 40]
    expected = instantly([source], "expected", output={"shard_rows": 40})
    watch = Watch(tmp_path, step=STEP)
    for stop in (terminate, user_signal, ctrl_c):
        before = len(watch.finished())
        run = start(source, tmp_path / "out", *flags, env=watch.environment)
        until(lambda: len(watch.finished()) > before + 100)  # noqa: B023
        stop(run)
        assert_stopped_resumable(run)
        first, last = said(run.stderr)
        assert first == "batchgen: stopping; running requests have 30 s to finish (Ctrl-C again: stop now)"
        done = len(watch.finished())
        assert last == (
            f"batchgen: stopped as asked; run the same command again to resume ({done:,} of 1,600 rows are done)"
        )
        assert sorted(watch.added()) == sorted(item.item for item in watch.finished())  # what ran came to its end
    run = start(source, tmp_path / "out", *flags, env=watch.environment | pace())
    assert run.wait() == 0, run.stderr
    assert dataset(tmp_path / "out") == dataset(expected)
    assert set(Counter(watch.added()).values()) == {1}


def test_vllm_drains_at_a_signal_and_the_same_command_finishes_the_job(start, generate, write_rows, tmp_path):
    source, flags = write_rows(rows(600, 0)), ["--shard-rows", 40]
    expected = generate([source], "expected", output={"shard_rows": 40})
    watch = Watch(tmp_path)
    run = start(source, tmp_path / "out", *flags, env=watch.environment)
    until(lambda: len(watch.finished()) > 100)
    terminate(run)
    assert_stopped_resumable(run)
    assert sorted(watch.added()) == sorted(item.item for item in watch.finished())  # what ran came to its end
    run = start(source, tmp_path / "out", *flags, env=watch.environment)
    assert run.wait() == 0, run.stderr
    assert dataset(tmp_path / "out") == dataset(expected)
    assert set(Counter(watch.added()).values()) == {1}


def test_drain_0_stops_without_waiting_for_running_requests(start, write_rows, tmp_path):
    """There are enough rows for minutes, and the drain that is usual would see to the end of those that run."""
    watch = Watch(tmp_path, step=STEP)
    run = start(write_rows(rows(2000, 0)), tmp_path / "out", "--drain", 0, env=watch.environment)
    until(watch.finished)
    terminate(run)
    assert_stopped_resumable(run)
    assert len(watch.finished()) < len(watch.added())


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing_that_was_synced(start, instantly, write_rows, tmp_path):
    """The engine stands still between the two, for as long as a drain may take and longer."""
    source, flags = write_rows(rows(1600, 0)), ["--shard-rows", 40, "--drain", 1000]
    expected = instantly([source], "expected", output={"shard_rows": 40})
    held = tmp_path / "held"
    watch = Watch(tmp_path, more=waits_while(held), step=STEP)
    run = start(source, tmp_path / "out", *flags, env=watch.environment)
    until(lambda: any(done.at < time.monotonic() - 1 for done in watch.finished()))
    held.touch()
    until(standing(held).exists)
    ctrl_c(run)
    until(lambda: "stopping" in run.stderr)
    again = time.monotonic()
    ctrl_c(run)
    assert run.wait() == 75
    assert len(watch.finished()) < len(watch.added())
    assert re.search(r"stopped at once; run the same command again to resume \(.* rows are done\)$", run.stderr.strip())
    synced = {done.item for done in watch.finished() if done.at < again - 1}
    held.unlink()
    run = start(source, tmp_path / "out", *flags, env=watch.environment | pace())
    assert run.wait() == 0, run.stderr
    assert dataset(tmp_path / "out") == dataset(expected)
    generated = Counter(watch.added())
    assert synced
    assert {generated[item] for item in synced} == {1}


@pytest.mark.parametrize(("stop", "seconds"), [(terminate, 0.1), (ctrl_c, 1), (terminate, 2.5)])
def test_a_signal_while_the_engine_starts_stops_at_once(start, write_rows, tmp_path, stop, seconds):
    run = start(write_rows(rows(3, 0)), tmp_path / "out", env=instant(tmp_path / "instant", start=1000))
    until(run.workers)
    time.sleep(seconds)
    stop(run)
    assert_stopped_resumable(run)


def test_a_signal_while_vllm_starts_stops_at_once(start, write_rows, tmp_path):
    run = start(write_rows(rows(0, 300)), tmp_path / "out")
    until(run.workers)
    time.sleep(1)
    terminate(run)
    assert_stopped_resumable(run)
    assert not run.generating()  # as it would have on the way to the end of a drain


def test_a_signal_while_the_engine_starts_is_heard_even_where_it_catches_every_exception(start, write_rows, tmp_path):
    """As vLLM does in places."""
    started = tmp_path / "started"
    catches = hook(
        tmp_path / "hook",
        f"""
def patch(engine):
    try:
        os.close(os.open({str(started)!r}, os.O_CREAT))
        time.sleep(1000)
    except Exception:
        pass
""",
        step=0,
    )
    run = start(write_rows(rows(3, 0)), tmp_path / "out", env=catches)
    until(started.exists)
    terminate(run)
    assert_stopped_resumable(run)


def test_a_killed_supervisor_takes_its_worker_along(start, write_rows, tmp_path):
    watch = Watch(tmp_path, step=1000)
    run = start(write_rows(rows(100, 0)), tmp_path / "out", env=watch.environment)
    until(watch.added)
    [worker] = run.workers()
    run.process.kill()
    until(lambda: not is_running(worker))
