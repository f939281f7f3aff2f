"""From a spec to a job that may run: everything that can be checked without an engine is checked here."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from . import __version__, engine, folder, ids, job, models, prompt, shard, source, structure
from .errors import JobError, on_disk
from .folder import JobRecord
from .job import JobSpec
from .models import Model
from .prompt import Render
from .sampling import Sampling
from .source import Plan, Shard
from .template import Template


@dataclass(frozen=True)
class Job:
    """A job, resolved. context: most tokens of prompt and response together; format: of prompts; sampling: of rows that
    say nothing themselves; columns: passed-through ones."""

    spec: JobSpec
    out: Path
    model: Model
    context: int
    format: str
    sampling: Sampling
    template: Template | None
    plan: Plan
    columns: dict[str, str | pa.DataType]
    record: JobRecord

    @cached_property
    def render(self) -> Render:
        return prompt.renderer(self.format, self.model.tokenizer)

    @property
    def shape(self) -> pa.Schema:
        return shard.schema(self.spec.output.include, self.columns, self.spec.sampling.logprobs is not None)

    def fingerprint_of(self, shard: Shard) -> str:
        """The job's fingerprint when the shard was planned: later rows change nothing about it."""
        return self._fingerprints[self.plan.files[shard.file].generation]

    @cached_property
    def _fingerprints(self) -> list[str]:
        return folder.fingerprints(self.record)


def prepare(spec: JobSpec, plan: Plan | None = None) -> Job:
    """Checks engine arguments, output folder, model and input, and plans the shards; writes nothing.

    plan: one that was made before, to be taken as it is. Raises JobError.
    """
    out = Path(spec.output.path).absolute()
    engine.check_args(spec.engine)
    old = folder.read_job(out)
    spec, model = _model(spec)
    is_new = False  # what is known was told of before
    if plan is None:
        plan = _plan(spec, out, old)
        is_new = old is None or plan is not old.plan
    template = _template(spec)
    source.check_columns(plan.files, spec.input.format, template)
    ids.check_names(plan.files, spec.input)
    if is_new:
        ids.tell(plan, spec.input.id)
    columns = source.column_types(plan.files, spec.output.columns)
    if clash := sorted(shard.RESERVED & set(columns)):
        raise JobError(f"[output] columns: {clash[0]} is a column of batchgen's own; rename it in the input")
    context = spec.engine.get("max_model_len", model.context)
    if not isinstance(context, int) or not 1 < context <= model.context:
        raise JobError(f"[engine] max_model_len: {context} is not a whole number from 2 to {model.context}")
    format = model.prompt_format if spec.prompt.format == "auto" else spec.prompt.format
    spec, for_rows = _sampling(spec, model, format)
    results = _results(spec, model, context, format, plan, columns)
    record = JobRecord(
        fingerprint=job.fingerprint(results),
        results=results,
        spec=msgspec.to_builtins(spec),
        versions={"batchgen": __version__, **engine.versions()},
        plan=plan,
        after=old.fingerprint if old else None,
    )
    return Job(spec, out, model, context, format, for_rows, template, plan, columns, record)


def _plan(spec: JobSpec, out: Path, old: JobRecord | None) -> Plan:
    """The shards of the input: those of the job in the folder, as far as it is the same input. Raises JobError."""
    paths, shard_rows, incremental = spec.input.path, spec.output.shard_rows, spec.input.incremental
    known = old.plan if old and old.results["output"]["shard_rows"] == shard_rows else None
    if old is None or known is None or old.retry_of or not (incremental or known.generation):
        return source.plan(paths, shard_rows, known, incremental)
    plan, changed = source.grow(paths, shard_rows, known)
    if not incremental:
        more = plan.files[len(known.files) :]
        changed += [f"{file.path}: {file.rows:,} new rows, and the job is not incremental now" for file in more]
    if not changed:
        return plan
    with on_disk(out):
        if folder.finished(out, known):
            raise folder.drift(out, changed)
    return source.plan(paths, shard_rows, None, incremental)


def _model(spec: JobSpec) -> tuple[JobSpec, Model]:
    """The model, and the spec with its commit as the revision: whoever prepares the job again, a worker above all,
    takes that very copy from the cache and need not ask the hub."""
    model = models.load(spec.model.path, spec.model.revision, spec.prompt.format)
    models.check_release(model, spec.model.allow_withdrawn)
    pinned = msgspec.structs.replace(spec.model, revision=model.revision or "")
    return msgspec.structs.replace(spec, model=pinned), model


def _sampling(spec: JobSpec, model: Model, format: str) -> tuple[JobSpec, Sampling]:
    """The spec with the card's sampling where it gives none, and what of it holds for a row."""
    try:
        resolved = spec.sampling.with_defaults(model.sampling_defaults(format))
        for_rows = resolved.for_rows()
        structure.check(for_rows, model.vocab_size)
    except ValueError as error:
        raise JobError(f"[sampling] {error}") from None
    return msgspec.structs.replace(spec, sampling=resolved), for_rows


def _template(spec: JobSpec) -> Template | None:
    try:
        return Template(spec.prompt.template) if spec.prompt.template else None
    except ValueError as error:
        raise JobError(f"[prompt] template {spec.prompt.template!r}: {error}") from None


def _results(
    spec: JobSpec, model: Model, context: int, format: str, plan: Plan, columns: dict[str, str | pa.DataType]
) -> dict[str, Any]:
    """Everything that decides what the shards hold; a job goes on only where all of it is the same."""
    picked = [row for planned in plan.shards for row in planned.picked or ()]
    return {
        "input": {
            "files": folder.facts_of(plan.files),
            "id": spec.input.id,
            "format": spec.input.format,
            "drop_last_response": spec.input.drop_last_response,
        }
        | {
            field.name: getattr(spec.input, field.name)
            for field in msgspec.structs.fields(spec.input)
            if field.name in ("seed", "sampling", "system") and getattr(spec.input, field.name) != field.default
        }
        | ({"picked": job.fingerprint({"rows": picked})} if picked else {}),
        "model": model.digests,
        "prompt": msgspec.to_builtins(spec.prompt) | {"format": format},
        "sampling": msgspec.to_builtins(spec.sampling),
        "engine": {name: value for name, value in spec.engine.items() if name not in job.ENGINE_MEANS}
        | {"max_model_len": context},
        "output": {
            "shard_rows": spec.output.shard_rows,
            "columns": {name: str(kind) for name, kind in columns.items()},
            "include": sorted(spec.output.include),
        },
    }
