import pytest

from batchgen.report import cases
from batchgen.report.cases import Answer, folded, text


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31m\0\x7f", "␛[31m␀␡"),
        ("a\u202eb\u2028c", "a⟨U+202E⟩b⟨U+2028⟩c"),
        ("\x9b", "⟨U+009B⟩"),
        ("👨‍👩‍👧", "👨‍👩‍👧"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(raw, seen):
    assert text(raw).pieces == [(seen, "")]


@pytest.mark.parametrize(
    ("raw", "lang"),
    [("plain", ""), ("カナ and more", "ja"), ("漢字", "ja"), ("한국어 漢字", "ko"), ("ｶﾅ", "ja"), ("", "")],
)
def test_a_text_has_the_language_of_its_script(raw, lang):
    assert text(raw).lang == lang


def test_chinese_characters_alone_are_the_jobs_language():
    assert text("漢字", "zh").lang == "zh"
    assert text("漢字かな", "zh").lang == "ja"


def test_a_long_text_is_cut_and_says_by_how_much():
    cut = text("x" * (cases.LONGEST_TEXT + 5))
    assert (len(cut.pieces[0][0]), cut.more) == (cases.LONGEST_TEXT, 5)


def test_equal_answers_are_one_with_a_number():
    made = folded([Answer(text("a"), [0]), Answer(text("b"), [0]), Answer(text("a"), [1]), Answer(text("a"), [1])])
    assert [(each.text.pieces[0][0], each.groups, each.times) for each in made] == [("a", [0, 1], 3), ("b", [0], 1)]


def test_equal_texts_that_ended_differently_are_two_answers():
    assert len(folded([Answer(text("a"), [0], tags=["stop"]), Answer(text("a"), [0], tags=["length"])])) == 2
