"""Which columns a job passes through, and their types: as declared, as recorded by the job's first run, or the widest
type that the input needs."""

import base64
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from ..errors import JobError, shown
from . import columns
from .columns import TYPES, Column, Seen, Wanted
from .cursor import TextCursor
from .file_formats import Table
from .plan import SAMPLE_ROWS, InputFile

EVERY = "*"  # among `[output] columns`


def resolve(files: list[InputFile], texts: Sequence[str], recorded: dict[Wanted, Column] | None = None) -> list[Column]:
    """The columns that `[output] columns` names, with their types.

    An incremental job keeps the types of the files it began with, because its shards form one dataset; rows whose
    values do not fit are rejected.

    Args:
        files: the input.
        texts: `[output] columns`.
        recorded: columns whose types the job has already.

    Raises:
        JobError, Stopped
    """
    wanted = wanted_of(files, texts)
    recorded = recorded or {}
    first = [file for file in files if not file.growth and file.rows]  # those that the job began with
    unknown = [each for each in wanted if not each.declared and each not in recorded]
    seen = _seen(first, [each.source for each in unknown])
    found = []
    for each in wanted:
        if each in recorded:
            found.append(recorded[each])
            continue
        if each.declared:
            column = Column(each.name, each.source, TYPES[each.declared], each.declared == "json")
        else:
            column = _widest(first, each, seen[each.source])
        columns.check_type(column, _arrow_types(first, each.source))
        found.append(column)
    return found


def expanded(files: list[InputFile], texts: Sequence[str], own: Collection[str], id: str) -> list[str]:
    """`[output] columns` with the names of all columns in the place of EVERY: those of the files that the job began
    with. One that has the name of a column of batchgen's own becomes input_NAME, and the one with ids goes without
    saying.

    Args:
        files: the input.
        texts: `[output] columns`.
        own: names that batchgen writes itself.
        id: column with the ids.

    Raises:
        JobError, Stopped
    """
    first = [file for file in files if not file.growth and file.rows]
    if EVERY not in texts or EVERY in _some_names(first):
        return list(texts)
    named = {each.source for each in wanted_of(files, [text for text in texts if text != EVERY])}
    found = dict.fromkeys(name for file in first for name in column_names(file, rows=None) if name not in named)
    every = [f"{name}=input_{name}" if name in own else name for name in found if name != id]
    return [each for text in texts for each in (every if text == EVERY else [text])]


def wanted_of(files: list[InputFile], texts: Sequence[str]) -> list[Wanted]:
    """`[output] columns`, parsed for this input. Raises JobError."""
    signs = any(":" in text or "=" in text for text in texts)
    return columns.parse(texts, _some_names(files) if signs else ())


def _some_names(files: list[InputFile]) -> Iterator[str]:
    """Column names of the first columnar file and of the head of the first text file."""
    for is_columnar in (True, False):
        for file in files:
            if file.rows and file.is_columnar == is_columnar:
                yield from column_names(file)
                break


def column_names(file: InputFile, rows: int | None = SAMPLE_ROWS) -> list[str]:
    """The columns of a columnar file, or the keys in the first `rows` rows (None: all rows) of another."""
    kind, _ = file.format
    if file.is_columnar:
        return list(Table(file.path, kind).schema.names)
    heads = itertools.islice(_raws(file), rows)
    records = (raw if isinstance(raw, dict) else _decoded(raw, dict) for raw in heads)
    return list(dict.fromkeys(name for record in records if isinstance(record, dict) for name in record))


def _raws(file: InputFile) -> Iterator[Any]:
    cursor = TextCursor(file.path, *file.format, file.start)
    for row in cursor.take(file.rows, 0):
        yield row.raw
    cursor.close()


def _decoded(line: bytes, kind: Any) -> Any:
    """A line of JSON, which may hold what msgspec does not accept (NaN, Infinity, lone surrogates); None if invalid."""
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError):
        if b"NaN" not in line and b"Infinity" not in line and b"\\ud" not in line.lower():
            return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _seen(files: Iterable[InputFile], names: Sequence[str]) -> dict[str, dict[str, Seen]]:
    """column -> path -> the kinds of values that the column has in this text file, over all its rows."""
    found: dict[str, dict[str, Seen]] = {name: {} for name in names}
    if not found:
        return found
    keys = {f"field{number}": name for number, name in enumerate(names)}
    fields = [(field, Any, msgspec.UNSET) for field in keys]
    try:
        only_these = msgspec.defstruct("OnlyThese", fields, rename=keys)
    except ValueError:  # a name with a quote, a backslash or a control character
        only_these = dict  # type: ignore[assignment]
    for file in files:
        if file.is_columnar:
            continue
        for raw in _raws(file):
            record = raw if isinstance(raw, dict) else _decoded(raw, only_these)
            for field, name in keys.items():
                value = (
                    record.get(name, msgspec.UNSET)
                    if isinstance(record, dict)
                    else getattr(record, field, msgspec.UNSET)
                )
                if value is not msgspec.UNSET:
                    found[name].setdefault(file.path, Seen()).add(value)
    return found


def _arrow_types(files: Iterable[InputFile], name: str) -> list[pa.DataType]:
    schemas = (Table(file.path, file.format[0]).schema for file in files if file.is_columnar)
    return list(dict.fromkeys(schema.field(name).type for schema in schemas if name in schema.names))


def _widest(files: list[InputFile], wanted: Wanted, seen: dict[str, Seen]) -> Column:
    """The column with the widest type of all files. Raises JobError if their types have none in common."""
    name, source, _ = wanted
    found: dict[str, pa.DataType | None] = {path: values.kind for path, values in seen.items()}
    for file in files:
        if file.is_columnar:
            schema = Table(file.path, file.format[0]).schema
            if source not in schema.names:
                raise JobError(
                    f"{shown(file.path)}: no column {source} to pass through; it has {', '.join(schema.names)}"
                )
            found[file.path] = columns.settled(schema.field(source).type)
    if not found:
        raise JobError(f"column {source}: not in the input; if later rows have it, give its type: {source}:string")
    if None in found.values():  # values of several kinds within one file
        return Column(name, source, TYPES["json"], is_json=True)
    types = [kind for kind in found.values() if kind is not None]
    kind = columns.widest(list(dict.fromkeys(types)))
    if kind is None:
        some = {str(kind): f"{kind} in {shown(path)}" for path, kind in found.items()}
        advice = "int64" if all(pa.types.is_integer(each) for each in types) else "json"
        raise JobError(
            f"column {source}: {', '.join(some.values())}; give one type for all files, such as {source}:string "
            f"or {source}:{advice}"
        )
    if pa.types.is_null(kind) and seen:
        kind = pa.string()  # only nulls, in JSON, which has no type for them
    return Column(name, source, kind)


# --- in `_job.json`


def written(found: Iterable[Column]) -> str:
    """The Arrow types in the form in which `_job.json` holds them."""
    schema = pa.schema([pa.field(column.name, column.type) for column in found])
    return base64.b64encode(schema.serialize()).decode()


def recorded(kinds: dict[str, str], sources: dict[str, str], schema: str) -> list[Column]:
    """All columns of a job as it has recorded them, where its first files may be gone. sources: of those that have
    another name in the input."""
    types = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(schema)))
    return [
        Column(name, sources.get(name, name), types.field(name).type, kind == "json") for name, kind in kinds.items()
    ]


def read(files: list[InputFile], texts: Sequence[str], kinds: dict[str, str], schema: str) -> dict[Wanted, Column]:
    """The columns, with their types, that a job has recorded.

    Args:
        files: the input.
        texts: `[output] columns`.
        kinds: name -> type, as in the job's `results`.
        schema: what `written` returned; empty in a job of 0.1.0, whose Arrow types are those of its Parquet files.
    """
    types = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(schema))) if schema else None
    found = {}
    for wanted in wanted_of(files, texts):
        kind = kinds.get(wanted.name)
        if kind is None:
            continue
        if types is not None and wanted.name in types.names:
            found[wanted] = Column(wanted.name, wanted.source, types.field(wanted.name).type, kind == "json")
        elif kind in TYPES:
            found[wanted] = Column(wanted.name, wanted.source, TYPES[kind], kind == "json")
        else:
            first = [file for file in files if not file.growth]
            same = [each for each in _arrow_types(first, wanted.source) if str(each) == kind]
            found |= {wanted: Column(wanted.name, wanted.source, same[0])} if same else {}
    return found
