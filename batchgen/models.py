"""A model on disk: its config, tokenizer and weights, checked before an engine is started on them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .errors import JobError
from .tokenizer import Tokenizer, TokenizerError


@dataclass(frozen=True)
class Model:
    """vocab_size: of the weights, which may have more ids than the tokenizer; context: most tokens of prompt and
    response together; kv_width: numbers that the KV cache holds per token; digests: file
    name -> MD5, as hubs and model cards list them."""

    folder: Path
    name: str
    vocab_size: int
    context: int
    kv_width: int
    tokenizer: Tokenizer
    digests: dict[str, str]

    @property
    def prompt_format(self) -> str:
        """speaker, or speaker-nl where the tokenizer loses newlines, as that of the japanese-3.6b models does."""
        kept = self.tokenizer.decode(self.tokenizer.encode("a\nb")) == "a\nb"
        return "speaker" if kept else "speaker-nl"


def load(path: str) -> Model:
    """Reads and checks a model's folder; the weights are only digested. Raises JobError."""
    folder = Path(path)
    if not folder.is_dir():
        raise JobError(f"{path}: no such model folder")
    config = _config(folder / "config.json")
    try:
        tokenizer = Tokenizer.load(folder)
    except TokenizerError as error:
        raise JobError(str(error)) from None
    vocab_size, context, layers, hidden = (
        _whole_number(config, key, folder)
        for key in ("vocab_size", "max_position_embeddings", "num_hidden_layers", "hidden_size")
    )
    if tokenizer.vocab_size > vocab_size:
        raise JobError(
            f"{folder / 'spiece.model'}: has {tokenizer.vocab_size} pieces, but the model only {vocab_size} "
            f"(vocab_size in config.json); the tokenizer belongs to another model"
        )
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))  # the order in which vLLM looks
    if not weights:
        raise JobError(f"{folder}: no weights (model.safetensors or pytorch_model.bin)")
    files = [folder / "config.json", folder / "spiece.model", folder / "tokenizer_config.json", *weights]
    real = folder.resolve()
    return Model(real, real.name, vocab_size, context, 2 * layers * hidden, tokenizer, _digests(files))


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
    cache_file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchgen" / "digests.json"
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
    if len(cache) > known:
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
