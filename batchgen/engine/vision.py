"""How a model sees: what vLLM is given in place of a prompt that has images.

A MiniGPT-4 model sees through BLIP-2: a vision transformer (EVA ViT-g) makes 257 vectors of an image of 224 x 224
pixels, a Q-Former sums them up in 32, and one linear layer makes embeddings of the language model of these. They stand
in the prompt in the place of 32 tokens. Any other model that has images sees by what vLLM itself has for it.

Shapes below: N images, P positions of the vision transformer, W and Q the widths of transformer and Q-Former, H that of
the language model.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ..errors import JobError, in_one_line
from ..model.vision import PARTS, SQUARE, TOKENS, Vision
from ..prompt.pictures import Picture

# BLIP-2's evaluation transform.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BLOCKS = 39  # of EVA's 40: BLIP-2 takes what comes out of the last but one
HEAD_WIDTH, QUERY_HEAD_WIDTH = 88, 64  # of EVA ViT-g and of BERT
LAST_NORM_EPS = 1e-5  # of LAVIS' ln_vision, where transformers has 1e-6
# Images that are encoded together. Always as many, so that the same kernels run and an image's embeddings do not depend
# on its neighbours. One fills two cores of a CPU (4 s), not a GPU.
TOGETHER = {"cpu": 1, "cuda": 16}
CACHE = 64 << 20  # bytes of embeddings that are remembered; 32 x 2816 in float16 are 180 kB

Tensors = dict[str, torch.Tensor]


class Eyes(Protocol):
    """What turns prompts with images into what vLLM takes."""

    def look_at(self, pictures: Iterable[Picture]) -> None:
        """Prepares images that prompts are about to have."""

    def prompt(self, token_ids: list[int], pictures: Sequence[Picture]) -> Any:
        """vLLM's prompt. Raises whatever vLLM raises at one that it refuses."""


class OfVllm:
    """A model's own vision, as vLLM runs it."""

    def __init__(self, engine: Any):
        """engine: vLLM's LLMEngine."""
        self._engine = engine

    def look_at(self, pictures: Iterable[Picture]) -> None:
        return None

    def prompt(self, token_ids: list[int], pictures: Sequence[Picture]) -> Any:
        """token_ids: with the one token per image that the model's chat template writes."""
        from PIL import Image

        images = [Image.frombytes("RGB", each.size, each.pixels()) for each in pictures]
        [made] = self._engine.renderer.render_cmpl(
            [{"prompt_token_ids": token_ids, "multi_modal_data": {"image": images}}]
        )
        return made


class MiniGpt4:
    """BLIP-2's vision and the layer from it to the language model."""

    def __init__(self, vision: Vision, filler: int, width: int, dtype: torch.dtype, device: str):
        """
        Args:
            vision: its files.
            filler: token id in whose places embeddings go.
            width: of the language model's embeddings.
            dtype: of these.
            device: cpu or cuda.

        Raises:
            JobError: if the files are not those of such a model.
        """
        self._filler, self._width, self._dtype, self._device = filler, width, dtype, device
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._spare: list[torch.Tensor] = []
        self._most = max(1, CACHE // (TOKENS * width * dtype.itemsize))  # images that are remembered
        parts = read(vision)
        try:
            self._transformer = transformer_of(parts.transformer)
            self._qformer = qformer_of(parts.qformer)
            self._queries = parts.queries.float().to(device)
            self._layer = _layer_of(parts.layer, width)
        except (KeyError, RuntimeError, ValueError) as error:
            raise JobError(f"[model] vision: {vision.weights[0].parent}: not BLIP-2's: {in_one_line(error)}") from None
        if self._queries.shape[1] != TOKENS or self._transformer.config.image_size != SQUARE:
            raise JobError(f"[model] vision: {vision.weights[0].parent}: not for {TOKENS} queries and {SQUARE} pixels")
        for network in (self._transformer, self._qformer, self._layer):
            network.eval().to(device)
        if device != "cpu":  # as MiniGPT-4 runs it; on a CPU half precision is slower
            self._transformer.half()

    def look_at(self, pictures: Iterable[Picture]) -> None:
        new = {each.digest: each for each in pictures if each.digest not in self._known}
        together = TOGETHER[self._device]
        for start in range(0, len(new), together):
            some = list(new.values())[start : start + together]
            for picture, embeddings in zip(some, self._encoded([_values(each) for each in some]), strict=False):
                self._known[picture.digest] = self._place().copy_(embeddings)

    def _place(self) -> torch.Tensor:
        """[32, H] for one image: one that was forgotten, or of a block that the kernel fills with memory as it is used.
        Embeddings that come and go one by one leave holes in malloc's heap: 86 MB after 10,000 images of 16 kB each."""
        if not self._spare:
            self._spare = list(torch.empty(self._most, TOKENS, self._width, dtype=self._dtype))
        return self._spare.pop()

    def prompt(self, token_ids: list[int], pictures: Sequence[Picture]) -> Any:
        """Token ids and embeddings mixed. With embeddings alone vLLM would not know the ids, and its penalties would
        take those of whatever request had the same slot before (0.31)."""
        embeddings = torch.zeros(len(token_ids), self._width, dtype=self._dtype)
        places = [place for place, token in enumerate(token_ids) if token == self._filler]
        self.look_at(pictures)
        embeddings[places] = torch.cat([self._of(each) for each in pictures])
        while len(self._known) > self._most:
            self._spare.append(self._known.popitem(last=False)[1])
        return {
            "type": "embeds",
            "prompt_embeds": embeddings,
            "prompt_token_ids": token_ids,
            "is_token_ids": [token != self._filler for token in token_ids],
        }

    def _of(self, picture: Picture) -> torch.Tensor:
        self._known.move_to_end(picture.digest)
        return self._known[picture.digest]

    @torch.inference_mode()
    def _encoded(self, images: list[torch.Tensor]) -> torch.Tensor:
        """[N, 32, H] on the CPU for N images [3, 224, 224]."""
        lacking = TOGETHER[self._device] - len(images)
        values = torch.stack([*images, *[torch.zeros_like(images[0])] * lacking])
        seen = self._transformer(values.to(self._device, self._transformer.dtype)).last_hidden_state  # [N, P, W]
        queries = self._queries.expand(len(values), -1, -1)  # [N, 32, Q]
        summed = self._qformer(query_embeds=queries, encoder_hidden_states=seen.float()).last_hidden_state
        return self._layer(summed).to("cpu", self._dtype)[: len(images)]


def _values(picture: Picture) -> torch.Tensor:
    """What BLIP-2 makes of the pixels of an image: [3, 224, 224]."""
    pixels = torch.frombuffer(bytearray(picture.pixels()), dtype=torch.uint8).reshape(SQUARE, SQUARE, 3)
    mean, std = (torch.tensor(part)[:, None, None] for part in (MEAN, STD))
    return (pixels.permute(2, 0, 1).float() / 255 - mean) / std


# --- files


class Parts(NamedTuple):
    """Weights, by the names that transformers has for them.

    transformer, qformer: of Blip2VisionModel and Blip2QFormerModel
    queries: [1, 32, Q]
    layer: of the linear layer
    """

    transformer: Tensors
    qformer: Tensors
    queries: torch.Tensor
    layer: Tensors


def read(vision: Vision) -> Parts:
    """Raises JobError."""
    checkpoint = _pickled(vision.checkpoint)
    layer = {name.removeprefix("llama_proj."): each for name, each in checkpoint.items() if "llama_proj." in name}
    if {*layer} != {"weight", "bias"}:
        raise JobError(f"{vision.checkpoint}: has no llama_proj, so it is not MiniGPT-4's")
    of_blip2 = _of_lavis(*vision.weights) if vision.is_of_lavis else _of_transformers(vision.weights)
    if "query_tokens" not in of_blip2:
        raise JobError(f"[model] vision: {vision.weights[-1]}: has no query_tokens, so it is not BLIP-2's")

    def part(prefix: str) -> Tensors:
        return {name.removeprefix(prefix): each for name, each in of_blip2.items() if name.startswith(prefix)}

    return Parts(part("vision_model."), part("qformer."), of_blip2["query_tokens"], layer)


def _pickled(path: Path) -> Tensors:
    """The tensors of a .pth file, and nothing that it would have Python run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        named = content.get("model", content)
        return {str(name): each for name, each in named.items() if isinstance(each, torch.Tensor)}
    except Exception as error:  # whatever a broken or hostile pickle brings up
        raise JobError(f"{path}: cannot be read as PyTorch's weights: {in_one_line(error)}") from None


def _of_transformers(files: Sequence[Path]) -> Tensors:
    from safetensors import safe_open

    found: Tensors = {}
    for path in files:
        with safe_open(path, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys() if name.startswith(PARTS)}  # noqa: SIM118
    return found


# LAVIS' names -> transformers', in this order.
_OF_TRANSFORMER = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)
_OF_QFORMER = (
    (r"embeddings\.LayerNorm\.", "layernorm."),
    (r"attention\.self\.", "attention.attention."),
)
# What images have no use for: words, and the layers that only texts go through.
_OF_TEXT = re.compile(r"embeddings\.(word|position)|encoder\.layer\.\d+\.(intermediate|output)\.")


def _of_lavis(transformer: Path, qformer: Path) -> Tensors:
    """The weights of LAVIS' two files under transformers' names. The first has EVA's own head and last block, which
    BLIP-2 leaves out."""
    eva, blip2 = _pickled(transformer), _pickled(qformer)
    found = {"query_tokens": blip2["query_tokens"]} if "query_tokens" in blip2 else {}
    for name, each in eva.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        if renamed := _renamed(name, _OF_TRANSFORMER) if not block or int(block[1]) < BLOCKS else "":
            found[f"vision_model.{renamed}"] = each
        elif block and int(block[1]) < BLOCKS and name.endswith("attn.q_bias"):  # the keys have no bias
            value = eva[name.replace("q_bias", "v_bias")]
            bias = torch.cat([each, torch.zeros_like(value), value])
            found[f"vision_model.encoder.layers.{block[1]}.self_attn.qkv.bias"] = bias
    for name, each in blip2.items():
        if name.startswith("ln_vision."):
            found[f"vision_model.post_layernorm.{name.removeprefix('ln_vision.')}"] = each
        inner = name.removeprefix("Qformer.bert.")
        if inner != name and not _OF_TEXT.match(inner):
            found[f"qformer.{_renamed(inner, _OF_QFORMER) or inner}"] = each
    return found


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """By the first rule that fits; "" if none does."""
    return next((re.sub(old, new, name, count=1) for old, new in rules if re.search(old, name)), "")


# --- networks


def transformer_of(weights: Tensors) -> Any:
    """transformers' Blip2VisionModel of the size that the weights have, with all of them. Raises KeyError, RuntimeError
    or ValueError."""
    from transformers import Blip2VisionConfig, Blip2VisionModel

    width, _, patch, _ = weights["embeddings.patch_embedding.weight"].shape
    across = math.isqrt(weights["embeddings.position_embedding"].shape[1] - 1)
    config = Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layers(weights, "encoder.layers."),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=across * patch,
        patch_size=patch,
    )
    made = Blip2VisionModel(config)
    made.post_layernorm.eps = LAST_NORM_EPS
    made.load_state_dict(weights, strict=True)
    return made.float()


def qformer_of(weights: Tensors) -> Any:
    """transformers' Blip2QFormerModel, likewise."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    inner, width = weights["encoder.layer.0.intermediate_query.dense.weight"].shape
    layers = _layers(weights, "encoder.layer.")
    crossing = {int(name.split(".")[2]) for name in weights if ".crossattention." in name}
    config = Blip2QFormerConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // QUERY_HEAD_WIDTH),
        encoder_hidden_size=weights["encoder.layer.0.crossattention.attention.key.weight"].shape[1],
        cross_attention_frequency=min(crossing - {0}, default=layers),
    )
    made = Blip2QFormerModel(config)
    made.load_state_dict(weights, strict=True)
    return made.float()


def _layers(weights: Tensors, prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))


def _layer_of(weights: Tensors, width: int) -> nn.Linear:
    outputs, inputs = weights["weight"].shape
    if outputs != width:
        raise ValueError(f"llama_proj leads to {outputs:,} numbers, and the language model has {width:,}")
    made = nn.Linear(inputs, outputs)
    made.load_state_dict(weights, strict=True)
    return made.float()
