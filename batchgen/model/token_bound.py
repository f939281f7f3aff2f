"""A lower bound on the number of tokens of a text, to reject a text that is far too long without encoding it.

If no token is longer than L characters, a text of N characters has at least N / L tokens. Only characters that are left
after normalisation count, as the normaliser may drop or merge any number of them; so the text is normalised part by
part until enough characters have been seen.
"""

from collections.abc import Callable

SHORT = 1 << 16  # characters of a text that is cheap enough to encode
# Characters that normalising a part on its own may add at its ends: uncomposed accents, a leading space.
_SLACK = 64


def exceeds(text: str, tokens: int, longest: int, count: Callable[[str], int]) -> bool:
    """Whether a text is certain to have more than `tokens` tokens. If False, it may or may not.

    Args:
        text: the text.
        tokens: the limit.
        longest: length of the longest token, in characters.
        count: part of the text -> number of characters that have to be in tokens after normalisation.
    """
    if len(text) <= max(SHORT, tokens):
        return False
    seen = 0
    for start in range(0, len(text), SHORT):
        seen += max(0, count(text[start : start + SHORT]) - _SLACK - 2 * longest)
        if seen > tokens * longest:
            return True
    return False
