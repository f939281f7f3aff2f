"""Prompt formats of the series."""

from pathlib import Path

import pytest
from conftest import MODEL

from batchgen.errors import Reject
from batchgen.input.conversation import Utterance
from batchgen.model.model import load_model
from batchgen.model.tokenizer import Tokenizer
from batchgen.prompt.formats import render, response_text

TOKENIZERS = Path(__file__).parent.parent / "tokenizer"
USER, ASSISTANT = "ユーザー", "システム"

# The example of rinna/bilingual-gpt-neox-4b-instruction-sft's card: a conversation, and the prompt printed for it.
CARD = [
    (USER, "Hello, you are an assistant that helps me learn Japanese."),
    (ASSISTANT, "Sure, what can I do for you?"),
    (USER, "VRはなんですか。"),
]
CARD_PROMPT = (
    "ユーザー: Hello, you are an assistant that helps me learn Japanese.\n"
    "システム: Sure, what can I do for you?\n"
    "ユーザー: VRはなんですか。\n"
    "システム: "
)


def talk(*turns):
    return [Utterance(speaker, text) for speaker, text in turns]


def test_the_cards_own_example_renders_as_printed_there():
    assert render(talk(*CARD), "speaker") == CARD_PROMPT


def test_the_older_models_join_by_nl_and_have_it_for_newlines_in_a_text_too():
    turns = talk((USER, "one\ntwo"), (ASSISTANT, "x"), (USER, "three"))
    assert render(turns, "speaker-nl") == "ユーザー: one<NL>two<NL>システム: x<NL>ユーザー: three<NL>システム: "
    assert response_text("one<NL>two", "speaker-nl") == "one\ntwo"
    assert response_text("one<NL>two", "speaker") == "one<NL>two"


def test_raw_is_the_text_alone_and_takes_one_utterance():
    assert render(talk((USER, "西田幾多郎は、")), "raw") == "西田幾多郎は、"
    with pytest.raises(Reject, match="format raw takes one utterance"):
        render(talk(*CARD), "raw")


@pytest.mark.parametrize(("name", "format"), [("bilingual", "speaker"), ("japanese-3.6b", "speaker-nl")])
def test_the_tokenizer_tells_which_joint_a_model_wants(name, format):
    tokenizer = Tokenizer.load(TOKENIZERS / name)
    kept = tokenizer.decode(tokenizer.encode("a\nb")) == "a\nb"
    assert ("speaker" if kept else "speaker-nl") == format


def test_the_demo_model_is_asked_for_its_format():
    assert load_model(str(MODEL)).prompt_format == "speaker"
