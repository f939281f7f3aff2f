"""Passed-through columns: their names, their types, and whether a value fits.

A value that does not fit is found before anything is generated, row by row. Values of columnar files stay Arrow values
from file to shard, so that those that Python cannot represent come out unchanged; values of text files are Python
values and are checked one by one.
"""

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as kinds

from ..errors import JobError, Reject
from .conversation import PartlyReadable, Unreadable

# Type name in the job file -> Arrow type. json takes any value and writes it as JSON text.
TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "json": pa.string(),
    "int32": pa.int32(),
    "float": pa.float32(),
}
_VIEWS = (pa.string_view().id, pa.binary_view().id)
_BINARY = (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_fixed_size_binary)
_ARROW_SAYS_NO = (pa.ArrowException, ValueError, TypeError, OverflowError)


class Column(NamedTuple):
    """A passed-through column.

    Attributes:
        name: its name in the output.
        source: its name in the input.
        type: its Arrow type in the output.
        is_json: whether values are written as JSON text.
    """

    name: str
    source: str
    type: pa.DataType
    is_json: bool = False

    @property
    def kind(self) -> str:
        """The name of the type, as recorded in `_job.json`."""
        return "json" if self.is_json else str(self.type)


class Wanted(NamedTuple):
    """What `[output] columns` says about a column.

    Attributes:
        name: its name in the output.
        source: its name in the input.
        declared: its type by a name of TYPES; "" if not declared.
    """

    name: str
    source: str
    declared: str


class Cell(NamedTuple):
    """A value that stays in Arrow: the one at `place` of `array`. size: bytes that it takes if it is not shared."""

    array: pa.Array
    place: int
    size: int = 0


# --- what `[output] columns` says


def parse(texts: Iterable[str], known: Iterable[str]) -> list[Wanted]:
    """Parses `COLUMN` and `COLUMN=NAME`, each with an optional `:TYPE`. A text that is a column's whole name means it.

    known: the names of the input's columns, as far as they are known. Raises JobError.
    """
    known = set(known)
    found: dict[str, Wanted] = {}
    for text in dict.fromkeys(texts):
        wanted = _parse(text, known)
        if wanted.name in found and found[wanted.name] != wanted:
            raise JobError(
                f"[output] columns: {wanted.name} is named twice; give one of them another name: {text}=other"
            )
        found[wanted.name] = wanted
    return list(found.values())


def _parse(text: str, known: set[str]) -> Wanted:
    if text in known:
        return Wanted(text, text, "")
    before, colon, after = text.rpartition(":")
    spec, declared = (before, after) if colon and after in TYPES else (text, "")
    if spec in known:
        return Wanted(spec, spec, declared)
    ways = [(spec[:place], spec[place + 1 :]) for place, sign in enumerate(spec) if sign == "="]
    ways = [way for way in ways if way[0] in known] or ways[:1]
    if ways:
        return Wanted(ways[0][1], ways[0][0], declared)
    source, colon, unknown = spec.rpartition(":")
    if colon and source in known and not declared:
        raise JobError(f"column {text}: type must be one of {', '.join(TYPES)}, not {unknown!r}")
    return Wanted(spec, spec, declared)


def check_names(wanted: Iterable[Column], written: Iterable[str]) -> None:
    """Raises JobError if a column has the name of one that batchgen itself writes in this job."""
    own = set(written)
    for each in wanted:
        if each.name in own:
            raise JobError(
                f"[output] columns: {each.name} is one of batchgen's own columns; pass yours under another name: "
                f"--column {each.source}=other"
            )


# --- types


class Seen:
    """The types of the values that a JSON key has, over all rows."""

    def __init__(self) -> None:
        self.types: set[type] = set()
        self.is_wide = False  # a whole number beyond 64 bits

    def add(self, value: Any) -> None:
        """Takes note of a value."""
        kind = type(value)
        self.types.add(kind)
        if kind is int and not -(2**63) <= value < 2**63:
            self.is_wide = True

    @property
    def kind(self) -> pa.DataType | None:
        """The type that holds all of them; Arrow's null type if there were only nulls; None if only JSON text does."""
        seen = self.types - {type(None)}
        if not seen:
            return pa.null()
        if seen == {float} or seen == {int, float}:
            return pa.float64()
        if seen == {int}:
            return None if self.is_wide else pa.int64()  # as JSON text a long number keeps all its digits
        return {str: pa.string(), bool: pa.bool_()}.get(seen.pop()) if len(seen) == 1 else None


def widest(types: Sequence[pa.DataType]) -> pa.DataType | None:
    """The type that holds the values of all these types; None if there is none."""
    if all(kind == types[0] for kind in types):
        return types[0]
    plain = [_family(kind) for kind in types]
    if any(kinds.is_string(kind) for kind in plain) != all(
        kinds.is_string(kind) or kinds.is_null(kind) for kind in plain
    ):
        return None
    try:
        schemas = [pa.schema([("x", kind)]) for kind in plain]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _family(kind: pa.DataType) -> pa.DataType:
    """The type without what only concerns storage: dictionaries, large and view types, fixed sizes."""
    kind = dense(kind)
    if kinds.is_large_string(kind):
        return pa.string()
    if kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind):
        return pa.binary()
    return kind


def settled(kind: pa.DataType) -> pa.DataType:
    """A type as it is written: dictionaries with indices wide enough for any shard, and no views inside other types,
    which Arrow cannot write."""
    if kinds.is_dictionary(kind):
        return pa.dictionary(pa.int32(), dense(kind.value_type), kind.ordered)
    return _inside(kind, lambda part: settled(part) if part.id not in _VIEWS else dense(part))


def dense(kind: pa.DataType) -> pa.DataType:
    """The type in which values are collected: without dictionaries and views, which Arrow cannot concatenate."""
    if kinds.is_dictionary(kind):
        return dense(kind.value_type)
    if kinds.is_string_view(kind):
        return pa.string()
    if kinds.is_binary_view(kind):
        return pa.binary()
    return _inside(kind, dense)


def _inside(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with `change` applied to the types nested in it."""

    def changed(field: pa.Field) -> pa.Field:
        return field.with_type(change(field.type))

    if kinds.is_struct(kind):
        return pa.struct([changed(field) for field in kind])
    if kinds.is_map(kind):
        return pa.map_(changed(kind.key_field), changed(kind.item_field), kind.keys_sorted)
    if kinds.is_fixed_size_list(kind):
        return pa.list_(changed(kind.value_field), kind.list_size)
    for is_one, make in (
        (kinds.is_list, pa.list_),
        (kinds.is_large_list, pa.large_list),
        (kinds.is_list_view, pa.list_view),
        (kinds.is_large_list_view, pa.large_list_view),
    ):
        if is_one(kind):
            return make(changed(kind.value_field))
    return kind


def check_type(column: Column, sources: Iterable[pa.DataType]) -> None:
    """Tries on an empty array what will be done to all values. Raises JobError."""
    for source in (*sources, column.type):
        try:
            if not column.is_json:
                cast(pa.array([], source), column)
            _write(assemble([], column.type))
        except _ARROW_SAYS_NO as error:
            reason = " ".join(str(error).split())[:120]
            raise JobError(
                f"column {column.source}: {source} cannot be passed through as {column.kind} ({reason}); "
                f"leave it out, or try {column.source}:json"
            ) from None


def _write(array: pa.Array) -> None:
    pq.write_table(pa.table([array], ["x"]), pa.BufferOutputStream())


# --- values of columnar files


def cast(array: pa.Array, column: Column) -> pa.Array:
    """An array in the type in which its column's values are collected. Raises what Arrow raises."""
    if kinds.is_dictionary(array.type) and not kinds.is_nested(array.type.value_type):  # each value only once
        array.validate(full=True)
        return pa.DictionaryArray.from_arrays(array.indices, cast(array.dictionary, column))
    array.validate(full=True)
    target = dense(column.type)
    if array.type == target:
        return array
    if kinds.is_integer(array.type) and kinds.is_floating(target):  # rounds large integers, as JSON parsers do
        return array.cast(options=pc.CastOptions(target, allow_float_truncate=True))
    return array.cast(target)


class Fitted(NamedTuple):
    """A column of a batch.

    Attributes:
        array: its values, with null for each that does not fit.
        unfit: row of the batch -> why its value does not fit.
    """

    array: pa.Array
    unfit: dict[int, Reject]


def fit(array: pa.Array, column: Column, is_parquet: bool) -> Fitted:
    """A batch's values in the type of their column: converted all at once, and one by one only if that fails.

    is_parquet: the values come from a Parquet file, so they can be written to one; for others that is tried.
    """
    if column.is_json:
        return _as_json_column(array, column)

    def tried(part: pa.Array) -> pa.Array:
        done = cast(part, column)
        if not is_parquet:
            _write(done)
        return done

    try:
        return Fitted(tried(array), {})
    except _ARROW_SAYS_NO:
        pass
    array = dense_values(array)
    parts, unfit = [], {}
    for index in range(len(array)):
        one = alone(array, index)
        try:
            parts.append(tried(one))
        except _ARROW_SAYS_NO:
            parts.append(pa.nulls(1, dense(column.type)))
            unfit[index] = _why_not(one, column)
    return Fitted(pa.concat_arrays(parts), unfit)


def dense_values(array: pa.Array) -> pa.Array:
    """The array without dictionary encoding."""
    return array.dictionary_decode() if kinds.is_dictionary(array.type) else array


def alone(array: pa.Array, index: int) -> pa.Array:
    """An array of one value only. (A slice of lists would keep the values of all the others.)"""
    try:
        return array.take(pa.array([index]))
    except pa.ArrowNotImplementedError:  # views, which share nothing
        return array.slice(index, 1)


def _why_not(one: pa.Array, column: Column) -> Reject:
    try:
        one.validate(full=True)
    except pa.ArrowException as error:
        return Reject("invalid_utf8" if "UTF8" in str(error) else "bad_shape", f"column {column.source}: {error}")
    return _unfit(readable(one[0]), column)


def _unfit(value: Any, column: Column) -> Reject:
    return Reject(
        "bad_shape",
        f"column {column.source}: {value!r:.80} is not {column.kind}; declare the column as {column.source}:json",
    )


def _as_json_column(array: pa.Array, column: Column) -> Fitted:
    texts: list[str | None] = []
    unfit = {}
    for index, value in enumerate(pythons(array)):
        if isinstance(value, Unreadable):
            unfit[index] = value.why(column.source)
            texts.append(None)
        else:
            texts.append(None if value is None else as_json(value))
    return Fitted(pa.array(texts, pa.string()), unfit)


def pythons(array: pa.Array) -> list[Any]:
    """The values as Python values; binary ones are decoded as text. One that Python cannot represent is an Unreadable
    and does not affect the others."""
    kind = array.type
    if kinds.is_dictionary(kind) and not kinds.is_nested(kind.value_type):
        return pythons_of_dictionary(array)
    if any(is_one(kind) for is_one in _BINARY):
        return [_decoded(value) for value in array.to_pylist()]
    if getattr(kind, "unit", "") == "ns":  # more precise than Python's types
        return (
            array.cast(pa.string()).to_pylist() if not kinds.is_duration(kind) else array.cast(pa.int64()).to_pylist()
        )
    try:
        return array.to_pylist()
    except Exception:  # each type's conversion raises errors of its own
        return [_python(value) for value in array]


def pythons_of_dictionary(array: pa.DictionaryArray) -> list[Any]:
    """The same for a dictionary-encoded array: each of its values is converted once."""
    values = pythons(array.dictionary)
    return [None if index is None else values[index] for index in array.indices.to_pylist()]


def _python(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return Unreadable("invalid_utf8", f"byte {error.start} of the text: {error.reason}")
    except Exception as error:
        return Unreadable("bad_shape", " ".join(str(error).split())[:200])


def _decoded(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        return Unreadable("invalid_utf8", f"byte {error.start} of the text: {error.reason}")


def readable(value: pa.Scalar) -> Any:
    """A value to show to people."""
    found = _python(value)
    return f"a value of type {value.type}" if isinstance(found, Unreadable) else found


# --- values of text


def as_json(value: Any) -> str:
    """Any value as JSON text."""
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except (UnicodeEncodeError, TypeError, OverflowError, ValueError):  # a lone surrogate; unusual keys of a map
        return json.dumps(value, default=str, separators=(",", ":"))


def fit_value(value: Any, column: Column, is_text: bool = False) -> Any:
    """A value from JSON, or from CSV (is_text), in its column's type. Raises Reject(bad_shape | invalid_utf8)."""
    if value is None:
        return None
    if column.is_json:
        return as_json(value)
    check = _checks(column.type)
    try:
        if is_text and not kinds.is_string(column.type):
            return pa.scalar(value.strip()).cast(column.type).as_py() if value.strip() else None
        return check(value)
    except UnicodeEncodeError:
        raise Reject("invalid_utf8", f"column {column.source}: a lone surrogate") from None
    except _ARROW_SAYS_NO:
        raise _unfit(value, column) from None


@functools.cache
def _checks(kind: pa.DataType) -> Callable[[Any], Any]:
    """A function that converts a JSON value to this type, or raises."""
    if kinds.is_boolean(kind):
        return _boolean
    if kinds.is_integer(kind):
        return functools.partial(_integer, bits=kind.bit_width, signed=kinds.is_signed_integer(kind))
    if kinds.is_floating(kind):
        return functools.partial(_number, most={16: 65504.0, 32: 3.4028235677973366e38}.get(kind.bit_width, math.inf))
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind):
        return _string
    return functools.partial(_arrow, kind=kind)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _integer(value: Any, bits: int, signed: bool) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise TypeError
    value = int(value)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    if not low <= value < high:
        raise OverflowError
    return value


def _number(value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    value = float(value)
    if math.isfinite(value) and abs(value) > most:
        raise OverflowError
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    if not value.isascii():
        value.encode()
    return value


def _arrow(value: Any, kind: pa.DataType) -> Cell:
    made = (
        pa.array([value], pa.string()).cast(dense(kind)) if isinstance(value, str) else pa.array([value], dense(kind))
    )
    made.validate(full=True)
    _write(made)
    return Cell(made, 0)


# --- a shard's column


def assemble(values: Sequence[Any], kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """One array of a shard's values: cells and Python values, all of which fit."""
    inner = dense(kind)
    try:
        array = _joined(values, inner)
        if not kinds.is_dictionary(kind):
            array = dense_values(array)
    except pa.ArrowException:  # more than 2 GiB of text, the limit of an array
        if len(values) < 2:
            raise
        halves = [assemble(half, kind) for half in (values[: len(values) // 2], values[len(values) // 2 :])]
        return pa.chunked_array([chunk for half in halves for chunk in getattr(half, "chunks", [half])], kind)
    if inner == kind:
        return array
    if kinds.is_dictionary(kind):
        encoded = _encoded(array)
        return pa.DictionaryArray.from_arrays(encoded.indices, encoded.dictionary, ordered=kind.ordered)
    return array.cast(kind)


def _joined(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    runs = itertools.groupby(values, key=lambda value: id(value.array) if isinstance(value, Cell) else None)
    parts = [_run(list(run), kind) for _, run in runs]
    if len(parts) > 1:  # each part may have a dictionary of its own, too many values for one index among them
        parts = [dense_values(part) for part in parts]
    return pa.concat_arrays(parts) if parts else pa.array([], kind)


def _encoded(array: pa.Array) -> pa.DictionaryArray:
    """The array dictionary-encoded, with each value once and in order of appearance, whatever its encoding was."""
    if not kinds.is_dictionary(array.type):
        return array.dictionary_encode()
    first = array.indices.unique().drop_null()
    few = array.dictionary.take(first).dictionary_encode()
    places = pc.index_in(array.indices, first)
    return pa.DictionaryArray.from_arrays(few.indices.take(places), few.dictionary)


def _run(run: list[Any], kind: pa.DataType) -> pa.Array:
    """The array of a run of cells that share one array, or of values that are not cells."""
    if isinstance(run[0], Cell):
        array, places = run[0].array, [cell.place for cell in run]
        is_whole = len(places) == len(array) and places == [*range(len(array))]
        return array if is_whole else array.take(pa.array(places, pa.int64()))
    made = pa.array(run, kind)
    if isinstance(made, pa.ChunkedArray):
        raise pa.ArrowCapacityError("more than an array can hold")
    return made


class TextRow(dict[str, Any]):
    """A row of CSV: all its values are strings, which are converted to the declared type of their column."""


class PartlyReadableText(PartlyReadable, TextRow):
    """A row of CSV in which some values are not UTF-8."""
