"""The rooms: imports go in one direction only, and the test of a file is found by its name."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchgen

PACKAGE = Path(batchgen.__file__).parent
TESTS = Path(__file__).parent

# From the ground up. A room imports from its own level and those before it; `errors` and `host` share one.
LEVELS = [
    {"errors", "host"},
    {"job"},
    {"input"},
    {"model"},
    {"prompt"},
    {"segment"},
    {"check"},
    {"metrics"},
    {"task"},
    {"output"},
    {"engine"},
    {"runner"},
    {"report"},
    {"demo", "evaluation"},
    {"commands"},
    {"api", "flags", "show", "manual"},
    {"show_answers"},
    {"cli"},
    {"__main__", "lm_eval"},
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
# The demo model and its data are used by commands; what makes them uses the console alone.
ALLOWED = {"demo": {"demo", "host"}}
FACE = {"api", "errors", "job"}


def files() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports(file: str) -> Iterator[str]:
    """The batchgen modules that a file imports, anywhere in it: inside functions and TYPE_CHECKING blocks too.

    They are named from the package on: `input.plan`, or the room alone where only the room is imported.
    """
    folder = file.split("/")[:-1]
    for node in ast.walk(ast.parse((PACKAGE / file).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.removeprefix("batchgen.") for name in node.names if is_ours(name.name))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*folder[: len(folder) + 1 - node.level], *([base] if base else [])])
            elif is_ours(base):
                base = base.removeprefix("batchgen").removeprefix(".")
            else:
                continue
            for name in node.names:
                yield f"{base}.{name.name}".strip(".") if is_module(base, name.name) else base


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "batchgen"


def is_module(base: str, name: str) -> bool:
    path = PACKAGE.joinpath(*base.split("."), name) if base else PACKAGE / name
    return path.is_dir() or path.with_suffix(".py").exists()


def runs_back(file: str, module: str) -> bool:
    """`import batchgen` itself, which every room may do for the version, shows what Python programs call, and loads it
    when it is used."""
    here, there = room_of(file.removesuffix(".py").replace("/", ".")), room_of(module)
    if not there or here == "__init__":
        return bool(there) and there not in FACE
    if here in ALLOWED:
        return there not in ALLOWED[here]
    return there not in LEVEL or LEVEL[there] > LEVEL[here]


@pytest.mark.parametrize("file", files())
def test_no_import_runs_back(file):
    assert not [module for module in imports(file) if runs_back(file, module)]


def test_every_room_is_on_a_level_and_states_its_contract():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= LEVEL.keys()
    for room in rooms:
        assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8"))), room


def test_the_walk_finds_imports_wherever_they_stand(tmp_path, monkeypatch):
    (tmp_path / "input").mkdir()
    (tmp_path / "runner").mkdir()
    (tmp_path / "runner" / "worker.py").touch()
    (tmp_path / "input" / "x.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ..runner import worker\n"
        "def f():\n    import batchgen.runner.worker\n    from batchgen.runner.worker import main\n"
        "    from . import rows\n"
        "def g():\n    from .. import runner, __version__\n"
    )
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    found = list(imports("input/x.py"))
    assert found.count("runner.worker") == 3
    assert {module for module in found if runs_back("input/x.py", module)} == {"runner", "runner.worker"}


# Tests of a contract, of a behaviour or of a whole room, which no one file has.
BEHAVIOURS = {
    "commands": {"show"},
    "input": {"bad_input", "fuzz", "picked", "strangers"},
    "model": {"hostile_models"},
    "prompt": {"forged_turns"},
    "report": {"browser"},
}


@pytest.mark.parametrize(
    "room",
    ["host", "job", "input", "model", "prompt", "segment", "metrics", "task", "evaluation", "report", "commands"],
)
def test_a_test_file_is_named_after_a_file_of_its_room(room):
    tested = {path.stem.removeprefix("test_") for path in (TESTS / room).glob("test_*.py")}
    modules = {path.stem for path in (PACKAGE / room).glob("*.py")}
    assert tested <= modules | BEHAVIOURS.get(room, set())


def test_no_two_test_files_have_one_name():
    """pytest imports the first of them, and ends at the second before any test has run."""
    named = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, number in named.items() if number > 1] == []


@pytest.mark.parametrize("page", sorted((PACKAGE / "manual").glob("*.md")), ids=lambda page: page.stem)
def test_the_files_that_the_manual_names_are_there(page):
    named = re.findall(r"`((?:batchgen/)?(?:[a-z_]+/)+[a-z_0-9]+\.py)`", page.read_text("utf-8"))
    for path in (PACKAGE.parent / name for name in named):
        assert path.exists() or (PACKAGE / path.relative_to(PACKAGE.parent)).exists(), path


def test_parquet_is_read_without_arrows_threads():
    """One that still holds bytes of a Python file when the interpreter ends aborts the process (2 of 100 did)."""
    readers = {"iter_batches", "read_row_group", "read_row_groups"}
    for file in sorted(PACKAGE.rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            if name in readers or (name == "read" and "ParquetFile" in ast.unparse(call.func)):
                assert "use_threads=False" in ast.unparse(call), f"{file}:{call.lineno}"
