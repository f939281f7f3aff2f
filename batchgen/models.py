"""A model on disk or on the hub: its config, tokenizer and weights, checked before an engine is started on them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from . import hf_tokenizer, hub, series
from .errors import JobError, warn
from .hf_tokenizer import HfTokenizer
from .series import Family
from .tokenizer import Tokenizer, TokenizerError

SERIES_TEXTS = ("config.json", "spiece.model", "tokenizer_config.json")

TRAINED_CONTEXT = 2048  # tokens, of all models of the series; a longer context is this one stretched


@dataclass(frozen=True)
class Model:
    """name, revision: see hub.Found; model_type: config.json's; vocab_size: of the weights, which may have more ids
    than the tokenizer; context: most tokens of prompt and response together; kv_width: numbers that the KV cache holds
    per token; digests: file name -> MD5, as hubs and model cards list them, of the files that are used; weights: the
    same of all weights, those too that vLLM passes over."""

    folder: Path
    name: str
    revision: str | None
    model_type: str
    vocab_size: int
    context: int
    kv_width: int
    tokenizer: Tokenizer | HfTokenizer
    generation_config: dict[str, Any]
    digests: dict[str, str]
    weights: dict[str, str]

    @property
    def family(self) -> Family:
        if isinstance(self.tokenizer, HfTokenizer):
            return series.CHAT if self.tokenizer.has_template else series.OTHER_RAW
        kept = self.tokenizer.decode(self.tokenizer.encode("a\nb")) == "a\nb"
        return series.family(self.vocab_size, self.context > TRAINED_CONTEXT, kept)

    @property
    def prompt_format(self) -> str:
        """speaker, or speaker-nl where the tokenizer loses newlines, as that of the japanese-3.6b models does; raw for
        the 8k model, of which there is only the base; chat-template for models of other kinds that have one."""
        return self.family.format

    def sampling_defaults(self, format: str) -> dict[str, Any]:
        """What the card sets for prompts of this format, or generation_config.json for models of other kinds."""
        if isinstance(self.tokenizer, HfTokenizer):
            return hf_tokenizer.defaults(self.generation_config)
        return self.family.defaults(format)

    @property
    def withdrawn(self) -> bool:
        """Whether these are the weights of 2023-07-31, or safetensors that lie beside them."""
        return series.WITHDRAWN_MD5 in self.weights.values()


def load(path: str, revision: str = "", format: str = "auto") -> Model:
    """Finds, reads and checks a model; the weights are only digested. Raises JobError.

    path: its folder, or its name on the hub; revision: of the latter, a branch, tag or commit; format: of the prompts,
    by which chat-template asks for the tokenizer of transformers.
    """
    folder, name, commit = hub.find(path, revision)
    hub.refuse_images(os.listdir(folder), name)
    config = _config(folder / "config.json")
    hf_tokenizer.refuse_code(folder)
    generation_config = hf_tokenizer.read_generation_config(folder)
    # A model of text and images has its language model's numbers in a part of its own.
    text_config = config.get("text_config", config)
    vocab_size = _whole_number(text_config, "vocab_size", folder)
    tokenizer = _tokenizer(folder, generation_config, vocab_size, format)
    asked_for = SERIES_TEXTS if isinstance(tokenizer, Tokenizer) else hub.TEXTS
    texts = [text for text in asked_for if (folder / text).exists()]
    safetensors, bins = sorted(folder.glob("*.safetensors")), sorted(folder.glob("*.bin"))
    used = safetensors or bins  # the order in which vLLM looks
    if not used:
        raise JobError(f"{folder}: no weights (model.safetensors or pytorch_model.bin)")
    digests = _digests([*(folder / file for file in texts), *safetensors, *bins])
    return Model(
        folder=folder,
        name=name,
        revision=commit,
        model_type=str(config.get("model_type")),
        vocab_size=vocab_size,
        context=_context(text_config, folder),
        kv_width=_kv_width(text_config, folder),
        tokenizer=tokenizer,
        generation_config=generation_config,
        digests={file: digests[file] for file in [*texts, *(path.name for path in used)]},
        weights={path.name: digests[path.name] for path in [*safetensors, *bins]},
    )


def _tokenizer(
    folder: Path, generation_config: dict[str, Any], vocab_size: int, format: str
) -> Tokenizer | HfTokenizer:
    """Ours for the series, whose ids transformers 5 gets wrong; transformers' own for all other models."""
    if format == "chat-template" or not _is_of_the_series(folder):
        tokenizer = HfTokenizer.load(folder, generation_config)
        if format == "chat-template" and not tokenizer.has_template:
            raise JobError(f"{folder}: its tokenizer has no chat template; choose another [prompt] format")
        if format not in ("auto", "raw", "chat-template"):
            raise JobError(f"{folder}: has no spiece.model, so [prompt] format is raw or chat-template, not {format}")
        return tokenizer
    try:
        ours = Tokenizer.load(folder)
    except TokenizerError as error:
        raise JobError(str(error)) from None
    if ours.vocab_size > vocab_size:
        raise JobError(
            f"{folder / 'spiece.model'}: has {ours.vocab_size} pieces, but the model only {vocab_size} "
            f"(vocab_size in config.json); the tokenizer belongs to another model"
        )
    return ours


def _is_of_the_series(folder: Path) -> bool:
    """By the tokenizer, of which spiece.model may be missing: that is to be said, not to be worked around."""
    if (folder / "spiece.model").exists():
        return True
    path = folder / "tokenizer_config.json"
    return path.exists() and str(_config(path).get("tokenizer_class")).startswith("T5Tokenizer")


def _kv_width(config: dict[str, Any], folder: Path) -> int:
    layers, hidden, heads = (
        _whole_number(config, key, folder) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    kv_heads = config.get("num_key_value_heads") or heads
    return 2 * layers * kv_heads * (config.get("head_dim") or hidden // heads)


def check_release(model: Model, allow_withdrawn: bool) -> None:
    """Raises JobError for the weights that their authors withdrew, or warns of them if they are allowed."""
    if not model.withdrawn:
        return
    what = f"{model.folder}: has the weights of 2023-07-31, withdrawn because they learned from non-commercial data"
    if not allow_withdrawn:
        raise JobError(f"{what}; download the release of 2023-08-02, or give --allow-withdrawn")
    warn(what)


def _context(config: dict[str, Any], folder: Path) -> int:
    """Tokens. Of a model that linear scaling stretches, some configs give the context before it, others after it."""
    positions = _whole_number(config, "max_position_embeddings", folder)
    scaling = config.get("rope_scaling")
    if scaling is not None and not isinstance(scaling, dict):
        raise JobError(f"{folder / 'config.json'}: rope_scaling is {scaling!r}, not an object")
    if positions != TRAINED_CONTEXT or not scaling or scaling.get("type") != "linear":
        return positions
    factor = scaling.get("factor")
    if not isinstance(factor, int | float) or factor < 1:
        raise JobError(f"{folder / 'config.json'}: rope_scaling has the factor {factor!r}, not a number from 1")
    return int(positions * factor)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise JobError(f"{path}: no such file; is {path.parent} a model's folder?") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise JobError(f"{path}: is not a JSON object")
    return config


def _whole_number(config: dict[str, Any], key: str, folder: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int):
        raise JobError(f"{folder / 'config.json'}: {key} is {value!r}, not a whole number")
    return value


def _digests(files: list[Path]) -> dict[str, str]:
    """MD5 by file name. Remembered by path, size and time of change: 8 GB of weights take 15 s to read again."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache_file = Path(caches) / "batchgen" / "digests.json"
    try:
        cache = msgspec.json.decode(cache_file.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        cache = {}
    known = len(cache)
    digests = {}
    for file in files:
        stat = file.stat()
        key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if key not in cache:
            with file.open("rb") as stream:
                cache[key] = hashlib.file_digest(stream, "md5").hexdigest()
        digests[file.name] = cache[key]
    if len(cache) > known and os.path.isabs(caches):  # "~" stays where a user has no home that the system knows
        _remember(cache_file, cache)
    return digests


def _remember(cache_file: Path, cache: dict[str, str]) -> None:
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache_file.with_name(f"{cache_file.name}.{os.getpid()}")
        temporary.write_bytes(msgspec.json.encode(cache))
        temporary.replace(cache_file)
    except OSError:
        pass  # a read-only home costs time at the next start, nothing else
