"""Seeded sampling for vLLM's V1 model runner, one draw for the whole batch.

vLLM gives every seeded request a torch.Generator and fills one row of exponential noise after the other from it
(v1/sample/ops/topk_topp_sampler.py): one call per request, and per token as many numbers as the vocabulary has ids. (On
a CPU, from 0.32 on, forward_cpu seeds a kernel of its own from each generator instead; forward_native, which takes its
place here, is as it was.) Here a token takes a single uniform number, hashed from its request's seed and its position,
and inverse transform sampling turns that into a token id. The distribution is the same, and a token depends on nothing
but probabilities, seed and position. The V2 runner does the like itself.

With speculative decoding a step draws several tokens of a request: at each place of the draft what the model would draw
there, and the token behind it. The draft counts up to the first place at which something else was drawn. So the tokens
are those that come without it, while vLLM's own rejection sampling spends random numbers on every draft.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

# SplitMix64 (Steele, Lea, Flood 2014): a Weyl sequence through a mixer that passes BigCrush.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_CUDA_STEP = 4  # a CUDA generator's offset is a multiple of 4, and vLLM takes a discarded draw back by 4


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float64 in [0, 1 - 2**-52], one for each pair of uint64. Times any sum it stays below that sum."""
    state = _mixed(seeds) + (positions + np.uint64(1)) * _GAMMA
    return (_mixed(state) >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def pick(probs: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Token ids [B] for probabilities [B, V] and uniform numbers [B]: the first id at which the cumulative sum exceeds
    the number times the total."""
    sums = probs.cumsum(-1, dtype=torch.float64)  # in float32 65,536 terms would round away the rarest tokens
    share = chance.unsqueeze(1) * sums[:, -1:]
    return torch.searchsorted(sums, share, right=True).squeeze(1).clamp_(max=probs.shape[1] - 1)


class Positions:
    """How many tokens each generator has drawn, for those of a CPU, which have no offset.

    Weak references to generators would do, but torch has none up to 2.11, that of vLLM 0.26. So they are held here, and
    dropped once nobody else holds them.
    """

    SWEEP = 1024  # generators; requests that run at a time are fewer, as a rule

    def __init__(self) -> None:
        self.drawn: dict[int, tuple[torch.Generator, int]] = {}  # by the generator's id
        self._sweep_at = self.SWEEP

    def next(self, generator: torch.Generator, more: int = 1) -> int:
        """How many it has drawn before; counts `more`."""
        _, position = self.drawn.get(id(generator), (generator, 0))
        if not position and len(self.drawn) >= self._sweep_at:
            self._sweep()
        self.drawn[id(generator)] = generator, position + more
        return position

    def _sweep(self) -> None:
        # getrefcount counts what is held here, and its own argument.
        self.drawn = {key: held for key, held in self.drawn.items() if sys.getrefcount(held[0]) > 2}
        self._sweep_at = max(self.SWEEP, 2 * len(self.drawn))


_on_cpu = Positions()


def _position(generator: torch.Generator, more: int = 1) -> int:
    """How many tokens a request has drawn before; counts `more`."""
    if generator.device.type == "cuda":
        offset = generator.get_offset()
        generator.set_offset(offset + more * _CUDA_STEP)
        return offset // _CUDA_STEP
    return _on_cpu.next(generator, more)


def _unseeded(tokens: int) -> np.ndarray:
    return torch.rand(tokens, dtype=torch.float64, device="cpu").numpy()


def random_sample(probs: torch.Tensor, generators: dict[int, torch.Generator], *_: Any) -> torch.Tensor:
    """Replaces vLLM's function of this name: token ids [B] for probabilities [B, V], with generators by row.

    Rows without a generator are unseeded, or greedy: then their draw is not used. All processes of an engine have to
    draw them alike: each goes on with its own token. vLLM gives torch the same seed in all of them. Behind drafts,
    `verified` counts.
    """
    if _drafts:
        return pick(probs, _chances(generators, range(len(_drafts)), _drafts).to(probs.device))
    chance = _unseeded(probs.shape[0])
    seeds = np.array([generator.initial_seed() for generator in generators.values()], np.uint64)
    positions = np.array([_position(generator) for generator in generators.values()], np.uint64)
    chance[list(generators)] = uniform(seeds, positions)
    return pick(probs, torch.from_numpy(chance).to(probs.device, non_blocking=True))


# --- top-p on a CPU


def by_values(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wraps vLLM's `apply_top_k_top_p_pytorch`, which sorts all logits with their places, for a top-p alone.

    To know the least logit that stays their values are enough, and NumPy sorts those 7 to 15 times as fast (vector
    instructions; 0.8 ms instead of 12 for 256 sequences and 1,024 ids, 43 instead of 288 for 64 and 65,536). All else
    is computed as vLLM does, so the same logits stay. Where several are equal to the least one, vLLM's order decides
    which of them stay, and its function is called.
    """

    @functools.wraps(original)
    def masked(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None, *more: Any, **named: Any) -> Any:
        if k is None and p is not None and logits.device.type == "cpu" and logits.dtype == torch.float32:
            least = _least_that_stays(logits, p)
            if least is not None:
                return logits.masked_fill_(logits < least, -float("inf"))
        return original(logits, k, p, *more, **named)

    return masked


def _least_that_stays(logits: torch.Tensor, p: torch.Tensor) -> torch.Tensor | None:
    """Of logits [B, V] and top-p [B] the least logit [B, 1] in each nucleus; None if one has its equal outside."""
    ordered = torch.from_numpy(np.sort(logits.numpy(), axis=-1))
    sums = torch.cumsum(ordered.softmax(-1), -1)
    outside = (sums <= 1 - p.unsqueeze(1)).sum(-1, keepdim=True).clamp_(max=logits.shape[1] - 1)
    least = ordered.gather(1, outside)
    below = ordered.gather(1, (outside - 1).clamp_(min=0))
    is_tied = (outside > 0) & (below == least)
    return None if bool(is_tied.any()) else least


# --- speculative decoding

_drafts: list[int] = []  # tokens of each row's draft, while a step verifies them


def behind_drafts(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the `forward` of vLLM's RejectionSampler, which draws the token behind each draft before anything else."""

    def wrapped(sampler: Any, metadata: Any, *arguments: Any, **named: Any) -> Any:
        global _drafts
        _drafts = metadata.num_draft_tokens
        try:
            return forward(sampler, metadata, *arguments, **named)
        finally:
            _drafts = []

    return wrapped


def of_tokens(
    values: torch.Tensor, ends: torch.Tensor, tokens: int, replace_from: float = 0, replace_to: float = 0
) -> torch.Tensor:
    """Replaces vLLM's `expand_batch_to_tokens`, whose kernel for CPUs writes into a copy (0.26 to 0.32): a
    value [B] of each request as one [T] of each token of its draft. ends: [B] of the drafts, one after the other."""
    kept = torch.where(values == replace_from, replace_to, values).to(values.dtype)
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    return kept.repeat_interleave(lengths, output_size=tokens)


def verified(
    draft: torch.Tensor,
    lengths: list[int],
    longest: int,
    _ends: torch.Tensor,
    _draft_probs: torch.Tensor | None,
    logits: torch.Tensor,
    behind: torch.Tensor,
    sampling: Any,
    **_: Any,
) -> torch.Tensor:
    """Replaces vLLM's `rejection_sample`: the next token ids [B, longest + 1] of each request, -1 behind the last one.

    draft: [T] drafted token ids of all requests, one request after the other; lengths: how many of each
    logits: [T, V] as they are drawn from; behind: [B, 1] the token ids that follow where all of a draft is right
    sampling: vLLM's SamplingMetadata
    """
    rows = [row for row, length in enumerate(lengths) for _ in range(length)]
    places = [place for length in lengths for place in range(length)]
    chosen = logits.argmax(-1)
    if not sampling.all_greedy:
        probs = logits.softmax(-1, dtype=torch.float32)
        drawn = pick(probs, _chances(sampling.generators, rows, places).to(logits.device))
        chosen = drawn if sampling.all_random else torch.where(sampling.temperature[rows] == 0, chosen, drawn)
    tokens = torch.full((len(lengths), longest + 1), -1, dtype=torch.int32, device=logits.device)
    guessed = torch.full_like(tokens, -2)  # which no token is
    tokens[rows, places], guessed[rows, places] = chosen.int(), draft.int()
    tokens[range(len(lengths)), lengths] = behind.view(-1).int()
    right = (tokens == guessed).int().cumprod(1).sum(1)
    tokens[torch.arange(longest + 1, device=logits.device) > right.unsqueeze(1)] = -1
    for row, count in enumerate(right.tolist()):
        if row in sampling.generators:
            _position(sampling.generators[row], count + 1)
    return tokens


def _chances(generators: dict[int, torch.Generator], rows: Sequence[int], ahead: Sequence[int]) -> torch.Tensor:
    """A uniform number for each of some rows' tokens, so many places ahead of the next one; counts none."""
    chance = _unseeded(len(rows))
    seeded = [place for place, row in enumerate(rows) if row in generators]
    drawing = [generators[rows[place]] for place in seeded]
    seeds = np.array([generator.initial_seed() for generator in drawing], np.uint64)
    positions = [_position(generator, 0) + ahead[place] for generator, place in zip(drawing, seeded, strict=True)]
    chance[seeded] = uniform(seeds, np.array(positions, np.uint64))
    return torch.from_numpy(chance)
