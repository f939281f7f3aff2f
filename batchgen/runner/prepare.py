"""From a spec to a job that may run: everything that can be checked without an engine is checked here."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec

from .. import __version__
from ..check import user
from ..check.checks import checks_of
from ..engine import choice
from ..engine.installed import (
    STRUCTURED_OUTPUTS,
    check_args,
    check_parameters,
    check_reasoning_parser,
    check_speculation,
    has,
    versions,
)
from ..errors import JobError, Reject
from ..input import checks, passthrough
from ..input.columns import Column, check_names
from ..input.plan import Plan, Shard, grow, plan_input, source_finder
from ..input.rows import Reader
from ..input.template import Template
from ..job import drift, own_check
from ..job.row_limits import RowLimits
from ..job.sampling import NAMES, JobSampling, RepetitionDetection, Sampling
from ..job.settings import Setting
from ..job.spec import OF_RUNS, CheckTable, JobSpec
from ..model.model import Model, check_release, load_model
from ..model.tokenizer import Tokenizer
from ..output import opening, shard, store
from ..output import record as records
from ..output.record import JobRecord
from ..output.store import Store
from ..prompt.checker import Checker
from ..task import tries
from ..task.generate import Generate
from ..task.output_columns import SCORES, columns_of
from ..task.score import TOKENS
from ..task.sweep import Sweep
from ..task.task import Task
from ..task.translate import Translate
from . import images, scoring, sweeping, translation

# Eight times in a row what takes three tokens or more: 24 tokens of "....." are the model's business, 24 of them thrice
# are not. Patterns of more than 40 tokens are the check's, which sees the text at its end.
LOOP = RepetitionDetection(max_pattern_size=40, min_pattern_size=3, min_count=8)


@dataclass(frozen=True)
class Job:
    """A job, resolved: what is done to which rows, by which model, and where the results go.

    generate: what makes the task's prompts, often the task itself; of a sweep with the first setting
    """

    spec: JobSpec
    out: Store
    model: Model
    context: int
    plan: Plan
    record: JobRecord
    task: Task
    generate: Generate

    @property
    def samplings(self) -> list[Sampling]:
        """What rows that bring no parameters are answered with: of a sweep, with each setting."""
        return [each.sampling for each in (self.task.generates if isinstance(self.task, Sweep) else [self.generate])]

    @property
    def task_alone(self) -> Task:
        """The task without what earlier jobs have: to see which rows can be answered at all."""
        return replace(self.task, memory=lambda key: None) if isinstance(self.task, Translate) else self.task

    @property
    def shards(self) -> list[Shard]:
        """Those that a run is to work on: of a trial, up to the one with the last of its rows."""
        end = self.end
        return [planned for planned in self.plan.shards if end is None or planned.row_numbers[0] < end]

    @cached_property
    def end(self) -> int | None:
        """The number of the first row that a trial leaves out; None if it leaves none out."""
        left = self.spec.input.limit
        for planned in self.plan.shards if left is not None else ():
            assert left is not None
            if left < len(planned.row_numbers):
                return planned.row_numbers[left]
            left -= len(planned.row_numbers)
        return None

    @property
    def rows(self) -> int:
        """How many rows a run is to work on."""
        return min(self.plan.rows, self.spec.input.limit or self.plan.rows)

    def is_cut(self, shard: Shard) -> bool:
        """Whether a trial leaves out some rows of a shard."""
        return self.end is not None and shard.row_numbers[-1] >= self.end

    def reader(self, running: bool = False) -> Reader:
        """What reads the rows of its shards. running: see Reader."""
        limits = RowLimits(self.spec.limits.row_bytes, self.spec.limits.row_values)
        return Reader(self.plan, self.task.columns_read, self.task.columns, running, limits)

    @property
    def digests(self) -> dict[str, str]:
        """Of the model's files, as the job's record names them."""
        return {file: digest for file, digest in self.model.digests.items() if file in self.record.results["model"]}

    def fingerprint_of(self, shard: Shard) -> str:
        """The job's fingerprint when the shard was planned: later rows change nothing about it."""
        return self._fingerprints[self.plan.files[shard.file].growth]

    @cached_property
    def _fingerprints(self) -> list[str]:
        return records.fingerprints(self.record)


@dataclass(frozen=True)
class _Parts:
    """What a job is made of, all but its record: see Job.

    templates: by their texts
    columns: that are passed through
    checker: of rows' parameters and prompts
    for_rows: what rows that bring no parameters are answered with
    settings: of a sweep, each with the same
    """

    spec: JobSpec
    out: Store
    model: Model
    context: int
    format: str
    plan: Plan
    templates: dict[str, Template | None]
    columns: list[Column]
    checker: Checker
    for_rows: Sampling
    settings: list[tuple[Setting, Sampling]]

    @property
    def samplings(self) -> list[Sampling]:
        return [params for _, params in self.settings] or [self.for_rows]


def prepare(spec: JobSpec, plan: Plan | None = None, begun: JobRecord | None = None, discard: bool = False) -> Job:
    """Checks engine arguments, output folder, model and input, and plans the shards; writes nothing.

    plan: one that was made before, to be taken as it is; begun: the job that this is, whatever is in the folder now;
    discard: another job's results in the folder are going to be dropped. Raises JobError.
    """
    out = store.at(spec.output.path, spec.output.stale)
    spec = _checked(spec)
    old = begun or records.read_job(out)
    spec, model = _model(spec)
    planned = begun.plan if begun else plan or _plan(spec, out, old, discard)
    templates = _templates(spec)
    if not begun:  # or else it was checked before; where a column comes late, that reads all rows
        _check_columns(spec, planned, templates, old)
        # What is known was told of before, and where it may be gone the rest cannot be compared with it.
        if not plan and not (old and planned is old.plan) and not _has_forgotten(spec, planned, old):
            checks.tell(planned, spec.input, has_template=all(templates.values()) or spec.score.mode == "text")
    parts = _parts(spec, out, model, planned, templates, old)
    if begun:
        results = _results(parts, choice.of_results(begun.results), begun)
        _check_same(begun, _as_named(begun, results, model))
        _check_weights(begun, model)
        return _job(parts, begun)
    for params in parts.samplings:
        _check_tries(spec, params, parts.checker)
    return _job(parts, _record(parts, _results(parts, choice.chosen(), None), old))


def _checked(spec: JobSpec) -> JobSpec:
    """The spec with what its kind of task makes of it, if nothing in it is wrong whatever model and input are."""
    if spec.translate.fields:
        spec = translation.resolved(spec)
    if spec.score.mode != "off":
        scoring.check(spec)
    if spec.sweep.method:
        spec = sweeping.resolved(spec)
    check_args(spec.engine)
    check_parameters(name for name in NAMES if getattr(spec.sampling, name) is not None)
    if spec.model.reasoning_parser:
        check_reasoning_parser(spec.model.reasoning_parser, spec.engine)
    return spec


def _has_forgotten(spec: JobSpec, plan: Plan, old: JobRecord | None) -> bool:
    """Whether the files that a job began with need not be there any more."""
    return bool(not spec.input.keep and old and plan.files[: len(old.plan.files)] == old.plan.files)


def _check_columns(spec: JobSpec, plan: Plan, templates: dict[str, Template | None], old: JobRecord | None) -> None:
    """Raises JobError if the input lacks a column that the job reads."""
    if old and _has_forgotten(spec, plan, old):  # whose columns were found; each row is judged when it is read
        if not spec.translate.fields and spec.score.mode != "text":
            for template in templates.values():
                checks.check_columns(plan.files[len(old.plan.files) :], spec.input.format, template)
        return
    if spec.score.mode != "off":
        scoring.check_columns(spec, plan.files)
    if spec.translate.fields:
        translation.check_fields(spec, plan.files)
    elif spec.score.mode != "text":
        for template in templates.values():
            checks.check_columns(plan.files, spec.input.format, template)
    checks.check_names(plan.files, spec.input)


def _parts(
    spec: JobSpec,
    out: Store,
    model: Model,
    plan: Plan,
    templates: dict[str, Template | None],
    old: JobRecord | None,
) -> _Parts:
    columns = _columns(spec, plan, old)
    context = spec.engine.get("max_model_len", model.context)
    if not isinstance(context, int) or not 1 < context <= model.context:
        raise JobError(f"[engine] max_model_len: {context} is not a whole number from 2 to {model.context}")
    format = model.prompt_format if spec.prompt.format == "auto" else spec.prompt.format
    images.check(spec, model, format)
    checker = _checker(spec, model)
    spec, for_rows = _sampling(spec, model, format, checker)
    settings = sweeping.settings(spec) if spec.sweep.method else []
    with_params = [(setting, _of_setting(setting, checker)) for setting in settings]
    parts = _Parts(spec, out, model, context, format, plan, templates, columns, checker, for_rows, with_params)
    for params in parts.samplings:
        check_speculation(spec.engine, params)
    return parts


def _record(parts: _Parts, results: dict[str, Any], old: JobRecord | None) -> JobRecord:
    """The record of a job that begins or goes on here. old: that of the job in the folder."""
    spec, model = parts.spec, parts.model
    version, results = _in_words_of(old, results, model)
    builtins = msgspec.to_builtins(spec, str_keys=True)
    return JobRecord(
        format=version,
        fingerprint=drift.fingerprint(results),
        results=results,
        spec={table: keys for table, keys in builtins.items() if table not in OF_RUNS},
        versions={
            "batchgen": __version__,
            **versions(not isinstance(model.tokenizer, Tokenizer), bool(spec.input.image)),
        },
        plan=parts.plan,
        after=old.fingerprint if old else None,
        schema=passthrough.written(parts.columns),
        sha256=model.sha256,
    )


def _job(parts: _Parts, record: JobRecord) -> Job:
    spec, model, plan, checker = parts.spec, parts.model, parts.plan, parts.checker
    generate = Generate(
        spec=_for_prompts(spec),
        model=model,
        context=parts.context,
        format=parts.format,
        sampling=parts.for_rows,
        template=parts.templates.get(spec.prompt.template),
        columns=[] if spec.translate.fields else parts.columns,
        checker=checker,
        control_tokens=record.control_tokens,
        folder_format=record.format,
        skip=frozenset(spec.input.skip),
        source=source_finder(plan) if "source" in spec.output.include else None,
        sight=images.sight_of(spec, model, plan, checker),
    )
    has_images = bool(spec.input.image)
    checker.set_up_prompts(parts.format, generate.on_overlength, spec.prompt.date, record.control_tokens, has_images)
    task: Task = generate
    if spec.translate.fields:
        taken_apart = translation.records_of(spec, plan.files, parts.columns)
        task = translation.task_of(spec, generate, taken_apart, translation.memory_of(spec, parts.out, record))
    elif spec.score.mode != "off":
        task = scoring.task_of(spec, generate, parts.context, parts.columns)
    elif parts.settings:
        generates = [
            replace(generate, spec=setting.of(spec), sampling=params, template=parts.templates[setting.template])
            for setting, params in parts.settings
        ]
        task, generate = Sweep(spec, [setting for setting, _ in parts.settings], generates, generate.skip), generates[0]
    return Job(spec, parts.out, model, parts.context, plan, record, task, generate)


def _in_words_of(old: JobRecord | None, results: dict[str, Any], model: Model) -> tuple[int, dict[str, Any]]:
    """The format and the results of a job: those of the folder that it goes on in, if it is the same but for its input.
    So the shards of an older folder, made and to be made, have one fingerprint."""
    if old:
        files = results["input"]["files"]
        as_before = {**old.results, "input": {**old.results["input"], "files": files}}
        if drift.without_defaults(as_before) == _as_named(old, results, model):
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
    named = {key: value for key, value in results["model"].items() if key not in model.since_0_3}
    return {**results, "model": named}


def _check_same(begun: JobRecord, results: dict[str, Any]) -> None:
    if changes := drift.differences(begun.settings, drift.with_defaults(results)):
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        raise JobError(f"what the job was made with has changed: {changes[0]}{more}")


def _plan(spec: JobSpec, out: Store, old: JobRecord | None, discard: bool) -> Plan:
    """The shards of the input: those of the job in the folder, as far as it is the same input. Raises JobError."""
    paths, shard_rows, incremental = spec.input.path, spec.output.shard_rows, spec.input.incremental
    where = str(out), spec.input.follow_links
    if not (spec.input.keep or incremental or spec.sweep.method):
        raise JobError("[input] keep: only an incremental job is done with files before its end; set incremental")
    known = old.plan if old and old.settings["output"]["shard_rows"] == shard_rows else None
    if old and known and not sweeping.picks_same_rows(spec, old):
        known = None
    if spec.sweep.method:
        plan = plan_input(paths, shard_rows, known, False, *where)
        return plan if known and plan is known else sweeping.pick_rows(plan, spec)
    if old is None or known is None or old.retry_of or not (incremental or known.growth):
        return plan_input(paths, shard_rows, known, incremental, *where)
    over = None if spec.input.keep else _over(out, known)
    plan, changed = grow(paths, shard_rows, known, *where, over=over)
    if not incremental:
        more = plan.files[len(known.files) :]
        changed += [f"{file.path}: {file.rows:,} new rows, and the job is not incremental now" for file in more]
    if not changed:
        return plan
    if not discard and opening.held_in(out):
        raise opening.drift(out, changed)
    return plan_input(paths, shard_rows, None, incremental, *where)


def _over(out: Store, plan: Plan) -> set[int]:
    """The growths of a plan all of whose shards are finished."""
    done = {planned.index for planned in shard.finished(out, plan, missing_ok=True)}
    left = {plan.files[planned.file].growth for planned in plan.shards if planned.index not in done}
    return {file.growth for file in plan.files} - left


def _columns(spec: JobSpec, plan: Plan, old: JobRecord | None) -> list[Column]:
    """The passed-through columns, with the types that the job in the folder has, if it began with the same input."""
    if spec.translate.fields:
        if not spec.input.keep and any(file.is_columnar for file in plan.files):
            raise JobError("[input] keep: a translation of Parquet or Arrow files needs the first of them to the end")
        return translation.columns_of(spec, plan.files)
    before = old.spec["output"].get("columns", []) if old else []
    if old and old.schema and before == spec.output.columns and _has_forgotten(spec, plan, old):
        output = drift.with_defaults(old.results)["output"]
        return passthrough.recorded(output["columns"], output.get("sources", {}), old.schema)
    own = [*SCORES.names, TOKENS.name] if spec.score.mode != "off" else [column.name for column in columns_of(spec)]
    texts = passthrough.expanded(plan.files, spec.output.columns, own, spec.input.id)
    recorded = {}
    if old and texts and _first_digests(old.plan) == _first_digests(plan):
        was = drift.with_defaults(old.results)["output"]["columns"]
        before = passthrough.expanded(plan.files, old.spec["output"].get("columns", []), own, spec.input.id)
        recorded = passthrough.read(plan.files, before, was, old.schema)
    columns = passthrough.resolve(plan.files, texts, recorded)
    check_names(columns, own)
    return columns


def _first_digests(plan: Plan) -> list[str]:
    return [file.digest for file in plan.files if not file.growth]


def _for_prompts(spec: JobSpec) -> JobSpec:
    """The spec by which the task that makes the prompts goes."""
    if spec.translate.fields:
        return translation.for_segments(spec)
    return scoring.for_prompts(spec) if spec.score.mode != "off" else spec


def _model(spec: JobSpec) -> tuple[JobSpec, Model]:
    """The model, and the spec with its commit as the revision: whoever prepares the job again, a worker above all,
    takes that very copy from the cache and need not ask the hub."""
    if spec.input.adapter and not spec.model.adapter:
        raise JobError("[input] adapter: the job has no adapters; name them in [model] adapter (--adapter NAME=FOLDER)")
    table = spec.model
    model = load_model(
        table.path, table.revision, spec.prompt.format, table.adapter, table.vision, images=bool(spec.input.image)
    )
    check_release(model, spec.model.allow_withdrawn)
    pinned = msgspec.structs.replace(spec.model, revision=model.revision or "")
    return msgspec.structs.replace(spec, model=pinned), model


def _checker(spec: JobSpec, model: Model) -> Checker:
    asked = spec.engine.get("structured_outputs_config", STRUCTURED_OUTPUTS)
    any_whitespace = not (isinstance(asked, dict) and asked.get("disable_any_whitespace"))
    return Checker(model, any_whitespace, spec.limits, thinks=bool(spec.model.reasoning_parser))


def _sampling(spec: JobSpec, model: Model, format: str, checker: Checker) -> tuple[JobSpec, Sampling]:
    """The spec with the card's sampling where it gives none, and what of it holds for a row."""
    try:
        resolved = spec.sampling.with_defaults(model.sampling_defaults(format))
        resolved = _stop_loops(resolved, spec.check)
        for_rows = resolved.for_rows()
        checker.check(for_rows)
    except (ValueError, Reject) as error:
        raise JobError(f"[sampling] {error}") from None
    return msgspec.structs.replace(spec, sampling=resolved), for_rows


def _stop_loops(resolved: JobSampling, table: CheckTable) -> JobSampling:
    """With the check `repetition` a loop ends as it is seen: it would cost max_tokens, and be tried again."""
    if "repetition" not in table.checks or resolved.repetition_detection or not has("repetition_detection"):
        return resolved
    return msgspec.structs.replace(resolved, repetition_detection=LOOP)


def _of_setting(setting: Setting, checker: Checker) -> Sampling:
    """What holds for a row with a setting of a sweep. Raises JobError."""
    params = setting.as_sampling.for_rows()
    try:
        checker.check(params)
    except (ValueError, Reject) as error:
        raise JobError(f"[sweep] {setting.name}: {error}") from None
    return params


def _check_tries(spec: JobSpec, for_rows: Sampling, checker: Checker) -> None:
    """Raises JobError if a check is none, or further tries have parameters that no response can have."""
    checks_of(spec.check)
    try:
        checker.check(tries.sampling_of(for_rows, 1, spec.check))
    except (ValueError, Reject) as error:  # msgspec's own is a ValueError
        raise JobError(f"[check] retry: {error}") from None


def _templates(spec: JobSpec) -> dict[str, Template | None]:
    """By their texts; several only of a sweep. Raises JobError."""
    texts = sweeping.templates(spec) if spec.sweep.method else [spec.prompt.template]
    return {text: _template(text) for text in texts}


def _template(text: str) -> Template | None:
    try:
        return Template(text) if text else None
    except ValueError as error:
        raise JobError(f"[prompt] template {text!r}: {error}") from None


def _results(parts: _Parts, engine: str, begun: JobRecord | None) -> dict[str, Any]:
    """Everything that decides what the shards hold and differs from the defaults; a job goes on only where all of it is
    the same. Keys of the job file are in it by themselves, unless they are listed as means."""
    spec, plan, columns = parts.spec, parts.plan, parts.columns
    renamed = {column.name: column.source for column in columns if column.name != column.source}
    picked = [row for planned in plan.shards for row in planned.picked or ()]
    asked = drift.results_of(spec)
    more: dict[str, dict[str, Any]] = {
        "model": parts.model.digests,
        "input": {"files": records.facts_of(plan.files)}
        | images.results_of(parts.model)
        | ({"picked": drift.fingerprint({"rows": picked})} if picked else {}),
        "prompt": {"format": parts.format},
        "engine": {"max_model_len": parts.context} | choice.as_result(engine),
        "output": {
            "columns": {column.name: column.kind for column in columns},
            "include": sorted(spec.output.include),
        }
        | ({"sources": renamed} if renamed else {}),
    }
    if spec.check.checks:
        more["check"] = _results_of_checks(spec.check, begun.results.get("check", {}).get("files", {}) if begun else {})
    tables = {table: values | more.get(table, {}) for table, values in asked.items()}
    results = drift.without_defaults(tables)
    if spec.sweep.method:
        results |= sweeping.results_of(spec, results)
    if spec.translate.fields:
        known = begun.results["translate"] if begun else {}
        results["translate"] |= translation.results_of(spec, known)
    return results


def _results_of_checks(table: CheckTable, known: dict[str, str]) -> dict[str, Any]:
    """A check of the user's own is its function and its file's content, wherever that is. known: digests by which a
    file that is not here any more can go: `verify` needs none."""
    names, digests = [], {}
    for name in table.checks:
        if own := own_check.parse(name):
            name = f"{own.file.name}:{own.function}"
            is_gone = name in known and not own.file.exists()
            digests[name] = known[name] if is_gone else user.digest(own.file)
        names.append(name)
    return {"checks": names} | ({"files": digests} if digests else {})
