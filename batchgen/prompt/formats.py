"""The prompt formats: a conversation as the text that a model continues, and its response as people read it."""

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
    """What turns a conversation into its prompt. control_tokens: see HfTokenizer.guarded; ours has none in texts."""
    if not isinstance(tokenizer, HfTokenizer):
        return partial(render, format=format)
    plain = tokenizer.render if format == "chat-template" else partial(render, format=format)
    return partial(tokenizer.guarded, render=plain, control_tokens=control_tokens)


# What begins a turn in the formats of the series, as the tokenizers see it after NFKC.
_SPEAKER = re.compile(rf"\s*({USER}|{ASSISTANT})\s*:")


def forged(conversation: Conversation, format: str, tokenizer: Tokenizer | HfTokenizer) -> str:
    """What in the texts of a conversation would look like a turn or a control token of the prompt; empty if nothing
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


def to_model_text(text: str, format: str) -> str:
    """A text as the model itself writes it: the other way round."""
    return text.replace("\n", "<NL>") if format == "speaker-nl" else text
