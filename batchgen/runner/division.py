"""How workers divide the machine: how many there are, and which GPUs or how many cores each of them gets."""

import os
from typing import NamedTuple

from ..engine import choice, cpu
from ..engine.installed import needs_gpu
from ..host import machine
from . import gpus
from .prepare import Job


class Division(NamedTuple):
    """environments: the variables of each worker, beside ours; text: who they are and what they share, for the user.
    Empty where vLLM is not used."""

    environments: list[dict[str, str]]
    text: str


def divide(job: Job, shards: int) -> Division:
    """The workers for so many shards. Without GPUs as many as suit the model, if the job does not say how many. Raises
    JobError if there are too few GPUs."""
    workers, each = job.spec.output.workers, gpus.per_worker(job.spec.engine)
    on_cpu = not needs_gpu()
    # CUDA_VISIBLE_DEVICES may be set, left over, on a machine without GPUs: then it neither adds nor forbids workers.
    seen = gpus.visible()
    if not seen or (on_cpu and (workers is None or workers * each > len(seen))):
        return _of_cores(job, shards, on_cpu)
    # nvidia-smi numbers GPUs by their place on the bus, CUDA by speed unless it is told to do the same.
    order = {} if "CUDA_VISIBLE_DEVICES" in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    shares = gpus.shares(seen, workers, each)[:shards]
    order |= _threads(len(shares), machine.cores(), workers) if on_cpu else {}
    used = [gpu for share in shares for gpu in share]
    environments = [order | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]
    return Division(environments, _text(len(shares), f"GPU{'s' * (len(used) > 1)} {', '.join(used)}"))


def _of_cores(job: Job, shards: int, on_cpu: bool) -> Division:
    workers, engine, cores = job.spec.output.workers, job.spec.engine, machine.cores()
    # Whoever binds threads to cores, or splits a model, has divided the machine already.
    is_divided = "VLLM_CPU_OMP_THREADS_BIND" in os.environ or gpus.per_worker(engine) > 1
    size = cpu.weight_bytes(job.model, engine)
    number = workers or 1
    if workers is None and on_cpu and not is_divided and choice.chosen() == choice.VLLM:
        cache = cpu.cache_bytes(job.model, job.context, engine)
        number = cpu.workers(size, cache, cores, machine.available_memory())
    number = min(number, max(1, shards))
    model = f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
    what = f"{cores} core{'s' * (cores > 1)}, {model} model"
    return Division([_threads(number, cores, workers)] * number, _text(number, what))


def _text(workers: int, what: str) -> str:
    return f"{workers} worker{'s' * (workers > 1)} ({what})" if choice.chosen() == choice.VLLM else ""


def _threads(workers: int, cores: int, asked: int | None) -> dict[str, str]:
    """OpenMP gives every process one thread per core, and they busy-wait for each other: two processes on the same
    cores were measured to be 10 times slower than one. Nor may vLLM bind all workers to the same cores. asked: for so
    many workers; then what the user says of their threads stands."""
    if workers == 1 or (asked and {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"} & set(os.environ)):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cores // workers)), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
