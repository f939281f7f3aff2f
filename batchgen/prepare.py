"""From a spec to a job that may run: everything that can be checked without an engine is checked here."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from . import __version__, engine, folder, job, models, prompt, shard, source, structure
from .conversation import Template
from .errors import JobError
from .folder import JobRecord
from .job import JobSpec
from .models import Model
from .prompt import Render
from .sampling import Sampling
from .source import Plan


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


def prepare(spec: JobSpec, plan: Plan | None = None) -> Job:
    """Checks engine arguments, output folder, model and input, and plans the shards; writes nothing.

    plan: one that was made before, to be taken as it is. Raises JobError.
    """
    out = Path(spec.output.path).absolute()
    engine.check_args(spec.engine)
    old = folder.read_job(out)
    spec, model = _model(spec)
    if plan is None:
        known = old.plan if old and old.results["output"]["shard_rows"] == spec.output.shard_rows else None
        plan = source.plan(spec.input.path, spec.output.shard_rows, known)
    template = _template(spec)
    source.check_columns(plan.files, spec.input.format, template)
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
    )
    return Job(spec, out, model, context, format, for_rows, template, plan, columns, record)


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
        for_rows.check_ids(model.vocab_size)
        if for_rows.structured_outputs:
            structure.check(for_rows.structured_outputs)
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
            "files": [{"digest": file.digest, "rows": file.rows} for file in plan.files],
            "id": spec.input.id,
            "format": spec.input.format,
            "drop_last_response": spec.input.drop_last_response,
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
