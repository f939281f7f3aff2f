"""Whether a text surely has too many tokens, found out without encoding all of it.

A token stands for so many characters at most, and encoding makes at least as many tokens as that takes. The characters
are those that the normaliser leaves, as it may drop or join any number of them; so it is applied bit by bit, until
enough of them have been seen.
"""

import re
from collections.abc import Callable

WIDEST = 1_000_000  # characters that a template may have a value padded to
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


def check_width(format: str) -> None:
    """Raises ValueError for a format specification (`>20`, `.2f`) that pads a value beyond all use, or whose width
    would come from the row."""
    if "{" in format:
        raise ValueError(f"the width in {{:{format}}} must be a number, not a column")
    if too_wide := next((digits for digits in re.findall(r"\d+", format) if int(digits[:20]) > WIDEST), ""):
        raise ValueError(f"{{:{format}}} is {too_wide} characters wide; {WIDEST:,} is the most")
