"""Finding a model's files: in a local folder, on the hub or in a bucket, from where they are downloaded to a cache."""

import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from ..errors import JobError, is_of_network
from ..host import bucket, events
from ..job.spec import is_hub_name
from . import bucket_models

# Names and patterns of files. These batchgen 0.2 recorded for models outside the series.
FILES_OF_0_2 = (
    *("config.json", "generation_config.json", "spiece.model", "tokenizer_config.json"),
    *("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt"),
)
# Files that vLLM reads besides config.json for any model: which files hold the weights, and how they are quantized.
ENGINE_FILES = (
    *("generation_config.json", "*.index.json"),
    *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),
)
# All that may affect what a model reads and writes, apart from the weights.
FILES = (
    *FILES_OF_0_2,
    *ENGINE_FILES,
    *("additional_chat_templates/*.jinja", "tokenizer.model.*", "tekken.json", "*.tiktoken", "vocab.bpe"),
    *("encoder.json", "bpe.codes", "sentencepiece.bpe.model", "spm.model", "source.spm", "target.spm"),
)
# Files that say how images are prepared for a model that vLLM gives them to.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
CHECKPOINT = "checkpoint.pth"  # of a MiniGPT-4 model, which may have nothing else
_PROXIES = ("all_proxy", "https_proxy", "http_proxy")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Found(NamedTuple):
    """A model's folder.

    Attributes:
        folder: where its files are.
        name: the folder's name, or the model's name on the hub.
        revision: commit hash on the hub; None for a local folder.
    """

    folder: Path
    name: str
    revision: str | None = None


class Wanted(NamedTuple):
    """Which files of a repository are downloaded.

    Attributes:
        patterns: of all its files' names, those of the ones to download.
        cached: patterns of what is looked for in the cache.
        is_whole: whether a folder in the cache, with these names in it, has what is needed.
    """

    patterns: Callable[[Collection[str]], list[str]]
    cached: list[str]
    is_whole: Callable[[Collection[str]], bool]


def is_complete(files: Collection[str]) -> bool:
    """Whether a folder or repository with these files has a whole language model."""
    return "config.json" in files and any(file.endswith((".safetensors", ".bin")) for file in files)


def _patterns_of_model(files: Collection[str]) -> list[str]:
    if CHECKPOINT in files and not is_complete(files):
        return [*FILES, CHECKPOINT]
    weights = "*.safetensors" if any(file.endswith(".safetensors") for file in files) else "*.bin"
    return [*FILES, *PROCESSOR_FILES, weights]


MODEL = Wanted(
    _patterns_of_model,
    [*FILES, "*.safetensors"],
    lambda names: CHECKPOINT in names or any(name.endswith((".safetensors", ".bin")) for name in names),
)


def find(path: str, revision: str = "", wanted: Wanted = MODEL, cache_first: bool = False) -> Found:
    """The folder of a model, which is downloaded if needed.

    Args:
        path: a folder, the URI of one in a bucket, or the name of a model on the hub (job.spec.model_path tells them
            apart).
        revision: a branch, tag or commit on the hub. A commit that is in the cache is used without asking the hub.
        wanted: the files that are needed.
        cache_first: the same for a branch or tag.

    Raises:
        JobError
    """
    if is_hub_name(path):
        return _on_hub(path, revision or "main", wanted, cache_first)
    if bucket.is_uri(path):
        return _in_bucket(path, revision)
    folder = Path(path)
    if not folder.is_dir():
        raise JobError(f"{path}: no such model folder; a model on the hub is named org/name")
    if revision:
        raise JobError(
            f"[model] revision: {path} is a folder; leave {revision} out, or give the model's name on the hub"
        )
    return Found(folder.resolve(), folder.resolve().name)


def _in_bucket(uri: str, revision: str) -> Found:
    if revision:
        raise JobError(f"[model] revision: {uri} is in a bucket; leave {revision} out")
    folder = bucket_models.folder_of(uri, [*FILES, *PROCESSOR_FILES, "*.safetensors", "*.bin", "*.pth"])
    return Found(folder, folder.name)


def _on_hub(name: str, revision: str, wanted: Wanted, cache_first: bool) -> Found:
    if (cache_first or _COMMIT.fullmatch(revision)) and (cached := _cached(name, revision, wanted)):
        return cached
    if os.path.expanduser("~") == "~" and not (os.environ.get("HF_HOME") or os.environ.get("HF_HUB_CACHE")):
        raise JobError(f"{name}: there is no home folder for the hub's cache; set HF_HOME to a folder")
    # Imported here because the imports take 0.3 s, and most models are local folders.
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise JobError(
            f"{name}: no such folder, and models on the hub need huggingface_hub ({error}); "
            "pip install huggingface_hub, or give a folder"
        ) from None
    except (ValueError, RuntimeError, OSError) as error:  # it reads the environment when imported
        raise JobError(f"{name}: cannot import huggingface_hub: {_reason(error)}; fix that, or give a folder") from None

    if not sys.stderr.isatty() or events.style().quiet:
        disable_progress_bars()
    try:
        files = [file.rfilename for file in hub.HfApi().model_info(name, revision=revision).siblings or []]
        folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=wanted.patterns(files)))
    except errors.RevisionNotFoundError:
        raise JobError(f"{name}: has no revision {revision}; give one of its branches, tags or commits") from None
    except errors.GatedRepoError:
        raise JobError(f"{name}: access is restricted; accept its terms on the hub, then `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise JobError(f"{name}: neither a folder nor a model on the hub (private ones need `hf auth login`)") from None
    except Exception as error:
        wrong_settings = isinstance(error, ImportError | ValueError | RuntimeError | OSError)  # proxies, certificates
        if not (wrong_settings or is_of_network(error)) or (isinstance(error, OSError) and error.filename):
            raise  # the disk's, or a bug
        offline = isinstance(error, errors.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({_reason(error)})"
        if cached := _cached(name, revision, wanted):
            said = f"{why}: using {name} from the cache, commit {cached.revision}"
            events.note(events.Level.info, "cached_model", said, model=name, revision=cached.revision)
            return cached
        raise JobError(
            f"{name}: not a folder; its revision {revision} is not in the hub's cache, and {why}; "
            "download it on a machine with a connection, or give a folder"
        ) from None
    return Found(folder, name, folder.name)  # a snapshot's folder is named after its commit


def _reason(error: Exception) -> str:
    """Why there is no connection, and which settings may be the cause. Proxy settings are named without their values,
    which may hold passwords."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        if (path := os.environ.get(name)) and not os.path.exists(path):
            return f"{name} is {path}, which does not exist"
    text = str(error).partition("\n")[0]
    proxies = [name for name in os.environ if name.lower() in _PROXIES and os.environ[name]]
    return f"{text}; the proxy is set by {', '.join(proxies)}" if proxies else text


def _cached(name: str, revision: str, wanted: Wanted) -> Found | None:
    """The model from the cache, if it is complete there."""
    import huggingface_hub as hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            hub.snapshot_download(name, revision=revision, allow_patterns=wanted.cached, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    return Found(folder, name, folder.name) if wanted.is_whole(os.listdir(folder)) else None
