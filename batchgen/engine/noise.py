"""What draws an engine's tokens, and a check, once it is up, that it does.

Our draw (seeded.py) is put into vLLM by name, in whatever process samples: a vLLM that samples by another function
would go on with noise of its own, and nobody would know. So an engine generates a few tokens before it is used.
"""

import os
from collections.abc import Callable
from typing import Any

from ..errors import JobError
from ..job.sampler import ON_CPU, UNKNOWN, Sampler
from ..job.sampling import Sampling
from .installed import ANY_VERSION, ANY_VERSION_FLAG, OLDEST, TOO_NEW, v2_sampler, versions

Params = Callable[[Sampling, int], Any]

# Seeds whose number, of our draw at this position of a response, is below 2**-49 (FIRST) or at least 1 - 2**-49 (LAST).
# They give the first or the last of the ids that are allowed, whatever the model makes of them: each would have to be
# 10**14 times as likely as the other to hide it. Any other draw gives that to 16 seeds once in 65,536 times at most.
FIRST = (
    (3072442989796310, 4120432041446884, 7480326011657854, 1745934519670732),
    (273077531463957, 8110053386036547, 3291628709981912, 1548827653882473),
)
LAST = (
    (7577653751370115, 8362484248891267, 4868148833605763, 7280692967668037),
    (8537461535115757, 4815048710869389, 2906367817889142, 5344942435609412),
)


def of_engine(config: Any) -> Sampler:
    """What draws by vLLM's VllmConfig."""
    return v2_sampler() if config.use_v2_model_runner else ON_CPU


def checked(engine: Any, sampler: Sampler, params: Params, prompt: int, ids: int) -> tuple[Sampler, list[str]]:
    """What draws, and warnings. Raises JobError unless seeds give the tokens that they should: on V1 those of our draw;
    on V2, whose noise is vLLM's own, the same ones twice. Where any version of vLLM is to do, that is a warning.

    engine: vLLM's LLMEngine; params: makes vLLM's SamplingParams; prompt: a token id; ids: size of the vocabulary
    """
    first, last = ids // 3, 2 * ids // 3  # ordinary ones: the smallest and the largest may be impossible
    if sampler == ON_CPU:
        what = "does not draw tokens by batchgen's own noise"
        holds = is_ours(_drawn(engine, params, prompt, [first, last]), first, last)
    else:
        what = "draws other tokens by the same seed"
        once, twice = (_drawn(engine, params, prompt, list(range(first, last + 1))[:64]) for _ in range(2))
        holds = once == twice
    if holds:
        return sampler, []
    fault = f"vLLM {versions().get('vllm')} {what}, so no response could be made again"
    if os.environ.get(ANY_VERSION):
        return Sampler(sampler.runner, UNKNOWN.noise), [f"{fault}; going on, as {ANY_VERSION_FLAG} says"]
    raise JobError(
        f"{fault}; install vllm>={OLDEST},<{TOO_NEW}, without plugins that change how it samples, or go on all the "
        f"same with {ANY_VERSION_FLAG}"
    )


def is_ours(tokens: dict[int, list[int]], first: int, last: int) -> bool:
    """Whether the tokens of each seed of FIRST and LAST, drawn from these two ids, are those of our draw. A position at
    which all are the same says nothing: the model is certain there."""
    return all(
        tokens[seed][position] == token
        for table, token in ((FIRST, first), (LAST, last))
        for position, seeds in enumerate(table)
        for seed in seeds
        if len({drawn[position] for drawn in tokens.values() if position < len(drawn)}) > 1
    )


def _drawn(engine: Any, params: Params, prompt: int, allowed: list[int]) -> dict[int, list[int]]:
    """The first tokens of a request for each seed of FIRST and LAST."""
    # With a top_p the less likely one might be none to draw from.
    sampling = Sampling(temperature=2, top_p=1, max_tokens=len(FIRST), ignore_eos=True, allowed_token_ids=allowed)
    waiting = {f"seed {seed}": seed for table in (FIRST, LAST) for seeds in table for seed in seeds}
    for name, seed in waiting.items():
        engine.add_request(name, {"type": "token", "prompt_token_ids": [prompt]}, params(sampling, seed))
    found = {}
    while waiting:
        for output in engine.step():
            found[waiting.pop(output.request_id)] = list(output.outputs[0].token_ids)
    return found
