"""A comparison of settings: the table, a curve for each parameter, a map for each pair of them."""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgspec

from ..errors import JobError, in_one_line
from ..metrics.summary import MeasuredSetting, Metric, Summary, Value
from ..output import layout
from ..output.store import Store
from . import svg
from .cases import name
from .markup import Html, Part, tag

MOST_SETTINGS = 200  # lines of the table
MOST_AXES, MOST_METRICS, MOST_FAINT = 6, 6, 24  # charts of each kind, and lines of a chart
MOST_VALUES = 16  # of an axis in a map
LONGEST_VALUE = 28  # characters of a value beside a chart
MOST_LINES, LONGEST_LINE = 200, 1000  # of best.toml
MODEL = "model"
MOST = 1e15  # of any number
LARGEST = 64 << 20  # bytes of a summary
BEST, NEAR, OTHER = "best", "≈ best", "worse"


class Compared(NamedTuple):
    """A finished comparison. noun: of what is compared; outs: its output folders; best_toml: to paste into a job
    file"""

    summary: Summary
    noun: str = "settings"
    outs: Sequence[str] = ()
    best_toml: str = ""


def comparison_in(out: Store) -> Compared | None:
    """What a sweep has come to in a folder, if it has. Raises JobError."""
    if not out.exists(layout.SUMMARY):
        return None
    try:
        found = msgspec.json.decode(out.read(layout.SUMMARY, LARGEST), type=Summary)
        _check(found)
    except ValueError as error:  # msgspec's own too
        where = out.where(layout.SUMMARY)
        raise JobError(f"{where}: damaged, or not batchgen's ({in_one_line(error)}); run the sweep again") from None
    outs = [out.location if each == "." else f"{out.location}/{each}" for each in found.outs]
    best = out.read(layout.BEST).decode("utf-8", "replace") if out.exists(layout.BEST) else ""
    return Compared(found, outs=outs, best_toml=best)


def _check(summary: Summary) -> None:
    """Whoever handed the folder over may have written it. Raises ValueError."""
    if not summary.settings or not summary.outs or not summary.metrics:
        raise ValueError("it compares nothing")
    if any("/" in each or "\0" in each or each in ("", "..") for each in summary.outs):
        raise ValueError("one of its folders lies elsewhere")
    if [each.number for each in summary.settings] != list(range(len(summary.settings))):
        raise ValueError("its settings are not numbered")
    values = [value for each in summary.settings for value in each.values.values()]
    numbers = [n for v in values for n in (v.mean, v.low, v.high, v.best_share, v.held_out)]
    numbers += [n for v in values if v.to_best for n in (v.to_best.mean, v.to_best.low, v.to_best.high)]
    numbers += [each for of in summary.axes.values() for each in of if isinstance(each, int | float)]
    if not all(each is None or abs(each) < MOST for each in numbers):
        raise ValueError("it has numbers that cannot be")
    if not all(0 <= each.out < len(summary.outs) for each in summary.settings):
        raise ValueError("a setting is of no folder")


def decisive(summary: Summary) -> Metric:
    """The metric that chooses, or else the first."""
    return next((each for each in summary.metrics if each.name == summary.best), summary.metrics[0])


def is_lower_better(metric: Metric) -> bool:
    return metric.better == "lower"


def order(summary: Summary) -> list[MeasuredSetting]:
    """The best first; those without a value last."""
    metric = decisive(summary)
    sign = 1 if is_lower_better(metric) else -1

    def key(setting: MeasuredSetting) -> tuple[bool, float]:
        value = _mean(setting, metric)
        return value is None, sign * (value or 0)

    return sorted(summary.settings, key=key)


def _mean(setting: MeasuredSetting, metric: Metric) -> float | None:
    value = setting.values.get(metric.name)
    return value.mean if value else None


def standing(summary: Summary, setting: MeasuredSetting) -> str:
    """How a setting compares with the best one."""
    value = setting.values.get(summary.best)
    if setting.number == summary.best_setting:
        return BEST
    if summary.best_setting is None or value is None or value.mean is None:
        return ""
    return OTHER if value.to_best and value.to_best.is_told_apart else NEAR


# --- the table


def summarized(compared: Compared) -> Iterator[Part]:
    summary = compared.summary
    metric = decisive(summary)
    yield tag("p", _sentence(summary, metric, compared.noun))
    yield from (tag("p", name(note, 500), class_="quiet") for note in summary.notes)
    yield _table(summary, metric)
    if len(summary.settings) > MOST_SETTINGS:
        yield tag("p", f"{len(summary.settings) - MOST_SETTINGS:,} further settings are left out.", class_="quiet")
    if compared.best_toml:
        pasted = tag("pre", "\n".join(_pasted(compared.best_toml)), tabindex=0)
        yield tag("details", tag("summary", "The best setting, to paste into a job file"), pasted)
    yield tag("details", tag("summary", "What the metrics mean"), tag("dl", *_meanings(summary), class_="facts"))


def _pasted(best_toml: str) -> Iterator[str]:
    """Its lines without [model], which may say where that lies on this machine."""
    is_shown = True
    for line in best_toml.splitlines()[:MOST_LINES]:
        is_shown = line.strip() != f"[{MODEL}]" if line.startswith("[") else is_shown
        if is_shown:
            yield name(line, LONGEST_LINE)


def _sentence(summary: Summary, metric: Metric, noun: str) -> str:
    samples = f", at most {summary.samples:,} answers to each" if summary.samples > 1 else ""
    made = f"{len(summary.settings):,} {noun} on {summary.rows:,} rows{samples}"
    if summary.best_setting is None:
        return f"{made}. No metric chooses a best one."
    best = summary.settings[summary.best_setting]
    near = sum(standing(summary, each) == NEAR for each in summary.settings)
    others = f"; {near:,} other{'s' if near > 1 else ''} cannot be told from it" if near else "; all others are worse"
    return f"{made}. The best by {name(metric.name)} is {name(best.name)}{others} (≈; 95 % intervals, paired by rows)."


def _meanings(summary: Summary) -> Iterator[Html]:
    for each in summary.metrics:
        better = f"; {each.better} is better" if each.better else ""
        signature = f" ({each.signature})" if each.signature else ""
        yield tag("dt", name(each.name))
        yield tag("dd", name(f"{each.meaning}{better}{signature}", 500))


def _table(summary: Summary, metric: Metric) -> Html:
    shown = order(summary)[:MOST_SETTINGS]
    values = [value for each in shown if (value := each.values.get(metric.name)) and value.mean is not None]
    ends = [end for value in values for end in (value.mean, value.low, value.high) if end is not None] or [0.0]
    others = [each for each in summary.metrics if each is not metric]
    heads = ["", metric.name, "", "from the best", "best in", *(each.name for each in others)]
    head = tag("tr", *(tag("th", name(each), scope="col") for each in heads))
    rows = (_row(summary, each, metric, others, (min(ends), max(ends))) for each in shown)
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="settings sortable")
    return tag("div", table, class_="wide", tabindex=0)


def _row(
    summary: Summary, setting: MeasuredSetting, metric: Metric, others: Sequence[Metric], ends: tuple[float, float]
) -> Html:
    value = setting.values.get(metric.name) or Value(None, None, None, 0)
    standing_of = standing(summary, setting)
    mark = tag("span", standing_of, class_="standing") if standing_of in (BEST, NEAR) else None
    first = tag("th", tag("bdi", name(setting.name)), " ", mark, scope="row")
    dots = Html(svg.interval(value.mean, value.low, value.high, *ends)) if value.mean is not None else None
    to_best = value.to_best
    difference = "" if to_best is None else f"{_signed(to_best.mean)}{_range(to_best.low, to_best.high)}"
    share = None if value.best_share is None else 100 * value.best_share
    cells = [
        _cell(value, value.held_out),
        tag("td", dots),
        tag("td", difference, class_="number", data_value=None if to_best is None else f"{to_best.mean}"),
        tag(
            "td",
            "" if share is None else f"{share:.0f} %",
            class_="number",
            data_value=None if share is None else f"{share}",
        ),
        *(_cell(setting.values.get(each.name)) for each in others),
    ]
    kind = {BEST: "is-best", NEAR: "is-near"}.get(standing_of)
    return tag("tr", first, *cells, class_=kind)


def _cell(value: Value | None, held_out: float | None = None) -> Html:
    if value is None or value.mean is None:
        return tag("td", "–", class_="number")
    held = None if held_out is None else tag("small", f"on the other rows {svg.number(held_out)}")
    interval = tag("small", _range(value.low, value.high).strip())
    return tag("td", svg.number(value.mean), " ", interval, held, class_="number", data_value=f"{value.mean}")


def _signed(value: float) -> str:
    return f"+{svg.number(value)}" if value > 0 else svg.number(value)


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({svg.number(low)} to {svg.number(high)})"


# --- charts


def curves(summary: Summary, metric: Metric) -> Iterator[Html]:
    """For each parameter: every combination of the others as a faint line, and their mean, with the mean of their
    intervals as its band."""
    for axis, values in _axes(summary):
        found = _by_others(summary, metric, axis, values)
        if found and any(sum(point is not None for point in line) > 1 for line in found.values()):
            yield _figure(axis, _curve(metric, axis, values, list(found.items())))


def _axes(summary: Summary) -> list[tuple[str, list[Any]]]:
    """Those with several values."""
    axes = {
        axis: [_model(each) for each in values] if axis == MODEL else values for axis, values in summary.axes.items()
    }
    return [(axis, values) for axis, values in axes.items() if len(values) > 1][:MOST_AXES]


def _combinations(setting: MeasuredSetting) -> Iterator[dict[str, Any]]:
    """What a setting has of each parameter, and those that mean the same."""
    for changes in (setting.changes, *setting.same):
        yield {MODEL: _model(setting.model), **changes}


def _model(path: Any) -> str:
    """Without where it lies on this machine."""
    return PurePosixPath(str(path)).name


def _by_others(summary: Summary, metric: Metric, axis: str, values: Sequence[Any]) -> dict[str, list[Value | None]]:
    """The values along an axis, by what the settings have in all others."""
    found: dict[str, list[Value | None]] = {}
    for setting in summary.settings:
        for changes in _combinations(setting):
            value = setting.values.get(metric.name)
            if changes.get(axis) not in values or value is None or value.mean is None:
                continue
            others = ", ".join(
                f"{key} {_short(changes[key])}" for key in summary.axes if key != axis and key in changes
            )
            found.setdefault(others, [None] * len(values))[values.index(changes[axis])] = value
    return found


def _curve(metric: Metric, axis: str, values: Sequence[Any], found: list[tuple[str, list[Value | None]]]) -> Html:
    spots = _spots(values)
    lines = []
    if 1 < len(found) <= MOST_FAINT:
        lines = [
            svg.Line(others, [_point(x, value) for x, value in zip(spots, along, strict=True)], is_bold=False)
            for others, along in found
        ]
    columns = ([along[k] for _, along in found] for k in range(len(values)))
    whole = [_point(x, _middle(column)) for x, column in zip(spots, columns, strict=True)]
    labels = [(x, _short(value)) for x, value in zip(spots, values, strict=True)]
    lines.append(svg.Line("mean", whole))
    return Html(svg.lines(f"{name(metric.name)} by {name(axis)}", lines, labels, zero=False))


def _spots(values: Sequence[Any]) -> list[float]:
    """Where values stand on an axis: numbers by their size, all else one after the other."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    is_number = len(numbers) == len(values) and all(a < b for a, b in itertools.pairwise(numbers))
    return [float(value) for value in numbers] if is_number else [float(k) for k in range(len(values))]


def _point(x: float, value: Value | None) -> svg.Point | None:
    return None if value is None or value.mean is None else svg.Point(x, value.mean, value.low, value.high)


def _middle(column: Sequence[Value | None]) -> Value | None:
    """The mean of values, and of their intervals."""
    known = [each for each in column if each and each.mean is not None]
    if not known:
        return None
    mean = statistics.fmean(each.mean for each in known if each.mean is not None)
    lows = [each.low for each in known if each.low is not None]
    highs = [each.high for each in known if each.high is not None]
    low, high = (statistics.fmean(some) if len(some) == len(known) else None for some in (lows, highs))
    return Value(mean, low, high, 0)


def maps(summary: Summary, metric: Metric) -> Iterator[Html]:
    """For each pair of parameters: the mean over the settings of each combination."""
    for (across, columns), (down, rows) in itertools.combinations(_axes(summary), 2):
        columns, rows = columns[:MOST_VALUES], rows[:MOST_VALUES]
        cells = [[_at(summary, metric, {across: column, down: row}) for column in columns] for row in rows]
        if sum(cell is not None for line in cells for cell in line) > 1:
            names = [[_short(value) for value in values] for values in (columns, rows)]
            drawn = svg.heat(
                f"{metric.name} by {across} and {down}", names[0], names[1], cells, is_lower_better(metric)
            )
            yield _figure(f"{across}, and {down} downwards", Html(drawn))


def _at(summary: Summary, metric: Metric, wanted: dict[str, Any]) -> float | None:
    means = [
        mean
        for setting in summary.settings
        for changes in _combinations(setting)
        if all(changes.get(key) == value for key, value in wanted.items())
        and (mean := _mean(setting, metric)) is not None
    ]
    return statistics.fmean(means) if means else None


def _figure(title: str, drawn: Html) -> Html:
    return tag("figure", tag("figcaption", name(title)), drawn)


def _short(value: Any) -> str:
    said = svg.number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    return name(said, LONGEST_VALUE)
