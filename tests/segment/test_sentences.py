import builtins
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.errors import JobError
from batchgen.segment import sentences as module
from batchgen.segment.sentences import require, sentences


@pytest.mark.parametrize(
    "language, text",
    [
        ("en", "Mr. Smith is here. |He has 3.5 apples.  |Really? |Yes!"),
        ("", "One. |Two."),
        ("de", "Das ist z.B. so. |Und so."),
        ("ja", "今日は晴れ。|明日は？　|雨！"),
        ("ja", "彼は「行く。多分。」と言った。|終わり。"),
        ("ja", "「はい。」って言った。|次。"),
        ("ja", "『はい。』を見た。|次。"),
        ("ja", "彼は（たぶん。きっと。）来る。|次。"),
        ("zh", "他说「走吧。快点。」|然后走了。|好。"),
        ("ja", "「一つ。|二つ。"),
    ],
)
def test_sentences_end_where_people_end_them(language, text):
    assert sentences(text.replace("|", ""), language) == text.split("|")


def test_what_is_whole_is_not_split():
    text = "See One. Two. Three."
    assert sentences(text, "en", [(4, 13)]) == ["See One. Two. ", "Three."]


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from([*"A.。！？!?「」『』（） \u3000\u2003\xa0\nとをあé👍\ud800", "Mr.", "って", "U.S."])).map(
        "".join
    ),
    st.sampled_from(["en", "ja", "zh", "fr", "ar", "hy", "my", "xx", ""]),
)
def test_no_character_is_lost(text, language):
    assert "".join(sentences(text, language)) == text


def test_a_space_at_which_the_splitter_panics_does_no_harm():
    assert sentences("Plan A\u3000. Then go.\u3000Stop.", "en")[-1] == "Stop."


def test_a_panic_of_the_splitter_leaves_the_text_whole(monkeypatch):
    class PanicException(BaseException):
        pass

    def split(language, text):
        raise PanicException

    monkeypatch.setattr(module, "_splitter", lambda: split)
    assert sentences("One. Two.", "en") == ["One. Two."]


def test_without_the_splitter_the_extra_is_named(monkeypatch):
    def imported(name, *arguments, **named):
        if name == "sentencex":
            raise ImportError
        return real(name, *arguments, **named)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", imported)
    module._splitter.cache_clear()
    with pytest.raises(JobError, match=r"pip install sentencex .*extra `translate`"):
        require()
    monkeypatch.undo()
    require()


@pytest.mark.parametrize("language, sentence", [("ja", "彼は「はい。」と言った。"), ("en", "Mr. Smith is here. ")])
def test_a_long_text_has_the_sentences_of_a_short_one(language, sentence):
    assert sentences(sentence * 2000, language) == [sentence] * 2000


def test_a_sentence_may_be_longer_than_what_the_splitter_sees_at_once():
    text = "and so on " * 1000 + "to the end. "
    assert sentences(text + "Next.", "en") == [text, "Next."]


@pytest.mark.parametrize("unit", ["あ。", "「。", "``a`", "A.", "and "])
def test_a_long_text_takes_no_quadratic_time(unit):
    began = time.monotonic()
    assert "".join(sentences(unit * 40_000, "en")) == unit * 40_000
    assert time.monotonic() - began < 20
