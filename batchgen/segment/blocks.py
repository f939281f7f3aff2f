"""Lines that belong together and are no prose: code fences, and where code is protected JSON, LaTeX and HTML's code."""

import json
import re
from collections.abc import Iterator

LONGEST = 20_000  # characters of a block of LaTeX or HTML: bounds the search for its end

_PROSE_FREE = (
    "equation|align|alignat|gather|multline|eqnarray|math|displaymath|array|[bpvV]?matrix|cases|split|aligned|"
)
_PROSE_FREE += "tabular|tikzpicture|verbatim|lstlisting"
_OPENING = re.compile(
    r"^[ \t>]*+(?:(?:[-*+]|\d{1,3}[.)])[ \t]++)?"
    r"(?:(?P<fence>`{3,}+(?=[^`\n]*$)|~{3,}+)|(?P<json>[\[{])"
    rf"|(?P<latex>\$\$|\\\[|\\begin\{{(?P<environment>(?:{_PROSE_FREE})\*?)\}})"
    r"|(?P<html><(?:(?P<tag>pre|script|style)\b|!--)))",
    re.MULTILINE,
)
_FENCE = re.compile(r"^[ \t>]*+(`{3,}+|~{3,}+)[ \t\r]*$", re.MULTILINE)
_END_OF_LINE = re.compile(r"[ \t]*[,.;。]?[ \t\r]*$", re.MULTILINE)
_JSON = json.JSONDecoder()


def blocks(text: str, code: bool) -> Iterator[tuple[int, int]]:
    """Begin and end of the blocks, which are whole lines without the last newline.

    Args:
        text: the text.
        code: whether JSON, LaTeX and HTML's code count too; fences always do.
    """
    position = json_from = 0
    while opening := _OPENING.search(text, position):
        end = None
        if opening["fence"]:
            end = _end_of_fence(text, opening)
        elif not code:
            pass
        elif opening["json"]:
            if opening.start() >= json_from:
                end, json_from = _end_of_json(text, opening.start("json"))
        else:
            end = _end_of_markup(text, opening)
        if end is not None:
            yield opening.start(), end
        position = _next_line(text, opening.end() if end is None else end)


def _next_line(text: str, position: int) -> int:
    newline = text.find("\n", position)
    return len(text) + 1 if newline < 0 else newline + 1


def _end_of_fence(text: str, opening: re.Match[str]) -> int:
    """A fence ends with one that is as long, or with the text."""
    fence = opening["fence"]
    for closing in _FENCE.finditer(text, _next_line(text, opening.end())):
        if closing[1].startswith(fence):
            return closing.end()
    return len(text)


def _end_of_json(text: str, start: int) -> tuple[int | None, int]:
    """The end of the block, if it is one, and where it is worth to look for the next: what begins inside of something
    broken is not tried again, or a thousand brackets would take quadratic time."""
    try:
        _, end = _JSON.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return None, error.pos
    except (ValueError, RecursionError):  # a number of more than 4,300 digits; a thousand brackets
        return None, len(text)
    return _end_of_line(text, end), end


def _end_of_markup(text: str, opening: re.Match[str]) -> int | None:
    if opening["latex"]:
        environment = opening["environment"]
        closing = rf"\end{{{environment}}}" if environment else {"$$": "$$", r"\[": r"\]"}[opening["latex"]]
    else:
        closing = f"</{opening['tag']}>" if opening["tag"] else "-->"
    found = text.find(closing, opening.end(), opening.end() + LONGEST)
    return None if found < 0 else _end_of_line(text, found + len(closing))


def _end_of_line(text: str, position: int) -> int | None:
    rest = _END_OF_LINE.match(text, position)
    return rest.end() if rest else None
