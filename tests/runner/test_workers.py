"""Several workers under one command: they share the work, and what one of them suffers stays with it.

The engine answers at once, at a pace (paced.py), but where a name says vLLM.
"""

import os
import re
import signal
import time

import pytest
from conftest import MODEL, demo_records
from processes import PATIENCE, Watch, dataset, is_running, on_a_terminal, said, until

from batchgen.runner import division

SHARDS = {"shard_rows": 25}
STEP = 0.05  # seconds, in which an engine answers eight rows
TWO = ["--workers", 2, "--shard-rows", 25, "--engine", "max_num_seqs=8"]


@pytest.fixture
def source(write_rows):
    """A shard's rows are more than a worker's window of 16, so that none takes all shards at once."""
    return write_rows(demo_records(300))


@pytest.fixture
def two_gpus(monkeypatch):
    """vLLM's CPU build does not look at this: its workers can be told apart by it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


def workers_in(watch: Watch) -> set[int]:
    return {done.worker for done in watch.finished()}


def test_two_workers_make_the_dataset_of_one_under_one_bar_and_one_summary(instantly, write_rows, tmp_path):
    long = {"ignore_eos": True, "max_tokens": 200}
    source = write_rows([{**record, "sampling": long} for record in demo_records(100)])
    expected = instantly([source], "expected", output=SHARDS)
    watch = Watch(tmp_path, together=2, step=0.5)
    arguments = ["run", source, "--model", MODEL, "--output", tmp_path / "out", *TWO]
    shown = on_a_terminal(*arguments, env=watch.environment)
    assert shown.returncode == 0, shown.drawn
    assert dataset(tmp_path / "out") == dataset(expected)
    assert len(workers_in(watch)) == 2
    assert "running 16, waiting 16" in shown.drawn, shown.drawn
    assert "100/100 [" in shown.drawn
    lines = shown.drawn.strip().split("\n")
    assert len([line for line in lines if "BATCHGEN_ENGINE=" not in line]) == 1
    assert re.search(r"this run: 100 rows, [\d,]+ prompt and 20,000 response tokens", shown.stdout), shown.stdout
    logs = sorted(path.name for path in (tmp_path / "out" / "_state").glob("*.log"))
    assert logs == ["engine-2.log", "engine.log"]


@pytest.mark.slow
def test_one_of_two_on_vllm_is_killed_and_comes_back_while_the_other_goes_on(start, generate, source, tmp_path):
    expected = generate([source], "expected", output=SHARDS)
    watch = Watch(tmp_path, together=2)
    run = start(source, tmp_path / "out", *TWO, env=watch.environment)
    until(lambda: len(workers_in(watch)) == 2)
    killed, other = workers_in(watch)
    os.kill(killed, signal.SIGKILL)
    at = time.monotonic()
    assert run.wait() == 0, run.stderr
    [warning] = said(run.stderr)
    assert re.fullmatch(
        r"batchgen: warning: worker [12]'s engine died \(killed by SIGKILL\); restarting in 1 s", warning
    )
    assert any(done.worker == other for done in watch.finished() if at < done.at < at + 1)
    assert dataset(tmp_path / "out") == dataset(expected)


def test_a_signal_drains_both_and_one_worker_can_finish_the_job(start, instantly, source, tmp_path):
    expected = instantly([source], "expected", output=SHARDS)
    watch = Watch(tmp_path, together=2, step=STEP)
    run = start(source, tmp_path / "out", *TWO, env=watch.environment)
    until(lambda: len(workers_in(watch)) == 2)
    run.process.terminate()
    assert run.wait() == 75, run.stderr
    done = watch.finished()
    assert said(run.stderr) == [
        "batchgen: stopping; running requests have 30 s to finish (Ctrl-C again: stop now)",
        f"batchgen: stopped as asked; run the same command again to resume ({len(done)} of 300 rows are done)",
    ]
    assert sorted(watch.added()) == sorted(item.item for item in done)  # what ran came to its end
    assert list((run.out / "_state" / "claims").iterdir()) == []
    assert start(source, tmp_path / "out", "--shard-rows", 25, env=watch.environment).wait() == 0
    assert dataset(tmp_path / "out") == dataset(expected)
    assert len(watch.added()) == 300


def test_a_killed_supervisor_takes_both_workers_along(start, source, tmp_path):
    watch = Watch(tmp_path, step=1000)
    run = start(source, tmp_path / "out", *TWO, env=watch.environment)
    until(lambda: len(watch.added()) == 32)
    workers = run.workers()
    assert len(workers) == 2
    run.process.kill()
    until(lambda: not any(map(is_running, workers)))


def test_a_second_ctrl_c_ends_both_at_once(start, source, tmp_path):
    """Though their engines are in the middle of a step, and a drain could last as long."""
    watch = Watch(tmp_path, step=1000)
    run = start(source, tmp_path / "out", *TWO, "--drain", 1000, env=watch.environment)
    until(lambda: len(watch.added()) == 32)
    workers = run.workers()
    os.killpg(run.process.pid, signal.SIGINT)
    until(lambda: "stopping" in run.stderr)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == 75
    assert not any(map(is_running, workers))


def test_a_worker_without_restarts_left_is_given_up_and_the_other_finishes_the_job(
    start, instantly, source, tmp_path, two_gpus
):
    expected = instantly([source], "expected", output=SHARDS)
    bad = """
        if os.environ["CUDA_VISIBLE_DEVICES"] == "1":
            def step():
                raise RuntimeError("CUDA error: uncorrectable ECC error")
            engine.step = step
    """
    watch = Watch(tmp_path, together=2, more=bad, step=STEP)
    run = start(source, tmp_path / "out", *TWO, "--max-restarts", 0, env=watch.environment)
    assert run.wait() == 0, run.stderr
    log = tmp_path / "out" / "_state" / "engine-2.log"
    assert said(run.stderr) == [
        "batchgen: warning: worker 2's engine died 1 times in a row: CUDA error: uncorrectable ECC error; "
        f"see {log}; the other workers go on"
    ]
    assert "uncorrectable ECC error" in log.read_text()
    assert dataset(tmp_path / "out") == dataset(expected)


def test_a_worker_that_had_found_no_more_work_comes_back_for_that_of_one_that_is_given_up(
    start, instantly, source, tmp_path, two_gpus
):
    expected = instantly([source], "expected", output=SHARDS)
    alone = f"""
        if os.environ["CUDA_VISIBLE_DEVICES"] == "1":
            def step():
                while len(os.listdir({str(tmp_path / "out" / "_state" / "workers")!r})) > 1:
                    time.sleep(0.1)
                raise RuntimeError("CUDA error: the GPU has fallen off the bus")
            engine.step = step
    """
    watch = Watch(tmp_path, together=2, more=alone, step=STEP)
    run = start(source, tmp_path / "out", *TWO, "--stale", 2, "--max-restarts", 0, env=watch.environment)
    assert run.wait(2 * PATIENCE) == 0, run.stderr
    assert len(workers_in(watch)) == 2  # both on the first GPU
    assert dataset(tmp_path / "out") == dataset(expected)


def test_when_no_worker_is_left_the_run_ends_with_1(start, source, tmp_path):
    watch = Watch(tmp_path, more='raise RuntimeError("CUDA error: no device")', step=STEP)
    run = start(source, tmp_path / "out", *TWO, env=watch.environment)
    assert run.wait() == 1
    warning, end = said(run.stderr)
    assert re.fullmatch(
        r"batchgen: warning: worker [12]'s engine failed: CUDA error: .*; the other workers go on", warning
    )
    assert re.fullmatch(r"batchgen: worker [12]'s engine failed: CUDA error: no device; see .*", end)


def test_an_argument_that_an_engine_refuses_ends_all(start, source, tmp_path):
    refuses = """
        from batchgen.errors import JobError
        raise JobError("[engine] vLLM refuses: dtype: flot16")
    """
    watch = Watch(tmp_path, more=refuses, step=STEP)
    run = start(source, tmp_path / "out", *TWO, env=watch.environment)
    assert run.wait() == 2
    [line] = said(run.stderr)
    assert line.startswith("batchgen: [engine] vLLM refuses: dtype")


def test_a_full_disk_stops_all(start, instantly, source, tmp_path, two_gpus):
    expected = instantly([source], "expected", output=SHARDS)
    full = """
        if os.environ["CUDA_VISIBLE_DEVICES"] == "1":
            def fsync(file):
                raise OSError(28, "No space left on device")
            os.fsync = fsync
    """
    watch = Watch(tmp_path, together=2, more=full, step=STEP)
    run = start(source, tmp_path / "out", *TWO, env=watch.environment)
    assert run.wait() == 75, run.stderr
    assert run.stderr.count("No space left on device; fix that and run the same command again") == 1
    assert "Traceback" not in run.stderr
    mended = {**watch.environment, "CUDA_VISIBLE_DEVICES": ""}
    assert start(source, tmp_path / "out", "--shard-rows", 25, env=mended).wait() == 0
    assert dataset(tmp_path / "out") == dataset(expected)


def test_more_workers_than_gpus_are_refused_before_any_starts(batchgen, source, tmp_path, two_gpus, monkeypatch):
    monkeypatch.setattr(division, "needs_gpu", lambda: True)
    result = batchgen("run", source, "--model", MODEL, "--output", tmp_path / "out", "--workers", 3)
    assert result.exit_code == 2
    line = "batchgen: [output] workers: 3 workers need 3 GPUs, and 2 can be seen; ask for 2 or fewer\n"
    assert result.stderr == line
    assert not (tmp_path / "out" / "_state" / "engine.log").exists()
