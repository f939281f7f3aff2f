"""Spans that a translation has to leave as they are: code, URLs, placeholders, markup, and what a user's pattern finds.

There are two ways: `mask` writes marks in their place, which the model has to keep; `split` cuts the text around them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, islice, product
from typing import NamedTuple

import regex

from ..errors import JobError, Reject
from ..job.spec import nearest
from .blocks import blocks
from .pieces import Gap, Literal, Piece, Segment, has_letters, tidy

PATTERN_SECONDS = 1.0  # for a user's pattern and one text
REGEX = "regex:"
MOST_TAGS = 8  # at each end of a text that are tried as literals

# Scripts that write no spaces: a URL ends where one of them begins.
_CJK = "\u0e00-\u0eff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
_CODE = re.compile(
    r"(?<!`)(?P<ticks>`++)[^\n]+?(?<!`)(?P=ticks)(?!`)"
    # As Pandoc has it: no space inside of the dollars, no digit behind them; "$5 for one, 10$ for two" is money.
    r"|(?<![\\$\w])\$(?![\s$])(?![\d.,]+\s+[^\W\d_]{2})[^$\n]{1,300}?(?<![\s\\])\$(?![\d$])"
    r"|\$\$[^$]{1,2000}\$\$"
    r"|\\\([^\n]{1,500}?\\\)|\\\[[^\n]{1,500}?\\\]"
)
_URL = re.compile(
    rf"(?<![A-Za-z0-9.])(?:(?:https?|ftp)://|www\.)(?=[^\W_]|\[)[^\s<>\"`|\\^\u2010-\u206f{_CJK}]+"
    r"|(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+(?<!-)",
    re.IGNORECASE,
)
_AFTER_URL = ".,;:!?'\"*_~"
_PAIRS = {")": "(", "]": "[", "}": "{"}
_PLACEHOLDER = re.compile(
    r"\{\{[^{}\n]{1,80}\}\}|\$\{[^{}\n]{1,80}\}|\{(?:[A-Za-z_][\w.\[\]-]{0,60}|\d{0,3})(?:![rsa])?(?::[^{}\s]{0,20})?\}"
    r"|(?<![\w%])%(?:\([A-Za-z_]\w{0,60}\)|\d{1,2}\$)?[-+#0]?\d{0,3}(?:\.\d{1,3})?[sdiufFeEgGxXocr@](?![A-Za-z0-9_])",
    re.ASCII,
)
_MARKUP = re.compile(
    r"<!--.{0,2000}?-->|<(?P<close>/?)(?P<name>[A-Za-z][A-Za-z0-9:_-]{0,40})(?:\s[^<>]{0,2000})?/?>|<\|[^|<>\n]{1,40}\|>"
    r"|&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});",
    re.DOTALL,
)
_VOID = set("br hr img input meta link wbr source area base col embed param track".split())

# How the mark of a number is written, and how models write it back. What a text has itself is not used in it.
_STYLES = {
    "[{}]": re.compile(r"[\[［【〔]\s?(\d{1,6})\s?[\]］】〕]"),
    "⟦{}⟧": re.compile(r"[⟦〚]\s?(\d{1,6})\s?[⟧〛]"),
    "<{}>": re.compile(r"[<＜〈]\s?(\d{1,6})\s?[>＞〉]"),
    "#{}#": re.compile(r"[#＃](\d{1,6})[#＃]"),
}

# A span at the edge of a text is apart from it if such signs are between them.
_APART_BEHIND = re.compile(r"\s*(?:[:：|–—―=]+|-(?=\s))\s*|[ \t\r]*\n\s*")
_APART_BEFORE = ":：|–—―=.。!！?？"
_PUNCTUATION = re.compile(r"[\s.,;:!?、。，．：；！？)\]）」』]*")


class Span(NamedTuple):
    """begin, end: offsets into the text."""

    begin: int
    end: int
    kind: str


@dataclass(frozen=True)
class Masked:
    """A text with marks in the place of what is protected.

    Attributes:
        text: with the marks.
        marks: as they stand there, in order.
        originals: what they stand for.
        numbers: of the marks.
        style: a format with a place for the number.
    """

    text: str
    marks: tuple[str, ...]
    originals: tuple[str, ...]
    numbers: tuple[int, ...]
    style: str


class Protect:
    """What is protected in a job.

    Attributes:
        kinds: as the job file has them.
        code: whether code is among them.
    """

    def __init__(self, kinds: Sequence[str]):
        """Raises JobError for a kind that there is none of, or a pattern that is none."""
        self.kinds = tuple(kinds)
        self.code = "code" in self.kinds
        self._finders = [(kind, _FINDERS[kind] if kind in _FINDERS else _pattern(kind)) for kind in self.kinds]

    def spans(self, text: str) -> list[Span]:
        """Where the protected spans are, in order and without overlaps: of two, the longer one is taken.

        Raises:
            Reject: too_costly: a user's pattern takes too long.
        """
        found = [Span(*place, kind) for kind, finder in self._finders for place in finder(text)]
        if len(found) < 2:
            return found
        found.sort(key=lambda span: (span.begin, -span.end))
        kept: list[Span] = []
        for span in found:
            if not kept or span.begin >= kept[-1].end:
                kept.append(span)
            elif span.end - span.begin > kept[-1].end - kept[-1].begin:
                kept[-1] = span
        return kept

    def core(self, text: str) -> tuple[int, int]:
        """Begin and end of what has to be translated of a text without white space at its edges.

        Spans at the edges are left out where they stand apart from the sentence: "Source: https://...", "<p>...</p>".
        (0, 0) if there are no letters but in spans.
        """
        spans = self.spans(text)
        if not spans:
            return (0, len(text)) if has_letters(text) else (0, 0)
        if not any(has_letters(between) for between, _ in _around(text, spans)):
            return 0, 0
        heads, tails = _heads(text, spans), _tails(text, spans)
        for begin, end in product(range(len(heads) - 1, -1, -1), range(len(tails) - 1, -1, -1)):
            if _balanced(text, spans[begin : len(spans) - end]):
                return heads[begin], tails[end]
        return 0, len(text)

    def mask(self, text: str) -> Masked | None:
        """The text with a mark in the place of each span; None if there is none."""
        spans = self.spans(text)
        if not spans:
            return None
        style, taken = _free_style(text)
        numbers = tuple(islice((number for number in count(1) if number not in taken), len(spans)))
        marks = tuple(style.format(number) for number in numbers)
        betweens = [between for between, _ in _around(text, spans)]
        masked = "".join(part for pair in zip(betweens, (*marks, ""), strict=True) for part in pair)
        return Masked(masked, marks, tuple(text[span.begin : span.end] for span in spans), numbers, style)

    def split(self, text: str) -> list[Piece]:
        """The text cut around the spans, which are literals with the white space and punctuation around them."""
        pieces: list[Piece] = []
        before: Span | None = None
        for between, behind in _around(text, self.spans(text)):
            pieces += _between(between, before, behind)
            if behind:
                pieces.append(Literal(text[behind.begin : behind.end]))
            before = behind
        return tidy(pieces)


def restore(answer: str, masked: Masked) -> str | None:
    """The answer with the originals; None if a mark is not there exactly once, or one is there that was not given."""
    originals = dict(zip(masked.numbers, masked.originals, strict=True))
    pattern = _STYLES[masked.style]
    own = {int(mark[1]) for mark in pattern.finditer(masked.text)} - originals.keys()  # of the text itself
    found = Counter(int(mark[1]) for mark in pattern.finditer(answer))
    if any(found[number] != 1 for number in originals) or not found.keys() <= originals.keys() | own:
        return None
    return pattern.sub(lambda mark: originals.get(int(mark[1]), mark[0]), answer)


def _free_style(text: str) -> tuple[str, set[int]]:
    """A style of which the text has no mark; else the first one, with the numbers that the text has."""
    for style, pattern in _STYLES.items():
        if not pattern.search(text):
            return style, set()
    style, pattern = next(iter(_STYLES.items()))
    return style, {int(mark[1]) for mark in pattern.finditer(text)}


def _around(text: str, spans: Sequence[Span]) -> Iterable[tuple[str, Span | None]]:
    """What stands before each span, with it; finally what stands behind the last, with None."""
    begin = 0
    for span in spans:
        yield text[begin : span.begin], span
        begin = span.end
    yield text[begin:], None


def _between(text: str, before: Span | None, behind: Span | None) -> list[Piece]:
    """The pieces of what stands between two spans."""
    if not has_letters(text):
        return [Literal(text)]
    begin = _PUNCTUATION.match(text).end() if before else len(text) - len(text.lstrip())  # type: ignore[union-attr]
    end = len(text.rstrip())
    pieces: list[Piece] = [Literal(text[:begin]), Segment(text[begin:end]), Literal(text[end:])]
    if before and before.kind != "markup" and begin == 0 and text[0].isalnum():
        pieces.insert(0, Gap(""))  # a language with spaces has one there
    if behind and behind.kind != "markup" and end == len(text) and text[-1].isalnum():
        pieces.append(Gap(""))
    return pieces


def _heads(text: str, spans: Sequence[Span]) -> list[int]:
    """Where the text begins without its first 0, 1, 2... spans, as far as they stand apart."""
    begins = [0]
    for span in spans[:MOST_TAGS]:
        if span.begin != begins[-1]:
            break
        apart = _APART_BEHIND.match(text, span.end)
        if not apart and span.kind != "markup":
            break
        begins.append(apart.end() if apart else _skip_blanks(text, span.end))
    return begins


def _tails(text: str, spans: Sequence[Span]) -> list[int]:
    """Where the text ends without its last 0, 1, 2... spans, as far as they stand apart."""
    ends = [len(text)]
    for span in reversed(spans[-MOST_TAGS:]):
        before = text[: span.begin].rstrip()
        if span.end != ends[-1] or not (span.kind == "markup" or _ends_apart(before, text[len(before) : span.begin])):
            break
        ends.append(len(before))
    return ends


def _ends_apart(text: str, blanks: str) -> bool:
    """Whether what stands behind a text and some blanks is apart from it."""
    is_dash = text.endswith("-") and text[-2:-1].isspace()
    return is_dash or "\n" in blanks or text.endswith(tuple(_APART_BEFORE))


def _skip_blanks(text: str, position: int) -> int:
    return len(text) - len(text[position:].lstrip())


def _balanced(text: str, spans: Iterable[Span]) -> bool:
    """Whether each tag that is closed was opened before, and each that is opened is closed."""
    opened: Counter[str] = Counter()
    for span in spans:
        tag = _MARKUP.match(text, span.begin, span.end) if span.kind == "markup" else None
        if tag and tag["name"] and tag["name"].lower() not in _VOID and not tag[0].endswith("/>"):
            opened[tag["name"].lower()] += -1 if tag["close"] else 1
            if opened[tag["name"].lower()] < 0:
                return False
    return not any(opened.values())


Finder = Callable[[str], Iterable[tuple[int, int]]]


def _code(text: str) -> Iterable[tuple[int, int]]:
    yield from blocks(text, code=True)
    if "`" in text or "$" in text or "\\" in text:
        yield from (found.span() for found in _CODE.finditer(text))


def _urls(text: str) -> Iterable[tuple[int, int]]:
    if "://" in text or "@" in text or "www." in text.lower():
        for found in _URL.finditer(text):
            yield found.start(), found.start() + len(_without_punctuation(found[0]))


def _without_punctuation(url: str) -> str:
    """A URL without what belongs to the sentence: "(see https://en.wikipedia.org/wiki/Set_(mathematics))."."""
    excess = {close: url.count(close) - url.count(opened) for close, opened in _PAIRS.items() if close in url}
    end = len(url)
    while url[end - 1] in _AFTER_URL or excess.get(url[end - 1], 0) > 0:
        end -= 1
        if url[end] in excess:
            excess[url[end]] -= 1
    return url[:end]


def _placeholders(text: str) -> Iterable[tuple[int, int]]:
    if "{" in text or "%" in text:
        yield from (found.span() for found in _PLACEHOLDER.finditer(text))


def _markup(text: str) -> Iterable[tuple[int, int]]:
    if "<" in text or "&" in text:
        yield from (found.span() for found in _MARKUP.finditer(text))


_FINDERS: dict[str, Finder] = {"code": _code, "url": _urls, "placeholder": _placeholders, "markup": _markup}
NAMES = tuple(_FINDERS)


def _pattern(kind: str) -> Finder:
    if not kind.startswith(REGEX):
        raise JobError(f"[translate] protect: {kind!r} is none{nearest(kind, NAMES)}; further ones are {REGEX}PATTERN")
    try:
        pattern = regex.compile(kind.removeprefix(REGEX))
    except (regex.error, OverflowError) as error:
        raise JobError(f"[translate] protect: {kind!r}: {error}") from None

    def find(text: str) -> list[tuple[int, int]]:
        try:
            return [found.span() for found in pattern.finditer(text, timeout=PATTERN_SECONDS) if found[0]]
        except TimeoutError:
            raise Reject(
                "too_costly", f"[translate] protect: {kind!r:.100} took longer than {PATTERN_SECONDS:g} s"
            ) from None

    return find
