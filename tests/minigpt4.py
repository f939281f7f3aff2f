"""A MiniGPT-4 model in the layout of rinna/bilingual-gpt-neox-4b-minigpt4, on top of the demo model: random weights of
small networks under LAVIS' and MiniGPT-4's own names, in files as these have them. And what it sees, by the arithmetic
that LAVIS has, without a line of batchgen's or transformers'.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pictured
import pytest
import torch
from conftest import MODEL
from torch.nn import functional

WIDTH, INNER, BLOCKS = 176, 200, 3  # of the vision transformer: two heads of 88
QUERIES, Q_WIDTH, Q_INNER, Q_LAYERS = 32, 128, 160, 4  # two heads of 64; every second layer looks at the image
POSITIONS = 1 + (pictured.SIZE // 14) ** 2


class MiniGpt4(NamedTuple):
    """model: the folder for [model] path; vision: that for [model] vision"""

    model: Path
    vision: Path


@pytest.fixture(scope="session")
def minigpt4(tmp_path_factory) -> MiniGpt4:
    folder = tmp_path_factory.mktemp("minigpt4")
    model, vision = folder / "demo-minigpt4", folder / "blip2"
    shutil.copytree(MODEL, model)
    vision.mkdir()
    make(model, vision)
    return MiniGpt4(model, vision)


def make(model: Path, vision: Path) -> None:
    generator = torch.Generator().manual_seed(11)

    def random(*shape: int, scale: float = 0.05) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def norm(width: int, name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}

    def linear(name: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": random(outputs, inputs, scale=inputs**-0.5), f"{name}.bias": random(outputs)}

    eva = {"cls_token": random(1, 1, WIDTH), "pos_embed": random(1, POSITIONS, WIDTH, scale=0.3)}
    eva |= {"patch_embed.proj.weight": random(WIDTH, 3, 14, 14), "patch_embed.proj.bias": random(WIDTH)}
    for number in range(BLOCKS):
        block = f"blocks.{number}"
        eva |= norm(WIDTH, f"{block}.norm1") | norm(WIDTH, f"{block}.norm2")
        eva |= {f"{block}.attn.qkv.weight": random(3 * WIDTH, WIDTH)}
        eva |= {f"{block}.attn.q_bias": random(WIDTH), f"{block}.attn.v_bias": random(WIDTH)}
        eva |= linear(f"{block}.attn.proj", WIDTH, WIDTH)
        eva |= linear(f"{block}.mlp.fc1", INNER, WIDTH) | linear(f"{block}.mlp.fc2", WIDTH, INNER)
    # What LAVIS leaves out too: EVA's last block and its head.
    last = {name.replace("blocks.0.", "blocks.39."): each for name, each in eva.items() if name.startswith("blocks.0.")}
    eva |= last | norm(WIDTH, "norm") | linear("head", 10, WIDTH)
    torch.save({name: each.half() for name, each in eva.items()}, vision / "eva_vit_g.pth")

    blip2 = {"query_tokens": random(1, QUERIES, Q_WIDTH, scale=1)} | norm(WIDTH, "ln_vision")
    bert = {**norm(Q_WIDTH, "embeddings.LayerNorm")}
    bert |= {"embeddings.word_embeddings.weight": random(40, Q_WIDTH)}
    bert |= {
        "embeddings.position_embeddings.weight": random(8, Q_WIDTH),
        "embeddings.position_ids": torch.arange(8)[None],
    }
    for number in range(Q_LAYERS):
        layer = f"encoder.layer.{number}"
        for kind in ("attention", "crossattention") if number % 2 == 0 else ("attention",):
            seen = WIDTH if kind == "crossattention" else Q_WIDTH
            bert |= linear(f"{layer}.{kind}.self.query", Q_WIDTH, Q_WIDTH)
            bert |= linear(f"{layer}.{kind}.self.key", Q_WIDTH, seen) | linear(
                f"{layer}.{kind}.self.value", Q_WIDTH, seen
            )
            bert |= linear(f"{layer}.{kind}.output.dense", Q_WIDTH, Q_WIDTH)
            bert |= norm(Q_WIDTH, f"{layer}.{kind}.output.LayerNorm")
        for more in ("", "_query"):  # for texts and for queries
            bert |= linear(f"{layer}.intermediate{more}.dense", Q_INNER, Q_WIDTH)
            bert |= linear(f"{layer}.output{more}.dense", Q_WIDTH, Q_INNER)
            bert |= norm(Q_WIDTH, f"{layer}.output{more}.LayerNorm")
    blip2 |= {f"Qformer.bert.{name}": each for name, each in bert.items()}
    blip2 |= {"Qformer.cls.predictions.bias": random(40), "t5_proj.weight": random(9, Q_WIDTH)}
    torch.save({"model": blip2}, vision / "blip2_pretrained_flant5xxl.pth")

    width = 128  # of the demo model
    masks = {"llama_model.gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}
    content = {"model": masks | linear("llama_proj", width, Q_WIDTH), "optimizer": {"step": 7}, "epoch": 1}
    torch.save(content, model / "checkpoint.pth")


def reference(made: MiniGpt4, content: bytes) -> torch.Tensor:
    """[32, width of the language model], in float32: LAVIS' own arithmetic, written out."""
    eva = {name: each.float() for name, each in torch.load(made.vision / "eva_vit_g.pth", weights_only=True).items()}
    blip2 = torch.load(made.vision / "blip2_pretrained_flant5xxl.pth", weights_only=True)["model"]
    ours = torch.load(made.model / "checkpoint.pth", weights_only=True)["model"]
    image = torch.tensor(pictured.reference(content).astype(np.float32))[None]
    x = functional.conv2d(image, eva["patch_embed.proj.weight"], eva["patch_embed.proj.bias"], stride=14)
    x = torch.cat([eva["cls_token"], x.flatten(2).transpose(1, 2)], 1) + eva["pos_embed"]
    for number in range(BLOCKS):
        block = {
            name.removeprefix(f"blocks.{number}."): each
            for name, each in eva.items()
            if name.startswith(f"blocks.{number}.")
        }
        y = _norm(x, block, "norm1", 1e-6)
        bias = torch.cat([block["attn.q_bias"], torch.zeros(WIDTH), block["attn.v_bias"]])
        query, key, value = functional.linear(y, block["attn.qkv.weight"], bias).chunk(3, -1)
        x = x + _linear(_attend(query, key, value, WIDTH // 88), block, "attn.proj")
        y = functional.gelu(_linear(_norm(x, block, "norm2", 1e-6), block, "mlp.fc1"))
        x = x + _linear(y, block, "mlp.fc2")
    seen = _norm(x, blip2, "ln_vision", 1e-5)
    bert = {name.removeprefix("Qformer.bert."): each for name, each in blip2.items()}
    x = _norm(blip2["query_tokens"], bert, "embeddings.LayerNorm", 1e-12)
    for number in range(Q_LAYERS):
        layer = f"encoder.layer.{number}"
        for kind, at in (("attention", None), ("crossattention", seen)) if number % 2 == 0 else (("attention", None),):
            name, at = f"{layer}.{kind}", x if at is None else at
            query, key, value = (
                _linear(of, bert, f"{name}.self.{part}") for part, of in (("query", x), ("key", at), ("value", at))
            )
            y = _linear(_attend(query, key, value, Q_WIDTH // 64), bert, f"{name}.output.dense")
            x = _norm(y + x, bert, f"{name}.output.LayerNorm", 1e-12)
        y = functional.gelu(_linear(x, bert, f"{layer}.intermediate_query.dense"))
        x = _norm(_linear(y, bert, f"{layer}.output_query.dense") + x, bert, f"{layer}.output_query.LayerNorm", 1e-12)
    return _linear(x, ours, "llama_proj")[0]


def _linear(x: torch.Tensor, weights: dict, name: str) -> torch.Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(x: torch.Tensor, weights: dict, name: str, eps: float) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
