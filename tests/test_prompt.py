"""Prompt formats of the series, and prompts that are too long."""

from functools import partial

import pyarrow.dataset as ds
import pytest
from conftest import MODEL
from hypothesis import given
from hypothesis import strategies as st

from batchgen.conversation import Utterance
from batchgen.errors import Reject
from batchgen.models import load
from batchgen.prompt import fit, render, response_text
from batchgen.tokenizer import Tokenizer

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


speaker = partial(render, format="speaker")


def letters(text):
    """A tokenizer of one token per character."""
    return [ord(sign) for sign in text]


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
    tokenizer = Tokenizer.load(f"tests/tokenizer/{name}")
    kept = tokenizer.decode(tokenizer.encode("a\nb")) == "a\nb"
    assert ("speaker" if kept else "speaker-nl") == format


def test_the_demo_model_is_asked_for_its_format():
    assert load(str(MODEL)).prompt_format == "speaker"


# --- too long

LONG = talk((USER, "a" * 20), (ASSISTANT, "b" * 20), (USER, "c" * 20), (ASSISTANT, "d" * 20), (USER, "e" * 20))
PREFIX = talk((USER, "p"), (ASSISTANT, "q"))


def test_a_prompt_that_fits_is_left_alone():
    fitted = fit(LONG, PREFIX, speaker, letters, 1000, "clip")
    assert (fitted.conversation, fitted.truncated) == ([*PREFIX, *LONG], 0)
    assert fitted.token_ids == letters(fitted.text)


def test_reject_says_how_long_it_is():
    with pytest.raises(Reject, match=r"the prompt has \d+ tokens, there is room for 100") as caught:
        fit(LONG, [], speaker, letters, 100, "reject")
    assert caught.value.reason == "too_long"


def test_drop_turns_drops_the_oldest_but_never_the_prefix_and_begins_with_the_user():
    whole = len(render([*PREFIX, *LONG], "speaker"))
    fitted = fit(LONG, PREFIX, speaker, letters, whole - 1, "drop-turns")
    assert fitted.conversation == [*PREFIX, *LONG[2:]]
    assert fitted.truncated == whole - len(fitted.token_ids) > 40
    least = len(render([*PREFIX, *LONG[4:]], "speaker"))
    assert fit(LONG, PREFIX, speaker, letters, least, "drop-turns").conversation == [*PREFIX, LONG[4]]
    with pytest.raises(Reject, match="on_overlength = drop-turns cannot bring it down"):
        fit(LONG, PREFIX, speaker, letters, least - 1, "drop-turns")


def test_clip_keeps_as_much_of_the_end_of_the_last_utterance_as_fits():
    turns = talk((USER, "x" * 10), (ASSISTANT, "y"), (USER, "0123456789"))
    whole = len(render(turns, "speaker"))
    for cut in range(1, 10):
        fitted = fit(turns, [], speaker, letters, whole - cut, "clip")
        assert fitted.conversation == [*turns[:2], (USER, "0123456789"[cut:])]
        assert fitted.truncated == cut
    with pytest.raises(Reject, match="on_overlength = clip cannot bring it down"):
        fit(turns, [], speaker, letters, whole - 10, "clip")


def test_clip_does_not_part_a_letter_from_its_accent():
    turns = talk((USER, "ae\u0301z"))
    fitted = fit(turns, [], speaker, letters, len(render(turns, "speaker")) - 2, "clip")
    assert fitted.conversation == [(USER, "z")]


@given(st.text(min_size=1, max_size=300).filter(str.strip), st.integers(20, 200))
def test_clipped_prompts_fit_with_the_real_tokenizer_and_end_as_the_text_does(text, limit):
    tokenizer = load(str(MODEL)).tokenizer
    try:
        fitted = fit(talk((USER, text)), [], speaker, tokenizer.encode, limit, "clip")
    except Reject as why:
        assert why.reason == "too_long"
        return
    assert len(fitted.token_ids) <= limit
    assert text.endswith(fitted.conversation[-1].text)
    assert fitted.truncated == len(tokenizer.encode(render(talk((USER, text)), "speaker"))) - len(fitted.token_ids)


@pytest.mark.parametrize(("policy", "prompts"), [("drop-turns", 1), ("clip", 1), ("reject", 0)])
def test_what_was_done_stands_in_the_output(generate, write_rows, policy, prompts):
    many = [{"speaker": USER, "text": "Monday " * 90}, {"speaker": ASSISTANT, "text": "x"}]
    if policy == "clip":
        many = [{"speaker": USER, "text": "x"}, {"speaker": ASSISTANT, "text": "x"}]
    last = {"speaker": USER, "text": "Friday " * (300 if policy == "clip" else 100)}
    out = generate(
        [write_rows([{"conversation": [*many, *many, last]}, {"text": "Monday"}])],
        sampling={"max_tokens": 100},
        prompt={"on_overlength": policy},
    )
    rows = ds.dataset(out).to_table().to_pylist()
    assert [row["row"] for row in rows] == ([0, 1] if prompts else [1])
    assert rows[-1]["truncated"] == 0
    if prompts:
        assert rows[0]["truncated"] > 0
        assert rows[0]["prompt_tokens"] <= 512 - 100
        assert rows[0]["conversation"][-1]["text"].endswith("Friday ")
