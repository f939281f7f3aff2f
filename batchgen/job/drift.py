"""What decides a job's results, the fingerprint of it, and what differs between two jobs."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from ..host import credentials
from .sampling import Sampling
from .spec import TABLES, JobSpec

# Tables that older versions do not have: with defaults they leave the fingerprint as is.
LATER = frozenset({"check", "limits", "translate", "score", "metrics", "sweep"})

# Keys that change how fast, where or how long a job runs, but not its results: a job may be resumed with other values.
# Every other key of these tables is a result.
MEANS = {
    "input": frozenset({"path", "incremental", "keep", "follow_links", "skip", "limit", "image_folder"}),
    "prompt": frozenset(),
    "sampling": frozenset(),
    "output": frozenset(
        "path max_rejects abort_if_rejected workers drain stall max_restarts stale journal_every stop_at requeue "
        "shared".split()
    ),
    "check": frozenset(),
    "score": frozenset(),
    "metrics": frozenset("reference use scorer best language resamples".split()),  # shards hold none of it
    "sweep": frozenset({"samples", "model"}),  # [sampling] n of the sweep, and digests, are results
    "translate": frozenset({"glossary", "memory"}),  # what they hold is a result
    "limits": frozenset({"check_seconds", "check_mb"}),  # a slower machine may need more
    "model": frozenset(
        {"path", "revision", "allow_withdrawn", "adapter", "vision"}
    ),  # the digests of its files are results
}
# The same for vLLM's EngineArgs. Tests say why for each name. Some exist in older or newer versions of vLLM only.
ENGINE_MEANS = frozenset(
    """
    async_scheduling block_size compilation_config cpu_offload_gb disable_custom_all_reduce
    distributed_executor_backend download_dir enable_chunked_prefill enable_prefix_caching enforce_eager
    gpu_memory_utilization kv_cache_memory_bytes load_format max_cpu_loras max_lora_rank max_loras
    max_num_batched_tokens max_num_partial_prefills max_num_seqs max_parallel_loading_workers num_gpu_blocks_override
    pipeline_parallel_size scheduling_policy stream_interval swap_space tensor_parallel_size
    """.split()
)
DUMMY = "dummy"  # the load_format with random weights: it does change results


def results_of(spec: JobSpec) -> dict[str, dict[str, Any]]:
    """The keys of a spec that decide results, by table."""
    tables = msgspec.to_builtins(spec, str_keys=True)  # as the record has them: those of logit_bias are numbers
    chosen = {
        table: {key: value for key, value in tables[table].items() if key not in means}
        for table, means in MEANS.items()
    }
    return chosen | {"engine": {name: value for name, value in spec.engine.items() if not is_means(name, value)}}


def is_means(name: str, value: Any) -> bool:
    """Whether an engine argument does not change results."""
    return name in ENGINE_MEANS and not (name == "load_format" and value == DUMMY)


def without_defaults(results: dict[str, Any]) -> dict[str, Any]:
    """The settings of `results` that differ from their defaults.

    So a key that a later version adds changes no fingerprint where it is not used. It follows that a default must never
    change, and that a key may only be removed if folders have its default.
    """
    chosen = {
        table: {key: value for key, value in values.items() if not _is_default(table, key, value)}
        for table, values in _without_secrets(results).items()
    }
    return {table: values for table, values in chosen.items() if values or table not in LATER}


def with_defaults(results: dict[str, Any]) -> dict[str, Any]:
    """The opposite, for people: settings that are not stated get their default."""
    stated = {table: {} for table in LATER} | _without_secrets(results)
    return {table: {**_DEFAULTS[table], **values} if table in _DEFAULTS else values for table, values in stated.items()}


def _without_secrets(results: dict[str, Any]) -> dict[str, Any]:
    """Folders of the first versions may have tokens in [engine], which do not change results."""
    return results | {"engine": credentials.without_secrets(results.get("engine", {}))}


def _is_default(table: str, key: str, value: Any) -> bool:
    return key in _DEFAULTS.get(table, {}) and value == _DEFAULTS[table][key]


def _defaults(table: type[msgspec.Struct]) -> dict[str, Any]:
    """key -> default as a plain value, for the keys that have one."""
    fields = msgspec.structs.fields(table)
    values = {each.encode_name: each.default for each in fields if each.default is not msgspec.NODEFAULT}
    made = {
        each.encode_name: each.default_factory() for each in fields if each.default_factory is not msgspec.NODEFAULT
    }
    return msgspec.to_builtins(values | made)


# In the form that results have: sampling is resolved (None means not set), and columns map to their types.
_DEFAULTS = {name: _defaults(TABLES[name]) for name in MEANS}
_DEFAULTS["sampling"] |= msgspec.to_builtins(Sampling())
_DEFAULTS["output"]["columns"] = {}


def fingerprint(results: dict[str, Any]) -> str:
    """A hash of everything that decides what a job's shards hold, in 32 hex digits."""
    encoded = msgspec.json.encode(results, order="deterministic")
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each field that differs: `field: old -> new`."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    fields = [*before, *(field for field in after if field not in before)]
    return [
        f"{field}: {_show(before, field)} -> {_show(after, field)}"
        for field in fields
        if _show(before, field) != _show(after, field)
    ]


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flatten(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for position, part in enumerate(value):
            yield from _flatten(part, f"{path}[{position}]")
    else:
        yield path, value


def _show(fields: dict[str, Any], field: str) -> str:
    return re.sub(r"\s+", " ", msgspec.json.encode(fields[field]).decode()) if field in fields else "(none)"
