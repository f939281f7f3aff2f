"""Prompt formats: from a conversation to the text that a model continues, and from its response to readable text."""

import re
import unicodedata
from collections.abc import Callable
from functools import partial

from ..errors import Reject
from ..input.conversation import ASSISTANT, USER, Conversation
from ..model.hf_tokenizer import HfTokenizer
from ..model.tokenizer import Tokenizer

Render = Callable[[Conversation], str]


def renderer(format: str, tokenizer: Tokenizer | HfTokenizer, control_tokens: str) -> Render:
    """The function that turns a conversation into its prompt.

    control_tokens: see HfTokenizer.guarded. (Our own tokenizer never finds control tokens in text.)
    """
    if not isinstance(tokenizer, HfTokenizer):
        return partial(render, format=format)
    plain = tokenizer.render if format == "chat-template" else partial(render, format=format)
    return partial(tokenizer.guarded, render=plain, control_tokens=control_tokens)


# How a turn begins in the formats of the series, after the tokenizers' NFKC normalisation.
_SPEAKER = re.compile(rf"\s*({USER}|{ASSISTANT})\s*:")


def forged(conversation: Conversation, format: str, tokenizer: Tokenizer | HfTokenizer) -> str:
    """The first part of a conversation's texts that looks like a turn or a control token of the prompt; "" if none
    does."""
    for turn in conversation:
        if isinstance(tokenizer, HfTokenizer) and (token := tokenizer.control_in(turn.text)):
            return token
        if format.startswith("speaker") and not turn.text.isascii():
            lines = unicodedata.normalize("NFKC", turn.text).replace("<NL>", "\n").splitlines()
            if found := next(filter(None, map(_SPEAKER.match, lines)), None):
                return found[0].strip()
    return ""


def render(conversation: Conversation, format: str) -> str:
    """The prompt of a conversation. Raises Reject(bad_shape) if the format cannot express it.

    Args:
        conversation: what has been said.
        format: `speaker` is a line `speaker: text` per utterance, joined by newlines, then `システム: ` (cards of the
            bilingual instruction models). `speaker-nl` is the same joined by `<NL>`, which also replaces newlines
            inside a text (cards of the 3.6b models). `raw` is the text of a single utterance (base models).
    """
    if format == "raw":
        if len(conversation) > 1:
            raise Reject("bad_shape", f"format raw takes one utterance, but the row has {len(conversation)}")
        return conversation[0].text
    lines = [f"{utterance.speaker}: {utterance.text}" for utterance in conversation]
    if format == "speaker":
        return "\n".join([*lines, f"{ASSISTANT}: "])
    return "<NL>".join([*(line.replace("\n", "<NL>") for line in lines), f"{ASSISTANT}: "])


def response_text(text: str, format: str) -> str:
    """A decoded response in the form for people."""
    return text.replace("<NL>", "\n") if format == "speaker-nl" else text


def to_model_text(text: str, format: str) -> str:
    """A text as the model itself would write it: the inverse of `response_text`."""
    return text.replace("\n", "<NL>") if format == "speaker-nl" else text
