"""Record shapes: which columns of a record hold its conversation, and what is wrong with a record that has none."""

from collections.abc import Callable, Collection
from functools import cache, lru_cache
from typing import Any, NamedTuple

from ..errors import Reject
from . import transcripts, turns
from .batch_requests import conversation_of_request, request_of
from .conversation import (
    ASSISTANT,
    SYSTEM,
    USER,
    Conversation,
    Utterance,
    is_blank,
    is_request,
    is_text,
    kind_of,
    text_of,
)

Record = dict[str, Any]
AUTO = "auto"

# Columns that may hold a list of turns, and those that may hold a list of texts in which user and assistant alternate.
TURNS = ("conversation", "messages", "conversations", "items", "chat", "dialogue", "turns", "data")
TEXTS = ("conversations", "data")
# Columns that may hold the row's system message, in shapes that have one.
SYSTEMS = ("system", "system_prompt", "system_message", "meta_instruction")
# Columns that change what the assistant is supposed to do. (`tools` may be JSON text.)
_TOOLS = ("tools", "functions")
_MEDIA = {"<image>": ("image", "images"), "<video>": ("video", "videos"), "<audio>": ("audio", "audios")}


class Shape(NamedTuple):
    """One kind of record that holds a conversation.

    Attributes:
        columns: the columns that identify it; a record needs all of them.
        fits: whether a record's columns have the right types.
        parse: (record, drop_last_response) -> its conversation, system messages included.
        looks: what such a record looks like, for the manual.
        optional: further columns that it uses.
        alternatives: sets of columns that identify it as well.
        system: whether the columns SYSTEMS belong to it.
    """

    columns: tuple[str, ...]
    fits: Callable[[Record], bool]
    parse: Callable[[Record, bool], Conversation]
    looks: str
    optional: tuple[str, ...] = ()
    alternatives: tuple[tuple[str, ...], ...] = ()
    system: bool = True

    def can_read(self, names: Collection[str]) -> bool:
        """Whether a record with these columns may have this shape."""
        return any(all(name in names for name in columns) for columns in (self.columns, *self.alternatives))


# --- lists of turns


def _turns_in(record: Record, first: str) -> tuple[str, Any, str | None]:
    """(column, turns, key of their speakers). Without turns: the first of the columns that has a value, and None."""
    names = _turn_columns(first)
    for name in names:
        if (value := record.get(name)) is not None and (key := turns.first_speaker_key(value)):
            return name, value, key
    for who, what in (("role", "content"), ("from", "value")):
        if isinstance(record.get(who), list) and isinstance(record.get(what), list):
            return f"{who} and {what}", {who: record[who], what: record[what]}, who
    name = next((name for name in names if record.get(name) is not None), first)
    return name, record.get(name), None


@cache
def _turn_columns(first: str) -> tuple[str, ...]:
    return (first, *(name for name in TURNS if name != first))


def _list_of_turns(column: str, key: str, looks: str) -> Shape:
    """The shape of a list of objects, recognised by the key that names the speaker in the first one."""

    def fits(record: Record) -> bool:
        return _turns_in(record, column)[2] == key

    def parse(record: Record, drop: bool) -> Conversation:
        where, value, _ = _turns_in(record, column)
        said = turns.conversation_of(value, where, drop)
        _refuse_tools(record, _TOOLS)
        _refuse_media(record, said)
        return said

    elsewhere = tuple((name,) for name in TURNS if name != column)
    return Shape((column,), fits, parse, looks, _TOOLS, (*elsewhere, ("role", "content"), ("from", "value")))


def _refuse_tools(record: Record, names: tuple[str, ...]) -> None:
    for name in names:
        value = record.get(name)
        if not is_blank(value) and value not in ([], {}, "[]", "{}") and isinstance(value, list | str):
            raise Reject("bad_shape", f"{name}: conversations with tools are not supported")


def _refuse_media(record: Record, said: Conversation) -> None:
    for sign, names in _MEDIA.items():
        if (there := [name for name in names if record.get(name)]) and any(sign in turn.text for turn in said):
            raise Reject("bad_shape", f"{sign} refers to the column {there[0]}, but only text is supported")


def _request(where: str) -> Callable[[Record, bool], Conversation]:
    return lambda record, drop: conversation_of_request(request_of(record, where), drop)


def _preference_input(record: Record, drop: bool) -> Conversation:
    """OpenAI's preference fine-tuning: the conversation that both answers reply to."""
    asked = record["input"]
    if not isinstance(asked, dict):
        raise Reject("bad_shape", f"input is {kind_of(asked)}, not an object with messages")
    _refuse_tools(asked, _TOOLS)
    return turns.conversation_of(asked.get("messages"), "input.messages", drop)


def _tree(record: Record, drop: bool) -> Conversation:
    """OpenAssistant's trees: the path of the best-ranked replies, down to the last. The other branches are left out, as
    a row has one prompt."""
    node, path = record["prompt"], []
    while isinstance(node, dict):
        path.append(node)
        replies = node.get("replies")
        replies = [reply for reply in replies if isinstance(reply, dict)] if isinstance(replies, list) else []
        node = min(replies, key=_rank, default=None)
    return turns.conversation_of(path, "prompt and its replies", drop)


def _rank(node: dict[str, Any]) -> float:
    rank = node.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")


def _is_tree(record: Record) -> bool:
    node = record.get("prompt")
    return isinstance(node, dict) and "replies" in node and "text" in node


# --- preference data: one prompt and two answers to it


def _has_preferences(record: Record) -> bool:
    """Whether the prompt is a list of messages, or the common beginning of two lists of messages."""
    if turns.looks_like_turns(record.get("prompt")):
        return True
    chosen = record.get("chosen")
    return not is_text(record.get("prompt")) and turns.looks_like_turns(chosen)


def _preferences(record: Record, drop: bool) -> Conversation:
    """TRL's forms. The two answers are left out: neither is part of the conversation."""
    prompt, chosen, rejected = record.get("prompt"), record.get("chosen"), record.get("rejected")
    if turns.looks_like_turns(prompt):
        return [*turns.conversation_of(prompt, "prompt", drop), *_answer(record, ("completion",), drop)]
    good, bad = turns.as_list(chosen), turns.as_list(rejected)
    if good is None:
        raise Reject("bad_shape", f"chosen is {kind_of(chosen)}, not a list")
    if bad is None:
        return turns.conversation_of(good, "chosen", drop)
    common = next((n for n, (one, other) in enumerate(zip(good, bad, strict=False)) if one != other), None)
    common = min(len(good), len(bad)) if common is None else common
    return turns.conversation_of(good[:common], "chosen", drop_last_response=common == len(good))


# --- columns of text


def _answer(record: Record, columns: tuple[str, ...], drop: bool) -> Conversation:
    """The answer that the record has already. If it is dropped, it may be of any type."""
    name = next((name for name in columns if not is_blank(record.get(name)) and record[name] != []), None)
    if name is None or drop:
        return []
    value = record[name]
    if turns.looks_like_turns(value):
        return turns.conversation_of(value, name)
    if isinstance(value, list):  # FLAN may have several
        return [Utterance(ASSISTANT, text_of(value[0], name))]
    return [Utterance(ASSISTANT, text_of(value, name))]


def _question(
    questions: tuple[str, ...], answers: tuple[str, ...], more: tuple[str, ...] = (), strict_history: bool = False
) -> Callable[[Record, bool], Conversation]:
    """The parser of a shape with a question, and optionally more text, a history and a known answer."""

    def parse(record: Record, drop: bool) -> Conversation:
        name = next((name for name in questions if is_text(record.get(name))), questions[0])
        asked = [text_of(record.get(name), name)]
        asked += [text_of(record[part], part) for part in more if not is_blank(record.get(part))]
        past = record.get("history")
        history = turns.history_of(past, "history") if strict_history or _is_history(past) else []
        return [*history, Utterance(USER, "\n".join(asked)), *_answer(record, answers, drop)]

    return parse


def _is_history(value: Any) -> bool:
    if turns.looks_like_turns(value):
        return True
    return isinstance(value, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)


def _transcript(kind: str, begin: str) -> Shape:
    """The shape of a transcript: one text, in whichever column holds one. HH-RLHF's `chosen` is the conversation with
    the preferred answer, unless `prompt` holds the conversation."""
    columns = ("prompt", "chosen", "text")

    def column(record: Record) -> str | None:
        return next((name for name in columns if transcripts.kind_of_transcript(record.get(name)) == kind), None)

    def parse(record: Record, drop: bool) -> Conversation:
        given = (name for name in ("chosen", "prompt", "text") if record.get(name) is not None)
        name = column(record) or next(given, "chosen")
        said = transcripts.split(record.get(name), kind, name)
        if drop and said and said[-1].speaker == ASSISTANT:
            said.pop()
        return said + (_answer(record, ("completion",), drop) if name == "prompt" else [])

    return Shape(("chosen",), lambda record: column(record) is not None, parse, begin, (), (("prompt",), ("text",)))


def _list_of_texts(record: Record) -> tuple[str, list[Any]] | None:
    for name in TEXTS:
        value = record.get(name)
        texts = turns.as_list(value) if isinstance(value, list | str) else None
        if texts and all(isinstance(text, str | bytes) for text in texts):
            return name, texts
    return None


def _texts(record: Record, drop: bool) -> Conversation:
    found = _list_of_texts(record)
    if found is None:
        raise Reject("bad_shape", f"neither {' nor '.join(TEXTS)} is a list of texts")
    name, texts = found
    return turns.alternating(texts[:-1] if drop and len(texts) % 2 == 0 else texts, name)


def _first_question(record: Record, drop: bool) -> Conversation:
    """FastChat's questions: the user's turns only, each to be asked after the one before it has been answered."""
    value = turns.as_list(record.get("turns"))
    if not value:
        raise Reject("bad_shape", f"turns is {kind_of(record.get('turns'))}, not a list of texts")
    return [Utterance(USER, text_of(value[0], "turns[0]"))]


def _has_questions(record: Record) -> bool:
    value = record.get("turns")
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def _text_in(*names: str) -> Callable[[Record], bool]:
    return lambda record: any(is_text(record.get(name)) for name in names)


# By their names in `[input] format`, in the order in which they are tried on a row.
SHAPES = {
    "speaker": _list_of_turns("conversation", "speaker", '{"conversation": [{"speaker": "ユーザー", "text": "…"}]}'),
    "openai": _list_of_turns("messages", "role", '{"messages": [{"role": "user", "content": "…"}]}'),
    "openai-batch": Shape(
        ("body",),
        lambda record: is_request(record.get("body")),
        _request("body"),
        '{"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": […], "max_tokens": 50}}',
        ("custom_id", "url"),
        system=False,
    ),
    "anthropic-batch": Shape(
        ("params",),
        lambda record: is_request(record.get("params")),
        _request("params"),
        '{"custom_id": "a", "params": {"system": "…", "messages": […], "max_tokens": 50}}',
        ("custom_id",),
        system=False,
    ),
    "sharegpt": _list_of_turns("conversations", "from", '{"conversations": [{"from": "human", "value": "…"}]}'),
    "openai-preference": Shape(
        ("input", "preferred_output"),
        lambda record: (
            isinstance(record.get("input"), dict) and turns.looks_like_turns(record["input"].get("messages"))
        ),
        _preference_input,
        '{"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}',
        system=False,
    ),
    "oasst": Shape(
        ("prompt",),
        _is_tree,
        _tree,
        '{"prompt": {"role": "prompter", "text": "…", "replies": […]}}',
    ),
    "preference": Shape(
        ("prompt",),
        _has_preferences,
        _preferences,
        '{"prompt": [{"role": "user", "content": "…"}], "chosen": […], "rejected": […]}',
        ("completion", "rejected"),
        (("chosen",),),
    ),
    "hh": _transcript("hh", r'{"chosen": "\n\nHuman: …\n\nAssistant: …\n\nHuman: …"}'),
    "guanaco": _transcript("guanaco", '{"text": "### Human: …### Assistant: …### Human: …"}'),
    "chatml": _transcript("chatml", r'{"text": "<|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n"}'),
    "llama2": _transcript("llama2", '{"text": "<s>[INST] … [/INST] … </s><s>[INST] … [/INST]"}'),
    "flan": Shape(
        ("inputs",),
        _text_in("inputs", "inputs_pretokenized"),
        _question(("inputs", "inputs_pretokenized"), ("targets", "targets_pretokenized")),
        '{"inputs": "…", "targets": "…"}',
        ("targets", "targets_pretokenized"),
        (("inputs_pretokenized",),),
        system=False,
    ),
    "dolly": Shape(
        ("instruction", "context"),
        lambda record: is_text(record.get("instruction")) and "context" in record,
        _question(("instruction",), ("response", "output"), ("context", "input")),
        '{"instruction": "…", "context": "…", "response": "…"}',
        ("response", "input", "output", "history"),
    ),
    "alpaca": Shape(
        ("instruction",),
        _text_in("instruction"),
        _question(("instruction",), ("output",), ("input", "context"), strict_history=True),
        '{"instruction": "…", "input": "…", "system": "…", "history": [["…", "…"]], "output": "…"}',
        ("input", "context", "output", "history"),
    ),
    "orca": Shape(
        ("question", "system_prompt"),
        lambda record: is_text(record.get("question")) and any(name in record for name in SYSTEMS),
        _question(("question",), ("response",)),
        '{"system_prompt": "…", "question": "…", "response": "…"}',
        ("response",),
        tuple(("question", name) for name in SYSTEMS if name != "system_prompt"),
    ),
    "prompt": Shape(
        ("prompt",),
        _text_in("prompt"),
        _question(("prompt",), ("completion",)),
        '{"prompt": "…", "completion": "…"}, with `chosen` and `rejected` too',
        ("completion", "history"),
    ),
    "list": Shape(
        ("conversations",),
        lambda record: _list_of_texts(record) is not None,
        _texts,
        '{"conversations": ["…", "…"]}, {"data": ["…", "…"]}',
        (),
        tuple((name,) for name in TEXTS if name != "conversations"),
    ),
    "fastchat": Shape(
        ("turns",),
        lambda record: _has_questions(record) and len(record["turns"]) == 1,
        _first_question,
        '{"turns": ["…"]}; of several, the first if the format is given',
        system=False,
    ),
    "text": Shape(
        ("text",),
        _text_in("text"),
        _question(("text",), ()),
        '{"text": "…"}',
        system=False,
    ),
}
# Every column that a shape looks at, for reading columnar files.
COLUMNS = tuple(
    dict.fromkeys(
        [
            *(name for shape in SHAPES.values() for name in (*shape.columns, *shape.optional)),
            *(name for shape in SHAPES.values() for columns in shape.alternatives for name in columns),
            *SYSTEMS,
        ]
    )
)


def shape_of(record: Record, format: str = AUTO) -> str:
    """The name of the first shape whose columns the record has with the right types; if there is none, of the first
    whose columns have any value.

    format: the shape that the record must have; auto for any. Raises Reject(bad_shape).
    """
    if format != AUTO:
        if not SHAPES[format].can_read([name for name, value in record.items() if value is not None]):
            needed = " and ".join(SHAPES[format].columns)
            raise Reject("bad_shape", f"a row of format {format} needs {needed}; has {_names(record)}")
        return format
    for name in _possible(tuple(record) if len(record) <= len(COLUMNS) else _known(record)):
        if SHAPES[name].fits(record):
            return name
    if _has_questions(record):
        raise Reject("bad_shape", "turns has several questions; use --input-format fastchat to ask only the first")
    for name, shape in SHAPES.items():
        if None not in map(record.get, shape.columns):
            return name
    for name, shape in SHAPES.items():
        if any(None not in map(record.get, columns) for columns in shape.alternatives):
            return name
    ways = ", ".join(dict.fromkeys(shape.columns[0] for shape in SHAPES.values()))
    raise Reject("bad_shape", f"needs one of {ways}; has {_names(record)}")


def _known(record: Record) -> tuple[str, ...]:
    """The columns of a record that any shape looks at: the record may have a million others."""
    return tuple(name for name in COLUMNS if name in record)


@lru_cache(maxsize=1024)  # most records of a dataset have the same columns
def _possible(names: tuple[str, ...]) -> tuple[str, ...]:
    """The shapes that a record with these columns may have."""
    there = set(names)
    return tuple(name for name, shape in SHAPES.items() if shape.can_read(there))


def from_record(
    record: Record, shape: str = AUTO, drop_last_response: bool = False, systems: tuple[str, ...] = SYSTEMS
) -> Conversation:
    """The conversation of a record of this shape (auto: of any). For the arguments see `read`. Raises Reject."""
    return read(record, shape_of(record, shape), drop_last_response, systems)


def read(
    record: Record, shape: str, drop_last_response: bool = False, systems: tuple[str, ...] = SYSTEMS
) -> Conversation:
    """The conversation of a record, system messages included, which ends with the user's turn.

    Args:
        record: the row's record.
        shape: name of its shape.
        drop_last_response: leave out an answer at the end, which would otherwise reject the row.
        systems: columns that may hold the row's system message, if its shape allows them.

    Raises:
        Reject: bad_shape, unknown_speaker, empty or invalid_utf8
    """
    said = SHAPES[shape].parse(record, drop_last_response)
    if SHAPES[shape].system and (system := _system_columns(record, systems, said)):
        said = [*system, *said]
    return _ending_with_user(said, drop_last_response)


def answer_of(record: Record, shape: str) -> str:
    """The answer at the end of a record's conversation. Raises Reject."""
    said = SHAPES[shape].parse(record, False)
    if not said or said[-1].speaker != ASSISTANT:
        raise Reject("bad_shape", "the conversation does not end with an answer that could be scored")
    return said[-1].text


def _system_columns(record: Record, columns: tuple[str, ...], said: Conversation) -> Conversation:
    """System messages from columns of their own, except those that the conversation has too. Non-text is ignored."""
    texts = [text_of(record[name], name) for name in columns if is_text(record.get(name))]
    if not texts:
        return []
    known = {turn.text for turn in said if turn.speaker == SYSTEM}
    return [Utterance(SYSTEM, text) for text in dict.fromkeys(texts) if text not in known]


def system_in(record: Record, column: str) -> str:
    """The row's system message, from the column that the user named; "" if it has none. Raises Reject(bad_shape)."""
    value = record.get(column)
    return "" if is_blank(value) else text_of(value, column)


def _ending_with_user(said: Conversation, dropped: bool) -> Conversation:
    if not said:
        raise Reject("empty", "the conversation has no utterances")
    if said[-1].speaker == USER:
        return said
    if said[-1].speaker == ASSISTANT and dropped:
        raise Reject("bad_shape", "the conversation ends with an answer even after dropping its last response")
    raise Reject("bad_shape", "the last utterance is not the user's (drop_last_response drops an answer at the end)")


def _names(record: Record) -> str:
    return ", ".join(record) or "nothing"
