"""Our tokenizer with the interface of vLLM and xgrammar, for bad_words and structured outputs. Imports neither.

vLLM loads it in every process that needs one, by the name that engine/vllm.py registers.
"""

from typing import Any

from sentencepiece import SentencePieceProcessor

from .tokenizer import Tokenizer


class VllmTokenizer:
    """What vLLM 0.26 to 0.33 and xgrammar need of a tokenizer. (Prompts and responses do not go through it.)"""

    is_fast = False

    def __init__(self, ours: Tokenizer):
        self._ours = ours
        self.eos_token_id = ours.eos_id
        self.vocab_size = ours.vocab_size
        self.max_token_id = ours.vocab_size - 1

    @classmethod
    def from_pretrained(cls, folder: str, *_: Any, **__: Any) -> "VllmTokenizer":
        """The tokenizer of a model's folder, as vLLM asks for it."""
        return cls(Tokenizer.load(folder))

    @property
    def sp_model(self) -> SentencePieceProcessor:
        """Tells xgrammar that pieces use `▁` for a space and `<0xNN>` for a byte."""
        return self._ours.model

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Without control tokens and the unknown token, so that a grammar does not take their names for text."""
        return {self._ours.model.id_to_piece(token): token for token in self._ours.text_ids}

    def encode(self, text: str, add_special_tokens: bool = True, **_: Any) -> list[int]:
        """Token ids of a text. There are no special tokens to add."""
        return self._ours.encode(text)
