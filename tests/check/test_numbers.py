"""Numbers of translations: what is the same value, and what is not."""

import json

import pytest
from conftest import CONVERSATIONS
from hypothesis import given
from hypothesis import strategies as st

from batchgen.check.numbers import mismatch

EQUAL = """
He was born in 1999. | 彼は平成11年に生まれた。
It costs 30,000 yen. | 3万円です。
About 230 million people | 約2億3000万人
nineteen ninety-nine | 1999年
two hundred and five apples | りんご205個
I waited an hour and a half. | 1時間半待った。
It took two and a half hours. | 2時間半かかった。
half past three | 3時半
quarter to four | 3時45分
He has two sisters. | 彼には姉が二人いる。
Once upon a time | 昔々あるところに
an area of 50 m² | 50平方メートル
Call 03-1234-5678. | 03-1234-5678に電話してください。
in the 20th century | 20世紀に
in the twentieth century | 20世紀に
the 1990s | 1990年代
thirty percent off | 3割引
50% of them | その50パーセント
half of them | その半分
at 9 p.m. | 午後9時に
at 9 in the evening | 夜9時に
at 21:00 | 21時に
at noon | 午後0時に
a dozen eggs | 卵12個
two dozen eggs | 卵2ダース
35 people | 三十五人
in 2023 | 二〇二三年に
I may go on May 5. | 5月5日に行くかもしれない。
We march in March. | 3月に行進する。
on the 3rd of May, 2020 | 2020年5月3日に
Both are fine. | どちらも構いません。
He is in his twenties. | 彼は20代だ。
That is enough. | それで十分だ。
hundreds of people | 何百人もの人々
a million dollars | 100万ドル
1.5 million | 150万
$2.5bn | 25億ドル
35k users | 3万5000人のユーザー
two thirds of the people | 3分の2の人
Give me a second. | ちょっと待って。
Python 3.11.4 | Python 3.11.4
10 to 20 people | 10〜20人
six months | 半年
the greengrocer | 八百屋
78 cents | 78セント
$458.78 | 458ドル78セント
12:30 pm | 午後0時30分
midnight | 午前0時
1,000,000 | 100万
"""
DIFFERENT = """
It costs 300 yen. | 500円です。
three apples | りんご5個
at 3 p.m. | 午後4時に
at 3 a.m. | 午後3時に
June 23 | 7月23日
$458.78 | 458ドル79セント
10 people | りんごです
hello | 5人の人
seven | 八
30,000 | 3千円
50% | 5%
1.5 million | 1.5億
in 2019 | 2018年に
"""


def pairs(lines: str) -> list[tuple[str, ...]]:
    return [tuple(line.split(" | ")) for line in lines.strip().splitlines()]


@pytest.mark.parametrize("english, japanese", pairs(EQUAL))
def test_numbers_are_compared_as_values(english, japanese):
    assert mismatch(english, "en", japanese, "ja") is None
    assert mismatch(japanese, "ja", english, "en") is None


@pytest.mark.parametrize("english, japanese", pairs(DIFFERENT))
def test_another_value_is_told(english, japanese):
    assert mismatch(english, "en", japanese, "ja")
    assert mismatch(japanese, "ja", english, "en")


@pytest.mark.parametrize("given", [("en", "ja"), ("", "")], ids=["languages given", "languages guessed"])
def test_no_correct_pair_of_the_demo_data_is_flagged(given):
    wrong = 0
    for line in CONVERSATIONS.read_text("utf-8").splitlines():
        record = json.loads(line)
        source, target = record["conversation"][-1]["text"], record["expected"]
        order = given if source.isascii() else given[::-1]
        wrong += mismatch(source, order[0], target, order[1]) is not None
    assert wrong == 0


def test_a_message_names_the_number():
    assert mismatch("three apples", "en", "りんご5個", "ja") == "3 of the source is missing"
    assert mismatch("apples", "en", "りんご5個", "ja") == "5 is not in the source"


def test_of_other_languages_long_figures_are_compared():
    assert mismatch("1.500 Einwohner", "de", "1 500 habitants", "fr") is None
    assert mismatch("1.500 Einwohner", "de", "1 600 habitants", "fr")
    assert mismatch("zwei Hunde", "de", "trois chiens", "fr") is None  # words of theirs are not known


@given(
    st.text(
        st.sampled_from("〇一二十百千万億兆半時分年月日令和元0123456789٣,.:;%$ 両割ダースtwo hundredandamillion'th-/")
    )
)
def test_any_text_is_read_and_equals_itself(text):
    for language in ("en", "ja", "de"):
        assert mismatch(text, language, text, language) is None
