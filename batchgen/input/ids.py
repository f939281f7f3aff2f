"""The ids of all rows of an input: which are repeated, and which cannot be used."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ..errors import Reject
from . import passthrough
from .conversation import DEFAULT_ID, Row, names_nothing, row_id
from .plan import Plan
from .rows import Reader


@dataclass(frozen=True)
class Survey:
    """What the ids of an input look like.

    Attributes:
        repeated: number of rows whose id an earlier row has too.
        twice: two rows with the same id, and that id.
        nameless: number of rows whose `id` cannot be used, so that they go by their row number.
        first_nameless: number of the first such row.
    """

    repeated: int = 0
    twice: tuple[int, int, str] | None = None
    nameless: int = 0
    first_nameless: int | None = None


def survey(plan: Plan, column: str) -> Survey:
    """Reads the ids of all rows (of JSONL nothing else), in 8 bytes of memory per row."""
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
    """A 64-bit hash of an id."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little", signed=True)


def repeats(digests: "array[int]") -> "np.ndarray[Any, np.dtype[np.int64]]":
    """The digests that repeat an earlier one. Sorts the array in place."""
    ordered = np.asarray(digests)
    ordered.sort()
    return ordered[1:][ordered[1:] == ordered[:-1]]


def _twice(plan: Plan, column: str, wanted: int) -> tuple[int, int, str] | None:
    """The first two rows whose id has this digest, and that id."""
    first = None
    for row, id, _ in _named_rows(plan, column):
        if digest(id) == wanted:
            if first is not None:
                return first, row, id
            first = row
    return None


def _has_ids(plan: Plan, column: str) -> bool:
    """Whether any row has an id of its own, going by the first rows of each file."""
    names = {column, "custom_id"} if column == DEFAULT_ID else {column}
    return any(not names.isdisjoint(passthrough.column_names(file)) for file in plan.files)


def _named_rows(plan: Plan, column: str) -> Iterator[tuple[int, str, bool]]:
    """(row number, id, whether its column `id` cannot be used) of every row that can be read."""
    wanted = [column, "custom_id", "body", "params"] if column == DEFAULT_ID else [column]
    decoder = _decoder(column)
    reader = Reader(plan, wanted)
    for shard in plan.shards:
        for row in reader.read(shard):
            try:
                record = _head(row, column, decoder)
                id = row_id(record, column, row.number)
                is_text = type(record.get(column)) is str  # as nearly all are
                is_nameless = not is_text and column == DEFAULT_ID and names_nothing(record)
            except Reject:  # the record, or this column of it, cannot be read
                continue
            yield row.number, id, is_nameless


def _decoder(column: str) -> "msgspec.json.Decoder[Any]":
    """Decodes only what names the row of a JSON line, and skips the rest at 1 GB/s."""
    fields: list[Any] = [("own", Any, None)]
    if column == DEFAULT_ID:
        request = dict[str, msgspec.Raw] | None
        fields += [("custom_id", Any, None), ("body", request, None), ("params", request, None)]
    return msgspec.json.Decoder(msgspec.defstruct("Named", fields, rename={"own": column}))


def _head(row: Row, column: str, decoder: "msgspec.json.Decoder[Any]") -> dict[str, Any]:
    """The part of a record that names it. Raises Reject."""
    if isinstance(row.raw, bytes):
        try:
            named = decoder.decode(row.raw)
            if column != DEFAULT_ID:
                return {column: named.own}
            return {column: named.own, "custom_id": named.custom_id, "body": named.body, "params": named.params}
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            pass  # read it in full below
    return row.record()
