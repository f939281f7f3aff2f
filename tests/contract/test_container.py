"""jobs/Dockerfile, as far as it can be told without building it: that takes Docker, and gigabytes."""

import re
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

from batchgen.commands import doctor
from batchgen.engine import installed

PROJECT = Path(__file__).parent.parent.parent
TEXT = (PROJECT / "jobs" / "Dockerfile").read_text().replace("\\\n", "")
LINES = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#")]


def of(instruction: str) -> list[str]:
    return [rest for name, rest in LINES if name == instruction]


def test_what_it_copies_is_there():
    copied = [name for line in of("COPY") for name in line.split()[:-1]]
    assert {"batchgen", "pyproject.toml", "jobs/constraints-cpu.txt"} <= set(copied)
    assert [name for name in copied if not (PROJECT / name).exists()] == []


def test_the_vllm_of_its_base_is_one_that_batchgen_is_made_for():
    [tag] = re.findall(r"vllm/vllm-openai:v([\d.]+) AS gpu", TEXT)
    assert tag in SpecifierSet(f">={installed.OLDEST},<{installed.TOO_NEW}")


def test_its_python_is_one_that_batchgen_is_made_for():
    [version] = re.findall(r"python:([\d.]+)-slim AS cpu", TEXT)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert f"{version}.0" in SpecifierSet(project["requires-python"])


def test_the_build_for_cpus_has_torch_from_where_the_extra_says_and_the_library_that_vllm_needs():
    [installs] = [line for line in of("RUN") if installed.PYTORCH_CPU in line]
    assert "--require-hashes" in installs
    assert "libnuma1" in TEXT and doctor.NUMA == "libnuma.so.1"


def test_it_ends_as_a_user_who_is_not_root():
    assert of("USER") and not {"root", "0"} & set(of("USER"))
