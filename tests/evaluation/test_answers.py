"""Answers are compared after normalisation, as the fork does with neologdn."""

import pytest

from batchgen.evaluation.answers import is_right, normalise


@pytest.mark.parametrize(
    "text, normal",
    [
        ("ｶﾀｶﾅ ﾞ", "カタカナ゛"),
        ("ﾊﾟﾋﾟﾌﾟﾍﾟﾎﾟ ｳﾞｶﾞ", "パピプペポヴガ"),
        ("０１２ＡＢＣａｂｃ！？", "012ABCabc!?"),
        ("（株）", "(株)"),
        ("スーーーパーーー", "スーパー"),
        ("ｽｰﾊﾟｰ―", "スーパー"),
        ("o₋o", "o-o"),
        ("へ〜え〰～", "へえ"),
        ("　　ＰＤＦ　　説　明　書　", "PDF説明書"),
        ("as  it was", "as it was"),
        ("ビタミン C", "ビタミンC"),
        ("駅 まで 歩き ました!!!", "駅まで歩きました!!!"),
        ("東京😀タワー👨‍👩‍👧🇯🇵", "東京タワー"),
        ("1 2#*", "1 2#*"),
        ("｢東京｣､大阪｡", "「東京」、大阪。"),
        ("", ""),
    ],
)
def test_normalised(text, normal):
    assert normalise(text) == normal
    assert normalise(normal) == normal


def test_any_of_the_right_answers_will_do():
    assert is_right(" ﾄｳｷｮｳ〜", ["都", "トウキョウ"])
    assert not is_right("東京都", ["東京", "都"])
    assert not is_right("東京</s>", ["東京"])
