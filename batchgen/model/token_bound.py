"""Whether a text surely has too many tokens, found out without encoding all of it.

A token stands for so many characters at most, and encoding makes at least as many tokens as that takes. The characters
are those that the normaliser leaves, as it may drop or join any number of them; so it is applied bit by bit, until
enough of them have been seen.
"""

from collections.abc import Callable

SHORT = 1 << 16  # characters of a text that may as well be encoded
# What normalising a part alone may add at its ends: letters and accents that would have become one, a first blank.
_SLACK = 64


def exceeds(text: str, tokens: int, longest: int, count: Callable[[str], int]) -> bool:
    """Whether a text surely has more tokens than so many. False says nothing.

    longest: characters of the longest token; count: characters of a part of the text, normalised, each of which has to
    be in a token.
    """
    if len(text) <= max(SHORT, tokens):
        return False
    seen = 0
    for start in range(0, len(text), SHORT):
        seen += max(0, count(text[start : start + SHORT]) - _SLACK - 2 * longest)
        if seen > tokens * longest:
            return True
    return False
