"""The engine in processes of its own, as on every GPU: signals to all, parts that are killed, what is left behind."""

import os
import signal
import time
from pathlib import Path

import pytest
from conftest import demo_records
from processes import LONG, Run, Watch, assert_stopped_resumable, dataset, hook, is_running, said, until

from batchgen.engine.scratch import VARIABLE
from batchgen.runner.death import OUT_OF_MEMORY


@pytest.fixture(autouse=True)
def processes_of_its_own(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def tree(run: Run) -> dict[int, str]:
    """Every process of a run that is there, by its command line."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(stat[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
    ours, grown = {run.process.pid}, 0
    while len(ours) > grown:
        grown = len(ours)
        ours |= {pid for pid, parent in parents.items() if parent in ours}
    return {pid: names[pid] for pid in ours if pid in names}


def engine_worker(run: Run) -> int | None:
    return next((pid for pid, name in tree(run).items() if name.startswith("VLLM::Worker")), None)


def scratch_of(run: Run) -> str:
    """The name that is on everything temporary of a run; other runs on this machine have others."""
    [worker] = run.workers()
    variables = Path(f"/proc/{worker}/environ").read_text().split("\0")
    return next(value for name, _, value in (each.partition("=") for each in variables) if name == VARIABLE)


def named(name: str) -> list[Path]:
    return [path for folder in (Path("/tmp"), Path("/dev/shm")) for path in folder.glob(f"*{name}*")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_every_process_drains_and_leaves_nothing_behind(start, generate, write_rows, tmp_path, number):
    """As Slurm and systemd send it."""
    records = [{**record, "sampling": LONG} for record in demo_records(400)]
    watch = Watch(tmp_path)
    run = start(write_rows(records), tmp_path / "out", "--drain", 60, env=watch.environment)
    until(watch.finished)
    journals = [path.stat().st_size for path in (run.out / "_state" / "journal").iterdir()]
    scratch = scratch_of(run)
    assert len(named(scratch)) > 1  # its folder, and shared memory
    everything = tree(run)
    assert any(name.startswith("VLLM::EngineCore") for name in everything.values())
    for pid in everything:
        os.kill(pid, number)
    assert_stopped_resumable(run)
    assert [path.stat().st_size for path in (run.out / "_state" / "journal").iterdir()] > journals
    done = [item.item for item in watch.finished()]
    assert sorted(watch.added()) == sorted(done)  # what ran came to its end
    assert f"({len(done):,} of 400 rows are done)" in run.stderr
    assert named(scratch) == []
    until(lambda: not any(is_running(pid) for pid in everything), timeout=5)


@pytest.mark.slow
def test_the_shared_memory_of_an_engine_over_several_processes_goes_with_the_run(start, write_rows, tmp_path):
    """Which vLLM names after where they meet."""
    before = set(os.listdir("/dev/shm"))
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    run = start(write_rows(demo_records(3)), tmp_path / "out", "--engine", "tensor_parallel_size=2", env=environment)
    seen: set[str] = set()

    def finished() -> bool:
        seen.update(os.listdir("/dev/shm"))
        return run.process.poll() is not None

    until(finished)
    assert run.wait() == 0, run.stderr
    assert any("cpushm" in name for name in seen - before)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "cpushm" in name]


@pytest.mark.slow
def test_the_line_names_the_cause_that_vllm_only_points_at(start, write_rows, tmp_path):
    run = start(write_rows(demo_records(3)), tmp_path / "out", "--engine", "kv_cache_memory_bytes=100000")
    assert run.wait() == 1
    [line] = said(run.stderr)
    assert line.startswith("batchgen: the engine failed: ValueError: ")
    assert "KV cache" in line or "cache blocks" in line
    assert "root cause" not in line


@pytest.mark.slow
def test_a_part_of_a_starting_engine_that_is_killed_is_started_again(start, generate, write_rows, tmp_path):
    source = write_rows(demo_records(3))
    run = start(source, tmp_path / "out")
    until(lambda: engine_worker(run))
    os.kill(engine_worker(run), signal.SIGKILL)
    assert run.wait() == 0, run.stderr
    [line] = said(run.stderr)
    assert line.startswith("batchgen: warning: the engine died (a process of it was killed")
    assert dataset(tmp_path / "out") == dataset(generate([source], "expected"))


@pytest.mark.slow
def test_a_part_of_a_starting_engine_that_crashes_is_a_wrong_setup(start, write_rows, tmp_path):
    run = start(write_rows(demo_records(3)), tmp_path / "out")
    until(lambda: engine_worker(run))
    os.kill(engine_worker(run), signal.SIGILL)
    assert run.wait() == 1
    [line] = said(run.stderr)
    assert "CPU instructions that this machine lacks" in line


# --- engines in the worker's own process: those that crash as they start answer at once, if ever


def at_start(tmp_path: Path, code: str) -> dict[str, str]:
    return hook(tmp_path / "hook", f"def patch(engine):\n    {code}\n", step=0)


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV])
def test_a_crash_at_the_first_start_is_given_up_at_once(start, write_rows, tmp_path, number):
    run = start(
        write_rows(demo_records(3)), tmp_path / "out", env=at_start(tmp_path, f"os.kill(os.getpid(), {number:d})")
    )
    assert run.wait() == 1
    [line] = said(run.stderr)
    assert line.startswith(f"batchgen: the engine failed: killed by {number.name}")
    assert ("CPU instructions" in line) == (number == signal.SIGILL)


@pytest.mark.slow
def test_kills_again_and_again_ask_for_memory_and_come_with_growing_pauses(start, write_rows, tmp_path):
    killed = at_start(tmp_path, "os.kill(os.getpid(), 9)")
    run = start(write_rows(demo_records(3)), tmp_path / "out", "--max-restarts", 2, env=killed)
    assert run.wait() == 1
    died = "the engine died (killed by SIGKILL); restarting in"
    assert said(run.stderr) == [
        f"batchgen: warning: {died} 1 s",
        f"batchgen: warning: {died} 2 s{OUT_OF_MEMORY}",
        f"batchgen: the engine died 3 times in a row: killed by SIGKILL{OUT_OF_MEMORY}; "
        f"see {run.out / '_state' / 'engine.log'}",
    ]


@pytest.mark.slow
def test_a_run_that_was_suspended_for_longer_than_stall_keeps_its_engine(start, write_rows, tmp_path):
    watch = Watch(tmp_path)
    source = write_rows([{**record, "sampling": LONG} for record in demo_records(400)])
    environment = {**watch.environment, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    run = start(source, tmp_path / "out", "--stall", 3, env=environment)
    until(watch.finished)
    everything = tree(run)
    for pid in everything:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(6)
    for pid in everything:
        os.kill(pid, signal.SIGCONT)
    before = len(watch.finished())
    until(lambda: len(watch.finished()) > before + 20 or run.process.poll() is not None)
    run.process.terminate()
    assert_stopped_resumable(run)
    assert "died" not in run.stderr


@pytest.mark.slow
def test_hanging_up_drains_and_nohup_is_respected(start, write_rows, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    source = write_rows([{**record, "sampling": LONG} for record in demo_records(200)])
    flags = ["--drain", 0, "--engine", "max_num_seqs=64"]
    run = start_with(signal.SIG_DFL, start, source, tmp_path / "out", *flags)
    until(run.generating)
    for pid in tree(run):
        os.kill(pid, signal.SIGHUP)
    assert_stopped_resumable(run)
    run = start_with(signal.SIG_IGN, start, source, tmp_path / "out", *flags)
    until(run.generating)
    for pid in tree(run):
        os.kill(pid, signal.SIGHUP)
    time.sleep(2)
    assert run.process.poll() is None and "stopping" not in run.stderr
    run.process.terminate()
    assert_stopped_resumable(run)


def start_with(handler, start, *args):
    """A run to which hanging up means what it is told here: these tests may run under nohup themselves."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        return start(*args)
    finally:
        signal.signal(signal.SIGHUP, before)
