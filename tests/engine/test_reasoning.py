"""Models that reason: what vLLM's parser takes for thoughts, and what the job makes of both."""

import json
from collections import Counter

import pyarrow.dataset as ds
import pytest
from conftest import MODEL, generating
from faulty import worker_here
from processes import until
from thinker import ANSWER, THOUGHT, save_thinker, thinker  # noqa: F401

from batchgen.engine.installed import versions
from batchgen.engine.vllm import VllmEngine
from batchgen.errors import JobError, Reject
from batchgen.job.sampling import Sampling
from batchgen.model.model import load_model

ARGS = {"dtype": "float32", "max_num_seqs": 8}
GREEDY = {"temperature": 0}
QUESTION = "<|user|>Monday<|end|><|assistant|>"


@pytest.fixture(scope="module", params=["qwen3", pytest.param("deepseek_r1", marks=pytest.mark.slow)])
def parser(request) -> str:
    """One that goes by special tokens and reads piece by piece, and one that does neither."""
    return request.param


@pytest.fixture(scope="module")
def thinking(thinker, parser):  # noqa: F811
    return VllmEngine(load_model(str(thinker)), {**ARGS, "reasoning_parser": parser}, 128)


@pytest.fixture
def think(thinking, thinker, parser, write_rows, tmp_path):  # noqa: F811
    """Runs these rows on that model; gives the output rows by number and sample."""

    def run(*rows, out="out", reasoning_parser=parser, **tables) -> list[dict]:
        tables["model"] = {"path": str(thinker), "reasoning_parser": reasoning_parser}
        folder = generating(thinking, tmp_path)([write_rows(rows)], out, **tables)
        return ds.dataset(folder).to_table().to_pylist()

    return run


def texts(row: dict) -> tuple[str | None, str, str]:
    return row["reasoning"], row["response"], row["finish_reason"]


def test_thoughts_go_to_a_column_of_their_own(think, batchgen, tmp_path):
    [row] = think({"text": "Monday"}, sampling=GREEDY)
    assert texts(row) == (THOUGHT, ANSWER, "stop")
    assert row["response_tokens"] == len(f"<{THOUGHT}>{ANSWER}.")
    assert batchgen("verify", tmp_path / "out").stdout.startswith("verified: 1 rows, 1 responses, 0 rejects")


def test_each_of_several_samples_has_its_own_thoughts(think):
    rows = think({"text": "Monday"}, sampling={"n": 12, "top_p": 1.0, "max_tokens": 100})
    assert [row["sample"] for row in rows] == list(range(12))
    assert {row["response"] for row in rows if row["finish_reason"] == "stop"} == {ANSWER}
    lengths = Counter(len(row["reasoning"]) for row in rows if row["finish_reason"] == "stop")
    assert len(lengths) > 1 and all(length % len(THOUGHT) == 0 for length in lengths)


def test_what_is_cut_while_it_thinks_is_all_thought_and_no_answer(think):
    row, whole = think({"text": "Monday", "sampling": {"max_tokens": 5}}, {"text": "Monday"}, sampling=GREEDY)
    assert texts(row) == (THOUGHT[:4], "", "length")
    assert texts(whole) == (THOUGHT, ANSWER, "stop")


def test_a_budget_ends_the_thoughts_and_not_the_answer(think):
    rows = [{"text": "Monday"}, {"text": "Monday", "sampling": {"thinking_token_budget": 6}}]
    unlimited = {"text": "Monday", "sampling": {"thinking_token_budget": -1}}
    found = think(*rows, unlimited, sampling=GREEDY | {"thinking_token_budget": 3})
    assert [texts(row)[:2] for row in found] == [(THOUGHT[:3], ANSWER), (THOUGHT[:6], ANSWER), (THOUGHT, ANSWER)]
    assert [row["sampling"]["thinking_token_budget"] for row in found] == [3, 6, -1]


def test_structured_outputs_hold_for_the_answer_only(think):
    [row] = think({"text": "Monday"}, sampling=GREEDY | {"structured_outputs": {"choice": ["yes", "no"]}})
    assert row["reasoning"] == THOUGHT
    assert row["response"] in ("yes", "no")


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(think):
    [row] = think({"text": "Monday"}, sampling=GREEDY | {"stop": [ANSWER[1:]]})
    assert texts(row) == (THOUGHT, ANSWER[:1], "stop")


def test_a_loop_of_thoughts_ends(think, thinker):  # noqa: F811
    closing = load_model(str(thinker)).tokenizer.encode("</think>")
    loops = {
        "logit_bias": dict.fromkeys(closing, -100),
        "repetition_detection": {"max_pattern_size": 8, "min_count": 2},
    }
    [row] = think({"text": "Monday"}, sampling=GREEDY | loops)
    assert texts(row) == (THOUGHT * 2, "", "repetition")


@pytest.mark.parametrize(
    ("prompt", "reasoning"),
    [
        (f"{QUESTION}<think>", THOUGHT),  # the template begins the thoughts
        (f"{QUESTION}<think></think>", None),  # or ends them at once
        (QUESTION.replace("Monday", "What does </think> mean?"), THOUGHT),
    ],
    ids=["begun", "ended", "named by the user"],
)
def test_what_the_prompt_says_of_thoughts_counts(think, prompt, reasoning):
    [row] = think({"text": prompt}, prompt={"format": "raw", "control_tokens": "token"}, sampling=GREEDY)
    assert texts(row) == (reasoning, ANSWER, "stop")


def test_without_a_parser_of_the_job_the_response_is_all_of_the_text(think):
    [row] = think({"text": "Monday"}, reasoning_parser="", sampling=GREEDY)
    assert "reasoning" not in row
    assert row["response"] == f"<think>{THOUGHT}</think>{ANSWER}"


def test_a_text_at_which_the_parser_fails_rejects_its_row(think, thinking, monkeypatch, tmp_path):
    split = thinking._reasoning.split

    def fail_at_answers(prompt, response):
        if len(response.token_ids) > 5:
            raise KeyError("no such token")
        return split(prompt, response)

    monkeypatch.setattr(thinking._reasoning, "split", fail_at_answers)
    rows = think({"text": "Monday"}, {"text": "Monday", "sampling": {"max_tokens": 5}}, sampling=GREEDY)
    assert [row["row"] for row in rows] == [1]
    [line] = next((tmp_path / "out").glob("_rejects/*")).read_text().splitlines()
    assert json.loads(line)["reason"] == "engine_error" and "no such token" in json.loads(line)["detail"]


def test_replayed_exported_and_described_thoughts_are_there(think, thinking, batchgen, tmp_path, parser):
    think({"text": "Monday"}, {"text": "Friday"}, sampling={"n": 2, "top_p": 1.0, "max_tokens": 100})
    out = tmp_path / "out"
    with worker_here(thinking):
        assert "replayed: 4 of 4" in batchgen("verify", out, "--replay", 4).stdout
    assert batchgen("export", out, "--to", tmp_path / "b.jsonl", "--format", "openai-batch").exit_code == 0
    [first, _] = map(json.loads, (tmp_path / "b.jsonl").read_text().splitlines())
    message = first["response"]["body"]["choices"][0]["message"]
    assert (message["content"], message["reasoning"][:8]) == (ANSWER, THOUGHT)
    batchgen("export", out, "--to", tmp_path / "card")
    card = (tmp_path / "card" / "README.md").read_text()
    assert "| `reasoning` | `string` | what the model thought" in card
    assert f'"reasoning_parser": "{parser}"' in card


# --- what does not go


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("deepseek_r1", "could not locate"),
        ("openai_gptoss", "GptOssReasoningParser|KeyError: '<.end.>'"),
        ("none", "none"),
    ],
)
def test_a_parser_that_does_not_fit_is_refused_in_one_line_before_the_engine_starts(name, why):
    with pytest.raises(JobError, match=rf"^\[model\] reasoning_parser {name}: .*({why}).*$"):
        VllmEngine(load_model(str(MODEL)), {**ARGS, "reasoning_parser": name}, 512)


@pytest.mark.slow
def test_a_budget_that_the_parser_has_no_marks_for_is_refused_before_the_first_row(thinker):  # noqa: F811
    engine = VllmEngine(load_model(str(thinker)), {**ARGS, "reasoning_parser": "granite"}, 128)
    engine.check(Sampling())
    with pytest.raises(JobError, match=r"^\[sampling\] vLLM refuses: thinking_token_budget .*$"):
        engine.check(Sampling(thinking_token_budget=3))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--reasoning-parser", "qwen33"], "[model] reasoning_parser: vLLM VERSION has no qwen33; did you mean qwen3?"),
        (
            ["--thinking-token-budget", 9],
            "[sampling] thinking_token_budget: only [model] reasoning_parser can tell where the model thinks",
        ),
        (
            ["--reasoning-parser", "qwen3", "--engine", "reasoning_parser=qwen3"],
            "[engine] reasoning_parser: [model] reasoning_parser sets this; leave it out",
        ),
    ],
)
def test_a_wrong_parser_or_a_budget_without_one_is_refused_in_one_line(batchgen, write_rows, tmp_path, flags, line):
    asked = ["run", write_rows([{"text": "Monday"}]), "--model", MODEL, "--output", tmp_path / "out"]
    result = batchgen(*asked, *flags)
    assert (result.exit_code, result.stderr) == (2, f"batchgen: {line.replace('VERSION', versions()['vllm'])}\n")
    assert not (tmp_path / "out").exists()


def test_a_rows_budget_without_a_parser_is_a_reject(item_of):
    with pytest.raises(Reject, match="thinking_token_budget: only") as caught:
        item_of({"text": "Monday", "sampling": {"thinking_token_budget": 9}})
    assert caught.value.reason == "bad_sampling"


# --- special tokens, and processes of their own


@pytest.mark.slow
@pytest.mark.parametrize("special", [False, True], ids=["", "special marks"])
def test_thoughts_survive_a_run_that_is_resumed_from_its_journal(start, write_rows, tmp_path, special):
    model = save_thinker(tmp_path / "thinker", special=special)
    source = write_rows([{"text": f"Monday {number}"} for number in range(300)])
    flags = ["--temperature", 1, "--top-p", 1, "--max-tokens", 60, "--reasoning-parser", "qwen3", "--seed", 5]
    asked = [*flags, "--engine", "max_num_seqs=2", "--model", model, "--stale", 1, "--drain", 0]
    run = start(source, tmp_path / "cut", *asked)
    until(lambda: any(path.stat().st_size > 2000 for path in run.out.glob("_state/journal/*")))
    run.kill()
    again = start(source, tmp_path / "cut", *asked)
    assert again.wait() == 0, again.stderr
    assert " responses from the journal)" in again.stdout
    whole = start(source, tmp_path / "whole", *asked)
    assert whole.wait() == 0, whole.stderr
    found, expected = (ds.dataset(tmp_path / name).to_table() for name in ("cut", "whole"))
    assert found.equals(expected)
    assert {row["response"] for row in found.to_pylist() if row["finish_reason"] == "stop"} == {ANSWER}
    assert len(set(found["reasoning"].to_pylist())) > 1
