"""Our draw of a token: the distribution it must have, and what it may depend on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p, apply_top_k_top_p_pytorch

from batchgen.engine.seeded import (
    Positions,
    behind_drafts,
    by_values,
    of_tokens,
    pick,
    random_sample,
    uniform,
    verified,
)
from batchgen.engine.vllm import install_into_vllm

uint64 = st.integers(0, 2**64 - 1)


def generators(*seeds: int) -> dict[int, torch.Generator]:
    return {row: torch.Generator().manual_seed(seed) for row, seed in enumerate(seeds)}


@given(st.lists(st.tuples(uint64, uint64), min_size=1))
def test_chances_are_below_1_and_those_of_each_pair_alone(pairs):
    seeds, positions = np.array(pairs, np.uint64).T
    together = uniform(seeds, positions)
    assert ((together >= 0) & (together <= 1 - 2.0**-52)).all()
    assert together.tolist() == [uniform(*np.array([[pair[0]], [pair[1]]], np.uint64))[0] for pair in pairs]


def test_chances_of_neighbouring_seeds_and_positions_are_even_and_not_correlated():
    seeds, positions = np.meshgrid(np.arange(2000, dtype=np.uint64), np.arange(50, dtype=np.uint64), indexing="ij")
    chances = uniform(seeds, positions)
    counts, _ = np.histogram(chances, 100, (0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * np.sqrt(2 * 99)  # chi-square, mean + 5 sigma
    for a, b in ((chances[1:], chances[:-1]), (chances[:, 1:], chances[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


@given(st.lists(st.sampled_from([0.0, 1e-30, 1e-6, 0.25, 1.0]), min_size=1, max_size=50).filter(any), st.floats(0, 1))
def test_a_token_without_probability_is_never_picked(weights, share):
    probs = torch.tensor([weights], dtype=torch.float32)
    chance = torch.tensor([min(share, 1 - 2.0**-52)], dtype=torch.float64)
    assert probs[0, pick(probs, chance)[0]] > 0


def test_the_rarest_of_65_536_tokens_comes_as_often_as_it_should():
    probs = torch.full((1, 65536), 1 / 65536)
    draws = 400_000
    chances = torch.from_numpy(uniform(np.arange(draws, dtype=np.uint64), np.zeros(draws, np.uint64)))
    sums = probs.cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(sums, (chances * sums[0, -1]).unsqueeze(0), right=True)[0]
    assert pick(probs.expand(8, -1), chances[:8]).tolist() == tokens[:8].tolist()
    counts = torch.bincount(tokens, minlength=65536).double()
    expected = draws / 65536
    assert ((counts - expected) ** 2 / expected).sum() < 65535 + 5 * np.sqrt(2 * 65535)


def test_a_request_draws_the_same_alone_and_in_any_row():
    probs = torch.rand(4, 1000, generator=torch.Generator().manual_seed(0))
    in_batch = generators(7, 8, 9, 10)
    steps = [random_sample(probs, in_batch).tolist() for _ in range(20)]
    for row, seed in enumerate((7, 8, 9, 10)):
        alone = generators(seed)
        assert [random_sample(probs[row : row + 1], alone).tolist()[0] for _ in range(20)] == [s[row] for s in steps]


def test_rows_without_a_generator_are_drawn_at_random():
    probs = torch.full((1000, 1000), 1 / 1000)
    assert len(set(random_sample(probs, {}).tolist())) > 500


def test_rows_without_a_generator_are_drawn_alike_in_all_processes_of_an_engine():
    """To which vLLM gives one seed."""
    probs = torch.full((8, 1000), 1 / 1000)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append([random_sample(probs, {}).tolist() for _ in range(3)])
    assert draws[0] == draws[1]


def test_rows_without_a_generator_leave_the_others_as_they_are():
    probs = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0))
    both = random_sample(probs, {2: torch.Generator().manual_seed(5)})
    assert both[2] == random_sample(probs[2:], generators(5))[0]


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (20, None), (None, 0.7), (20, 0.7)])
@pytest.mark.parametrize("seeded", [4, 2])
def test_vllms_sampler_draws_by_ours_whatever_of_its_functions_it_takes_here(top_k, top_p, seeded):
    """With seeds for all rows or for some, with and without a cut: this vLLM has a function for each of these on some
    device. Were one of them to draw by itself, its tokens would not be those of our draw."""
    install_into_vllm()
    logits = 3 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    k = None if top_k is None else torch.full((4,), top_k, dtype=torch.int32)
    p = None if top_p is None else torch.full((4,), top_p)
    probs = apply_top_k_top_p(logits.clone(), k, p).softmax(-1)
    sampler = TopKTopPSampler()
    theirs, ours = (generators(*range(50, 50 + seeded)) for _ in range(2))
    for _ in range(20):
        drawn, _ = sampler(logits.clone(), theirs, k, p)
        assert drawn[:seeded].tolist() == random_sample(probs, ours)[:seeded].tolist()


def test_generators_of_a_cpu_count_their_tokens_as_long_as_somebody_holds_them():
    positions = Positions()
    kept = [torch.Generator() for _ in range(10)]
    for number in range(3 * Positions.SWEEP):
        assert positions.next(torch.Generator()) == 0  # dropped at once, though another one may come to its address
        if number % 500 == 0:
            assert {positions.next(generator) for generator in kept} == {number // 500}
    assert len(positions.drawn) <= Positions.SWEEP + len(kept)


# --- speculative decoding


def tables(places: int) -> torch.Tensor:
    """Logits [places, 50] of the places of a response, which here do not depend on what stands before."""
    return torch.randn(places, 50, generator=torch.Generator().manual_seed(5)) * 2


def one_by_one(logits: torch.Tensor, generator: torch.Generator) -> list[int]:
    return [int(random_sample(row.softmax(0)[None], {0: generator})) for row in logits]


def by_drafts(logits, generator: torch.Generator | None, drafts: list[list[int]]) -> list[int]:
    """A step for each draft, as vLLM's RejectionSampler makes it; another request without a draft is in it too. Without
    a generator the likeliest tokens."""
    found: list[int] = []
    greedy, generators = generator is None, {1: generator} if generator else {}
    for draft in drafts:
        here = logits[len(found) : len(found) + len(draft) + 1]
        sampling = SimpleNamespace(
            all_greedy=greedy, all_random=not greedy, generators=generators, temperature=torch.tensor([1.0, 1.0])
        )

        def forward(_, metadata, draft=draft, here=here, sampling=sampling):
            behind = torch.stack([here[0], here[-1]]).softmax(-1)
            tokens = behind.argmax(-1) if greedy else random_sample(behind, generators)
            ends = torch.tensor(metadata.num_draft_tokens).cumsum(0)
            wanted = torch.tensor(draft, dtype=torch.int32), metadata.num_draft_tokens, len(draft), ends, None
            return verified(*wanted, here[:-1], tokens[:, None], sampling, synthetic_mode=False)

        step = behind_drafts(forward)(None, SimpleNamespace(num_draft_tokens=[0, len(draft)])).tolist()
        assert sum(token >= 0 for token in step[0]) == 1
        found += [token for token in step[1] if token >= 0]
    return found


def test_drafts_that_are_right_or_wrong_change_no_token_of_a_seed():
    logits = tables(30)
    expected = one_by_one(logits, torch.Generator().manual_seed(9))
    right, wrong = expected[:], [(token + 1) % 50 for token in expected]
    drafts = [right[0:4], wrong[5:7], [*right[6:8], wrong[8]], right[9:10], [wrong[11]], right[12:16]]
    found = by_drafts(logits, torch.Generator().manual_seed(9), drafts)
    assert found == expected[: len(found)] and len(found) == 5 + 1 + 3 + 2 + 1 + 5


def test_drafts_are_held_against_the_likeliest_token_where_nothing_is_drawn():
    logits = tables(10)
    likeliest = logits.argmax(-1).tolist()
    drafts = [[*likeliest[:2], (likeliest[2] + 1) % 50], likeliest[3:5]]
    assert by_drafts(logits, None, drafts) == likeliest[:6]


def test_a_step_of_drafts_between_others_counts_what_it_gave():
    logits = tables(12)
    expected = one_by_one(logits, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    found = one_by_one(logits[:3], generator)
    found += by_drafts(logits[3:], generator, [[expected[3], (expected[4] + 1) % 50]])
    found += one_by_one(logits[len(found) :], generator)
    assert found == expected


@pytest.mark.parametrize("values", [[1.0, 0.5, 0.0], [7, 1024, 0]])
def test_a_value_of_a_request_is_that_of_every_token_of_its_draft(values):
    spread = of_tokens(torch.tensor(values), torch.tensor([2, 2, 5]), 5, replace_from=0, replace_to=1)
    assert spread.tolist() == [values[0], values[0], 1, 1, 1]


@pytest.mark.parametrize("kind", ["spread", "peaked", "equal", "few allowed", "mixed"])
def test_a_top_p_leaves_just_the_logits_that_vllms_own_function_leaves(kind):
    original = getattr(apply_top_k_top_p_pytorch, "__wrapped__", apply_top_k_top_p_pytorch)
    ours = by_values(original)
    torch.manual_seed(0)
    for vocabulary in (2, 7, 1024):
        logits = torch.randn(64, vocabulary) * (30 if kind == "peaked" else 2)
        if kind == "equal":
            logits = logits.round()
        if kind == "few allowed":
            logits[:, ::2] = -float("inf")
        p = torch.rand(64) if kind != "mixed" else torch.tensor([1.0, 0.85] * 32)
        assert torch.equal(ours(logits.clone(), None, p), original(logits.clone(), None, p))


def test_the_values_alone_are_sorted_where_no_logits_are_equal():
    asked = []
    ours = by_values(lambda logits, k, p: asked.append(k) or logits)
    ours(torch.randn(4, 50), None, torch.full((4,), 0.9))
    assert not asked
    ours(torch.zeros(4, 50), None, torch.full((4,), 0.9))
    ours(torch.randn(4, 50), torch.full((4,), 5), torch.full((4,), 0.9))
    assert len(asked) == 2
