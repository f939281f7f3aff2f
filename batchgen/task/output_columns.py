"""The output columns of `generate`, each declared once: name, Arrow type, meaning, and how an answer gives its value.

The schema of the shards, what `verify` expects of them, the card of an exported dataset and the manual are derived from
this table. The fields of the column `sampling` are derived from `Sampling` in the same way.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pyarrow as pa
from msgspec import inspect

from ..input.columns import Column
from ..job.sampling import NAMES, PARAMETERS, Sampling, bare, names_of
from ..job.spec import JobSpec
from ..prompt import structured_outputs
from .task import Entry
from .tries import mean_logprob

if TYPE_CHECKING:
    from .generate import Prompted


class Answered(NamedTuple):
    """A response, with all that its output row is made of.

    work: the row
    seed: of this response
    entry: what the engine gave
    text: the response as people are to read it; None if it is left out, as it fails a check
    sampling: of this try
    tries: how many there were
    failed: names of the checks that it fails
    reasoning: what the model thought before it, if that is known
    place: the row's file and line, if they are asked for
    """

    work: "Prompted"
    seed: int
    entry: Entry
    text: str | None
    sampling: Sampling
    tries: int
    failed: Sequence[str]
    reasoning: str | None
    place: dict[str, Any] | None = None


@dataclass(frozen=True)
class OutputColumn:
    """A column that batchgen writes itself.

    type: of Arrow
    meaning: for people, as Markdown
    value: of a response; None is null
    is_optional: it is there only if the job asks for it
    has_nulls: it may have some
    """

    name: str
    type: pa.DataType
    meaning: str
    value: Callable[[Answered], Any]
    is_optional: bool = False
    has_nulls: bool = True


# --- the column `sampling`


def sampling_type(names: Collection[str] = NAMES) -> pa.StructType:
    return pa.struct([(each.name, _arrow_type(each.kind)) for each in PARAMETERS if each.name in names])


def _arrow_type(kind: inspect.Type) -> pa.DataType:
    """Of a parameter's values. Arrow would need to know the keys of a dict, so those are a list of pairs."""
    kind = bare(kind)
    match kind:
        case inspect.FloatType():
            return pa.float64()
        case inspect.IntType():
            return pa.int32()
        case inspect.BoolType():
            return pa.bool_()
        case inspect.StrType() | inspect.StructType():  # as JSON
            return pa.string()
        case inspect.ListType():
            return pa.list_(_arrow_type(kind.item_type))
        case inspect.DictType():
            pair = {"token_id": _arrow_type(kind.key_type), "bias": _arrow_type(kind.value_type)}
            return pa.list_(pa.struct(list(pair.items())))
    raise TypeError(f"no Arrow type for {kind}")


_CONVERTED = [each.name for each in PARAMETERS if isinstance(each.kind, inspect.DictType | inspect.StructType)]


def as_column(params: Sampling) -> dict[str, Any]:
    """The parameters as the column `sampling` holds them."""
    values = msgspec.structs.asdict(params)
    for name in _CONVERTED:
        values[name] = _as_value(values[name])
    return values


def _as_value(value: Any) -> Any:
    if isinstance(value, dict):
        return [{"token_id": token, "bias": bias} for token, bias in value.items()]
    return structured_outputs.as_json(value) if value else None


def from_column(value: dict[str, Any]) -> dict[str, Any]:
    """The other way round: parameters as a row or a job file gives them. Shards of older versions have fewer."""
    return {each.name: _from_value(value[each.name], each.kind) for each in PARAMETERS if each.name in value}


def _from_value(value: Any, kind: inspect.Type) -> Any:
    if isinstance(kind, inspect.DictType):
        return {pair["token_id"]: pair["bias"] for pair in value}
    return msgspec.json.decode(value) if isinstance(kind, inspect.StructType) and value else value


# --- the table

SETTING = "setting"

COLUMNS = (
    OutputColumn(
        "id",
        pa.string(),
        "the conversation's id, or its row number",
        lambda done: done.work.id,
        has_nulls=False,
    ),
    OutputColumn(
        "row",
        pa.int64(),
        "number of the input row",
        lambda done: done.entry.row,
        has_nulls=False,
    ),
    OutputColumn(
        "sample",
        pa.int32(),
        "which of the row's responses",
        lambda done: done.entry.sample,
        has_nulls=False,
    ),
    OutputColumn(
        SETTING,
        pa.int32(),
        "which of the sweep's settings, by its number in `_sweep/settings.json`; samples are counted within one",
        lambda done: done.entry.part,
        is_optional=True,
        has_nulls=False,
    ),
    OutputColumn(
        "conversation",
        pa.list_(pa.struct([("speaker", pa.string()), ("text", pa.string())])),
        "as rendered into the prompt",
        lambda done: [utterance._asdict() for utterance in done.work.conversation],
    ),
    OutputColumn(
        "response",
        pa.string(),
        "what the model wrote",
        lambda done: done.text,
    ),
    OutputColumn(
        "reasoning",
        pa.string(),
        "what the model thought before it wrote that",
        lambda done: done.reasoning,
        is_optional=True,
    ),
    OutputColumn(
        "finish_reason",
        pa.string(),
        "`stop`, `length` when `max_tokens` or the context ended it, `repetition` when it was caught in a loop",
        lambda done: done.entry.finish_reason,
        has_nulls=False,
    ),
    OutputColumn(
        "prompt_tokens",
        pa.int32(),
        "tokens of the prompt",
        lambda done: len(done.work.prompt_token_ids),
        has_nulls=False,
    ),
    OutputColumn(
        "truncated",
        pa.int32(),
        "tokens that were taken off the prompt to make it fit",
        lambda done: done.work.truncated,
    ),
    OutputColumn(
        "response_tokens",
        pa.int32(),
        "tokens of the response, with that of its end",
        lambda done: len(done.entry.token_ids),
        has_nulls=False,
    ),
    OutputColumn(
        "seed",
        pa.int64(),
        "seed of this response",
        lambda done: done.seed,
    ),
    OutputColumn(
        "sampling",
        sampling_type(),
        "every parameter that shaped it",
        lambda done: as_column(done.sampling),
    ),
    OutputColumn(
        "tries",
        pa.int32(),
        "how often it was generated, until no check failed or `[check] tries` were used up",
        lambda done: done.tries,
        is_optional=True,
    ),
    OutputColumn(
        "failed_checks",
        pa.list_(pa.string()),
        "the checks that the best try fails; none if it is fine",
        lambda done: list(done.failed),
        is_optional=True,
    ),
    OutputColumn(
        "prompt",
        pa.string(),
        "the prompt as text",
        lambda done: done.work.prompt,
        is_optional=True,
    ),
    OutputColumn(
        "prompt_token_ids",
        pa.list_(pa.int32()),
        "the prompt as the model saw it",
        lambda done: done.work.prompt_token_ids,
        is_optional=True,
    ),
    OutputColumn(
        "response_token_ids",
        pa.list_(pa.int32()),
        "the response as the model wrote it",
        lambda done: done.entry.token_ids,
        is_optional=True,
    ),
    OutputColumn(
        "source",
        pa.struct([("file", pa.string()), ("line", pa.int64())]),
        "the row's file, relative to the folder of the input, and its line there, from 1",
        lambda done: done.place,
        is_optional=True,
    ),
    OutputColumn(
        "logprobs",
        pa.list_(pa.list_(pa.struct([("token_id", pa.int32()), ("logprob", pa.float32())]))),
        "per token the one that was chosen, then the likeliest, with log probabilities",
        lambda done: _logprobs(done.entry),
        is_optional=True,
    ),
    OutputColumn(
        "mean_logprob",
        pa.float64(),
        "mean log probability of the response's tokens",
        lambda done: mean_logprob(done.entry),
        is_optional=True,
    ),
    OutputColumn(
        "images",
        pa.list_(
            pa.struct(
                [("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("animated", pa.bool_())]
            )
        ),
        "the images of the prompt, in order, by the digests of their files; of an animation the model saw the first",
        lambda done: [
            {"sha256": each.digest, "width": each.width, "height": each.height, "animated": each.is_animated}
            for each in done.work.images
        ],
        is_optional=True,
    ),
    OutputColumn(
        "adapter",
        pa.string(),
        "the adapter that answered; null is the model alone",
        lambda done: done.work.adapter,
        is_optional=True,
    ),
)


def _logprobs(entry: Entry) -> list[list[dict[str, Any]]] | None:
    if entry.logprobs is None:
        return None
    return [[{"token_id": token, "logprob": value} for token, value in step] for step in entry.logprobs]


def columns_of(spec: JobSpec) -> list[OutputColumn]:
    """Those of a job, without what it passes through."""
    wanted: set[str] = {*spec.output.include}
    wanted |= {SETTING} if spec.sweep.method else set()
    wanted |= {"logprobs"} if spec.sampling.logprobs is not None else set()
    wanted |= {"reasoning"} if spec.model.reasoning_parser else set()
    wanted |= {"tries", "failed_checks"} if spec.check.checks else set()
    wanted |= {"images"} if spec.input.image else set()
    wanted |= {"adapter"} if spec.model.adapter else set()
    return [column for column in COLUMNS if not column.is_optional or column.name in wanted]


def schema_of(own: Iterable[OutputColumn], passed: Iterable[Column], format: int) -> pa.Schema:
    """Of every shard of a job: the columns that are always there, with that of its settings where it has some, the
    passed-through ones, the optional ones. format: of the output folder."""
    fixed: list[tuple[str, pa.DataType]] = []
    optional: list[tuple[str, pa.DataType]] = []
    for column in own:
        kind = sampling_type(names_of(format)) if column.name == "sampling" else column.type
        is_last = column.is_optional and column.name != SETTING
        (optional if is_last else fixed).append((column.name, kind))
    return pa.schema([*fixed, *((column.name, column.type) for column in passed), *optional])


def in_words(kind: pa.DataType) -> str:
    """An Arrow type for documents."""
    if pa.types.is_list(kind):
        return f"list of {in_words(kind.value_type)}"
    if pa.types.is_struct(kind):
        return f"struct of {', '.join(f'`{field.name}` {in_words(field.type)}' for field in kind)}"
    return str(kind)


# What every shard of responses has, whatever the job.
ALWAYS = pa.schema(
    [pa.field(each.name, each.type, nullable=each.has_nulls) for each in COLUMNS if not each.is_optional]
)

# The one column that translated records get: segments of all texts, and those of them that fail a check; how often
# they were generated, each distinct one counted; the checks that failed.
REPORT = pa.struct(
    [
        ("segments", pa.int32()),
        ("failed", pa.int32()),
        ("tries", pa.int32()),
        ("checks", pa.list_(pa.string())),
    ]
)


# What every shard of scores has.
SCORE = pa.struct(
    [
        ("text", pa.string()),
        ("logprob", pa.float64()),
        ("tokens", pa.int32()),
        ("logprob_per_token", pa.float64()),
        ("logprob_per_char", pa.float64()),
        ("greedy", pa.bool_()),
        ("without_prompt", pa.float64()),
    ]
)
SCORES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        ("conversation", pa.list_(pa.struct([("speaker", pa.string()), ("text", pa.string())]))),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        ("truncated", pa.int32()),
        pa.field("scores", pa.list_(SCORE), nullable=False),
        ("best", pa.int32()),
        ("right", pa.bool_()),
        ("perplexity", pa.float64()),
    ]
)

SCORE_MEANINGS = {
    "scores": "of each text, in order: the sum of its tokens' log probabilities, how many these are, that sum by token "
    "and by character, whether every token was the likeliest, and the sum without the prompt, if the job asks for it",
    "best": "number of the likeliest text, by that sum, from 0",
    "right": "whether that is the reference; null where the row has none",
    "perplexity": "e to minus the mean log probability of a token, where one text was scored",
    "token_logprobs": "of each text its tokens, with log probability and rank (1 is the likeliest)",
}


def always(spec: JobSpec) -> pa.Schema:
    """What every shard of a job has. Where a column is not nullable, it has no nulls."""
    if spec.translate.fields:
        return pa.schema([pa.field(spec.translate.report, REPORT, nullable=False)])
    if spec.sweep.method:
        return ALWAYS.append(pa.field(SETTING, pa.int32(), nullable=False))
    return SCORES if spec.score.mode != "off" else ALWAYS
