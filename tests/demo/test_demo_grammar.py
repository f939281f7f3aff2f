"""The demo's grammar, the data made from it, and the files that ship in the wheel."""

import json
import unicodedata
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece

from batchgen import demo
from batchgen.demo.grammar import (
    HELD_OUT_COUNT,
    PARSED_TEMPLATES,
    SLOTS,
    conversations,
    examples,
    held_out_conversations,
    held_out_sentences,
)
from batchgen.demo.score import score

DEMO = Path(demo.__file__).parent
SHIPPED_BYTES = 6_000_000


@pytest.fixture(scope="module")
def many():
    return list(examples(50_000, seed=7))


@pytest.fixture(scope="module")
def shipped():
    with open(DEMO / "data" / "conversations.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_no_sentence_has_two_translations(many):
    translation = {}
    for example in many:
        assert translation.setdefault(example.source, example.target) == example.target
        assert translation.setdefault(example.target, example.source) == example.source


def test_direction_is_plain_from_the_sentence(many):
    for example in many:
        source_is_english = example.source.isascii()
        assert source_is_english != example.target.isascii()
        assert example.direction == ("en-ja" if source_is_english else "ja-en")


def test_sources_are_distinct(many):
    assert len({example.source for example in many}) == len(many)


def test_text_is_nfkc_so_the_tokenizer_keeps_it(many):
    assert all(unicodedata.is_normalized("NFKC", example.source + example.target) for example in many)


def test_same_seed_same_text():
    assert list(conversations(500, seed=3)) == list(conversations(500, seed=3))
    assert list(islice(conversations(500, seed=3), 100)) == list(conversations(100, seed=3))
    assert list(conversations(500, seed=3)) != list(conversations(500, seed=4))


def test_both_sides_of_a_template_have_the_same_slots():
    for template, names in PARSED_TEMPLATES:
        assert names and all(name.rstrip("2") in SLOTS for name in names)
        assert all(template.ja.count("{" + name + "}") == 1 for name in names)
        assert template.ja.count("{") == len(names)


def test_about_one_conversation_in_seven_has_an_earlier_turn():
    records = list(conversations(2000, seed=5))
    speakers = [[turn["speaker"] for turn in record["conversation"]] for record in records]
    assert {tuple(names) for names in speakers} == {("ユーザー",), ("ユーザー", "システム", "ユーザー")}
    assert 0.12 < sum(len(names) == 3 for names in speakers) / len(records) < 0.18


def test_training_never_sees_what_is_held_out():
    held_out = held_out_sentences()
    assert len(held_out) >= HELD_OUT_COUNT
    seen = {
        text
        for record in conversations(20_000, seed=1, exclude=held_out)
        for text in [*(turn["text"] for turn in record["conversation"]), record["expected"]]
    }
    assert seen.isdisjoint(held_out)


def test_shipped_data_is_the_held_out_data(shipped):
    assert shipped == list(held_out_conversations())
    assert len({record["id"] for record in shipped}) == HELD_OUT_COUNT


def test_shipped_conversations_fit_the_shipped_model(shipped):
    config = json.loads((DEMO / "model" / "config.json").read_text())
    spiece = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "model" / "spiece.model"))
    assert spiece.vocab_size() == config["vocab_size"]
    assert (spiece.bos_id(), spiece.eos_id()) == (config["bos_token_id"], config["eos_token_id"])
    for record in shipped:
        turns = [*record["conversation"], {"speaker": "システム", "text": record["expected"]}]
        text = "\n".join(f"{turn['speaker']}: {turn['text']}" for turn in turns)
        ids = spiece.encode(text)
        assert not any(spiece.is_unknown(id) or spiece.is_byte(id) for id in ids)
        assert spiece.decode(ids) == text
        assert len(ids) < config["max_position_embeddings"]


def test_shipped_files_are_small():
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < SHIPPED_BYTES


def test_score_counts_exact_matches(tmp_path):
    conversation = [{"speaker": "ユーザー", "text": "駅はどこですか。"}]
    expected = "Where is the station?"
    table = pyarrow.Table.from_pylist(
        [
            {"conversation": conversation, "response": response, "expected": expected}
            for response in (expected, expected, expected.lower())
        ]
    )
    pyarrow.parquet.write_table(table, tmp_path / "part-00000-of-00001.parquet")
    (tmp_path / "_job.json").write_text("{}")
    assert score(tmp_path) == (2, 3)
