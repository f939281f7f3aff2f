"""The tokenizer and chat template of any other model, as transformers loads them from the model's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from . import hub, lengths, model_files, trial
from .conversation import ASSISTANT, SYSTEM, USER, Conversation
from .errors import JobError, Reject
from .sampling import MinP, RepetitionPenalty, Temperature, TopK, TopP

_ROLES = {USER: "user", ASSISTANT: "assistant", SYSTEM: "system"}

# No text may be beyond a tokenizer: one without an unknown token fails at the first sign that it lacks.
_SAMPLE = "Hello, wörld! 12 + 3 = 15\n\tПривет, 月曜日 안녕 🙂 \u0001"

Id = Annotated[int, Meta(ge=0, lt=1 << 24)]


class _Generation(msgspec.Struct):
    """What batchgen reads of generation_config.json."""

    eos_token_id: Id | list[Id] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None


class HfTokenizer:
    """What batchgen asks of a tokenizer, and a chat template.

    Attributes:
        eos_ids: ids that end a response, those of generation_config.json among them.
        vocab_size: number of ids that it knows; the model may have more.
        has_template: whether it can render conversations.
    """

    def __init__(self, theirs: Any, eos_ids: list[int]):
        self._theirs = theirs
        self.eos_ids = eos_ids
        self.vocab_size: int = len(theirs)
        self.has_template = bool(theirs.chat_template)
        self._normalizer: Any = None
        self._longest = self._longest_token()

    @classmethod
    def load(cls, folder: Path, generation_config: dict[str, Any]) -> HfTokenizer:
        """Raises JobError."""
        theirs = load_theirs(folder)
        named = generation_config.get("eos_token_id")
        ids = [*(named if isinstance(named, list) else [named]), theirs.eos_token_id]
        eos_ids = list(dict.fromkeys(token for token in ids if token is not None))
        if not eos_ids:
            raise JobError(f"{folder}: neither the tokenizer nor generation_config.json says which token ends a text")
        return cls(theirs, eos_ids)

    def render(self, conversation: Conversation) -> str:
        """The prompt by the chat template, up to where the answer begins. Raises Reject(bad_shape)."""
        messages = [{"role": _ROLES[turn.speaker], "content": turn.text} for turn in conversation]
        try:
            prompt: str = self._theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates refuse what they do not know, each in its own way
            raise Reject("bad_shape", f"the model's chat template: {' '.join(str(error).split())[:200]}") from None
        return prompt

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens count as such, as chat templates write them; none are added."""
        ids: list[int] = self._theirs.encode(text, add_special_tokens=False)
        return ids

    def exceeds(self, text: str, tokens: int) -> bool:
        """Whether a text surely has more tokens than so many, without encoding it; False says nothing."""
        return self._longest is not None and lengths.exceeds(text, tokens, self._longest, self._least)

    def _least(self, text: str) -> int:
        letters = "".join(text.split())  # some tokens take any number of blanks around them away
        return len(self._normalizer.normalize_str(letters) if self._normalizer else letters)

    def _longest_token(self) -> int | None:
        """Its characters, where each character that is no blank becomes part of a token: with byte-level BPE. Others
        may have one token for any number of characters that they do not know."""
        backend = getattr(self._theirs, "backend_tokenizer", None)
        if backend is None:
            return None
        made = json.loads(backend.to_str())
        model, vocabulary = made["model"], self._theirs.get_vocab()
        steps = list(_steps(made["pre_tokenizer"]))
        if any(step.get("behavior", "Isolated") == "Removed" for step in steps):
            return None
        if model.get("byte_fallback"):
            alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
        elif any(step["type"] == "ByteLevel" for step in steps):
            alphabet = _byte_alphabet()
        else:
            return None
        if model.get("type") != "BPE" or not vocabulary.keys() >= set(alphabet):
            return None
        self._normalizer = backend.normalizer
        return max(map(len, vocabulary))

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self._theirs.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def load_theirs(folder: Path) -> Any:
    """The tokenizer as transformers has it, tried in a child process first. Raises JobError."""
    # 3 s of computing, which the models of the series need not pay, and here no part of the trial's.
    from transformers import AutoTokenizer

    def load() -> Any:
        # Left open, trust_remote_code has transformers ask on stdin whether to run the folder's Python.
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)

    def use() -> None:
        tokenizer = HfTokenizer(load(), [])
        tokenizer.decode(tokenizer.encode(_SAMPLE))

    if why := trial.failure(use, _patience(folder)):
        raise JobError(f"{folder}: has no spiece.model, and transformers finds no tokenizer: {why[:200]}")
    return load()


def _patience(folder: Path) -> int:
    """Seconds of computing in which a tokenizer is to be loaded: 128,000 tokens in 11 MB took 2.3."""
    return 5 + sum(path.stat().st_size for path in model_files.matching(folder, hub.TEXTS)) // (4 << 20)


def _steps(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a pre-tokenizer, as tokenizer.json has them."""
    if part:
        yield part
        for step in part.get("pretokenizers", []):
            yield from _steps(step)


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return list(ByteLevel.alphabet())


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json, empty if there is none. Raises JobError."""
    path = folder / "generation_config.json"
    try:
        config = model_files.read_table(path)
        msgspec.convert(config, _Generation)
    except FileNotFoundError:
        return {}
    except msgspec.ValidationError as error:
        raise JobError(f"{path}: {model_files.readable(error)}") from None
    return config


def defaults(generation_config: dict[str, Any]) -> dict[str, Any]:
    """The sampling that a model's generation_config.json asks for, by vLLM's names."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    found = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    return {"top_p": 1.0} | found
