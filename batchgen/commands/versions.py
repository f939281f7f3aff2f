"""What is installed here and what it runs on: for `batchgen --version`, which imports nothing heavy, and the doctor."""

import importlib.metadata
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator

import msgspec

from .. import __version__
from ..engine import installed, torch_fit
from ..errors import in_one_line
from ..host import machine

# Beside vLLM and torch, for the line about packages: what a report about wrong responses or a crash has to name.
PACKAGES = ("transformers", "xgrammar", "triton", "sentencepiece", "pyarrow")
PATIENCE = 20  # seconds; for other programs, which a broken driver or an absent controller keeps waiting


class Gpu(msgspec.Struct, frozen=True):
    """As nvidia-smi has it. memory: in bytes, None if it does not say"""

    name: str
    memory: int | None
    driver: str


def lines() -> Iterator[str]:
    """For a report about anything."""
    found = of_packages()
    yield f"batchgen, version {__version__}"
    named = ", ".join(f"{name} {found.get(name, 'not installed')}" for name in ("vllm", "torch", "pyarrow"))
    yield f"python {platform.python_version()}, {named}"
    counted = Counter(gpu.name for gpu in gpus())
    cores = machine.cores()
    own = f"{cores:,} core{'s' if cores > 1 else ''} of {machine.cpu()}"
    yield f"device: {', '.join(f'{count} {name}' for name, count in counted.items()) or own}"


def of_packages() -> dict[str, str]:
    """torch with its build, which says what it was made for."""
    found = installed.versions()
    if torch := torch_fit.build("torch"):
        found["torch"] = torch
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found.pop(package, None)
    return found


def gpus() -> list[Gpu]:
    done = call("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
    listed = done.stdout.splitlines() if done.returncode == 0 else []
    rows = [[part.strip() for part in line.split(",")] for line in listed]
    return [Gpu(row[0], int(row[1]) << 20 if row[1].isdecimal() else None, row[2]) for row in rows if len(row) == 3]


def call(*command: str) -> "subprocess.CompletedProcess[str]":
    """A command that is not there, or hangs, counts as one that failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", in_one_line(error))
