"""Text to token ids and back, with sentencepiece alone.

"The reference" below is the slow T5Tokenizer of transformers 4.57.6 (`use_fast=False`): the models were
published for it, and transformers 5 no longer has it. File names in comments refer to that release.

Ids also depend on sentencepiece: where several splits of a text score the same (25 spaces, ```), releases
before 0.2.2 choose a different one. The ids recorded in tests/tokenizer are those of 0.2.2 and 0.2.3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, repeat
from os import PathLike
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from ..errors import JobError
from . import model_files, token_bound

_MOST_PIECES = 1 << 19  # the largest known tokenizer has 262,144
_LONGEST_ROLE = 256  # characters of the name of a special token

# The order in which the reference numbers tokens that spiece.model lacks (tokenization_utils.py, _add_tokens).
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REQUIRED_ROLES = {"bos_token", "eos_token", "unk_token", "pad_token"}

# The values of rinna's models; None means that the key is absent. Others make the reference give other ids or texts.
_SUPPORTED_SETTINGS: dict[str, tuple[object, ...]] = {
    "extra_ids": (0,),  # if absent, the reference adds 100 tokens that the model does not have
    "additional_special_tokens": ([], None),
    "extra_special_tokens": ({}, None),
    "sp_model_kwargs": ({}, None),
    "do_lower_case": (False, None),
    "split_special_tokens": (False, None),
    "legacy": (True, None),
    "add_prefix_space": (True, None),
}


class TokenizerError(ValueError):
    """A tokenizer cannot be used. The text is one line that names the file and says what to do."""


class Tokenizer:
    """A model's tokenizer. Get one with `Tokenizer.load`. It is immutable, so threads may share it.

    Attributes:
        eos_id, bos_id, pad_id, unk_id: ids of these tokens.
        eos_ids: ids that end a response.
        vocab_size: number of pieces in spiece.model; the model itself may be padded to more ids.
        model: the sentencepiece model.
    """

    def __init__(self, model: SentencePieceProcessor, roles: dict[str, str], clean_up: bool) -> None:
        self.model = model
        self._clean_up = clean_up
        self.vocab_size: int = model.get_piece_size()

        pieces = [model.id_to_piece(i) for i in range(self.vocab_size)]
        pieces += [token for token in dict.fromkeys(roles.values()) if token not in pieces]
        self._pieces = pieces
        self._special_ids = {token: pieces.index(token) for token in roles.values()}
        # Like the reference's Trie (tokenization_utils.py): the first token in the text, and of two at the
        # same place the longer. (The Trie differs for tokens that can overlap; rinna's cannot.)
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

        self._longest = max(map(len, pieces))
        # Without byte pieces, a run of unknown characters of any length is a single token.
        has_bytes = any(map(model.is_byte, range(self.vocab_size)))
        self._letters = None if has_bytes else frozenset(piece for piece in pieces if len(piece) == 1)

        self._bytes = {i: _piece_bytes(model, i) for i in range(self.vocab_size) if not _is_silent(model, i)}
        self._bytes_and_names = {i: self._bytes.get(i, piece.encode()) for i, piece in enumerate(pieces)}

        self.bos_id = self._special_ids[roles["bos_token"]]
        self.eos_id = self._special_ids[roles["eos_token"]]
        self.eos_ids = [self.eos_id]
        self.unk_id = self._special_ids[roles["unk_token"]]
        self.pad_id = self._special_ids[roles["pad_token"]]

    @property
    def text_ids(self) -> list[int]:
        """Ids that stand for text: all but control tokens and the unknown one."""
        return list(self._bytes)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Tokenizer:
        """Read `spiece.model` and `tokenizer_config.json` of a model's folder.

        Raises:
            TokenizerError: one of them is missing or unreadable, or has settings that rinna's models do not have.
        """
        path = Path(folder) / "tokenizer_config.json"
        try:
            model = _read_model(Path(folder) / "spiece.model")
            config = _read_config(path)
        except FileNotFoundError as error:
            raise TokenizerError(f"{error.filename}: no such file: copy it from the model's repository") from error
        except JobError as error:
            raise TokenizerError(f"{error}: copy it from the model's repository") from error
        roles = {role: _content(config[role], path) for role in _ROLES if config.get(role)}
        if missing := sorted(_REQUIRED_ROLES - roles.keys()):
            raise TokenizerError(f"{path} has no {missing[0]}: copy it from the model's repository")
        tokenizer = cls(model, roles, clean_up=bool(config.get("clean_up_tokenization_spaces")))
        added = config.get("added_tokens_decoder", {})
        if not isinstance(added, dict):
            raise TokenizerError(f"{path}: added_tokens_decoder is not an object: copy it from the model's repository")
        for i, token in added.items():
            if str(tokenizer._special_ids.get(_content(token, path))) != i:
                raise TokenizerError(f"{path}: remove added token {i}, which rinna's models do not have")
        return tokenizer

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Token ids of a text, with no bos or eos added.

        Args:
            text: any text without lone surrogates.
            parse_special: False is plain sentencepiece, for which `</s>` in a user's text is just text.
                True is exactly the reference: special tokens become their ids, and each stretch of text
                between them is encoded by itself.

        Raises:
            UnicodeEncodeError: the text has a lone surrogate.
        """
        if parse_special:
            parts = self._special.split(text)
            return self._splice(parts, map(self.encode, parts[::2]))
        ids: list[int] = self.model.encode(text.encode())
        return ids

    def exceeds(self, text: str, tokens: int) -> bool:
        """Whether a text is certain to have more than `tokens` tokens. If False, it may or may not.

        The cost depends on `tokens`, not on the text's length, while encoding takes 30 bytes of memory per character.
        """
        return token_bound.exceeds(text, tokens, self._longest, self._least)

    def _least(self, text: str) -> int:
        normal: str = self.model.normalize(text)
        return len(normal) if self._letters is None else sum(map(self._letters.__contains__, normal))

    def encode_batch(
        self,
        texts: Sequence[str],
        parse_special: bool = False,
        num_threads: int = -1,
    ) -> list[list[int]]:
        """`encode` of every text, in order, on `num_threads` threads (-1: one per core)."""
        if parse_special:
            split = [self._special.split(text) for text in texts]
            between = [part for parts in split for part in parts[::2]]
            plain = iter(self.encode_batch(between, num_threads=num_threads))
            return [self._splice(parts, plain) for parts in split]
        ids: list[list[int]] = self.model.encode([t.encode() for t in texts], num_threads=num_threads)
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids: the characters of the pieces, nothing stripped, nothing inserted.

        For any text that the model's normaliser leaves unchanged, `decode(encode(text)) == text`.

        A space at the start is kept: a response is decoded on its own, where such a space is a piece that the
        model produced. (A spiece.model with add_dummy_prefix adds one before every text that it encodes, which
        is kept too, as one of the normaliser's changes. The rinna GPT-NeoX models are trained without.)

        Args:
            ids: any ids. An id outside the vocabulary has no text, as models are padded to more ids than they
                have pieces. Bytes that are not UTF-8 become U+FFFD.
            skip_special_tokens: whether control tokens and the unknown token are dropped, or appear as their
                names. Tokens that plain `encode` finds in text ([CLS], [SEP], [MASK] here) are always text.
        """
        table = self._bytes if skip_special_tokens else self._bytes_and_names
        return b"".join(map(table.get, ids, repeat(b""))).decode(errors="replace")

    def decode_hf(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids exactly as the reference decodes them: stripped, with spaces before special tokens.

        Raises:
            IndexError: an id is outside the vocabulary.
        """
        ids = list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < len(self._pieces):
            raise IndexError(f"an id is outside the vocabulary, 0 to {len(self._pieces) - 1}")
        pieces = [self._pieces[i] for i in ids]
        if skip_special_tokens:
            pieces = [piece for piece in pieces if piece not in self._special_ids]
        text = self._join_hf(pieces).strip()
        return _clean_up(text) if self._clean_up else text

    def _splice(self, parts: list[str], plain: Iterator[list[int]]) -> list[int]:
        """The ids of `parts` (text, special token, text, ..., text); `plain` yields the ids of each text."""
        ids = next(plain)
        for special in parts[1::2]:
            ids.append(self._special_ids[special])
            ids += next(plain)
        return ids

    def _join_hf(self, pieces: list[str]) -> str:
        # tokenization_t5.py, convert_tokens_to_string: a run of special tokens gets a space, but before the
        # text that precedes it rather than right before it.
        if pieces:
            pieces[0] = pieces[0].removeprefix("▁")
        joined, text = "", ""
        for special, run in groupby(pieces, self._special_ids.__contains__):
            if special:
                joined += " " + text + "".join(run)
                text = ""
            else:
                text = self.model.decode(list(run))
        return joined + text


def _piece_bytes(model: SentencePieceProcessor, i: int) -> bytes:
    piece = model.id_to_piece(i)
    return bytes.fromhex(piece[3:5]) if model.is_byte(i) else piece.replace("▁", " ").encode()  # <0xE7>


def _is_silent(model: SentencePieceProcessor, i: int) -> bool:
    return model.is_control(i) or model.is_unknown(i)


def _read_model(path: Path) -> SentencePieceProcessor:
    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(model_files.read(path))
    except RuntimeError as error:
        hint = "download it again (cut short, or a Git LFS pointer?)"
        raise TokenizerError(f"{path} is not a sentencepiece model: {hint}") from error
    if not 0 < model.get_piece_size() <= _MOST_PIECES:
        raise TokenizerError(f"{path} has {model.get_piece_size():,} pieces: the maximum is {_MOST_PIECES:,}")
    return model


def _read_config(path: Path) -> dict[str, Any]:
    config = model_files.read_table(path)
    for key, supported in _SUPPORTED_SETTINGS.items():
        if config.get(key) not in supported:
            raise TokenizerError(f"{path}: set {key} to {json.dumps(supported[0])}, as in rinna's models")
    return config


def _content(token: Any, path: Path) -> str:
    """The text of a token in tokenizer_config.json, where it is a string or an object as transformers saves it."""
    if isinstance(token, dict) and not any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
        token = token.get("content")
    if not isinstance(token, str) or len(token) > _LONGEST_ROLE:
        raise TokenizerError(f"{path}: {token!r:.80} is not a plain token: copy it from the model's repository")
    return token


def _clean_up(text: str) -> str:
    # tokenization_utils_base.py, clean_up_tokenization, in its order
    for mark in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(mark, mark.strip())
    return text
