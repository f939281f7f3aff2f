"""Texts to pieces: what is translated, at most so many tokens of it at a time, and what goes through as it is.

A text is cut at its lines first, which are its paragraphs, and the marks of lists, quotes, headings and tables stay
where they are. Where a paragraph is too long it is cut at sentences, these at commas, and what is left at white space.
"""

import re
import typing
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise

from ..input import transcripts
from ..prompt import graphemes
from .blocks import blocks
from .pieces import Gap, Literal, Piece, Segment, has_letters, tidy, without_edges
from .protect import Protect
from .sentences import sentences

Unit = typing.Literal["whole", "paragraph", "sentence"]

# Languages whose sentences have no space between them. (Thai has none between words, but between sentences.)
UNSPACED = {"ja", "zh", "yue"}
CHARACTERS_A_TOKEN = 8  # more than are in one on average: a longer text is tried by such a prefix first

_MARKER = re.compile(
    r"\s*+(?:(?:>+|#{1,6}(?=\s)|[-*+•◦‣–](?=\s)|[・※●○■□◆◇▪]|\(?\d{1,3}[.)](?=\s)|\[[ xX]\](?=\s)|[①-⑳])\s*+)*+"
)
_TABLE_RULE = re.compile(r"[ \t>]*+\|?(?:[ \t]*+:?-+:?[ \t]*+\|)*+[ \t]*+:?-+:?[ \t]*+\|?\s*", re.ASCII)
_CELL_END = re.compile(r"(?<!\\)\|")
_CLAUSE_END = re.compile(r"[、，；。！？]+[」』）]*|[,;](?=\s)")
_BLANK = re.compile(r"\s")


@dataclass(frozen=True)
class Rule:
    """How texts are cut.

    Attributes:
        unit: what a segment is.
        max_tokens: of a segment.
        count: the tokens of a text, by the model's own tokenizer.
        language: of the texts, by ISO 639-1; may be "".
        protect: spans that are never cut.
    """

    unit: Unit
    max_tokens: int
    count: Callable[[str], int]
    language: str = ""
    protect: Protect = field(default_factory=lambda: Protect([]))

    def fits(self, text: str) -> bool:
        """Whether a text has no more than max_tokens. It is counted only where its length does not tell."""
        if _most_tokens(text) <= self.max_tokens:
            return True
        prefix = text[: CHARACTERS_A_TOKEN * self.max_tokens]
        return self.count(prefix) <= self.max_tokens and (
            len(prefix) == len(text) or self.count(text) <= self.max_tokens
        )


def _most_tokens(text: str) -> int:
    """At most one a byte, and the space that some tokenizers put in front. Normalisation may make bytes more."""
    if text.isascii():
        return len(text) + 1
    normal = unicodedata.normalize("NFKC", text) if len(text) < 4096 else text
    return max(len(t.encode("utf-8", "surrogatepass")) for t in (text, normal)) + 1


def pieces(text: str, rule: Rule) -> list[Piece]:
    """The pieces of a text, which are the text when joined.

    Raises:
        JobError: sentencex is needed and not installed.
        Reject: too_costly: a user's pattern takes too long.
    """
    turns = transcripts.turn_spans(text)
    if turns is None:
        return tidy([*_text(text, rule)])
    found: list[Piece] = []
    position = 0
    for begin, end in turns:
        found += [Literal(text[position:begin]), *_text(text[begin:end], rule)]
        position = end
    return tidy([*found, Literal(text[position:])])


def joined(pieces: Sequence[Piece], answers: Sequence[str], source: str, target: str) -> str:
    """The text with an answer in the place of each segment, without the white space at its edges.

    Args:
        pieces: of one text.
        answers: as many as there are segments, in order.
        source, target: languages by ISO 639-1; whether sentences have a space between them follows the target's rule.

    Raises:
        ValueError: there are more or fewer answers than segments.
    """
    segments = sum(isinstance(piece, Segment) for piece in pieces)
    if segments != len(answers):
        raise ValueError(f"{len(answers)} answers for {segments} segments")
    given = iter(answers)
    spaced, spaces = source not in UNSPACED, target not in UNSPACED
    parts = []
    for piece in pieces:
        if isinstance(piece, Segment):
            parts.append(next(given).strip())
        elif isinstance(piece, Gap) and spaced != spaces and not _has_line_end(piece.text):
            parts.append(" " if spaces else "")
        else:
            parts.append(piece.text)
    return "".join(parts)


def _has_line_end(text: str) -> bool:
    return any(line != text for line in text.splitlines())


def _text(text: str, rule: Rule) -> Iterator[Piece]:
    """The pieces of a text, or of a turn of a transcript."""
    if rule.unit == "whole":
        before, core, behind = without_edges(text)
        if rule.fits(core):
            yield from (Literal(before), *_segment(core, rule), Literal(behind))
            return
    position = 0
    for begin, end in blocks(text, rule.protect.code):
        yield from _lines(text[position:begin], rule)
        yield Literal(text[begin:end])
        position = end
    yield from _lines(text[position:], rule)


def _lines(text: str, rule: Rule) -> Iterator[Piece]:
    lines = text.splitlines(keepends=True)
    rows = _table_rows(lines) if "|" in text else set()
    for number, line in enumerate(lines):
        marker = _MARKER.match(line)
        behind = marker.end() if marker else 0
        yield Literal(line[:behind])
        yield from (_row if number in rows else _paragraph)(line[behind:], rule)


def _table_rows(lines: list[str]) -> set[int]:
    """The lines that are rows of tables: between bars, or about the rule below a table's heading."""
    rows = set()
    for number, line in enumerate(lines):
        if line.lstrip(" \t>").startswith("|") and line.count("|") > 1:
            rows.add(number)
        elif "|" in line and _TABLE_RULE.fullmatch(line) and number and "|" in lines[number - 1]:
            rows |= {number - 1, number}
        elif "|" in line and number and number - 1 in rows and not lines[number - 1].lstrip(" \t>").startswith("|"):
            rows.add(number)
    return rows


def _row(line: str, rule: Rule) -> Iterator[Piece]:
    position = 0
    for bar in _CELL_END.finditer(line):
        yield from (*_paragraph(line[position : bar.start()], rule), Literal(bar[0]))
        position = bar.end()
    yield from _paragraph(line[position:], rule)


def _paragraph(text: str, rule: Rule) -> Iterator[Piece]:
    before, core, behind = without_edges(text)
    yield Literal(before)
    if not has_letters(core):
        yield Literal(core)
    elif rule.unit != "sentence" and rule.fits(core):
        yield from _segment(core, rule)
    else:
        yield from _sentences(core, rule)
    yield Literal(behind)


def _segment(text: str, rule: Rule, cut: bool = False) -> Iterator[Piece]:
    """A segment, with what of its edges is no part of the sentence as literals."""
    begin, end = rule.protect.core(text) if text else (0, 0)
    if begin == end:
        yield Literal(text)
    else:
        yield from (Literal(text[:begin]), Segment(text[begin:end], cut), Literal(text[end:]))


Place = tuple[int, int]


def _sentences(text: str, rule: Rule) -> Iterator[Piece]:
    ends = list(accumulate(map(len, sentences(text, rule.language, [span[:2] for span in rule.protect.spans(text)]))))
    places = _places(text, ends)
    yield from _spread(text, places if rule.unit == "sentence" else _packed(text, places, rule), rule, _clauses)


def _clauses(text: str, rule: Rule) -> Iterator[Piece]:
    """The pieces of a sentence that is too long."""
    spans = rule.protect.spans(text)
    ends = [end for end in (found.end() for found in _CLAUSE_END.finditer(text)) if not _inside(end, spans)]
    yield from _spread(text, _packed(text, _places(text, ends), rule), rule, _stretches, cut=True)


def _stretches(text: str, rule: Rule) -> Iterator[Piece]:
    """The pieces of a clause that is too long."""
    yield from _spread(text, _places(text, _cuts(text, rule)), rule, partial(_segment, cut=True), cut=True)


def _spread(
    text: str,
    places: Iterable[Place],
    rule: Rule,
    finer: Callable[[str, Rule], Iterator[Piece]],
    cut: bool = False,
) -> Iterator[Piece]:
    """Segments with gaps between them; `finer` cuts one that does not fit."""
    end = None
    for begin, stop in places:
        if end is not None:
            yield Gap(text[end:begin])
        part = text[begin:stop]
        yield from _segment(part, rule, cut) if rule.fits(part) else finer(part, rule)
        end = stop


def _places(text: str, ends: Sequence[int]) -> list[Place]:
    """Begin and end of the parts that end there, without the white space at their edges. Blank ones are none."""
    places = []
    for begin, end in pairwise([0, *ends, len(text)]):
        before, core, _ = without_edges(text[begin:end])
        if core:
            places.append((begin + len(before), begin + len(before) + len(core)))
    return places


def _packed(text: str, places: Sequence[Place], rule: Rule) -> Iterator[Place]:
    """As many neighbours together as fit."""
    sizes = [max(1, rule.count(text[begin:end])) for begin, end in places]

    def too_long(last: int) -> bool:
        return not rule.fits(text[places[first][0] : places[last][1]])

    first = 0
    while first < len(places):
        last, total = first, sizes[first]
        while last + 1 < len(places) and total + sizes[last + 1] <= rule.max_tokens:
            last += 1
            total += sizes[last]
        if last > first and too_long(last):  # a sum is near, not exact
            last = first + bisect_left(range(first + 1, last), True, key=too_long)
        yield places[first][0], places[last][1]
        first = last + 1


def _cuts(text: str, rule: Rule) -> list[int]:
    """Where a text without commas is cut: at white space, else between characters, never inside a protected span."""
    spans = rule.protect.spans(text)
    cuts = []
    begin = 0
    while (end := _fitting(text, begin, rule)) < len(text):
        end = _good_end(text, begin, end)
        if inside := _inside(end, spans):
            end = inside[0] if inside[0] > begin else inside[1]
        cuts.append(end)
        begin = end
    return cuts


def _fitting(text: str, begin: int, rule: Rule) -> int:
    """The end of the longest part that fits, or of one character."""
    lengths = range(1, min(len(text) - begin, CHARACTERS_A_TOKEN * rule.max_tokens) + 1)
    fitting = bisect_right(lengths, rule.max_tokens, key=lambda length: rule.count(text[begin : begin + length]))
    return begin + max(fitting, 1)


def _good_end(text: str, begin: int, end: int) -> int:
    """The last white space, unless that is in the first half; else the end of a character as people see it."""
    for position in range(end, (begin + end) // 2, -1):
        if _BLANK.match(text, position):
            return position
    whole = begin
    for boundary in graphemes.boundaries(text, max(begin + 1, end - 16)):
        if boundary > end and whole > begin:
            break
        whole = boundary
        if boundary >= end:
            break
    return whole


def _inside(position: int, spans: Sequence[tuple[int, int, str]]) -> tuple[int, int] | None:
    """The span that a cut there would split."""
    at = bisect_right(spans, position, key=lambda span: span[0]) - 1
    if at >= 0 and spans[at][0] < position < spans[at][1]:
        return spans[at][0], spans[at][1]
    return None
