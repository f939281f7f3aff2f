"""`batchgen sweep`: the same rows with several settings, of one model after the other."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..errors import JobError, Reject, on_disk
from ..host import safeopen
from ..job.settings import Setting
from ..job.spec import JobSpec
from ..output import layout, owners, record, store
from ..run.prepare import Job, prepare
from ..run.run import Outcome, run
from ..task.flow import work_of
from ..task.sweep import Sweep

THIS = "."  # the name of an output folder that is the sweep's own


class Part(NamedTuple):
    """What is done with one model. out: its output folder, from that of the sweep on"""

    out: str
    spec: JobSpec


def parts(spec: JobSpec) -> list[Part]:
    """The jobs of a sweep, one for each model. Raises JobError."""
    asked = spec.sweep
    if not (asked.vary or asked.also or asked.model):
        raise JobError("[sweep]: says nothing that varies: list values there, or give --sweep temperature=0.3,0.7")
    table = msgspec.structs.replace(asked, method=asked.method or "grid", model=[])
    rows = msgspec.structs.replace(spec.input, incremental=False)  # a sweep is over what there is
    one = msgspec.structs.replace(spec, sweep=table, input=rows)
    if not asked.model:
        return [Part(THIS, one)]
    if store.at(spec.output.path).exists(layout.JOB):
        raise JobError(f"{spec.output.path}: holds the results of one model; name another folder for several")
    names = _names(asked.model)
    return [Part(name, _of_model(one, path, name)) for name, path in zip(names, asked.model, strict=True)]


def _names(paths: list[str]) -> list[str]:
    """Of models' folders in the output: each is the end of the model's own, as long as it has to be."""
    cleaned = [[re.sub(r"[^\w.-]|^[._]+", "-", part) for part in Path(path).parts if part != "/"] for path in paths]
    for length in range(1, max(map(len, cleaned)) + 1):
        names = ["--".join(part[-length:]) for part in cleaned]
        if len(set(names)) == len(names):
            return names
    raise JobError(f"[sweep] model: {Counter(paths).most_common(1)[0][0]} is named twice")


def _of_model(spec: JobSpec, path: str, name: str) -> JobSpec:
    """revision is that of [model] path, and no other's"""
    revision = spec.model.revision if path == spec.model.path else ""
    model = msgspec.structs.replace(spec.model, path=path, revision=revision)
    output = msgspec.structs.replace(spec.output, path=str(Path(spec.output.path) / name))
    return msgspec.structs.replace(spec, model=model, output=output)


def sweep(spec: JobSpec, discard: bool) -> Iterator[tuple[Part, Outcome]]:
    """Brings the jobs of a sweep to their end, one after the other. Raises what `run` raises.

    discard: drop what other jobs have left in their folders
    """
    for part in parts(spec):
        outcome = run(part.spec, discard)
        if outcome.counts:
            _write(outcome.out.location, layout.SETTINGS, msgspec.json.format(msgspec.json.encode(settings(outcome))))
        yield part, outcome


def settings(outcome: Outcome) -> list[Setting]:
    """Those of a sweep's finished job."""
    begun = record.job_of(outcome.out)
    task = prepare(record.spec_of(outcome.out, begun), begun=begun).task
    assert isinstance(task, Sweep)
    return list(task.settings)


def _write(out: str, name: str, content: bytes) -> None:
    place = Path(out)
    with on_disk(out):
        owners.check_links(place, [layout.SWEEP])
        (place / layout.SWEEP).mkdir(exist_ok=True)
        safeopen.replace(place / name, content, durable=True)


# --- before it


@dataclass
class Forecast:
    """What a sweep will ask of one model.

    requests: as settings and samples make them; distinct: of these, those that are generated
    prompt_tokens, most_tokens: of the distinct ones; the latter of their responses, at most
    """

    part: Part
    job: Job
    rejects: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    distinct: int = 0
    prompt_tokens: int = 0
    most_tokens: int = 0

    @property
    def settings(self) -> list[Setting]:
        assert isinstance(self.job.task, Sweep)
        return list(self.job.task.settings)


def forecast(spec: JobSpec) -> Iterator[Forecast]:
    """What each job of a sweep will be, without an engine. Raises JobError."""
    for part in parts(spec):
        job = prepare(part.spec)
        seen = Forecast(part, job)
        for _, work in work_of(job.task, job.reader(), job.plan.shards):
            if isinstance(work, Reject):
                seen.rejects[work.reason] += 1
                continue
            distinct = {request.key: request for request in work.requests}.values()
            seen.requests += len(work.requests)
            seen.distinct += len(distinct)
            seen.prompt_tokens += sum(len(request.prompt_token_ids) for request in distinct)
            seen.most_tokens += sum(request.sampling.max_tokens for request in distinct)
        yield seen
