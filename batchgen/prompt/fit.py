"""Making prompts fit into the context: one that is too long is shortened or rejected."""

from bisect import bisect_left
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from ..errors import Reject
from ..input import first_format
from ..input.conversation import USER, Conversation, Utterance
from . import graphemes
from .formats import Render

Encode = Callable[[str], list[int]]
Exceeds = Callable[[str, int], bool]

_PIECE = 1 << 16  # characters that are encoded at a time when only tokens are counted


class Fitted(NamedTuple):
    """A prompt that fits.

    Attributes:
        conversation: what was rendered.
        text: the prompt.
        token_ids: its tokens.
        truncated: number of tokens that were removed to make it fit.
    """

    conversation: Conversation
    text: str
    token_ids: list[int]
    truncated: int


def fit(
    conversation: Conversation,
    prefix: Conversation,
    render: Render,
    encode: Encode,
    limit: int,
    on_overlength: str,
    exceeds: Exceeds = lambda text, tokens: False,
    verbatim: bool = True,
) -> Fitted:
    """The prompt of prefix and conversation, with at most `limit` tokens.

    Args:
        conversation: the row's turns.
        prefix: fixed turns before them, which are never shortened.
        render: conversation -> prompt.
        encode: text -> token ids.
        limit: in tokens.
        on_overlength: `reject`; `drop-turns` drops the oldest turns of the conversation, so that it still begins with
            the user; `clip` keeps as much of the end of the last utterance as fits, in whole grapheme clusters
            (first_format.CLIP: by the rule of 0.1.0).
        exceeds: (text, tokens) -> whether a text is certain to have more tokens (Tokenizer.exceeds), so that long texts
            cost little.
        verbatim: whether the prompt contains all texts in full; a chat template may leave some out.

    Raises:
        Reject: too_long
    """

    def attempt(turns: Conversation) -> Fitted | None:
        """The prompt of these turns, whatever its length; None if it is certain to be too long."""
        if verbatim and any(exceeds(turn.text, limit) for turn in turns):
            return None
        text = render(turns)
        return None if exceeds(text, limit) else Fitted(turns, str(text), encode(text), 0)

    def fitting(turns: Conversation) -> Fitted | None:
        made = attempt([*prefix, *turns])
        return made if made and len(made.token_ids) <= limit else None

    whole = attempt([*prefix, *conversation])
    if whole and len(whole.token_ids) <= limit:
        return whole
    ways = {"drop-turns": _drop_turns, "clip": _clip, first_format.CLIP: first_format.clip}
    shorter = ways.get(on_overlength)
    found = shorter(conversation, fitting, limit) if shorter else None
    if found is None:
        has = len(whole.token_ids) if whole else f"more than {limit}"
        what = f", and on_overlength = {on_overlength.partition('@')[0]} cannot shorten it enough" if shorter else ""
        raise Reject("too_long", f"the prompt has {has} tokens, but there is only room for {limit}{what}")
    if whole:
        return found._replace(truncated=len(whole.token_ids) - len(found.token_ids))
    return found._replace(truncated=_removed(conversation, found.conversation[len(prefix) :], encode))


Fitting = Callable[[Conversation], Fitted | None]


def _drop_turns(conversation: Conversation, fitting: Fitting, limit: int) -> Fitted | None:
    starts = [start for start, turn in enumerate(conversation) if start and turn.speaker == USER]
    oldest = bisect_left(starts, True, key=lambda start: fitting(conversation[start:]) is not None)
    return fitting(conversation[starts[oldest] :]) if oldest < len(starts) else None


def _clip(conversation: Conversation, fitting: Fitting, limit: int) -> Fitted | None:
    last = conversation[-1].text

    def cut(start: int) -> Fitted | None:
        return fitting([*conversation[:-1], Utterance(USER, last[start:])])

    kept = limit  # characters; most tokens have several
    while kept < len(last) and cut(len(last) - kept):
        kept *= 2
    # Bounds on how many characters to cut off: `low` may be too few, `high` is enough.
    low, high = max(1, len(last) - kept), len(last)
    low = bisect_left(range(high), True, low, key=lambda start: cut(start) is not None)
    # Cutting one more character may add tokens, as pieces merge differently, so the search may be slightly off.
    for start in islice(graphemes.boundaries(last, low), 8):
        if last[start:].strip() and (found := cut(start)):
            return found
    return None


def _removed(conversation: Conversation, kept: Conversation, encode: Encode) -> int:
    """Number of tokens that were left out at the start of a conversation. The text is encoded in pieces, as encoding it
    at once would take 30 times its size in memory."""
    texts = [turn.text for turn in conversation[: -len(kept)]]
    last = conversation[-len(kept)].text
    texts.append(last[: len(last) - len(kept[0].text)])
    pieces = (text[start : start + _PIECE] for text in texts for start in range(0, len(text), _PIECE))
    return sum(len(encode(piece)) for piece in pieces)
