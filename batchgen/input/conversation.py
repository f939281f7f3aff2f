"""Rows, ids and conversations, and the texts in them. Which records are understood stands in shapes.py."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from ..errors import Reject

USER = "ユーザー"
ASSISTANT = "システム"
SYSTEM = "system"  # has no speaker of its own in the series' prompts: see with_system_ahead


class Utterance(NamedTuple):
    speaker: str
    text: str


Conversation = list[Utterance]


@dataclass(frozen=True, slots=True)
class Row:
    """One input record: its number over all files, and the record as read (a JSON line, or a dict).

    cells: of a columnar file, its passed-through values, by Column; fault: what is wrong with it already; size: in
    bytes, where `raw` is only what it begins with.
    """

    number: int
    raw: bytes | dict[str, Any]
    cells: Callable[[Any], Any] | None = None
    fault: Reject | None = None
    size: int = 0

    def record(self) -> dict[str, Any]:
        """The record as a dict. Raises Reject(invalid_utf8 | invalid_json | bad_shape | empty)."""
        if self.fault:
            raise self.fault
        if isinstance(self.raw, dict):
            return self.raw
        return _parse_line(self.raw)

    def raw_text(self) -> str:
        """The record for people and for `_rejects/`; bytes that are not UTF-8 show as `\\xNN`."""
        if isinstance(self.raw, bytes):
            return self.raw.decode("utf-8", "backslashreplace")
        return msgspec.json.encode(self.raw, enc_hook=str).decode()


# Windows programs put it at the head of a file; it stands within one that `cat` made of several.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class PartlyReadable(dict[str, Any]):
    """A record some of whose columns hold half a surrogate pair, which no encoding of Unicode can write. Whoever asks
    for one of these columns gets a Reject; a column that nobody uses costs the row nothing."""

    def __init__(self, record: dict[str, Any], unreadable: set[str]):
        super().__init__((name, value) for name, value in record.items() if not _SURROGATE.search(name))
        self._unreadable = unreadable

    def __getitem__(self, name: str) -> Any:
        self._check(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._check(name)
        return super().get(name, default)

    def _check(self, name: str) -> None:
        if name in self._unreadable:
            raise Reject(
                "invalid_json", f"{name} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text"
            )


def _parse_line(line: bytes) -> dict[str, Any]:
    line = line.removeprefix(BYTE_ORDER_MARK)
    if not line.strip():
        raise Reject("empty", "the line is blank")
    try:
        line.decode("utf-8")
        record = msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        raise Reject("invalid_utf8", f"byte {error.start} of the line: {error.reason}{_utf16(line)}") from None
    except RecursionError as error:
        raise Reject("invalid_json", str(error)) from None
    except msgspec.DecodeError as error:
        record = _parse_leniently(line, str(error))
    if not isinstance(record, dict):
        raise Reject("bad_shape", f"the line is {kind_of(record)}, not an object")
    return record


def _parse_leniently(line: bytes, complaint: str) -> Any:
    """As Python's own reader has it, which takes NaN, Infinity, numbers beyond a double and half surrogate pairs."""
    try:
        record = json.loads(line.decode())  # of bytes it would guess the encoding
    except (ValueError, RecursionError, MemoryError):
        raise Reject("invalid_json", f"{complaint}{_utf16(line)}") from None
    if isinstance(record, dict) and _SURROGATE_ESCAPE.search(line):
        broken = {name for name, value in record.items() if _has_surrogate(name, value)}
        return PartlyReadable(record, broken) if broken else record
    return record


def _has_surrogate(*values: Any) -> bool:
    left = list(values)
    while left:
        value = left.pop()
        if isinstance(value, str) and _SURROGATE.search(value):
            return True
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
    return False


def _utf16(line: bytes) -> str:
    """A hint for files that some Windows programs write: every other byte of plain text is 0 in them."""
    is_likely = line.startswith((b"\xff\xfe", b"\xfe\xff")) or line.count(0) > len(line) // 4
    return "; the file looks like UTF-16: write it as UTF-8 (iconv -f UTF-16 -t UTF-8)" if is_likely else ""


# --- ids

DEFAULT_ID = "id"


def row_id(record: dict[str, Any], column: str, number: int) -> str:
    """The row's id: its id column, the custom_id of a line of a batch file, else its number.

    column: a name that the user gave binds: Raises Reject(bad_shape) for a value that names nothing. A column that is
    just called `id` may hold whatever it likes: of such a value the row goes by its number. Empty: no column is asked.
    """
    given = _given_id(record, column)
    if given is None:
        return str(number)
    if (text := _id_text(given)) is not None:
        return text
    if column == DEFAULT_ID:
        return str(number)
    raise Reject("bad_shape", f"{column} is {kind_of(given)}, not text or a number")


def names_nothing(record: dict[str, Any]) -> bool:
    """Whether a row has an `id` that names nothing, so that it goes by its number."""
    given = _given_id(record, DEFAULT_ID)
    return given is not None and _id_text(given) is None


def _given_id(record: dict[str, Any], column: str) -> Any:
    """The value that names a row; None if there is none."""
    named = record.get("custom_id") if column == DEFAULT_ID else None
    if not _is_no_id(named) and (is_request(record.get("body")) or is_request(record.get("params"))):
        return named
    value = record.get(column) if column else None
    return None if _is_no_id(value) else value


def is_request(body: Any) -> bool:
    """Whether a value is the request in a line of a batch file: an object that asks something."""
    return isinstance(body, dict) and any(body.get(name) is not None for name in ("messages", "prompt", "input"))


def _is_no_id(value: Any) -> bool:
    return value is None or value in ("", b"") or (isinstance(value, float) and math.isnan(value))


def _id_text(value: Any) -> str | None:
    """An id as text. What is no text by itself is written as it is everywhere: 17.0 is 17, as pandas makes the one of
    the other; MongoDB's {"$oid": ...} is its hexadecimal digits."""
    match value:
        case str():
            return value
        case bool():
            return None
        case int() | UUID():
            return str(value)
        case float():
            if not math.isfinite(value):
                return None
            return str(int(value)) if value.is_integer() and abs(value) <= 2**53 else repr(value)
        case Decimal():
            return str(value) if value.is_finite() else None
        case date() | datetime():
            return value.isoformat()
        case bytes():
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError:
                return None
        case {"$oid": str(digits)}:
            return digits
    return None


# --- texts


def is_text(value: Any) -> bool:
    """Whether a value is a text with something in it; Parquet files of Impala, old Spark and TensorFlow have text as
    bytes."""
    return isinstance(value, str | bytes) and bool(value.strip())


def is_blank(value: Any) -> bool:
    """Whether a value is as good as none: null or blank text."""
    return value is None or (isinstance(value, str | bytes) and not value.strip())


def text_of(value: Any, where: str) -> str:
    """A text with something in it. Raises Reject(bad_shape | invalid_utf8 | empty)."""
    if isinstance(value, bytes):
        value = decoded(value, where)
    if not isinstance(value, str):
        raise Reject("bad_shape", f"{where} is {kind_of(value)}, not text")
    if not value.strip():
        raise Reject("empty", f"{where} has no text")
    return value


def decoded(value: bytes, where: str) -> str:
    """Raises Reject(invalid_utf8)."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Reject("invalid_utf8", f"{where}: byte {error.start}: {error.reason}") from None


def kind_of(value: Any) -> str:
    """What a value is, for people."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", bytes: "bytes", list: "a list"}
    return kinds.get(type(value), "null" if value is None else "an object")


# --- system messages


def split_system(turns: Conversation) -> tuple[str, Conversation]:
    """The system messages of a conversation as one text, and what is said."""
    system = [turn.text for turn in turns if turn.speaker == SYSTEM]
    return "\n".join(system), [turn for turn in turns if turn.speaker != SYSTEM] if system else turns


def with_system_ahead(system: str, turns: Conversation) -> Conversation:
    """For prompt formats that have no place for a system message: it becomes the head of the first user's utterance."""
    if not system:
        return turns
    first = next(position for position, turn in enumerate(turns) if turn.speaker == USER)
    return [*turns[:first], Utterance(USER, f"{system}\n{turns[first].text}"), *turns[first + 1 :]]
