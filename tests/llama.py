"""A small Llama with its own Hugging Face tokenizer and chat template: it stands for models of other kinds."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import CONVERSATIONS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_tokenizer(folder: Path, template: str, more: Sequence[AddedToken] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 tokens, and more."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|eot|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train(
        [str(CONVERSATIONS)], trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.add_tokens([*more])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def config_of(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Two layers, for a vocabulary."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=1,
        bos_token_id=None,
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Two layers of random weights, a byte-level BPE of 600 tokens, a chat template, two ids that end a text."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tokenizer = save_tokenizer(folder, TEMPLATE)
    torch.manual_seed(3)
    network = LlamaForCausalLM(config_of(tokenizer))
    network.generation_config.eos_token_id = [1, 5]
    network.generation_config.pad_token_id = 0
    network.generation_config.repetition_penalty = 1.05
    network.save_pretrained(folder)
    return folder
