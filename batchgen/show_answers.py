"""What `batchgen show` prints: rows with their answers, and the differences of two outputs."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from . import show
from .errors import shown
from .host import terminal, width

if TYPE_CHECKING:
    from .commands.answers import Answer, Item
    from .commands.differences import Comparison, Difference

LONGEST = 2000  # characters of a text that are shown, if not --full
NARROWEST = 20  # columns that a text gets, however narrow the terminal
INDENT = "    "
_COLOURS = {"old": "red", "new": "green"}
_MARKS = {"old": ("[-", "-]"), "new": ("{+", "+}"), "same": ("", "")}  # as `git diff --word-diff` has them


class Page:
    """Lines on stdout: broken to the width of a terminal, and coloured where one may be. full: long texts are whole."""

    def __init__(self, full: bool):
        self._columns = width.of_stdout()
        self._full = full
        self._has_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.rows = 0

    def head(self, text: str) -> None:
        """The line that a row begins with."""
        if self.rows:
            show.echo("")
        self.rows += 1
        show.echo(self._styled(terminal.line(text), bold=True))

    def facts(self, text: str) -> None:
        """A line about the text that follows."""
        self._lines([("fact", text)], "  ")

    def text(self, text: str, label: str = "") -> None:
        """Untrusted text, behind a label. It is set in, so that no line of it passes for one of a row's."""
        self.spans([("same", self._cut(text))], label)

    def spans(self, spans: "Iterable[tuple[str, str]]", label: str = "") -> None:
        self._lines([("fact", label), *spans] if label else spans, INDENT)

    def _cut(self, text: str) -> str:
        if self._full or len(text) <= LONGEST:
            return text
        return f"{text[:LONGEST]}... ({len(text):,} characters in all; --full shows them)"

    def _lines(self, spans: "Iterable[tuple[str, str]]", indent: str) -> None:
        marked = [(kind, self._marked(kind, terminal.lines(text))) for kind, text in spans]
        whole = "".join(text for _, text in marked)
        columns = None if self._columns is None else max(NARROWEST, self._columns - len(indent))
        for begin, end in width.lines(whole, columns):
            show.echo(indent + "".join(self._pieces(marked, begin, end)))

    def _marked(self, kind: str, text: str) -> str:
        before, behind = _MARKS.get(kind, ("", "")) if not self._has_colour else ("", "")
        return f"{before}{text}{behind}"

    def _pieces(self, marked: list[tuple[str, str]], begin: int, end: int) -> Iterator[str]:
        """The part of some spans that stands in a line."""
        place = 0
        for kind, text in marked:
            piece = text[max(0, begin - place) : max(0, end - place)]
            place += len(text)
            if piece:
                yield self._styled(piece, fg=_COLOURS.get(kind), dim=kind == "fact" or None)

    def _styled(self, text: str, **style: Any) -> str:
        return click.style(text, **style) if self._has_colour else text


def items(page: Page, found: "Iterable[Item]", as_json: bool) -> None:
    for seen in found:
        if as_json:
            _as_json(seen.folded)
        else:
            _item(page, seen.folded)
    if not page.rows and not as_json:
        show.say("no such answers")


def _item(page: Page, seen: "Item") -> None:
    tokens = "" if seen.prompt_tokens is None else f", {seen.prompt_tokens:,} prompt tokens"
    unfinished = ", of a shard under way" if seen.unfinished else ""
    page.head(f"row {seen.row:,}, id {seen.id}{tokens}{unfinished}")
    for name, value in seen.columns.items():
        page.text(str(value), label=f"[{terminal.line(name)}] ")
    for turn in seen.conversation:
        page.text(turn.text or "", label=f"{terminal.line(turn.speaker or '')}: ")
    for answer in seen.answers:
        page.facts(_facts(seen, answer))
        if answer.source is not None:
            page.text(answer.source, label="source: ")
        if answer.reasoning:
            page.text(answer.reasoning, label="reasoning: ")
        page.text("(none)" if answer.text is None else answer.text or "(empty)")


def _facts(seen: "Item", answer: "Answer") -> str:
    """A line on how an answer came about."""
    if answer.logprob is not None:
        facts = [f"log likelihood {answer.logprob:,.2f}", f"{answer.tokens or 0:,} tokens"]
        if len(seen.answers) > 1 and answer.logprob == seen.likeliest:
            facts += ["the likeliest", {True: "right", False: "wrong", None: ""}[seen.right]]
        return ", ".join(fact for fact in facts if fact)
    facts = [answer.finish_reason, "" if answer.tokens is None else f"{answer.tokens:,} tokens"]
    facts += [f"{answer.tries:,} tries"] if answer.tries > 1 else []
    facts += [f"fails {', '.join(answer.failed_checks)}"] if answer.failed_checks else []
    return _listed(_which(answer) if len(seen.answers) > 1 or answer.samples != [0] else "", facts)


def _listed(which: str, facts: "Iterable[str]") -> str:
    listed = ", ".join(shown(fact) for fact in facts if fact)
    return f"{shown(which)}: {listed}" if which and listed else shown(which) or listed


def _which(answer: "Answer") -> str:
    """Which of a row's answers it is."""
    if answer.path:
        return answer.path
    if not answer.settings:
        return _numbered("sample", answer.samples) if answer.samples else ""
    if not any(answer.samples):
        return "; ".join(answer.names) or _numbered("setting", answer.settings)
    settings = answer.names or [f"setting {number}" for number in answer.settings]
    return "; ".join(f"{setting}, sample {sample}" for setting, sample in zip(settings, answer.samples, strict=False))


def _numbered(what: str, numbers: list[int]) -> str:
    return f"{what}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def differences(page: Page, found: "Iterable[Difference]", counts: "Comparison", as_json: bool) -> None:
    for seen in found:
        if as_json:
            _as_json(seen)
        else:
            _difference(page, seen)
    if as_json:
        _as_json(counts)
        return
    lacking = [(counts.old, "first"), (counts.new, "second")]
    more = "".join(f", {number:,} only in the {which}" for number, which in lacking if number)
    gap = "\n" if page.rows else ""
    show.say(f"{gap}{counts.same:,} rows are the same, {counts.different:,} differ{more}")


def _difference(page: Page, seen: "Difference") -> None:
    same = f"; {seen.same:,} answers are the same" if seen.same else ""
    page.head(f"row {seen.row:,}, id {seen.id}{same}")
    for change in seen.changes:
        both = [answer for answer in (change.old, change.new) if answer]
        lacks = "" if len(both) > 1 else "only in the first" if change.old else "only in the second"
        which = _which(both[0]) if both[0].samples != [0] or len(seen.changes) + seen.same > 1 else ""
        page.facts(_listed(which, [lacks, " -> ".join(dict.fromkeys(_ends(both)))]))
        if both[0].source is not None:
            page.text(both[0].source, label="source: ")
        page.spans(change.spans)


def _ends(answers: "list[Answer]") -> Iterator[str]:
    """How each came about."""
    for answer in answers:
        is_scored = answer.logprob is not None
        yield f"log likelihood {answer.logprob:,.2f}" if is_scored else f"{answer.finish_reason} {answer.tokens or ''}"


def _as_json(seen: "Item | Difference | Comparison") -> None:
    show.say(terminal.document(msgspec.json.encode(seen, enc_hook=str)))
