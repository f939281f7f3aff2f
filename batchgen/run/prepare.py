"""From a spec to a job that may run: everything that can be checked without an engine is checked here."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from .. import __version__
from ..engine import vllm as engine
from ..errors import JobError, Reject
from ..input import first_format, ids, passed, source
from ..input.columns import Column, check_names
from ..input.source import Plan, Shard
from ..input.template import Template
from ..job import spec as job
from ..job.sampling import Sampling
from ..job.spec import JobSpec
from ..model import models
from ..model.models import Model
from ..model.tokenizer import Tokenizer
from ..output import opening, shard, store
from ..output import record as records
from ..output.record import JobRecord
from ..output.store import Store
from ..prompt import prompt
from ..prompt.checker import Checker
from ..prompt.prompt import Render


@dataclass(frozen=True)
class Job:
    """A job, resolved. context: most tokens of prompt and response together; format: of prompts; sampling: of rows that
    say nothing themselves; columns: passed-through ones; skip: rows that are to be rejected."""

    spec: JobSpec
    out: Store
    model: Model
    context: int
    format: str
    sampling: Sampling
    template: Template | None
    plan: Plan
    columns: list[Column]
    record: JobRecord
    checker: Checker
    skip: frozenset[int]

    @cached_property
    def render(self) -> Render:
        return prompt.renderer(self.format, self.model.tokenizer, self.record.control_tokens)

    @property
    def is_of_first_format(self) -> bool:
        """Whether its rows become what batchgen 0.1.0, which began the folder, would have made of them."""
        return self.record.format == first_format.FORMAT

    @property
    def on_overlength(self) -> str:
        """How a prompt is shortened, as prompt.fit knows it."""
        policy = self.spec.prompt.on_overlength
        return first_format.CLIP if policy == "clip" and self.is_of_first_format else policy

    @property
    def shape(self) -> pa.Schema:
        return shard.schema(self.spec.output.include, self.columns, self.spec.sampling.logprobs is not None)

    def fingerprint_of(self, shard: Shard) -> str:
        """The job's fingerprint when the shard was planned: later rows change nothing about it."""
        return self._fingerprints[self.plan.files[shard.file].generation]

    @cached_property
    def _fingerprints(self) -> list[str]:
        return records.fingerprints(self.record)


def prepare(spec: JobSpec, plan: Plan | None = None, begun: JobRecord | None = None, discard: bool = False) -> Job:
    """Checks engine arguments, output folder, model and input, and plans the shards; writes nothing.

    plan: one that was made before, to be taken as it is; begun: the job that this is, whatever is in the folder now;
    discard: another job's results in the folder are going to be dropped. Raises JobError.
    """
    out = store.at(Path(spec.output.path).absolute())
    engine.check_args(spec.engine)
    old = begun or records.read_job(out)
    spec, model = _model(spec)
    is_new = False  # what is known was told of before
    if begun:
        plan = begun.plan
    if plan is None:
        plan = _plan(spec, out, old, discard)
        is_new = old is None or plan is not old.plan
    template = _template(spec)
    if not begun:  # or else it was checked before; where a column comes late, that reads all rows
        source.check_columns(plan.files, spec.input.format, template)
        ids.check_names(plan.files, spec.input)
    if is_new:
        ids.tell(plan, spec.input, bool(template))
    columns = _columns(spec, plan, old)
    context = spec.engine.get("max_model_len", model.context)
    if not isinstance(context, int) or not 1 < context <= model.context:
        raise JobError(f"[engine] max_model_len: {context} is not a whole number from 2 to {model.context}")
    format = model.prompt_format if spec.prompt.format == "auto" else spec.prompt.format
    checker = _checker(spec, model)
    spec, for_rows = _sampling(spec, model, format, checker)

    def made(record: JobRecord) -> Job:
        skip = frozenset(spec.input.skip)
        job = Job(spec, out, model, context, format, for_rows, template, plan, columns, record, checker, skip)
        checker.set_up_prompts(format, job.on_overlength, spec.prompt.date, record.control_tokens)
        return job

    results = _results(spec, model, context, format, plan, columns)
    if begun:
        _check_same(begun, _as_named(begun, results, model))
        _check_weights(begun, model)
        return made(begun)
    version, results = _in_words_of(old, results, model)
    record = JobRecord(
        format=version,
        fingerprint=job.fingerprint(results),
        results=results,
        spec=msgspec.to_builtins(spec),
        versions={"batchgen": __version__, **engine.versions(not isinstance(model.tokenizer, Tokenizer))},
        plan=plan,
        after=old.fingerprint if old else None,
        schema=passed.written(columns),
        sha256=model.sha256,
    )
    return made(record)


def _in_words_of(old: JobRecord | None, results: dict[str, Any], model: Model) -> tuple[int, dict[str, Any]]:
    """The format and the results of a job: those of the folder that it goes on in, if it is the same but for its input.
    So the shards of an older folder, made and to be made, have one fingerprint."""
    if old:
        files = results["input"]["files"]
        as_before = {**old.results, "input": {**old.results["input"], "files": files}}
        if job.without_defaults(as_before) == _as_named(old, results, model):
            _check_weights(old, model)
            return old.format, as_before
    return records.FORMAT, results


def _check_weights(old: JobRecord, model: Model) -> None:
    """What is the same by MD5 is so by SHA-256, as far as it was recorded. Raises JobError."""
    for name, digest in old.sha256.items():
        if model.sha256.get(name, digest) != digest:
            what = "has the MD5, but not the SHA-256, of what the job was made with"
            raise JobError(f"{model.folder / name}: {what}: somebody made two files of one MD5")


def _as_named(old: JobRecord, results: dict[str, Any], model: Model) -> dict[str, Any]:
    """The results without those files of a model that a folder of an older version does not name."""
    if not model.since_0_3.isdisjoint(old.results.get("model", {})):
        return results
    named = {file: digest for file, digest in model.digests.items() if file not in model.since_0_3}
    return {**results, "model": named}


def _check_same(begun: JobRecord, results: dict[str, Any]) -> None:
    if changes := job.differences(begun.settings, job.with_defaults(results)):
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        raise JobError(f"what the job was made with has changed: {changes[0]}{more}")


def _plan(spec: JobSpec, out: Store, old: JobRecord | None, discard: bool) -> Plan:
    """The shards of the input: those of the job in the folder, as far as it is the same input. Raises JobError."""
    paths, shard_rows, incremental = spec.input.path, spec.output.shard_rows, spec.input.incremental
    where = str(out), spec.input.follow_links
    known = old.plan if old and old.settings["output"]["shard_rows"] == shard_rows else None
    if old is None or known is None or old.retry_of or not (incremental or known.generation):
        return source.plan(paths, shard_rows, known, incremental, *where)
    plan, changed = source.grow(paths, shard_rows, known, *where)
    if not incremental:
        more = plan.files[len(known.files) :]
        changed += [f"{file.path}: {file.rows:,} new rows, and the job is not incremental now" for file in more]
    if not changed:
        return plan
    if not discard and opening.held_in(out):
        raise opening.drift(out, changed)
    return source.plan(paths, shard_rows, None, incremental, *where)


def _columns(spec: JobSpec, plan: Plan, old: JobRecord | None) -> list[Column]:
    """The passed-through columns, with the types that the job in the folder has, if it began with the same input."""
    texts = spec.output.columns
    recorded = {}
    if old and texts and _first_digests(old.plan) == _first_digests(plan):
        was = job.with_defaults(old.results)["output"]["columns"]
        recorded = passed.read(plan.files, old.spec["output"].get("columns", []), was, old.schema)
    columns = passed.resolve(plan.files, texts, recorded)
    check_names(columns, shard.own_columns(spec.output.include, spec.sampling.logprobs is not None))
    return columns


def _first_digests(plan: Plan) -> list[str]:
    return [file.digest for file in plan.files if not file.generation]


def _model(spec: JobSpec) -> tuple[JobSpec, Model]:
    """The model, and the spec with its commit as the revision: whoever prepares the job again, a worker above all,
    takes that very copy from the cache and need not ask the hub."""
    model = models.load(spec.model.path, spec.model.revision, spec.prompt.format)
    models.check_release(model, spec.model.allow_withdrawn)
    pinned = msgspec.structs.replace(spec.model, revision=model.revision or "")
    return msgspec.structs.replace(spec, model=pinned), model


def _checker(spec: JobSpec, model: Model) -> Checker:
    asked = spec.engine.get("structured_outputs_config", engine.STRUCTURED_OUTPUTS)
    any_whitespace = not (isinstance(asked, dict) and asked.get("disable_any_whitespace"))
    return Checker(model, any_whitespace, spec.limits)


def _sampling(spec: JobSpec, model: Model, format: str, checker: Checker) -> tuple[JobSpec, Sampling]:
    """The spec with the card's sampling where it gives none, and what of it holds for a row."""
    try:
        resolved = spec.sampling.with_defaults(model.sampling_defaults(format))
        for_rows = resolved.for_rows()
        checker.check(for_rows)
    except (ValueError, Reject) as error:
        raise JobError(f"[sampling] {error}") from None
    return msgspec.structs.replace(spec, sampling=resolved), for_rows


def _template(spec: JobSpec) -> Template | None:
    try:
        return Template(spec.prompt.template) if spec.prompt.template else None
    except ValueError as error:
        raise JobError(f"[prompt] template {spec.prompt.template!r}: {error}") from None


def _results(
    spec: JobSpec, model: Model, context: int, format: str, plan: Plan, columns: list[Column]
) -> dict[str, Any]:
    """Everything that decides what the shards hold and differs from the defaults; a job goes on only where all of it is
    the same. Keys of the job file are in it by themselves, unless they are listed as means."""
    renamed = {column.name: column.source for column in columns if column.name != column.source}
    picked = [row for planned in plan.shards for row in planned.picked or ()]
    asked = job.results_of(spec)
    more: dict[str, dict[str, Any]] = {
        "input": {"files": records.facts_of(plan.files)}
        | ({"picked": job.fingerprint({"rows": picked})} if picked else {}),
        "prompt": {"format": format},
        "engine": {"max_model_len": context},
        "output": {
            "columns": {column.name: column.kind for column in columns},
            "include": sorted(spec.output.include),
        }
        | ({"sources": renamed} if renamed else {}),
    }
    tables = {table: values | more.get(table, {}) for table, values in asked.items()}
    return job.without_defaults(tables) | {"model": model.digests}
