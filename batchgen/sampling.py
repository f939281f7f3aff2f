"""Sampling parameters of a job and of a row, and the seed of every item."""

import hashlib
import math
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .errors import Reject

MAX_SEED = 2**53 - 1  # whole numbers up to here survive JSON readers and pandas' float columns

Seed = Annotated[int, Meta(ge=0, le=MAX_SEED)]


class Sampling(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """vLLM's SamplingParams names; the defaults are those of the bilingual SFT model's card."""

    temperature: Annotated[float, Meta(ge=0, description="0 is greedy; otherwise at least 0.01")] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1, description="keep the likeliest tokens up to this share")] = 0.85
    top_k: Annotated[int, Meta(ge=0, description="keep this many of the likeliest tokens; 0 keeps all")] = 0
    min_p: Annotated[float, Meta(ge=0, le=1, description="least probability, relative to the best")] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10, description="above 1 makes repeats rarer")] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2, description="once per token already there")] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2, description="per count of tokens so far")] = 0.0
    max_tokens: Annotated[int, Meta(ge=1, description="most tokens of one response")] = 512
    min_tokens: Annotated[int, Meta(ge=0, description="no end of response before this many tokens")] = 0
    ignore_eos: Annotated[bool, Meta(description="go on to max_tokens whatever comes")] = False
    stop_token_ids: Annotated[list[int], Meta(description="more token ids that end a response")] = []

    def __post_init__(self) -> None:
        for name in ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is not a finite number")
        # vLLM quietly raises such temperatures to 0.01 (sampling_params.py); a job says what it ran with.
        if 0 < self.temperature < 0.01:
            raise ValueError(f"temperature {self.temperature}: use 0 (greedy) or at least 0.01")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")


class JobSampling(Sampling, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The job's table: what a row may override, and what holds for the whole job."""

    n: Annotated[int, Meta(ge=1, le=1024, description="responses per conversation")] = 1
    seed: Annotated[Seed, Meta(description="seed of the job; every item's own seed derives from it")] = 0


_NAMES = Sampling.__struct_fields__


def item_seed(job_seed: int, id: str, sample: int) -> int:
    """The seed of one item, 0 to 2**53 - 1: it depends on nothing but these three values."""
    digest = hashlib.blake2b(f"{job_seed}\0{id}\0{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & MAX_SEED


def of_row(job: JobSampling, record: dict[str, Any]) -> tuple[Sampling, int | None]:
    """The sampling parameters of one row and, if it carries one, its seed. Raises Reject(bad_sampling)."""
    changes = record.get("sampling")
    if changes is None and isinstance(body := record.get("body"), dict):
        changes = _of_openai(body)
    seed = record.get("seed")
    base = {name: getattr(job, name) for name in _NAMES}
    if changes is None and seed is None:
        return Sampling(**base), None
    if changes is not None and not isinstance(changes, dict):
        raise Reject("bad_sampling", f"sampling is {type(changes).__name__}, not an object")
    # A Parquet struct has every field in every row: null there means "as the job says".
    values = {name: value for name, value in (changes or {}).items() if value is not None}
    seed = values.pop("seed", seed)
    try:
        own = None if seed is None else msgspec.convert(seed, Seed)
    except msgspec.ValidationError as error:
        raise Reject("bad_sampling", f"seed {seed!r}: {error}") from None
    try:
        return msgspec.convert(base | values, Sampling), own
    except msgspec.ValidationError as error:
        raise Reject("bad_sampling", str(error)) from None


def _of_openai(body: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request to OpenAI's chat API; what does not shape the response is passed over."""
    values = {name: value for name, value in body.items() if name not in _OPENAI_OTHERS}
    if "max_completion_tokens" in values:
        values["max_tokens"] = values.pop("max_completion_tokens")
    return values


_OPENAI_OTHERS = frozenset("messages metadata model service_tier store stream stream_options user".split())
