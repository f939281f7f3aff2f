"""Names over the whole input: columns that the user names are there, no two rows have one id, none is left aside."""

import hashlib
import itertools
from array import array
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ..errors import JobError, Reject, warn
from ..job.spec import InputTable, nearest
from . import passed, shapes, source
from .conversation import DEFAULT_ID, Row, is_text, kind_of, names_nothing, row_id
from .source import SAMPLE_ROWS, InputFile, Plan

FILES, HEAD_ROWS = 100, 20  # whose first rows are looked at for columns that are left aside
FLAGS = {"id": "--id", "seed": "--seed-column", "sampling": "--sampling-column", "system": "--system-column"}


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
            seen |= dict.fromkeys(passed.names_of(file, rows))
            left = {key: name for key, name in left.items() if name not in seen}
    for key, name in left.items():
        has = ", ".join(seen) or "none"
        raise JobError(f"[input] {key} ({FLAGS[key]}): no row has a column {name}; there are {has}{_hint(name, seen)}")


def _hint(name: str, seen: Iterable[str]) -> str:
    """The name that comes closest; all of them have been told."""
    close = nearest(name, seen)
    return close if "did you mean" in close else ""


@dataclass(frozen=True)
class Survey:
    """repeated: rows whose id an earlier row has too; twice: two rows of one id, and this; nameless: rows whose `id`
    names nothing, so that they go by their number; first_nameless: the first of them."""

    repeated: int = 0
    twice: tuple[int, int, str] | None = None
    nameless: int = 0
    first_nameless: int | None = None


def tell(plan: Plan, table: InputTable, has_template: bool) -> None:
    """Warns of ids that name two rows, or nothing, and of system columns that are not used."""
    if table.system is None and not has_template and (found := unused_system(plan, table.format)):
        row, name, why = found
        warn(
            f"{source.place(plan, row)}: column {name} is not used, as {why}; --system-column names the column of "
            "system messages, --system-column '' says that there is none"
        )
    _tell_of_ids(plan, table.id)


def unused_system(plan: Plan, format: str) -> tuple[int, str, str] | None:
    """(row, column, why) of a system column whose text does not get into the prompt, as far as the first rows of the
    files tell."""
    reader = source.Reader(plan, shapes.COLUMNS)
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
    found = survey(plan, column)
    if found.twice:
        first, second, id = found.twice
        warn(
            f"{found.repeated:,} row(s) have the id of an earlier row, such as {id!r:.80} at "
            f"{source.place(plan, first)} and {source.place(plan, second)}: one id and one prompt get one response"
        )
    if found.first_nameless is not None:
        warn(
            f"the column id of {found.nameless:,} row(s) names nothing, the first at "
            f"{source.place(plan, found.first_nameless)}: they go by their number (--id '' for all rows)"
        )


def survey(plan: Plan, column: str) -> Survey:
    """Reads the ids of all rows; of JSONL nothing else. Takes 8 bytes of memory a row."""
    if not column or not _has_ids(plan, column):
        return Survey()
    digests = array("q")
    nameless, first_nameless = 0, None
    for row, id, is_nameless in _named_rows(plan, column):
        digests.append(digest(id))
        if is_nameless:
            nameless += 1
            first_nameless = row if first_nameless is None else first_nameless
    same = repeats(digests)
    if not len(same):
        return Survey(nameless=nameless, first_nameless=first_nameless)
    return Survey(len(same), _twice(plan, column, int(same[0])), nameless, first_nameless)


def digest(id: str) -> int:
    """64 bits that stand for an id."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little", signed=True)


def repeats(digests: "array[int]") -> "np.ndarray[Any, np.dtype[np.int64]]":
    """One for each digest beyond the first of its value; sorts them where they are."""
    ordered = np.asarray(digests)
    ordered.sort()
    return ordered[1:][ordered[1:] == ordered[:-1]]


def _twice(plan: Plan, column: str, wanted: int) -> tuple[int, int, str] | None:
    """The first two rows with the id of a digest, and the id."""
    first = None
    for row, id, _ in _named_rows(plan, column):
        if digest(id) == wanted:
            if first is not None:
                return first, row, id
            first = row
    return None


def _has_ids(plan: Plan, column: str) -> bool:
    """Whether there are ids but row numbers, as far as the first rows of each file tell."""
    names = {column, "custom_id"} if column == DEFAULT_ID else {column}
    return any(not names.isdisjoint(passed.names_of(file)) for file in plan.files)


def _named_rows(plan: Plan, column: str) -> Iterator[tuple[int, str, bool]]:
    """(row number, id, whether its column `id` names nothing) of all rows that can be read."""
    wanted = [column, "custom_id", "body", "params"] if column == DEFAULT_ID else [column]
    decoder = _decoder(column)
    reader = source.Reader(plan, wanted)
    for shard in plan.shards:
        for row in reader.read(shard):
            try:
                record = _head(row, column, decoder)
                id = row_id(record, column, row.number)
                is_text = type(record.get(column)) is str  # as nearly all are
                is_nameless = not is_text and column == DEFAULT_ID and names_nothing(record)
            except Reject:  # of the whole record, or of this column alone
                continue
            yield row.number, id, is_nameless


def _decoder(column: str) -> "msgspec.json.Decoder[Any]":
    """Of a JSON line, what names its row; the rest is passed over, at a GB a second."""
    fields: list[Any] = [("own", Any, None)]
    if column == DEFAULT_ID:
        request = dict[str, msgspec.Raw] | None
        fields += [("custom_id", Any, None), ("body", request, None), ("params", request, None)]
    return msgspec.json.Decoder(msgspec.defstruct("Named", fields, rename={"own": column}))


def _head(row: Row, column: str, decoder: "msgspec.json.Decoder[Any]") -> dict[str, Any]:
    """Of a record, what names it. Raises Reject."""
    if isinstance(row.raw, bytes):
        try:
            named = decoder.decode(row.raw)
            if column != DEFAULT_ID:
                return {column: named.own}
            return {column: named.own, "custom_id": named.custom_id, "body": named.body, "params": named.params}
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            pass  # not as expected: read like any other
    return row.record()
