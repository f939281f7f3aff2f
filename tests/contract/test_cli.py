"""The command line: quick to start, every command with an example, documented in the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from batchgen import manual
from batchgen.cli import cli

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize("name", ["run"])
def test_every_flag_is_explained(name):
    assert all(option.help for option in cli.commands[name].params if option.param_type_name == "option")
