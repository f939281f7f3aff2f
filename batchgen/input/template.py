"""`[prompt] template`: the user's utterance, made from any columns."""

import math
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import msgspec

from ..errors import Reject
from ..job import row_limits
from .conversation import USER, Conversation, Utterance, decoded, text_of
from .turns import as_turn

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_FIELD = re.compile(r"(?P<path>.*?)(?:!(?P<conversion>[rsa]))?(?::(?P<format>.*))?", re.DOTALL)
_PATH = re.compile(r"(?P<root>[^.\[\]]+)(?P<keys>(?:\.[^.\[\]]+|\[[^\[\]]+\])+)")
_CONVERSIONS: dict[str, Callable[[Any], str]] = {"r": repr, "a": ascii, "s": str}
_KEY = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]")


class Field(NamedTuple):
    """A field of a template.

    Attributes:
        whole: everything between the braces.
        path: `whole` without conversion and format.
        keys: the column, and the keys of the objects inside it, if the path has some.
        conversion: r, a, s, or "".
        format: format specification, or "".
    """

    whole: str
    path: str
    keys: tuple[str, ...]
    conversion: str
    format: str

    @property
    def column(self) -> str:
        """The column that the path begins with."""
        return self.keys[0]

    def names(self) -> tuple[str, ...]:
        """The columns that may be meant: a column whose name has a dot, a bracket or a colon wins over a path."""
        return self.whole, self.path, self.column


class Template:
    """A text with columns in braces, written like a Python format string. `{a.b}` and `{a[b]}` reach into objects, and
    into nothing else.

    Attributes:
        columns: the columns that it uses.
        candidates: every name that may be one of its columns, see `Field.names`.
    """

    def __init__(self, template: str):
        """Raises ValueError if the template is invalid."""
        self._pieces: list[str | Field] = []
        position = 0
        for piece in _PIECE.finditer(template):
            self._pieces.append(template[position : piece.start()])
            position = piece.end()
            if piece[0] in ("{{", "}}"):
                self._pieces.append(piece[0][0])
            elif piece[1] is None:
                raise ValueError(f"a single {piece[0]}; write it twice to have it in the text")
            else:
                self._pieces.append(_field(piece[1]))
        self._pieces.append(template[position:])
        self._fields = [piece for piece in self._pieces if isinstance(piece, Field)]
        if not self._fields:
            raise ValueError("it names no column, such as {text}")
        self.columns = list(dict.fromkeys(field.column for field in self._fields))
        self.candidates = list(dict.fromkeys(name for field in self._fields for name in field.names()))

    def missing(self, names: Collection[str]) -> list[str]:
        """The template's columns that are not among `names`."""
        return [field.column for field in self._fields if not any(name in names for name in field.names())]

    def fill(self, record: dict[str, Any]) -> Conversation:
        """The conversation of a record. Raises Reject(bad_shape | empty | invalid_utf8)."""
        text = "".join(piece if isinstance(piece, str) else _filled(piece, record) for piece in self._pieces)
        return [Utterance(USER, text_of(text, "the filled template"))]

    def values(self, record: dict[str, Any]) -> str:
        """What of a record a filled template holds, without the template's own words."""
        return "\n".join(_filled(field, record) for field in self._fields)


def _field(whole: str) -> Field:
    parts = _FIELD.fullmatch(whole)
    assert parts  # it takes any text
    path, conversion, format = parts["path"], parts["conversion"] or "", parts["format"] or ""
    if not path:
        raise ValueError(f"{{{whole}}} is not the name of a column")
    row_limits.check_width(format)
    keys = [path]
    if reaching := _PATH.fullmatch(path):
        keys = [reaching["root"], *(dotted or bracketed for dotted, bracketed in _KEY.findall(reaching["keys"]))]
        # Here Python's format strings would reach into lists and into attributes of objects.
        if reaching["root"].isdigit() or any(key.isdigit() or key.startswith("__") for key in keys[1:]):
            raise ValueError(f"{{{whole}}} is not the name of a column, or of a key in one")
    return Field(whole, path, tuple(keys), conversion, format)


def _filled(field: Field, record: dict[str, Any]) -> str:
    value = record.get(field.whole)
    if not _is_null(value):
        return _written(value, field.whole)
    value = record.get(field.path)
    if _is_null(value) and len(field.keys) > 1:
        value = _reach(record.get(field.column), field.keys[1:])
    if _is_null(value):
        raise Reject("bad_shape", f"the template needs {field.path}; has {', '.join(record) or 'nothing'}")
    try:
        if field.conversion:
            value = _CONVERSIONS[field.conversion](value)
        elif isinstance(value, bytes):
            value = decoded(value, field.path)
        return format(value, field.format) if field.format else _written(value, field.path)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise Reject("bad_shape", f"the template does not fit the row: {error}") from None


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))  # which is pandas' null


def _reach(value: Any, keys: tuple[str, ...]) -> Any:
    """The value at a path of keys into nested objects; None if there is none."""
    for key in keys:
        inner = as_turn(value)
        value = inner.get(key) if inner else None
    return value


def _written(value: Any, name: str) -> str:
    """A value as text for a prompt: bytes are decoded, lists and objects become JSON."""
    if isinstance(value, bytes):
        return decoded(value, name)
    if isinstance(value, list | dict | tuple):
        return msgspec.json.encode(value, enc_hook=str).decode()
    return str(value)
