"""Odd environments, odd paths, odd arguments: one line that says what to do, never a traceback."""

import os
import subprocess
import sys

import pytest
from conftest import CONVERSATIONS, MODEL

from batchgen import flags
from batchgen.job.spec import as_opened

UTF8_OFF = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def command(tmp_path):
    """batchgen in a process of its own, which can be given any environment; None takes a variable away."""

    def run(*arguments, before="", **variables) -> subprocess.CompletedProcess:
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment = {**kept, "HF_HOME": str(tmp_path / "hf"), **variables}
        environment = {name: value for name, value in environment.items() if value is not None}
        shell = f'{before}; exec "$@"' if before else 'exec "$@"'
        line = ["bash", "-c", shell, "bash", sys.executable, "-m", "batchgen", *arguments]
        return subprocess.run([os.fspath(part) for part in line], capture_output=True, env=environment, cwd=tmp_path)

    return run


def refusal(done, code=2) -> str:
    text = done.stderr.decode(errors="surrogateescape")
    assert (done.returncode, text.count("\n")) == (code, 1), text
    assert text.startswith("batchgen: ")
    return text


# --- the hub

NO_CONNECTION = {
    "a SOCKS proxy": ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "the proxy is set by ALL_PROXY"),
    "a proxy that is no URL": ({"HTTPS_PROXY": "htp://foo"}, "the proxy is set by HTTPS_PROXY"),
    "a password with a slash": ({"HTTPS_PROXY": "http://u:secret@word/x@h:1"}, "the proxy is set by HTTPS_PROXY"),
    "a proxy that is down": ({"https_proxy": "http://127.0.0.1:9"}, "the hub cannot be reached"),
    "no such certificates": ({"SSL_CERT_FILE": "/nonexistent"}, "SSL_CERT_FILE is /nonexistent, which does not exist"),
    "an endpoint that is no URL": ({"HF_ENDPOINT": "nonsense"}, "the hub cannot be reached"),
    "a token of two lines": ({"HF_TOKEN": "a\nb", "HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
    "a setting that is no number": ({"HF_HUB_DOWNLOAD_TIMEOUT": "x"}, "cannot import huggingface_hub"),
}


@pytest.mark.parametrize(("variables", "says"), NO_CONNECTION.values(), ids=NO_CONNECTION.keys())
def test_whatever_is_in_the_way_of_the_hub_is_said(command, variables, says):
    line = refusal(command("inspect", "rinna/demo", **variables))
    assert says in line
    assert "give a folder" in line
    assert "secret" not in line


def test_a_name_without_its_organisation(command):
    assert "no such model folder; a model on the hub is named org/name" in refusal(command("inspect", "gpt2"))


# --- the environment

PLAN = ("plan", CONVERSATIONS, "--model", MODEL, "--output", "out")
INSPECT = ("inspect", MODEL)
ODD = {
    "LC_ALL=C": {"LC_ALL": "C"},
    "names taken for ASCII": UTF8_OFF,
    "no HOME": {"HOME": None, "XDG_CACHE_HOME": None},
    "a HOME that is nowhere": {"HOME": "/dev/null/home", "XDG_CACHE_HOME": None},
    "a HOME that cannot be written": {"HOME": "/proc", "XDG_CACHE_HOME": None},
    "TMPDIR missing": {"TMPDIR": "/dev/null/tmp"},
    "stdout cannot show Japanese": {"PYTHONIOENCODING": "latin-1"},
    "warnings are errors": {"PYTHONWARNINGS": "error"},
    "a terminal of one column": {"COLUMNS": "1", "TERM": "dumb"},
}


@pytest.mark.parametrize("variables", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("arguments", [(*PLAN, "--show", "1"), INSPECT, ("run", "--help"), ("demo", "demo")])
def test_an_odd_environment_changes_nothing(command, arguments, variables):
    done = command(*arguments, **variables)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [(*PLAN, "--show", "1"), INSPECT])
def test_without_stdin_too(command, arguments):
    done = command(*arguments, before="exec <&-")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [PLAN, INSPECT, ("inspect", "rinna/demo"), ("plan", "~/x", *PLAN[2:])])
def test_a_user_whom_the_system_does_not_know(command, tmp_path, arguments):
    # As for a container's user without an entry in /etc/passwd; another real user could not read this Python.
    code = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    gone = {name: None for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME")}
    done = command(*arguments, PYTHONPATH=path, HTTPS_PROXY="http://127.0.0.1:9", **gone)
    if arguments in (PLAN, INSPECT):
        assert (done.returncode, done.stderr) == (0, b"")
    else:
        assert ("set HF_HOME to a folder" if "inspect" in arguments else "~/x") in refusal(done)
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    "arguments",
    [("plan", "in.jsonl", "--model", MODEL, "--output", "out"), INSPECT, ("submit", "job.toml", "--dry-run")],
)
def test_the_current_folder_is_gone(command, arguments):
    line = refusal(command(*arguments, before="mkdir gone && cd gone && rmdir ../gone"))
    assert "the current folder has been deleted" in line


# --- paths


def test_a_path_means_what_the_system_opens_by_it(tmp_path, batchgen, monkeypatch):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "in.jsonl").write_text('{"text": "Monday"}\n' * 3)
    (tmp_path / "in.jsonl").write_text('{"text": "Monday"}\n')
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    monkeypatch.chdir(tmp_path)
    done = batchgen("plan", "link/../in.jsonl", "--model", MODEL, "--output", "out")
    assert done.stdout.startswith("rows           3 in 1 files")
    job = tmp_path / "job.toml"
    job.write_text(f'input.path = "link/../in.jsonl"\nmodel.path = "{MODEL}"\noutput.path = "out"\n')
    assert batchgen("plan", job).stdout.startswith("rows           3 in 1 files")
    for path in ("link/../in.jsonl", "far/../in.jsonl", "./far//away/./../in.jsonl", "link/../../in.jsonl"):
        assert as_opened(tmp_path, path).samefile(path)
        assert ".." not in as_opened(tmp_path, path).parts
    # Where no link is in the way a path is written as it always was: incremental jobs know their files by it.
    for path in ("a/../b/./c.jsonl", "../x/*.jsonl", "a//b", "/a/../b", "."):
        assert str(as_opened(tmp_path, path)) == os.path.normpath(tmp_path / path)


# --- job files

TABLES = 'input.path = "in.jsonl"\nmodel.path = "{model}"\noutput.path = "out"\n'


def test_a_job_file_may_begin_with_a_bom(tmp_path, batchgen):
    (tmp_path / "in.jsonl").write_text('{"text": "Monday"}\n')
    (tmp_path / "job.toml").write_text("\ufeff" + TABLES.format(model=MODEL), encoding="utf-8")
    assert batchgen("plan", tmp_path / "job.toml").exit_code == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job.yaml", "input:\n  path: in.jsonl\n"),
        ("job.yml", ""),
        ("job.json", '{"input": {"path": "in.jsonl"}, "model": {"path": "model"}}'),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_job_file_of_another_kind(tmp_path, batchgen, command, name, content):
    (tmp_path / name).write_text(content)
    done = batchgen(command, tmp_path / name)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"{name}: a job file is TOML, and its name ends in .toml; `batchgen init` writes one" in done.stderr


def test_yaml_under_the_name_of_toml(tmp_path, batchgen):
    (tmp_path / "job.toml").write_text("input:\n  path: in.jsonl\n")
    done = batchgen("plan", tmp_path / "job.toml")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "job.toml: not valid TOML" in done.stderr


@pytest.mark.parametrize("template", ["{text:>1000000000}", "{text:>{width}}", "{text:.9999999}"])
def test_a_template_is_not_filled_beyond_all_use(batchgen, write_rows, tmp_path, template):
    path = write_rows([{"text": "Monday", "width": 10**9}])
    done = batchgen("plan", path, "--model", MODEL, "--output", tmp_path / "out", "--template", template)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "[prompt] template" in done.stderr


# --- output folders


@pytest.mark.parametrize(
    "arguments", [("status",), ("verify",), ("rejects",), ("export", "--to", "x.jsonl"), ("retry", "--only", "length")]
)
def test_a_folder_that_is_none_of_ours(tmp_path, batchgen, arguments):
    (tmp_path / "thesis.txt").touch()
    done = batchgen(arguments[0], tmp_path, *arguments[1:])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path}: no batchgen output folder (it has no _job.json)" in done.stderr


def test_an_export_to_what_is_no_file(generate, write_rows, tmp_path, batchgen):
    out = generate([write_rows([{"text": "Monday"}])], sampling={"max_tokens": 4})
    os.mkfifo(tmp_path / "fifo.jsonl")
    for to in ("/dev/null", tmp_path / "fifo.jsonl"):
        done = batchgen("export", out, "--to", to)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert f"--to {to}: " in done.stderr


def test_an_export_of_a_shard_whose_footer_is_damaged(generate, write_rows, tmp_path, batchgen):
    out = generate([write_rows([{"text": "Monday"}])], sampling={"max_tokens": 4})
    shard = out / "part-00000-of-00001.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-200] + bytes(180) + content[-20:])
    done = batchgen("export", out, "--to", tmp_path / "x.jsonl")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"{shard}: " in done.stderr
    assert "batchgen verify" in done.stderr


# --- what nobody foresaw


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A command in which something goes wrong, by the error that does."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def breaks(error: Exception) -> None:
        def load(*_):
            raise error

        monkeypatch.setattr(flags, "load", load)

    return breaks


def test_a_bug_is_one_line_and_a_file_that_says_where(broken, batchgen, tmp_path):
    broken(KeyError("no\nsuch"))
    done = batchgen("plan", "x.jsonl")
    (report,) = tmp_path.glob("batchgen-bug-*.txt")
    assert (done.exit_code, done.stderr) == (
        1,
        f"batchgen: this is a bug in batchgen: KeyError: 'no\\nsuch'; the traceback is in {report}\n",
    )
    assert "in load\n    raise error\nKeyError" in report.read_text()


@pytest.mark.parametrize(("flags", "variable"), [(["-v"], ""), ([], "1")])
def test_a_bug_is_shown_whole_to_whoever_asks(broken, batchgen, monkeypatch, flags, variable):
    monkeypatch.setenv("BATCHGEN_TRACEBACK", variable)
    broken(KeyError("x"))
    done = batchgen("plan", "x.jsonl", *flags)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, "batchgen: this is a bug in batchgen: KeyError: 'x'")
    assert "in load\n    raise error\nKeyError: 'x'\n" in done.stderr


def test_a_bug_where_nothing_can_be_written(broken, batchgen, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    broken(ValueError("x"))
    done = batchgen("plan", "x.jsonl")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "; -v shows the traceback" in done.stderr


def test_memory_that_does_not_suffice_is_no_bug(broken, batchgen):
    broken(MemoryError())
    done = batchgen("plan", "x.jsonl")
    assert (done.exit_code, done.stderr) == (1, "batchgen: this machine ran out of memory\n")
