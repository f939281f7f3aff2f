"""Checks of the whole input before a job begins: missing columns are errors, odd ids and unused columns warnings."""

import itertools
from collections.abc import Collection, Iterable
from contextlib import suppress

import msgspec

from ..errors import JobError, Reject, shown, warn
from ..job.spec import InputTable, nearest
from . import ids, passthrough, shapes
from .conversation import is_text, kind_of
from .plan import SAMPLE_ROWS, InputFile, Plan, locate
from .rows import Reader
from .template import Template

FILES, HEAD_ROWS = 100, 20  # how much is searched for system columns that are not used
FLAGS = {
    "id": "--id",
    "seed": "--seed-column",
    "sampling": "--sampling-column",
    "system": "--system-column",
    "adapter": "--adapter-column",
    "image": "--image-column",
}


def check_columns(files: Iterable[InputFile], format: str, template: Template | None) -> None:
    """Raises JobError unless every file with rows has the template's columns or, if columnar, those of some shape.

    Lines that an incremental job gained later are not checked here: each row is judged when it is read.
    """
    for file in files:
        has_schema = file.is_columnar or file.format[0] == "csv"
        if not file.rows or (file.growth and not has_schema) or not (template or has_schema):
            continue
        names = passthrough.column_names(file)
        if template and template.missing(names):  # later rows may have them; rows that do not are rejected
            names = passthrough.column_names(file, rows=None)
        if template and (missing := template.missing(names)):
            raise JobError(
                f"{shown(file.path)}: [prompt] template names {missing[0]}, which the file does not have; "
                f"it has {', '.join(names)}"
            )
        if template:
            continue
        known = shapes.SHAPES.values() if format == "auto" else [shapes.SHAPES[format]]
        if not any(shape.can_read(names) for shape in known):
            ways = ", ".join(dict.fromkeys(shape.columns[0] for shape in known))
            raise JobError(f"{shown(file.path)}: none of the columns {ways}; it has {', '.join(names)}")


def check_names(files: Collection[InputFile], table: InputTable) -> None:
    """Raises JobError unless the columns that the user named are in some file: in its schema or in one of its rows.
    Columns with default names may be missing."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(InputTable)}
    asked = {key: getattr(table, key) for key in FLAGS}
    left = {key: name for key, name in asked.items() if name and name != defaults[key]}
    left, seen = _not_found(files, left)
    for key, name in left.items():
        has = ", ".join(seen) or "none"
        raise JobError(f"[input] {key} ({FLAGS[key]}): no row has a column {name}; found {has}{_hint(name, seen)}")


def require(files: Iterable[InputFile], wanted: dict[str, str]) -> None:
    """Raises JobError unless some row has each of these columns. wanted: where the job names it -> the column"""
    left, seen = _not_found([file for file in files if file.rows], wanted)
    for where, column in left.items():
        raise JobError(f"{where}: no row has {column}{nearest(column, seen)}")


def _not_found(files: Collection[InputFile], wanted: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Those of some columns that no file has, in its schema or in one of its rows, by where they are named; and the
    columns that were found meanwhile."""
    left, seen = dict(wanted), dict[str, None]()
    for rows in (SAMPLE_ROWS, None):  # usually the first rows are enough
        for file in files:
            if not left:
                break
            seen |= dict.fromkeys(passthrough.column_names(file, rows))
            left = {where: column for where, column in left.items() if column not in seen}
    return left, list(seen)


def _hint(name: str, seen: Iterable[str]) -> str:
    """A hint at the closest name, if one is close; the message lists all names anyway."""
    close = nearest(name, seen)
    return close if "did you mean" in close else ""


def tell(plan: Plan, table: InputTable, has_template: bool) -> None:
    """Warns of ids that several rows share, of ids that cannot be used, and of system columns that are not used."""
    if table.system is None and not has_template and (found := unused_system(plan, table.format)):
        row, name, why = found
        warn(
            f"{locate(plan, row)}: column {name} is not used because {why}; name the column of system messages with "
            "--system-column, or give --system-column '' if there is none"
        )
    _tell_of_ids(plan, table.id)


def unused_system(plan: Plan, format: str) -> tuple[int, str, str] | None:
    """(row, column, why) of a system column whose text does not reach the prompt, going by the first rows of files."""
    reader = Reader(plan, shapes.COLUMNS)
    heads = {planned.file: planned for planned in reversed(plan.shards)}  # the first shard of each file
    for planned in sorted(heads.values(), key=lambda planned: planned.file)[:FILES]:
        for row in itertools.islice(reader.read(planned), HEAD_ROWS):
            with suppress(Reject):
                record = row.record()
                shape = shapes.shape_of(record, format)
                for name in shapes.SYSTEMS:
                    value = record.get(name)
                    if is_text(value) and not shapes.SHAPES[shape].system:
                        return row.number, name, f"rows of shape {shape} have no system column"
                    if value and isinstance(value, list | dict) and shapes.SHAPES[shape].system:
                        return row.number, name, f"it is {kind_of(value)}, not text"
    return None


def _tell_of_ids(plan: Plan, column: str) -> None:
    found = ids.survey(plan, column)
    if found.twice:
        first, second, id = found.twice
        warn(
            f"{found.repeated:,} row(s) have the id of an earlier row, such as {id!r:.80} at "
            f"{locate(plan, first)} and {locate(plan, second)}: rows with the same id and prompt get the same response"
        )
    if found.first_nameless is not None:
        warn(
            f"the id of {found.nameless:,} row(s) cannot be used, the first at "
            f"{locate(plan, found.first_nameless)}: their row numbers are used instead (for all rows with --id '')"
        )
