"""What stands in an engine's place where none is asked for anything: rows that are all rejected, or texts that are all
remembered, need no model in memory."""

from collections.abc import Callable, Sequence
from typing import Any

from ..job.sampler import NONE, Sampler
from ..job.sampling import Sampling
from ..prompt.pictures import Picture
from .types import Response


class IdleEngine:
    """An Engine of types.py that takes no request."""

    max_num_seqs = 1

    def __init__(self, facts: dict[str, Any] | None = None, sampler: Sampler = NONE):
        """facts, sampler: of the job's other shards, if there are any: a shard without answers is the same bytes as
        under the engine that made those"""
        facts = facts or {}
        self.dtype: str = facts.get("dtype", "none")
        self.device: str = facts.get("device", "none")
        self.model_impl: str = facts.get("model_impl", "none")
        self.sampler = sampler
        self.warnings: list[str] = []

    def check(self, sampling: Sampling) -> None:
        """It will not be asked."""

    def add(
        self,
        request_id: str,
        prompt: list[int],
        sampling: Sampling,
        seed: int,
        adapter: str | None = None,
        scored: int = 0,
        images: Sequence[Picture] = (),
    ) -> None:
        raise RuntimeError(f"no engine was started, as nothing was to be asked of it, and {request_id} is")

    def step(self) -> list[Response]:
        return []

    def when_process_dies(self, tell: Callable[[str], None]) -> None:
        """It has none."""
