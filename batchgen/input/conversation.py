"""Rows, their ids, their texts, and conversations. `shapes` knows which records hold a conversation."""

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

from ..errors import Reject, RejectReason

USER = "ユーザー"
ASSISTANT = "システム"
SYSTEM = "system"  # not a speaker in the series' prompt formats: see with_system_ahead


class Utterance(NamedTuple):
    """What somebody said. speaker: USER, ASSISTANT, or SYSTEM for a system message."""

    speaker: str
    text: str


Conversation = list[Utterance]


@dataclass(frozen=True, slots=True)
class Row:
    """One input record.

    Attributes:
        number: its number over all files, from 0.
        raw: the record as read: a JSON line, or a dict.
        cells: passed-through value by Column, for a row of a columnar file.
        fault: why the row cannot be read, if that is known already.
        size: its size in bytes, if `raw` holds only its beginning.
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
        """The record as text, for people and for `_rejects/`. Bytes that are not UTF-8 appear as `\\xNN`."""
        if isinstance(self.raw, bytes):
            return self.raw.decode("utf-8", "backslashreplace")
        return msgspec.json.encode(self.raw, enc_hook=str).decode()


# Windows programs write it at the head of a file; in a file that `cat` made of several it may come anywhere.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
SURROGATE = re.compile("[\ud800-\udfff]")


class Unreadable(NamedTuple):
    """A value that Python, or any text encoding, cannot represent.

    reason, detail: those of the Reject for a row that needs the value.
    """

    reason: RejectReason
    detail: str

    def why(self, column: str) -> Reject:
        """The Reject of a row that needs this value."""
        return Reject(self.reason, f"{column}: {self.detail}")


class PartlyReadable(dict[str, Any]):
    """A record in which some values are Unreadable. Asking for one of them raises its Reject; as long as nobody does,
    the row is fine."""

    def __getitem__(self, name: str) -> Any:
        return self._checked(name, super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a column. Raises Reject if it is Unreadable."""
        return self._checked(name, super().get(name, default))

    @staticmethod
    def _checked(name: str, value: Any) -> Any:
        if isinstance(value, Unreadable):
            raise value.why(name)
        return value


LONE_SURROGATE = Unreadable("invalid_json", "a lone surrogate (\\ud800 to \\udfff), which is not valid text")


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
    """By Python's own parser, which accepts NaN, Infinity, numbers beyond a double and lone surrogates."""
    try:
        record = json.loads(line.decode())  # given bytes, it would guess the encoding
    except (ValueError, RecursionError, MemoryError):
        raise Reject("invalid_json", f"{complaint}{_utf16(line)}") from None
    if isinstance(record, dict) and _SURROGATE_ESCAPE.search(line) and _has_surrogate(record):
        return PartlyReadable(
            (name, LONE_SURROGATE if _has_surrogate(value) else value)
            for name, value in record.items()
            if not SURROGATE.search(name)
        )
    return record


def _has_surrogate(whole: Any) -> bool:
    left = [whole]
    while left:
        value = left.pop()
        if isinstance(value, str) and SURROGATE.search(value):
            return True
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
    return False


def _utf16(line: bytes) -> str:
    """A hint for UTF-16, as some Windows programs write it: every other byte of plain ASCII text is 0."""
    is_likely = line.startswith((b"\xff\xfe", b"\xfe\xff")) or line.count(0) > len(line) // 4
    return "; the file looks like UTF-16: write it as UTF-8 (iconv -f UTF-16 -t UTF-8)" if is_likely else ""


# --- ids

DEFAULT_ID = "id"


def row_id(record: dict[str, Any], column: str, number: int) -> str:
    """The row's id: from its id column, or the custom_id of a batch file's line, or else its number as text.

    Args:
        record: the row's record.
        column: the id column. "" for none. If the user named it, a value that cannot be an id rejects the row; in the
            default column `id` such a value is ignored.
        number: the row's number.

    Raises:
        Reject: bad_shape
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
    """Whether a row has an `id` that cannot be used, so that its row number is used instead."""
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
    """Whether a value is the request in a line of a batch file: an object with messages, a prompt or an input."""
    return isinstance(body, dict) and any(body.get(name) is not None for name in ("messages", "prompt", "input"))


def _is_no_id(value: Any) -> bool:
    return value is None or value in ("", b"") or (isinstance(value, float) and math.isnan(value))


def _id_text(value: Any) -> str | None:
    """An id as text; None if the value cannot be one. 17.0 is "17", because pandas turns integers into floats;
    MongoDB's {"$oid": ...} is its hexadecimal digits."""
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
    """Whether a value is text that is not blank. Bytes count as text: Parquet files of Impala, old Spark and TensorFlow
    hold text that way."""
    return isinstance(value, str | bytes) and bool(value.strip())


def is_blank(value: Any) -> bool:
    """Whether a value is null or blank text."""
    return value is None or (isinstance(value, str | bytes) and not value.strip())


def text_of(value: Any, where: str) -> str:
    """A text that is not blank. `where` names it in the reject. Raises Reject(bad_shape | invalid_utf8 | empty)."""
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
    """The kind of a value, in words."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", bytes: "bytes", list: "a list"}
    return kinds.get(type(value), "null" if value is None else "an object")


# --- system messages


def split_system(turns: Conversation) -> tuple[str, Conversation]:
    """The system messages of a conversation joined into one text, and the other turns."""
    system = [turn.text for turn in turns if turn.speaker == SYSTEM]
    return "\n".join(system), [turn for turn in turns if turn.speaker != SYSTEM] if system else turns


def with_system_ahead(system: str, turns: Conversation) -> Conversation:
    """For prompt formats without a system message: it is put at the start of the user's first utterance."""
    if not system:
        return turns
    first = next(position for position, turn in enumerate(turns) if turn.speaker == USER)
    return [*turns[:first], Utterance(USER, f"{system}\n{turns[first].text}"), *turns[first + 1 :]]
