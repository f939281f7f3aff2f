"""Speculative decoding by n-grams: the same tokens as without it, in fewer steps; what does not go with it."""

import json

import pyarrow.dataset as ds
import pytest
from conftest import MODEL, demo_records

from batchgen.engine.vllm import VllmEngine
from batchgen.job.sampling import Sampling, StructuredOutputs
from batchgen.model.model import load_model

NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yy"]}},
    "required": ["a"],
    "additionalProperties": False,
}
SAMPLINGS = [
    Sampling(temperature=0, max_tokens=48),
    Sampling(temperature=0, max_tokens=48, repetition_penalty=1.2),
    Sampling(temperature=1.0, top_p=0.95, max_tokens=48),
    Sampling(temperature=0.8, top_k=50, frequency_penalty=0.5, max_tokens=48),
    Sampling(temperature=1.3, top_p=1.0, ignore_eos=True, max_tokens=31),
    Sampling(temperature=1.0, stop=["日", "e"], max_tokens=48),
    Sampling(temperature=1.0, logprobs=2, min_tokens=12, max_tokens=33),
    Sampling(temperature=1.0, bad_words=["日"], allowed_token_ids=list(range(3, 900)), max_tokens=24),
    Sampling(temperature=1.0, structured_outputs=StructuredOutputs(json=SCHEMA), max_tokens=48),
]


@pytest.fixture(scope="module")
def guessing():
    model = load_model(str(MODEL))
    made = VllmEngine(model, {"dtype": "float32", "max_num_seqs": 64, "speculative_config": NGRAM}, model.context)
    _let_others_start_after_it()
    return made


def _let_others_start_after_it() -> None:
    """A further engine of this process looks, from vLLM 0.32 on, into every value of every module that has a __dict__.
    llvmlite, by which vLLM guesses, has a library whose every attribute is a C function, __dict__ too."""
    from llvmlite.binding import ffi

    ffi.lib._fntab["__dict__"] = {}


def answers(engine, rows, alone: bool = False):
    """Responses of rows by number, all together or one after the other, and the steps that they took."""
    tokenizer, found, steps = engine._tokenizer, {}, 0
    for row in rows:
        text = demo_records(row + 1)[row]["conversation"][0]["text"]
        prompt = tokenizer.encode(f"ユーザー: {text * 2}\nシステム: ")
        engine.add(f"{row}", prompt, SAMPLINGS[row % len(SAMPLINGS)], 7 * row + 1)
        while alone and f"{row}" not in found:
            found |= {response.request_id: response for response in engine.step()}
    while len(found) < len(rows):
        steps += 1
        found |= {response.request_id: response for response in engine.step()}
    return found, steps


def tokens(found):
    return {name: (done.token_ids, done.finish_reason, done.text_end) for name, done in found.items()}


@pytest.mark.slow
def test_tokens_are_those_without_it_whatever_a_row_asks_for_and_steps_are_fewer(engine, guessing):
    rows = range(90)
    (plain, usual), (guessed, fewer) = answers(engine, rows), answers(guessing, rows)
    assert tokens(guessed) == tokens(plain)
    assert fewer < usual
    for name, response in plain.items():
        for ours, theirs in zip(response.logprobs or [], guessed[name].logprobs or [], strict=True):
            assert [token for token, _ in ours] == [token for token, _ in theirs]
            assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], abs=1e-4)


@pytest.mark.slow
def test_a_row_has_the_same_tokens_alone_as_among_others(guessing):
    rows = range(27)
    assert tokens(answers(guessing, rows, alone=True)[0]) == tokens(answers(guessing, rows[::-1])[0])


@pytest.mark.slow
def test_a_row_that_vllm_does_not_take_with_it_is_a_reject(batchgen_process, generate, write_rows, tmp_path):
    source = write_rows([*demo_records(20), {**demo_records(1)[0], "sampling": {"min_p": 0.1}}])
    asked = ["--engine", f"speculative_config={{{', '.join(f'{key} = {json.dumps(NGRAM[key])}' for key in NGRAM)}}}"]
    command = ["run", source, "--model", MODEL, "--output", tmp_path / "guessed", "--max-tokens", 24, *asked]
    done = batchgen_process(*command)
    assert done.returncode == 0, done.stderr
    [line] = map(json.loads, next((tmp_path / "guessed").glob("_rejects/*")).read_text().splitlines())
    assert (line["row"], line["reason"]) == (20, "engine_error") and "min_p" in line["detail"]
    plain = generate([write_rows(demo_records(20), "plain.jsonl")], sampling={"max_tokens": 24})
    guessed, expected = (
        ds.dataset(out).to_table(["row", "response"]).to_pylist() for out in (tmp_path / "guessed", plain)
    )
    assert guessed == expected


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--engine", "speculative_config={method = 'eagle', model = 'x'}"], 'write {method = "ngram", '),
        (["--engine", "speculative_config=3"], 'write {method = "ngram", '),
        (
            ["--engine", "speculative_config={method = 'ngram'}", "--min-p", 0.1],
            "does not take it with [sampling] min_p",
        ),
    ],
)
def test_what_does_not_go_with_it_is_one_line(batchgen, write_rows, tmp_path, flags, line):
    source = write_rows(demo_records(1))
    ended = batchgen("plan", source, "--model", MODEL, "--output", tmp_path / "out", *flags)
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert line in ended.stderr


def test_on_a_gpu_only_greedy_jobs_may_guess(batchgen, write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr("batchgen.engine.installed.needs_gpu", lambda: True)
    source = write_rows(demo_records(1))
    command = ["plan", source, "--model", MODEL, "--output", tmp_path / "out", "--engine"]
    command += ["speculative_config={method = 'ngram', num_speculative_tokens = 4, prompt_lookup_max = 4}"]
    refused = batchgen(*command)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "on a GPU what a seed draws depends on what was guessed" in refused.stderr
    assert batchgen(*command, "--temperature", 0).exit_code == 0
