"""Charts of what was counted, of one output or of several in one."""

from collections import Counter
from collections.abc import Iterator, Sequence

from . import svg
from .figures import percent
from .markup import Html, Part, table, tag
from .outcome import BINS, Outcome
from .samples import BAD, COLOURS, GOOD, group
from .tally import Spread

HISTOGRAM_BINS = 36
LONG_TAIL = 4  # a histogram ends at the 99th percentile, if the longest is so many times that
MOST_WORDS = 12  # of a kind
MOST_TRIES = 20
LEAST_BAR = 0.006  # of the width, so that it can be seen
NO_LENGTHS = ("tries", "perplexity")

# --- words


def endings(outs: Sequence[Outcome]) -> Iterator[Html]:
    """How answers ended, the checks that they fail, and how often they were tried."""
    for what in dict.fromkeys(what for out in outs for what in out.tally.counters):
        counters = [out.tally.counters.get(what, Counter()) for out in outs]
        yield _words(outs, what, counters, [_whole(out, what) for out in outs])
    if any("tries" in out.tally.spreads for out in outs):
        counters = [_by_tries(out.tally.spreads.get("tries", Spread())) for out in outs]
        yield _words(outs, "tries", counters, [counter.total() for counter in counters])


def _whole(out: Outcome, what: str) -> int:
    """What shares are of: an answer may fail several checks, or none."""
    if what == "failed checks":
        return out.tally.spreads.get("tries", Spread()).total
    return out.tally.counters.get(what, Counter()).total()


def _by_tries(spread: Spread) -> Counter[str]:
    return Counter({str(k): found for k in range(min(spread.most, MOST_TRIES) + 1) if (found := spread.count(k))})


def _words(outs: Sequence[Outcome], what: str, counters: Sequence[Counter[str]], wholes: Sequence[int]) -> Html:
    """A line for each word and output."""
    in_all: Counter[str] = sum(counters, Counter())
    words = sorted(in_all, key=int) if what == "tries" else sorted(in_all, key=lambda word: (-in_all[word], word))
    lines = []
    for word in words[:MOST_WORDS]:
        head = tag("th", tag("bdi", word), scope="row", rowspan=len(outs) if len(outs) > 1 else None)
        for at, (counter, whole) in enumerate(zip(counters, wholes, strict=True)):
            colour = f"c{at % COLOURS}" if len(outs) > 1 else _colour(what, word)
            cells = _bar(word, counter[word], whole, colour)
            lines.append(tag("tr", *([head] if at == 0 else []), *cells))
    left = tag("p", f"and {len(words) - MOST_WORDS:,} others", class_="quiet") if len(words) > MOST_WORDS else None
    body = tag("table", tag("tbody", *lines), class_="bars") if lines else tag("p", "none", class_="quiet")
    return _figure(what, outs, body, left)


def _bar(word: str, number: int, whole: int, colour: str) -> list[Html]:
    if not whole:
        return [tag("td", class_="barcell"), tag("td", "–", class_="number"), tag("td")]
    share = max(min(number / whole, 1), LEAST_BAR if number else 0)
    bar = svg.bar([(share, colour, f"{word}: {number:,}"), (1 - share, "rest", "")])
    numbers = (f"{number:,}", percent(number, whole))
    return [tag("td", Html(bar), class_="barcell"), *(tag("td", each, class_="number") for each in numbers)]


def _colour(what: str, word: str) -> str:
    if what == "failed checks" or word in BAD:
        return "cbad"
    return "cfine" if word in GOOD else "cwarn" if what == "ended by" else "c0"


def _figure(what: str, outs: Sequence[Outcome], *parts: Part) -> Html:
    names = (group(out.name, at) for at, out in enumerate(outs))
    legend = tag("span", *names, class_="legend") if len(outs) > 1 else None
    return tag("figure", tag("figcaption", what[:1].upper() + what[1:], legend), *parts)


# --- numbers


def lengths(outs: Sequence[Outcome]) -> Iterator[Html]:
    for what in dict.fromkeys(what for out in outs for what in out.tally.spreads):
        spreads = [out.tally.spreads.get(what, Spread()) for out in outs]
        if what not in NO_LENGTHS and any(spread.total > 0 for spread in spreads):
            yield _histogram(outs, what, spreads)


def _histogram(outs: Sequence[Outcome], what: str, spreads: Sequence[Spread]) -> Html:
    most, usual = max(spread.most for spread in spreads), max(spread.quantile(0.99) for spread in spreads)
    is_open = most > LONG_TAIL * max(usual, 8)
    begin = min(spread.quantile(0) for spread in spreads if spread.total)
    begin, end = begin if begin > most / 3 else 0, usual if is_open else most
    series = [(out.name, spread.bins(HISTOGRAM_BINS, begin, end)) for out, spread in zip(outs, spreads, strict=True)]
    drawn = Html(svg.histogram(f"Histogram of {what}", series, is_open))
    heads = ["median", "90 %", "99 %", "longest", "mean"]
    rows = [[tag("td", each) for each in _quantiles(spread)] for spread in spreads]
    if len(outs) > 1:
        heads = ["", *heads]
        rows = [[tag("th", group(out.name, at), scope="row"), *rows[at]] for at, out in enumerate(outs)]
    return _figure(what, outs, drawn, table(heads, rows, class_="quantiles"))


def _quantiles(spread: Spread) -> list[str]:
    return [*(f"{spread.quantile(share):,}" for share in (0.5, 0.9, 0.99)), f"{spread.most:,}", f"{spread.mean:,.1f}"]


def along(outs: Sequence[Outcome]) -> Iterator[Html]:
    """What changes from the beginning of the input to its end."""
    labels = [(share, f"{share} %") for share in (0, 25, 50, 75, 100)]
    for what in dict.fromkeys(what for out in outs for what in out.tally.along):
        found = [(at, out.name, out.tally.along[what]) for at, out in enumerate(outs) if what in out.tally.along]
        is_share = any(each.is_share for _, _, each in found)
        if not any((mean or 0) > 0 for _, _, each in found for mean in each.means()):
            continue  # it never happened
        series = [
            svg.Line(name, [_point(k, mean, is_share) for k, mean in enumerate(each.means())], at)
            for at, name, each in found
        ]
        yield _figure(what, outs, Html(svg.lines(f"{what} along the input", series, labels, "%" if is_share else "")))


def _point(place: int, mean: float | None, is_share: bool) -> svg.Point | None:
    """In percent of the input."""
    return None if mean is None else svg.Point((place + 0.5) / BINS * 100, mean * (100 if is_share else 1))
