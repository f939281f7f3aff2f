"""Our tokenizer as vLLM and xgrammar want to see it, for bad_words and structured outputs. Neither imported here.

vLLM loads it by the name that engine/vllm.py registers, in every process that needs one.
"""

from typing import Any

from sentencepiece import SentencePieceProcessor

from .tokenizer import Tokenizer


class VllmTokenizer:
    """What vLLM 0.26 to 0.31 and xgrammar ask of a tokenizer while batchgen encodes and decodes by itself."""

    is_fast = False

    def __init__(self, ours: Tokenizer):
        self._ours = ours
        self.eos_token_id = ours.eos_id
        self.vocab_size = ours.vocab_size
        self.max_token_id = ours.vocab_size - 1

    @classmethod
    def from_pretrained(cls, folder: str, *_: Any, **__: Any) -> "VllmTokenizer":
        return cls(Tokenizer.load(folder))

    @property
    def sp_model(self) -> SentencePieceProcessor:
        """By this xgrammar sees that pieces have `▁` for a space and `<0xNN>` for a byte."""
        return self._ours.model

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Without control and unknown tokens: a grammar must not take them for the text of their names."""
        return {self._ours.model.id_to_piece(token): token for token in self._ours.text_ids}

    def encode(self, text: str, add_special_tokens: bool = True, **_: Any) -> list[int]:
        return self._ours.encode(text)
