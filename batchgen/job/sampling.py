"""Sampling parameters: those of a row, those of a job, and the seed of every item."""

import functools
import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta, inspect

MAX_SEED = 2**53 - 1  # integers up to here survive JSON parsers and pandas' float columns

Seed = Annotated[int, Meta(ge=0, le=MAX_SEED, description="seed of the job, from which every response's is derived")]
Number = Annotated[int, Meta(ge=1, le=1024, description="responses per conversation")]
Text = Annotated[str, Meta(min_length=1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]

# What ended a response: a stop token, a stop text or the end of a structure; max_tokens or the context; or a loop that
# repetition_detection found.
FinishReason = Literal["stop", "length", "repetition"]
FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)

INT32 = 2**31 - 1  # the type of these columns in the shards
FIRST_FORMAT = 1  # of output folders, see output/record.py
FOLLOWED_BY_US = {"vllm": None}  # Meta's `extra` of a parameter that vLLM does not get
SINCE_4 = {"since": 4}  # Meta's `extra` of a parameter that folders of earlier formats do not have

Temperature = Annotated[float, Meta(ge=0, le=2, description="0 is greedy; otherwise from 0.01 to 2")]
TopP = Annotated[float, Meta(gt=0, le=1, description="keep the likeliest tokens up to this total probability")]
TopK = Annotated[int, Meta(ge=-1, le=INT32, description="keep this many of the likeliest tokens; 0 or -1 keeps all")]
MinP = Annotated[float, Meta(ge=0, le=1, description="minimum probability, relative to the likeliest token's")]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10, description="above 1 makes repetition less likely")]
MaxTokens = Annotated[int, Meta(ge=1, le=INT32, description="maximum number of tokens of a response")]


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a response must look like: exactly one of these, by the names of vLLM's StructuredOutputsParams."""

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
            raise ValueError("json_object must be true, or left out")


Pattern = Annotated[int, Meta(ge=0, le=1024)]  # vLLM tries every size at every token, in Python: 0.2 ms for 1,024


class RepetitionDetection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When a response counts as caught in a loop: its last tokens are the same pattern, `min_count` times in a row.
    Names and defaults are those of vLLM's RepetitionDetectionParams.

    max_pattern_size: most tokens of a pattern; 0 detects none
    min_pattern_size: fewest tokens of a pattern; 0 is 1
    """

    max_pattern_size: Pattern = 0
    min_pattern_size: Pattern = 0
    min_count: Pattern = 0

    def __post_init__(self) -> None:
        if self.min_pattern_size > self.max_pattern_size:
            most = f"max_pattern_size {self.max_pattern_size}"
            raise ValueError(f"min_pattern_size {self.min_pattern_size} is above {most}")
        if self.max_pattern_size and self.min_count < 2:
            raise ValueError(f"min_count {self.min_count}: a repetition has at least 2")


class GivenSampling(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The parameters of a response, each declared here and nowhere else: what vLLM gets, the fields of the column
    `sampling` and what documents say are derived from these fields (see PARAMETERS). None is left to the model's card.

    Names are those of vLLM's SamplingParams. The ranges are vLLM's own, and so are the sizes of lists: on a GPU its
    runner has room for 1,024 biases and allowed tokens, 128 token ids that end a response (the model's own among them)
    and 128 bad words.
    """

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2, description="penalty for tokens that occurred already")] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2, description="penalty per earlier occurrence of a token")] = (
        0.0
    )
    max_tokens: MaxTokens | None = None
    min_tokens: Annotated[
        int, Meta(ge=0, le=INT32, description="minimum number of tokens, unless structured_outputs ends it earlier")
    ] = 0
    ignore_eos: Annotated[bool, Meta(description="do not stop at the end-of-text token")] = False
    stop: Annotated[
        list[Text], Meta(description="texts that end a response; they are not part of it", extra=FOLLOWED_BY_US)
    ] = []
    stop_token_ids: Annotated[list[int], Meta(max_length=120, description="more token ids that end a response")] = []
    include_stop_str_in_output: Annotated[
        bool, Meta(description="keep the text of `stop` in the response", extra=FOLLOWED_BY_US)
    ] = False
    bad_words: Annotated[
        list[Text], Meta(max_length=128, description="texts that must not occur, as the tokenizer splits them")
    ] = []
    allowed_token_ids: Annotated[
        list[int], Meta(max_length=1024, description="use only these tokens; empty allows all")
    ] = []
    logit_bias: Annotated[
        dict[int, Bias], Meta(max_length=1024, description="token id -> value added to its logit (JSON)")
    ] = {}
    structured_outputs: (
        Annotated[StructuredOutputs, Meta(description="json (a schema), json_object, regex, choice or grammar")] | None
    ) = None
    logprobs: (
        Annotated[int, Meta(ge=0, le=20, description="record the log probabilities of this many tokens per step")]
        | None
    ) = None
    repetition_detection: (
        Annotated[
            RepetitionDetection,
            Meta(description="end a response that repeats itself: max_pattern_size, min_count", extra=SINCE_4),
        ]
        | None
    ) = None
    thinking_token_budget: (
        Annotated[
            int,
            Meta(ge=-1, le=INT32, description="most tokens of reasoning, by [model] reasoning_parser", extra=SINCE_4),
        ]
        | None
    ) = None


class Sampling(GivenSampling, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The parameters that a response is generated with. The defaults are those of the bilingual SFT model's card."""

    temperature: Temperature = 1.0
    top_p: TopP = 0.85
    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    max_tokens: MaxTokens = 512

    def __post_init__(self) -> None:
        for name in _FLOATS:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is not a finite number")
        # vLLM silently raises such temperatures to 0.01 (sampling_params.py), but a job must record what it ran with.
        if 0 < self.temperature < 0.01:
            raise ValueError(f"temperature {self.temperature}: use 0 (greedy) or at least 0.01")
        if self.top_k == -1:  # older vLLM's value for "all"
            msgspec.structs.force_setattr(self, "top_k", 0)
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        if self.structured_outputs and self.ignore_eos:
            raise ValueError(
                "structured_outputs and ignore_eos exclude each other: text would follow the structure's end"
            )

    def check_ids(self, vocab_size: int) -> None:
        """Raises ValueError if a token id is not one of the model's."""
        for name in _TOKEN_IDS:
            if unknown := [token for token in getattr(self, name) if not 0 <= token < vocab_size]:
                raise ValueError(f"{name}: {unknown[0]} is not one of the model's {vocab_size} ids")


class Parameter(NamedTuple):
    """A field of `Sampling`, for code that treats all of them alike.

    name: as vLLM has it too
    kind: type and range of its values, in msgspec's terms, but for None
    meaning: for people
    goes_to_vllm: if not, batchgen follows it by itself
    since: the format of output folders that brought it; in older ones there is no such parameter
    """

    name: str
    kind: inspect.Type
    meaning: str
    goes_to_vllm: bool
    since: int


def bare(kind: inspect.Type) -> inspect.Type:
    """A type without None, and without what `Meta` says of it beside its range."""
    kind = _without_none(kind)
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _without_none(kind: inspect.Type) -> inspect.Type:
    if not isinstance(kind, inspect.UnionType):
        return kind
    [kind] = (each for each in kind.types if not isinstance(each, inspect.NoneType))
    return kind


def _parameters() -> Iterator[Parameter]:
    described = inspect.type_info(Sampling)
    assert isinstance(described, inspect.StructType)
    for field in described.fields:
        kind = _without_none(field.type)
        assert isinstance(kind, inspect.Metadata) and kind.extra_json_schema, f"{field.name} has no description"
        extra = kind.extra or {}
        goes_to_vllm, since = extra != FOLLOWED_BY_US, extra.get("since", FIRST_FORMAT)
        yield Parameter(field.name, kind.type, kind.extra_json_schema["description"], goes_to_vllm, since)


def _holds_token_ids(kind: inspect.Type) -> bool:
    """No other whole numbers come in lists, or as keys."""
    if isinstance(kind, inspect.DictType):
        return isinstance(bare(kind.key_type), inspect.IntType)
    return isinstance(kind, inspect.ListType) and isinstance(bare(kind.item_type), inspect.IntType)


PARAMETERS = tuple(_parameters())
NAMES = tuple(each.name for each in PARAMETERS)
_FLOATS = [each.name for each in PARAMETERS if isinstance(each.kind, inspect.FloatType)]
_TOKEN_IDS = [each.name for each in PARAMETERS if _holds_token_ids(each.kind)]


@functools.cache
def names_of(format: int) -> tuple[str, ...]:
    """The parameters that an output folder of this format has."""
    return tuple(each.name for each in PARAMETERS if each.since <= format)


class JobSampling(GivenSampling, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`[sampling]`: parameters of rows that have none of their own, how many responses they get, and the seed."""

    n: Number = 1
    seed: Seed = 0
    rerank: (
        Annotated[Literal["logprob"], Meta(description="of n responses keep the one that the model finds likeliest")]
        | None
    ) = None

    def __post_init__(self) -> None:
        self.for_rows()
        if self.top_k == -1:
            msgspec.structs.force_setattr(self, "top_k", 0)

    def for_rows(self) -> Sampling:
        """The parameters of a row that has none of its own. Raises ValueError."""
        values = {name: getattr(self, name) for name in NAMES}
        return Sampling(**{name: value for name, value in values.items() if value is not None})

    def with_defaults(self, card: dict[str, Any]) -> "JobSampling":
        """The same with the model card's values where the job gives none."""
        stated = msgspec.structs.asdict(Sampling()) | card
        open_names = [name for name in NAMES if getattr(self, name) is None]
        return msgspec.structs.replace(self, **{name: stated[name] for name in open_names})


def item_seed(job_seed: int, id: str, sample: int, part: int = 0, attempt: int = 0) -> int:
    """The seed of one request, 0 to 2**53 - 1. It depends on these values only; part and attempt count where one of
    them is not 0."""
    further = f"\0{part}\0{attempt}" if part or attempt else ""
    digest = hashlib.blake2b(f"{job_seed}\0{id}\0{sample}{further}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & MAX_SEED
