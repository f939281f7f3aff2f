"""Lists of turns: who said what, in the various words and containers that datasets use."""

import re
from functools import lru_cache
from typing import Any

import msgspec

from ..errors import Reject
from .conversation import ASSISTANT, SYSTEM, USER, Conversation, Utterance, decoded, is_blank, kind_of, text_of

# The keys of a turn, in the order in which they are tried.
WHO = ("role", "from", "speaker")
WHAT = ("content", "value", "text")

# The speakers of the model cards' own form, {"speaker": "ユーザー", "text": ...}. No other names are valid there.
SPEAKERS = {USER: USER, ASSISTANT: ASSISTANT, SYSTEM: SYSTEM}
# Roles elsewhere, compared without case, white space, hyphens, dots and underscores.
ROLES = {
    **{name: USER for name in ("user", "human", "prompter", "instruction", "question")},
    **{name: ASSISTANT for name in ("assistant", "gpt", "chatgpt", "bot", "chatbot", "ai", "model", "answer")},
    **{name: ASSISTANT for name in ("claude", "bing", "bard", "gemini", "llama", "vicuna", "mistral", "qwen")},
    **{name: SYSTEM for name in ("system", "developer")},
}
_MODEL = re.compile(r"(?:gpt|chatgpt|claude|gemini|llama|vicuna|mistral|qwen|palm)\d\w*")  # gpt4, claude2, llama270b
LONGEST_ROLE = 100  # characters of a role that are compared
_TOOL = re.compile(r"tool\w*|function\w*|observation|ipython|environment")
_MEDIA = re.compile(r"image|audio|video|file")


def conversation_of(turns: Any, where: str, drop_last_response: bool = False) -> Conversation:
    """The conversation of a list of objects, each with a speaker and a text.

    Blank system turns, and a blank turn of the assistant at the end, are ignored.

    Args:
        turns: the list; see also `as_list`.
        where: its column, for the reject.
        drop_last_response: ignore the last turn if it is the assistant's, whatever it holds.

    Raises:
        Reject: bad_shape, unknown_speaker, empty or invalid_utf8
    """
    listed = as_list(turns)
    if listed is None:
        raise Reject("bad_shape", f"{where} is {kind_of(turns)}, not a list")
    conversation = []
    for position, value in enumerate(listed):
        place = f"{where}[{position}]"
        turn = as_turn(value)
        who, what = keys_of(turn) if turn is not None else (None, None)
        is_last = position == len(listed) - 1
        if turn is None or who is None or (what is None and not is_last and not _may_lack_text(turn)):
            raise Reject("bad_shape", f"{place} needs a speaker and a text: role and content, from and value, ...")
        speaker = _speaker(turn[who], place, SPEAKERS if who == "speaker" and what in ("text", None) else ROLES)
        said = turn.get(what) if what else None
        if speaker == ASSISTANT and is_last and (drop_last_response or _is_placeholder(turn, said)):
            break
        if speaker == SYSTEM and is_blank(said):
            continue
        conversation.append(Utterance(speaker, _said(turn, said, f"{place}.{what or WHAT[0]}")))
    return conversation


def alternating(texts: list[Any], where: str) -> Conversation:
    """The conversation of a list of plain texts in which user and assistant alternate. Raises Reject."""
    if len(texts) % 2 == 0 and texts and is_blank(texts[-1]):
        texts = texts[:-1]
    return [
        Utterance(USER if position % 2 == 0 else ASSISTANT, text_of(text, f"{where}[{position}]"))
        for position, text in enumerate(texts)
    ]


def history_of(value: Any, where: str) -> Conversation:
    """The conversation so far: pairs of question and answer, as in LLaMA-Factory, or turns. Raises Reject."""
    if is_blank(value):
        return []
    listed = as_list(value)
    if listed is None:
        raise Reject("bad_shape", f"{where} is {kind_of(value)}, not a list")
    if looks_like_turns(listed):
        return conversation_of(listed, where)
    conversation = []
    for position, pair in enumerate(listed):
        place = f"{where}[{position}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Reject("bad_shape", f"{place} is not a pair of question and answer")
        conversation += [Utterance(USER, text_of(pair[0], place)), Utterance(ASSISTANT, text_of(pair[1], place))]
    return conversation


# --- containers


def as_list(value: Any) -> list[Any] | None:
    """A list; it may come as JSON text, or as a struct of lists (the form of `datasets.Sequence`). None otherwise."""
    if isinstance(value, list):
        return value
    if isinstance(value, str | bytes):
        return _list_in(value)
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        lengths = {len(part) for part in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    return None


def _list_in(text: str | bytes) -> list[Any] | None:
    if text.lstrip()[:1] not in ("[", b"["):
        return None
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return value if isinstance(value, list) else None


def as_turn(value: Any) -> dict[str, Any] | None:
    """An object; it may come as the list of pairs into which Arrow turns a map. None otherwise."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return {key: part for key, part in value if isinstance(key, str)}
    return None


def keys_of(turn: dict[str, Any]) -> tuple[str | None, str | None]:
    """(key of the speaker, key of the text) of a turn: of several keys the first with a value, because in a Parquet
    struct every row has every key."""
    return _first(turn, WHO), _first(turn, WHAT)


def _first(turn: dict[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        if turn.get(name) is not None:
            return name
    return next((name for name in names if name in turn), None)


def looks_like_turns(value: Any) -> bool:
    """Whether a value is a list that begins with a turn."""
    return first_speaker_key(value) is not None


def first_speaker_key(value: Any) -> str | None:
    """`role`, `from` or `speaker` if a value is a list of turns, else None."""
    if not isinstance(value, list | dict | str | bytes):
        return None
    listed = as_list(value)
    turn = as_turn(listed[0]) if listed else None
    return keys_of(turn)[0] if turn else None


# --- one turn


def _speaker(role: Any, place: str, known: dict[str, str]) -> str:
    if isinstance(role, bytes):
        role = decoded(role, place)
    if isinstance(role, str):
        if (speaker := known.get(role)) is not None:
            return speaker
        word = _word(role[:LONGEST_ROLE])
        if known is ROLES and (word in known or _MODEL.fullmatch(word)):
            return known.get(word, ASSISTANT)
        if _TOOL.fullmatch(word):
            raise Reject("unknown_speaker", f"{place}: {role!r}: tool turns are not supported")
    raise Reject("unknown_speaker", f"{place}: {role!r:.80} is not one of {', '.join(known)}")


@lru_cache(maxsize=256)
def _word(role: str) -> str:
    return re.sub(r"[\s_.-]", "", role.lower())


def _may_lack_text(turn: dict[str, Any]) -> bool:
    return any(turn.get(name) for name in ("tool_calls", "function_call", "refusal"))


def _is_placeholder(turn: dict[str, Any], said: Any) -> bool:
    """Whether a turn only marks where the answer goes."""
    return is_blank(said) and not _may_lack_text(turn)


def _said(turn: dict[str, Any], said: Any, where: str) -> str:
    """The text of a turn. Raises Reject(bad_shape | empty | invalid_utf8)."""
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Reject("bad_shape", f"{where}: tool calls are not supported")
    if said is None and (refusal := turn.get("refusal")) is not None:
        return text_of(refusal, where)
    if isinstance(said, list):
        return text_of(joined(said, where), where)
    return text_of(said, where)


def joined(parts: list[Any], where: str) -> str:
    """The texts of OpenAI's content parts, joined the way vLLM's server does. Raises Reject."""
    texts = [_part(part, f"{where}[{position}]") for position, part in enumerate(parts)]
    return "\n".join(text for text in texts if text is not None)


def _part(part: Any, where: str) -> str | None:
    """The text of one part; None if it is null, which vLLM skips."""
    if isinstance(part, str | bytes):
        return text_of(part, where)
    part = as_turn(part)
    if part is None:
        raise Reject("bad_shape", f"{where} is not a text part")
    kind = part.get("type")
    if kind in (None, "text", "input_text", "output_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(text, str) or (text is None and kind is not None):
            return text
        raise Reject("bad_shape", f"{where} has no text")
    what = "only text is" if isinstance(kind, str) and _MEDIA.search(kind) else "parts of this type are not"
    raise Reject("bad_shape", f"{where} is of type {kind!r:.40}: {what} supported")
