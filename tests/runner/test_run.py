"""The command as a user runs it: a process of its own, an engine of its own."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from conftest import MODEL, demo_records
from processes import instant, on_a_terminal, said

from batchgen.demo.score import score
from batchgen.host.caller import Seen
from batchgen.runner.progress import Progress

MONDAYS = [{"text": "Monday"}] * 40


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo job, written out and run once; gives its folder and the finished process."""
    folder = tmp_path_factory.mktemp("demo")
    command = str(Path(sys.executable).with_name("batchgen"))
    subprocess.run([command, "demo", str(folder)], check=True, capture_output=True)
    done = subprocess.run([command, "run", str(folder / "job.toml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_demo_job_translates_sentences_it_never_saw(demo):
    right, total = score(demo[0] / "out")
    assert total == 2000
    assert right / total >= 0.98


def test_the_summary_says_what_was_done(demo):
    folder, done = demo
    first, second, ended, look = done.stdout.splitlines()
    assert first == f"done: 2,000 rows, 2,000 responses, 0 rejects in {folder / 'out'}"
    for part in ("this run: 2,000 rows", "prompt and", "response tokens in", "engine start", "response tokens/s"):
        assert part in second
    assert (ended, look) == ("ended: stop 2,000", f"look: batchgen show {folder / 'out'}")


def test_it_begins_with_what_it_is_about_to_do(demo):
    names = [line.split(": ")[1] for line in demo[1].stderr.splitlines()[:5]]
    assert names == ["run", "model", "input", "sampling", "output"]


def test_vllms_own_lines_go_to_a_file_under_state(demo):
    folder, done = demo
    assert "vllm" not in "\n".join([done.stdout, *said(done.stderr)]).lower()
    assert "Resolved architecture: GPTNeoXForCausalLM" in (folder / "out" / "_state" / "engine.log").read_text()


def test_run_again_all_is_done_and_no_engine_starts(demo, batchgen_process):
    folder, _ = demo
    log = folder / "out" / "_state" / "engine.log"
    before = log.stat().st_size
    again = batchgen_process("run", folder / "job.toml")
    assert again.returncode == 0
    done = f"all done already: 2,000 rows, 2,000 responses, 0 rejects in {folder / 'out'}"
    assert again.stdout == f"{done}\nended: stop 2,000\nlook: batchgen show {folder / 'out'}\n"
    assert log.stat().st_size == before


def test_on_a_terminal_a_bar_shows_rows_rates_and_requests(write_rows, tmp_path):
    paced = instant(tmp_path / "instant", step=0.5)
    shown = on_a_terminal("run", write_rows(MONDAYS), "--model", MODEL, "--output", tmp_path / "out", env=paced)
    assert shown.returncode == 0
    for part in ("/40 [", "row", "prompt ", "response ", " tok/s", "running 8, waiting 8"):
        assert part in shown.drawn, shown.drawn


def test_in_a_log_file_a_line_now_and_then(write_rows, tmp_path):
    paced = instant(tmp_path / "instant", step=0.5)
    code = "import sys, batchgen.runner.progress as p; p.LOG_EVERY = 0; from batchgen.cli import cli; cli(sys.argv[1:])"
    command = [sys.executable, "-c", code, "run", str(write_rows(MONDAYS)), "--model", str(MODEL)]
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], env=paced, capture_output=True, text=True)
    assert done.returncode == 0
    line = next(line for line in done.stderr.splitlines() if "running 8, waiting 8" in line)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d+/40 rows \(", line)
    for part in ("ETA ", "prompt ", "response ", " tok/s"):
        assert part in line


def test_a_run_whose_answers_were_cut_off_names_the_flag_that_shows_them(write_rows, tmp_path, batchgen_process):
    flags = ["--model", MODEL, "--output", tmp_path / "out", "--max-tokens", 3]
    done = batchgen_process("run", write_rows(MONDAYS), *flags, env={**os.environ, "BATCHGEN_ENGINE": "instant"})
    assert done.stdout.splitlines()[-1].endswith("/out; at what went wrong: --only length")


def test_while_the_engine_starts_the_bar_says_so(write_rows, tmp_path):
    paced = instant(tmp_path / "instant", start=2, step=0.5)
    shown = on_a_terminal("run", write_rows(MONDAYS), "--model", MODEL, "--output", tmp_path / "out", env=paced)
    assert "starting the engine" in shown.drawn


def test_a_log_has_a_line_of_an_engine_that_takes_long_to_start(monkeypatch):
    monkeypatch.setattr("batchgen.runner.progress.STARTING_AFTER", 0)
    progress = Progress(log := io.StringIO(), 10, 0)
    for _ in range(3):
        progress.starting()
    assert log.getvalue().count("starting the engine\n") == 1


def test_rejects_and_the_share_that_ended_by_length_stand_beside_the_pace(monkeypatch):
    now = iter([0, 0, 0, 2])
    monkeypatch.setattr("batchgen.runner.progress.time.monotonic", lambda: next(now))
    monkeypatch.setattr("batchgen.runner.progress.LOG_EVERY", 0)
    Progress(log := io.StringIO(), 10, 0).show(Seen(1, 10, 10, 1, 0, rejected=3, by_length=0.25))
    assert log.getvalue().endswith(", rejects 3, 25% by length\n")


def test_a_bar_goes_on_after_a_long_sleep_of_the_machine(monkeypatch):
    now = iter([0, 0, 0, 2, 1000, 1002])
    monkeypatch.setattr("batchgen.runner.progress.time.monotonic", lambda: next(now))
    progress = Progress(io.StringIO(), 10, 0)
    for rows in (1, 2, 3):
        progress.show(Seen(rows, 10 * rows, 10 * rows, 1, 0))


def test_damaged_weights_are_one_line_and_exit_1(write_rows, batchgen_process, tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    arguments = ["run", write_rows(demo_records(1)), "--model", tmp_path / "model", "--output", tmp_path / "out"]
    result = batchgen_process(*arguments)
    assert result.returncode == 1
    [line] = said(result.stderr)
    assert line.startswith("batchgen: the engine failed: ")
    assert "Traceback" in (tmp_path / "out" / "_state" / "engine.log").read_text()


def test_engine_arguments_reach_vllm(write_rows, batchgen_process, tmp_path):
    arguments = ["run", write_rows(demo_records(3)), "--model", MODEL, "--output", tmp_path / "out"]
    result = batchgen_process(*arguments, "--engine", "dtype=float16", "--engine", "max_num_seqs=2")
    assert result.returncode == 0, result.stderr
    log = (tmp_path / "out" / "_state" / "engine.log").read_text()
    assert "dtype=torch.float16" in log
    assert ds.dataset(tmp_path / "out").count_rows() == 3
