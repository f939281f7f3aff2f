"""What a row of `_segments/` says, and how Arrow holds it."""

import msgspec
import pyarrow as pa
import pytest

from batchgen.job.sampling import Sampling
from batchgen.task.output_columns import sampling_type
from batchgen.task.segment_rows import SCHEMA, SegmentRow

FACTS = {
    "key": "0123456789abcdef" * 2,
    "row": 3,
    "path": "messages[1].content",
    "source": "Good morning.",
    "answer": "おはようございます。",
    "tries": 1,
    "failed_checks": [],
    "finish_reason": "stop",
    "seed": 7,
    "sampling": Sampling(),
    "uses": 2,
}


def test_the_schema_has_the_documented_types():
    assert pa.schema([field for field in SCHEMA if field.name != "sampling"]) == pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("answer", pa.string()),
            pa.field("tries", pa.int32(), nullable=False),
            pa.field("failed_checks", pa.list_(pa.string()), nullable=False),
            pa.field("finish_reason", pa.string(), nullable=False),
            pa.field("seed", pa.int64(), nullable=False),
            pa.field("uses", pa.int32(), nullable=False),
            pa.field("split", pa.bool_(), nullable=False),
            pa.field("mean_logprob", pa.float64()),
        ]
    )
    assert SCHEMA.field("sampling").type == sampling_type()


def test_where_there_is_no_answer_a_check_must_say_why():
    assert SegmentRow(**{**FACTS, "answer": None, "failed_checks": ["empty"]}).answer is None
    with pytest.raises(ValueError, match="no answer"):
        SegmentRow(**{**FACTS, "answer": None})


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "0123"},
        {"key": "0123456789ABCDEF" * 2},
        {"key": "0123456789abcdef" * 2 + "\n"},
        {"row": -1},
        {"tries": 1 << 31},
        {"uses": 0},
        {"seed": 1 << 53},
        {"source": None},
        {"sampling": {"temperature": -1.0}},
    ],
    ids=repr,
)
def test_values_that_no_row_has_are_not_read_as_one(wrong):
    assert msgspec.convert(FACTS, SegmentRow) == SegmentRow(**FACTS)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**FACTS, **wrong}, SegmentRow)
