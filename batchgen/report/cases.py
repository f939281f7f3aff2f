"""Samples: a row with its prompt and its answers, as the page shows them."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ..host import terminal

Array = Any  # of NumPy

LONGEST_TEXT = 4000  # characters of a text that are shown
LONGEST_NAME = 200  # of an id or a speaker
_JAPANESE = re.compile("[\u3040-\u30ff\uff66-\uff9f]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KOREAN = re.compile("[\u1100-\u11ff\uac00-\ud7af]")

# Pieces of a text, each with how it is marked: "" not at all, "kept" if it is protected and on both sides, else "lost".
Pieces = list[tuple[str, str]]


class Text(msgspec.Struct, frozen=True, omit_defaults=True):
    """lang: what its script says, "" if that says nothing; more: how many characters are left out"""

    pieces: Pieces = msgspec.field(name="p")
    lang: str = msgspec.field(name="l", default="")
    more: int = msgspec.field(name="m", default=0)


class Turn(NamedTuple):
    speaker: str
    text: Text


class Answer(msgspec.Struct, omit_defaults=True):
    """Equal ones of a row are one.

    groups: numbers of the outputs or settings that gave it
    times: how often all of them together did
    tags: what to filter by: how it ended, the checks that it fails
    note: for people: tokens, tries, scores
    """

    text: Text = msgspec.field(name="t")
    groups: list[int] = msgspec.field(name="g")
    times: int = msgspec.field(name="n", default=1)
    tags: list[str] = msgspec.field(name="f", default_factory=list)
    note: str = msgspec.field(name="o", default="")


class Case(msgspec.Struct, omit_defaults=True):
    """A row, or a segment.

    about: more about where it is
    tags: those of its answers, and its own
    bad: how bad the worst of its answers is, for sorting
    length: of its longest answer, for sorting
    rank: in the random sample, from 0; -1 if it was chosen for another reason
    """

    id: str = msgspec.field(name="i")
    row: int = msgspec.field(name="r")
    turns: list[Turn] = msgspec.field(name="q")
    answers: list[Answer] = msgspec.field(name="a")
    about: str = msgspec.field(name="w", default="")
    tags: list[str] = msgspec.field(name="f", default_factory=list)
    bad: int = msgspec.field(name="b", default=0)
    length: int = msgspec.field(name="s", default=0)
    rank: int = msgspec.field(name="k", default=-1)


def text(raw: str | None, lang: str = "") -> Text:
    """What to show of a text from anywhere. lang: of texts in Chinese characters alone"""
    return marked([(raw or "", "")], lang)


def marked(pieces: Iterable[tuple[str, str]], lang: str = "") -> Text:
    whole, room, more = [], LONGEST_TEXT, 0
    for piece, mark in pieces:
        more += max(len(piece) - room, 0)
        if room > 0 and piece:
            whole.append((visible(piece[:room]), mark))
        room -= min(len(piece), room)
    return Text(whole or [("", "")], language("".join(piece for piece, _ in whole), lang), more)


def name(raw: str, most: int = LONGEST_NAME) -> str:
    """What to show on one line, at most so many characters of it."""
    return visible(raw if len(raw) <= most else f"{raw[:most]}...").replace("\n", "\u240a")


def visible(raw: str) -> str:
    """A text whose invisible characters can be seen, and none of which turns the direction of writing around."""
    return terminal.UNSAFE.sub(_sign, raw)


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code == 9:
        return "\t"
    if code < 32:
        return chr(0x2400 + code)
    return "\u2421" if code == 127 else f"⟨U+{code:04X}⟩"


def language(raw: str, chinese: str = "") -> str:
    """The language that a text's script tells, so that its characters get the glyphs of that language. chinese: what
    Chinese characters alone are, Japanese if it is not said"""
    if _JAPANESE.search(raw):
        return "ja"
    if _KOREAN.search(raw):
        return "ko"
    return (chinese or "ja") if _HAN.search(raw) else ""


def folded(answers: Iterable[Answer]) -> list[Answer]:
    """Equal ones once, in the order in which they first come."""
    found: dict[Any, Answer] = {}
    for answer in answers:
        key = (tuple(answer.text.pieces), tuple(answer.tags))
        same = found.setdefault(key, answer)
        if same is not answer:
            same.times += answer.times
            same.groups = sorted({*same.groups, *answer.groups})
            same.note = same.note if answer.note in same.note.split(" / ") else f"{same.note} / {answer.note}"
    return list(found.values())


def digest(raw: str | None) -> int:
    return int.from_bytes(
        hashlib.blake2b((raw or "").encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def digests(texts: Iterable[str | None]) -> Array:
    return np.fromiter(map(digest, texts), np.uint64)
