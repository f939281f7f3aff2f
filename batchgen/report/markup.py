"""HTML from typed parts: whatever is not markup already is escaped where it becomes a part of some."""

import html
from collections.abc import Iterable

_VOID = frozenset({"meta", "input", "br"})


class Html(str):
    """Markup. Made of constants, charts and other markup only: never of data."""

    __slots__ = ()


Part = str | None  # Html, a text that is no markup, or nothing


def tag(name: str, /, *parts: Part, **attributes: str | int | bool | None) -> Html:
    """An element. attributes: `class_` and the like without the line, others with `-` for it; True is one without a
    value, None and False are none."""
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(parts)}</{name}>")


def join(parts: Iterable[Part]) -> Html:
    return Html("".join(part if isinstance(part, Html) else html.escape(part or "") for part in parts))


def _attribute(key: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def table(head: Iterable[Part], rows: Iterable[Iterable[Part]], **attributes: str | None) -> Html:
    heads = (tag("th", cell, scope="col") for cell in head)
    bodies = (tag("tr", *map(_cell, row)) for row in rows)
    inner = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *bodies), **attributes)
    return tag("div", inner, class_="wide")


def _cell(part: Part) -> Html:
    return part if isinstance(part, Html) and part.startswith(("<td", "<th")) else tag("td", part)
