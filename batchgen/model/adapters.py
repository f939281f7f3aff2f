"""LoRA adapters in PEFT's format: folders that are as little trusted as a model's."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from ..errors import JobError, shown
from ..host import bucket
from ..host.credentials import redacted
from . import bucket_models, model_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHTS = ("adapter_model.bin", "adapter_model.pt")  # pickles, which may hold code

HIGHEST_RANK = 512  # vLLM's (config/lora.py, 0.26 to 0.33)

# What PEFT has beside plain LoRA. Some versions of vLLM refuse it, others leave it out without a word.
_BEYOND_LORA = (
    *("use_dora", "lora_bias", "modules_to_save", "layer_replication", "alora_invocation_tokens"),
    *("use_bdlora", "use_qalora", "rank_pattern", "alpha_pattern", "trainable_token_indices"),
)
# Initial values that leave the base model as it is; the others change its weights when PEFT loads the adapter.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


class Adapter(NamedTuple):
    """A checked adapter.

    Attributes:
        name: by which rows ask for it.
        number: from 1, by the order of names: how vLLM knows it.
        folder: with its two files.
        rank: of its matrices.
    """

    name: str
    number: int
    folder: Path
    rank: int

    def in_model(self, file: str) -> str:
        """The name of one of its files among those of its model."""
        return f"adapters/{self.name}/{file}"


class _Config(msgspec.Struct):
    peft_type: Literal["LORA"]
    r: Annotated[int, Meta(ge=1, le=HIGHEST_RANK)]
    lora_alpha: float
    bias: Literal["none"] = "none"
    init_lora_weights: Any = True


def load(folders: dict[str, str]) -> list[Adapter]:
    """Checks the files of adapters. folders: by name. Raises JobError."""
    return [_loaded(name, number, _here(name, folders[name])) for number, name in enumerate(sorted(folders), start=1)]


def _here(name: str, folder: str) -> Path:
    """One in a bucket is downloaded, as a model is."""
    if not bucket.is_uri(folder):
        return Path(folder)
    try:
        return bucket_models.folder_of(folder, [CONFIG, WEIGHTS, *OLD_WEIGHTS], "adapter")
    except JobError as error:
        raise JobError(f"[model] adapter {name}: {error}") from None


def _loaded(name: str, number: int, folder: Path) -> Adapter:
    if not folder.is_dir():
        raise JobError(f"[model] adapter {name}: {shown(redacted(str(folder)))}: no such folder; download it first")
    if not (folder / WEIGHTS).is_file():
        old = next((file for file in OLD_WEIGHTS if (folder / file).exists()), "")
        has = f"; {old} may hold code: save it as safetensors" if old else ""
        raise JobError(f"[model] adapter {name}: {folder / WEIGHTS}: no such file{has}")
    path = folder / CONFIG
    try:
        table = model_files.read_table(path)
    except FileNotFoundError:
        raise JobError(f"[model] adapter {name}: {path}: no such file; is the folder an adapter's?") from None
    model_files.refuse_redirection(path, table)
    if beyond := next((key for key in _BEYOND_LORA if table.get(key)), ""):
        raise JobError(f"{path}: {beyond} goes beyond plain LoRA, and vLLM would leave it out; merge it into the model")
    try:
        config = msgspec.convert(table, _Config)
    except msgspec.ValidationError as error:
        raise JobError(f"{path}: {model_files.readable(error)}") from None
    if config.init_lora_weights not in _PLAIN_STARTS:
        start = shown(str(config.init_lora_weights))[:50]
        raise JobError(
            f"{path}: init_lora_weights {start} changes the base model; convert it to a plain LoRA with PEFT"
        )
    return Adapter(name, number, folder.resolve(), config.r)


def check_fit(adapters: list[Adapter], safetensors: list[Path]) -> None:
    """Raises JobError for an adapter of another model: what vLLM does not find in the model it leaves out without a
    word, and smaller matrices it takes for parts of larger ones. safetensors: the model's weights."""
    if not adapters or not safetensors:
        return
    shapes = {_tail(name): shape for path in safetensors for name, shape in model_files.tensor_shapes(path).items()}
    for adapter in adapters:
        path, found = adapter.folder / WEIGHTS, 0
        for name, shape in model_files.tensor_shapes(path).items():
            target, _, side = name.removesuffix(".weight").rpartition(".lora_")
            of_model = shapes.get(_tail(f"{target}.weight"))
            if side not in ("A", "B") or of_model is None or len(of_model) != 2 or len(shape) != 2:
                continue
            found += 1
            has, needs = (shape[1], of_model[1]) if side == "A" else (shape[0], of_model[0])
            if has != needs:
                what = f"{shown(target)[-100:]} is {needs} wide in the model and {has} in the adapter"
                raise JobError(f"[model] adapter {adapter.name}: {path}: {what}; it belongs to another model")
        if not found and not any(_is_quantized(name) for name in shapes):
            what = "changes nothing that the model has; it belongs to another model"
            raise JobError(f"[model] adapter {adapter.name}: {path}: {what}")


def _tail(name: str) -> str:
    """The end of a weight's name, which stays the same where its model is part of a larger one."""
    return ".".join(name.split(".")[-5:])


def _is_quantized(name: str) -> bool:
    """Whether a tensor stands for a matrix, which is not there as such."""
    return name.endswith((".qweight", ".weight_packed"))


def digests(adapters: list[Adapter]) -> model_files.Digests:
    """Of their files, named as in their model."""
    found = model_files.Digests({}, {})
    for adapter in adapters:
        of_files = model_files.digests(adapter.folder, [adapter.folder / CONFIG, adapter.folder / WEIGHTS])
        for file in (CONFIG, WEIGHTS):
            found.md5[adapter.in_model(file)] = of_files.md5[file]
        found.sha256[adapter.in_model(WEIGHTS)] = of_files.sha256[WEIGHTS]
    return found
