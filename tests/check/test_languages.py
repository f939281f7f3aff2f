import sys

import pytest

from batchgen.check.languages import code, not_in, require_identifier
from batchgen.errors import JobError


@pytest.mark.parametrize(
    "name, expected", [("Japanese", "ja"), ("日本語", "ja"), ("en-GB", "en"), (" DE ", "de"), ("jpn", "ja")]
)
def test_a_language_is_a_name_or_a_code(name, expected):
    assert code(name) == expected


def test_what_is_no_language_is_refused():
    with pytest.raises(ValueError, match="write a code such as ja"):
        code("Klingonisch")


@pytest.mark.parametrize(
    "language, text",
    [
        ("ja", "今日は晴れです。"),
        ("ja", "東京"),
        ("ja", "OK"),
        ("en", "It is sunny today."),
        ("en", "The word 猫 means cat."),
        ("ru", "Сегодня солнечно."),
        ("ko", "오늘은 맑습니다."),
    ],
)
def test_a_text_in_the_language_passes(language, text):
    assert not_in(language, text) is None


@pytest.mark.parametrize(
    "language, text",
    [
        ("ja", "It is sunny today."),
        ("ja", "Sure, here is the translation: 今日は晴れです。"),
        ("ja", "今天天气很好我们一起去公园散步吧然后再去商店买东西回家做饭"),
        ("en", "今日は晴れです。"),
        ("ru", "It is sunny today."),
    ],
)
def test_a_text_in_another_one_does_not(language, text):
    assert not_in(language, text)


def test_words_that_the_source_has_too_do_not_count():
    assert not_in("ja", "Microsoft Office 365を使います", "I use Microsoft Office 365.") is None
    assert not_in("ja", "Microsoft Office 365を使います")


@pytest.mark.parametrize(("name", "meant"), [("Japaneese", "japanese"), ("jp", "ja")])
def test_a_language_that_was_meant_is_named(name, meant):
    with pytest.raises(ValueError, match=f"did you mean {meant}"):
        code(name)


def test_languages_of_one_script_are_told_apart():
    german = "Der Zug nach Berlin fährt heute um drei Uhr ab."
    assert not_in("de", german, "x", "en") is None
    assert not_in("en", german, "x", "de") == "it reads as de"


def test_two_languages_of_one_script_need_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(JobError, match="pip install py3langid"):
        require_identifier("fr", "en")
    require_identifier("ja", "en")
