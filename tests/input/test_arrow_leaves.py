"""Texts in Arrow values of any type: the chosen ones are found and replaced, and nothing else changes."""

import time

import pyarrow as pa
import pytest
from arrow_values import LEAVES, arrays
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.errors import JobError, Reject
from batchgen.input import columns
from batchgen.input.arrow_leaves import fields_of, find, may_be_null, replace
from batchgen.input.columns import Cell, Column, assemble, settled
from batchgen.input.paths import Every, FieldPath, parse

TURN = pa.struct([("role", pa.dictionary(pa.int8(), pa.string())), ("content", pa.large_string())])


def chosen(array: pa.Array, *texts: str) -> dict[str, str]:
    """path -> text"""
    return {leaf.path: leaf.text for leaf in find(array, [parse(text) for text in texts]).leaves}


def shouted(array: pa.Array, *texts: str) -> pa.Array:
    """The array with its chosen texts in capitals."""
    leaves = find(array, [parse(text) for text in texts]).leaves
    return replace(array, leaves, [leaf.text.upper() for leaf in leaves])


def one(value, kind) -> pa.Array:
    """The value as a slice of a longer array."""
    return pa.array([None, value, None], kind).slice(1, 1)


STRING = pa.string()
CASES = {
    "string": (STRING, "a", ["x"], {"x": "a"}, "A"),
    "large string": (pa.large_string(), "a", ["x"], {"x": "a"}, "A"),
    "string view": (pa.string_view(), "longer than twelve", ["x"], {"x": "longer than twelve"}, "LONGER THAN TWELVE"),
    "JSON text": (STRING, '{"a":"b"}', ["x", "x.a"], {"x": '{"a":"b"}'}, '{"A":"B"}'),
    "struct": (
        pa.struct([("a", STRING), ("b", STRING)]),
        {"a": "p", "b": "q"},
        ["x.b"],
        {"x.b": "q"},
        {"a": "p", "b": "Q"},
    ),
    "every field": (
        *(pa.struct([("a", STRING), ("b c", pa.int8()), ("d.e", STRING)]), {"a": "p", "b c": 1, "d.e": "q"}, ["x.*"]),
        *({"x.a": "p", 'x["d.e"]': "q"}, {"a": "P", "b c": 1, "d.e": "Q"}),
    ),
    "list": (pa.list_(STRING), ["a", None, "b"], ["x[*]"], {"x[0]": "a", "x[2]": "b"}, ["A", None, "B"]),
    "place": (pa.list_(STRING), ["a", "b"], ["x[1]"], {"x[1]": "b"}, ["a", "B"]),
    "large list": (pa.large_list(STRING), ["a", "b"], ["x[*]"], {"x[0]": "a", "x[1]": "b"}, ["A", "B"]),
    "list view": (pa.list_view(STRING), ["a", "b"], ["x[*]"], {"x[0]": "a", "x[1]": "b"}, ["A", "B"]),
    "large list view": (pa.large_list_view(STRING), ["a", "b"], ["x[0]"], {"x[0]": "a"}, ["A", "b"]),
    "fixed size list": (pa.list_(STRING, 2), ["a", None], ["x[*]"], {"x[0]": "a"}, ["A", None]),
    "map": (
        *(pa.map_(STRING, STRING), [("k", "a"), ("l", None), ("k", "b")], ["x.k"]),
        *({"x.k": "b"}, [("k", "A"), ("l", None), ("k", "B")]),
    ),
    "every value of a map": (
        *(pa.map_(STRING, STRING), [("k", "a"), ("l", "b")], ["x.*"]),
        *({"x.k": "a", "x.l": "b"}, [("k", "A"), ("l", "B")]),
    ),
    "map of numbers": (pa.map_(pa.int32(), STRING), [(5, "a"), (6, "b")], ["x.6"], {"x.6": "b"}, [(5, "a"), (6, "B")]),
    "dictionary": (pa.dictionary(pa.int8(), STRING), "a", ["x"], {"x": "a"}, "A"),
    "ordered dictionary": (pa.dictionary(pa.int8(), STRING, ordered=True), "a", ["x"], {"x": "a"}, "A"),
    "turns": (
        *(pa.list_(TURN), [{"role": "user", "content": "a"}, None, {"role": "user", "content": None}], ["x[*].*"]),
        {"x[0].role": "user", "x[0].content": "a", "x[2].role": "user"},
        [{"role": "USER", "content": "A"}, None, {"role": "USER", "content": None}],
    ),
    "parts": (
        *(pa.list_(pa.struct([("p", pa.list_(STRING))])), [{"p": ["a"]}, {"p": None}, {"p": ["b", "c"]}]),
        *(["x[*].p[0]"], {"x[0].p[0]": "a", "x[2].p[0]": "b"}, [{"p": ["A"]}, {"p": None}, {"p": ["B", "c"]}]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_chosen_texts_are_found_and_replaced_in_values_of_every_kind(name):
    kind, value, paths, found, made = CASES[name]
    array = one(value, kind)
    assert list(chosen(array, *paths).items()) == list(found.items())
    out = shouted(array, *paths)
    assert out.type == kind
    out.validate(full=True)
    assert out.to_pylist() == [made]


def test_a_column_of_text_in_an_extension_type_stays_one():
    array = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["a", '{"b":"c"}'])).slice(1)
    out = shouted(array, "x")
    assert (out.type, out.storage.to_pylist()) == (pa.json_(), ['{"B":"C"}'])


def test_texts_come_in_the_order_of_the_record():
    array = one([{"a": "1", "b": "2"}, {"a": "3", "b": "4"}], pa.list_(pa.struct([("a", STRING), ("b", STRING)])))
    assert list(chosen(array, "x[*].b", "x[*].a").values()) == ["1", "2", "3", "4"]


def test_a_text_that_two_paths_choose_is_taken_once():
    found = find(one(["a", "b"], pa.list_(STRING)), [parse("x[*]"), parse("x[0]")])
    assert [(leaf.path, leaf.chosen_by) for leaf in found.leaves] == [("x[0]", (0, 1)), ("x[1]", (0,))]


def test_paths_without_texts_are_told_from_those_that_lead_to_something_else():
    fields = [("s", STRING), ("n", STRING), ("i", pa.int8()), ("b", pa.binary()), ("l", pa.list_(STRING)), ("o", TURN)]
    value = {"s": "a", "n": None, "i": 7, "b": b"a", "l": [], "o": None}
    paths = [
        parse(text) for text in ("x.s", "x.n", "x.i", "x.b", "x.l[*]", "x.l", "x.o.content", "x.none", "x.s.t", "x")
    ]
    found = find(one(value, pa.struct(fields)), paths)
    assert list(map(str, found.missing)) == ["x.n", "x.l[*]", "x.o.content", "x.none", "x.s.t"]
    assert list(map(str, found.mistyped)) == ["x.i", "x.b", "x.l", "x"]


def test_a_null_stays_null_at_every_level():
    for kind in (STRING, TURN, pa.list_(TURN), pa.map_(STRING, STRING), pa.list_(STRING, 2), pa.list_view(STRING)):
        array = one(None, kind)
        found = find(array, [parse(text) for text in ("x", "x.*", "x[*]", "x[*].*")])
        assert (found.leaves, found.mistyped, len(found.missing)) == ([], [], 4)
    maps = one([None, [("k", "a")], []], pa.list_(pa.map_(STRING, STRING)))
    assert shouted(maps, "x[*].k").to_pylist() == [[None, [("k", "A")], []]]


def test_where_nothing_changes_the_array_itself_comes_back():
    array = one(["a", "b"], pa.list_(pa.dictionary(pa.int8(), STRING)))
    leaves = find(array, [parse("x[*]")]).leaves
    assert replace(array, leaves, ["a", "b"]) is array
    assert replace(array, [], []) is array


def test_a_null_may_be_put_in_where_the_field_of_the_text_may_be_null():
    array = one([{"role": "user", "content": "a"}], pa.list_(TURN))
    assert replace(array, find(array, [parse("x[*].content")]).leaves, [None]).to_pylist() == [
        [{"role": "user", "content": None}]
    ]
    bound = pa.field("s", STRING, nullable=False)
    field = pa.field("x", pa.struct([bound, ("t", STRING), ("m", pa.map_(STRING, bound)), ("l", pa.list_(bound))]))
    nullable = {text: may_be_null(field, parse(text)) for text in ("x.s", "x.t", "x.*", "x.m.k", "x.l[0]", "x.l[*]")}
    assert nullable == {"x.s": False, "x.t": True, "x.*": False, "x.m.k": False, "x.l[0]": False, "x.l[*]": False}
    assert not may_be_null(pa.field("x", STRING, nullable=False), parse("x"))


def test_a_type_tells_whether_a_path_can_lead_to_a_text():
    field = pa.field("x", pa.list_(pa.struct([("a", pa.json_()), ("b", pa.int8()), ("c", pa.map_(STRING, STRING))])))
    names = {
        text: [each.name for each in fields_of(field, parse(text))]
        for text in ("x[*].a", "x[3].*", "x[*].b", "x[*].c.k", "x[*].none", "x.a", "x[*]", "x[*].a.b")
    }
    assert [text for text, found in names.items() if found] == ["x[*].a", "x[3].*", "x[*].c.k"]


def test_metadata_names_and_nullability_of_fields_stay():
    inner = pa.field("z", STRING, nullable=False, metadata={"a": "b"})
    kinds = [pa.struct([inner]), pa.list_(inner), pa.map_(STRING, inner, keys_sorted=True), pa.list_(inner, 1)]
    for kind, value, path in zip(
        kinds, [{"z": "a"}, ["a"], [("k", "a")], ["a"]], ["x.z", "x[0]", "x.k", "x[0]"], strict=True
    ):
        array = one(value, kind)
        out = shouted(array, path)
        assert out.type.equals(array.type, check_metadata=True)
        assert "A" in str(out)


def test_list_views_of_the_same_elements_are_changed_apart():
    views = pa.ListViewArray.from_arrays(
        pa.array([0, 1], pa.int32()), pa.array([2, 1], pa.int32()), pa.array(["a", "b"])
    )
    array = pa.ListArray.from_arrays(pa.array([0, 2]), views)
    assert shouted(array, "x[0][1]").to_pylist() == [[["a", "B"], ["b"]]]


def test_a_text_that_is_not_utf8_is_the_reject_of_its_row():
    bad = pa.array([[b"a", b"caf\xe9"]], pa.list_(pa.binary()))
    array = pa.ListArray.from_arrays(bad.offsets, bad.values.view(STRING))
    assert chosen(array, "x[0]") == {"x[0]": "a"}
    with pytest.raises(Reject, match=r"invalid_utf8: x\[1\]: byte 3"):
        chosen(array, "x[*]")


def test_more_texts_than_the_index_of_a_dictionary_can_tell_apart_are_the_reject_of_their_row():
    array = one(["a"] * 200, pa.list_(pa.dictionary(pa.int8(), STRING)))
    leaves = find(array, [parse("x[*]")]).leaves
    assert len(replace(array, leaves, [str(place % 128) for place in range(200)])) == 1
    with pytest.raises(Reject, match=r"bad_shape: 200 different texts, more than an index of int8"):
        replace(array, leaves, [str(place) for place in range(200)])


# --- any type, against the same on Python values


def nested(inner: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    return st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(pa.list_view),
        inner.map(lambda kind: pa.list_(kind, 2)),
        inner.map(lambda kind: pa.map_(STRING, kind)),
        *[st.lists(inner, min_size=1, max_size=3).map(lambda kinds: pa.struct([*zip("abc", kinds, strict=False)]))] * 3,
    )


FLAT = st.sampled_from([STRING, pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), STRING)] * 3) | LEAVES
DEPTHS = [FLAT, nested(FLAT), nested(FLAT), nested(nested(FLAT)), nested(nested(nested(FLAT)))]
TYPES = st.sampled_from(DEPTHS).flatmap(lambda kinds: kinds)
TEXTS = st.text(max_size=4).map(str.encode)


def is_list(kind: pa.DataType) -> bool:
    return str(kind).startswith(("list", "large_list", "fixed_size_list"))


@st.composite
def paths_into(draw, kind: pa.DataType) -> FieldPath:
    """A path that fits a type, but for its end now and then."""
    steps: list = ["x"]
    while draw(st.sampled_from([True] * 9 + [False])):
        if pa.types.is_struct(kind):
            field = draw(st.sampled_from(list(kind)))
            steps.append(draw(st.sampled_from([Every.VALUE, field.name])))
            kind = field.type
        elif pa.types.is_map(kind):
            steps.append(draw(st.sampled_from([Every.VALUE, Every.VALUE, ""])))
            kind = kind.item_type
        elif is_list(kind):
            steps.append(draw(st.sampled_from([Every.ELEMENT, Every.ELEMENT, 0, 1])))
            kind = kind.value_type
        else:
            break
    return FieldPath(tuple(steps))


def changed(value, kind: pa.DataType, ways, change):
    """The same as `replace`, on a Python value. ways: the steps that are left of each path."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    types = pa.types
    if value is None:
        return None
    if () in ways and columns.dense(kind) in (STRING, pa.large_string()):
        return change(value)

    def inside(value, kind, step, every):
        return changed(value, kind, [way[1:] for way in ways if way and way[0] in (step, every)], change)

    if types.is_struct(kind):
        return {field.name: inside(value[field.name], field.type, field.name, Every.VALUE) for field in kind}
    if types.is_map(kind):
        return [(key, inside(each, kind.item_type, key, Every.VALUE)) for key, each in value]
    if is_list(kind):
        return [inside(each, kind.value_type, place, Every.ELEMENT) for place, each in enumerate(value)]
    return value


def is_held(array: pa.Array) -> bool:
    """Whether Python can hold the values."""
    try:
        array.to_pylist()
        return True
    except (ValueError, OverflowError):
        return False


def told(array: pa.Array | pa.ChunkedArray) -> str:
    """All values, in which even NaN is equal to itself."""
    return repr(array.to_pylist()) if is_held(array) else array.to_string(window=99, container_window=99)


ANY = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@ANY
@given(st.data(), TYPES)
def test_only_the_chosen_texts_change_and_put_back_they_give_the_array_back(data, kind):
    paths = data.draw(st.lists(paths_into(kind), min_size=1, max_size=3))
    whole = data.draw(arrays(kind, 3, TEXTS))
    array = data.draw(st.sampled_from([whole.slice(1, 1), whole[:1], whole[2:]]))
    leaves = find(array, paths).leaves
    assert replace(array, leaves, [leaf.text for leaf in leaves]) is array
    made = replace(array, leaves, [leaf.text + "é" for leaf in leaves])
    made.validate(full=True)
    assert made.type == kind
    if is_held(array):
        ways = [path.steps[1:] for path in paths]
        assert told(made) == repr([changed(array.to_pylist()[0], kind, ways, lambda text: text + "é")])
    again = find(made, paths).leaves
    assert [leaf.path for leaf in again] == [leaf.path for leaf in leaves]
    back = replace(made, again, [leaf.text for leaf in leaves])
    if is_held(array) or "dictionary" not in str(kind):  # equal dictionaries are written out in different ways
        assert told(back) == told(array)


# --- from rows to the column of a shard


def put_together(fitted: pa.Array, kind: pa.DataType, paths, change, rows) -> pa.Array:
    """A shard's column in which the texts of some rows are changed."""
    cells = []
    for row in range(len(fitted)):
        array = fitted.slice(row, 1)
        leaves = find(array, paths).leaves if row in rows else []
        made = replace(array, leaves, [change(leaf.text) for leaf in leaves])
        cells.append(Cell(fitted, row) if made is array else Cell(made, 0))
    return assemble(cells, kind)


@ANY
@given(st.data(), TYPES)
def test_rows_that_changed_and_rows_that_did_not_become_one_column(data, kind):
    column = Column("x", "x", settled(kind))
    try:
        columns.check_type(column, [kind])
    except JobError:
        return  # it cannot be written
    paths = data.draw(st.lists(paths_into(kind), min_size=1, max_size=3))
    rows = data.draw(st.sets(st.integers(0, 4)))
    array = data.draw(arrays(kind, 5, TEXTS))
    fitted = columns.fit(array, column, is_parquet=True)
    if fitted.unfit:  # Arrow cannot cast list views with views inside
        assert "list_view" in str(kind)
        return
    out = put_together(fitted.array, column.type, paths, lambda text: text + "é", rows)
    out.validate(full=True)
    assert out.type == column.type
    if is_held(array):
        ways = [path.steps[1:] for path in paths]
        values = enumerate(array.to_pylist())
        wanted = [changed(each, kind, ways if row in rows else [], lambda text: text + "é") for row, each in values]
        assert told(out) == repr(wanted)


@pytest.mark.parametrize("kind", [STRING, pa.dictionary(pa.int8(), STRING)], ids=str)
def test_4096_rows_of_different_texts_become_one_column_at_once(kind):
    fitted = pa.array(["a", "b"] * 2048).dictionary_encode().cast(kind)
    texts = iter(range(4096))
    begin = time.process_time()
    out = put_together(fitted, settled(kind), [parse("x")], lambda _: str(next(texts)), range(4096))
    assert time.process_time() - begin < 2
    assert (out.type, out.to_pylist()) == (settled(kind), [str(number) for number in range(4096)])


def test_a_large_dictionary_is_not_gone_through_for_each_row():
    fitted = pa.array([str(number) for number in range(50_000)]).dictionary_encode()[:4096]
    begin = time.process_time()
    out = put_together(fitted, fitted.type, [parse("x")], lambda text: "é" + text, range(0, 4096, 2))
    assert time.process_time() - begin < 2
    assert out.to_pylist() == [str(number) if number % 2 else f"é{number}" for number in range(4096)]
