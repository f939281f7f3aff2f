"""`[notify] command`: a program is told how a run ended, once, and can do no harm to it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MODEL, demo_records
from faulty import worker_here
from processes import instant, starting, until

from batchgen.commands import retry
from batchgen.errors import JobError
from batchgen.job import spec as specs
from batchgen.runner import notify, outcome

KEEP = """#!{python}
import os, sys
with open({told!r}, "a") as told:
    told.write(sys.stdin.read())
with open({told!r} + ".words", "a") as words:
    print(sys.argv[1:], os.environ.get("BY_US"), file=words)
print("told")
"""


@pytest.fixture
def start():
    with starting() as start:
        yield start


@pytest.fixture
def program(tmp_path):
    """A program that keeps what it is told, one line each time."""
    path = tmp_path / "a program"
    path.write_text(KEEP.format(python=sys.executable, told=str(tmp_path / "told")))
    path.chmod(0o755)
    return path


def told(tmp_path: Path) -> list[dict]:
    path = tmp_path / "told"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def run(instant_engine, write_rows, tmp_path, batchgen):
    """`batchgen run` of a job file with such a command."""
    source = write_rows([{"text": "" if number == 3 else f"row {number}"} for number in range(40)])

    def command(program, *flags):
        text = f'[input]\npath = "{source}"\n[model]\npath = "{MODEL}"\n[output]\npath = "out"\nshard_rows = 20\n'
        (tmp_path / "job.toml").write_text(f"{text}[notify]\ncommand = '''{program}'''\n")
        with worker_here(instant_engine):
            return batchgen("run", tmp_path / "job.toml", *flags)

    return command


def test_it_is_told_what_the_run_log_says(run, program, tmp_path, monkeypatch):
    monkeypatch.setenv("BY_US", "yes")
    assert run(f"'{program}' --to 'two words' $HOME *").exit_code == 0
    [line] = told(tmp_path)
    assert line == json.loads((tmp_path / "out" / "_runs.jsonl").read_text())
    assert (line["outcome"], line["rows"], line["rejects"]) == ("done", 40, {"empty": 1})
    assert (tmp_path / "told.words").read_text() == "['--to', 'two words', '$HOME', '*'] yes\n"


def test_a_run_that_has_nothing_to_do_tells_nothing(run, program, tmp_path):
    run(f"'{program}'")
    assert run(f"'{program}'").stdout.startswith("all done already")
    assert len(told(tmp_path)) == 1


def test_it_is_told_of_too_many_rejects_and_of_what_was_refused(run, program, tmp_path):
    assert run(f"'{program}'", "--max-rejects", 0).exit_code == 3
    assert run(f"'{program}'", "--temperature", 0).exit_code == 2
    assert [(line["outcome"], line["exit_code"]) for line in told(tmp_path)] == [
        ("too_many_rejects", 3),
        ("refused", 2),
    ]
    assert "holds results of a job that differs in" in told(tmp_path)[1]["why"]


def test_it_is_told_of_a_stop_and_of_an_engine_that_fails(start, write_rows, program, tmp_path):
    source, out = write_rows(demo_records(400)), tmp_path / "out"
    flags = ["--notify-command", f"'{program}'", "--shard-rows", 20]
    stopped = start(source, out, *flags, env=instant(tmp_path / "slow", step=0.1))
    until(stopped.generating)
    stopped.process.terminate()
    assert stopped.wait() == 75
    died = start(source, out, *flags, env=instant(tmp_path / "dying") | {"BATCHGEN_TEST_START": "none"})
    assert died.wait() == 1
    assert [(line["outcome"], line["exit_code"]) for line in told(tmp_path)] == [("stopped", 75), ("failed", 1)]
    assert "told" not in died.stdout and "told" in died.stderr


def test_of_runs_side_by_side_one_tells_that_the_job_is_done(start, write_rows, program, tmp_path):
    source, out = write_rows(demo_records(600)), tmp_path / "out"
    paced = instant(tmp_path / "paced", step=0.05)
    flags = ["--shard-rows", 20, "--notify-command", f"'{program}'"]
    both = [start(source, out, *flags, env=paced) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    [line] = told(tmp_path)
    assert (line["outcome"], line["job"]["rows"]) == ("done", 600)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("no-such-program --x", "[notify] no-such-program: No such file or directory"),
        ("false", "[notify] false: ended with 1"),
        ("sh -c 'kill -9 $$'", "[notify] sh: ended with -9"),
    ],
)
def test_what_it_fails_with_is_one_warning(run, program, message, tmp_path):
    done = run(program)
    assert done.exit_code == 0
    assert done.stderr.count("warning: [notify]") == 1
    assert f"batchgen: warning: {message}\n" in done.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_it_is_ended_with_what_it_started_when_it_takes_too_long(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(notify, "PATIENCE", 0.5)
    pid = tmp_path / "pid"
    record = outcome.record_of(None, "out", 0.0, {}, JobError("x"))
    notify.tell(f"sh -c 'sleep 60 & echo $! > {pid}; wait'", record)
    assert "warning: [notify] sh: was not done within 0.5 s, and was ended" in capsys.readouterr().err
    until(lambda: subprocess.run(["kill", "-0", pid.read_text().strip()], capture_output=True).returncode)


def test_one_that_reads_nothing_is_fine(capfd):
    notify.tell("true", outcome.record_of(None, "out", 0.0, {}, JobError("x" * 1_000_000)))
    assert capfd.readouterr().err == ""


def test_a_command_that_is_none_is_refused(run):
    for wrong, why in [("a 'quote", "cannot be cut into words: no closing quotation"), ("  ", "names no program")]:
        refused = run(wrong)
        assert refused.exit_code == 2
        assert f"[notify] command: {why}" in refused.stderr


# --- what others wrote


def test_no_folder_says_what_runs(run, program, tmp_path):
    run(f"'{program}'")
    record = tmp_path / "out" / "_job.json"
    assert "notify" not in record.read_text()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if b"a program" in path.read_bytes()]
    (tmp_path / "told").unlink()
    with pytest.raises(JobError, match="no row ended with"):
        retry.retry(tmp_path / "out", "length", {"output": {"path": str(tmp_path / "again")}})
    assert told(tmp_path) == []


def test_a_job_file_of_another_user_may_not_say_what_runs(run, program, tmp_path, monkeypatch):
    owner = os.stat(tmp_path).st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1 or 1)
    monkeypatch.setattr(specs, "ROOT", -1)
    refused = run(f"'{program}'")
    assert refused.exit_code == 2
    assert "[notify] command runs a program; if you trust it, give --notify-command" in refused.stderr
    assert told(tmp_path) == []


def test_a_job_file_in_a_bucket_may_not_say_what_runs(batchgen, bucket, write_rows, tmp_path):
    source = write_rows([{"text": "Monday"}])
    text = f'[input]\npath = "file://{source}"\n[model]\npath = "file://{MODEL}"\n[output]\npath = "out"\n'
    bucket.write("job.toml", f'{text}[notify]\ncommand = "touch {tmp_path / "told"}"\n'.encode())
    refused = batchgen("run", bucket.where("job.toml"))
    assert refused.exit_code == 2
    assert "is in a bucket, and [notify] command runs a program" in refused.stderr
