"""Paths as text, and what several of them choose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.input.paths import MOST_STEPS, Every, FieldPath, below, choice_of, may_meet, parse


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("inputs", ("inputs",)),
        ("messages[*].content", ("messages", Every.ELEMENT, "content")),
        ("turns[*].parts[*].text", ("turns", Every.ELEMENT, "parts", Every.ELEMENT, "text")),
        ("meta.title", ("meta", "title")),
        ("a[0].b", ("a", 0, "b")),
        ("attrs.*", ("attrs", Every.VALUE)),
        ("attrs.*[*][12]", ("attrs", Every.VALUE, Every.ELEMENT, 12)),
        ('["a.b"]', ("a.b",)),
        ('meta["a.b"].c', ("meta", "a.b", "c")),
        (r'meta["\""]["*"][""]', ("meta", '"', "*", "")),
        ("日本語.質問 文", ("日本語", "質問 文")),
        ("a-b:c/d.$e", ("a-b:c/d", "$e")),
        ("0.1", ("0", "1")),
    ],
)
def test_a_path_reads_as_its_steps_and_gives_its_text_back(text, steps):
    path = parse(text)
    assert path.steps == steps
    assert str(path) == text
    assert path.column == steps[0]


@pytest.mark.parametrize(
    ("text", "shortest"), [('["a"]["b"]', "a.b"), ("a[007]", "a[7]"), (r'a["\u3042"]', "a.あ"), ('a["x y"]', "a.x y")]
)
def test_a_path_that_could_be_shorter_is_shown_in_its_shortest_form(text, shortest):
    assert str(parse(text)) == shortest


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' cannot stand at its beginning"),
        (".a", "'.a' cannot stand at its beginning"),
        ("a.", "'.' cannot stand at its end"),
        ("a..b", "'..b' cannot stand at its end"),
        ("a[x]", r"'\[x\]' cannot stand"),
        ("a[-1]", r"'\[-1\]' cannot stand"),
        ("a[1", r"'\[1' cannot stand"),
        ("a[1]b", "'b' cannot stand"),
        ('a.["b"]', "cannot stand"),
        ('a["b]', "cannot stand"),
        ("a*", "cannot stand"),
        ("a .b", "cannot stand"),
        (r'a["\x"]', "is not a JSON string"),
        (r'a["\ud800"]', "is not a JSON string"),
        ("*", "begin"),
        ("[*].a", "begin with the name of a column"),
        ("[0]", "begin with the name of a column"),
        (".*", "begin with the name of a column"),
        ("a" + "[0]" * MOST_STEPS, "65 steps, more than 64"),
    ],
)
def test_what_is_no_path_is_refused_with_the_reason_and_examples(text, why):
    with pytest.raises(ValueError, match=why) as error:
        parse(text)
    assert "messages[*].content" in str(error.value)
    assert "\n" not in str(error.value)


STEPS = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(0, 999) | st.sampled_from(Every)
PATHS = st.builds(lambda first, more: FieldPath((first, *more)), st.text(), st.lists(STEPS, max_size=4))


@given(PATHS)
def test_any_path_can_be_written(path):
    assert parse(str(path)) == path


@given(st.text('a.*[]"0\\ ', max_size=12))
def test_any_text_is_a_path_or_refused(text):
    try:
        path = parse(text)
    except ValueError:
        return
    assert parse(str(path)) == path


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        ("a[*]", "a[0]", True),
        ("a.*", "a.b", True),
        ("a.*.c", "a.b.*", True),
        ("a", "a", True),
        ("a[0]", "a[1]", False),
        ("a.b", "a.c", False),
        ("a[*]", "a.*", False),
        ("a[0]", 'a["0"]', False),
        ("a", "a.b", False),
    ],
)
def test_two_paths_meet_where_one_text_may_be_chosen_by_both(first, second, meet):
    assert may_meet(parse(first), parse(second)) == meet == may_meet(parse(second), parse(first))


def test_several_paths_are_followed_at_once():
    choice = choice_of((parse("a[*].b"), parse("a[1].*"), parse("c")))
    assert choice.inside("d") is None
    assert choice.inside("c").ends == (2,)
    first, second = (choice.inside("a").inside(number) for number in (0, 1))
    assert (first.inside("b").ends, first.inside("x")) == ((0,), None)
    assert (second.inside("b").ends, second.inside("x").ends) == ((0, 1), (1,))


def test_a_path_leads_a_step_further_in_the_form_in_which_it_is_read():
    assert below(below(below("", "a b"), 3), "c.d") == 'a b[3]["c.d"]'
