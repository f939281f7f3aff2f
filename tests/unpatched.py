"""transformers' GPT-NeoX as it is on the disk, whatever ran in this process before: vLLM's Transformers backend changes
the class that `import transformers` gives, for good, once it has made a model of it (0.32, 0.33)."""

import importlib.util

from transformers.models.gpt_neox import modeling_gpt_neox


def _of_its_own():
    spec = importlib.util.find_spec(modeling_gpt_neox.__name__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GPTNeoXForCausalLM = _of_its_own().GPTNeoXForCausalLM
