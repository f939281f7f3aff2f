"""An engine that dies, hangs or refuses a request: what is finished is kept, and the run goes on.

What a supervisor makes of it is tried with an engine that answers at once (paced.py); test_workers.py kills vLLM's.
"""

import json
import os
import signal
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from conftest import demo_records
from processes import Watch, dataset, hook, is_running, said, until

# patch(engine) of a hook: `broken(names)` stands in for a step, with the items that went into this engine.
BEFORE_STEP = """
def once(what):
    try:
        os.close(os.open({folder!r} + "/" + what, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
def patch(engine):
    add, step, names = engine.add, engine.step, set()
    def watched_add(name, *arguments):
        names.add(name)
        add(name, *arguments)
    def broken_step():
        broken(names)
        responses = step()
        names.difference_update(done.request_id for done in responses)
        return responses
    engine.add, engine.step = watched_add, broken_step
def broken(names):
"""


@pytest.fixture
def broken(tmp_path):
    """An environment in which the given lines run before every step of an engine."""

    def environment(*lines: str) -> dict[str, str]:
        body = "".join(f"    {line}\n" for line in lines)
        return hook(tmp_path / "broken", BEFORE_STEP.format(folder=str(tmp_path)) + body, step=0.02)

    return environment


def rejects(out: Path) -> list[tuple[int, str, str]]:
    lines = [line for path in sorted((out / "_rejects").iterdir()) for line in path.read_text().splitlines()]
    return [(row["row"], row["reason"], row["detail"]) for row in map(json.loads, lines)]


def test_after_an_exception_and_a_hang_the_dataset_is_that_of_an_undisturbed_run(
    start, broken, instantly, write_rows, tmp_path
):
    source = write_rows(demo_records(300))
    expected = instantly([source], "expected", output={"shard_rows": 40})
    sick = broken(
        'if any(name.startswith("150-") for name in names) and once("raised"):',
        '    raise RuntimeError("CUDA error: out of memory")',
        'if any(name.startswith("200-") for name in names) and once("hung"):',
        "    time.sleep(1000)",
    )
    run = start(source, tmp_path / "out", "--shard-rows", 40, "--stall", 3, env=sick)
    assert run.wait() == 0, run.stderr
    assert said(run.stderr) == [
        "batchgen: warning: the engine died (CUDA error: out of memory); restarting in 1 s",
        "batchgen: warning: the engine died (no token for 3 s); restarting in 1 s",
    ]
    assert dataset(tmp_path / "out") == dataset(expected)


def test_an_engine_that_always_dies_ends_the_run_with_one_line_that_names_the_log(start, broken, write_rows, tmp_path):
    run = start(
        write_rows(demo_records(3)),
        tmp_path / "out",
        "--max-restarts",
        1,
        env=broken('raise RuntimeError("CUDA error:\\nan illegal memory access")'),
    )
    assert run.wait() == 1
    log = tmp_path / "out" / "_state" / "engine.log"
    assert said(run.stderr) == [
        "batchgen: warning: the engine died (CUDA error: an illegal memory access); restarting in 1 s",
        f"batchgen: the engine died 2 times in a row: CUDA error: an illegal memory access; see {log}",
    ]
    assert log.read_text().count("RuntimeError: CUDA error:\nan illegal memory access") == 2


def test_the_log_that_is_named_of_a_run_into_a_bucket_lies_there_and_not_on_the_machine(
    start, broken, bucket, write_rows, tmp_path
):
    (tmp_path / "tmp").mkdir()
    sick = broken('raise RuntimeError("CUDA error")') | {"TMPDIR": str(tmp_path / "tmp")}
    run = start(write_rows(demo_records(3)), bucket.location, "--max-restarts", 0, env=sick)
    assert run.wait() == 1
    place = said(run.stderr)[-1].rpartition("; see ")[2]
    assert b"RuntimeError: CUDA error" in bucket.read(place.removeprefix(f"{bucket.location}/"))
    assert not [*(tmp_path / "tmp").glob("batchgen-logs-*")]


def test_a_worker_that_is_killed_in_its_first_start_is_started_again(start, write_rows, tmp_path):
    killed = hook(
        tmp_path / "hook",
        f"""
def patch(engine):
    try:
        os.close(os.open({str(tmp_path / "killed")!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), 9)
""",
        step=0,
    )
    run = start(write_rows(demo_records(3)), tmp_path / "out", env=killed)
    assert run.wait() == 0, run.stderr
    assert said(run.stderr) == ["batchgen: warning: the engine died (killed by SIGKILL); restarting in 1 s"]


def test_an_engine_whose_steps_return_nothing_for_ever_is_noticed(engine, generate, write_rows, monkeypatch):
    monkeypatch.setattr(engine, "add", lambda *arguments: None)
    monkeypatch.setattr(engine, "step", lambda: [])
    with pytest.raises(RuntimeError, match="no response in 2,049 steps"):
        generate([write_rows(demo_records(3))], output={"stall": 0.001})


def test_steps_that_return_nothing_while_a_prompt_is_read_are_no_stall(engine, generate, write_rows, monkeypatch):
    step, nothing = engine.step, [[]] * engine._engine.model_config.max_model_len
    monkeypatch.setattr(engine, "step", lambda: nothing.pop() if nothing else step())
    out = generate([write_rows(demo_records(3))], output={"stall": 0.001})
    assert ds.dataset(out).count_rows() == 3


def test_a_request_that_vllm_refuses_is_rejected_alone(engine, generate, write_rows, monkeypatch):
    add_request, seen = engine._engine.add_request, []

    def refuse_the_fifth(*arguments, **adapter):
        seen.append(arguments)
        if len(seen) == 5:
            raise ValueError("this prompt\nis not to my taste")
        return add_request(*arguments, **adapter)

    monkeypatch.setattr(engine._engine, "add_request", refuse_the_fifth)
    out = generate([write_rows(demo_records(20))])
    refused = int(seen[4][0].partition("-")[0])
    assert rejects(out) == [(refused, "engine_error", "this prompt is not to my taste")]
    assert ds.dataset(out).count_rows() == 19


# --- the engine in a process of its own, as on a GPU


def engine_cores(worker: int) -> list[int]:
    """The engine processes that a worker has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"VLLM::EngineCore"):
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                found += [int(folder.name)] if int(parent) == worker else []
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.slow
def test_a_killed_engine_process_is_noticed_at_once_and_nothing_is_lost(
    start, generate, write_rows, tmp_path, monkeypatch
):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    source = write_rows(demo_records(600))
    expected = generate([source], "expected", output={"shard_rows": 40})
    watch = Watch(tmp_path)
    run = start(source, tmp_path / "out", "--shard-rows", 40, env=watch.environment)
    until(lambda: len(watch.finished()) > 50)
    [core] = engine_cores(*run.workers())
    os.kill(core, signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: "the engine died" in run.stderr, timeout=5)
    assert run.wait() == 0, run.stderr
    assert said(run.stderr) == [
        "batchgen: warning: the engine died (its process EngineCore ended with exit code -9); restarting in 1 s"
    ]
    assert dataset(tmp_path / "out") == dataset(expected)
    synced = {done.item for done in watch.finished() if done.at < killed - 1}
    assert synced.isdisjoint(done.item for done in watch.finished() if done.at > killed)


@pytest.mark.slow
def test_a_killed_supervisor_leaves_no_engine_process_behind(start, write_rows, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    rows = [{**record, "sampling": {"ignore_eos": True, "max_tokens": 400}} for record in demo_records(300)]
    run = start(write_rows(rows), tmp_path / "out")
    until(run.generating)
    [worker] = run.workers()
    [core] = engine_cores(worker)
    run.process.kill()
    until(lambda: not is_running(worker) and not is_running(core), timeout=5)
