"""Sampling parameters of a job and of a row, and the seed of every item."""

import hashlib
import math
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .errors import Reject

MAX_SEED = 2**53 - 1  # whole numbers up to here survive JSON readers and pandas' float columns

Seed = Annotated[int, Meta(ge=0, le=MAX_SEED)]


Text = Annotated[str, Meta(min_length=1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


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
    stop: Annotated[list[Text], Meta(description="texts that end a response; they do not stand in it")] = []
    stop_token_ids: Annotated[list[int], Meta(description="more token ids that end a response")] = []
    include_stop_str_in_output: Annotated[bool, Meta(description="leave the text of `stop` in the response")] = False
    allowed_token_ids: Annotated[list[int], Meta(description="no other tokens than these; none means all")] = []
    logit_bias: Annotated[dict[int, Bias], Meta(description="token id -> what is added to its logit (JSON)")] = {}
    logprobs: Annotated[int, Meta(ge=0, le=20, description="log probabilities of so many tokens per step")] | None = (
        None
    )

    def __post_init__(self) -> None:
        for name in ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is not a finite number")
        # vLLM quietly raises such temperatures to 0.01 (sampling_params.py); a job says what it ran with.
        if 0 < self.temperature < 0.01:
            raise ValueError(f"temperature {self.temperature}: use 0 (greedy) or at least 0.01")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")

    def check_ids(self, vocab_size: int) -> None:
        """Raises ValueError if one of the token ids is none of the model's."""
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            if unknown := [token for token in getattr(self, name) if not 0 <= token < vocab_size]:
                raise ValueError(f"{name}: {unknown[0]} is not one of the model's {vocab_size} ids")


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
    if "logprobs" in values and job.logprobs is None:
        raise Reject("bad_sampling", "logprobs: the column is there only if the job's own [sampling] asks for them")
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    seed = values.pop("seed", seed)
    try:
        own = None if seed is None else msgspec.convert(seed, Seed)
    except msgspec.ValidationError as error:
        raise Reject("bad_sampling", f"seed {seed!r}: {error}") from None
    try:
        return msgspec.convert(base | values, Sampling, str_keys=True), own
    except msgspec.ValidationError as error:
        raise Reject("bad_sampling", str(error)) from None


def _of_openai(body: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request to OpenAI's chat API; what does not shape the response is passed over."""
    values = {name: value for name, value in body.items() if name not in _OPENAI_OTHERS}
    if "max_completion_tokens" in values:
        values["max_tokens"] = values.pop("max_completion_tokens")
    most = values.pop("top_logprobs", None) or 0
    if "logprobs" in values:
        values["logprobs"] = most if values["logprobs"] else None
    return values


_OPENAI_OTHERS = frozenset("messages metadata model service_tier store stream stream_options user".split())
