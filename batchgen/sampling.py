"""Sampling parameters of a job and of a row, and the seed of every item."""

import difflib
import hashlib
import math
import re
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .bodies import Request, parameters
from .conversation import is_blank, kind_of
from .errors import Reject, plain
from .turns import as_turn

MAX_SEED = 2**53 - 1  # whole numbers up to here survive JSON readers and pandas' float columns

Seed = Annotated[int, Meta(ge=0, le=MAX_SEED, description="seed of the job; every item's own seed derives from it")]
Number = Annotated[int, Meta(ge=1, le=1024, description="responses per conversation")]
Text = Annotated[str, Meta(min_length=1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]

INT32 = 2**31 - 1  # as the columns of the shards have them

Temperature = Annotated[float, Meta(ge=0, le=2, description="0 is greedy; otherwise from 0.01 to 2")]
TopP = Annotated[float, Meta(gt=0, le=1, description="keep the likeliest tokens up to this share")]
TopK = Annotated[int, Meta(ge=-1, le=INT32, description="keep this many of the likeliest tokens; 0 or -1 keeps all")]
MinP = Annotated[float, Meta(ge=0, le=1, description="least probability, relative to the best")]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10, description="above 1 makes repeats rarer")]
MaxTokens = Annotated[int, Meta(ge=1, le=INT32, description="most tokens of one response")]


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a response must look like: one of these, by the names of vLLM's StructuredOutputsParams."""

    json: dict[str, Any] | str | None = None
    json_object: bool | None = None
    regex: Text | None = None
    choice: Annotated[list[Text], Meta(min_length=1)] | None = None
    grammar: Text | None = None

    def __post_init__(self) -> None:
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of {', '.join(self.__struct_fields__)}; has {', '.join(given) or 'none'}")
        if self.json_object is False:
            raise ValueError("json_object is true or left out")


class Sampling(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """vLLM's SamplingParams names; the defaults are those of the bilingual SFT model's card.

    The ranges are vLLM's own, and so are the sizes of lists: on a GPU its runner has room for 1,024 biases and allowed
    tokens, 128 token ids that end a response (the model's own among them) and 128 bad words.
    """

    temperature: Temperature = 1.0
    top_p: TopP = 0.85
    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2, description="once per token already there")] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2, description="per count of tokens so far")] = 0.0
    max_tokens: MaxTokens = 512
    min_tokens: Annotated[
        int, Meta(ge=0, le=INT32, description="no end before this many tokens, but that of structured_outputs")
    ] = 0
    ignore_eos: Annotated[bool, Meta(description="go on to max_tokens whatever comes")] = False
    stop: Annotated[list[Text], Meta(description="texts that end a response; they do not stand in it")] = []
    stop_token_ids: Annotated[list[int], Meta(max_length=120, description="more token ids that end a response")] = []
    include_stop_str_in_output: Annotated[bool, Meta(description="leave the text of `stop` in the response")] = False
    bad_words: Annotated[
        list[Text], Meta(max_length=128, description="texts that must not come, as the tokenizer splits them")
    ] = []
    allowed_token_ids: Annotated[
        list[int], Meta(max_length=1024, description="no other tokens than these; none means all")
    ] = []
    logit_bias: Annotated[
        dict[int, Bias], Meta(max_length=1024, description="token id -> what is added to its logit (JSON)")
    ] = {}
    structured_outputs: (
        Annotated[StructuredOutputs, Meta(description="json (a schema), json_object, regex, choice or grammar")] | None
    ) = None
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
        if self.top_k == -1:  # vLLM's older word for the same
            msgspec.structs.force_setattr(self, "top_k", 0)
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        if self.structured_outputs and self.ignore_eos:
            raise ValueError("structured_outputs with ignore_eos: it would go on freely behind its end; leave one out")

    def check_ids(self, vocab_size: int) -> None:
        """Raises ValueError if one of the token ids is none of the model's."""
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            if unknown := [token for token in getattr(self, name) if not 0 <= token < vocab_size]:
                raise ValueError(f"{name}: {unknown[0]} is not one of the model's {vocab_size} ids")


_NAMES = Sampling.__struct_fields__


class JobSampling(Sampling, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The job's table: what a row may override, and the seed. None means as the model's card says."""

    temperature: Temperature | None = None  # type: ignore[assignment]
    top_p: TopP | None = None  # type: ignore[assignment]
    top_k: TopK | None = None  # type: ignore[assignment]
    min_p: MinP | None = None  # type: ignore[assignment]
    repetition_penalty: RepetitionPenalty | None = None  # type: ignore[assignment]
    max_tokens: MaxTokens | None = None  # type: ignore[assignment]
    n: Number = 1
    seed: Seed = 0

    def __post_init__(self) -> None:
        self.for_rows()
        if self.top_k == -1:
            msgspec.structs.force_setattr(self, "top_k", 0)

    def for_rows(self) -> Sampling:
        """What holds for a row that says nothing itself."""
        values = {name: getattr(self, name) for name in _NAMES}
        return Sampling(**{name: value for name, value in values.items() if value is not None})

    def with_defaults(self, card: dict[str, Any]) -> "JobSampling":
        """The same with a card's values where the job gives none."""
        stated = msgspec.structs.asdict(Sampling()) | card
        open_names = [name for name in _NAMES if getattr(self, name) is None]
        return msgspec.structs.replace(self, **{name: stated[name] for name in open_names})


def item_seed(job_seed: int, id: str, sample: int) -> int:
    """The seed of one item, 0 to 2**53 - 1: it depends on nothing but these three values."""
    digest = hashlib.blake2b(f"{job_seed}\0{id}\0{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & MAX_SEED


DEFAULT_SEED, DEFAULT_SAMPLING = "seed", "sampling"
_KNOWN = (*_NAMES, "n", "seed")
MOST_NAMES = 64  # of an object, that are looked at to tell whether it holds parameters
_WHOLE = ("top_k", "max_tokens", "min_tokens", "logprobs", "n", "seed")


def of_row(
    job: Sampling,
    n: int,
    record: dict[str, Any],
    request: Request | None = None,
    seed: str = DEFAULT_SEED,
    sampling: str = DEFAULT_SAMPLING,
) -> tuple[Sampling, int, int | None]:
    """The sampling parameters of one row, how many samples it gets, and its seed if it carries one.

    job, n: what holds for a row that says nothing itself; request: the row's, if it is a line of a batch file; seed,
    sampling: the columns that may have the row's own, which win over the request's. Columns that the user named bind;
    columns that are just called so may hold anything else, which is passed over. Raises Reject(bad_sampling).
    """
    changes = parameters(request) if request else {}
    changes |= _own_parameters(record.get(sampling), sampling) if sampling else {}
    own = _own_seed(record.get(seed), seed) if seed else None
    if not changes and own is None:
        return job, n, None
    values = {name: _plain(name, value) for name, value in changes.items()}
    if "logprobs" in values and job.logprobs is None:
        most = values["logprobs"]
        hint = f"; set logprobs = {most} there (--logprobs {most})" if isinstance(most, int) else ""
        raise Reject("bad_sampling", f"logprobs: a row has them only if the job's own [sampling] asks for them{hint}")
    own = _checked("seed", values.pop("seed", own), Seed)
    n = _checked("n", values.pop("n", n), Number)
    if not values:
        return job, n, own
    base = {name: getattr(job, name) for name in _NAMES}
    try:
        return msgspec.convert(base | values, Sampling, str_keys=True), n, own
    except msgspec.ValidationError as error:
        raise Reject("bad_sampling", _readable(str(error), values)) from None


def _own_parameters(value: Any, column: str) -> dict[str, Any]:
    """What a row's column says, by vLLM's names; without nulls, as a Parquet struct has every field in every row: null
    means "as the job says"."""
    if is_blank(value):
        return {}
    given = _as_object(value)
    if column == DEFAULT_SAMPLING and (given is None or not _is_meant(tuple(islice(given, MOST_NAMES)))):
        return {}
    if given is None:
        raise Reject("bad_sampling", f"{column} is {kind_of(value)}, not an object")
    return {name: part for name, part in given.items() if part is not None}


def _as_object(value: Any) -> dict[str, Any] | None:
    """An object; also as JSON text, as a CSV file may have it."""
    if isinstance(value, str | bytes):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return None
    return as_turn(value)


@lru_cache(maxsize=1024)
def _is_meant(names: tuple[str, ...]) -> bool:
    """Whether an object holds sampling parameters: one of its names is one, or nearly."""
    return any(name in _KNOWN or difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.8) for name in names)


def _own_seed(value: Any, column: str) -> int | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas' null
        return None
    whole = _plain("seed", value)
    if isinstance(whole, int) and not isinstance(whole, bool):
        return whole
    if column == DEFAULT_SEED:
        return None
    raise Reject("bad_sampling", f"{column} {value!r:.80} is no whole number")


def _plain(name: str, value: Any) -> Any:
    """A value in vLLM's own form: 64.0 is a whole number, one stop text a list, and a list of pairs (Arrow's maps, and
    the column `sampling` of our own shards) an object."""
    if name in _WHOLE and isinstance(value, float) and value.is_integer():
        return int(value)
    if name == "stop" and isinstance(value, str):
        return [value]
    if name == "logit_bias" and isinstance(value, list):
        pairs = [tuple(pair.values()) if isinstance(pair, dict) else tuple(pair) for pair in value if _is_pair(pair)]
        return dict(pairs) if len(pairs) == len(value) else value
    return value


def _is_pair(value: Any) -> bool:
    if isinstance(value, dict):
        return list(value) == ["token_id", "bias"]
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], int | str)


def _readable(error: str, values: dict[str, Any]) -> str:
    """msgspec's "Expected `float` <= 2.0 - at `$.temperature`" with the name and the value ahead."""
    message, _, path = error.partition(" - at ")
    place = re.search(r"\$\.(\w+)", path)
    name = place[1] if place else ""
    message = plain(message)
    if name == "top_p" and values.get("top_p") == 0:
        message += " (temperature 0 is greedy)"
    return f"{name} {values[name]!r:.80}: {message}" if name in values else message


def _checked(name: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind | None)
    except msgspec.ValidationError as error:
        raise Reject("bad_sampling", f"{name} {value!r:.80}: {_readable(str(error), {})}") from None
