"""Warns of a job that goes on under another noise than its finished shards have: it may, but its seeds do not."""

from ..job.sampler import Sampler
from ..output import shard
from .prepare import Job


class OtherNoise:
    """What drew a job's finished shards, to be compared with what is going to draw the others."""

    def __init__(self, job: Job):
        """Raises Stopped if the disk refuses."""
        self._finished = shard.samplers(job.out, shard.finished(job.out, job.plan))
        self._told: set[Sampler] = set()

    def warning(self, now: Sampler) -> str:
        """One line about the finished shards that another sampler than this one drew; empty if there are none, and
        after the first time."""
        others = {drew: count for drew, count in self._finished.items() if drew != now}
        if not others or now in self._told:
            return ""
        self._told.add(now)
        listed = ", ".join(
            f"{count:,} finished shards were sampled with {drew}{_source(drew)}"
            for drew, count in sorted(others.items(), key=str)
        )
        return (
            f"{listed}; those to come will be with {now}: a seed gives other tokens under each, so a sampled response "
            "can be made again only under the noise that its shard records"
        )


def _source(drew: Sampler) -> str:
    return "" if drew.is_recorded else " (by their vLLM's version; they do not say)"
