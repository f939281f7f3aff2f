"""Samples on the page: the first ones as HTML, all of them as data for the script."""

import base64
import gzip
from collections import Counter
from collections.abc import Sequence

import msgspec

from .cases import Answer, Case, Text, Turn
from .markup import Html, join, tag

FIRST = 20  # cases that are there without the script
FIRST_BYTES = 400_000  # of their HTML, at most
DATA_BYTES = 3_600_000  # of the data as they stand in the page
MOST_NAMES = 4  # above an answer
COLOURS = 8  # that page.css has for outputs and settings
TEXT = "text"  # what an answer is called that the model did not write
GOOD, BAD = {"stop", "right", "best"}, {"wrong"}


class Data(msgspec.Struct):
    """What the script gets.

    answer: what an answer is called; compares: whether those to a row are meant to be alike
    groups: names of outputs or settings
    tags: with the number of cases that have each
    """

    answer: str
    compares: bool
    groups: list[str]
    tags: list[tuple[str, int]]
    cases: list[Case]


def packed(answer: str, groups: Sequence[str], cases: Sequence[Case]) -> tuple[str, int]:
    """gzip in base64, which no text in it can end; and how many cases found room."""
    kept = len(cases)
    while True:
        raw = msgspec.json.encode(
            Data(answer, answer != "text", list(groups), tags_of(cases[:kept]), list(cases[:kept]))
        )
        found = base64.b64encode(gzip.compress(raw, 9, mtime=0)).decode()
        if len(found) <= DATA_BYTES or not kept:
            return found, kept
        kept = min(kept * DATA_BYTES // len(found), kept - 1)


def tags_of(cases: Sequence[Case]) -> list[tuple[str, int]]:
    """The most frequent first."""
    return sorted(Counter(tag for case in cases for tag in case.tags).items(), key=lambda pair: (-pair[1], pair[0]))


def first(answer: str, groups: Sequence[str], cases: Sequence[Case]) -> list[Html]:
    """The cases that are readable without the script, as page.js makes them too."""
    found: list[Html] = []
    room = FIRST_BYTES
    for case in cases[:FIRST]:
        made = _case(answer, groups, case)
        room -= len(made)
        if room < 0:
            break
        found.append(made)
    return found


def _case(answer: str, groups: Sequence[str], case: Case) -> Html:
    about = tag("span", " · ".join(part for part in (f"row {case.row:,}", case.about) if part), class_="about")
    head = tag("header", tag("h3", tag("bdi", case.id)), about)
    turns = tag("div", *map(_turn, case.turns), class_="turns")
    answers = tag("div", *(_answer(answer, groups, each) for each in case.answers), class_="answers")
    return tag("article", head, turns, answers, class_="case", tabindex=0)


def _turn(turn: Turn) -> Html:
    speaker = tag("h4", tag("bdi", turn.speaker)) if turn.speaker else None
    return tag("div", speaker, shown(turn.text), class_="turn")


def _answer(noun: str, groups: Sequence[str], answer: Answer) -> Html:
    names = _names(groups, answer.groups) if len(groups) > 1 else [tag("span", noun)]
    times = tag("span", f"{answer.times:,} times", class_="times") if answer.times > len(answer.groups) else None
    notes = [*(tag("span", each, class_=mood(each)) for each in answer.tags), tag("span", answer.note)]
    return tag("section", tag("h4", *names, times), shown(answer.text), tag("footer", *notes), class_="answer")


def _names(groups: Sequence[str], numbers: Sequence[int]) -> list[Html]:
    """Of what gave an answer; many are folded away."""
    names = [group(groups[number], number) for number in numbers]
    if len(numbers) <= MOST_NAMES:
        return names
    return [tag("details", tag("summary", f"{len(numbers):,} of {len(groups):,} settings"), *names)]


def group(name: str, number: int) -> Html:
    """The name of an output or a setting, with its colour."""
    return tag("bdi", name, class_=f"group g{number % COLOURS}")


def mood(word: str) -> str:
    """The class of a tag: what went wrong is to be seen."""
    if word in BAD or word.startswith("fails "):
        return "tag bad"
    return "tag fine" if word in GOOD else "tag"


def shown(text: Text) -> Html:
    pieces = (tag("mark", piece, class_=mark) if mark else piece for piece, mark in text.pieces)
    empty = tag("span", "(empty)", class_="more") if not any(piece for piece, _ in text.pieces) else None
    more = tag("span", f" … {text.more:,} more characters", class_="more") if text.more else None
    return tag("p", join(pieces), empty, more, class_="text", dir="auto", lang=text.lang or None)
