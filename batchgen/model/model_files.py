"""The files of a model's folder, which are not trusted. Only regular files of bounded size are read, and JSON of
bounded depth that asks for no code and for no files elsewhere: so the engine loads exactly what was digested here."""

import hashlib
import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from ..errors import JobError, in_one_line, plain, shown
from ..host import safeopen

# Size limits in bytes. The largest known files: config 1 MB, index 15 MB (Kimi K2), tokenizer 33 MB (Gemma 3).
_CONFIG, _INDEX, _OTHER = 4 << 20, 32 << 20, 64 << 20
_PART = 1 << 20
_DEEPEST = 50  # nested brackets
_MOST = 500_000  # values; the index of Kimi K2 has 140,000, the tokenizer config of Gemma 3 45,000

# Keys of a config, at any depth, that make vLLM or transformers load something else.
_CODE, _ELSEWHERE, _OTHER_FILE = "Python code of its own", "weights of another model", "other files than those checked"
_REFUSED = {
    **dict.fromkeys(("auto_map", "custom_generate", "custom_pipelines"), _CODE),
    **dict.fromkeys(("speculators_config", "text_model_id", "audio_model_id"), _ELSEWHERE),
    **dict.fromkeys(("configuration_files", "fast_tokenizer_files", "init_inputs", "gguf_file"), _OTHER_FILE),
}
# A tokenizer config may use these keys for files in its own folder, named without a path.
_PARTS = ("vocab_file", "merges_file", "tokenizer_file", "spm_file")


class _Tensor(msgspec.Struct):
    """Of a safetensors file's head, in which `__metadata__` has no shape."""

    shape: list[int] | None = None


def read(path: Path, most: int = _OTHER) -> bytes:
    """The content of a file. Raises FileNotFoundError, or JobError if it is not regular or is larger than `most`."""
    try:
        with open(_open_regular(path), "rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > most:
        raise JobError(f"{path}: is larger than {most >> 20} MiB, which no model needs")
    return content


def _open_regular(path: Path) -> int:
    """A descriptor of a regular file; opening a FIFO does not block. Raises JobError if it is not one.

    Unlike safeopen's, it follows links: the hub's cache consists of them.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise JobError(f"{path}: is not a regular file")
    return file


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises FileNotFoundError or JobError."""
    content = read(path, _INDEX if path.name.endswith(".index.json") else _CONFIG)
    try:
        table = msgspec.json.decode(content)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path}: cannot be read as JSON: {in_one_line(error)}") from None
    if not isinstance(table, dict):
        raise JobError(f"{path}: is not a JSON object")
    for count, (_, _, depth) in enumerate(_values(table)):
        if depth > _DEEPEST:
            raise JobError(f"{path}: has more than {_DEEPEST} nested brackets")
        if count > _MOST:
            raise JobError(f"{path}: has more than {_MOST:,} values, which no model needs")
    return table


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file, by name; only its head is read. Raises JobError."""
    try:
        with open(_open_regular(path), "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = msgspec.json.decode(file.read(min(size, _INDEX)), type=dict[str, _Tensor])
    except (OSError, msgspec.DecodeError) as error:
        raise JobError(f"{path}: cannot be read as safetensors: {in_one_line(error)}") from None
    return {name: tensor.shape for name, tensor in head.items() if tensor.shape is not None}


def _values(table: Any) -> Iterator[tuple[str, Any, int]]:
    """(key, value, depth) of everything in a table."""
    left: list[tuple[Any, int]] = [(table, 1)]
    while left:
        part, depth = left.pop()
        for key, value in part.items() if isinstance(part, dict) else (("", value) for value in part):
            yield key, value, depth
            if isinstance(value, dict | list):
                left.append((value, depth + 1))


def check(texts: list[Path]) -> None:
    """Raises JobError if one of a model's files (other than weights) cannot be read or is not acceptable."""
    for path in texts:
        if path.suffix != ".json" or path.name in ("tokenizer.json", "vocab.json", "tekken.json", "encoder.json"):
            read(path)
        else:
            refuse_redirection(path, read_table(path))


def refuse_redirection(path: Path, table: dict[str, Any]) -> None:
    """Raises JobError if a config asks for code, or for files that are not those of its folder."""
    for key, value, _ in _values(table):
        if key in _REFUSED and value:
            raise JobError(f"{path}: {key} asks for {_REFUSED[key]}, which batchgen never loads")
        if key in _PARTS and isinstance(value, str) and "/" in value:
            raise JobError(f"{path}: {key} asks for {_OTHER_FILE}; remove it: {shown(value)[:100]}")


def readable(error: msgspec.ValidationError, part: str = "") -> str:
    """msgspec's "Expected `int`, got `str` - at `$.head_dim`", with the key in front."""
    message, _, path = str(error).partition(" - at `$")
    key = part + path.rstrip("`") if part else path.strip(".`")
    return f"{key}: {plain(message)}" if key else plain(message)


def matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of a folder that match, in the order of the patterns. Raises JobError for one that is not a file."""
    names = os.listdir(folder)
    names += [f"{name}/{inner}" for name in names if name in _parents(patterns) for inner in _listed(folder / name)]
    found = dict.fromkeys(name for pattern in patterns for name in sorted(names) if fnmatch(name, pattern))
    for name in found:
        if not (folder / name).is_file():
            raise JobError(f"{folder / name}: is not a regular file, or a broken link; download the model again")
    return [folder / name for name in found]


def _parents(patterns: tuple[str, ...]) -> set[str]:
    return {pattern.partition("/")[0] for pattern in patterns if "/" in pattern}


def _listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


# --- digests


class Digests(NamedTuple):
    """Digests by file name. Model cards and older records have MD5, for which two files can be made to collide."""

    md5: dict[str, str]
    sha256: dict[str, str]


def digests(folder: Path, files: list[Path]) -> Digests:
    """The digests of these files. They are cached, as reading 8 GB of weights takes 20 s. The key is everything that
    the system says about a file, including ctime, which its owner cannot set."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache_file = Path(caches) / "batchgen" / "digests.json"
    try:
        cache = msgspec.json.decode(cache_file.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        cache = {}
    known = len(cache)
    found = Digests({}, {})
    for path in files:
        with open(_open_regular(path), "rb") as stream:
            key = identity(path, os.fstat(stream.fileno()))
            if not {key, f"{key} sha256"} <= cache.keys():
                md5, sha256 = _digested(stream)
                cache = {key: md5, f"{key} sha256": sha256} | cache
        name = str(path.relative_to(folder))
        found.md5[name], found.sha256[name] = cache[key], cache[f"{key} sha256"]
    if len(cache) > known and os.path.isabs(caches):  # "~" is not expanded for a user without a home folder
        _remember(cache_file, cache)
    return found


def _digested(stream: BinaryIO) -> tuple[str, str]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    while part := stream.read(_PART):
        md5.update(part)
        sha256.update(part)
    return md5.hexdigest(), sha256.hexdigest()


def identity(path: Path, facts: os.stat_result) -> str:
    """What tells this file, in this state, from any other."""
    times = f"{facts.st_mtime_ns} {facts.st_ctime_ns}"
    return f"{path.resolve()} {facts.st_size} {times} {facts.st_dev} {facts.st_ino}"


def _remember(cache_file: Path, cache: dict[str, str]) -> None:
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        safeopen.replace(cache_file, msgspec.json.encode(cache))
    except OSError:
        pass  # with a read-only home the next start takes longer, nothing else
