"""The figures of outputs: as tiles of one, as a table of several."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from . import svg
from .markup import Html, table, tag
from .outcome import Outcome
from .samples import group

STEP = 1.01  # of the scale that perplexities are counted on
MUCH = 0.1  # of answers: if more are not as they should be, it is to be seen
# Words that answers are counted by -> (what the share of one of them is called, that one)
SHARES = {"ended by": ("ended by stop", "stop"), "the likeliest is": ("right", "right")}


class Figure(NamedTuple):
    """more: a few words about it; is_bad: it is to be seen"""

    name: str
    value: str
    more: str = ""
    is_bad: bool = False


def tiles(out: Outcome) -> Html:
    made = (
        tag("div", tag("dt", each.name), tag("dd", each.value, tag("small", each.more)), class_=_tile(each))
        for each in figures(out)
    )
    return tag("section", tag("dl", *made, class_="tiles"), id="figures", aria_label="Figures")


def _tile(figure: Figure) -> str:
    return "tile bad" if figure.is_bad else "tile"


def side_by_side(outs: Sequence[Outcome]) -> Html:
    by_out = [{each.name: each for each in figures(out)} for out in outs]
    names = dict.fromkeys(name for some in by_out for name in some)
    heads = ["", *(group(out.name, at) for at, out in enumerate(outs))]
    rows = [[tag("th", name, scope="row"), *(_cell(some.get(name)) for some in by_out)] for name in names]
    return table(heads, rows, class_="figures")


def _cell(figure: Figure | None) -> Html:
    return tag("td", figure.value, " ", tag("small", figure.more)) if figure else tag("td", "–")


def figures(out: Outcome) -> Iterator[Figure]:
    counts, tally = out.counts, out.tally
    yield Figure("rows", f"{counts.rows:,}", f"of {out.rows_in_all:,}" if out.missing else "all done")
    yield Figure("rejected", f"{counts.rejected:,}", percent(counts.rejected, counts.rows), counts.rejected > 0)
    each = tally.answers
    about = f"of {counts.responses:,} records" if counts.segments else f"{each:,} a row" if each > 1 else ""
    yield Figure(out.kind.noun, f"{counts.segments or counts.responses:,}", about)
    for what, (title, good) in SHARES.items():
        if counter := tally.counters.get(what):
            number, total = counter[good], counter.total()
            yield Figure(title, percent(number, total), f"{total - number:,} not", total - number > MUCH * total)
    if counts.segments:
        failed = counts.failed_segments or 0
        yield Figure("segments that fail", f"{failed:,}", percent(failed, counts.segments), failed > 0)
    elif counts.failed:
        yield Figure("fail a check", f"{counts.failed:,}", percent(counts.failed, counts.responses), True)
    if counts.tries:
        yield Figure("further tries", f"{counts.tries:,}", "after a failed check")
    for what, tokens in (("prompt tokens", counts.prompt_tokens), ("response tokens", counts.response_tokens)):
        if tokens:
            yield Figure(what, svg.short(tokens), f"{tokens / max(counts.responses, 1):,.1f} each")
    if spread := tally.spreads.get("perplexity"):
        middle, high = (svg.number(perplexity(spread.quantile(share))) for share in (0.5, 0.9))
        yield Figure("median perplexity", middle, f"90 % are below {high}")


def perplexity(step: int) -> float:
    """From a step of the logarithmic scale."""
    return float(f"{STEP**step:.3g}")


def percent(part: int, whole: int) -> str:
    share = 100 * part / max(whole, 1)
    if 0 < part < whole and not 0.05 <= share < 99.95:
        return "under 0.1 %" if share < 1 else "over 99.9 %"
    return f"{share:.1f} %"
