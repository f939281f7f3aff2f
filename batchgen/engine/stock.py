"""vLLM as it is installed, which is what a user compares with: `LLM` with its own model, sampler and settings, on token
ids that are ready. Nothing of ours is put into this process's vLLM. For `bench`."""

from collections.abc import Sequence
from typing import Any

from ..model.model import Model
from . import cpu
from .vllm import BareRequest, VllmEngine

# Of our settings on a CPU those without which vLLM does not do the same work beside our engine: by default it takes
# another precision, 92 % of the memory, and prompts in chunks, of which a request with a seed kills it.
NEEDED_ON_CPU = ("dtype", "kv_cache_memory_bytes", "enable_chunked_prefill")


class StockEngine(VllmEngine):
    """What `LLM` makes of a model. args: [engine] of the job; the rest is as it comes."""

    def _start(self, model: Model, args: dict[str, Any], context: int, on_cpu: bool) -> Any:
        from vllm import LLM

        ours = cpu.settings(model, context, args) if on_cpu else {}
        needed = {name: ours[name] for name in NEEDED_ON_CPU if name in ours} | args
        self._llm = LLM(str(model.folder), skip_tokenizer_init=True, max_model_len=context, **needed)
        self._reasoning = None
        return self._llm.llm_engine

    def _check_draw(self, model: Model) -> None:
        """vLLM draws as it does."""

    def run_bare(self, requests: Sequence[BareRequest], window: int) -> tuple[dict[str, int], int]:
        """All requests at once, by `LLM.generate`, which does not say in how many steps."""
        prompts: Any = [{"prompt_token_ids": request.prompt} for request in requests]
        done = self._llm.generate(prompts, [request.params for request in requests], use_tqdm=False)
        ids = (request.request_id for request in requests)
        return {name: len(each.outputs[0].token_ids) for name, each in zip(ids, done, strict=True)}, 0
