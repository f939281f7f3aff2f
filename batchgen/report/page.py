"""The page: what was counted and chosen, as one HTML file."""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

import msgspec

from .. import __version__
from ..host import terminal
from . import about, charts, compared, figures, samples, svg
from .cases import Case, name
from .choice import Choice
from .compared import Compared
from .markup import Html, Part, table, tag
from .outcome import Outcome, RejectExample

GENERATOR = "batchgen report"
POLICY = "default-src 'none'; style-src {style}; script-src {script}; base-uri 'none'; form-action 'none'"
HOLDS = (
    "This page holds texts that the job read and wrote: share it only where you would share those. "
    f"It loads nothing from elsewhere. Made by batchgen {__version__}."
)


@dataclass(frozen=True)
class Report:
    """groups: names of what gave the answers: outputs, or settings of a sweep; compared: such settings"""

    outs: Sequence[Outcome]
    choice: Choice
    cases: Sequence[Case]
    groups: Sequence[str]
    compared: Compared | None = None

    @property
    def answer(self) -> str:
        return self.outs[0].kind.answer


def page(report: Report) -> bytes:
    style, script = _resource("page.css"), _resource("page.js")
    data, kept = samples.packed(report.answer, report.groups, report.cases)
    title = " · ".join(out.name for out in report.outs)
    policy = POLICY.format(style=_hash(style), script=_hash(script))
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        *(tag("meta", name=each, content=content) for each, content in _METAS.items()),
        tag("title", f"{title} – batchgen"),
        tag("style", Html(style)),
    ]
    body = [
        _header(report, title),
        tag("main", *_sections(report, report.cases[:kept])),
        _footer(len(report.cases) - kept),
        tag("script", Html(data), type="application/gzip", id="data"),
        tag("script", Html(script)),
    ]
    whole = tag("html", tag("head", *head), "\n", tag("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n".encode()


_METAS = {
    "generator": GENERATOR,
    "viewport": "width=device-width, initial-scale=1",
    "referrer": "no-referrer",
    "color-scheme": "light dark",
}


def is_page(begin: bytes) -> bool:
    """Whether a file that begins so is a page of ours."""
    return begin.startswith(b"<!DOCTYPE html>") and f'name="generator" content="{GENERATOR}"'.encode() in begin


def _resource(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- what it begins and ends with


def _header(report: Report, title: str) -> Html:
    several = len(report.outs) > 1
    lines = (tag("p", f"{out.name}: " if several else "", *_lead(out), class_="lead") for out in report.outs)
    missing = (tag("p", _unfinished(out), class_="warning", role="note") for out in report.outs if out.missing)
    return tag("header", tag("p", GENERATOR, class_="kind"), tag("h1", tag("bdi", title)), *lines, *missing)


def _lead(out: Outcome) -> Iterator[Part]:
    stated = {key: value for key, value in out.record.results["sampling"].items() if isinstance(value, int | float)}
    sampling = ", ".join(f"{key} {svg.number(value)}" for key, value in stated.items())
    yield f"{out.counts.rows - out.counts.rejected:,} of {out.rows_in_all:,} rows {out.kind.done}"
    yield from (" by ", tag("code", name(about.model_of(out.made).name))) if out.made else ()
    yield f", with {sampling}." if sampling else "."


def _unfinished(out: Outcome) -> str:
    shards = f"{out.missing:,} of its {len(out.record.plan.shards):,} shards are missing"
    return f"{out.name} is not finished: {shards}. This page is about those that are there."


def _footer(left_out: int) -> Html:
    more = f"To keep the page small, {left_out:,} further samples were left out." if left_out else None
    return tag("footer", tag("p", HOLDS), tag("p", more) if more else None)


# --- what is between


def _sections(report: Report, cases: Sequence[Case]) -> Iterator[Html]:
    outs = report.outs
    measured = _settings(report.compared) if report.compared else ()
    if len(outs) == 1:
        yield from measured
        yield figures.tiles(outs[0])
    else:
        yield _section("figures", "Side by side", _agreement(report.choice, outs), figures.side_by_side(outs))
        yield from measured
    for id, title, drawn in (
        ("ends", "Outcomes", charts.endings(outs)),
        ("lengths", "Lengths", charts.lengths(outs)),
        ("along", "Along the input", charts.along(outs)),
    ):
        if some := list(drawn):
            yield _section(id, title, tag("div", *some, class_="charts"))
    for at, out in enumerate(outs):
        if out.rejects:
            title = f"Rejected rows of {out.name}" if len(outs) > 1 else "Rejected rows"
            yield _section(f"rejects{at or ''}", title, _rejects(out))
    yield _section("job", "The job", *(_job(out, out.name if len(outs) > 1 else "What made it") for out in outs))
    yield _section("samples", "Samples", *_samples(report, cases))


def _settings(found: Compared) -> Iterator[Html]:
    summary = found.summary
    yield _section("settings", "Compared", *compared.summarized(found))
    first = compared.decisive(summary)
    for metric in [first, *(each for each in summary.metrics if each is not first)][: compared.MOST_METRICS]:
        drawn = [*compared.curves(summary, metric), *(compared.maps(summary, metric) if metric is first else ())]
        charts_of = tag("div", *drawn, class_="charts")
        title = f"{name(metric.name)} by parameter"
        if drawn and metric is first:
            yield _section("parameters", title, tag("p", _READING, class_="quiet"), charts_of)
        elif drawn:
            yield tag("details", tag("summary", title), charts_of)


_READING = (
    "A faint line is one combination of the other parameters; the strong one is their mean, with the mean of their "
    "intervals as its band. In a map a stronger colour is better."
)


def _section(id: str, title: str, *parts: Part) -> Html:
    return tag("section", tag("h2", title), *parts, id=id)


def _agreement(choice: Choice, outs: Sequence[Outcome]) -> Html:
    """How many rows have the same answers in all outputs."""
    case = outs[0].kind.case
    if not choice.common:
        return tag("p", f"No {case} is in all of them, so no answers can be compared.")
    of = f"{choice.common:,} {case}s that all of them have"
    of = f"a random sample of {of}" if choice.is_sampled else of
    said = f"{choice.equal:,} of {of} ({figures.percent(choice.equal, choice.common)}) have the same answers in each."
    share = choice.equal / choice.common
    bar = svg.bar([(share, "cfine", "the same"), (1 - share, "rest", f"{choice.common - choice.equal:,} differ")])
    return tag("div", tag("p", said), Html(bar), class_="onebar")


def _rejects(out: Outcome) -> Html:
    rows = (
        [
            tag("th", each.reason, scope="row"),
            tag("td", f"{each.number:,}", class_="number"),
            tag("td", *map(_example, each.examples)),
        ]
        for each in out.rejects
    )
    return table(["reason", "rows", "what is wrong with the first ones, and where"], rows, class_="rejects")


def _example(example: RejectExample) -> Html:
    places = tag("p", ", ".join(example.places), class_="place")
    raw = tag("p", tag("code", example.raw, dir="auto")) if example.raw else None
    return tag("div", tag("p", example.detail, dir="auto"), places, raw, class_="example")


def _job(out: Outcome, title: str) -> Html:
    facts = [*about.facts(out.record, out.counts, out.made, out.missing), *_input(out)]
    listed = (
        part
        for fact in facts
        for part in (tag("dt", name(fact.name)), tag("dd", tag("code" if fact.is_code else "span", name(fact.value))))
    )
    tables = msgspec.json.format(msgspec.json.encode(about.parameters(out.record)), indent=1)
    note = tag("p", "Parameters of the job; a row may have had its own:", class_="quiet")
    parameters = tag("pre", terminal.document(tables), tabindex=0)
    return tag("details", tag("summary", tag("bdi", title)), tag("dl", *listed, class_="facts"), note, parameters)


def _input(out: Outcome) -> Iterator[about.Fact]:
    plan = out.record.plan
    kinds = Counter(f"{file.kind} {file.compression}".strip() for file in plan.files)
    listed = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())
    yield about.Fact("input", f"{sum(file.rows for file in plan.files):,} rows; files: {listed}")
    yield about.Fact("shards", f"{len(out.shards):,} of {len(plan.shards):,}")


def _samples(report: Report, cases: Sequence[Case]) -> Iterator[Html]:
    if not cases:
        yield tag("p", "There are none yet.")
        return
    first = samples.first(report.answer, report.groups, cases)
    yield tag("p", _chosen(report, cases), class_="quiet")
    if len(cases) > len(first):
        yield tag("noscript", tag("p", f"Without its script the page shows {len(first):,} of them."))
    yield tag("div", id="tools", hidden=True, role="search", aria_label="Samples")
    yield tag("div", *first, id="cases")
    yield tag("button", "Show more", id="more", type="button", hidden=True)


def _chosen(report: Report, cases: Sequence[Case]) -> str:
    random = sum(case.rank >= 0 for case in cases)
    case = report.outs[0].kind.case
    if report.choice.is_all and len(cases) == len(report.cases):
        return f"All {len(cases):,} {case}s are on this page."
    said = f"{len(cases):,} {case}s are on this page"
    if random == len(cases):
        return f"{said}, chosen at random."
    others = "some that differ, and the worst" if len(report.outs) > 1 else "the worst"
    return f"{said}: {random:,} chosen at random, and {len(cases) - random:,} others ({others})."
