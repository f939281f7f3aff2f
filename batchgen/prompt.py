"""Conversations to prompts: the formats of the model series, and what to do with prompts that are too long."""

import unicodedata
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from .conversation import ASSISTANT, USER, Conversation, Utterance
from .errors import Reject
from .hf_tokenizer import HfTokenizer
from .tokenizer import Tokenizer

Render = Callable[[Conversation], str]
Encode = Callable[[str], list[int]]


class Fitted(NamedTuple):
    """A prompt that fits. conversation: as rendered; truncated: how many tokens were removed to make it fit."""

    conversation: Conversation
    text: str
    token_ids: list[int]
    truncated: int


def renderer(format: str, tokenizer: Tokenizer | HfTokenizer) -> Render:
    """What turns a conversation into its prompt."""
    if format == "chat-template":
        assert isinstance(tokenizer, HfTokenizer)
        return tokenizer.render
    return partial(render, format=format)


def render(conversation: Conversation, format: str) -> str:
    """The prompt of a conversation. Raises Reject(bad_shape) where the format cannot hold it.

    speaker: `speaker: text` lines joined by newlines, then `システム: ` (cards of the bilingual instruction models);
    speaker-nl: the same joined by `<NL>`, which every newline inside a text becomes too (cards of the 3.6b ones);
    raw: the text alone (base models).
    """
    if format == "raw":
        if len(conversation) > 1:
            raise Reject("bad_shape", f"format raw takes one utterance, the row has {len(conversation)}")
        return conversation[0].text
    lines = [f"{utterance.speaker}: {utterance.text}" for utterance in conversation]
    if format == "speaker":
        return "\n".join([*lines, f"{ASSISTANT}: "])
    return "<NL>".join([*(line.replace("\n", "<NL>") for line in lines), f"{ASSISTANT}: "])


def response_text(text: str, format: str) -> str:
    """A decoded response as people are to read it."""
    return text.replace("<NL>", "\n") if format == "speaker-nl" else text


def as_written(text: str, format: str) -> str:
    """A text as the model itself writes it: the other way round."""
    return text.replace("\n", "<NL>") if format == "speaker-nl" else text


def fit(
    conversation: Conversation, prefix: Conversation, render: Render, encode: Encode, limit: int, on_overlength: str
) -> Fitted:
    """The prompt of prefix and conversation, brought to at most `limit` tokens. Raises Reject(too_long).

    on_overlength: reject; drop-turns, the oldest of the conversation (never the prefix), so that it still begins with
    the user; or clip, which keeps as much of the end of the last utterance as fits.
    """
    text = render([*prefix, *conversation])
    token_ids = encode(text)
    if len(token_ids) <= limit:
        return Fitted([*prefix, *conversation], text, token_ids, 0)
    shorter = {"drop-turns": _drop_turns, "clip": _clip}.get(on_overlength)
    found = shorter(conversation, prefix, render, encode, limit) if shorter else None
    if found is None:
        what = f" and on_overlength = {on_overlength} cannot bring it down" if shorter else ""
        raise Reject("too_long", f"the prompt has {len(token_ids)} tokens, there is room for {limit}{what}")
    return found._replace(truncated=len(token_ids) - len(found.token_ids))


def _drop_turns(
    conversation: Conversation, prefix: Conversation, render: Render, encode: Encode, limit: int
) -> Fitted | None:
    for start in range(1, len(conversation)):
        if conversation[start].speaker == USER:
            kept = [*prefix, *conversation[start:]]
            text = render(kept)
            if len(token_ids := encode(text)) <= limit:
                return Fitted(kept, text, token_ids, 0)
    return None


def _clip(
    conversation: Conversation, prefix: Conversation, render: Render, encode: Encode, limit: int
) -> Fitted | None:
    last = conversation[-1].text

    def cut(start: int) -> Fitted:
        while start < len(last) and unicodedata.combining(last[start]):
            start += 1  # an accent belongs to the letter before it
        kept = [*prefix, *conversation[:-1], Utterance(USER, last[start:])]
        text = render(kept)
        return Fitted(kept, text, encode(text), 0)

    low, high = 1, len(last)  # how many characters to cut off: too few, surely enough
    while low < high:
        middle = (low + high) // 2
        if len(cut(middle).token_ids) <= limit:
            high = middle
        else:
            low = middle + 1
    # One character less may be some tokens more where pieces merge anew, so the search may be off by a little.
    for start in range(low, min(low + 8, len(last))):
        if len((fitted := cut(start)).token_ids) <= limit and fitted.conversation[-1].text.strip():
            return fitted
    return None
