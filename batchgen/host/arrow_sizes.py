"""How many bytes each row of an Arrow array takes by itself; a dictionary's value counts for every row that uses it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

VALUE = 64  # bytes that a value inside a list or an object takes in Python, on top of its text

Sizes = Any  # a NumPy array of int64


def of_rows(batch: pa.RecordBatch, names: Iterable[str], value: int = VALUE) -> Sizes:
    """Bytes of each row, over these columns. value: see `of_values`."""
    total = np.zeros(batch.num_rows, np.int64)
    for name in names:
        total += of_values(batch[name], value)
    return total


def of_values(array: pa.Array, value: int = VALUE) -> Sizes:
    """Bytes of each value of an array. value: overhead of each nested value, in bytes."""
    kind = array.type
    if kinds.is_dictionary(kind):
        inside = np.append(of_values(array.dictionary, value), 0)  # the last is the size of a null
        places = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        if len(places) and not -1 <= places.min() <= places.max() < len(array.dictionary):
            raise IndexError("damaged: an index without its value")
        return inside[places]
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_map(kind):
        return _of_lists(array, value)
    if kinds.is_fixed_size_list(kind):
        inside = of_values(array.values, value)[array.offset * kind.list_size :] + value
        return inside[: len(array) * kind.list_size].reshape(len(array), kind.list_size).sum(axis=1, dtype=np.int64)
    if kinds.is_struct(kind):
        fields = [of_values(array.field(number), value) + value for number in range(kind.num_fields)]
        return sum(fields, np.zeros(len(array), np.int64))
    if kinds.is_string(kind) or kinds.is_binary(kind) or kinds.is_large_string(kind) or kinds.is_large_binary(kind):
        width = np.int64 if kinds.is_large_string(kind) or kinds.is_large_binary(kind) else np.int32
        offsets = np.frombuffer(array.buffers()[1] or b"\0" * 8, width)
        return (
            np.diff(offsets[array.offset : array.offset + len(array) + 1].astype(np.int64)) if len(array) else _none()
        )
    return np.full(len(array), array.nbytes // max(1, len(array)), np.int64)


def _of_lists(array: pa.Array, value: int) -> Sizes:
    """The offsets of a slice count from the start of the whole array."""
    if not len(array):
        return _none()
    child = array.items if kinds.is_map(array.type) else array.values
    each = of_values(child, value) + value
    if kinds.is_map(array.type):
        each = each + of_values(array.keys, value) + value
    before = np.concatenate(([0], np.cumsum(each)))
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    return np.diff(before[offsets])


def _none() -> Sizes:
    return np.zeros(0, np.int64)
