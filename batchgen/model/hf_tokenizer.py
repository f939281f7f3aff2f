"""The tokenizer and chat template of models outside the series, as transformers loads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..errors import JobError, Reject
from ..host import trial
from ..input import images
from ..input.conversation import ASSISTANT, SYSTEM, USER, Conversation, Utterance
from ..job.sampling import MinP, RepetitionPenalty, Temperature, TopK, TopP
from . import hub, model_files, token_bound

_ROLES = {USER: "user", ASSISTANT: "assistant", SYSTEM: "system"}
# Private-use characters: the first marks a control token, the others stand in for control tokens in users' text.
_MARK, _STAND_INS, _OURS = chr(0x100000), 0x100001, re.compile("[\U00100000-\U0010fffd]")


class Guarded(str):
    """A prompt in which only the template's control tokens are control tokens; those in users' text are plain text.

    Attributes:
        marked: the same prompt with marks around the template's control tokens.
        tokens: how many of these there are, not counting the unknown token, which any text may become.
    """

    marked: str
    tokens: int


# A tokenizer must accept any text: one without an unknown token fails at the first character that it lacks.
_SAMPLE = "Hello, wörld! 12 + 3 = 15\n\tПривет, 月曜日 안녕 🙂 \u0001"

Id = Annotated[int, Meta(ge=0, lt=1 << 24)]


class _Generation(msgspec.Struct):
    """What batchgen reads from generation_config.json."""

    eos_token_id: Id | list[Id] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None


class HfTokenizer:
    """A tokenizer of transformers with its chat template, as batchgen uses them.

    Attributes:
        eos_ids: ids that end a response, including those of generation_config.json.
        vocab_size: number of ids that it knows; the model may have more.
        has_template: whether it can render conversations.
        date: the current date for templates that ask for it, such as 2026-01-31; "" for none, because prompts must not
            depend on the day they are made.
        has_images: whether the marks of images in texts (input/images.py) stand for images.
    """

    def __init__(self, theirs: Any, eos_ids: list[int]):
        self._theirs = theirs
        self.eos_ids = eos_ids
        self.vocab_size: int = len(theirs)
        self.has_template = bool(theirs.chat_template)
        added = getattr(theirs, "added_tokens_decoder", {})
        special = {number: token for number, token in added.items() if token.special}
        self._controls = {str(token): number for number, token in special.items()}
        self._any_is_folded = any(token.normalized for token in special.values())
        longest_first = sorted(self._controls, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.date = ""
        self.has_images = False
        self._normalizer: Any = None
        self._longest = self._longest_token()

    @classmethod
    def load(cls, folder: Path, generation_config: dict[str, Any]) -> HfTokenizer:
        """The tokenizer of a model's folder. Raises JobError."""
        # It takes 3 s of CPU time, which must not count in the trial; models of the series do not need it.
        from transformers import AutoTokenizer  # noqa: F401

        def used() -> None:
            tokenizer = cls.tried(folder, generation_config)
            tokenizer.decode(tokenizer.encode(_SAMPLE))

        if why := trial.failure(used, _patience(folder)):
            raise JobError(f"{folder}: has no spiece.model, and transformers finds no tokenizer: {why[:200]}")
        tokenizer = cls.tried(folder, generation_config)
        if not tokenizer.eos_ids:
            raise JobError(f"{folder}: neither the tokenizer nor generation_config.json says which token ends a text")
        return tokenizer

    @classmethod
    def tried(cls, folder: Path, generation_config: dict[str, Any]) -> HfTokenizer:
        """The tokenizer of a folder that `load` has already tried in a child process."""
        theirs = load_theirs(folder)
        named = generation_config.get("eos_token_id")
        ids = [*(named if isinstance(named, list) else [named]), theirs.eos_token_id]
        return cls(theirs, list(dict.fromkeys(token for token in ids if token is not None)))

    def render(self, conversation: Conversation) -> str:
        """The prompt by the chat template, up to where the response begins. Raises Reject(bad_shape)."""
        messages = [{"role": _ROLES[turn.speaker], "content": self._content(turn.text)} for turn in conversation]
        try:
            self._set_clock()
            prompt: str = self._theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except MemoryError:
            raise
        except Exception as error:  # each template has its own way to refuse a conversation
            hint = "; set a date with [prompt] date (--date)" if "strftime_now" in str(error) else ""
            raise Reject(
                "bad_shape", f"the model's chat template: {' '.join(str(error).split())[:200]}{hint}"
            ) from None
        return prompt

    def _content(self, text: str) -> str | list[dict[str, str]]:
        """A text as chat templates take it: in parts, if there are images in it."""
        texts = images.split(text) if self.has_images else [text]
        if len(texts) == 1:
            return text
        parts: list[dict[str, str]] = []
        for place, part in enumerate(texts):
            parts += [{"type": "image"}] if place else []
            parts += [{"type": "text", "text": part}] if part else []
        return parts

    def _set_clock(self) -> None:
        """Puts our clock among the template's globals: of a function that comes as a variable, transformers 5.24 makes
        a text."""
        from transformers.utils.chat_template_utils import _compile_jinja_template  # compiles each template once

        _compile_jinja_template(self._theirs.get_chat_template()).globals["strftime_now"] = _clock(self.date)

    def control_in(self, text: str) -> str:
        """The first control token in a text; "" if there is none."""
        found = self._control.search(text) or (self._folds and self._control.search(self._folds.normalize_str(text)))
        return found[0] if found else ""

    def guarded(self, conversation: Conversation, render: Callable[[Conversation], str], control_tokens: str) -> str:
        """The prompt that `render` makes of a conversation.

        control_tokens: how to treat control tokens in its utterances: `token` keeps them, `text` makes them plain text
        and `reject` raises Reject(bad_shape).
        """
        held = next(filter(None, (self.control_in(turn.text) for turn in conversation)), "")
        if control_tokens == "token" or not held:
            return render(conversation)
        if control_tokens == "reject":
            raise Reject("bad_shape", f"contains the control token {held}, and [prompt] control_tokens is reject")
        if self._renamed is None or any(_OURS.search(turn.text) for turn in conversation):
            raise Reject("bad_shape", f"contains the control token {held}, which this tokenizer cannot treat as text")
        tokens = list(self._controls)
        hidden = {token: chr(_STAND_INS + number) for number, token in enumerate(tokens)}
        turns = [
            Utterance(turn.speaker, self._control.sub(lambda found: hidden[found[0]], turn.text))
            for turn in conversation
        ]
        shown = {ord(stand_in): token for token, stand_in in hidden.items()}
        prompt = render(turns)
        text = Guarded(prompt.translate(shown))
        text.tokens = sum(found != self._theirs.unk_token for found in self._control.findall(prompt))
        text.marked = self._control.sub(lambda found: f"{_MARK}{found[0]}{_MARK}", prompt).translate(shown)
        return text

    def encode(self, text: str) -> list[int]:
        """The ids of a text, in which special tokens are recognised, as chat templates write them; none are added.

        Raises Reject(bad_shape) if a Guarded prompt cannot be encoded as such. The time and memory that it takes are up
        to the folder's tokenizer.json: see prompt/checker.py.
        """
        if not isinstance(text, Guarded):
            ids: list[int] = self._theirs.encode(text, add_special_tokens=False)
            return ids
        assert self._renamed
        ids = self._renamed.encode(text.marked, add_special_tokens=False).ids
        controls = set(self._controls.values()) - {self._theirs.unk_token_id}
        if sum(token in controls for token in ids) != text.tokens:
            raise Reject("bad_shape", "contains control tokens that this tokenizer cannot treat as text")
        return ids

    def prepare_guard(self) -> None:
        """Prepares what `guarded` needs, so that no row has to pay for it: one second for 128,000 tokens."""
        _ = self._renamed

    @cached_property
    def _renamed(self) -> Any:
        """The same tokenizer with marks around the names of its control tokens, so that unmarked names are plain text.
        Everything else, including white space around them, works as before. None if it cannot be made."""
        backend = getattr(self._theirs, "backend_tokenizer", None)
        if backend is None:
            return None
        made = json.loads(backend.to_str())
        names = {token: f"{_MARK}{token}{_MARK}" for token in self._controls}
        for token in made["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = made["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        made |= {"post_processor": None, "truncation": None, "padding": None}
        renamed = type(backend).from_str(json.dumps(made))
        same = all(renamed.token_to_id(names[token]) == number for token, number in self._controls.items())
        return renamed if same else None

    @cached_property
    def _folds(self) -> Any:
        """The normalizer, if it may turn other characters into those of control tokens before they are looked for."""
        backend = getattr(self._theirs, "backend_tokenizer", None)
        return backend.normalizer if backend and self._any_is_folded else None

    def exceeds(self, text: str, tokens: int) -> bool:
        """Whether a text is certain to have more than `tokens` tokens. If False, it may or may not."""
        return self._longest is not None and token_bound.exceeds(text, tokens, self._longest, self._least)

    def _least(self, text: str) -> int:
        letters = "".join(text.split())  # some tokens swallow any number of blanks around them
        return len(self._normalizer.normalize_str(letters) if self._normalizer else letters)

    def _longest_token(self) -> int | None:
        """The length of the longest token, if every non-blank character becomes part of a token, as in byte-level BPE.
        None for other tokenizers, which may have one token for any number of unknown characters."""
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

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids, without special tokens unless they are to be shown."""
        text: str = self._theirs.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text


def _patience(folder: Path) -> int:
    """CPU seconds in which a tokenizer must load. One of 128,000 tokens (11 MB) took 2.3."""
    return 5 + sum(path.stat().st_size for path in model_files.matching(folder, hub.FILES)) // (4 << 20)


def _clock(day: str) -> Any:
    """`strftime_now`, by which templates ask for the date. If it is undefined, most of them use a date of their own."""
    from jinja2 import Undefined

    return datetime.fromisoformat(day).strftime if day else Undefined(name="strftime_now")


def load_theirs(folder: Path) -> Any:
    """The tokenizer of transformers. Raises whatever its many tokenizers raise."""
    from transformers import AutoTokenizer  # 2 s, which the models of the series need not pay

    # If trust_remote_code were not given, transformers would ask on stdin whether to run the folder's Python.
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


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
    """generation_config.json; empty if there is none. Raises JobError."""
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
    """The sampling parameters in generation_config.json, by vLLM's names."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    found = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    return {"top_p": 1.0} | found
