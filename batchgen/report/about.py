"""What made a job's results, as far as it may be published: no path of this machine, no service, no secret."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError
from ..input.plan import Shard
from ..output import shard
from ..output.counts import Counts, by_reason
from ..output.quarantine import set_aside_by
from ..output.record import JobRecord
from ..output.store import Store

# What of [engine] is published. Other arguments may name this machine's files and services.
_ENGINE = frozenset(
    """
    BATCHGEN_ENGINE attention_backend calculate_kv_scales dtype enforce_eager kv_cache_dtype load_format max_model_len
    quantization rope_parameters rope_scaling rope_theta seed
    """.split()
)
_OF_ONE_SHARD = {"shard", "first_row", "counts"}  # what its metadata say of that shard alone


class ModelFacts(msgspec.Struct):
    """What a shard says of the model that made it."""

    name: str
    revision: str | None
    digests: dict[str, str]


class Fact(NamedTuple):
    """is_code: whether the value is a name or a digest, to be shown letter by letter."""

    name: str
    value: str
    is_code: bool = False


def footer(out: Store, planned: Shard) -> pq.FileMetaData:
    """A finished shard's metadata. Raises JobError if it is damaged."""
    try:
        return shard.metadata(out, planned)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's own
        why = "is damaged: its footer cannot be read"
        raise JobError(f"{shard.where(out, planned)}: {why}; {set_aside_by(out)}") from None


def made_by(out: Store, shards: Iterable[Shard]) -> dict[str, list[str]]:
    """What finished shards say of what made them: each fact with its different values as text. Raises JobError."""
    facts: dict[str, list[str]] = {}
    for planned in shards:
        about = footer(out, planned)
        drawn = shard.sampler(about)
        note = "" if drawn.is_recorded else " (by its vLLM's version)"
        found = shard.facts(about) | {"runner": drawn.runner + note, "noise": drawn.noise + note}
        for name, value in found.items():
            if name not in _OF_ONE_SHARD and value not in (values := facts.setdefault(name, [])):
                values.append(value)
    try:
        if facts:
            msgspec.json.decode(facts["model"][0], type=ModelFacts)
            [msgspec.json.decode(versions, type=dict[str, str]) for versions in facts["versions"]]
            facts["dtype"], facts["device"]
    except (KeyError, msgspec.DecodeError) as error:
        raise JobError(f"{out}: its shards do not say what made them ({error}); run the job again elsewhere") from None
    return facts


def model_of(made: dict[str, list[str]]) -> ModelFacts:
    return msgspec.json.decode(made["model"][0], type=ModelFacts)


def facts(record: JobRecord, counts: Counts, made: dict[str, list[str]], missing: int) -> Iterator[Fact]:
    """made: see made_by; missing: shards that are not finished"""
    if made:
        model = model_of(made)
        yield Fact("model", model.name, True)
        if model.revision:
            yield Fact("revision", model.revision, True)
        for file, md5 in model.digests.items():
            yield Fact(f"MD5 of {file}", md5, True)
    yield Fact("prompt format", record.settings["prompt"]["format"])
    yield Fact("seed", str(record.settings["sampling"]["seed"]))
    if missing:
        shards = len(record.plan.shards)
        yield Fact("partial", f"{missing:,} of the job's {shards:,} shards were not finished, their rows are not here")
    if record.retry_of:
        only = " or ".join(record.retry_of["only"])
        yield Fact("retry", f"of the rows that ended with {only} in the job {record.retry_of['fingerprint']}")
    yield Fact("rows", f"{counts.rows:,}")
    number, what = counts.answers.split()
    yield Fact(what, number)
    yield Fact("rejected rows", f"{counts.rejected:,}{by_reason(counts.rejects)}")
    if counts.endings:
        yield Fact("finish reasons", counts.endings)
    yield Fact("tokens", f"{counts.prompt_tokens:,} of prompts, {counts.response_tokens:,} of responses")
    if made:
        for name, what in (("dtype", "dtype"), ("device", "device"), ("model runner", "runner"), ("noise", "noise")):
            yield Fact(name, ", ".join(made[what]))
        for versions in made["versions"]:
            numbers = msgspec.json.decode(versions)
            yield Fact("versions", ", ".join(f"{name} {number}" for name, number in numbers.items()))
    yield Fact("fingerprint", record.fingerprint, True)


def parameters(record: JobRecord) -> dict[str, Any]:
    """The tables of the job file that shaped the results."""
    settings = record.settings
    engine = {name: value if name in _ENGINE else "(not shown)" for name, value in settings["engine"].items()}
    parts = {name: settings[name] for name in ("prompt", "sampling")} | {"engine": engine}
    if settings["sweep"]["method"]:
        parts["sweep"] = {name: value for name, value in settings["sweep"].items() if value}
    if settings["translate"]["fields"]:
        parts["translate"] = {name: value for name, value in settings["translate"].items() if value}
    if parser := settings.get("model", {}).get("reasoning_parser"):
        parts["model"] = {"reasoning_parser": parser}
    return parts
