"""LoRA adapters in vLLM: what its engine needs for them, and which models take them."""

from typing import Any

from ..errors import JobError
from ..model.adapters import Adapter
from ..model.model import Model
from .installed import versions

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's max_lora_rank may be
TOGETHER = 8  # adapters in one step, by default: each takes room on the GPU, whether it is used or not


def settings(model: Model, args: dict[str, Any], on_cpu: bool) -> dict[str, Any]:
    """EngineArgs for a model with adapters; args: those of the job, which win where they can be followed."""
    adapters, rank = len(model.adapters), max(adapter.rank for adapter in model.adapters)
    found = {"max_lora_rank": next(most for most in RANKS if most >= rank), "max_loras": min(adapters, TOGETHER)}
    found |= {name: args[name] for name in found if name in args}
    if on_cpu:
        # There vLLM takes -1, the slot of a request without an adapter, for the last one (lora_ops.py, 0.26 to 0.32):
        # it has to stay empty, or those requests are answered by whatever adapter lies in it.
        found["max_loras"] = max(found["max_loras"], adapters + 1)
    kept = max(adapters, found["max_loras"], args.get("max_cpu_loras", 0))
    return found | {"enable_lora": True, "max_cpu_loras": kept}


def check_takes_adapters(config: Any) -> None:
    """config: vLLM's ModelConfig. Raises JobError if vLLM has no LoRA for this kind of model."""
    from vllm.model_executor.models import ModelRegistry, supports_lora

    kind, architecture = ModelRegistry.resolve_model_cls(config.architectures, config)
    if not supports_lora(kind):
        what = f"{architecture} takes no adapters in vLLM {versions()['vllm']}"
        raise JobError(f"[model] adapter: {what}; merge the adapter into the model's weights")


def load(engine: Any, adapter: Adapter) -> Any:
    """Loads an adapter into vLLM's LLMEngine. Its LoRARequest; raises whatever vLLM does."""
    from vllm.lora.request import LoRARequest

    request = LoRARequest(adapter.name, adapter.number, str(adapter.folder))
    engine.add_lora(request)
    return request
