"""Rows and conversations: which record shapes are understood, and what is wrong with the others."""

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from . import lengths
from .errors import Reject

USER = "ユーザー"
ASSISTANT = "システム"
SYSTEM = "system"  # has no speaker of its own in the series' prompts: see with_system_ahead

# Who speaks, in the words of every dialect.
SPEAKERS = {USER: USER, ASSISTANT: ASSISTANT}
OPENAI_ROLES = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM, "developer": SYSTEM}
SHAREGPT_ROLES = {
    **{name: USER for name in ("human", "user")},
    **{name: ASSISTANT for name in ("gpt", "assistant", "chatgpt", "bing", "bard", "model")},
    "system": SYSTEM,
}


class Utterance(NamedTuple):
    speaker: str
    text: str


Conversation = list[Utterance]


@dataclass(frozen=True, slots=True)
class Row:
    """One input record: its number over all files, and the record as read (a JSON line, or a dict).

    cells: of a columnar file, its passed-through values, by Column; fault: what is wrong with it already.
    """

    number: int
    raw: bytes | dict[str, Any]
    cells: Callable[[Any], Any] | None = None
    fault: Reject | None = None

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
    """The row's id: its id column, the custom_id of an OpenAI batch line, else its number. Raises Reject(bad_shape)."""
    value = record.get(column)
    if value is None and "body" in record:
        value = record.get("custom_id")
    if value is None:
        return str(number)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise Reject("bad_shape", f"{column} is {_kind(value)}, not text or a whole number")


# --- shapes


def _speaker(record: dict[str, Any]) -> Conversation:
    """The model cards' own form: [{"speaker": "ユーザー", "text": "..."}, ...]."""
    return _turns(record["conversation"], "conversation", "speaker", "text", SPEAKERS)


def _openai(record: dict[str, Any]) -> Conversation:
    """`messages` of OpenAI's chat API; also a line of its batch files, which has them in `body`."""
    body = record.get("body")
    where = "messages" if body is None else "body.messages"
    messages = record.get("messages") if body is None else isinstance(body, dict) and body.get("messages")
    return _turns(messages, where, "role", "content", OPENAI_ROLES)


def _sharegpt(record: dict[str, Any]) -> Conversation:
    return _turns(record["conversations"], "conversations", "from", "value", SHAREGPT_ROLES)


def _hh(record: dict[str, Any]) -> Conversation:
    """Anthropic's HH-RLHF: one text, "\\n\\nHuman: ...\\n\\nAssistant: ..."; `chosen` is the answer that was liked."""
    column = next((name for name in ("chosen", "prompt", "text") if record.get(name) is not None), "chosen")
    text = record.get(column)
    if not isinstance(text, str):
        raise Reject("bad_shape", f"{column} is {_kind(text)}, not text")
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text.strip())
    if parts[0].strip() or len(parts) < 3:
        raise Reject("bad_shape", f"{column} does not begin with Human: and go on in turns")
    turns = [
        Utterance(USER if who == "Human" else ASSISTANT, said.strip())
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if turns[-1] == (ASSISTANT, ""):  # the transcript ends where the answer is to begin
        turns.pop()
    return [Utterance(speaker, _text(said, column)) for speaker, said in turns]


def _question(question: str, answer: str = "", more: str = "") -> Callable[[dict[str, Any]], Conversation]:
    """A shape of columns: a question, perhaps with more to it, and perhaps an answer that is known already."""

    def parse(record: dict[str, Any]) -> Conversation:
        asked = _text(record[question], question)
        if more and record.get(more):
            asked += "\n" + _text(record[more], more)
        known = record.get(answer) if answer else None
        return [Utterance(USER, asked), *([Utterance(ASSISTANT, _text(known, answer))] if known else [])]

    return parse


class Shape(NamedTuple):
    """columns: all of them make a record of this shape; optional: further ones that it uses."""

    parse: Callable[[dict[str, Any]], Conversation]
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()


# By the name that `[input] format` takes, in the order in which a row is tried.
SHAPES = {
    "speaker": Shape(_speaker, ("conversation",)),
    "openai": Shape(_openai, ("messages",)),
    "openai-batch": Shape(_openai, ("body",), ("custom_id",)),
    "sharegpt": Shape(_sharegpt, ("conversations",)),
    "hh": Shape(_hh, ("chosen",), ("prompt", "text")),
    "flan": Shape(_question("inputs", answer="targets"), ("inputs",), ("targets",)),
    "alpaca": Shape(_question("instruction", answer="output", more="input"), ("instruction",), ("input", "output")),
    "prompt": Shape(_question("prompt", answer="completion"), ("prompt",), ("completion",)),
    "text": Shape(_question("text"), ("text",)),
}
# All that these shapes look at, for readers of columns.
COLUMNS = tuple(dict.fromkeys(name for shape in SHAPES.values() for name in (*shape.columns, *shape.optional)))
_TRANSCRIPT = re.compile(r"\s*Human:.*\n\nAssistant:", re.DOTALL)


def shape_of(record: dict[str, Any]) -> str:
    """The name of the first shape whose columns the record has. Raises Reject(bad_shape)."""
    for name, shape in SHAPES.items():
        if None not in map(record.get, shape.columns):
            text = record[shape.columns[0]]
            is_transcript = name in ("prompt", "text") and isinstance(text, str) and _TRANSCRIPT.match(text)
            return "hh" if is_transcript else name
    ways = ", ".join(shape.columns[0] for shape in SHAPES.values())
    raise Reject("bad_shape", f"needs one of {ways}; has {', '.join(record) or 'nothing'}")


def from_record(record: dict[str, Any], shape: str = "auto", drop_last_response: bool = False) -> Conversation:
    """The conversation of a record, system messages included, ending with the user.

    Raises Reject(bad_shape | unknown_speaker | empty).

    drop_last_response: an answer that stands at the end of the data is left out instead of a reject.
    """
    name = shape_of(record) if shape == "auto" else shape
    if missing := [column for column in SHAPES[name].columns if record.get(column) is None and name != "hh"]:
        raise Reject("bad_shape", f"a row of format {name} needs {missing[0]}; has {', '.join(record) or 'nothing'}")
    return _ending_with_user(SHAPES[name].parse(record), drop_last_response)


def _ending_with_user(turns: Conversation, drop_last_response: bool) -> Conversation:
    if turns and turns[-1].speaker == ASSISTANT and drop_last_response:
        turns.pop()
    if not turns:
        raise Reject("empty", "the conversation has no utterances")
    if turns[-1].speaker != USER:
        raise Reject("bad_shape", "the last utterance is not from the user (drop_last_response leaves an answer out)")
    return turns


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


def _turns(turns: Any, where: str, speaker: str, text: str, roles: dict[str, str]) -> Conversation:
    """A list of objects with a speaker and a text each, whatever the dialect calls them."""
    if not isinstance(turns, list):
        raise Reject("bad_shape", f"{where} is {_kind(turns)}, not a list")
    conversation = []
    for position, turn in enumerate(turns):
        place = f"{where}[{position}]"
        if not isinstance(turn, dict) or speaker not in turn or text not in turn:
            raise Reject("bad_shape", f"{place} needs {speaker} and {text}")
        role = turn[speaker]
        if not isinstance(role, str) or role not in roles:
            raise Reject("unknown_speaker", f"{place}: {role!r} is none of {', '.join(roles)}")
        conversation.append(Utterance(roles[role], _text(_joined(turn[text]), f"{place}.{text}")))
    return conversation


def _joined(content: Any) -> Any:
    """OpenAI's content may be a list of parts; those of text are joined."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise Reject("bad_shape", "content has a part that is not text")
    return "".join(part["text"] for part in content)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Reject("bad_shape", f"{where} is {_kind(value)}, not text")
    if not value.strip():
        raise Reject("empty", f"{where} has no text")
    return value


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "null" if value is None else "an object")


# --- templates


class Template:
    """`[prompt] template`: the user's utterance out of any columns, as Python's format strings have them."""

    def __init__(self, template: str):
        """Raises ValueError if it is no such template."""
        self._template = template
        parts = [(field, format) for _, field, format, _ in string.Formatter().parse(template) if field is not None]
        fields = [field for field, _ in parts]
        # Only columns by name: `{a.b}` and `{a[0]}` would reach into Python's objects.
        if wrong := [field for field in fields if not field or any(sign in field for sign in ".[]")]:
            raise ValueError(f"{{{wrong[0]}}} is not the name of a column")
        if not fields:
            raise ValueError("it names no column, such as {text}")
        for _, format in parts:
            lengths.check_width(format or "")
        self.columns = list(dict.fromkeys(fields))

    def fill(self, record: dict[str, Any]) -> Conversation:
        """Raises Reject(bad_shape | empty)."""
        if missing := [name for name in self.columns if record.get(name) is None]:
            raise Reject("bad_shape", f"the template needs {missing[0]}; has {', '.join(record) or 'nothing'}")
        try:
            text = self._template.format_map(record)
        except (ValueError, TypeError) as error:
            raise Reject("bad_shape", f"the template does not fit the row: {error}") from None
        return [Utterance(USER, _text(text, "the filled template"))]
