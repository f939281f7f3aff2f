"""Arrow arrays of any type, drawn by hypothesis."""

from decimal import Decimal

import pyarrow as pa
from hypothesis import strategies as st

TEXTS = st.text(max_size=4).map(str.encode) | st.just(b"\xff\xfe")
LEAVES = st.sampled_from(
    [
        *(pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.string(), pa.large_string()),
        *(pa.binary(), pa.binary(3), pa.date32(), pa.timestamp("ns"), pa.timestamp("s"), pa.timestamp("us", "UTC")),
        *(pa.time64("ns"), pa.duration("ns"), pa.decimal128(9, 2), pa.uuid(), pa.json_()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.string_view(), pa.month_day_nano_interval(), pa.bool8()),
    ]
)
TYPES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(lambda kind: pa.list_(kind, 2)),
        inner.map(lambda kind: pa.map_(pa.string(), kind)),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda kinds: pa.struct([(f"f{i}", k) for i, k in enumerate(kinds)])
        ),
    ),
    max_leaves=4,
)


@st.composite
def arrays(draw, kind: pa.DataType, rows: int, texts: st.SearchStrategy[bytes] = TEXTS) -> pa.Array:
    """Values of any type, nulls among them. texts: what strings hold; by default also what is not UTF-8."""
    valid = [draw(st.integers(0, 4)) > 0 for _ in range(rows)]
    mask = pa.array([not each for each in valid], pa.bool_())
    types = pa.types
    if types.is_list_view(kind):
        plain = draw(arrays(pa.list_(kind.value_field), rows, texts))
        sizes = plain.value_lengths().fill_null(0)
        return pa.ListViewArray.from_arrays(plain.offsets[:rows], sizes, plain.values, type=kind, mask=mask)
    if types.is_null(kind):
        return pa.nulls(rows)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, draw(arrays(kind.storage_type, rows, texts)))
    if types.is_dictionary(kind):
        return draw(arrays(kind.value_type, rows, texts)).dictionary_encode().cast(kind)
    if types.is_struct(kind):
        return pa.StructArray.from_arrays(
            [draw(arrays(f.type, rows, texts)) for f in kind], fields=list(kind), mask=mask
        )
    if types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(draw(arrays(kind.value_type, 2 * rows, texts)), type=kind, mask=mask)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        sizes = [draw(st.sampled_from([1, 2, 2, 0])) if each else 0 for each in valid]
        ends = [0]
        for size in sizes:
            ends.append(ends[-1] + size)
        if types.is_map(kind):
            keys = pa.array(draw(st.lists(st.text(max_size=2), min_size=ends[-1], max_size=ends[-1])), pa.string())
            marks = pa.array([None if not ok else at for ok, at in zip([*valid, True], ends, strict=True)], pa.int32())
            return pa.MapArray.from_arrays(marks, keys, draw(arrays(kind.item_type, ends[-1], texts)), type=kind)
        of = pa.ListArray if types.is_list(kind) else pa.LargeListArray
        marks = pa.array([None if not ok else at for ok, at in zip([*valid, True], ends, strict=True)])
        marks = marks.cast(pa.int32() if types.is_list(kind) else pa.int64())
        return of.from_arrays(marks, draw(arrays(kind.value_type, ends[-1], texts)), type=kind)
    if types.is_string(kind) or types.is_large_string(kind):
        values = [draw(texts) if ok else None for ok in valid]
        wide = types.is_large_string(kind)
        return pa.array(values, pa.large_binary() if wide else pa.binary()).view(kind)
    if types.is_string_view(kind):
        own = st.text(max_size=20) if texts is TEXTS else texts.map(bytes.decode)
        return pa.array([draw(own) if ok else None for ok in valid], kind)
    if types.is_binary(kind) or types.is_fixed_size_binary(kind):
        size = kind.byte_width if types.is_fixed_size_binary(kind) else 3
        return pa.array([draw(st.binary(min_size=size, max_size=size)) if ok else None for ok in valid], kind)
    if types.is_decimal(kind):
        return pa.array([Decimal(draw(st.integers(-999, 999))) / 100 if ok else None for ok in valid], kind)
    if types.is_boolean(kind):
        return pa.array([draw(st.booleans()) if ok else None for ok in valid], kind)
    if types.is_floating(kind):
        return pa.array([draw(st.floats(width=32)) if ok else None for ok in valid], kind)
    if types.is_interval(kind):
        return pa.array([pa.MonthDayNano([1, 2, 3]) if ok else None for ok in valid], kind)
    bits = kind.bit_width
    low, high = (0, 2**bits - 1) if types.is_unsigned_integer(kind) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if types.is_time(kind):
        low, high = 0, 86399
    values = [draw(st.integers(low, high)) if ok else None for ok in valid]
    plain = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[bits]
    return pa.array(values, kind if types.is_integer(kind) else plain).view(kind)
