"""Templates: columns of any name, keys of objects in them, and no Python in the prompt."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import Reject
from batchgen.input.template import Template

WMT = {"translation": {"en": "Monday", "ja": "月曜日"}}


@pytest.mark.parametrize(
    ("template", "record", "text"),
    [
        ("Translate {translation[en]}", WMT, "Translate Monday"),
        ("Translate {translation.en} to {translation[ja]}", WMT, "Translate Monday to 月曜日"),
        ("{a.b[c d]}", {"a": {"b": {"c d": "x"}}}, "x"),
        ("{a[b]}", {"a": [("b", "x")]}, "x"),
        ("{a.b}", {"a": {"b": "inner"}, "a.b": "outer"}, "outer"),
        ("{a[b]}", {"a": {"b": "inner"}, "a[b]": "outer"}, "outer"),
        ("{meta:src}", {"meta:src": "x"}, "x"),
        ("{a!b}", {"a!b": "x"}, "x"),
        ("{a b} {指示}", {"a b": 1, "指示": "x"}, "1 x"),
        ("{0}", {"0": "x"}, "x"),
        ("{text:>3}|{text!r}", {"text": "a"}, "  a|'a'"),
        ("{n:.2f} {n}", {"n": 3}, "3.00 3"),
        ("{text}", {"text": "月曜日".encode()}, "月曜日"),
        ("{l}", {"l": ["x", {"y": None}]}, '["x",{"y":null}]'),
        ("{day}", {"day": date(2026, 1, 31)}, "2026-01-31"),
        ("{{{text}}}", {"text": "{other} {0}"}, "{{other} {0}}"),
        ('{{"q": "{q}"}}', {"q": "x"}, '{"q": "x"}'),
    ],
)
def test_what_a_template_makes_of_a_row(template, record, text):
    assert Template(template).fill(record)[0].text == text


@pytest.mark.parametrize(
    ("template", "record", "reason"),
    [
        ("{text}", {}, "bad_shape"),
        ("{text}", {"text": None}, "bad_shape"),
        ("{text}", {"text": float("nan")}, "bad_shape"),
        ("{text}", {"text": b"\xff"}, "invalid_utf8"),
        ("{text}", {"text": " "}, "empty"),
        ("{translation[fr]}", WMT, "bad_shape"),
        ("{translation.en}", {"translation": "text"}, "bad_shape"),
        ("{text.upper}", {"text": "x"}, "bad_shape"),
        ("{text:q}", {"text": "x"}, "bad_shape"),
    ],
)
def test_rows_that_do_not_fit(template, record, reason):
    with pytest.raises(Reject) as caught:
        Template(template).fill(record)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "template",
    ["{text.__class__}", "{text[0]}", "{0.real}", "{a:{b}}", "}", "{", "{}", "{!r}", "{a:>1000000000}", "x"],
)
def test_templates_that_are_none(template):
    with pytest.raises(ValueError):
        Template(template)


def test_missing_columns():
    template = Template("{a.b} {c:>3} {d}")
    assert template.missing(["a", "c", "d"]) == template.missing(["a.b", "c:>3", "d"]) == []
    assert template.missing(["a", "d"]) == ["c"]


@given(st.text(alphabet="{}[].!:abr0_ ", max_size=12), st.dictionaries(st.text(alphabet="abr0", max_size=2), st.text()))
def test_any_template_and_row(text, record):
    try:
        Template(text).fill(record)
    except ValueError:
        return
    except Reject as why:
        assert why.reason in ("bad_shape", "empty")


def test_a_system_column_goes_with_a_template(generate, write_rows):
    import pyarrow.dataset as ds

    rows = [{"q": "Monday", "who": "Be curt."}, {"q": "Friday", "who": None}, {"q": "Sunday", "who": " "}]
    out = generate(
        [write_rows(rows)],
        sampling={"max_tokens": 2},
        input={"system": "who"},
        prompt={"template": "Translate {q}"},
        output={"include": ["prompt"]},
    )
    assert ds.dataset(out).to_table()["prompt"].to_pylist() == [
        "ユーザー: Be curt.\nTranslate Monday\nシステム: ",
        "ユーザー: Translate Friday\nシステム: ",
        "ユーザー: Translate Sunday\nシステム: ",
    ]
