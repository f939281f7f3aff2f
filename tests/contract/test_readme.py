"""README.md and the manual are true: their commands run and print what they show, their job files and rows are valid.

The commands of all pages run in one folder: README's first, as its first job is what the pages go on from.
"""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec
import pytest

from batchgen import manual
from batchgen.input.conversation import Row
from batchgen.input.shapes import SHAPES, from_record
from batchgen.job.spec import load

README = Path(__file__).parent.parent.parent / "README.md"
PAGES = README.parent / "batchgen" / "manual"
TEXTS = {"README": README.read_text(encoding="utf-8")} | {page: manual.text(page) for page in manual.PAGES}
ENGINE = {"running": "instant"}  # page -> another engine than vLLM: it shows counts alone, of two workers
AFTER = {page: "README" for page in manual.PAGES} | {"exporting": "checking"}  # page -> the one whose folders it uses


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], flags=re.MULTILINE | re.DOTALL)


def with_blocks(language: str) -> list[str]:
    return [page for page in TEXTS if blocks(page, language)]


def commands(page: str) -> list[tuple[str, str]]:
    """(command, what it prints) of every console block, in order."""
    steps = [step for block in blocks(page, "console") for step in re.split(r"^\$ ", block, flags=re.MULTILINE) if step]
    found = [re.match(r"((?:.*\\\n)*.*)\n?", step) for step in steps]  # with the lines that go on after a backslash
    return [(command[1], step[command.end() :]) for command, step in zip(found, steps, strict=True)]


@pytest.fixture(scope="session")
def run_page(tmp_path_factory):
    """Runs a page's commands, once, and before them those of the page that it goes on from. Returns their folder."""
    folder = tmp_path_factory.mktemp("manual")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    @cache
    def run(page: str) -> Path:
        if page in AFTER:
            run(AFTER[page])
        variables = environment | {"BATCHGEN_ENGINE": ENGINE.get(page, "vllm")}
        for command, expected in commands(page):
            done = subprocess.run(["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            pattern = re.escape(expected).replace(re.escape("..."), ".*")
            assert re.fullmatch(pattern, done.stdout), f"{command}\nprinted\n{done.stdout}\nnot\n{expected}"
        return folder

    return run


@pytest.mark.parametrize("page", with_blocks("console"))
def test_every_command_prints_what_the_page_shows(run_page, page):
    """`...` stands for anything, to the end of its line or to the text behind it."""
    run_page(page)


@pytest.mark.parametrize("page", with_blocks("python"))
def test_every_python_block_runs(run_page, page):
    folder = run_page("README")
    for block in blocks(page, "python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_to_a_file_and_a_heading(page):
    folder = README.parent if page == "README" else PAGES
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", TEXTS[page]):
        path, _, heading = target.partition("#")
        text = (folder / path).read_text(encoding="utf-8")
        assert not heading or re.search(rf"^##+ {heading.replace('-', ' ')}$", text.lower(), re.MULTILINE)


def test_the_readme_is_read_to_its_end():
    assert 120 <= len(TEXTS["README"].splitlines()) <= 190
    assert all(f"(batchgen/manual/{page}.md)" in TEXTS["README"] for page in manual.PAGES)


def test_the_pages_show_what_they_are_about():
    assert {"README", "checking", "exporting", "input", "models", "running"} <= set(with_blocks("console"))
    assert len(commands("README")) >= 5


def test_the_job_file_is_valid(tmp_path):
    (tmp_path / "job.toml").write_text(blocks("job-file", "toml")[0])
    assert load(str(tmp_path / "job.toml"), {}).output.columns == ["topic", "score:double"]


@pytest.mark.parametrize(
    "part", [part for page in TEXTS for part in blocks(page, "toml")[1 if page == "job-file" else 0 :]]
)
def test_further_parts_of_a_job_file_are_valid(tmp_path, part):
    paths = {"input": {"path": ["in.jsonl"]}, "model": {"path": "model"}, "output": {"path": "out"}}
    (tmp_path / "job.toml").write_text(part)
    load(str(tmp_path / "job.toml"), paths)


@pytest.mark.parametrize(
    "line", [line for page in TEXTS for block in blocks(page, "json") for line in block.split("\n") if line]
)
def test_the_rows_are_understood(line):
    assert from_record(Row(0, line.encode()).record())


def test_every_parameter_of_sampling_is_named():
    from batchgen.job.sampling import JobSampling

    page = TEXTS["job-file"]
    assert [
        name for name in msgspec.structs.asdict(JobSampling()) if f"`{name}`" not in page and f"{name} =" not in page
    ] == []


def test_the_table_of_shapes_has_them_all():
    for name, shape in SHAPES.items():
        record, more = re.fullmatch(r"(\{.*\})(.*)", shape.looks).groups()
        cells = f"| `{name}` | `{record}`{more} |"
        assert re.sub(r"(?<=<)\||\|(?=>)", r"\\|", cells) in TEXTS["input"]
