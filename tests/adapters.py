"""LoRA adapters as PEFT writes them, with random weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "somewhere/else",
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "bias": "none",
    "init_lora_weights": True,
    "inference_mode": True,
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}
# Modules of every layer, with the widths of what goes in and comes out.
OF_LLAMA = {
    "model.layers.{}.self_attn.q_proj": (64, 64),
    "model.layers.{}.self_attn.v_proj": (64, 32),
    "model.layers.{}.mlp.down_proj": (128, 64),
}
OF_DEMO = {
    "gpt_neox.layers.{}.attention.query_key_value": (128, 384),
    "gpt_neox.layers.{}.mlp.dense_4h_to_h": (512, 128),
}


def write_adapter(folder: Path, seed: int, modules: dict = OF_LLAMA, rank: int = 4, **config) -> Path:
    """An adapter for two layers, which changes responses from the first token on."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(2):
        for module, (ins, outs) in modules.items():
            place = f"base_model.model.{module.format(layer)}"
            weights[f"{place}.lora_A.weight"] = torch.randn(rank, ins, generator=random) * 0.3
            weights[f"{place}.lora_B.weight"] = torch.randn(outs, rank, generator=random) * 0.3
    save_file(weights, folder / "adapter_model.safetensors")
    targets = [module.rpartition(".")[2] for module in modules]
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "r": rank, "target_modules": targets, **config}))
    return folder
