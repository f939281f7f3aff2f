"""Names over the whole input: columns that the user names are there, no two rows have one id, none is left aside."""

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
    """repeated: rows whose id an earlier row has too; twice: two rows of one id, and this; nameless: rows whose `id`
    names nothing, so that they go by their number; first_nameless: the first of them."""

    repeated: int = 0
    twice: tuple[int, int, str] | None = None
    nameless: int = 0
    first_nameless: int | None = None


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
    return any(not names.isdisjoint(passthrough.column_names(file)) for file in plan.files)


def _named_rows(plan: Plan, column: str) -> Iterator[tuple[int, str, bool]]:
    """(row number, id, whether its column `id` names nothing) of all rows that can be read."""
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
