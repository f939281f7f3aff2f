"""What crosses the border of the engine room: token ids in, token ids out. Imports neither vLLM nor torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import Reject
from ..job.sampler import Sampler
from ..job.sampling import FINISH_REASONS, Sampling
from ..model.model import Model
from ..prompt.pictures import Picture
from ..task.task import WHOLE, Entry, Name, Reasoned

# Of every token of a response the pairs (token id, log probability): the sampled one first, then the likeliest others.
Logprobs = list[list[tuple[int, float]]]


@dataclass(frozen=True, slots=True)
class Response:
    """What an engine made of one request.

    request_id: the name that the request was added under
    token_ids: all generated tokens, the stop token or those of the stop text included
    finish_reason: one of FINISH_REASONS; anything else is the engine's word for a request that failed
    logprobs: one list per token; None if they were not asked for
    text_end: characters of the tokens' text that are the response, the rest being a stop text; WHOLE for all of it
    reasoned: that text in two, if the job has a reasoning parser
    ranks: of a request that is scored, which likeliest each scored token was, from 1; its logprobs are those of the
        scored tokens, and it has no tokens of its own
    """

    request_id: str
    token_ids: list[int]
    finish_reason: str
    logprobs: Logprobs | None = None
    text_end: int = WHOLE
    reasoned: Reasoned | None = None
    ranks: list[int] | None = None

    def as_entry(self, name: Name) -> Entry:
        """The answer to the request of this name. Raises Reject if the engine failed on it."""
        if self.finish_reason not in FINISH_REASONS:
            raise Reject("engine_error", f"the engine ended the request with: {self.finish_reason}")
        return Entry(
            name.row,
            name.sample,
            self.token_ids,
            self.finish_reason,
            self.logprobs,
            self.text_end,
            name.part,
            name.attempt,
            self.reasoned,
            self.ranks,
        )


class Engine(Protocol):
    """Continuous batching as a worker drives it: requests are added, and every step may finish some of them."""

    @property
    def max_num_seqs(self) -> int:
        """How many requests run at a time; further ones wait."""

    @property
    def dtype(self) -> str:
        """Of weights and activations, for the shards' metadata: "float16"."""

    @property
    def device(self) -> str:
        """What it runs on, for the shards' metadata: "NVIDIA H100 80GB HBM3"."""

    @property
    def model_impl(self) -> str:
        """Whose implementation of the model it runs, for the shards' metadata: "vllm", "transformers" or "batchgen"."""

    @property
    def sampler(self) -> Sampler:
        """What draws its tokens, for the shards' metadata, and for whoever compares what seeds gave."""

    @property
    def warnings(self) -> list[str]:
        """What the user should know of it, in lines."""

    def check(self, sampling: Sampling) -> None:
        """Raises JobError if the engine could answer no request with the job's own parameters."""

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
        """Queues one request. sampling: with stop texts and bad words as the model writes them; adapter: the name of
        one of the model's; scored: how many of the prompt's last tokens are scored, instead of generating any; images:
        in the order of their places in the prompt. Raises Reject if the engine does not take this request; any other
        exception is the engine's end."""

    def step(self) -> list[Response]:
        """Brings every running request on by a token, or by a part of its prompt; the responses that this finished.
        Whatever it raises is the engine's end."""

    def when_process_dies(self, tell: Callable[[str], None]) -> None:
        """Has `tell` called with the reason, from another thread, once a process of the engine has died: a step may
        then never return. Does nothing where the engine has no process of its own."""


class EngineClass(Protocol):
    """How a worker makes its engine."""

    def __call__(self, model: Model, args: dict[str, Any], context: int, /) -> Engine:
        """args: [engine] of the job, vLLM's EngineArgs by name; context: most tokens of prompt and response together.
        Raises JobError if it refuses the arguments; anything else is the machine's fault."""
