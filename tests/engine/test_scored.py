"""Scores of the engine against transformers, alone and in a batch, with the prefix cache read and without."""

import random

import pytest
from conftest import MODEL

from batchgen.engine import scored
from batchgen.engine.vllm import VllmEngine
from batchgen.job.sampling import Sampling
from batchgen.model.model import load_model

CLOSE = 1e-4  # of a log probability, in float32


@pytest.fixture(scope="module")
def reference():
    """Log probabilities and ranks of every token behind the first, by transformers."""
    import torch
    from transformers import GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()

    def of(ids: list[int]) -> list[tuple[float, bool]]:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return [(float(step[token]), bool(step.argmax() == token)) for step, token in zip(logits, ids[1:], strict=True)]

    return of


def score(engine, requests: dict[str, tuple[list[int], int]]) -> dict[str, tuple[list[float], list[int]]]:
    """By name (prompt, how many of its last tokens) -> log probabilities and ranks."""
    for name, (prompt, last) in requests.items():
        engine.add(name, prompt, Sampling(), 0, scored=last)
    found = {}
    while len(found) < len(requests):
        for response in engine.step():
            assert response.finish_reason == "stop"
            assert response.token_ids == []
            prompt, last = requests[response.request_id]
            assert [step[0][0] for step in response.logprobs] == prompt[-last:]
            found[response.request_id] = [step[0][1] for step in response.logprobs], response.ranks
    return found


@pytest.fixture(scope="module")
def prompts():
    chance, size = random.Random(0), load_model(str(MODEL)).vocab_size
    made = []
    for _ in range(400):
        length = chance.randint(3, 120)
        made.append(([chance.randrange(4, size) for _ in range(length)], chance.randint(1, min(40, length - 1))))
    return made


def test_log_probabilities_are_those_of_transformers_token_for_token(engine, reference, prompts):
    found = score(engine, {f"score {number}": asked for number, asked in enumerate(prompts)})
    for number, (prompt, last) in enumerate(prompts):
        logprobs, ranks = found[f"score {number}"]
        expected = reference(prompt)[-last:]
        assert max(abs(one - other) for one, (other, _) in zip(logprobs, expected, strict=True)) < CLOSE
        assert [rank == 1 for rank in ranks] == [greedy for _, greedy in expected]


def test_alone_they_are_bit_for_bit_those_of_a_batch(engine, prompts):
    some = {f"together {number}": asked for number, asked in enumerate(prompts[:40])}
    together = score(engine, some)
    assert all(score(engine, {name: asked})[name] == together[name] for name, asked in some.items())


@pytest.fixture(scope="module")
def caching():
    """An engine whose cache has small blocks, so that contexts of some dozens of tokens are in it."""
    model = load_model(str(MODEL))
    args = {"dtype": "float32", "max_num_seqs": 16, "block_size": 32, "enable_prefix_caching": True}
    return VllmEngine(model, args, model.context)


def test_choices_that_share_a_context_read_it_from_the_cache_and_score_the_same(engine, caching, monkeypatch):
    chance, size = random.Random(1), 500
    asked = {}
    for item in range(96):  # 480 log likelihoods
        context = [chance.randrange(4, size) for _ in range(chance.randint(60, 180))]
        first = [chance.randrange(4, size) for _ in range(40)]
        choices = [
            first,
            first[:33],
            *([chance.randrange(4, size) for _ in range(chance.randint(1, 9))] for _ in "abc"),
        ]
        asked |= {f"{item} {n}": (context + choice, len(choice)) for n, choice in enumerate(choices)}
    again = []

    def noted(request, output, original=scored.needs_again):
        found = original(request, output)
        again.append((found, output.num_cached_tokens))
        return found

    monkeypatch.setattr("batchgen.engine.vllm.needs_again", noted)
    found = {}
    for name, request in asked.items():  # one by one, so that each finds those before it in the cache
        found |= score(caching, {name: request})
    assert any(cached for _, cached in again)  # or else nothing was shared
    assert any(wrong for wrong, _ in again)  # or else the guard had nothing to do
    assert found == score(engine, asked)
