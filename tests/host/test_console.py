"""Whatever stderr and stdout cannot take: a run drains and ends with the exit code that is true, without traceback."""

import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import MODEL, demo_records
from processes import instant, until

from batchgen.host.console import Console

COMMAND = str(Path(sys.executable).with_name("batchgen"))


def command(*arguments: object) -> list[str]:
    return [COMMAND, *map(str, arguments)]


def a_full_disk() -> tuple[int, int | None]:
    return os.open("/dev/full", os.O_WRONLY), None


def a_pipe() -> tuple[int, int | None]:
    read, write = os.pipe()
    return write, read


def a_terminal() -> tuple[int, int | None]:
    ours, theirs = pty.openpty()
    return theirs, ours


@pytest.mark.parametrize("make", [a_pipe, a_full_disk, a_terminal])
def test_ctrl_c_drains_where_nobody_reads_stderr_and_stdout_any_more(write_rows, tmp_path, make):
    """As with `batchgen run ... 2>&1 | tee log`: the Ctrl-C ends tee first, and a write fails with EPIPE; a terminal
    that is closed gives EIO."""
    theirs, ours = make()
    out = tmp_path / "out"
    run = subprocess.Popen(
        command("run", write_rows(demo_records(1000)), "--model", MODEL, "--output", out),
        env=instant(tmp_path / "instant", step=0.1),
        stdout=theirs,
        stderr=theirs,
        process_group=0,
    )
    try:
        os.close(theirs)
        until(lambda: any(path.stat().st_size > 100 for path in out.glob("_state/journal/*")))
        if ours is not None:
            os.close(ours)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == 75
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert list((out / "_state" / "claims").iterdir()) == []


def test_a_run_without_stderr_and_stdout_finishes_and_writes_nothing_of_them_into_its_files(write_rows, tmp_path):
    out = tmp_path / "out"
    arguments = command("run", write_rows(demo_records(20)), "--model", MODEL, "--output", out)
    closed = ["sh", "-c", '"$@" >&- 2>&- <&-', "sh", *arguments]
    assert subprocess.run(closed, env=instant(tmp_path / "instant")).returncode == 0
    assert (out / "_SUCCESS").exists()
    checked = subprocess.run(command("verify", out), capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.fixture
def finished(generate, write_rows, tmp_path) -> list[str]:
    """The command of a job that is done."""
    source = write_rows([*demo_records(3), {"text": "月曜日", "sampling": {"top_p": 2}}])
    out = generate([source])
    return command("run", source, "--model", MODEL, "--output", out)


@pytest.mark.parametrize(("redirected", "code"), [("| true", 0), (">/dev/full", 0), (">&-", 0)])
def test_a_done_job_stays_done_where_its_summary_cannot_be_shown(finished, redirected, code):
    shown = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirected}', "sh", *finished], capture_output=True, text=True
    )
    assert (shown.returncode, shown.stderr) == (code, "")


@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_a_refusal_keeps_its_exit_code_where_it_cannot_be_said(finished, redirected):
    for wrong, code in ((["--temperature", "0.5"], 2), (["--no-such-flag"], 2), (["--max-rejects", "0"], 3)):
        arguments = [*finished, *wrong]
        assert subprocess.run(["bash", "-c", f'"$@" {redirected}', "sh", *arguments]).returncode == code, wrong


# click takes an ASCII stream for one whose locale is not set, and writes UTF-8.
@pytest.mark.parametrize(("encoding", "written"), [("latin-1", "latin-1"), ("ascii", "utf-8"), ("euc_jp", "euc_jp")])
def test_what_the_terminals_encoding_cannot_spell_is_escaped(finished, encoding, written, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    for arguments in (["inspect", MODEL], ["plan", *finished[2:], "--show", 2], ["rejects", finished[-1]]):
        shown = subprocess.run(command(*arguments), capture_output=True)
        assert (shown.returncode, shown.stderr) == (0, b""), arguments
        text = shown.stdout.decode(written)
        spelt = "\\u30e6" if encoding == "latin-1" else "ユ"
        assert spelt in text or arguments[0] == "rejects", arguments


def test_a_listing_that_cannot_be_written_says_so(finished):
    shown = subprocess.run(
        ["sh", "-c", '"$@" >/dev/full', "sh", *command("rejects", finished[-1])], capture_output=True, text=True
    )
    assert (shown.returncode, shown.stderr) == (1, "batchgen: stdout: No space left on device\n")


def test_a_console_escapes_for_its_encoding_and_passes_on_everything_else(tmp_path):
    with (tmp_path / "log").open("w", encoding="latin-1") as stream:
        console = Console(stream)
        assert console.write("café 月\n") > 0
        assert (console.encoding, console.isatty()) == ("latin-1", False)
    console.write("closed")
    console.flush()
    assert console.isatty() is False
    assert (tmp_path / "log").read_bytes() == b"caf\xe9 \\u6708\n"
