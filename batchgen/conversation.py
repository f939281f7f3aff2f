"""Rows and conversations: which record shapes are understood, and what is wrong with the others."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from .errors import Reject

USER = "ユーザー"
ASSISTANT = "システム"
# The columns that hold a conversation, in the order in which they are looked for.
SHAPES = ("conversation", "prompt", "text")


class Utterance(NamedTuple):
    speaker: str
    text: str


Conversation = list[Utterance]


@dataclass(frozen=True, slots=True)
class Row:
    """One input record: its number over all files, and the record as read (a JSON line, or a dict)."""

    number: int
    raw: bytes | dict[str, Any]

    def record(self) -> dict[str, Any]:
        """The record as a dict. Raises Reject(invalid_utf8 | invalid_json | bad_shape | empty)."""
        if isinstance(self.raw, dict):
            return self.raw
        return _parse_line(self.raw)

    def raw_text(self) -> str:
        """The record for people and for `_rejects/`; bytes that are not UTF-8 show as `\\xNN`."""
        if isinstance(self.raw, bytes):
            return self.raw.decode("utf-8", "backslashreplace")
        return msgspec.json.encode(self.raw, enc_hook=str).decode()


def _parse_line(line: bytes) -> dict[str, Any]:
    if not line.strip():
        raise Reject("empty", "the line is blank")
    try:
        line.decode("utf-8")
        record = msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        raise Reject("invalid_utf8", f"byte {error.start} of the line: {error.reason}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Reject("invalid_json", str(error)) from None
    if not isinstance(record, dict):
        raise Reject("bad_shape", f"the line is {_kind(record)}, not an object")
    return record


def row_id(record: dict[str, Any], column: str, number: int) -> str:
    """The row's id: its id column, else its number. Raises Reject(bad_shape)."""
    value = record.get(column)
    if value is None:
        return str(number)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise Reject("bad_shape", f"{column} is {_kind(value)}, not text or a whole number")


def from_record(record: dict[str, Any]) -> Conversation:
    """The conversation of a record. Raises Reject(bad_shape | unknown_speaker | empty)."""
    shape = next((name for name in SHAPES if record.get(name) is not None), None)
    if shape is None:
        found = ", ".join(record) or "nothing"
        raise Reject("bad_shape", f"needs one of {', '.join(SHAPES)}; has {found}")
    if shape == "conversation":
        return _speakers(record[shape])
    return [Utterance(USER, _text(record[shape], shape))]


def _speakers(turns: Any) -> Conversation:
    """The model card's form: [{"speaker": "ユーザー", "text": "..."}, ...], the user's turn last."""
    if not isinstance(turns, list):
        raise Reject("bad_shape", f"conversation is {_kind(turns)}, not a list")
    if not turns:
        raise Reject("empty", "conversation has no utterances")
    conversation = []
    for position, turn in enumerate(turns):
        where = f"conversation[{position}]"
        if not isinstance(turn, dict) or "speaker" not in turn or "text" not in turn:
            raise Reject("bad_shape", f"{where} needs speaker and text")
        if turn["speaker"] not in (USER, ASSISTANT):
            raise Reject("unknown_speaker", f"{where}: {turn['speaker']!r} is neither {USER} nor {ASSISTANT}")
        conversation.append(Utterance(turn["speaker"], _text(turn["text"], f"{where}.text")))
    if conversation[-1].speaker != USER:
        raise Reject("bad_shape", f"the last utterance is not from {USER}: there is nothing to answer")
    return conversation


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Reject("bad_shape", f"{where} is {_kind(value)}, not text")
    if not value.strip():
        raise Reject("empty", f"{where} has no text")
    return value


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "null" if value is None else "an object")
