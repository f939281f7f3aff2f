"""The rules by which batchgen 0.1.0 turned rows into prompts, for folders of format 1, which it began. Frozen: all
shards of such a folder have one fingerprint, so its remaining rows must become the prompts that 0.1.0 would have made.

0.1.0 ignored system columns, contexts and histories, and had other rules for content parts, roles, ids and clipping.
Its rejects keep their wording too. Folders of later formats go by shapes.py, conversation.py and prompt/fit.py.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..errors import Reject
from ..job.sampling import Sampling
from .conversation import ASSISTANT, SYSTEM, USER, Conversation, Utterance, kind_of

FORMAT = 1
CLIP = "clip@1"  # the name of 0.1.0's clipping, as an on_overlength policy of prompt.fit.fit
Record = dict[str, Any]

_SPEAKERS = {USER: USER, ASSISTANT: ASSISTANT}
_OPENAI = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM, "developer": SYSTEM}
_SHAREGPT = {
    "human": USER,
    "user": USER,
    **{name: ASSISTANT for name in ("gpt", "assistant", "chatgpt", "bing", "bard", "model")},
    "system": SYSTEM,
}
_TRANSCRIPT = re.compile(r"\s*Human:.*\n\nAssistant:", re.DOTALL)
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def shape_of(record: Record, format: str) -> str:
    """The name of the first shape whose columns the record has, or `format` if that is not auto. Raises Reject."""
    if format != "auto":
        missing = [column for column in _SHAPES[format].columns if record.get(column) is None and format != "hh"]
        if missing:
            raise Reject("bad_shape", f"a row of format {format} needs {missing[0]}; has {_names(record)}")
        return format
    for name, shape in _SHAPES.items():
        if None not in map(record.get, shape.columns):
            text = record[shape.columns[0]]
            is_transcript = name in ("prompt", "text") and isinstance(text, str) and _TRANSCRIPT.match(text)
            return "hh" if is_transcript else name
    ways = ", ".join(shape.columns[0] for shape in _SHAPES.values())
    raise Reject("bad_shape", f"needs one of {ways}; has {_names(record)}")


def read(record: Record, shape: str, drop_last_response: bool) -> Conversation:
    """The conversation of a record, system messages included, which ends with the user's turn. Raises Reject."""
    turns = _SHAPES[shape].parse(record)
    if turns and turns[-1].speaker == ASSISTANT and drop_last_response:
        turns.pop()
    if not turns:
        raise Reject("empty", "the conversation has no utterances")
    if turns[-1].speaker != USER:
        raise Reject("bad_shape", "the last utterance is not from the user (drop_last_response leaves an answer out)")
    return turns


def row_id(record: Record, column: str, number: int) -> str:
    """The row's id: its id column, the custom_id of an OpenAI batch line, else its number. Raises Reject(bad_shape)."""
    value = record.get(column)
    if value is None and "body" in record:
        value = record.get("custom_id")
    if value is None:
        return str(number)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise Reject("bad_shape", f"{column} is {kind_of(value)}, not text or a whole number")


def _openai(record: Record) -> Conversation:
    body = record.get("body")
    if body is None:
        return _turns(record.get("messages"), "messages", "role", "content", _OPENAI)
    return _turns(isinstance(body, dict) and body.get("messages"), "body.messages", "role", "content", _OPENAI)


def _hh(record: Record) -> Conversation:
    column = next((name for name in ("chosen", "prompt", "text") if record.get(name) is not None), "chosen")
    text = record.get(column)
    if not isinstance(text, str):
        raise Reject("bad_shape", f"{column} is {kind_of(text)}, not text")
    parts = _TURN.split(text.strip())
    if parts[0].strip() or len(parts) < 3:
        raise Reject("bad_shape", f"{column} does not begin with Human: and go on in turns")
    turns = [
        Utterance(USER if who == "Human" else ASSISTANT, said.strip())
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if turns[-1] == (ASSISTANT, ""):  # only says that the answer comes next
        turns.pop()
    return [Utterance(speaker, _text(said, column)) for speaker, said in turns]


def _question(question: str, answer: str = "", more: str = "") -> Callable[[Record], Conversation]:
    def parse(record: Record) -> Conversation:
        asked = _text(record[question], question)
        if more and record.get(more):
            asked += "\n" + _text(record[more], more)
        known = record.get(answer) if answer else None
        return [Utterance(USER, asked), *([Utterance(ASSISTANT, _text(known, answer))] if known else [])]

    return parse


def _turns(turns: Any, where: str, speaker: str, text: str, roles: dict[str, str]) -> Conversation:
    if not isinstance(turns, list):
        raise Reject("bad_shape", f"{where} is {kind_of(turns)}, not a list")
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
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise Reject("bad_shape", "content has a part that is not text")
    return "".join(part["text"] for part in content)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Reject("bad_shape", f"{where} is {kind_of(value)}, not text")
    if not value.strip():
        raise Reject("empty", f"{where} has no text")
    return value


def _names(record: Record) -> str:
    return ", ".join(record) or "nothing"


class _Shape(NamedTuple):
    parse: Callable[[Record], Conversation]
    columns: tuple[str, ...]


_SHAPES = {
    "speaker": _Shape(
        lambda record: _turns(record["conversation"], "conversation", "speaker", "text", _SPEAKERS), ("conversation",)
    ),
    "openai": _Shape(_openai, ("messages",)),
    "openai-batch": _Shape(_openai, ("body",)),
    "sharegpt": _Shape(
        lambda record: _turns(record["conversations"], "conversations", "from", "value", _SHAREGPT), ("conversations",)
    ),
    "hh": _Shape(_hh, ("chosen",)),
    "flan": _Shape(_question("inputs", answer="targets"), ("inputs",)),
    "alpaca": _Shape(_question("instruction", answer="output", more="input"), ("instruction",)),
    "prompt": _Shape(_question("prompt", answer="completion"), ("prompt",)),
    "text": _Shape(_question("text"), ("text",)),
}


def clip(conversation: Conversation, fitting: Callable[[Conversation], Any], limit: int) -> Any:
    """0.1.0's way to shorten, with the arguments of those in prompt.fit: it only keeps combining accents together."""
    last = conversation[-1].text

    def cut(start: int) -> Any:
        while start < len(last) and unicodedata.combining(last[start]):
            start += 1
        return fitting([*conversation[:-1], Utterance(USER, last[start:])])

    low = bisect_left(range(len(last)), True, 1, key=lambda start: cut(start) is not None)
    for start in range(low, min(low + 8, len(last))):
        if (found := cut(start)) and found.conversation[-1].text.strip():
            return found
    return None


def cut_at_stop_text(
    text: str, token_ids: list[int], finish_reason: str, written: Sampling, eos_ids: Iterable[int]
) -> str:
    """A response without the stop text that ended it, which that version's journals do not name: it is the one that
    ends last, unless a stop token ended the response.

    written: the sampling with its texts as the model writes them
    """
    stop_ids = {*written.stop_token_ids, *([] if written.ignore_eos else eos_ids)}
    found = [stop for stop in written.stop if stop in text]
    if finish_reason != "stop" or stop_ids.intersection(token_ids[-1:]) or not found:
        return text
    end, start = max((text.rfind(stop) + len(stop), text.rfind(stop)) for stop in found)
    return text[: end if written.include_stop_str_in_output else start]
