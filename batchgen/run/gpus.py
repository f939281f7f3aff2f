"""How workers share the machine: so many GPUs each, or so many cores.

GPUs are only counted, by the environment or by nvidia-smi: importing torch for it takes seconds and a GPU's memory.
"""

import os
import re
import subprocess
from itertools import takewhile
from typing import Any

from ..engine.installed import needs_gpu
from ..errors import JobError

PATIENCE = 60  # seconds; nvidia-smi wakes every GPU of a large machine in turn
_ENTRY = re.compile(r"\d+|(GPU|MIG)-.+")
_LINE = re.compile(r"(GPU (?P<index>\d+):|\s+MIG ).*\(UUID: (?P<uuid>[^)]+)\)")


def environments(workers: int | None, engine: dict[str, Any]) -> list[dict[str, str]]:
    """One per worker: what it has in its environment beside ours. Raises JobError if there are too few GPUs.

    workers: None for as many as there are GPUs for, or 1; engine: vLLM's EngineArgs, which say how many GPUs one takes.
    """
    each = per_worker(engine)
    on_cpu = not needs_gpu()
    # CUDA_VISIBLE_DEVICES may be left in the environment of a machine without any: there it asks for no workers, and
    # forbids none.
    gpus = visible()
    if gpus and not (on_cpu and (workers is None or workers * each > len(gpus))):
        # Numbers of nvidia-smi go by the bus, those of CUDA by speed unless it is told so.
        order = {} if "CUDA_VISIBLE_DEVICES" in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        found = shares(gpus, workers, each)
        order |= _share_of_cores(len(found)) if on_cpu else {}
        return [order | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in found]
    workers = workers or 1
    return [_share_of_cores(workers)] * workers


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
    """The entries of CUDA_VISIBLE_DEVICES. As for CUDA they end before the first that names no GPU (-1, NoDevFiles)."""
    return list(takewhile(_ENTRY.fullmatch, (name.strip() for name in names.split(","))))


def listed(lines: str) -> list[str]:
    """What `nvidia-smi -L` lists: GPUs by number, as older vLLM takes no UUIDs (its issue 32569), or instead of one its
    MIG devices, which have nothing but a UUID."""
    found: list[list[str]] = []  # per GPU, itself first
    for match in filter(None, map(_LINE.match, lines.splitlines())):
        if match["index"]:
            found.append([match["index"]])
        elif found:
            found[-1].append(match["uuid"])
    return [name for gpu, *parts in found for name in parts or [gpu]]


def shares(gpus: list[str], workers: int | None, each: int) -> list[list[str]]:
    """The GPUs of every worker, `each` of them; as many workers as there is room for if it is None. Raises JobError."""
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
    """What is no such number, vLLM will refuse."""
    size = engine.get(name, 1)
    return size if isinstance(size, int) and size > 0 else 1


def _share_of_cores(workers: int) -> dict[str, str]:
    """OpenMP gives every process a thread per core, and its threads wait for each other: two of them on busy cores
    were measured to be 10 times slower than one. Nor may vLLM bind all workers to the same cores."""
    if workers == 1 or {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"} & set(os.environ):
        return {}
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    return {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
