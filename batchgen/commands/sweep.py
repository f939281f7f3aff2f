"""`batchgen sweep`: the same rows with several settings, of one model after the other."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError, Reject, on_disk
from ..host import safeopen
from ..input.conversation import Row
from ..input.cursor import EVERY_COLUMN
from ..input.rows import Reader
from ..job.settings import Setting
from ..job.spec import JobSpec
from ..metrics import measure as metrics
from ..metrics.best import best_toml
from ..metrics.summary import MeasuredSetting, Summary
from ..output import layout, owners, record, store
from ..output.store import FolderStore
from ..report.make import page_of
from ..runner.outcome import Outcome
from ..runner.prepare import Job, prepare
from ..runner.run import run
from ..task.flow import work_of
from ..task.output_columns import COLUMNS, SETTING
from ..task.sweep import Sweep
from .results import results_of

THIS = "."  # the name of an output folder that is the sweep's own


class Part(NamedTuple):
    """What is done with one model. out: its output folder, from that of the sweep on"""

    out: str
    spec: JobSpec


def beside(spec: JobSpec) -> JobSpec:
    """The sweep of a job file, with its results beside those of the job, which has the folder itself."""
    output = msgspec.structs.replace(spec.output, path=f"{spec.output.path.rstrip('/')}-sweep")
    return msgspec.structs.replace(spec, output=output)


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
    output = msgspec.structs.replace(spec.output, path=f"{spec.output.path.rstrip('/')}/{name}")
    return msgspec.structs.replace(spec, model=model, output=output)


class Done(NamedTuple):
    """job: as it stands in its folder"""

    part: Part
    outcome: Outcome
    job: Job

    @property
    def settings(self) -> list[Setting]:
        return _settings(self.job)


def sweep(spec: JobSpec, discard: bool) -> Iterator[Done]:
    """Brings the jobs of a sweep to their end, one after the other. Raises what `run` raises.

    discard: drop what other jobs have left in their folders
    """
    metrics.require(spec.metrics, spec.check)
    for part in parts(spec):
        outcome = run(part.spec, discard)
        begun = record.job_of(outcome.out)
        done = Done(part, outcome, prepare(record.spec_of(outcome.out, begun), begun=begun))
        _write(done, layout.SETTINGS, _json(done.settings))
        yield done


def compare(spec: JobSpec, finished: Sequence[Done]) -> Summary:
    """Measures all responses of a sweep, and writes into its folder how its settings compare. Raises JobError."""
    measured = metrics.measure(
        _rows(finished),
        list(_measured(spec, finished)),
        spec.metrics,
        finished[0].job.model.tokenizer,
        spec.check,
        [done.part.out for done in finished],
    )
    table = pa.BufferOutputStream()
    pq.write_table(measured.table, table, compression="zstd")
    files = {
        layout.METRICS: table.getvalue().to_pybytes(),
        layout.SUMMARY: _json(measured.summary),
        layout.BEST: best_toml(measured.summary).encode(),
    }
    is_of_one = finished[0].part.out == THIS
    write = partial(_write, finished[0]) if is_of_one else partial(_write_above, spec)
    for name, content in files.items():
        write(name, content)
    write(layout.REPORT, page_of([finished[0].outcome.out.location if is_of_one else spec.output.path]))
    return measured.summary


def _measured(spec: JobSpec, finished: Iterable[Done]) -> Iterator[MeasuredSetting]:
    """The settings of all models, numbered through, each with as many responses as the job itself would have: who
    takes over its sampling does not want those of the sweep."""
    all_of_them = [(index, done, setting) for index, done in enumerate(finished) for setting in done.settings]
    for number, (index, done, setting) in enumerate(all_of_them):
        name = setting.name if done.part.out == THIS else f"{done.part.out}: {setting.name}"
        sampling = setting.sampling if "n" in setting.changes else setting.sampling | {"n": spec.sampling.n}
        asked = setting.changes, sampling, setting.template, setting.same
        yield MeasuredSetting(number, name, index, setting.number, done.job.spec.model.path, *asked)


def _rows(finished: Sequence[Done]) -> Iterator[tuple[dict[str, Any] | None, list[dict[str, Any]]]]:
    """Every row of the sweep: its record, and its output rows of all models, with settings numbered through."""
    begins = itertools.accumulate((len(done.settings) for done in finished), initial=0)
    left = [_answers(done, begin) for done, begin in zip(finished, begins, strict=False)]
    heads = [next(each, None) for each in left]
    plan = finished[0].job.plan
    reader = Reader(plan, [EVERY_COLUMN])
    for row in itertools.chain.from_iterable(map(reader.read, plan.shards)):
        outputs: list[dict[str, Any]] = []
        for place, head in enumerate(heads):
            if head and head[0] == row.number:
                outputs += head[1]
                heads[place] = next(left[place], None)
        yield _record(row), outputs


def _answers(done: Done, begin: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The output rows of each input row. begin: the number of its first setting among those of all models"""
    results = results_of(done.outcome.out, "", partial=False)
    names = [column.name for column in COLUMNS if column.name in results.schema.names]
    rows = (row for batch in results.batches(results.shards, names) for row in batch.to_pylist())
    for number, of_row in itertools.groupby(rows, key=itemgetter("row")):
        yield number, [row | {SETTING: begin + row[SETTING]} for row in of_row]


def _record(row: Row) -> dict[str, Any] | None:
    try:
        return row.record()
    except Reject:
        return None


def _settings(job: Job) -> list[Setting]:
    assert isinstance(job.task, Sweep)
    return list(job.task.settings)


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _write(done: Done, name: str, content: bytes) -> None:
    with owners.writing(done.part.spec.output.shared):
        done.outcome.out.write(name, content)


def _write_above(spec: JobSpec, name: str, content: bytes) -> None:
    """Into the place that holds those of several models, and is no output folder itself."""
    above = store.at(spec.output.path)
    if not isinstance(above, FolderStore):
        above.write(name, content)
        return
    out = Path(above.location)
    with on_disk(out), owners.writing(spec.output.shared):
        owners.check_links(out, [layout.SWEEP])
        (out / layout.SWEEP).mkdir(exist_ok=True)
        safeopen.replace(out / name, content, durable=True)


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
        return _settings(self.job)


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
