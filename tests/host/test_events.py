"""What is said on stderr: how much, in which form, and with what colours, on real terminals and in files."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import MODEL, demo_records
from processes import instant, on_a_terminal

COMMAND = Path(sys.executable).with_name("batchgen")
BAD = {"chosen": "no conversation of any shape"}


def run(*arguments, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, env=env)


@pytest.fixture
def job(write_rows, tmp_path):
    """The arguments of a small job with a reject, and its environment: the engine answers at once."""
    source = write_rows([*demo_records(20), BAD])
    return ["run", source, "--model", MODEL, "--output", tmp_path / "out", "--shard-rows", 7], instant(tmp_path / "env")


def events(stderr: str) -> list[dict]:
    return [json.loads(line) for line in stderr.splitlines()]


def test_quiet_leaves_warnings_alone(job):
    arguments, env = job
    done = run("-q", *arguments, env=env)
    assert (done.returncode, done.stdout) == (0, "")
    [line] = done.stderr.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d batchgen: warning: BATCHGEN_ENGINE=.*", line)


def test_a_quiet_terminal_has_no_bar(job):
    arguments, env = job
    shown = on_a_terminal(*arguments, "-q", env=env)
    assert "row/s" not in shown.drawn and shown.drawn.count("\n") == 1


def test_verbose_tells_of_engines_and_shards_and_the_first_reject_in_any_case(job):
    arguments, env = job
    said = run(*arguments, "-v", env=env).stderr
    assert said.count("the engine is up on ") == 1
    assert said.count(" of 3 is finished: 7 rows, ") == 3
    assert said.count("first reject: ") == 1


def test_every_line_is_json_where_that_is_asked_for(job):
    arguments, env = job
    done = run(*arguments, "--log-format", "json", env=env)
    assert (done.returncode, done.stdout) == (0, "")
    found = events(done.stderr)
    assert all(list(event)[:4] == ["time", "level", "event", "message"] for event in found)
    assert all(
        abs((datetime.now(UTC) - datetime.fromisoformat(event["time"])).total_seconds()) < 300 for event in found
    )
    assert [event["event"] for event in found if event["event"] != "shard"] == [
        "warning",
        "engine_started",
        "first_reject",
        "outcome",
    ]
    shards = [event for event in found if event["event"] == "shard"]
    assert sorted(event["shard"] for event in shards) == [0, 1, 2] and sum(event["rows"] for event in shards) == 21
    outcome = found[-1]
    assert (outcome["rows"], outcome["rejects"], outcome["outcome"]) == (21, {"bad_shape": 1}, "done")
    assert outcome["job"]["responses"] == 20


def test_how_far_a_run_is_is_an_event_with_its_figures(monkeypatch, capsys):
    from batchgen.host import console, events
    from batchgen.host.caller import Seen
    from batchgen.runner import progress

    now = iter([0, 0, 0, 2])
    monkeypatch.setattr(progress, "LOG_EVERY", 0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(events.sys, "stderr", console.stderr())
    events.set_style(events.Style(as_json=True))
    try:
        progress.Progress(console.stderr(), 10, 4).show(Seen(1, 10, 20, 1, 0, rejected=3, by_length=0.25))
    finally:
        events.set_style(events.Style())
    [event] = map(json.loads, capsys.readouterr().err.splitlines())
    assert (event["event"], event["rows"], event["rows_done"], event["rejects"]) == ("progress", 10, 5, 3)
    assert (event["by_length"], event["response_tokens_per_second"], event["running"]) == (0.25, 10, 1)


@pytest.mark.parametrize("wrong", [["status", "nowhere"], ["run", "--no-such-flag"], ["--no-such-flag"], ["nocommand"]])
def test_an_error_is_json_too_with_its_exit_code(wrong):
    done = run("--log-format", "json", *wrong)
    [event] = events(done.stderr)
    assert (done.returncode, event["exit_code"], event["level"], event["event"]) == (2, 2, "error", "error")


def test_the_environment_may_say_so_and_a_flag_has_the_last_word(monkeypatch):
    env = {**os.environ, "BATCHGEN_LOG_FORMAT": "json"}
    assert events(run("status", "nowhere", env=env).stderr)
    assert run("status", "nowhere", "--log-format", "text", env=env).stderr.startswith("batchgen: nowhere: ")
    assert run("--log-format", "text", "status", "nowhere", env=env).stderr.startswith("batchgen: nowhere: ")


def test_quiet_and_verbose_are_refused_together(batchgen):
    assert batchgen("-q", "status", "nowhere", "-v").exit_code == 2


def test_what_others_print_becomes_json_as_well():
    code = """
import sys
from batchgen.host import console, events
console.set_up()
events.set_style(events.Style(as_json=True))
print("a library", "says\\x1b[31m", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    [event] = events(done.stderr)
    assert (event["event"], event["message"]) == ("other", "a library says\\x1b[31m")


def plain(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in ("NO_COLOR", "TERM")} | {"TERM": "xterm"}


def test_on_a_terminal_warnings_are_yellow_and_errors_red_and_have_no_time(job):
    arguments, env = job
    assert "\x1b[33mbatchgen: warning:\x1b[0m BATCHGEN_ENGINE=" in on_a_terminal(*arguments, env=plain(env)).drawn
    assert on_a_terminal("status", "nowhere", env=plain(dict(os.environ))).drawn.startswith(
        "\x1b[31mbatchgen:\x1b[0m nowh"
    )


@pytest.mark.parametrize("without", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_colour_gets_none(without):
    assert "\x1b[3" not in on_a_terminal("status", "nowhere", env=plain(dict(os.environ)) | without).drawn


def test_a_file_gets_no_colour(job):
    arguments, env = job
    assert "\x1b[" not in run(*arguments, env=plain(env)).stderr


def test_vllm_s_own_lines_are_shown_while_it_logs(tmp_path, capsys):
    from batchgen.host import events
    from batchgen.runner.engine_log import EngineLog

    (log := tmp_path / "engine.log").write_bytes(b"of an earlier run\nINFO one\n")
    told = EngineLog(log, log.read_bytes().index(b"INFO"))
    told.pass_on("the engine")
    assert capsys.readouterr().err == ""
    events.set_style(events.Style(verbose=True))
    try:
        told.pass_on("the engine")
        with log.open("ab") as file:
            file.write(b"WARNING t\x1bwo\nhal")
        told.pass_on("the engine")
    finally:
        events.set_style(events.Style())
    assert capsys.readouterr().err == "INFO one\nWARNING t\\x1bwo\n"
