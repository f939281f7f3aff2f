"""Prompts that are too long: rejected, clipped, or without their oldest turns."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import regex
from conftest import MODEL
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import Reject
from batchgen.input.conversation import Utterance
from batchgen.model import token_bound
from batchgen.model.model import load_model
from batchgen.model.tokenizer import Tokenizer
from batchgen.prompt import graphemes
from batchgen.prompt.fit import fit
from batchgen.prompt.formats import render

TOKENIZERS = Path(__file__).parent.parent / "tokenizer"
USER, ASSISTANT = "ユーザー", "システム"


def talk(*turns):
    return [Utterance(speaker, text) for speaker, text in turns]


speaker = partial(render, format="speaker")


def letters(text):
    """A tokenizer of one token per character."""
    return [ord(sign) for sign in text]


LONG = talk((USER, "a" * 20), (ASSISTANT, "b" * 20), (USER, "c" * 20), (ASSISTANT, "d" * 20), (USER, "e" * 20))
PREFIX = talk((USER, "p"), (ASSISTANT, "q"))


def test_a_prompt_that_fits_is_left_alone():
    fitted = fit(LONG, PREFIX, speaker, letters, 1000, "clip")
    assert (fitted.conversation, fitted.truncated) == ([*PREFIX, *LONG], 0)
    assert fitted.token_ids == letters(fitted.text)


def test_reject_says_how_long_it_is():
    with pytest.raises(Reject, match=r"the prompt has \d+ tokens, but there is only room for 100") as caught:
        fit(LONG, [], speaker, letters, 100, "reject")
    assert caught.value.reason == "too_long"


def test_drop_turns_drops_the_oldest_but_never_the_prefix_and_begins_with_the_user():
    whole = len(render([*PREFIX, *LONG], "speaker"))
    fitted = fit(LONG, PREFIX, speaker, letters, whole - 1, "drop-turns")
    assert fitted.conversation == [*PREFIX, *LONG[2:]]
    assert fitted.truncated == whole - len(fitted.token_ids) > 40
    least = len(render([*PREFIX, *LONG[4:]], "speaker"))
    assert fit(LONG, PREFIX, speaker, letters, least, "drop-turns").conversation == [*PREFIX, LONG[4]]
    with pytest.raises(Reject, match="on_overlength = drop-turns cannot shorten it enough"):
        fit(LONG, PREFIX, speaker, letters, least - 1, "drop-turns")


def test_clip_keeps_as_much_of_the_end_of_the_last_utterance_as_fits():
    turns = talk((USER, "x" * 10), (ASSISTANT, "y"), (USER, "0123456789"))
    whole = len(render(turns, "speaker"))
    for cut in range(1, 10):
        fitted = fit(turns, [], speaker, letters, whole - cut, "clip")
        assert fitted.conversation == [*turns[:2], (USER, "0123456789"[cut:])]
        assert fitted.truncated == cut
    with pytest.raises(Reject, match="on_overlength = clip cannot shorten it enough"):
        fit(turns, [], speaker, letters, whole - 10, "clip")


def test_clip_does_not_part_a_letter_from_its_accent():
    turns = talk((USER, "ae\u0301z"))
    fitted = fit(turns, [], speaker, letters, len(render(turns, "speaker")) - 2, "clip")
    assert fitted.conversation == [(USER, "z")]


CLUSTERS = {
    "a family of joined emoji": "\N{WOMAN}\u200d\N{WOMAN}\u200d\N{GIRL}\u200d\N{BOY}",
    "a flag": "\N{REGIONAL INDICATOR SYMBOL LETTER J}\N{REGIONAL INDICATOR SYMBOL LETTER P}",
    "a skin tone": "\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5}",
    "a variation selector": "\N{AIRPLANE}\ufe0f",
    "a keycap": "1\ufe0f\N{COMBINING ENCLOSING KEYCAP}",
    "half-width dakuten": "\N{HALFWIDTH KATAKANA LETTER KA}\N{HALFWIDTH KATAKANA VOICED SOUND MARK}",
    "half-width handakuten": "\N{HALFWIDTH KATAKANA LETTER HA}\N{HALFWIDTH KATAKANA SEMI-VOICED SOUND MARK}",
    "combining dakuten": "\N{KATAKANA LETTER KA}\N{COMBINING KATAKANA-HIRAGANA VOICED SOUND MARK}",
    "Hangul jamo": "\N{HANGUL CHOSEONG KIYEOK}\N{HANGUL JUNGSEONG A}\N{HANGUL JONGSEONG KIYEOK}",
    "two accents": "e\u0301\u0323",
    "a Devanagari conjunct": "\N{DEVANAGARI LETTER KA}\N{DEVANAGARI SIGN VIRAMA}\N{DEVANAGARI LETTER SSA}",
    "an ideographic variation": "\u845b\U000e0100",
    "a line end of Windows": "\r\n",
}


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS.keys())
def test_clip_never_splits_what_people_see_as_one_character(cluster):
    text = cluster * 7 + "z"
    whole = len(render(talk((USER, text)), "speaker"))
    for cut in range(1, 7 * len(cluster)):
        fitted = fit(talk((USER, text)), [], speaker, letters, whole - cut, "clip")
        assert fitted.conversation == [(USER, cluster * (7 - -(-cut // len(cluster))) + "z")]


def test_a_cluster_that_does_not_fit_is_not_split_either():
    turns = talk((USER, "a" + "\u0301" * 1000))
    with pytest.raises(Reject, match="on_overlength = clip cannot shorten it enough"):
        fit(turns, [], speaker, letters, 500, "clip")


@given(
    st.text(
        st.sampled_from("a \r\n\u0301\u200d\U0001f469\U0001f1ef\u1100\u1161\uff76\uff9e\u0915\u094d\u0d4e"), max_size=60
    )
)
def test_boundaries_are_those_of_the_whole_text_wherever_one_begins(text):
    whole = [cluster.start() for cluster in regex.finditer(r"\X", text)] + [len(text)]
    for start in range(len(text) + 1):
        assert list(graphemes.boundaries(text, start)) == [position for position in whole if position >= start]


def test_a_million_flags_take_no_longer_than_a_million_other_characters():
    # `regex` alone looks back over all flags ahead of each one: this text would take it hours.
    text = CLUSTERS["a flag"] * 500_000
    assert next(graphemes.boundaries(text, 999_999)) == 1_000_000


# --- long texts


class Counted:
    """An encode that says how much it was asked for."""

    def __init__(self, tokenizer):
        self.tokenizer, self.longest, self.all = tokenizer, 0, 0

    def __call__(self, text):
        self.longest, self.all = max(self.longest, len(text)), self.all + len(text)
        return self.tokenizer.encode(text)


BOTH = [Tokenizer.load(TOKENIZERS / name) for name in ("bilingual", "japanese-3.6b")]
LONG_TEXTS = {
    "letters": "Monday is fine. " * 200_000,
    "one word": "a" * 3_000_000,
    "Japanese": "金沢から京都まで。" * 200_000,
    "unknown characters": "\U00012000" * 1_000_000,
    "newlines": "\n" * 3_000_000,
    "blanks": " " * 3_000_000 + "x",
}


@pytest.mark.parametrize("name", ["bilingual", "japanese-3.6b"])
@pytest.mark.parametrize("text", LONG_TEXTS.values(), ids=LONG_TEXTS.keys())
def test_a_long_text_is_rejected_before_it_is_encoded(name, text):
    tokenizer = Tokenizer.load(TOKENIZERS / name)
    encode = Counted(tokenizer)
    format = "speaker" if name == "bilingual" else "speaker-nl"
    with pytest.raises(Reject, match=r"the prompt has more than 400 tokens, but there is only room for 400$"):
        fit(talk((USER, text)), [], partial(render, format=format), encode, 400, "reject", tokenizer.exceeds)
    assert encode.all == 0


@pytest.mark.parametrize("name", ["bilingual", "japanese-3.6b"])
def test_what_the_normaliser_takes_away_does_not_count(name):
    tokenizer = Tokenizer.load(TOKENIZERS / name)
    text = "\x01" * 3_000_000 + "Monday" + "\x7f" * 3_000_000
    fitted = fit(talk((USER, text)), [], speaker, tokenizer.encode, 30, "reject", tokenizer.exceeds)
    assert fitted.token_ids == tokenizer.encode("ユーザー: Monday\nシステム: ")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", " ", "が", "か\u3099", "\x01", "ﷺ", "\u0301", "▁", "</s>", "\n", "\U00012000"]),
            st.integers(1, 9),
        ),
        min_size=1,
    ),
    st.integers(1, 40),
)
def test_only_what_is_too_long_is_taken_for_too_long(runs, tokens):
    text = "".join(part * count for part, count in runs)
    text *= 2000 // len(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_bound, "SHORT", 300)  # so that a text of 2,000 characters has many parts
        for tokenizer in BOTH:
            assert not tokenizer.exceeds(text, len(tokenizer.encode(text)))
            assert not tokenizer.exceeds(text, tokens) or len(tokenizer.encode(text)) > tokens


def test_clip_and_drop_turns_encode_little_more_than_what_they_keep_and_count_the_rest_in_parts():
    tokenizer = load_model(str(MODEL)).tokenizer
    encode = Counted(tokenizer)
    long = "Monday is fine. " * 200_000 + "Friday"
    fitted = fit(talk((USER, long)), [], speaker, encode, 400, "clip", tokenizer.exceeds)
    text = fitted.conversation[0].text
    assert len(fitted.token_ids) <= 400 < len(tokenizer.encode(render(talk((USER, "." + text)), "speaker")))
    assert long.endswith(text)
    assert fitted.truncated == len(tokenizer.encode(long[: -len(text)]))
    assert encode.longest <= 1 << 16
    assert encode.all <= 1.1 * len(long)

    encode = Counted(tokenizer)
    turns = talk((USER, long), (ASSISTANT, "x"), *[(USER, "Monday"), (ASSISTANT, "x")] * 20_000, (USER, "Friday"))
    fitted = fit(turns, [], speaker, encode, 400, "drop-turns", tokenizer.exceeds)
    one_more = render(turns[-len(fitted.conversation) - 2 :], "speaker")
    assert len(fitted.token_ids) <= 400 < len(tokenizer.encode(one_more))
    assert encode.all <= 1.5 * (len(long) + 20_000 * len("ユーザー: Mondayシステム: x"))


def test_clip_gives_up_at_once_where_an_earlier_utterance_is_too_long():
    tokenizer = load_model(str(MODEL)).tokenizer
    encode = Counted(tokenizer)
    turns = talk((USER, "Monday " * 100_000), (ASSISTANT, "x"), (USER, "Friday"))
    with pytest.raises(Reject, match="on_overlength = clip cannot shorten it enough"):
        fit(turns, [], speaker, encode, 400, "clip", tokenizer.exceeds)
    assert encode.all == 0


@pytest.mark.parametrize("policy", ["reject", "clip", "drop-turns"])
def test_a_row_of_50_mb_takes_at_most_four_times_its_size(policy, tmp_path):
    # In a process of its own: sentencepiece's memory is not Python's, and what was taken once is never given back.
    code = f"""
import resource
from batchgen.errors import Reject
from batchgen.input.conversation import Row
from batchgen.job.spec import load
from batchgen.runner.prepare import prepare

spec = load(None, {{"input": {{"path": ["{tmp_path}/in.jsonl"]}}, "model": {{"path": {str(MODEL)!r}}},
                       "output": {{"path": "{tmp_path}/out"}}, "sampling": {{"max_tokens": 100}},
                       "prompt": {{"on_overlength": {policy!r}}}}})
task = prepare(spec).task
task.prepare_row(Row(0, b'{{"text": "Monday"}}'))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
row = Row(0, b'{{"text": "' + b"Monday is fine. " * 3_125_000 + b'"}}')
try:
    print(task.prepare_row(row).truncated)
except Reject as why:
    print(why)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    (tmp_path / "in.jsonl").write_text('{"text": "Monday"}\n')
    said, kib = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert int(said) > 10_000_000 if policy == "clip" else said.startswith("too_long: the prompt has more than ")
    assert int(kib) < 4 * 50_000_000 / 1024


@given(st.text(min_size=1, max_size=300).filter(str.strip), st.integers(20, 200))
def test_clipped_prompts_fit_with_the_real_tokenizer_and_end_as_the_text_does(text, limit):
    tokenizer = load_model(str(MODEL)).tokenizer
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
