import random

import pytest

from batchgen.check import loops
from batchgen.check.loops import longest_loop


@pytest.mark.parametrize(
    "text, unit",
    [
        ("The cat sat. " * 6, "The cat sat. "),
        ("It begins well. " + "and so on, " * 20 + "It ends.", "and so on, "),
        ("は" * 30, "は"),
        ("私は学生です。" * 8, "私は学生です。"),
    ],
)
def test_a_loop_is_found(text, unit):
    found = longest_loop(text)
    assert found and found in unit * 2 and len(found) == len(unit)


@pytest.mark.parametrize(
    "text",
    ["", "ははははは", "No, no, no!", "A rose is a rose is a rose.", "|---|---|---|---|\n", "1000000000"],
)
def test_what_people_write_is_none(text):
    assert longest_loop(text) is None


def in_every_period(text: str) -> loops.Loop | None:
    """The longest loop, by its definition."""
    best = None
    for period in range(1, min(loops.LONGEST_UNIT, len(text) // loops.TIMES) + 1):
        run = 0
        for place in range(period, len(text) + 1):
            if place < len(text) and text[place] == text[place - period]:
                run += 1
                continue
            unit, whole = text[place - run - period : place - run], run + period
            run = 0
            least = max(loops.SHORTEST.get(period, 0), loops.TIMES * period, best.length + 1 if best else 0)
            is_text = whole >= loops.SIGNS or any(sign.isalnum() for sign in unit)
            if whole >= least and is_text and longest_of(text, period) == whole:
                best = loops.Loop(unit, whole)
    return best


def longest_of(text: str, period: int) -> int:
    same = "".join("1" if a == b else "0" for a, b in zip(text[period:], text, strict=False))
    return max(map(len, same.split("0"))) + period


@pytest.mark.parametrize("seed", range(300))
def test_what_is_found_is_the_longest_run_of_any_period(seed):
    """Texts of few characters, of words, of loops within loops, and of hardly any repetition."""
    chance = random.Random(seed)
    alphabet = chance.choice(["ab", "ab -", "はい。", "abcdefghijklmnop ", "".join(map(chr, range(0x4E00, 0x5200)))])
    words = ["".join(chance.choices(alphabet, k=chance.randrange(1, 14))) for _ in range(chance.randrange(1, 9))]
    parts = [chance.choice(words) for _ in range(chance.randrange(1, 40))]
    place = chance.randrange(len(parts))
    unit = "".join(chance.choices(words, k=chance.randrange(1, 4)))
    parts[place:place] = [unit * chance.randrange(0, 9)]
    text = "".join(parts)
    assert loops.find(text) == in_every_period(text)
