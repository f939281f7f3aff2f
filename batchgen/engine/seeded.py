"""Seeded sampling for vLLM's V1 model runner, one draw for the whole batch.

vLLM gives every seeded request a torch.Generator and fills its row of exponential noise by it, one row after the other
(v1/sample/ops/topk_topp_sampler.py, 0.26 to 0.31): as many numbers per token as the vocabulary has ids, as many calls
as there are requests. Here a token takes one uniform number, hashed from the request's seed and its position, and the
running sum of its probabilities turns that into a token (inverse transform sampling): the distribution is the same, and
a token depends on nothing but its probabilities, seed and position. The V2 runner has such noise of its own.
"""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

# SplitMix64 (Steele, Lea, Flood 2014): a Weyl sequence through a mixer that passes BigCrush.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_CUDA_STEP = 4  # a CUDA generator's offset moves in fours; by as many vLLM takes back a draw that it throws away

_unseeded = np.random.default_rng()
_drawn: WeakKeyDictionary[torch.Generator, int] = WeakKeyDictionary()  # tokens so far, by a CPU request's generator


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float64 in [0, 1 - 2**-52], one for each pair of uint64: in a product with any sum it stays below the sum."""
    state = _mixed(seeds) + (positions + np.uint64(1)) * _GAMMA
    return (_mixed(state) >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def pick(probs: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Token ids [B] of probabilities [B, V] and uniform numbers [B]: the first whose running sum is above its share."""
    sums = probs.cumsum(-1, dtype=torch.float64)  # in float32 65,536 terms would round away the rarest tokens
    share = chance.unsqueeze(1) * sums[:, -1:]
    return torch.searchsorted(sums, share, right=True).squeeze(1).clamp_(max=probs.shape[1] - 1)


def _position(generator: torch.Generator) -> int:
    """How many tokens a request has drawn before this one."""
    if generator.device.type == "cuda":
        offset = generator.get_offset()
        generator.set_offset(offset + _CUDA_STEP)
        return offset // _CUDA_STEP
    position = _drawn.get(generator, 0)
    _drawn[generator] = position + 1
    return position


def random_sample(probs: torch.Tensor, generators: dict[int, torch.Generator], *_: Any) -> torch.Tensor:
    """In the place of vLLM's function of this name: token ids [B] of probabilities [B, V], generators by row.

    Rows without a generator are greedy, whose draw is not used, or have no seed.
    """
    chance = _unseeded.random(probs.shape[0])
    seeds = np.array([generator.initial_seed() for generator in generators.values()], np.uint64)
    positions = np.array([_position(generator) for generator in generators.values()], np.uint64)
    chance[list(generators)] = uniform(seeds, positions)
    return pick(probs, torch.from_numpy(chance).to(probs.device, non_blocking=True))
