"""A row of `_segments/`: what became of one distinct segment of a shard. The Arrow schema is made from its fields."""

from typing import Annotated

import msgspec
import pyarrow as pa
from msgspec import Meta, inspect

from ..job.sampling import INT32, MAX_SEED, Sampling, bare
from .output_columns import sampling_type


class SegmentRow(msgspec.Struct, frozen=True, kw_only=True):
    """A segment that was translated, and how.

    Ranges hold for rows that are read; where there is no answer, there is a failed check, whoever makes the row: raises
    ValueError.
    """

    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z", description="digest of the prompt, in 32 hex digits")]
    row: Annotated[int, Meta(ge=0, description="number of the input row that has it first")]
    path: Annotated[str, Meta(description="where in that row, as in `messages[1].content`")]
    source: Annotated[str, Meta(description="the segment")]
    answer: (
        Annotated[str, Meta(description="its translation as it stands in the record; null if no try gave one")] | None
    )
    tries: Annotated[int, Meta(ge=0, le=INT32, description="how often it was generated")]
    failed_checks: Annotated[list[str], Meta(description="the checks that the best try fails; none if it is fine")]
    finish_reason: Annotated[str, Meta(description="what ended that try")]
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED, description="seed of that try")]
    sampling: Annotated[Sampling, Meta(description="every parameter that shaped it")]
    uses: Annotated[int, Meta(ge=1, le=INT32, description="how often the shard's rows have it")]
    split: Annotated[bool, Meta(description="whether a mark was lost, and it was translated in pieces then")] = False
    mean_logprob: (
        Annotated[float, Meta(description="mean log probability of its tokens, if tries were ranked by it")] | None
    ) = None

    def __post_init__(self) -> None:
        if self.answer is None and not self.failed_checks:
            raise ValueError("no answer, and no check that says why")


def _fields() -> list[pa.Field]:
    described = inspect.type_info(SegmentRow)
    assert isinstance(described, inspect.StructType)
    return [
        pa.field(field.name, _arrow_type(field.type), nullable=isinstance(field.type, inspect.UnionType))
        for field in described.fields
    ]


def _arrow_type(kind: inspect.Type) -> pa.DataType:
    kind = bare(kind)
    match kind:
        case inspect.StrType():
            return pa.string()
        case inspect.IntType():
            return pa.int32() if kind.le == INT32 else pa.int64()
        case inspect.FloatType():
            return pa.float64()
        case inspect.BoolType():
            return pa.bool_()
        case inspect.ListType():
            return pa.list_(_arrow_type(kind.item_type))
        case inspect.StructType():
            return sampling_type()
    raise TypeError(f"no Arrow type for {kind}")


SCHEMA = pa.schema(_fields())
