"""A small model that thinks: by its weights each token has one likeliest successor, so what it writes is known."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from llama import TEMPLATE, save_tokenizer
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

THOUGHT, ANSWER = "abcdefgh", "xyz"
CHAIN = ["<|assistant|>", "<think>", *THOUGHT, "</think>", *ANSWER, "<|end|>"]
AGAIN = 0.99  # how likely, to the end of the thought being 1, the model begins it anew: 0.3 less as a logit
WIDTH = 64


def save_thinker(folder: Path, template: str = TEMPLATE, special: bool = False) -> Path:
    """special: whether its marks of thinking are special tokens."""
    marks = [AddedToken(mark, special=special, normalized=False) for mark in ("<think>", "</think>")]
    tokenizer = save_tokenizer(folder, template, marks)
    torch.manual_seed(3)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            initializer_range=1.0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    for part in (network.model.layers[0].self_attn.o_proj, network.model.layers[0].mlp.down_proj, network.lm_head):
        torch.nn.init.zeros_(part.weight)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in CHAIN]
    for token, following in pairwise(ids):
        _follow(network, token, following, 1)
    _follow(network, tokenizer.convert_tokens_to_ids(THOUGHT[-1]), tokenizer.convert_tokens_to_ids(THOUGHT[0]), AGAIN)
    network.generation_config.eos_token_id = 1
    network.save_pretrained(folder)
    return folder


def _follow(network: LlamaForCausalLM, token: int, following: int, share: float) -> None:
    """Makes `following` likely after `token`: its logit is 30 times the share, where others have 12 at most."""
    seen = network.model.embed_tokens.weight.data[token]
    network.lm_head.weight.data[following] += 30 * share * seen / seen.norm() / WIDTH**0.5


@pytest.fixture(scope="session")
def thinker(tmp_path_factory) -> Path:
    return save_thinker(tmp_path_factory.mktemp("models") / "thinker")
