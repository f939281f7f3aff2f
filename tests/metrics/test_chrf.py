"""chrF is sacrebleu's own."""

import builtins

import pytest
import sacrebleu

from batchgen.metrics import chrf

CASES = [
    ("The cat sat on the mat.", ("The cat is on the mat.",)),
    ("今日は晴れです。", ("今日は雨です。",)),
    ("今日は晴れです。", ("今日は雨です。", "今日は晴れです。")),
    ("", ("今日",)),
    ("He said: 「はい」", ("彼は「はい」と言った。", "He said yes.")),
    ("a  b\tc", ("abc",)),  # white space does not count
    ("\ud800x", ("\ud800y",)),  # half a character
]


@pytest.mark.parametrize(("text", "references"), CASES)
def test_it_is_that_of_sacrebleu(text, references):
    assert chrf.Chrf()(text, references) == sacrebleu.sentence_chrf(text, references).score


def test_it_says_which_chrf_it_is():
    assert chrf.Chrf().signature == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{sacrebleu.__version__}"


def test_without_sacrebleu_there_is_none(monkeypatch):
    real = builtins.__import__

    def without(name, *more):
        if name.partition(".")[0] == "sacrebleu":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert chrf.find() is None
