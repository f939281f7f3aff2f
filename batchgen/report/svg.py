"""Charts as SVG. Colours and fonts are those of page.css, so that they are right on dark and on light."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, isfinite, log10
from typing import NamedTuple

from .tally import Bin

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 24  # around the plot


class Point(NamedTuple):
    """low, high: of its interval; None where it has none"""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Line(NamedTuple):
    """is_bold: it is the one that counts, the others are its background"""

    name: str
    points: Sequence[Point | None]
    colour: int = 0
    is_bold: bool = True


def number(value: float) -> str:
    """With as many digits as say something."""
    if not isfinite(value):
        return str(value)
    if value == round(value):
        return f"{value:,.0f}"
    digits = max(0, 2 - floor(log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}".rstrip("0").rstrip(".")


def short(value: float) -> str:
    """For an axis: 12k, 3.4M."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if sign == "k" else size
            return f"{value / unit:,.3g}{sign}"
    return number(value)


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers from `low` to `high`."""
    if high <= low:
        return [low]
    raw = (high - low) / most
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = ceil(low / step - 1e-9)
    return [round(step * k, 10) for k in range(first, floor(high / step + 1e-9) + 1)]


def chart(what: str, body: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    """what: for those who cannot see it"""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(what)}">'
        f"<title>{escape(what)}</title>{body}</svg>"
    )


def label(x: float, y: float, text: str, kind: str = "tick", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


class _Axes:
    """From values to places in the picture, and the lines that say so."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]):
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        low, high = self._x
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    def drawn(self, x_labels: Sequence[tuple[float, str]], unit: str = "") -> str:
        parts = []
        for value in ticks(*self._y):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(label(LEFT - 6, y + 3.5, short(value) + unit, anchor="end"))
        base = HEIGHT - BOTTOM
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
        for value, text in x_labels:
            x = self.x(value)
            anchor = "middle" if LEFT + 12 < x < WIDTH - RIGHT - 12 else "start" if x <= LEFT + 12 else "end"
            parts.append(label(x, base + 15, text, anchor=anchor))
        return "".join(parts)


def histogram(what: str, series: Sequence[tuple[str, Sequence[Bin]]], is_open: bool) -> str:
    """Shares in percent, by bins that all series have in common. One series is bars, several are steps. is_open:
    whether the last bin has what is beyond it too."""
    bins = series[0][1]
    low, high = bins[0].begin, bins[-1].end + 1
    shares = [[100 * each.number / max(sum(b.number for b in some), 1) for each in some] for _, some in series]
    axes = _Axes((low, high), (0, max(map(max, shares)) or 1))
    marks = [(value, short(value)) for value in ticks(low, high, 5)]
    if is_open:
        marks = [(value, text) for value, text in marks if axes.x(value) < WIDTH - RIGHT - 40]
        marks.append((high, f"{short(bins[-1].begin)}+"))
    parts = [axes.drawn(marks, "%")]
    for colour, ((name, some), heights) in enumerate(zip(series, shares, strict=True)):
        if len(series) == 1:
            for each, height in zip(some, heights, strict=True):
                x, width = axes.x(each.begin), axes.x(each.end + 1) - axes.x(each.begin)
                said = f"{each.begin:,} to {each.end:,}: {each.number:,}"
                parts.append(
                    f'<rect class="c0" x="{x + 0.4:.1f}" y="{axes.y(height):.1f}" width="{max(width - 0.8, 0.4):.1f}" '
                    f'height="{HEIGHT - BOTTOM - axes.y(height):.1f}"><title>{said}</title></rect>'
                )
        else:
            steps = [f"M{axes.x(low):.1f} {axes.y(0):.1f}"]
            for each, height in zip(some, heights, strict=True):
                steps.append(f"V{axes.y(height):.1f}H{axes.x(each.end + 1):.1f}")
            path = "".join([*steps, f"V{axes.y(0):.1f}"])
            parts.append(f'<path class="step s{colour % 8}" d="{path}"><title>{escape(name)}</title></path>')
    return chart(what, "".join(parts))


def lines(
    what: str, series: Sequence[Line], x_labels: Sequence[tuple[float, str]], unit: str = "", zero: bool = True
) -> str:
    """zero: whether the y axis begins there"""
    points = [point for line in series for point in line.points if point]
    if not points:
        return ""
    ys = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    low, high = (min(0, *ys), max(ys)) if zero and len(ys) > 1 else (min(ys), max(ys))
    edge = (high - low) * 0.06 or abs(high) * 0.1 or 1
    y = (low if zero and low >= 0 else low - edge, high + edge)
    spots = [*(point.x for point in points), *(value for value, _ in x_labels)]
    axes = _Axes((min(spots), max(spots)), y)
    drawn = [axes.drawn(x_labels, unit)]
    for line in sorted(series, key=lambda line: line.is_bold):
        drawn.append(_line(axes, line, unit))
    return chart(what, "".join(drawn))


def _line(axes: _Axes, line: Line, unit: str) -> str:
    kind = f"s{line.colour % 8}" if line.is_bold else "faint"
    parts = []
    banded = [(point.x, point.low, point.high) for point in line.points if point and point.low is not None]
    if line.is_bold and len(banded) > 1:
        there = [f"{axes.x(x):.1f} {axes.y(high or 0):.1f}" for x, _, high in banded]
        back = [f"{axes.x(x):.1f} {axes.y(low or 0):.1f}" for x, low, _ in reversed(banded)]
        parts.append(f'<path class="band b{line.colour % 8}" d="M{"L".join([*there, *back])}Z"/>')
    path, pen = "", "M"
    for point in line.points:
        path, pen = (f"{path}{pen}{axes.x(point.x):.1f} {axes.y(point.y):.1f}", "L") if point else (path, "M")
    parts.append(f'<path class="line {kind}" d="{path}"><title>{escape(line.name)}</title></path>')
    if line.is_bold and sum(point is not None for point in line.points) <= 12:
        for point in line.points:
            if point:
                interval = "" if point.low is None else f" ({number(point.low)} to {number(point.high or 0)})"
                parts.append(
                    f'<circle class="c{line.colour % 8}" cx="{axes.x(point.x):.1f}" cy="{axes.y(point.y):.1f}" r="3.2">'
                    f"<title>{escape(line.name)}: {number(point.y)}{unit}{interval}</title></circle>"
                )
    return "".join(parts)


def bar(shares: Sequence[tuple[float, str, str]]) -> str:
    """One bar of parts: (share of the whole width, class, what it says)."""
    x, parts = 0.0, []
    for share, kind, said in shares:
        width = 100 * share
        parts.append(
            f'<rect class="{kind}" x="{x:.3f}" y="0" width="{width:.3f}" height="10">'
            f"<title>{escape(said)}</title></rect>"
        )
        x += width
    return f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'


def interval(mean: float, low: float | None, high: float | None, least: float, most: float) -> str:
    """A dot with its interval, on a scale from `least` to `most`."""
    width, height, edge = 160, 14, 6
    x = lambda value: edge + (value - least) / ((most - least) or 1) * (width - 2 * edge)  # noqa: E731
    whisker = ""
    if low is not None and high is not None:
        whisker = f'<line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="7" y2="7"/>'
    dot = f'<circle class="dot" cx="{x(mean):.1f}" cy="7" r="4"/>'
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg class="interval" {size} aria-hidden="true">{whisker}{dot}</svg>'


def heat(
    what: str,
    across: Sequence[str],
    down: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    is_lower_better: bool,
) -> str:
    """A map: the better a cell, the stronger its colour."""
    known = [cell for line in cells for cell in line if cell is not None]
    least, most = min(known), max(known)
    left = min(8 + 6.2 * max(map(len, down)), 150)
    wide, high = (WIDTH - left) / len(across), max(min((WIDTH - left) / len(across) * 0.5, 34.0), 18.0)
    parts = []
    for row, (name, line) in enumerate(zip(down, cells, strict=True)):
        y = row * high
        parts.append(label(left - 6, y + high / 2 + 3.5, name, anchor="end"))
        for column, cell in enumerate(line):
            if cell is None:
                continue
            share = (cell - least) / ((most - least) or 1)
            share = 1 - share if is_lower_better else share
            place = f'x="{left + column * wide + 1:.1f}" y="{y + 1:.1f}" width="{wide - 2:.1f}" height="{high - 2:.1f}"'
            said = escape(f"{across[column]}, {name}: {number(cell)}")
            parts.append(f'<rect class="heat" {place} rx="3" fill-opacity="{0.08 + 0.82 * share:.2f}">')
            parts.append(f"<title>{said}</title></rect>")
            if wide >= 30:
                kind = "cell strong" if share > 0.6 else "cell"
                parts.append(
                    label(left + (column + 0.5) * wide, y + high / 2 + 3.5, number(float(f"{cell:.3g}")), kind)
                )
    bottom = len(down) * high
    step = max(1, round(44 / wide))
    for column in range(0, len(across), step):
        parts.append(label(left + (column + 0.5) * wide, bottom + 14, across[column]))
    return chart(what, "".join(parts), height=round(bottom + 22))
