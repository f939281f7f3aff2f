"""README.md is true: its commands run and print what stands there, its job file and rows are understood."""

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from batchgen.input.conversation import Row
from batchgen.input.shapes import SHAPES, from_record
from batchgen.job.spec import load

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(command, what it prints) of every console block, in order."""
    steps = [step for block in blocks("console") for step in re.split(r"^\$ ", block, flags=re.MULTILINE) if step]
    return [(step.partition("\n")[0], step.partition("\n")[2]) for step in steps]


def test_every_command_prints_what_the_readme_shows(tmp_path):
    """`...` stands for anything, to the end of its line or to the text behind it."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert len(commands()) >= 5
    for command, expected in commands():
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        pattern = re.escape(expected).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, done.stdout), f"{command}\nprinted\n{done.stdout}\nnot\n{expected}"


def test_the_job_file_is_valid(tmp_path):
    (tmp_path / "job.toml").write_text(blocks("toml")[0])
    assert load(str(tmp_path / "job.toml"), {}).output.columns == ["topic", "score:double"]


@pytest.mark.parametrize("part", blocks("toml")[1:])
def test_further_parts_of_a_job_file_are_valid(tmp_path, part):
    paths = {"input": {"path": ["in.jsonl"]}, "model": {"path": "model"}, "output": {"path": "out"}}
    (tmp_path / "job.toml").write_text(part)
    load(str(tmp_path / "job.toml"), paths)


@pytest.mark.parametrize("line", [line for block in blocks("json") for line in block.splitlines()])
def test_the_rows_are_understood(line):
    assert from_record(Row(0, line.encode()).record())


def test_every_parameter_of_sampling_is_named():
    from batchgen.job.sampling import JobSampling

    assert [
        name
        for name in msgspec.structs.asdict(JobSampling())
        if f"`{name}`" not in README and f"{name} =" not in README
    ] == []


def test_the_table_of_shapes_has_them_all():
    for name, shape in SHAPES.items():
        record, more = re.fullmatch(r"(\{.*\})(.*)", shape.looks).groups()
        cells = f"| `{name}` | `{record}`{more} |"
        assert re.sub(r"(?<=<)\||\|(?=>)", r"\\|", cells) in README
