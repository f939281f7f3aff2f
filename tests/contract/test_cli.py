"""The command line: quick to start, every command with an example, documented in the README."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from batchgen import __version__, manual, show
from batchgen.cli import cli
from batchgen.job.spec import OF_SWEEPS, TABLES

PROJECT = Path(__file__).parent.parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
MANUAL = README + "".join(map(manual.text, manual.PAGES))


def test_importing_the_command_line_imports_nothing_heavy():
    code = "import batchgen.cli, sys; print(*sorted({'vllm', 'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_shows_an_example_in_its_help(name):
    assert re.search(rf"Examples?:\n\s+batchgen {name}", cli.commands[name].help)


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_is_in_the_manual(name):
    assert f"batchgen {name}" in MANUAL


COMMANDS = {
    **{name: command for name, command in cli.commands.items() if name != "bench"},
    **{f"bench {name}": command for name, command in cli.commands["bench"].commands.items()},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_explained(name):
    assert all(option.help for option in COMMANDS[name].params if option.param_type_name == "option")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_in_the_manual(name):
    """Those of keys are: the page about the job file has all keys, and says how a flag is named after its key."""
    assert f"batchgen {name}" in MANUAL
    flags = [
        option for option in COMMANDS[name].params if option.param_type_name == "option" and "__" not in option.name
    ]
    assert [
        option.opts for option in flags if not any(re.search(rf"(?<![\w-]){each}\b", MANUAL) for each in option.opts)
    ] == []


def help_of(batchgen, *command) -> dict[str, str]:
    """The help of a command, one line each, by heading."""
    parts = re.split(r"^(\S.*):$", batchgen(*command, "--help").stdout, flags=re.MULTILINE)
    return {heading: " ".join(text.split()) for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("command", [("run",), ("plan",), ("retry",), ("bench", "engine"), ("sweep",)])
def test_the_keys_of_the_job_file_have_a_heading_for_each_table(batchgen, command):
    headings = help_of(batchgen, *command)
    tables = [table for table in TABLES if table not in OF_SWEEPS or command == ("sweep",)]
    assert list(headings) == ["Options", *(f"[{table}]" for table in tables), "[engine]"]
    assert "--temperature" in headings["[sampling]"] and "--limit-turns" in headings["[limits]"]
    assert "--engine KEY=VALUE" in headings["[engine]"] and "--help" in headings["Options"]


def test_the_help_of_run_shows_the_defaults(batchgen):
    headings = help_of(batchgen, "run")
    assert re.search(r"--shard-rows INTEGER .* \[default: 4096\] --column", headings["[output]"])
    assert re.search(r"--follow-links / --no-follow-links [^\[]* \[default: off\]", headings["[input]"])
    assert re.search(r"--temperature FLOAT [^\[]* \[default: the model card's\]", headings["[sampling]"])
    assert re.search(r"--model TEXT [^\[]* \[required, here or in the job file\]", headings["[model]"])


def test_the_help_of_retry_shows_none_as_they_are_those_of_the_job(batchgen):
    assert not any("[default" in text for text in help_of(batchgen, "retry").values())


def test_alone_it_shows_its_commands_line_by_line(batchgen_process):
    done = batchgen_process()
    assert done.returncode == 2
    assert "\n  run         Generate a response for every conversation.\n" in done.stderr


@pytest.mark.parametrize("command", ["run", "sweep", "plan"])
def test_without_a_job_the_ways_to_begin_are_shown(batchgen, command):
    done = batchgen(command)
    lines = done.stderr.splitlines()
    assert (done.exit_code, done.stdout) == (2, "")
    assert lines[0] == f"batchgen: {command}: of which job? There are three ways to begin"
    assert all(f"batchgen {command} " in line for line in lines[1:4])
    assert len(lines) < 15


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["run", "in.jsonl"], "no model and no output: add --model MODEL --output OUT"),
        (["sweep", "in.jsonl"], "no model and no output: add --model MODEL --output OUT"),
        (["plan", "in.jsonl"], "no model: add --model MODEL"),
        (["run", "in.jsonl", "--model", "model"], "no output: add --output OUT"),
        (["run", "--seed", "1"], "no input, no model and no output: add IN --model MODEL --output OUT"),
    ],
)
def test_what_is_missing_is_said_at_once(batchgen, words, why):
    done = batchgen(*words)
    assert (done.exit_code, done.stderr) == (2, f"batchgen: {why}\n")


@pytest.mark.parametrize("command", ["run", "plan", "sweep"])
def test_two_job_files_are_two_runs(batchgen, command):
    done = batchgen(command, "a.toml", "b.toml")
    assert (done.exit_code, done.stderr) == (2, "batchgen: b.toml: one job file a run; run each by itself\n")


@pytest.mark.parametrize("name", ["job.toml", "talks.jsonl"])
def test_a_file_in_place_of_a_command_is_taken_for_one_of_run(batchgen, name):
    done = batchgen(name)
    assert (done.exit_code, done.stderr) == (2, f"batchgen: {name}: is no command; did you mean batchgen run {name}?\n")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["help"], "--help"),
        (["help", "plan"], "plan --help"),
        (["generate"], "run"),
        (["start"], "run"),
        (["RUN"], "run"),
    ],
)
def test_another_word_for_a_command_leads_to_it(batchgen, words, meant):
    done = batchgen(*words)
    assert (done.exit_code, done.stderr) == (
        2,
        f"batchgen: {words[0]}: is no command; did you mean batchgen {meant}?\n",
    )


def test_a_dry_run_is_what_plan_does(batchgen):
    done = batchgen("run", "job.toml", "--dry-run")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "`batchgen plan` shows what a run will do" in done.stderr


def test_a_sweep_says_how_several_values_are_written(batchgen):
    done = batchgen("sweep", "job.toml", "--temperature", "0.3,0.7")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "for several values write --sweep temperature=VALUE,VALUE" in done.stderr


@pytest.mark.parametrize("command", ["run", "plan", "sweep", "init"])
def test_model_and_output_have_short_forms(batchgen, command):
    text = batchgen(command, "--help").stdout
    assert "-m, --model TEXT" in text and "-o, --output TEXT" in text


def test_the_version_imports_nothing_heavy():
    code = (
        "import sys; from batchgen.commands import versions; list(versions.lines()); "
        "print(*sorted({'vllm', 'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_the_version_names_what_a_report_needs(batchgen):
    first, parts, device = batchgen("--version").stdout.splitlines()
    assert first == f"batchgen, version {__version__}"
    packages = {name: importlib.metadata.version(name) for name in ("torch", "pyarrow")}
    assert all(f", {name} {version}" in f", {parts}" for name, version in packages.items())
    assert parts.startswith("python 3.") and ", vllm 0." in parts
    assert re.fullmatch(r"device: \d+ .+", device)


# --- completion


def completed(words: str, folder: Path) -> list[str]:
    """What bash makes of words, of which the last is to be completed."""
    script = (
        'source <("$1" completion bash); COMP_WORDS=(batchgen $2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
        "_batchgen_completion batchgen; printf '%s\n' \"${COMPREPLY[@]}\""
    )
    program = Path(sys.executable).with_name("batchgen")
    variables = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    command = ["bash", "--norc", "-c", script, "bash", str(program), words]
    return subprocess.check_output(command, text=True, cwd=folder, env=variables).split()


@pytest.mark.parametrize(
    "words, found",
    [
        ("verif", ["verify"]),
        ("run --temp", ["--template", "--temperature"]),
        ("run --prompt-format speaker-", ["speaker-nl"]),
        ("manual expo", ["exporting"]),
        ("retry out --only length,too_lo", ["length,too_long"]),
    ],
)
def test_bash_completes(words, found, tmp_path):
    assert completed(words, tmp_path) == found


@pytest.mark.parametrize("words", ["run jo", "run --model jo", "plan jo", "init jo", "status jo", "export out --to jo"])
def test_names_of_files_are_left_to_the_shell(batchgen_process, words):
    asked = os.environ | {"_BATCHGEN_COMPLETE": "bash_complete", "COMP_WORDS": f"batchgen {words}"}
    done = batchgen_process(env=asked | {"COMP_CWORD": str(len(words.split()))})
    assert done.stdout in ("file,jo\n", "dir,jo\n")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_given_their_lines(batchgen, shell):
    assert f"_BATCHGEN_COMPLETE={shell}_complete" in batchgen("completion", shell).stdout


def test_the_manual_lists_its_pages_and_shows_each(batchgen):
    lines = batchgen("manual").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(manual.PAGES)
    for page in manual.PAGES:
        done = batchgen("manual", page)
        assert (done.exit_code, done.stdout) == (0, manual.text(page))


def test_every_page_is_listed():
    assert {path.stem for path in Path(manual.__file__).parent.glob("*.md")} == set(manual.PAGES)


def test_a_wrong_page_gets_the_nearest_one(batchgen):
    done = batchgen("manual", "exports")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "batchgen: manual: no page exports; did you mean exporting?\n"


def test_a_page_like_no_other_gets_all_their_names(batchgen):
    assert batchgen("manual", "nosuch").stderr.endswith(f"no page nosuch; the pages are {', '.join(manual.PAGES)}\n")


def test_a_page_goes_through_a_pager_on_a_terminal(monkeypatch):
    paged = []
    monkeypatch.setattr(show.click, "echo_via_pager", paged.append)
    monkeypatch.setattr(show.sys, "stdout", SimpleNamespace(isatty=lambda: True))
    show.page("# Page\n")
    assert paged == ["# Page\n"]


def test_the_architecture_names_every_room():
    rooms = {path.parent.name for path in (PROJECT / "batchgen").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/`", manual.text("architecture"), flags=re.MULTILINE)) == rooms
