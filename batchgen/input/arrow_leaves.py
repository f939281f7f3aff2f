"""The texts that paths choose in a row of an Arrow column, and other texts in their place. The type and all other
values stay, even those that Python cannot hold.

Texts are the strings in structs, in lists of any kind, in the values of maps, in dictionaries and in the storage of
extension types. JSON in a string is a string like any other; binary values are none.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

from ..errors import Reject
from .paths import Choice, Every, FieldPath, Found, Step, below, choice_of, found


class ArrowLeaf(NamedTuple):
    """A text in a row; a `paths.Leaf`.

    Attributes:
        path, text, chosen_by: see `paths.Leaf`.
        place: the number of the field, element or entry at each level of the column's type.
    """

    path: str
    text: str
    chosen_by: tuple[int, ...]
    place: tuple[int, ...]


def find(array: pa.Array, paths: Sequence[FieldPath]) -> Found[ArrowLeaf]:
    """The chosen texts in the only value of an array. Where a map has a key twice, both of its values are chosen.

    paths: some that begin with the array's column.

    Raises:
        Reject: invalid_utf8: a chosen text is not UTF-8.
    """
    [column] = {path.column for path in paths}
    values: list[_Value] = []
    if choice := choice_of(tuple(paths)).inside(column):
        _walk(array, choice, [_Slot(0, below("", column), ())], values)
    values.sort(key=lambda value: value.place)
    leaves = [ArrowLeaf(path, text, by, place) for place, path, by, text in values if text is not None]
    return found(paths, leaves, (value.chosen_by for value in values if value.text is None))


def replace(array: pa.Array, leaves: Sequence[ArrowLeaf], texts: Sequence[str | None]) -> pa.Array:
    """An array of the same type with a text in place of each leaf, or null for None. It is the array itself if nothing
    changes.

    Args:
        array: the valid array of one value in which `find` found the leaves.
        leaves: all of them or some.
        texts: one for each. None only where `may_be_null`.

    Raises:
        Reject: bad_shape: the row has more different texts than the index of its dictionary can tell apart.
    """
    pairs = zip(leaves, texts, strict=True)
    changes = [_Change(0, leaf.place, text) for leaf, text in pairs if text != leaf.text]
    if not changes:
        return array
    made = _replaced(array, changes)
    made.validate(full=True)
    return made


def fields_of(field: pa.Field, path: FieldPath) -> list[pa.Field]:
    """The fields of strings that a path chooses in a column, going by the column's type alone. There are none if the
    path can never lead to a text."""
    return list(_fields(field, path.steps[1:]))


def may_be_null(field: pa.Field, path: FieldPath) -> bool:
    """Whether every text that a path chooses in a column may be replaced by null."""
    return all(each.nullable for each in fields_of(field, path))


def _fields(field: pa.Field, steps: Sequence[Step]) -> Iterator[pa.Field]:
    kind = _stored(field.type)
    if not steps:
        if _is_text(kind):
            yield field
        return
    step, *left = steps
    if kinds.is_struct(kind) and (isinstance(step, str) or step is Every.VALUE):
        for each in kind:
            if step in (each.name, Every.VALUE):
                yield from _fields(each, left)
    elif kinds.is_map(kind) and (isinstance(step, str) or step is Every.VALUE):
        yield from _fields(kind.item_field, left)
    elif _is_list(kind) and (isinstance(step, int) or step is Every.ELEMENT):
        yield from _fields(kind.value_field, left)


def _stored(kind: pa.DataType) -> pa.DataType:
    return _stored(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _is_text(kind: pa.DataType) -> bool:
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind) or _is_list_view(kind)


def _is_list_view(kind: pa.DataType) -> bool:
    return kinds.is_list_view(kind) or kinds.is_large_list_view(kind)


# --- finding


class _Slot(NamedTuple):
    """A value that paths lead to: the one at `at` of some array."""

    at: int
    path: str
    place: tuple[int, ...]


class _Value(NamedTuple):
    """A value that paths choose. text: None if it is something else."""

    place: tuple[int, ...]
    path: str
    chosen_by: tuple[int, ...]
    text: str | None


def _walk(array: pa.Array, choice: Choice, slots: Iterable[_Slot], values: list[_Value]) -> None:
    """Collects what is chosen from these slots of an array."""
    if isinstance(array, pa.ExtensionArray):
        return _walk(array.storage, choice, slots, values)
    if not (slots := [slot for slot in slots if array[slot.at].is_valid]):
        return
    kind = array.type
    if choice.ends:
        is_text = _is_text(kind)
        for at, path, place in slots:
            text = _text(array[at], path) if is_text else None
            if text is not None or not is_text:  # a dictionary may have null among its values
                values.append(_Value(place, path, choice.ends, text))
    if choice.takes_values and kinds.is_struct(kind):
        for number, field in enumerate(kind):
            if chosen := choice.inside(field.name):
                deeper = (_Slot(at, below(path, field.name), (*place, number)) for at, path, place in slots)
                _walk(array.field(number), chosen, deeper, values)
    elif (choice.takes_values and kinds.is_map(kind)) or (choice.takes_elements and _is_list(kind)):
        _walk_elements(array, choice, slots, values)


def _walk_elements(array: pa.Array, choice: Choice, slots: list[_Slot], values: list[_Value]) -> None:
    """The same for lists, and for maps, whose values are the elements."""
    child, spans = _elements(array)
    names = _names(_keys(array, len(child)), slots[0].path) if kinds.is_map(array.type) else None
    chosen: dict[Choice, list[_Slot]] = defaultdict(list)
    for at, path, place in slots:
        for number, element in enumerate(spans[at]):
            step = number if names is None else names[element]
            if step is not None and (inside := choice.inside(step)):
                chosen[inside].append(_Slot(element, below(path, step), (*place, number)))
    for inside, deeper in chosen.items():
        _walk(child, inside, deeper, values)


def _elements(array: pa.Array) -> tuple[pa.Array, list[range]]:
    """The elements of lists, or the values of maps, and for each list or map of the array which of them it has."""
    kind = array.type
    if kinds.is_fixed_size_list(kind):
        size = kind.list_size
        child = array.values.slice(array.offset * size, len(array) * size)
        return child, [range(number * size, (number + 1) * size) for number in range(len(array))]
    offsets = array.offsets.to_pylist()
    if _is_list_view(kind):
        sizes = array.sizes.to_pylist()
        return array.values, [range(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True)]
    first = offsets[0]
    child = (array.items if kinds.is_map(kind) else array.values).slice(first, offsets[-1] - first)
    return child, [range(begin - first, end - first) for begin, end in pairwise(offsets)]


def _keys(array: pa.MapArray, count: int) -> pa.Array:
    return array.keys.slice(array.offsets[0].as_py(), count)


def _names(keys: pa.Array, path: str) -> Sequence[str | None]:
    """The keys of maps as text; None for those that cannot be text."""
    try:
        keys = keys if _is_text(keys.type) else keys.cast(pa.string())
    except pa.ArrowException:
        return [None] * len(keys)
    return [_text(key, path) for key in keys]


def _text(value: pa.Scalar, path: str) -> str | None:
    try:
        text: str | None = value.as_py()
        return text
    except UnicodeDecodeError as error:
        raise Reject("invalid_utf8", f"{path}: byte {error.start} of the text: {error.reason}") from None


# --- replacing


class _Change(NamedTuple):
    """A text for the slot `at` of an array, or for one inside it: see `ArrowLeaf.place`."""

    at: int
    place: tuple[int, ...]
    text: str | None


def _replaced(array: pa.Array, changes: list[_Change]) -> pa.Array:
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(kind, _replaced(array.storage, changes))
    if kinds.is_struct(kind):
        return _replaced_in_struct(array, changes)
    if kinds.is_map(kind) or _is_list(kind):
        return _replaced_in_elements(array, changes)
    texts = array.to_pylist()
    for change in changes:
        texts[change.at] = change.text
    return _encoded(texts, kind) if kinds.is_dictionary(kind) else pa.array(texts, kind)


def _replaced_in_struct(array: pa.StructArray, changes: list[_Change]) -> pa.StructArray:
    inside = defaultdict(list)
    for at, (number, *place), text in changes:
        inside[number].append(_Change(at, tuple(place), text))
    fields = [array.field(number) for number in range(array.type.num_fields)]
    for number, some in inside.items():
        fields[number] = _replaced(fields[number], some)
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(fields, fields=list(array.type), mask=mask)


def _replaced_in_elements(array: pa.Array, changes: list[_Change]) -> pa.Array:
    kind = array.type
    child, spans = _elements_apart(array) if _is_list_view(kind) else _elements(array)
    inside = [_Change(spans[at][number], tuple(place), text) for at, (number, *place), text in changes]
    made = _replaced(child, inside)
    if kinds.is_map(kind):
        made = pa.StructArray.from_arrays([_keys(array, len(child)), made], fields=[kind.key_field, kind.item_field])
    buffers = [_validity(array)]
    if not kinds.is_fixed_size_list(kind):
        offsets = [0, *(span.stop for span in spans)]
        buffers += [_integers(offsets, kind)]
    if _is_list_view(kind):
        buffers += [_integers([len(span) for span in spans], kind)]
    return pa.Array.from_buffers(kind, len(array), buffers, children=[made])


def _elements_apart(array: pa.Array) -> tuple[pa.Array, list[range]]:
    """The same as `_elements` for list views, of which several may have the same elements: here each has its own."""
    pairs = zip(array.sizes.to_pylist(), array.is_valid().to_pylist(), strict=True)
    sizes = [size if is_valid else 0 for size, is_valid in pairs]
    return array.flatten(), [range(begin, end) for begin, end in pairwise(accumulate(sizes, initial=0))]


def _integers(numbers: Sequence[int], kind: pa.DataType) -> pa.Buffer:
    """As the offsets of lists of this kind are stored."""
    is_large = kinds.is_large_list(kind) or kinds.is_large_list_view(kind)
    return pa.py_buffer(np.array(numbers, np.int64 if is_large else np.int32))


def _validity(array: pa.Array) -> pa.Buffer | None:
    """Which values are not null, as it is stored for an array without an offset."""
    if not array.null_count:
        return None
    return pa.py_buffer(np.packbits(array.is_valid().to_numpy(zero_copy_only=False), bitorder="little"))


def _encoded(texts: Sequence[str | None], kind: pa.DictionaryType) -> pa.DictionaryArray:
    distinct = {text: number for number, text in enumerate(dict.fromkeys(text for text in texts if text is not None))}
    indices = [None if text is None else distinct[text] for text in texts]
    try:
        made = pa.array(indices, kind.index_type)
    except pa.ArrowInvalid:
        why = f"{len(distinct)} different texts, more than an index of {kind.index_type} can tell apart"
        raise Reject("bad_shape", why) from None
    return pa.DictionaryArray.from_arrays(made, pa.array(list(distinct), kind.value_type), ordered=kind.ordered)
