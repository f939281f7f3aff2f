"""Warns of a job that goes on under another noise or on another device than its finished shards have: it may, but what
its seeds give is another matter."""

from collections import Counter
from typing import TypeVar

from ..job.sampler import Sampler
from ..output import shard
from .prepare import Job

Fact = TypeVar("Fact", Sampler, str)


class OtherEngine:
    """What made a job's finished shards, to be compared with what is going to make the others."""

    def __init__(self, job: Job):
        """Raises Stopped if the disk refuses."""
        self._samplers, self._devices = shard.engines(job.out, shard.finished(job.out, job.plan))
        self._told: set[Sampler | str] = set()

    def of_noise(self, now: Sampler) -> str:
        """One line about the finished shards that another sampler than this one drew; empty if there are none, and
        after the first time."""
        if not (others := self._others(self._samplers, now)):
            return ""
        listed = ", ".join(
            f"{count:,} finished shards were sampled with {drew}{_source(drew)}" for drew, count in others
        )
        return (
            f"{listed}; those to come will be with {now}: a seed gives other tokens under each, so a sampled response "
            "can be made again only under the noise that its shard records"
        )

    def of_device(self, now: str) -> str:
        """The same of those that were made on another device, by the names that vLLM gives them."""
        if not (others := self._others(self._devices, now)):
            return ""
        listed = ", ".join(f"{count:,} finished shards were made on {device}" for device, count in others)
        return (
            f"{listed}; those to come will be on {now}: their sums round differently, so some responses come out the "
            "same only on the device that their shard records"
        )

    def _others(self, finished: Counter[Fact], now: Fact) -> list[tuple[Fact, int]]:
        others = sorted(((fact, count) for fact, count in finished.items() if fact != now), key=str)
        if not others or now in self._told:
            return []
        self._told.add(now)
        return others


def _source(drew: Sampler) -> str:
    return "" if drew.is_recorded else " (by their vLLM's version; they do not say)"
