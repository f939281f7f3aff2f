"""What the engine generates: the same as transformers, the same whatever the order, from the right distribution."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CONVERSATIONS, MODEL, demo_records
from unpatched import GPTNeoXForCausalLM

from batchgen.demo.score import score

EOS = 3
REFERENCE = Path(__file__).parent.parent / "reference_ids.json"


@pytest.fixture(scope="session")
def reference_model():
    return GPTNeoXForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def responses(out) -> dict[tuple[int, int], list[int]]:
    """(row, sample) -> response token ids."""
    table = ds.dataset(out).to_table(["row", "sample", "response_token_ids"]).to_pylist()
    return {(row["row"], row["sample"]): row["response_token_ids"] for row in table}


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.1])
def test_greedy_equals_transformers_generate_on_the_reference_tokenizers_ids(
    generate, write_rows, reference_model, repetition_penalty
):
    reference = json.loads(REFERENCE.read_text())
    assert len(reference) == 200
    out = generate(
        [write_rows(demo_records(200))],
        sampling={"temperature": 0, "max_tokens": 64, "repetition_penalty": repetition_penalty},
        output={"include": ["prompt_token_ids", "response_token_ids"]},
    )
    for row in ds.dataset(out).to_table().to_pylist():
        prompt = torch.tensor([reference[row["row"]]])
        assert row["prompt_token_ids"] == prompt[0].tolist()
        whole = reference_model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=64,
            repetition_penalty=repetition_penalty,
            eos_token_id=EOS,
            pad_token_id=0,
        )
        assert row["response_token_ids"] == whole[0, prompt.shape[1] :].tolist(), row["id"]


SAMPLED = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 24, "seed": 7}


def test_a_sampled_response_is_the_same_alone_in_any_order_shard_size_and_window(generate, write_rows):
    """300 items at once, and in five other ways. The prompts are unlike the training data: much to choose from."""
    rows = [{"id": f"r{i}", "text": f"{i} {'なに ' * (i % 9)}?"} for i in range(300)]
    keep = {"include": ["response_token_ids"]}
    source = write_rows(rows)
    expected = responses(generate([source], "all", sampling=SAMPLED, output=keep))
    assert len({tuple(ids) for ids in expected.values()}) > 200  # the seeds do differ; without seeds it is 231 to 247

    for name, options in {
        "small shards": {"output": {**keep, "shard_rows": 7}},
        "window of 1": {"window": 1},
        "window of 5": {"window": 5},
        "window of all": {"window": 1000},
        "last shard first": {"output": {**keep, "shard_rows": 50}, "order": lambda shards: shards[::-1]},
    }.items():
        out = generate([source], name, sampling=SAMPLED, **({"output": keep} | options))
        assert responses(out) == expected, name

    shuffled = rows.copy()
    random.Random(0).shuffle(shuffled)
    by_id = {rows[row]["id"]: ids for (row, _), ids in expected.items()}
    out = generate([write_rows(shuffled, "shuffled.jsonl")], "shuffled", sampling=SAMPLED, output=keep)
    assert {shuffled[row]["id"]: ids for (row, _), ids in responses(out).items()} == by_id

    for row in (0, 123, 299):
        alone = write_rows([rows[row]], f"{row}.jsonl")
        out = generate([alone], f"alone {row}", sampling=SAMPLED, output=keep)
        assert responses(out) == {(0, 0): expected[row, 0]}


def test_first_tokens_follow_the_models_own_truncated_softmax(generate, write_rows, reference_model):
    """Chi-square over 4,000 seeds at temperature 1.0 and top_p 0.85."""
    top_p, seeds = 0.85, 4000
    out = generate(
        [write_rows([{"id": f"seed {i}", "text": "?"} for i in range(seeds)])],
        sampling={"temperature": 1.0, "top_p": top_p, "max_tokens": 1},
        output={"include": ["prompt_token_ids", "response_token_ids"]},
    )
    rows = ds.dataset(out).to_table().to_pylist()
    drawn = Counter(row["response_token_ids"][0] for row in rows)
    with torch.inference_mode():
        logits = reference_model(torch.tensor([rows[0]["prompt_token_ids"]])).logits[0, -1]
    full = torch.softmax(logits.double(), 0)
    likeliest = torch.sort(full, descending=True)
    kept = likeliest.indices[likeliest.values.cumsum(0) - likeliest.values < top_p]
    truncated = {int(token): float(full[token] / full[kept].sum()) for token in kept}

    assert len(truncated) >= 5, "the prompt must leave the model a choice"
    assert drawn.keys() <= truncated.keys()
    assert chi_square_p(drawn, truncated, seeds) > 0.001
    # The same test does see a wrong distribution: the same tokens at temperature 1.25.
    flatter = {token: share**0.8 for token, share in truncated.items()}
    flatter = {token: share / sum(flatter.values()) for token, share in flatter.items()}
    assert chi_square_p(drawn, flatter, seeds) < 0.001


def chi_square_p(drawn: Counter, shares: dict[int, float], total: int) -> float:
    """Probability of a difference at least this large; rare tokens are counted as one so that each bin expects 5."""
    bins = [(drawn[token], share * total) for token, share in shares.items()]
    large = [pair for pair in bins if pair[1] >= 5]
    small = [pair for pair in bins if pair[1] < 5]
    if small:
        large.append((sum(seen for seen, _ in small), sum(expected for _, expected in small)))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in large)
    freedom = torch.tensor((len(large) - 1) / 2, dtype=torch.double)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.double)))


def test_two_runs_give_byte_identical_shards(generate, write_rows):
    source = write_rows([*demo_records(60), {"text": ""}, "no"])
    outs = [generate([source], name, sampling={"seed": 1}, output={"shard_rows": 16}) for name in ("a", "b")]
    parts = [sorted(path.relative_to(out) for path in out.glob("part-*")) for out in outs]
    assert parts[0] == parts[1] and len(parts[0]) == 4
    for part in [*parts[0], Path("_rejects/part-00003-of-00004.jsonl"), Path("_SUCCESS")]:
        assert (outs[0] / part).read_bytes() == (outs[1] / part).read_bytes()


def test_demo_translations_of_unseen_sentences_are_right(generate):
    out = generate([CONVERSATIONS], sampling={"temperature": 0, "max_tokens": 96}, output={"columns": ["expected"]})
    right, total = score(out)
    assert total == 2000
    assert right / total >= 0.98


def test_a_response_ends_before_the_end_of_text_token_and_counts_it(generate, write_rows):
    out = generate(
        [write_rows(demo_records(1))], sampling={"temperature": 0}, output={"include": ["response_token_ids"]}
    )
    [row] = ds.dataset(out).to_table().to_pylist()
    assert row["finish_reason"] == "stop"
    assert row["response_token_ids"][-1] == EOS
    assert row["response_tokens"] == len(row["response_token_ids"])
    assert "</s>" not in row["response"]


def test_max_tokens_gives_finish_reason_length(generate, write_rows):
    out = generate([write_rows(demo_records(1))], sampling={"max_tokens": 2})
    [row] = ds.dataset(out).to_table().to_pylist()
    assert (row["finish_reason"], row["response_tokens"]) == ("length", 2)


def test_ignore_eos_and_min_tokens_go_on_past_the_end_of_text(generate, write_rows):
    rows = [
        {"text": "Monday", "sampling": {"ignore_eos": True, "max_tokens": 40}},
        {"text": "Monday", "sampling": {"min_tokens": 30}},
    ]
    out = generate([write_rows(rows)], sampling={"temperature": 0})
    table = ds.dataset(out).to_table().to_pylist()
    assert table[0]["response_tokens"] == 40
    assert table[1]["response_tokens"] >= 30


def test_a_stop_token_ends_the_response(generate, write_rows):
    whole = generate(
        [write_rows(demo_records(1))], "a", sampling={"temperature": 0}, output={"include": ["response_token_ids"]}
    )
    [ids] = responses(whole).values()
    rows = [{**demo_records(1)[0], "sampling": {"stop_token_ids": [ids[2]]}}]
    cut = generate([write_rows(rows)], "b", sampling={"temperature": 0}, output={"include": ["response_token_ids"]})
    [stopped] = responses(cut).values()
    assert stopped == ids[: ids.index(ids[2]) + 1]


def test_max_tokens_is_cut_to_the_context_and_recorded_so(generate, write_rows):
    out = generate([write_rows(demo_records(1))], sampling={"max_tokens": 5000})
    [row] = pq.read_table(out / "part-00000-of-00001.parquet").to_pylist()
    assert row["sampling"]["max_tokens"] == 512 - row["prompt_tokens"]


# --- stop texts, log probabilities, chosen tokens

GREEDY = {"temperature": 0, "max_tokens": 64}
IDS = {"include": ["response_token_ids"]}


def rows_of(out) -> list[dict]:
    return ds.dataset(out).to_table().to_pylist()


def test_a_stop_text_ends_generation_early_and_does_not_stand_in_the_response(generate, write_rows):
    source = write_rows(demo_records(40))
    whole = rows_of(generate([source], "whole", sampling=GREEDY, output=IDS))
    stop = ["は", "の", " on "]
    found = rows_of(generate([source], "cut", sampling={**GREEDY, "stop": stop}, output=IDS))
    cut_short = 0
    for before, after in zip(whole, found, strict=True):
        ends = [before["response"].find(text) for text in stop if text in before["response"]]
        expected = before["response"][: min(ends)] if ends else before["response"]
        assert after["response"] == expected
        assert after["finish_reason"] == "stop"
        assert after["response_token_ids"] == before["response_token_ids"][: after["response_tokens"]]
        cut_short += after["response_tokens"] < before["response_tokens"]
    assert cut_short >= 20


def test_a_stop_text_over_several_tokens_and_inside_one(generate, write_rows):
    """Whatever the pieces: the stop text is looked for in the text, not in the tokens."""
    [whole] = rows_of(generate([write_rows(demo_records(1))], "whole", sampling=GREEDY))
    text = whole["response"]
    for start in range(0, len(text) - 3, 2):
        stop = text[start : start + 3]
        [row] = rows_of(generate([write_rows(demo_records(1))], f"{start}", sampling={**GREEDY, "stop": [stop]}))
        assert row["response"] == text[: text.find(stop)]


def test_a_stop_text_can_stay_in_the_response(generate, write_rows):
    options = {**GREEDY, "stop": ["は"], "include_stop_str_in_output": True}
    rows = rows_of(generate([write_rows(demo_records(5))], sampling=options))
    assert rows[0]["response"].endswith("は")


def test_a_stop_text_before_min_tokens_is_passed_over(generate, write_rows):
    [whole] = rows_of(generate([write_rows(demo_records(1))], "whole", sampling=GREEDY))
    options = {**GREEDY, "stop": [whole["response"][0]], "min_tokens": whole["response_tokens"] - 1}
    [row] = rows_of(generate([write_rows(demo_records(1))], "cut", sampling=options))
    assert row["response"] == whole["response"]


def test_a_rows_own_stop_text_may_be_plain_text(generate, write_rows):
    rows = [{**record, "sampling": {"stop": "は"}} for record in demo_records(3)]
    assert "は" not in rows_of(generate([write_rows(rows)], sampling=GREEDY))[0]["response"]


def test_logprobs_are_those_of_transformers(generate, write_rows, reference_model):
    out = generate(
        [write_rows(demo_records(5))],
        sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 20, "logprobs": 2, "stop": ["nowhere"]},
        output={"include": ["prompt_token_ids", "response_token_ids"]},
    )
    for row in rows_of(out):
        ids = row["prompt_token_ids"] + row["response_token_ids"]
        with torch.inference_mode():
            logits = reference_model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert len(row["logprobs"]) == row["response_tokens"]
        for position, step in enumerate(row["logprobs"], start=row["prompt_tokens"] - 1):
            assert step[0]["token_id"] == ids[position + 1]
            for pair in step:
                assert pair["logprob"] == pytest.approx(float(logits[position, pair["token_id"]]), abs=1e-3)
            best = {pair["token_id"] for pair in step}
            assert {int(token) for token in logits[position].topk(2).indices} <= best


def test_without_logprobs_there_is_no_such_column(generate, write_rows):
    assert "logprobs" not in rows_of(generate([write_rows(demo_records(1))], sampling=GREEDY))[0]


def test_only_allowed_tokens_are_generated(generate, write_rows):
    options = {"max_tokens": 30, "allowed_token_ids": [300, 301, 302], "min_tokens": 30}
    [row] = rows_of(generate([write_rows(demo_records(1))], sampling=options, output=IDS))
    assert set(row["response_token_ids"]) <= {300, 301, 302}


def test_a_logit_bias_moves_the_choice(generate, write_rows):
    rows = [{**demo_records(1)[0], "sampling": {"logit_bias": {"300": 100}, "max_tokens": 5}}]
    [row] = rows_of(generate([write_rows(rows)], sampling=GREEDY, output=IDS))
    assert row["response_token_ids"] == [300] * 5
    assert row["sampling"]["logit_bias"] == [{"token_id": 300, "bias": 100.0}]


# --- structured outputs and bad words


def structured(generate, write_rows, wanted, **sampling) -> str:
    """The response to one sentence; whatever the model would rather say, `wanted` is what it may."""
    rows = [{**demo_records(1)[0], "sampling": {"structured_outputs": wanted}}]
    options = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 60, **sampling}
    [row] = rows_of(generate([write_rows(rows)], out=str(len(str(wanted))), sampling=options))
    assert json.loads(row["sampling"]["structured_outputs"]) == wanted
    assert row["finish_reason"] == "stop"
    return row["response"]


def test_a_response_follows_a_regex(generate, write_rows):
    assert re.fullmatch("[0-9]{3}-(火|水)曜日", structured(generate, write_rows, {"regex": "[0-9]{3}-(火|水)曜日"}))


def test_a_response_is_one_of_the_choices_with_spaces_and_signs_that_are_no_piece(generate, write_rows):
    choices = ["not at all ", "鬱蒼とした森", "🙂"]
    assert structured(generate, write_rows, {"choice": choices}) in choices


def test_a_response_follows_a_json_schema(generate, write_rows):
    schema = {
        "type": "object",
        "properties": {"day": {"enum": ["月", "火"]}, "hour": {"type": "integer", "minimum": 0, "maximum": 23}},
        "required": ["day", "hour"],
        "additionalProperties": False,
    }
    response = structured(generate, write_rows, {"json": schema})
    found = json.loads(response)
    assert response == json.dumps(found, ensure_ascii=False, separators=(",", ":"))  # no white space
    assert found["day"] in ("月", "火")
    assert 0 <= found["hour"] <= 23


def test_a_response_follows_a_grammar(generate, write_rows):
    assert structured(generate, write_rows, {"grammar": 'root ::= "(" root ")" | "x"'}).strip("()") == "x"


def test_a_schema_that_cannot_be_followed_rejects_its_row_alone(generate, write_rows):
    good = demo_records(1)[0]
    bad = [{"regex": "[0-9"}, {"json": {"type": "nope"}}, {"regex": "x", "choice": ["x"]}, {"json_object": False}]
    out = generate([write_rows([*({**good, "sampling": {"structured_outputs": each}} for each in bad), good])])
    lines = [json.loads(line) for line in next(out.glob("_rejects/*")).read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == [(row, "bad_sampling") for row in range(4)]
    assert "Unclosed '['" in lines[0]["detail"]


def test_a_schema_of_as_many_levels_as_rows_may_have_is_followed_on_any_vllm(generate, write_rows):
    """From 0.32 on vLLM refuses more. A job may allow more: then that row is rejected, or answered, and no other."""
    good = demo_records(1)[0]
    schemas = [{"type": "integer"}, {"type": "integer"}]
    for position, levels in enumerate((64, 65)):
        for _ in range(levels - 1):
            schemas[position] = {"type": "array", "items": schemas[position], "minItems": 1, "maxItems": 1}
    rows = [{**good, "sampling": {"structured_outputs": {"json": schema}, "max_tokens": 4}} for schema in schemas]
    usual = generate([write_rows(rows)])
    assert [(row["row"], row["response"][0]) for row in rows_of(usual)] == [(0, "[")]
    allowed = rows_of(generate([write_rows(rows)], "allowed", limits={"schema_depth": 65}))
    assert [row["row"] for row in allowed] in ([0], [0, 1])


def test_a_bad_word_does_not_come(generate, write_rows):
    rows = [demo_records(1)[0]]
    source = write_rows(rows)
    word = rows_of(generate([source], "free", sampling=GREEDY))[0]["response"][:2]
    [row] = rows_of(generate([source], "other", sampling={**GREEDY, "bad_words": [word]}))
    assert not row["response"].startswith(word)
    assert row["sampling"]["bad_words"] == [word]


def test_a_row_may_have_its_own_number_of_samples(generate, write_rows):
    some = demo_records(3)
    rows = [{**some[0], "sampling": {"n": 3}}, some[1], {**some[2], "sampling": {"n": 1}}]
    out = generate([write_rows(rows)], sampling={"n": 2, "max_tokens": 4})
    assert [(row["row"], row["sample"]) for row in rows_of(out)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize("n", [0, 1025, "2", 1.5])
def test_a_number_of_samples_out_of_range_rejects_the_row(generate, write_rows, n):
    out = generate([write_rows([{**demo_records(1)[0], "sampling": {"n": n}}])])
    [line] = next(out.glob("_rejects/*")).read_text().splitlines()
    assert json.loads(line)["reason"] == "bad_sampling"


LOOP = {"temperature": 0, "allowed_token_ids": [300], "ignore_eos": True, "max_tokens": 40}
FOUR = {"max_pattern_size": 2, "min_count": 4}


@pytest.mark.parametrize("stop", [[], ["never written"]], ids=["", "where stop texts are looked for"])
def test_a_response_that_repeats_itself_ends(generate, batchgen, write_rows, stop):
    """The model is made to write one token again and again; the second row asks for a longer loop, the third's is never
    long enough."""
    rows = [{"text": "Monday"}, *({"text": "Monday", "sampling": {"repetition_detection": each}} for each in OTHERS)]
    out = generate([write_rows(rows)], sampling=LOOP | {"repetition_detection": FOUR, "stop": stop})
    found = [(row["finish_reason"], row["response_tokens"]) for row in ds.dataset(out).to_table().to_pylist()]
    assert found == [("repetition", 4), ("repetition", 9), ("length", 40)]
    assert batchgen("verify", out).stdout.startswith("verified: 3 rows, 3 responses, 0 rejects")
    sampling = ds.dataset(out).to_table(["sampling"]).to_pylist()[0]["sampling"]
    assert json.loads(sampling["repetition_detection"]) == FOUR


OTHERS = [{"max_pattern_size": 3, "min_pattern_size": 3, "min_count": 3}, {"max_pattern_size": 2, "min_count": 50}]


def test_what_repeats_itself_less_often_than_min_tokens_allows_goes_on(generate, write_rows):
    out = generate([write_rows([{"text": "Monday"}])], sampling=LOOP | {"repetition_detection": FOUR, "min_tokens": 7})
    assert ds.dataset(out).to_table(["finish_reason", "response_tokens"]).to_pylist() == [
        {"finish_reason": "repetition", "response_tokens": 7}
    ]
