"""Seeded sampling for vLLM's V1 model runner, one draw for the whole batch.

vLLM gives every seeded request a torch.Generator and fills one row of exponential noise after the other from it
(v1/sample/ops/topk_topp_sampler.py): one call per request, and per token as many numbers as the vocabulary has ids. (On
a CPU, from 0.32 on, forward_cpu seeds a kernel of its own from each generator instead; forward_native, which takes its
place here, is as it was.) Here a token takes a single uniform number, hashed from its request's seed and its position,
and inverse transform sampling turns that into a token id. The distribution is the same, and a token depends on nothing
but probabilities, seed and position. The V2 runner does the like itself.
"""

import sys
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

    def next(self, generator: torch.Generator) -> int:
        """How many it has drawn before; counts one more."""
        _, position = self.drawn.get(id(generator), (generator, 0))
        if not position and len(self.drawn) >= self._sweep_at:
            self._sweep()
        self.drawn[id(generator)] = generator, position + 1
        return position

    def _sweep(self) -> None:
        # getrefcount counts what is held here, and its own argument.
        self.drawn = {key: held for key, held in self.drawn.items() if sys.getrefcount(held[0]) > 2}
        self._sweep_at = max(self.SWEEP, 2 * len(self.drawn))


_on_cpu = Positions()


def _position(generator: torch.Generator) -> int:
    """How many tokens a request has drawn before; counts this one."""
    if generator.device.type == "cuda":
        offset = generator.get_offset()
        generator.set_offset(offset + _CUDA_STEP)
        return offset // _CUDA_STEP
    return _on_cpu.next(generator)


def random_sample(probs: torch.Tensor, generators: dict[int, torch.Generator], *_: Any) -> torch.Tensor:
    """Replaces vLLM's function of this name: token ids [B] for probabilities [B, V], with generators by row.

    Rows without a generator are unseeded, or greedy: then their draw is not used. All processes of an engine have to
    draw them alike: each goes on with its own token. vLLM gives torch the same seed in all of them.
    """
    chance = torch.rand(probs.shape[0], dtype=torch.float64, device="cpu").numpy()
    seeds = np.array([generator.initial_seed() for generator in generators.values()], np.uint64)
    positions = np.array([_position(generator) for generator in generators.values()], np.uint64)
    chance[list(generators)] = uniform(seeds, positions)
    return pick(probs, torch.from_numpy(chance).to(probs.device, non_blocking=True))
