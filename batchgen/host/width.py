"""Text in columns of a terminal: how wide it is, and where it is broken into lines."""

import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator

# What must not begin a line in Japanese: it stays with the sign before it.
_CLOSING = "、。，．,.」』）】〉》〕”’！？!?：；ー々ゝヽぁぃぅぇぉっゃゅょァィゥェォッャュョ…)]}"
_NARROW = r"[^\s\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]"
# What is not broken inside: white space, a word, or one wide sign with what closes it.
_PIECE = re.compile(rf"\n|[^\S\n]+|{_NARROW}+|.[{re.escape(_CLOSING)}]*", re.DOTALL)


def of_stdout() -> int | None:
    """Columns of the terminal that stdout is; None if it is none, and lines are to stay whole."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def width(text: str) -> int:
    """Columns that a line of text takes: two for each wide sign of East Asia, none for what combines with the sign
    before it."""
    return len(text) if text.isascii() else sum(map(_of_sign, text))


def _of_sign(sign: str) -> int:
    if unicodedata.east_asian_width(sign) in "WF":
        return 2
    return 0 if unicodedata.category(sign) in ("Mn", "Me", "Cf") else 1


def lines(text: str, columns: int | None) -> Iterator[tuple[int, int]]:
    """Begin and end of each line of a text, in no more than so many columns: its own lines, broken between words or
    wide signs where they are too long. White space at a break is left out."""
    begin = end = used = 0  # the line: from, up to where something is seen of it, and how wide that is
    for piece in _PIECE.finditer(text):
        if piece[0] == "\n":
            yield begin, end
            begin = end = piece.end()
            used = 0
            continue
        wide = width(piece[0])
        if columns is None or used + wide <= columns:
            end, used = piece.end(), used + wide
            continue
        if piece[0].isspace():
            used = columns  # so that the next piece begins a line
            continue
        if seen := len(text[begin:end].rstrip()):
            yield begin, begin + seen
        begin, used = piece.start(), 0
        for place in range(piece.start(), piece.end()):  # a word may be longer than a line
            wide = _of_sign(text[place])
            if used + wide > columns and place > begin:
                yield begin, place
                begin, used = place, 0
            used += wide
        end = piece.end()
    yield begin, end
