"""An engine that answers at once, with made-up responses: for what is measured or tested around an engine."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..job.sampler import NONE
from ..job.sampling import Sampling
from ..model.model import Model
from ..model.tokenizer import Tokenizer
from ..prompt.pictures import Picture
from .stop import StopSearch
from .types import WHOLE, Response

MAX_NUM_SEQS = 256
LENGTH = 8  # tokens of a response, unless ignore_eos asks for all of max_tokens
TABLE = 100_000  # random token ids, of which a response is a slice


class InstantEngine:
    """An Engine of types.py without a model. A token id derives from its request's seed and its place in the response,
    so that a resumed job comes out as one that was not interrupted."""

    dtype = "none"
    device = "no model: answers at once"
    model_impl = "none"
    sampler = NONE

    def __init__(self, model: Model, args: dict[str, Any], context: int, per_step: int | None = None):
        """args: only max_num_seqs is used. per_step: how many requests a step finishes; all that run, if not given."""
        self.max_num_seqs: int = args.get("max_num_seqs", MAX_NUM_SEQS)
        self.warnings: list[str] = []
        self._per_step = per_step or self.max_num_seqs
        self._tokenizer = model.tokenizer
        self._eos: int = model.tokenizer.eos_ids[0]
        self._ids = random.Random(0).choices(_text_ids(model), k=TABLE + context)
        self._queue: deque[tuple[str, Sampling, int, list[int]]] = deque()

    def check(self, sampling: Sampling) -> None:
        """It takes all."""

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
        """adapter, images: are not used, as the model is not."""
        self._queue.append((request_id, sampling, seed, prompt[-scored:] if scored else []))

    def step(self) -> list[Response]:
        finished = min(self._per_step, len(self._queue))
        return [self._response(*self._queue.popleft()) for _ in range(finished)]

    def when_process_dies(self, tell: Callable[[str], None]) -> None:
        """It has none."""

    def _response(self, request_id: str, sampling: Sampling, seed: int, scored: list[int]) -> Response:
        if scored:
            made_up = [[(token, -1 - token % 7 / 2)] for token in scored]
            return Response(request_id, [], "stop", made_up, ranks=[1 + token % 3 for token in scored])
        most = sampling.max_tokens
        length = most if sampling.ignore_eos else min(most, max(LENGTH, sampling.min_tokens))
        start = seed * 997 % TABLE
        ids, reason, text_end = self._ids[start : start + length], "length", WHOLE
        if length < most:
            ids[-1], reason = self._eos, "stop"
        if sampling.stop:
            ids, reason, text_end = self._stopped(ids, reason, sampling)
        logprobs = None if sampling.logprobs is None else [[(token, 0.0)] for token in ids]
        return Response(request_id, ids, reason, logprobs, text_end)

    def _stopped(self, ids: list[int], reason: str, sampling: Sampling) -> tuple[list[int], str, int]:
        search = StopSearch(sampling, self._tokenizer.decode)
        for token in ids:
            text_end = search.take(token)
            if text_end is not None and token != self._eos:
                return search.token_ids, "stop", text_end
        return ids, reason, WHOLE


def _text_ids(model: Model) -> list[int]:
    """Token ids that end no response."""
    tokenizer = model.tokenizer
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.text_ids
    return [token for token in range(model.vocab_size) if token not in tokenizer.eos_ids]
