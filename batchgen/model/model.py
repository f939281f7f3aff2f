"""A model: its config, tokenizer and weights, checked before an engine is started."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..errors import JobError, shown, warn
from . import adapters as lora
from . import hf_tokenizer, hub, model_files, series
from . import vision as sight
from .adapters import Adapter
from .hf_tokenizer import HfTokenizer
from .series import Family
from .tokenizer import Tokenizer, TokenizerError
from .vision import Vision

SERIES_FILES = ("config.json", "spiece.model", "tokenizer_config.json")

_QUANTIZATIONS = ("quantization_config", "compression_config")  # keys of config.json

TRAINED_CONTEXT = 2048  # tokens, for all models of the series; a longer context is stretched by RoPE scaling


_Number = Annotated[int, Meta(ge=1, le=1 << 16)]
_NumberOrNone = Annotated[int, Meta(ge=0, le=1 << 16)] | None


class _Scaling(msgspec.Struct):
    factor: Annotated[float, Meta(ge=1, le=1 << 16)]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _Dimensions(msgspec.Struct):
    """What batchgen reads from config.json. The limits are far above any model's, and keep calculations in range."""

    vocab_size: Annotated[int, Meta(ge=1, le=1 << 24)]
    max_position_embeddings: Annotated[int, Meta(ge=1, le=1 << 27)]
    num_hidden_layers: _Number
    hidden_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    num_attention_heads: _Number
    num_key_value_heads: _NumberOrNone = None
    head_dim: _NumberOrNone = None
    rope_scaling: dict[str, Any] | None = None

    @property
    def kv_width(self) -> int:
        """Numbers per token in the KV cache, over all layers."""
        kv_heads = self.num_key_value_heads or self.num_attention_heads
        width = self.head_dim or max(1, self.hidden_size // self.num_attention_heads)
        return 2 * self.num_hidden_layers * kv_heads * width


@dataclass(frozen=True)
class Model:
    """A checked model.

    Attributes:
        folder, name, revision: see hub.Found.
        model_type: from config.json.
        vocab_size: of the weights, which may have more ids than the tokenizer.
        quantization: of the weights, in words; empty if they are not quantized.
        context: maximum number of tokens of prompt and response together.
        kv_width: numbers per token in the KV cache.
        width: of an embedding.
        tokenizer: ours for the series, transformers' for other models.
        generation_config: generation_config.json; empty if there is none.
        adapters: those of the job, by number.
        digests: file name -> MD5, of the files that are used, those of adapters among them. (Hubs and model cards list
            MD5.)
        since_0_3: names of the files in `digests` that versions before 0.3 did not digest.
        weights: file name -> MD5, of all weight files, including those that vLLM ignores.
        sha256: file name -> SHA-256, of the same files and of the weights of adapters.
        vision: what a MiniGPT-4 model sees by.
        takes_images: whether vLLM itself gives images to the model.
    """

    folder: Path
    name: str
    revision: str | None
    model_type: str
    vocab_size: int
    quantization: str
    context: int
    kv_width: int
    width: int
    tokenizer: Tokenizer | HfTokenizer
    generation_config: dict[str, Any]
    adapters: list[Adapter]
    digests: dict[str, str]
    since_0_3: frozenset[str]
    weights: dict[str, str]
    sha256: dict[str, str]
    vision: Vision | None = None
    takes_images: bool = False

    @property
    def family(self) -> Family:
        """The model's family in the series, as far as its vocabulary, context and tokenizer tell."""
        if isinstance(self.tokenizer, HfTokenizer):
            return series.CHAT if self.tokenizer.has_template else series.OTHER_RAW
        kept = self.tokenizer.decode(self.tokenizer.encode("a\nb")) == "a\nb"
        return series.family(self.vocab_size, self.context > TRAINED_CONTEXT, kept)

    @property
    def prompt_format(self) -> str:
        """The prompt format that the model needs: speaker, or speaker-nl if the tokenizer drops newlines, as that of
        the japanese-3.6b models does; raw for the 8k model, which has no instruction version; chat-template for models
        outside the series that have one."""
        return self.family.format

    def sampling_defaults(self, format: str) -> dict[str, Any]:
        """What the card sets for prompts of this format; for models outside the series, generation_config.json."""
        if isinstance(self.tokenizer, HfTokenizer):
            return hf_tokenizer.defaults(self.generation_config)
        return self.family.defaults(format)

    @property
    def withdrawn(self) -> bool:
        """Whether the folder has the withdrawn weights of 2023-07-31, alone or next to safetensors."""
        return series.WITHDRAWN_MD5 in self.weights.values()


def load_model(
    path: str,
    revision: str = "",
    format: str = "auto",
    adapters: dict[str, str] | None = None,
    vision: str = "",
    images: bool = False,
) -> Model:
    """Finds, reads and checks a model and its adapters. Weights are digested, not loaded.

    Args:
        path: its folder, or its name on the hub.
        revision: branch, tag or commit on the hub.
        format: prompt format; chat-template requires the tokenizer of transformers.
        adapters: folders by name.
        vision: folder of BLIP-2's weights, or their name on the hub, for a MiniGPT-4 model.
        images: whether the model is to be given some, so that the files by which vLLM prepares them count.

    Raises:
        JobError
    """
    found = hub.find(path, revision)
    seen_by = sight.find(found, vision)
    folder, name, commit = sight.language_model(found).folder, found.name, found.revision
    of_images = hub.PROCESSOR_FILES if images else ()
    texts = model_files.matching(folder, (*hub.FILES, *of_images))
    model_files.check(texts)
    config = _config(folder)
    generation_config = hf_tokenizer.read_generation_config(folder)
    dimensions = _dimensions(config, folder / "config.json")
    tokenizer = _tokenizer(folder, generation_config, dimensions.vocab_size, format)
    safetensors, bins = (model_files.matching(folder, (ending,)) for ending in ("*.safetensors", "*.bin"))
    used = safetensors or bins  # vLLM's order
    if not used:
        raise JobError(f"{folder}: no weights (model.safetensors or pytorch_model.bin)")
    known, read = (
        (SERIES_FILES, hub.ENGINE_FILES) if isinstance(tokenizer, Tokenizer) else (hub.FILES_OF_0_2, hub.FILES)
    )
    texts = model_files.matching(folder, (*known, *read, *of_images))
    _check_index(folder / "model.safetensors.index.json", safetensors)
    digests = model_files.digests(folder, [*texts, *safetensors, *bins])
    loaded = lora.load(adapters or {})
    lora.check_fit(loaded, safetensors)
    of_adapters = lora.digests(loaded)
    of_vision = (seen_by.md5, seen_by.sha256) if seen_by else ({}, {})
    return Model(
        folder=folder,
        name=name,
        revision=commit,
        model_type=shown(str(config.get("model_type")))[:100],
        vocab_size=dimensions.vocab_size,
        quantization=_quantization(config),
        context=_context(dimensions, folder),
        kv_width=dimensions.kv_width,
        width=dimensions.hidden_size,
        tokenizer=tokenizer,
        generation_config=generation_config,
        adapters=loaded,
        digests={file: digests.md5[file] for file in (str(path.relative_to(folder)) for path in [*texts, *used])}
        | of_adapters.md5
        | of_vision[0],
        since_0_3=frozenset(str(path.relative_to(folder)) for path in texts) - {*known},
        weights={path.name: digests.md5[path.name] for path in [*safetensors, *bins]},
        sha256={path.name: digests.sha256[path.name] for path in [*safetensors, *bins]}
        | of_adapters.sha256
        | of_vision[1],
        vision=seen_by,
        takes_images=sight.is_seen_by_vllm(config),
    )


def _check_index(path: Path, safetensors: list[Path]) -> None:
    """Raises JobError if the index names a file of weights that is missing."""
    if not safetensors or not path.exists():
        return
    try:
        named = msgspec.convert(model_files.read_table(path), _Index).weight_map.values()
    except msgspec.ValidationError as error:
        raise JobError(f"{path}: {model_files.readable(error)}") from None
    if missing := sorted({*named} - {file.name for file in safetensors}):
        raise JobError(f"{path}: names {shown(missing[0])[:100]}, which is missing; download the model again")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return model_files.read_table(path)
    except FileNotFoundError:
        raise JobError(f"{path}: no such file; is {folder} a model's folder?") from None


def _quantization(config: dict[str, Any]) -> str:
    """As vLLM reads it from config.json: its name for the method, and what else is known of it."""
    parts = (config, config.get("text_config"))
    tables = [part[key] for part in parts if isinstance(part, dict) for key in _QUANTIZATIONS if part.get(key)]
    table = next((table for table in tables if isinstance(table, dict)), None)
    if table is None:
        return ""
    method = table.get("quant_method", "compressed-tensors")
    bits = f"{table['bits']} bits" if "bits" in table else ""
    more = [str(part) for part in (bits, table.get("format"), table.get("activation_scheme")) if part]
    return shown(", ".join([str(method), *more]))[:100]


def _dimensions(config: dict[str, Any], path: Path) -> _Dimensions:
    # A multimodal model has its language model's numbers in a table of their own.
    part = "text_config" if "text_config" in config else ""
    try:
        return msgspec.convert(config[part] if part else config, _Dimensions)
    except msgspec.ValidationError as error:
        raise JobError(f"{path}: {model_files.readable(error, part)}") from None


def _tokenizer(
    folder: Path, generation_config: dict[str, Any], vocab_size: int, format: str
) -> Tokenizer | HfTokenizer:
    """Our own tokenizer for the series, for which transformers 5 gives wrong ids; transformers' for other models."""
    if format == "chat-template" or not _is_of_the_series(folder):
        tokenizer = HfTokenizer.load(folder, generation_config)
        if format == "chat-template" and not tokenizer.has_template:
            raise JobError(f"{folder}: its tokenizer has no chat template; choose another [prompt] format")
        if format not in ("auto", "raw", "chat-template"):
            raise JobError(f"{folder}: has no spiece.model, so [prompt] format is raw or chat-template, not {format}")
        _check_ends(tokenizer, folder, vocab_size)
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
    _check_ends(ours, folder, vocab_size)
    return ours


def _check_ends(tokenizer: Tokenizer | HfTokenizer, folder: Path, vocab_size: int) -> None:
    """Raises JobError for an end-of-text id that the model does not have: vLLM's sampler would read out of bounds."""
    if (last := max(tokenizer.eos_ids)) >= vocab_size:
        why = f"but the model has {vocab_size:,} ids (vocab_size in config.json)"
        raise JobError(f"{folder}: token {last} ends a text, {why}; the tokenizer belongs to another model")


def _is_of_the_series(folder: Path) -> bool:
    """Whether the tokenizer is that of the series, even if spiece.model is missing: then an error has to say so."""
    if (folder / "spiece.model").exists():
        return True
    path = folder / "tokenizer_config.json"
    return path.exists() and str(model_files.read_table(path).get("tokenizer_class")).startswith("T5Tokenizer")


def check_release(model: Model, allow_withdrawn: bool) -> None:
    """Raises JobError for the withdrawn weights, or only warns if they are allowed."""
    if not model.withdrawn:
        return
    what = f"{model.folder}: has the weights of 2023-07-31, withdrawn because of non-commercial training data"
    if not allow_withdrawn:
        raise JobError(f"{what}; download the release of 2023-08-02, or give --allow-withdrawn")
    warn(what)


def _context(dimensions: _Dimensions, folder: Path) -> int:
    """Context length in tokens. Under linear scaling some configs state it before scaling, others after."""
    scaling = dimensions.rope_scaling
    if dimensions.max_position_embeddings != TRAINED_CONTEXT or not scaling or scaling.get("type") != "linear":
        return dimensions.max_position_embeddings
    try:
        return int(TRAINED_CONTEXT * msgspec.convert(scaling, _Scaling).factor)
    except msgspec.ValidationError:
        what = f"rope_scaling has the factor {scaling.get('factor')!r:.60}, not a number from 1 to 65,536"
        raise JobError(f"{folder / 'config.json'}: {what}") from None
