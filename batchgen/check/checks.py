"""The checks by their names in a job file: each says what is wrong with a response, or nothing.

They cost 0.1 ms a response, and see what shows in the text: of the demo model's wrong answers at temperature 1.5
four in ten. A wrong word is invisible to them.
"""

import json
import math
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

import regex

from ..errors import JobError
from ..job import own_check
from ..job.spec import CheckTable, nearest
from . import languages, loops, numbers, user

COPIED = 20  # characters that make a text its own: shorter ones are often the same in two languages
PATTERN_SECONDS = 1.0  # for a user's pattern and one response
SLACK = 30.0  # characters by which any translation may be longer or shorter
RATIO = 3.0  # of the lengths, in characters of a Latin script
DENSITY = 2.2  # Latin characters that say what one of Chinese, Japanese or Korean says


class Judged(NamedTuple):
    """A response, with what it is held against.

    text: as people read it
    finish_reason: as vLLM gave it
    source: what it answers: the last utterance ahead of it, or the text to translate
    row: the input record
    mean_logprob: of its tokens, before sampling changed anything; None if that is not known
    """

    text: str
    finish_reason: str
    source: str
    row: dict[str, Any]
    mean_logprob: float | None = None


class Languages(NamedTuple):
    """Codes by ISO 639-1; empty where they are not known."""

    source: str
    response: str


Check = Callable[[Judged], str | None]


def _empty(answer: Judged) -> str | None:
    return None if answer.text.strip() else "there is no text"


def _truncated(answer: Judged) -> str | None:
    return "it was cut at max_tokens or the context" if answer.finish_reason == "length" else None


def _repetition(answer: Judged) -> str | None:
    if answer.finish_reason == "repetition":
        return "it went round in circles"
    if (unit := loops.longest_loop(answer.text)) is None or unit in (loops.longest_loop(answer.source) or ""):
        return None
    return f"{unit!r} is there over and over"


def _copy(answer: Judged) -> str | None:
    text, source = _folded(answer.text), _folded(answer.source)
    if len(source) < COPIED:
        return None
    return "it is a copy of what was asked" if source in text and len(text) < 2 * len(source) else None


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _json(answer: Judged) -> str | None:
    try:
        json.loads(answer.text)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"
    return None


def _language(known: Languages) -> Check:
    if not known.response:
        raise JobError(
            "[check] checks: language: which one is not said: set [check] language, to ja or en for instance"
        )
    if known.source:
        languages.require_identifier(known.response, known.source)
    return lambda answer: languages.not_in(known.response, answer.text, answer.source, known.source)


def _length(known: Languages) -> Check:
    def check(answer: Judged) -> str | None:
        size, source = _size(answer.text), _size(answer.source)
        if size > RATIO * source + SLACK:
            return f"it is {size / max(source, 1):.1f} times as long as what was asked"
        if size * RATIO + SLACK < source:
            return f"what was asked is {source / max(size, 1):.1f} times as long"
        return None

    return check


def _size(text: str) -> float:
    """Of a text, in characters of a Latin script."""
    if text.isascii():
        return len(text.strip())
    return sum(DENSITY if unicodedata.east_asian_width(sign) in "WF" else 1.0 for sign in text.strip())


def _numbers(known: Languages) -> Check:
    return lambda answer: numbers.mismatch(answer.source, known.source, answer.text, known.response)


PLAIN: dict[str, Check] = {
    "empty": _empty,
    "truncated": _truncated,
    "repetition": _repetition,
    "copy": _copy,
    "json": _json,
}
OF_LANGUAGES: dict[str, Callable[[Languages], Check]] = {
    "language": _language,
    "length": _length,
    "numbers": _numbers,
}
REGEX, FORBIDDEN, LOGPROB = "regex:", "forbidden:", "logprob:"
NAMES = (*PLAIN, *OF_LANGUAGES)


def checks_of(table: CheckTable) -> dict[str, Check]:
    """The checks of a job by name, in its order. A user's own file is read, not run: see user.load. Raises JobError."""
    keys = ("source_language", "language")
    known = Languages(*(languages.asked(f"[check] {key}", getattr(table, key)) for key in keys))
    return {name: _check(name, known) for name in table.checks}


def _check(name: str, known: Languages) -> Check:
    if name in PLAIN:
        return PLAIN[name]
    if name in OF_LANGUAGES:
        return OF_LANGUAGES[name](known)
    if name.startswith((REGEX, FORBIDDEN)):
        return _pattern(name)
    if name.startswith(LOGPROB):
        return _logprob(name)
    if own := own_check.parse(name):
        return user.load(own)
    raise JobError(
        f"[check] checks: {name!r} is none{nearest(name, NAMES)}; further ones are {REGEX}PATTERN, {FORBIDDEN}PATTERN, "
        f"{LOGPROB}NUMBER and FILE.py:FUNCTION"
    )


def _pattern(name: str) -> Check:
    kind, _, text = name.partition(":")
    try:
        pattern = regex.compile(text)
    except (regex.error, OverflowError) as error:
        raise JobError(f"[check] checks: {name!r}: {error}") from None

    def check(answer: Judged) -> str | None:
        try:
            found = pattern.search(answer.text, timeout=PATTERN_SECONDS)
        except TimeoutError:
            return f"{text!r} took longer than {PATTERN_SECONDS:g} s"
        if kind == "regex":
            return None if found else f"{text!r} is not in it"
        return f"{found[0]!r} is in it" if found else None

    return check


def _logprob(name: str) -> Check:
    try:
        least = float(name.removeprefix(LOGPROB))
    except ValueError:
        least = math.nan
    if not least < 0:
        raise JobError(f"[check] checks: {name!r}: write a number below 0, as in {LOGPROB}-0.2")

    def check(answer: Judged) -> str | None:
        mean = answer.mean_logprob
        return f"the model is unsure of it: {mean:.2f} a token" if mean is not None and mean < least else None

    return check


def failed(checks: dict[str, Check], answer: Judged) -> list[str]:
    """The names of the checks that find something wrong. Raises Reject(check_error) where a user's own fails."""
    return [name for name, check in checks.items() if check(answer)]
