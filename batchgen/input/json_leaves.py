"""The texts that paths choose in a line of JSON, and other texts in their place; all other bytes stay as they are.

The line is not decoded as a whole: regular expressions find where its values begin and end, which keeps white space,
the order of keys, numbers, escapes and doubled keys. It must be valid JSON, as `Row.record` accepts it.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from .conversation import BYTE_ORDER_MARK, LONE_SURROGATE, SURROGATE
from .paths import Choice, FieldPath, Found, below, choice_of, found


class JsonLeaf(NamedTuple):
    """A text in a line; a `paths.Leaf`.

    Attributes:
        path: see `paths.Leaf`.
        text: decoded.
        chosen_by: see `paths.Leaf`.
        begin, end: where its JSON string stands in the line, with its quotes.
    """

    path: str
    text: str
    chosen_by: tuple[int, ...]
    begin: int
    end: int


class _Value(NamedTuple):
    path: str
    chosen_by: tuple[int, ...]
    begin: int
    end: int


# Possessive, so that a string of 50 MB full of escapes takes 0.3 s and no memory.
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_BLANK = rb"[ \t\r\n]*+"
_SIMPLE = re.compile(_TEXT + rb'|[^ \t\r\n,"\[\]{}]++')  # a value without brackets
_MEMBER = re.compile(
    _BLANK + b",?" + _BLANK + b"(" + _TEXT + b")" + _BLANK + b":" + _BLANK + b"(" + _SIMPLE.pattern + b")?"
)
_COMMA = re.compile(_BLANK + b",?" + _BLANK)
_CLOSING = re.compile(_BLANK + rb"[}\]]")
_TO_BRACKET = re.compile(rb'[^"\[\]{}]*+(?:' + _TEXT + rb'[^"\[\]{}]*+)*+[\[\]{}]')

_text = msgspec.json.Decoder(str).decode


def find(line: bytes, paths: Sequence[FieldPath]) -> Found[JsonLeaf]:
    """Of a key that an object has twice the last value counts, as for JSON decoders.

    Raises:
        Reject: invalid_json: a chosen text has a lone surrogate.
    """
    begin = len(BYTE_ORDER_MARK) if line.startswith(BYTE_ORDER_MARK) else 0
    values: list[_Value] = []
    _walk(line, _after(_COMMA, line, begin), choice_of(tuple(paths)), "", values)
    texts = [value for value in values if line.startswith(b'"', value.begin)]
    others = [value for value in values if not line.startswith((b'"', b"null"), value.begin)]
    return found(paths, [_leaf(line, value) for value in texts], (value.chosen_by for value in others))


def splice(line: bytes, leaves: Sequence[JsonLeaf], texts: Sequence[str | None]) -> bytes:
    """The line with a text in place of each leaf, or null for None. A text that is the leaf's own keeps its escapes.

    leaves: some of those that `find` found in this line, in their order.
    """
    pieces: list[bytes] = []
    at = 0
    for leaf, text in zip(leaves, texts, strict=True):
        if text != leaf.text:
            pieces += line[at : leaf.begin], msgspec.json.encode(text)
            at = leaf.end
    return b"".join([*pieces, line[at:]]) if pieces else line


def _leaf(line: bytes, value: _Value) -> JsonLeaf:
    path, chosen_by, begin, end = value
    try:
        text = _text(line[begin:end])
    except msgspec.DecodeError:
        raise LONE_SURROGATE.why(path) from None
    return JsonLeaf(path, text, chosen_by, begin, end)


# --- where values begin and end


def _walk(line: bytes, begin: int, choice: Choice, where: str, values: list[_Value]) -> int:
    """Collects what is chosen from the value that begins here, and returns where it ends."""
    if choice.takes_values and line.startswith(b"{", begin):
        end = _walk_object(line, begin, choice, where, values)
    elif choice.takes_elements and line.startswith(b"[", begin):
        end = _walk_array(line, begin, choice, where, values)
    else:
        end = _end(line, begin)
    if choice.ends:
        values.append(_Value(where, choice.ends, begin, end))
    return end


def _walk_object(line: bytes, begin: int, choice: Choice, where: str, values: list[_Value]) -> int:
    inside: dict[str, list[_Value]] = {}
    end = begin + 1
    while member := _MEMBER.match(line, end):
        begin, end = member.span(2)
        name = _name(member[1])
        if chosen := choice.inside(name):
            if SURROGATE.search(name):
                raise LONE_SURROGATE.why(where or "a key")
            inside.pop(name, None)  # a second value counts, and in its own place
            own = inside[name] = []
            path = below(where, name)
            if end < 0:
                end = _walk(line, member.end(), chosen, path, own)
            elif chosen.ends:
                own.append(_Value(path, chosen.ends, begin, end))
        elif end < 0:
            end = _end(line, member.end())
    for some in inside.values():
        values += some
    return _after(_CLOSING, line, end)


def _walk_array(line: bytes, begin: int, choice: Choice, where: str, values: list[_Value]) -> int:
    end = _after(_COMMA, line, begin + 1)  # there is no comma yet
    number = 0
    while not line.startswith(b"]", end):
        if (chosen := choice.inside(number)) is None:
            end = _end(line, end)
        else:
            end = _walk(line, end, chosen, below(where, number), values)
        end = _after(_COMMA, line, end)
        number += 1
    return end + 1


def _name(key: bytes) -> str:
    name: str = json.loads(key) if b"\\" in key else key[1:-1].decode()
    return name


def _end(line: bytes, begin: int) -> int:
    """Where the value that begins here ends, however deep it is."""
    if not line.startswith((b"{", b"["), begin):
        return _after(_SIMPLE, line, begin)
    depth = 0
    for part in _TO_BRACKET.finditer(line, begin):
        depth += 1 if line.startswith((b"{", b"["), part.end() - 1) else -1
        if not depth:
            return part.end()
    raise AssertionError("not valid JSON")


def _after(pattern: re.Pattern[bytes], line: bytes, begin: int) -> int:
    part = pattern.match(line, begin)
    assert part, "not valid JSON"
    return part.end()
