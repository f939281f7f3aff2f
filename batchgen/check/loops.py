"""Text that repeats itself: the unit of two words or ten that a small model writes until max_tokens ends it."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

LONGEST_UNIT = 120  # characters
LOOK_AT = 20_000  # characters from the end: a loop that was left again further back is the text's own
SHORTEST = {1: 12, 2: 12, 3: 12}  # characters that a loop of such a unit has at least: はははは is laughter
TIMES = 4  # that a longer unit is there
# Characters in a row that a loop of any period has in common with itself a period before: at least 12 - 3 where the
# unit is short, and 3 units where it is longer.
GRAM = 9
MANY = 32  # grams that were there before, beyond which all periods are tried
AT_END = 500  # characters of a response that say whether it ended in a loop: a unit has 120 at most, four times
SIGNS = 60  # characters of a loop without letters, which may well be a ruler or the border of a table
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Loop(NamedTuple):
    """unit: what is repeated; length: characters of the whole loop"""

    unit: str
    length: int


def is_endless(text: str, finish_reason: str) -> bool:
    """Whether a response was caught in a loop when it ended. Only one that nothing else ended is looked at."""
    if finish_reason == "length":
        return any(_longer_and_longer(text[-AT_END:]))
    return finish_reason == "repetition"


def longest_loop(text: str) -> str | None:
    """The unit of the longest loop in a text, None if there is none."""
    found = find(text)
    return found.unit if found else None


def find(text: str) -> Loop | None:
    """The longest loop in a text, None if there is none."""
    return max(_longer_and_longer(text), key=lambda loop: loop.length, default=None)


def _longer_and_longer(text: str) -> Iterator[Loop]:
    """A loop, one that is longer, and so on.

    A loop with the period p is a run of characters that are equal to those p before them: numpy compares them, for the
    few periods that a text can have at all.
    """
    signs = np.frombuffer(text[-LOOK_AT:].encode("utf-32-le", "surrogatepass"), np.uint32)
    longest = 0
    for period in _periods(signs):
        equal = signs[period:] == signs[:-period]
        least = max(SHORTEST.get(period, 0), TIMES * period, longest + 1)
        begin, end = _longest_run(equal.tobytes(), least - period)
        if begin == end:
            continue
        unit = _text(signs[begin : begin + period])
        if end - begin + period >= SIGNS or any(sign.isalnum() for sign in unit):
            longest = end - begin + period
            yield Loop(unit, longest)


def _periods(signs: np.ndarray) -> Sequence[int]:
    """In order, those that a loop in the text may have: in one of period p the grams at some place and p further on are
    the same. Most texts have few such places, and 500 characters of them take 0.03 ms instead of 0.3."""
    if len(signs) <= GRAM:
        return ()
    grams = _grams(signs)
    of_several = np.sort(grams[grams != signs[: 1 - GRAM] * _OF_ONE])  # blanks in a row can have period 1 alone
    again = of_several[1:][of_several[1:] == of_several[:-1]]
    longest = min(LONGEST_UNIT, len(signs) // TIMES)
    if len(again) > MANY:
        return range(1, longest + 1)
    periods = {1} if len(of_several) < len(grams) else set()
    for gram in set(again.tolist()):
        places = np.flatnonzero(grams == gram).tolist()
        periods |= {later - place for place, later in itertools.combinations(places, 2)}
    return sorted(period for period in periods if period <= longest)


def _grams(signs: np.ndarray) -> np.ndarray:
    """A hash of the GRAM characters from each place on, as far as there are so many."""
    ones = signs.astype(np.uint64)
    twos = ones[:-1] * _ODD + ones[1:]
    fours = twos[:-2] * _ODD + twos[2:]
    eights = fours[:-4] * _ODD + fours[4:]
    return eights[:-1] * _ODD + ones[8:]


def _longest_run(equal: bytes, least: int) -> tuple[int, int]:
    """Begin and end of the first longest run of ones, if it has as many as `least`, or else the same place twice."""
    begin = end = 0
    while (place := equal.find(b"\1" * least, end)) >= 0:
        begin, end = place, equal.find(b"\0", place)
        end = end if end >= 0 else len(equal)
        least = end - begin + 1
    return begin, end


_OF_ONE = _grams(np.ones(GRAM, np.uint32))[0]  # times a character: the hash of one that is repeated


def _text(signs: np.ndarray) -> str:
    return signs.tobytes().decode("utf-32-le", "surrogatepass")
