"""Texts in lines of JSON: the chosen ones are found and replaced, and no other byte changes."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import Reject
from batchgen.input.conversation import Row
from batchgen.input.json_leaves import find, splice
from batchgen.input.paths import Every, FieldPath, parse


def chosen(line: bytes | str, *texts: str) -> dict[str, str]:
    """path -> text"""
    line = line.encode() if isinstance(line, str) else line
    return {leaf.path: leaf.text for leaf in find(line, [parse(text) for text in texts]).leaves}


def shouted(line: bytes, *texts: str) -> bytes:
    """The line with its chosen texts in capitals."""
    leaves = find(line, [parse(text) for text in texts]).leaves
    return splice(line, leaves, [leaf.text.upper() for leaf in leaves])


@pytest.mark.parametrize(
    ("line", "paths", "found"),
    [
        ('{"inputs":"a","x":"b"}', ["inputs"], {"inputs": "a"}),
        ('{"m":[{"c":"a"},{"d":"b"},{"c":"e"}]}', ["m[*].c"], {"m[0].c": "a", "m[2].c": "e"}),
        ('{"t":[{"p":[{"x":"a"},{"x":"b"}]},{"p":[]}]}', ["t[*].p[*].x"], {"t[0].p[0].x": "a", "t[0].p[1].x": "b"}),
        ('{"a":["x","y","z"]}', ["a[1]"], {"a[1]": "y"}),
        ('{"a":{"k":"x","l":1,"a.b":"y"}}', ["a.*"], {"a.k": "x", 'a["a.b"]': "y"}),
        ('{"a.b":"x","a":{"b":"y"}}', ['["a.b"]'], {'["a.b"]': "x"}),
        (r'{"\u0061":"x"}', ["a"], {"a": "x"}),
        ('{"":{"":"x"}}', ['[""][""]'], {'[""][""]': "x"}),
        ('{"a":"]","b":"}\\"","c":"x"}', ["c"], {"c": "x"}),
        ('{"a":{"x":"]}","y":[1,{"z":"\\\\"}]},"c":"x"}', ["c"], {"c": "x"}),
        ('  { "a" : [ "x" , "y" ] }\r', ["a[*]"], {"a[0]": "x", "a[1]": "y"}),
        ('\ufeff{"a":"x"}', ["a"], {"a": "x"}),
        ('{"n":NaN,"m":-Infinity,"o":1e999,"p":[NaN],"a":"x"}', ["a"], {"a": "x"}),
        ('{"b":"y","a":"x"}', ["a", "b"], {"b": "y", "a": "x"}),
        ("{}", ["a"], {}),
        ('{"a":{ },"b":[ ]}', ["a.*", "b[*]"], {}),
        ('[{"a":"x"}]', ["a"], {}),
        ('"a"', ["a"], {}),
    ],
)
def test_the_chosen_texts_are_found_in_the_order_of_the_line(line, paths, found):
    assert list(chosen(line, *paths).items()) == list(found.items())


def test_a_leaf_says_where_its_string_stands():
    line = '{"é": "\\u00e9é", "b": "x"}'.encode()
    [leaf] = find(line, [parse("é")]).leaves
    assert line[leaf.begin : leaf.end] == '"\\u00e9é"'.encode()
    assert leaf.text == "éé"


def test_a_text_that_two_paths_choose_is_taken_once():
    found = find(b'{"a":["x","y"]}', [parse("a[*]"), parse("a[0]")])
    assert [(leaf.path, leaf.chosen_by) for leaf in found.leaves] == [("a[0]", (0, 1)), ("a[1]", (0,))]


def test_of_a_key_that_stands_twice_the_last_counts():
    line = b'{"a":"x","b":{"a":"1"},"b":{"c":"2"},"a":"y"}'
    assert chosen(line, "a", "b.*") == {"b.c": "2", "a": "y"}
    assert shouted(line, "a") == b'{"a":"x","b":{"a":"1"},"b":{"c":"2"},"a":"Y"}'
    found = find(b'{"a":1,"a":"x"}', [parse("a")])
    assert (len(found.leaves), found.missing, found.mistyped) == (1, [], [])


def test_paths_without_texts_are_told_from_those_that_lead_to_something_else():
    line = b'{"a":"x","n":null,"i":7,"o":{},"l":["x",1,null],"e":[],"b":true}'
    paths = [parse(text) for text in ("a", "n", "i", "o", "l[*]", "e[*]", "b", "none", "a.x", "l[2]", "l[9]")]
    found = find(line, paths)
    assert list(map(str, found.missing)) == ["n", "e[*]", "none", "a.x", "l[2]", "l[9]"]
    assert list(map(str, found.mistyped)) == ["i", "o", "l[*]", "b"]


def test_all_else_stays_as_it_is():
    line = (
        b'\xef\xbb\xbf { "z" : 1.0, "z":1, "big":123456789012345678901234567890,"e":-1.50E+03,"u":"\\u00e9\\/\xc3\xa9",'
        b'"n":NaN ,\t"c":"x" ,"l":[ ],"o":{ } }\r'
    )
    assert shouted(line, "c") == line.replace(b'"x"', b'"X"')


def test_a_text_that_is_put_back_keeps_its_escapes():
    line = rb'{"a":["\u0061\/","b"]}'
    leaves = find(line, [parse("a[*]")]).leaves
    assert splice(line, leaves, ["a/", "c"]) == rb'{"a":["\u0061\/","c"]}'
    assert splice(line, leaves, ["a/", "b"]) is line


def test_any_text_or_null_can_be_put_in():
    line = b'{"a":"x","b":"y"}'
    leaves = find(line, [parse("a"), parse("b")]).leaves
    text = '"\\\n\r\t\x00\u2028\x7f日本\U0001f600'
    assert json.loads(splice(line, leaves, [text, None])) == {"a": text, "b": None}


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        (rb'{"a":"\ud800"}', ["a"]),
        (rb'{"a":["x","\udc00 \ud83d\ude00"]}', ["a[*]"]),
        (rb'{"a":{"\ud800":"x"}}', ["a.*"]),
    ],
)
def test_a_lone_surrogate_in_what_is_chosen_rejects_the_row_as_elsewhere(line, paths):
    with pytest.raises(Reject) as ours:
        chosen(line, *paths)
    with pytest.raises(Reject) as elsewhere:
        Row(0, line).record()["a"]
    assert ours.value.reason == elsewhere.value.reason == "invalid_json"
    assert ours.value.detail.startswith("a")
    assert ours.value.detail.isascii()


def test_a_lone_surrogate_in_what_is_not_chosen_does_not_matter():
    line = rb'{"a":"x","b":"\ud800","c":{"\ud800":"\ud800"},"a2":["\udfff"],"a":"y"}'
    assert shouted(line, "a", "c.d") == line.replace(b'"y"', b'"Y"')
    assert chosen(rb'{"a":"\ud800","a":"y"}', "a") == {"a": "y"}


# --- against Python's own decoder


TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\/\n{}[]:, '), max_size=6)
KEYS = st.sampled_from(["a", "b", "c.d", "é", '"', ""])
BLANKS = st.sampled_from(["", "", "", " ", "\t\r", "  "])
NUMBERS = st.sampled_from(["1.0", "1", "-0", "1e999", "123456789012345678901234567890", "NaN", "-Infinity"])


@st.composite
def strings(draw, texts=TEXTS) -> str:
    """A JSON string, with or without needless escapes."""
    text = draw(texts)
    return json.dumps(text, ensure_ascii=draw(st.booleans())).replace(
        "/", draw(st.sampled_from(["/", r"\/", r"\u002f"]))
    )


@st.composite
def objects(draw, inner) -> str:
    """Its keys may stand twice."""
    parts = draw(st.lists(st.tuples(strings(KEYS), inner, BLANKS), max_size=4))
    return "{" + draw(BLANKS) + ",".join(f"{blank}{key}{blank}:{value}" for key, value, blank in parts) + "}"


@st.composite
def lists(draw, inner) -> str:
    return "[" + ",".join(draw(st.lists(inner, max_size=3))) + draw(BLANKS) + "]"


def spaced(value) -> st.SearchStrategy[str]:
    return st.builds("{0}{1}{2}".format, BLANKS, value, BLANKS)


ANY = st.recursive(
    strings() | strings() | NUMBERS | st.sampled_from(["null", "true", "false"]),
    lambda inner: objects(spaced(inner)) | lists(spaced(inner)),
    max_leaves=12,
)
LINES = st.builds("{}{}{}".format, st.sampled_from(["", "\ufeff"]), objects(spaced(ANY)), BLANKS).map(str.encode)


@st.composite
def paths_into(draw, value) -> FieldPath:
    """A path that fits a record, but for its end now and then."""
    steps: list = []
    while not steps or draw(st.sampled_from([True] * 9 + [False])):
        if isinstance(value, dict) and value:
            key = draw(st.sampled_from(list(value)))
            steps.append(draw(st.sampled_from([key, Every.VALUE])) if steps else key)
            value = value[key]
        elif isinstance(value, list) and value:
            place = draw(st.integers(0, len(value) - 1))
            steps.append(draw(st.sampled_from([place, Every.ELEMENT])))
            value = value[place]
        else:
            break
    return FieldPath(tuple(steps or ["a"]))


@st.composite
def lines_with_paths(draw) -> tuple[bytes, list[FieldPath]]:
    line = draw(LINES)
    return line, draw(st.lists(paths_into(json.loads(line.decode().removeprefix("\ufeff"))), min_size=1, max_size=3))


def decoded(line: bytes):
    """With all digits of its numbers, and its objects as tuples of all their keys and values."""
    text = line.decode().removeprefix("\ufeff")
    as_it_is = {"parse_float": lambda digits: {digits}, "parse_constant": lambda name: {name}}
    return json.loads(text, **as_it_is, object_pairs_hook=tuple)


def changed(value, ways, change):
    """The same as `splice`, on Python values. ways: the steps that are left of each path."""
    if isinstance(value, str) and () in ways:
        return change(value)

    def inside(value, step, every):
        return changed(value, [way[1:] for way in ways if way and way[0] in (step, every)], change)

    if isinstance(value, tuple):
        last = {key: place for place, (key, _) in enumerate(value)}
        return tuple(
            (key, inside(each, key, Every.VALUE) if last[key] == place else each)
            for place, (key, each) in enumerate(value)
        )
    if isinstance(value, list):
        return [inside(each, place, Every.ELEMENT) for place, each in enumerate(value)]
    return value


@given(lines_with_paths())
def test_the_texts_put_back_give_the_line_back(drawn):
    line, paths = drawn
    leaves = find(line, paths).leaves
    assert splice(line, leaves, [leaf.text for leaf in leaves]) == line
    assert [json.loads(line[leaf.begin : leaf.end]) for leaf in leaves] == [leaf.text for leaf in leaves]


@given(lines_with_paths())
def test_only_the_chosen_texts_change(drawn):
    line, paths = drawn
    leaves = find(line, paths).leaves
    made = splice(line, leaves, [leaf.text + "é\n" for leaf in leaves])
    assert decoded(made) == changed(decoded(line), [path.steps for path in paths], lambda text: text + "é\n")
    again = find(made, paths).leaves
    assert [leaf.path for leaf in again] == [leaf.path for leaf in leaves]
    assert between(made, again) == between(line, leaves)


@given(lines_with_paths())
def test_each_leaf_is_what_its_own_path_chooses(drawn):
    line, paths = drawn
    for leaf in find(line, paths).leaves:
        assert find(line, [parse(leaf.path)]).leaves == [leaf._replace(chosen_by=(0,))]


def between(line: bytes, leaves) -> list[bytes]:
    """The bytes around the leaves."""
    marks = [0, *(mark for leaf in leaves for mark in (leaf.begin, leaf.end)), len(line)]
    return [line[begin:end] for begin, end in zip(marks[::2], marks[1::2], strict=True)]


# --- large lines


def test_a_value_that_is_nested_100000_deep_is_passed_over():
    deep = b"[" * 100_000 + b"]" * 100_000
    assert chosen(b'{"x":' + deep + b',"a":"y"}', "a", "x[*][*].b") == {"a": "y"}


@pytest.mark.parametrize("part", [b"a", rb"\n", rb"\"", rb"\u3042"], ids=["plain", "escapes", "quotes", "unicode"])
def test_a_text_of_20_mb_costs_little_time(part):
    line = b'{"x":"' + part * (20_000_000 // len(part)) + b'","a":"y"}'
    begin = time.process_time()
    assert shouted(line, "a") == line.replace(b'"y"', b'"Y"')
    [leaf] = find(line, [parse("x")]).leaves
    assert splice(line, [leaf], [leaf.text]) is line
    assert time.process_time() - begin < 3
