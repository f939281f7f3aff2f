"""Scoring: what the model finds likely, by the real engine; rejects, resume and proof as for any job."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records

from batchgen.commands.verify import verify
from batchgen.errors import JobError, Stopped
from batchgen.job.spec import load
from batchgen.model.model import load_model
from batchgen.output import opening
from batchgen.output.claims import Claims
from batchgen.runner.prepare import prepare
from batchgen.runner.run import close, missing_shards
from batchgen.runner.worker import Worker
from batchgen.task.score import windows_of

CLOSE = 1e-4
END = "\nシステム: "


@pytest.fixture(scope="module")
def logprobs():
    """The log probability of each token behind the first, by transformers, and whether it is the likeliest."""
    import torch
    from transformers import GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()

    def of(ids):
        with torch.no_grad():
            steps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return [(float(step[token]), bool(step.argmax() == token)) for step, token in zip(steps, ids[1:], strict=True)]

    return of


@pytest.fixture(scope="module")
def encode():
    return load_model(str(MODEL)).tokenizer.encode


def read(out: Path) -> list[dict]:
    return pq.read_table(sorted(out.glob("part-*.parquet"))).to_pylist()


def rejects(out: Path) -> dict[int, str]:
    lines = [json.loads(line) for path in out.glob("_rejects/*") for line in path.read_text("utf-8").splitlines()]
    return {line["row"]: f"{line['reason']}: {line['detail']}" for line in lines}


QUESTION = "Monday"
PROMPT = f"ユーザー: {QUESTION}{END}"


def test_a_continuation_has_the_sum_of_its_tokens_behind_the_prompt(generate, write_rows, logprobs, encode):
    out = generate(
        [write_rows([{"text": QUESTION, "answer": "月曜日"}])], score={"mode": "continuation", "column": "answer"}
    )
    [row] = read(out)
    [score] = row["scores"]
    ids = encode("月曜日")
    expected = logprobs([*encode(PROMPT), *ids])[-len(ids) :]
    assert score["text"] == "月曜日"
    assert score["tokens"] == len(ids)
    assert abs(score["logprob"] - sum(each for each, _ in expected)) < CLOSE
    assert score["logprob_per_token"] == score["logprob"] / len(ids)
    assert score["logprob_per_char"] == score["logprob"] / 3
    assert score["greedy"] == all(greedy for _, greedy in expected)
    assert row["perplexity"] == math.exp(-score["logprob"] / len(ids))
    assert row["prompt_tokens"] == len(encode(PROMPT))
    assert row["conversation"] == [{"speaker": "ユーザー", "text": QUESTION}]


@pytest.mark.parametrize(
    "record",
    [
        {"conversation": [{"speaker": "ユーザー", "text": QUESTION}, {"speaker": "システム", "text": "月曜日"}]},
        {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "月曜日"}]},
        {"inputs": QUESTION, "targets": "月曜日"},
        {"chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: 月曜日"},
    ],
)
def test_without_a_column_the_answer_at_the_end_is_scored(generate, write_rows, record):
    column = generate(
        [write_rows([{"text": QUESTION, "answer": "月曜日"}])], score={"mode": "continuation", "column": "answer"}
    )
    out = generate([write_rows([record], "answered.jsonl")], "answered", score={"mode": "continuation"})
    assert read(out)[0]["scores"] == read(column)[0]["scores"]


def test_of_choices_the_likeliest_is_best_and_may_be_the_right_one(generate, write_rows):
    demo = demo_records(40)
    rows = [
        {"conversation": record["conversation"], "choices": [demo[n - 1]["expected"], record["expected"]], "answer": 1}
        for n, record in enumerate(demo)
    ]
    rows += [{**rows[0], "answer": rows[0]["choices"][1]}, {**rows[0], "answer": 0}, {**rows[0], "answer": None}]
    out = generate([write_rows(rows)], score={"mode": "choices", "column": "choices", "reference": "answer"})
    found = read(out)
    assert [row["right"] for row in found[:40]] == [row["best"] == 1 for row in found[:40]]
    assert sum(row["right"] for row in found[:40]) >= 39
    assert [row["right"] for row in found[40:]] == [True, False, None]
    for row in found:
        assert row["scores"][row["best"]]["logprob"] == max(score["logprob"] for score in row["scores"])
        assert row["perplexity"] is None


def test_without_its_prompt_a_continuation_stands_behind_the_end_of_text(generate, write_rows, logprobs, encode):
    asked = {"mode": "continuation", "column": "answer", "also_without_prompt": True}
    out = generate([write_rows([{"text": QUESTION, "answer": "月曜日"}])], score=asked)
    ids = encode("月曜日")
    assert abs(read(out)[0]["scores"][0]["without_prompt"] - sum(each for each, _ in logprobs([3, *ids]))) < CLOSE


def test_every_token_of_a_long_text_is_scored_once_with_what_stands_ahead_of_it(generate, write_rows, logprobs, encode):
    text = "".join(record["expected"] for record in demo_records(60))
    ids = encode(text)
    assert len(ids) > 900  # of a context of 512
    out = generate([write_rows([{"text": text}])], score={"mode": "text", "tokens": True})
    [row] = read(out)
    [tokens] = row["token_logprobs"]
    assert [token["token_id"] for token in tokens] == ids
    whole = [3, *ids]
    first = logprobs(whole[:511])
    second = logprobs(whole[1021 - 511 : 1021])[-510:]  # the second window is full as well
    expected = [each for each, _ in [*first, *second]]
    found = [token["logprob"] for token in tokens[: len(expected)]]
    assert max(abs(one - other) for one, other in zip(found, expected, strict=True)) < CLOSE
    total = sum(token["logprob"] for token in tokens)
    assert abs(row["scores"][0]["logprob"] - total) < 1e-2
    assert row["perplexity"] == pytest.approx(math.exp(-total / len(ids)), rel=1e-4)


@pytest.mark.parametrize("length", [2, 9, 10, 11, 19, 20, 28, 29, 100])
def test_windows_score_every_token_but_the_first_once(length):
    windows = list(windows_of(list(range(length)), 10))
    assert [token for _, scored in windows for token in scored] == list(range(1, length))
    for ahead, scored in windows:
        assert [*ahead, *scored] == list(range(ahead[0], scored[-1] + 1))
        assert len(ahead) + len(scored) == min(10, scored[-1] + 1)


def test_what_cannot_be_scored_is_a_reject_of_its_row(generate, write_rows):
    rows = [
        {"text": "a", "c": ["x", "y"], "r": 1},
        {"text": "a", "c": []},
        {"text": "a", "c": "x"},
        {"text": "a", "c": ["x", 7]},
        {"text": "a", "c": ["x", "y"], "r": 2},
        {"text": "a", "c": ["x", "y"], "r": "z"},
        {"text": "a", "c": ["x", ""]},
        {"text": "a", "c": ["x", "長い文です。" * 400]},
        {"c": ["x"]},
    ]
    out = generate([write_rows(rows)], score={"mode": "choices", "column": "c", "reference": "r"})
    assert [row["row"] for row in read(out)] == [0]
    assert {number: why.split(":")[0] for number, why in rejects(out).items()} == {
        1: "bad_shape",
        2: "bad_shape",
        3: "bad_shape",
        4: "bad_shape",
        5: "bad_shape",
        6: "empty",
        7: "too_long",
        8: "bad_shape",
    }
    assert "r is 2, which is none of the 2 choices" in rejects(out)[4]
    assert verify(out).problems == []


def test_a_prompt_is_shortened_as_the_job_says_so_that_the_text_fits(generate, write_rows, encode):
    rows = write_rows([{"text": "長い文です。" * 200, "answer": "月曜日"}])
    asked = {"mode": "continuation", "column": "answer"}
    out = generate([rows], score=asked, prompt={"on_overlength": "clip"})
    [row] = read(out)
    assert row["truncated"] > 0
    assert row["prompt_tokens"] + len(encode("月曜日")) + 1 <= 512
    assert rejects(generate([rows], "reject", score=asked))[0].startswith("too_long")


def test_passed_through_columns_and_ids_stand_beside_the_scores(generate, write_rows):
    rows = [{"id": "a", "text": QUESTION, "answer": "月曜日", "topic": 7}]
    asked = {"mode": "continuation", "column": "answer"}
    [row] = read(generate([write_rows(rows)], score=asked, output={"columns": ["topic"]}))
    assert (row["id"], row["topic"]) == ("a", 7)


@pytest.mark.parametrize("responses", [1, 5, 17, 30])
def test_a_job_that_is_stopped_goes_on_and_writes_the_same_bytes(engine, generate, write_rows, tmp_path, responses):
    rows = [
        {"text": record["conversation"][0]["text"], "c": [record["expected"], f"{number}です。"]}
        for number, record in enumerate(demo_records(20))
    ]
    tables = {"score": {"mode": "choices", "column": "c"}}
    whole = generate([write_rows(rows)], "whole", output={"shard_rows": 8}, **tables)
    tables |= {"input": {"path": [str(write_rows(rows))]}, "model": {"path": str(MODEL)}}
    job = prepare(load(None, {**tables, "output": {"path": str(tmp_path / "out"), "shard_rows": 8}}))
    opening.open_job(job.out, job.record)
    worker = Worker(job, engine, Claims(job.out, stale=60), window=2)
    step, seen = engine.step, []

    def stopping():
        seen.extend(found := step())
        if len(seen) >= responses:
            worker.stop()
        return found

    engine.step = stopping
    try:
        with pytest.raises(Stopped):
            worker.run(missing_shards(job))
    finally:
        del engine.step
    assert len(seen) < 40
    Worker(job, engine, Claims(job.out, stale=60)).run(missing_shards(job))
    close(job)
    for name in ("part-00000-of-00003.parquet", "part-00002-of-00003.parquet", "_SUCCESS"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"score": {"mode": "choices"}}, "[score] column: name the column with the list of choices"),
        ({"score": {"column": "answer"}}, "[score] mode: say what is scored"),
        ({"score": {"mode": "text", "also_without_prompt": True}}, "a text by itself has no prompt"),
        ({"score": {"mode": "continuation", "reference": "r"}}, "set mode to choices"),
        ({"score": {"mode": "continuation", "column": "answr"}}, "no row has answr; did you mean answer?"),
        ({"score": {"mode": "text", "column": "answer"}, "check": {"checks": ["empty"]}}, "[check] checks"),
        ({"score": {"mode": "text", "column": "answer"}, "sampling": {"n": 2}}, "[sampling] n"),
        ({"score": {"mode": "continuation"}, "prompt": {"template": "{text}"}}, "[score] column: name the column"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(write_rows, tmp_path, tables, says):
    rows = write_rows([{"text": QUESTION, "answer": "月曜日"}])
    given = {"input": {"path": [str(rows)]}, "model": {"path": str(MODEL)}, "output": {"path": str(tmp_path / "out")}}
    with pytest.raises(JobError) as error:
        prepare(load(None, {**given, **tables}))
    assert says in str(error.value)


def test_verify_finds_a_score_of_another_text(generate, write_rows):
    rows = write_rows([{"text": QUESTION, "answer": "月曜日"}])
    out = generate([rows], score={"mode": "continuation", "column": "answer"})
    assert verify(out).problems == []
    rows.write_text(rows.read_text("utf-8").replace("月曜日", "火曜日"), "utf-8")
    assert "the input is not what the job read" in verify(out).problems[0]


def test_verify_replay_scores_random_rows_again(batchgen_here, generate, write_rows):
    rows = write_rows([{"text": QUESTION, "answer": f"月曜日{number}"} for number in range(6)])
    out = generate([rows], score={"mode": "continuation", "column": "answer"})
    done = batchgen_here("verify", out, "--replay", 4)
    assert done.exit_code == 0
    assert "4 of 4 scores" in done.stdout
