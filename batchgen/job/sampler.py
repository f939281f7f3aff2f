"""What draws tokens: a seed gives the same ones again only where the same runner and the same noise draw."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..host.release import release

OURS, PHILOX, MURMUR3 = "SplitMix64", "Philox", "murmur3"
MURMUR3_SINCE = (0, 31)  # the vLLM whose V2 runner changed its noise
_SEVERAL = " and "


@dataclass(frozen=True)
class Sampler:
    """What drew the tokens of a shard, or is to draw an engine's.

    runner: vLLM's model runner, "V1" or "V2"; "none" where there is no model
    noise: of which random numbers: SplitMix64 on V1 (engine/seeded.py), Philox or murmur3 on V2
    is_recorded: False if a shard of batchgen 0.2 or older does not say it, and it follows from its other facts

    What several have drawn is none of theirs: each field names all of them.
    """

    runner: str
    noise: str
    is_recorded: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        return f"{self.noise} noise on vLLM's {self.runner} runner"


NONE = Sampler("none", "none")
ON_CPU = Sampler("V1", OURS)
UNKNOWN = Sampler("unknown", "unknown", is_recorded=False)


def of_older(dtype: str, device: str, vllm: str | None) -> Sampler:
    """What drew a shard that does not say so, of batchgen 0.2 or older: on a CPU vLLM had its V1 runner, on a GPU V2,
    unless it was told otherwise. vllm: its version, None if that is not known either."""
    if dtype == "none":
        return NONE
    of_vllm = release(vllm or "")
    if device != "cpu" and not of_vllm:
        return UNKNOWN
    found = ON_CPU if device == "cpu" else Sampler("V2", MURMUR3 if of_vllm >= MURMUR3_SINCE else PHILOX)
    return Sampler(found.runner, found.noise, is_recorded=False)


def joined(samplers: Iterable[Sampler]) -> Sampler:
    """What several have drawn together, at least one."""
    runners: set[str] = set()
    noises: set[str] = set()
    for each in (samplers := set(samplers)):
        runners |= set(each.runner.split(_SEVERAL))
        noises |= set(each.noise.split(_SEVERAL))
    is_recorded = all(each.is_recorded for each in samplers)
    return Sampler(_SEVERAL.join(sorted(runners)), _SEVERAL.join(sorted(noises)), is_recorded)
