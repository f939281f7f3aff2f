"""What is asked of the whole input before a job begins: that its columns are there; and what the user is warned of."""

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

FILES, HEAD_ROWS = 100, 20  # whose first rows are looked at for columns that are left aside
FLAGS = {"id": "--id", "seed": "--seed-column", "sampling": "--sampling-column", "system": "--system-column"}


def check_columns(files: Iterable[InputFile], format: str, template: Template | None) -> None:
    """Every file with rows must have the columns of the template or, columnar ones, of some shape. Raises JobError.

    The lines that an incremental job has got since are judged one by one.
    """
    for file in files:
        has_schema = file.is_columnar or file.format[0] == "csv"
        if not file.rows or (file.generation and not has_schema) or not (template or has_schema):
            continue
        names = passthrough.column_names(file)
        if template and template.missing(names):  # they may come later; rows without them are rejected one by one
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
    """The columns that the user named must be in some file: in its schema, or in one of its rows. The default names
    need not be. Raises JobError."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(InputTable)}
    asked = {key: getattr(table, key) for key in FLAGS}
    left = {key: name for key, name in asked.items() if name and name != defaults[key]}
    seen: dict[str, None] = {}
    for rows in (SAMPLE_ROWS, None):  # most often the first rows tell
        for file in files:
            if not left:
                return
            seen |= dict.fromkeys(passthrough.column_names(file, rows))
            left = {key: name for key, name in left.items() if name not in seen}
    for key, name in left.items():
        has = ", ".join(seen) or "none"
        raise JobError(f"[input] {key} ({FLAGS[key]}): no row has a column {name}; there are {has}{_hint(name, seen)}")


def _hint(name: str, seen: Iterable[str]) -> str:
    """The name that comes closest; all of them have been told."""
    close = nearest(name, seen)
    return close if "did you mean" in close else ""


def tell(plan: Plan, table: InputTable, has_template: bool) -> None:
    """Warns of ids that name two rows, or nothing, and of system columns that are not used."""
    if table.system is None and not has_template and (found := unused_system(plan, table.format)):
        row, name, why = found
        warn(
            f"{locate(plan, row)}: column {name} is not used, as {why}; --system-column names the column of "
            "system messages, --system-column '' says that there is none"
        )
    _tell_of_ids(plan, table.id)


def unused_system(plan: Plan, format: str) -> tuple[int, str, str] | None:
    """(row, column, why) of a system column whose text does not get into the prompt, as far as the first rows of the
    files tell."""
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
            f"{locate(plan, first)} and {locate(plan, second)}: one id and one prompt get one response"
        )
    if found.first_nameless is not None:
        warn(
            f"the column id of {found.nameless:,} row(s) names nothing, the first at "
            f"{locate(plan, found.first_nameless)}: they go by their number (--id '' for all rows)"
        )
