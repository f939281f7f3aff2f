"""Text in columns of a terminal."""

import unicodedata

import pytest

from batchgen.host import width


def broken(text: str, columns: int | None) -> list[str]:
    return [text[begin:end] for begin, end in width.lines(text, columns)]


def test_wide_signs_take_two_columns_and_marks_none():
    assert [width.width(text) for text in ("abc", "日本語", "ｶﾅ", "e\u0301", "")] == [3, 6, 2, 1, 0]


def test_lines_are_broken_between_words_and_between_wide_signs():
    assert broken("one two three", 7) == ["one two", "three"]
    assert broken("今日は雨です", 6) == ["今日は", "雨です"]
    assert broken("May 5は休日", 8) == ["May 5は", "休日"]
    assert broken("one      two", 5) == ["one", "two"]


def test_a_closing_sign_does_not_begin_a_line():
    assert broken("今日は、雨です。", 6) == ["今日", "は、雨", "です。"]


def test_a_word_longer_than_a_line_is_broken_anywhere():
    assert broken("abcdefgh ij", 3) == ["abc", "def", "gh", "ij"]


def test_own_lines_stay_and_without_a_width_nothing_is_broken():
    assert broken("one\n\n  two three", 80) == ["one", "", "  two three"]
    assert broken("word " * 100, None) == ["word " * 100]


@pytest.mark.parametrize("columns", [1, 2, 7, 20])
def test_no_line_is_wider_than_it_may_be_and_nothing_but_space_is_lost(columns):
    text = "Please bring 950 grams of バターを、1002号室に。 " + "x" * 30 + "\n（はい）ｶﾅ e\u0301"
    lines = broken(text, columns)
    assert "".join("".join(lines).split()) == "".join(text.split())
    widest = max(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)
    assert all(width.width(line) <= max(columns, widest) for line in lines)
