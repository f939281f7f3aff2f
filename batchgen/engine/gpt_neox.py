"""GPT-NeoX on vLLM's layers, for versions of vLLM that have no implementation of their own: from 0.32 on they run it
through the Transformers backend, which is slower. Written for 0.32; all that it uses is in 0.33 too, and takes the
same arguments. Only vllm.py imports this module, and does without it where a later vLLM breaks it.

The model (Black et al. 2022, arXiv:2204.06745) is a residual stream, to which each layer adds what its attention and
its MLP make of it. Both read the stream as it was before the layer (parallel: GPT-NeoX-20B, Pythia), or the MLP reads
what the attention has left (sequential: rinna's models).

Modules have the names that checkpoints give them, so that weights, adapters and quantization configs find their layers.
In the shapes below T is the number of tokens in the batch, of all its requests, H the width of the stream and V the
size of the vocabulary. The stream is whole on every device of a tensor-parallel group; heads, the inner width of the
MLP and the vocabulary are split among them.
"""

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import GPTNeoXConfig
from transformers.activations import ACT2FN
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    WeightsMapper,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

Weights = Iterable[tuple[str, torch.Tensor]]


def kind_by_kind(values: torch.Tensor, heads: int, dim: int) -> torch.Tensor:
    """Checkpoints have query, key and value of the first head, then those of the second, and so on; this makes it the
    queries of all heads, then all keys, then all values, in a dimension of 3 * heads * width."""
    return values.unflatten(dim, (heads, 3, -1)).transpose(dim, dim + 1).flatten(dim, dim + 2)


def rope_parameters(config: GPTNeoXConfig) -> dict[str, Any]:
    """Of the rotary position embedding, for vLLM. transformers has brought the keys of old configs (rotary_emb_base,
    rotary_pct, rope_scaling) into this one form."""
    parameters = dict(config.rope_parameters)
    if "factor" in parameters:
        parameters["factor"] = float(parameters["factor"])  # vLLM takes only a float for a number
    return parameters


class GPTNeoXAttention(nn.Module):
    """Causal self-attention over all positions so far, with the first part of each head (partial_rotary_factor, once
    rotary_pct: all of it in rinna's models, a quarter in Pythia's) rotated by its position."""

    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config, quantization = vllm_config.model_config.hf_config, vllm_config.quant_config
        width, self.heads = config.hidden_size, config.num_attention_heads
        head_width = width // self.heads
        shared: dict[str, Any] = {"bias": config.attention_bias, "quant_config": quantization}
        name = f"{prefix}.query_key_value"
        # The layer's outputs are brought into order as it is loaded. Those of an adapter are in the checkpoint's order,
        # so where there may be one, the layer keeps that too, and each step reorders what comes out.
        self.reorders = vllm_config.lora_config is not None
        self.query_key_value = (
            ColumnParallelLinear(width, 3 * width, prefix=name, **shared)
            if self.reorders
            else QKVParallelLinear(width, head_width, self.heads, prefix=name, **shared)
        )
        self.dense = RowParallelLinear(width, width, prefix=f"{prefix}.dense", **shared)
        self.rotary = get_rope(head_width, config.max_position_embeddings, rope_parameters=rope_parameters(config))
        self.heads_here = self.heads // get_tensor_model_parallel_world_size()
        self.attention = Attention(
            self.heads_here,
            head_width,
            scale=head_width**-0.5,
            cache_config=vllm_config.cache_config,
            quant_config=quantization,
            prefix=f"{prefix}.attention",
        )

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[T, H] for x [T, H] and positions [T]."""
        outputs, _ = self.query_key_value(x)
        if self.reorders:
            outputs = kind_by_kind(outputs, self.heads_here, dim=1)
        query, key, value = outputs.chunk(3, dim=1)
        query, key = self.rotary(positions, query, key)
        attended, _ = self.dense(self.attention(query, key, value))
        return attended

    def load_weights(self, weights: Weights) -> set[str]:
        return AutoWeightsLoader(self).load_weights((name, self._in_order(name, weight)) for name, weight in weights)

    def _in_order(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A weight of the checkpoint as its layer takes it. Quantized ones may have their outputs in another dimension
        than the first, and a scale of the whole layer has none."""
        layer, _, kind = name.partition(".")
        outputs = getattr(getattr(self.query_key_value, kind, None), "output_dim", None)
        if layer != "query_key_value" or outputs is None or self.reorders:
            return weight
        return kind_by_kind(weight, self.heads, outputs)


class GPTNeoXMLP(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config, quantization = vllm_config.model_config.hf_config, vllm_config.quant_config
        width, inner = config.hidden_size, config.intermediate_size
        self.dense_h_to_4h = ColumnParallelLinear(
            width, inner, quant_config=quantization, prefix=f"{prefix}.dense_h_to_4h"
        )
        self.activation = ACT2FN[config.hidden_act]
        self.dense_4h_to_h = RowParallelLinear(
            inner, width, quant_config=quantization, prefix=f"{prefix}.dense_4h_to_h"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, H] for x [T, H]."""
        inner, _ = self.dense_h_to_4h(x)
        outputs, _ = self.dense_4h_to_h(self.activation(inner))
        return outputs


class GPTNeoXLayer(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.is_parallel = config.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = GPTNeoXAttention(vllm_config, f"{prefix}.attention")
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GPTNeoXMLP(vllm_config, f"{prefix}.mlp")

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The stream [T, H] after this layer, from x [T, H], the stream before it, and positions [T]."""
        attended = x + self.attention(self.input_layernorm(x), positions)
        return attended + self.mlp(self.post_attention_layernorm(x if self.is_parallel else attended))


@support_torch_compile
class GPTNeoXModel(nn.Module):
    """From token ids to the normalized stream after the last layer; of a pipeline, the stage that lies here."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config, stage = vllm_config.model_config.hf_config, get_pp_group()
        self.embed_in = self.final_layer_norm = PPMissingLayer()
        if stage.is_first_rank or (stage.is_last_rank and config.tie_word_embeddings):
            self.embed_in = VocabParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.embed_in",
            )
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers, lambda prefix: GPTNeoXLayer(vllm_config, prefix), prefix=f"{prefix}.layers"
        )
        if stage.is_last_rank:
            self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """[T, H] for positions [T] and input_ids [T], inputs_embeds [T, H] or what the stage before this one gave."""
        if intermediate_tensors is not None:
            x = intermediate_tensors["stream"]
        else:
            x = self.embed_in(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            x = layer(x, positions)
        return self.final_layer_norm(x) if get_pp_group().is_last_rank else IntermediateTensors({"stream": x})


class GPTNeoXForCausalLM(nn.Module, SupportsLoRA, SupportsPP):
    """What vLLM loads and calls."""

    # Names without a prefix: of a body that was saved without a head. None: what old checkpoints needlessly have.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_regex={re.compile(r"^(?=(embed_in|layers|final_layer_norm)\.)"): "gpt_neox."},
        orig_to_new_substr={".attention.bias": None, ".attention.masked_bias": None, "rotary_emb.": None},
        orig_to_new_prefix={"embed_out": "lm_head"},
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = self.config = vllm_config.model_config.hf_config  # where vLLM looks for it
        self.gpt_neox = GPTNeoXModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "gpt_neox"))
        self.lm_head = PPMissingLayer()
        if get_pp_group().is_last_rank:
            self.lm_head = ParallelLMHead(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
            if config.tie_word_embeddings:
                self.lm_head = self.lm_head.tie_weights(self.gpt_neox.embed_in)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(["stream"], config.hidden_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.gpt_neox.embed_in(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        return self.gpt_neox(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """[T, V] for [T, H]; None on devices that have no need of it."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Weights) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
