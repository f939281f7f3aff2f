"""What a run is about to do, in a few lines: a wrong temperature is seen now, or in the morning."""

import time
from collections.abc import Iterator
from typing import Any

import msgspec

from ..errors import shown
from ..job.sampling import Sampling
from ..task.flow import work_of
from ..task.generate import Prompted
from .prepare import Job

_NAMED = ("batchgen", "vllm")  # versions
_ALWAYS = ("temperature", "max_tokens")  # that are shown whatever they are
LONGEST = 200  # characters of a value


def lines(job: Job, workers: str, rows_done: int) -> Iterator[str]:
    """workers: of a Division; rows_done: of finished shards"""
    files, shards = len(job.plan.latest), len(job.plan.shards)
    trial = f", the first of {job.plan.rows:,}" if job.end is not None else ""
    done = f"; {rows_done:,} rows are done" if rows_done else ""
    versions = ", ".join(f"{name} {version}" for name, version in job.record.versions.items() if name in _NAMED)
    yield f"run: {time.strftime('%Y-%m-%d %H:%M:%S')}, {versions}"
    yield f"model: {shown(job.model.name)}, {job.generate.format} prompts, {job.context:,} tokens of context"
    yield f"input: {job.rows:,} rows{trial} in {files:,} file{'s' * (files > 1)}{_kind(job)}"
    if job.spec.score.mode == "off":
        yield f"sampling: {_sampling(job)}"
    yield f"output: {job.out}, {shards:,} shard{'s' * (shards > 1)}{done}"
    yield workers


def figures(job: Job, workers: str, rows_done: int) -> dict[str, Any]:
    """The same for a program."""
    return {
        "model": job.model.name,
        "rows": job.rows,
        "rows_done": rows_done,
        "shards": len(job.plan.shards),
        "sampling": {**_given(job), "seed": job.spec.sampling.seed},
        "output": job.out.location,
        "workers": workers,
        "fingerprint": job.record.fingerprint,
        "versions": job.record.versions,
    }


def _kind(job: Job) -> str:
    """What the first row is, and what is done with it."""
    spec = job.spec
    if spec.translate.fields:
        return f"; the texts at {shown(', '.join(spec.translate.fields))} into {shown(spec.translate.into)}"
    if spec.score.mode != "off":
        return f"; scored: {spec.score.mode}"
    _, first = next(work_of(job.generate, job.reader(running=True), job.plan.shards[:1]))
    return f"; the first is of the shape {first.shape}" if isinstance(first, Prompted) else ""


def _given(job: Job) -> dict[str, Any]:
    """What differs from vLLM's defaults, or is always of interest."""
    asked, usual = msgspec.structs.asdict(job.spec.sampling), msgspec.structs.asdict(Sampling()) | {"n": 1}
    given = {name: value for name, value in asked.items() if name in _ALWAYS or value != usual.get(name, value)}
    if job.spec.sweep.method:
        given = {name: value for name, value in given.items() if name not in job.spec.sweep.vary}
    return {name: value for name, value in given.items() if value is not None}


def _sampling(job: Job) -> str:
    listed = [f"{name} {shown(str(value))[:LONGEST]}" for name, value in _given(job).items()]
    sweep = ", each with the settings of the sweep" if job.spec.sweep.method else ""
    return f"{', '.join([*listed, f'seed {job.spec.sampling.seed}'])}{sweep}"
