"""From a spec with `[translate]` to its task: everything that can be checked without an engine is checked here."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pyarrow as pa

from ..check import languages
from ..errors import JobError, Reject, shown, warn
from ..input import arrow_leaves, checks, paths
from ..input.columns import Column, check_type, settled
from ..input.conversation import Row
from ..input.file_formats import Table
from ..input.paths import FieldPath
from ..input.scan import InputFile
from ..input.template import Template
from ..job.spec import DEFAULT_ADAPTER, InputTable, JobSpec, OutputTable, TranslateTable, nearest
from ..output import memory
from ..output.memory import Memory, Source
from ..output.record import JobRecord
from ..output.store import Store
from ..segment import glossary, sentences
from ..segment.glossary import Glossary
from ..segment.protect import Protect
from ..task.generate import Generate
from ..task.output_columns import REPORT
from ..task.records import ArrowRecords, JsonRecords, Records
from ..task.segment_rows import SegmentRow
from ..task.translate import BEFORE, PLACES, TERMS, Translate

CHECKS = ["empty", "truncated", "repetition", "copy", "language", "length", "numbers"]
ASKS = "Translate the following text{from} into {{into}}. Answer with the translation and nothing else.\n\n{{text}}"
# Keys of [input] by which rows become conversations, with their defaults.
OF_CONVERSATIONS = {
    "format": "auto",
    "seed": "seed",
    "sampling": "sampling",
    "row_sampling": "on",
    "system": None,
    "adapter": "",
    "drop_last_response": False,
}

Remember = Callable[[str], SegmentRow | None]


def resolved(spec: JobSpec) -> JobSpec:
    """The spec with what `[translate]` decides where it says nothing itself. Raises JobError."""
    asked, check = spec.translate, spec.check
    _check_unused(spec)
    source, into = _languages(asked)
    if check.on_failure != "keep":
        raise JobError("[check] on_failure: what becomes of a translation is said by [translate] on_failure")
    if check.source:
        raise JobError("[check] source: translations are compared with what they translate; leave it out")
    if spec.output.columns or spec.output.include:
        raise JobError("[output] columns and include: a translated record has all its columns; leave them out")
    if spec.sampling.n != 1:
        raise JobError(f"[sampling] n: a text is translated once, not {spec.sampling.n} times; set [check] tries")
    if spec.prompt.on_overlength != "reject":
        raise JobError(
            f"[prompt] on_overlength: {spec.prompt.on_overlength} would leave out a part of a text; leave it out"
        )
    check = msgspec.structs.replace(
        check,
        checks=check.checks or CHECKS,
        source_language=check.source_language or source,
        language=check.language or into,
    )
    text = spec.prompt.template or ASKS.format(**{"from": " from {from}" if asked.source else ""})
    _check_template(spec, text)
    return msgspec.structs.replace(spec, check=check, prompt=msgspec.structs.replace(spec.prompt, template=text))


def _check_unused(spec: JobSpec) -> None:
    """Raises JobError for settings of conversations that would do nothing."""
    for key, default in OF_CONVERSATIONS.items():
        if getattr(spec.input, key) not in ("", default):
            raise JobError(f"[input] {key}: is for conversations, and a translation has none; leave it out")
    if spec.model.adapter.keys() - {DEFAULT_ADAPTER}:
        raise JobError("[model] adapter: one translates all texts; give a folder without a name")
    if spec.model.reasoning_parser:
        raise JobError("[model] reasoning_parser: max_tokens of a segment leaves no room for thoughts; leave it out")


def _languages(asked: TranslateTable) -> tuple[str, str]:
    """Codes of the texts' language and of the one to translate into. Raises JobError."""
    return languages.asked("[translate] from", asked.source), languages.asked("[translate] into", asked.into)


def _check_template(spec: JobSpec, text: str) -> None:
    try:
        columns = Template(text).columns
    except ValueError as error:
        raise JobError(f"[prompt] template {text!r}: {error}") from None
    for column in columns:
        if column not in PLACES:
            raise JobError(f"[prompt] template: {{{column}}} is not known{nearest(column, PLACES)}")
    needed = {"text": True, BEFORE: spec.translate.context > 0, TERMS: bool(spec.translate.glossary)}
    for place, is_needed in needed.items():
        if is_needed and place not in columns:
            why = {BEFORE: " for [translate] context", TERMS: " for [translate] glossary"}.get(place, "")
            raise JobError(f"[prompt] template: {{{place}}} is missing{why}: put it where the model is to see it")


def for_segments(spec: JobSpec) -> JobSpec:
    """The spec by which segments are asked for: each is a row of the template's columns, and its id names it."""
    table = InputTable(path=spec.input.path, id="id", seed="", sampling="", system="")
    output = OutputTable(path=spec.output.path)
    check = msgspec.structs.replace(spec.check, source="text")
    return msgspec.structs.replace(spec, input=table, output=output, check=check)


def field_paths(spec: JobSpec) -> list[FieldPath]:
    """Raises JobError."""
    found = []
    for text in spec.translate.fields:
        try:
            found.append(paths.parse(text))
        except ValueError as error:
            raise JobError(f"[translate] fields: {text}: {error}") from None
    return found


def check_fields(spec: JobSpec, files: Iterable[InputFile]) -> None:
    """Raises JobError if a path begins with a column that no row has."""
    checks.require(files, {f"[translate] fields: {path}": path.column for path in field_paths(spec)})


def check_texts(spec: JobSpec, records: Records, rows: Iterable[Row]) -> None:
    """Warns of paths that lead to no text in any of these rows. Raises JobError if none leads to one: the job would
    translate nothing."""
    paths = field_paths(spec)
    left = set(range(len(paths)))
    for row in rows:
        with contextlib.suppress(Reject):
            left = left.difference(*(leaf.chosen_by for leaf in records.of(row, "").leaves))
        if not left:
            return
    if len(left) == len(paths):
        raise JobError(f"[translate] fields: no row has a text at {' or '.join(map(str, paths))}; batchgen plan counts")
    for number in sorted(left):
        warn_of_no_text(paths[number])


def warn_of_no_text(path: FieldPath) -> None:
    warn(f"[translate] fields: {path}: no row was found that has a text there")


def columns_of(spec: JobSpec, files: Iterable[InputFile]) -> list[Column]:
    """The columns of a columnar input, all of which are passed through; none of JSON lines. Raises JobError."""
    schema = _schema(files)
    if schema is None:
        return []
    if spec.translate.report in schema.names:
        raise JobError(
            f"[translate] report: the input has a column {spec.translate.report} already; give it another name"
        )
    columns = [Column(field.name, field.name, settled(field.type)) for field in schema]
    for column in columns:
        check_type(column, [schema.field(column.source).type])
    for path in field_paths(spec):
        kind = schema.field(path.column).type
        if spec.translate.on_failure == "null" and not arrow_leaves.may_be_null(schema.field(path.column), path):
            raise JobError(f"[translate] on_failure: {path} may not be null in the input's schema ({kind})")
    return columns


def _schema(files: Iterable[InputFile]) -> pa.Schema | None:
    """The schema of a columnar input; None of JSON lines. Raises JobError if there is not one for all files."""
    files = [file for file in files if file.rows]
    first, schema = files[0], None
    for file in files:
        if file.is_columnar != first.is_columnar:
            raise JobError(
                f"{shown(file.path)}: translated records keep their form, and {shown(first.path)} has another one; "
                "make a job of each"
            )
        if file.is_columnar:
            other = Table(file.path, file.format[0]).schema
            if schema is None:
                schema = other
            elif not other.remove_metadata().equals(schema.remove_metadata()):
                raise JobError(
                    f"{shown(file.path)}: its columns are not those of {shown(first.path)} "
                    f"({_difference(schema, other)}); make a job of each"
                )
    return schema


def _difference(one: pa.Schema, other: pa.Schema) -> str:
    for field in one:
        if field.name not in other.names:
            return f"no {field.name}"
        if not other.field(field.name).equals(field):
            return f"{field.name} is {other.field(field.name).type}, not {field.type}"
    return f"it has {', '.join(name for name in other.names if name not in one.names) or 'another order'}"


def records_of(spec: JobSpec, files: Iterable[InputFile], columns: list[Column]) -> Records:
    """Raises JobError."""
    found, report = field_paths(spec), pa.field(spec.translate.report, REPORT, nullable=False)
    if columns:
        first = next(file for file in files if file.rows)  # whose schema all have, as `columns_of` has seen
        return ArrowRecords(found, columns, _own(Table(first.path, first.format[0]).schema), report)
    records = JsonRecords(found, report)
    if records.schema.names.count(report.name) > 1:
        raise JobError(f"[translate] report: the output has a column {report.name} already; give it another name")
    return records


def _own(schema: pa.Schema) -> pa.Schema:
    """As a shard can have it. Without what `datasets` has written of the columns: with one more it would not fit, and
    is found again."""
    about = {key: value for key, value in (schema.metadata or {}).items() if key != b"huggingface"}
    return pa.schema([field.with_type(settled(field.type)) for field in schema], about or None)


def results_of(spec: JobSpec, known: dict[str, Any]) -> dict[str, Any]:
    """What its glossary and memory hold, which decides the results. known: what the job has recorded, by which it goes
    on: its memory need not be here for `verify`. Raises JobError."""
    found: dict[str, Any] = {}
    if path := spec.translate.glossary:
        found["glossary"] = hashlib.sha256(glossary.content(path)).hexdigest()
    if paths := spec.translate.memory:
        if spec.output.path in paths:
            raise JobError(f"[translate] memory: {spec.output.path}: is the output itself, which is remembered anyway")
        found["memory"] = known["memory"] if known else memory.digest(_sources(paths))
    return found


def _sources(paths: list[str]) -> list[Source]:
    """Raises JobError."""
    try:
        return memory.sources_of(paths)
    except JobError as error:
        raise JobError(f"[translate] memory: {error}") from None


def memory_of(spec: JobSpec, out: Store, record: JobRecord) -> Remember:
    """What earlier jobs have of the segments, and of a job that has grown its own shards of before. It is read when it
    is first asked. Raises JobError then if it is not what it was when the job began."""

    @functools.cache
    def made() -> Memory | None:
        sources = _sources(spec.translate.memory)
        if sources and memory.digest(sources) != record.results["translate"]["memory"]:
            raise JobError(f"[translate] memory: {', '.join(spec.translate.memory)}: has changed since the job began")
        before = [
            planned for planned in record.plan.shards if record.plan.files[planned.file].growth < record.plan.growth
        ]
        sources += [memory.source_of(out, record, before)] if before else []
        return Memory(sources, record.settings) if sources else None

    return lambda key: known.get(key) if (known := made()) else None


def task_of(spec: JobSpec, generate: Generate, records: Records, remember: Remember) -> Translate:
    """Raises JobError."""
    asked = spec.translate
    if asked.segment == "sentence":
        sentences.require()
    return Translate(
        spec=spec,
        generate=generate,
        records=records,
        protect=Protect(asked.protect),
        glossary=Glossary.load(asked.glossary) if asked.glossary else None,
        languages=_languages(asked),
        memory=remember,
        skip=frozenset(spec.input.skip),
    )
