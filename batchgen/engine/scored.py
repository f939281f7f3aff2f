"""Scoring by vLLM: the log probabilities of a prompt's last tokens.

vLLM reads no prefix cache for requests with prompt_logprobs. If it does, choices that share a context cost half (150
contexts of 330 tokens with 5 choices each: 11.7 s and 6.0 s, the same values bit for bit). But where the cache reaches
into the scored tokens, the V1 runner returns rows that nobody has written (69 of 100 were wrong, none with an error):
such a request is made again without the cache.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .types import Response


class Asked(NamedTuple):
    """A request that is scored. scored: how many of the prompt's last tokens"""

    prompt: list[int]
    scored: int
    adapter: str | None


def params_of(sampling_params: Callable[..., Any], final_only: Any, may_read_cache: bool) -> Any:
    """vLLM's SamplingParams: one token is generated, since none cannot be asked for, and dropped."""
    params = sampling_params(
        max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False, output_kind=final_only, stop_token_ids=[]
    )
    if may_read_cache and hasattr(params, "skip_reading_prefix_cache"):
        params.skip_reading_prefix_cache = False
    return params


def needs_again(asked: Asked, output: Any) -> bool:
    """Whether the cache reached into the tokens that are scored: the first of them is scored by the step on the one
    before it."""
    return (output.num_cached_tokens or 0) > len(asked.prompt) - asked.scored - 1


def response_of(request_id: str, asked: Asked, output: Any) -> Response:
    """The scores, aligned from the end of the prompt: the V2 runner returns rows of computed tokens only. One that has
    too few, or not those of the prompt's tokens, failed."""
    tokens = asked.prompt[-asked.scored :]
    steps: Sequence[Any] = (output.prompt_logprobs or [])[-asked.scored :]
    found = [step[token] for token, step in zip(tokens, steps, strict=False) if step and token in step]
    if len(found) != len(tokens):
        return Response(request_id, [], "no log probabilities of the prompt")
    logprobs = [[(token, each.logprob)] for token, each in zip(tokens, found, strict=True)]
    return Response(request_id, [], "stop", logprobs, ranks=[each.rank for each in found])
