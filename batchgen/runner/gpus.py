"""Which GPUs there are, and how workers share them.

GPUs are listed from the environment or by nvidia-smi: importing torch for that takes seconds, and memory of a GPU.
"""

import os
import re
import subprocess
from itertools import takewhile
from typing import Any

from ..errors import JobError

PATIENCE = 60  # seconds; on a large machine nvidia-smi wakes one GPU after the other
_ENTRY = re.compile(r"\d+|(GPU|MIG)-.+")
_LINE = re.compile(r"(GPU (?P<index>\d+):|\s+MIG ).*\(UUID: (?P<uuid>[^)]+)\)")


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (names := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return named(names)
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed(done.stdout) if done.returncode == 0 else []


def named(names: str) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES up to the first that names no GPU (-1, NoDevFiles), as CUDA reads them."""
    return list(takewhile(_ENTRY.fullmatch, (name.strip() for name in names.split(","))))


def listed(lines: str) -> list[str]:
    """The devices that `nvidia-smi -L` lists: GPUs by number, as older vLLM takes no UUIDs (its issue 32569); of a GPU
    that is partitioned its MIG devices, which have only UUIDs."""
    found: list[list[str]] = []  # per GPU, itself first
    for match in filter(None, map(_LINE.match, lines.splitlines())):
        if match["index"]:
            found.append([match["index"]])
        elif found:
            found[-1].append(match["uuid"])
    return [name for gpu, *parts in found for name in parts or [gpu]]


def shares(gpus: list[str], workers: int | None, each: int) -> list[list[str]]:
    """The GPUs of every worker, `each` per worker. workers: None for as many as possible. Raises JobError."""
    most = len(gpus) // each
    if not most:
        what = "[engine] tensor_parallel_size times pipeline_parallel_size"
        raise JobError(f"{what}: a worker needs {each} GPUs, and {len(gpus)} can be seen")
    if workers is not None and workers > most:
        needs = f"{workers} workers need {workers * each} GPUs, and {len(gpus)} can be seen"
        raise JobError(f"[output] workers: {needs}; ask for {most} or fewer")
    return [gpus[start : start + each] for start in range(0, each * (workers or most), each)]


def per_worker(engine: dict[str, Any]) -> int:
    return _size(engine, "tensor_parallel_size") * _size(engine, "pipeline_parallel_size")


def _size(engine: dict[str, Any], name: str) -> int:
    """1 for anything that is no positive number, which vLLM will refuse."""
    size = engine.get(name, 1)
    return size if isinstance(size, int) and size > 0 else 1
