"""Prompts that fit into the context: what is too long is shortened, or rejected."""

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

_PIECE = 1 << 16  # characters that are encoded at once where only the number of their tokens counts


class Fitted(NamedTuple):
    """A prompt that fits. conversation: as rendered; truncated: how many tokens were removed to make it fit."""

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
    """The prompt of prefix and conversation, brought to at most `limit` tokens. Raises Reject(too_long).

    on_overlength: reject; drop-turns, the oldest of the conversation (never the prefix), so that it still begins with
    the user; or clip, which keeps as much of the end of the last utterance as fits, in whole grapheme clusters
    (first_format.CLIP: by that version's rule).
    exceeds: whether a text surely has more tokens than so many (Tokenizer.exceeds), so that long ones cost little;
    verbatim: whether `render` leaves out nothing of what is said, as a chat template may.
    """

    def attempt(turns: Conversation) -> Fitted | None:
        """The prompt of these turns, whatever its length; None if it surely is too long to be worth its making."""
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
        what = f" and on_overlength = {on_overlength.partition('@')[0]} cannot bring it down" if shorter else ""
        raise Reject("too_long", f"the prompt has {has} tokens, there is room for {limit}{what}")
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

    kept = limit  # characters: most tokens have several
    while kept < len(last) and cut(len(last) - kept):
        kept *= 2
    # How many characters to cut off: too few, surely enough.
    low, high = max(1, len(last) - kept), len(last)
    low = bisect_left(range(high), True, low, key=lambda start: cut(start) is not None)
    # One character less may be some tokens more where pieces merge anew, so the search may be off by a little.
    for start in islice(graphemes.boundaries(last, low), 8):
        if last[start:].strip() and (found := cut(start)):
            return found
    return None


def _removed(conversation: Conversation, kept: Conversation, encode: Encode) -> int:
    """Tokens of what was left out at the start of a conversation, encoded bit by bit: all at once would cost 30 times
    its size in memory."""
    texts = [turn.text for turn in conversation[: -len(kept)]]
    last = conversation[-len(kept)].text
    texts.append(last[: len(last) - len(kept[0].text)])
    pieces = (text[start : start + _PIECE] for text in texts for start in range(0, len(text), _PIECE))
    return sum(len(encode(piece)) for piece in pieces)
