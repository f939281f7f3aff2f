"""Seeds and sampling parameters of rows."""

import dataclasses
import hashlib

import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import Reject
from batchgen.input.batch_requests import request_of
from batchgen.input.row_sampling import of_row
from batchgen.job.sampling import MAX_SEED, PARAMETERS, Sampling, item_seed, names_of
from batchgen.output import shard
from batchgen.task.task import Answer, Entry


@given(st.integers(0, MAX_SEED), st.text(), st.integers(0, 1000))
def test_item_seed_is_the_documented_digest(seed, id, sample):
    first = hashlib.blake2b(f"{seed}\0{id}\0{sample}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    expected = int.from_bytes(first, "little") & (2**53 - 1)
    try:
        assert item_seed(seed, id, sample) == expected
    except UnicodeEncodeError:  # ids of real rows have no lone surrogates: JSON and Parquet readers refuse them
        assert any("\ud800" <= sign <= "\udfff" for sign in id)


def test_item_seed_of_one_known_item():
    assert item_seed(0, "demo-00000", 0) == 1042225981654737


def test_a_rows_parameters_win_over_the_jobs():
    params, _, seed = of_row(Sampling(temperature=0.5, top_k=9), 1, {"sampling": {"temperature": 0.7}, "seed": 3})
    assert (params.temperature, params.top_k, seed) == (0.7, 9, 3)


def test_null_in_a_rows_sampling_means_as_the_job_says():
    params, _, _ = of_row(Sampling(temperature=0.5), 1, {"sampling": {"temperature": None}})
    assert params.temperature == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, "1", True])
def test_temperatures_that_are_none(value):
    with pytest.raises(Reject) as caught:
        of_row(Sampling(), 1, {"sampling": {"temperature": value}})
    assert caught.value.reason == "bad_sampling"


def test_every_item_records_the_seed_it_ran_with(generate, write_rows):
    rows = [{"id": "a", "text": "Monday"}, {"text": "Monday", "seed": 42}, {"text": "Monday", "sampling": {"seed": 43}}]
    out = generate([write_rows(rows)], sampling={"seed": 5, "n": 2, "max_tokens": 4})
    seeds = {(row["row"], row["sample"]): row["seed"] for row in ds.dataset(out).to_table().to_pylist()}
    assert seeds == {
        (0, 0): item_seed(5, "a", 0),
        (0, 1): item_seed(5, "a", 1),
        (1, 0): 42,
        (1, 1): item_seed(42, "1", 1),
        (2, 0): 43,
        (2, 1): item_seed(43, "2", 1),
    }


def test_a_rows_seed_decides_its_response(generate, write_rows):
    rows = [{"id": i, "text": "? ?", "seed": 1 if i < 5 else i} for i in range(10)]
    out = generate([write_rows(rows)], sampling={"max_tokens": 24})
    texts = [row["response"] for row in ds.dataset(out).to_table().to_pylist()]
    assert len(set(texts[:5])) == 1
    assert len(set(texts[5:])) > 1


LOOPS = {"max_pattern_size": 4, "min_count": 3}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"max_pattern_size": 4}, "min_count 0: a repetition has at least 2"),
        (
            {"max_pattern_size": 4, "min_pattern_size": 5, "min_count": 2},
            "min_pattern_size 5 is above max_pattern_size 4",
        ),
        ({"max_pattern_size": 1025, "min_count": 2}, "expected int <= 1024"),
        ({"min_size": 2}, "object contains unknown field min_size"),
        (3, "expected object, got int"),
    ],
)
def test_repetitions_that_cannot_be_detected(given, why):
    with pytest.raises(Reject, match=why) as caught:
        of_row(Sampling(), 1, {"sampling": {"repetition_detection": given}})
    assert caught.value.reason == "bad_sampling"


def test_a_null_in_a_struct_of_a_parquet_row_is_as_good_as_absent():
    given = {"max_pattern_size": 4.0, "min_pattern_size": None, "min_count": 3}
    params, _, _ = of_row(Sampling(), 1, {"sampling": {"repetition_detection": given}})
    assert msgspec.to_builtins(params.repetition_detection) == LOOPS


# --- parameters that folders of earlier formats do not have: 0.2.0 made this of such rows


@pytest.mark.parametrize(
    ("record", "column", "why"),
    [
        ({"sampling": {"repetition_detection": LOOPS}}, "sampling", ""),  # taken for something unrelated
        (
            {"sampling": {"top_k": 5, "repetition_detection": LOOPS}},
            "sampling",
            "object contains unknown field repetition_detection",
        ),
        ({"mine": {"repetition_detection": LOOPS}}, "mine", "object contains unknown field repetition_detection"),
        ({"mine": {"repetition_detection": LOOPS, "top_k": "x"}}, "mine", "top_k 'x': expected int, got str"),
        (
            {"body": {"messages": [], "repetition_detection": LOOPS}},
            "sampling",
            "body.repetition_detection {'max_pattern_size': 4, 'min_count': 3} is not supported",
        ),
        ({"body": {"messages": [], "repetition_detection": {}}}, "sampling", ""),
    ],
)
def test_a_parameter_of_a_later_format_is_none_in_an_older_folder(record, column, why):
    request = request_of(record, "body") if "body" in record else None

    def sampling_in(format: int) -> Sampling:
        return of_row(Sampling(), 1, record, request, sampling=column, known=names_of(format))[0]

    if why:
        with pytest.raises(Reject) as caught:
            sampling_in(3)
        assert (caught.value.reason, caught.value.detail) == ("bad_sampling", why)
    else:
        assert sampling_in(3) == Sampling()
    if "top_k 'x'" not in why:
        assert sampling_in(4).repetition_detection is not None


def test_the_column_sampling_of_an_older_folder_has_no_field_for_a_later_parameter(item_of):
    work, job = item_of({"text": "Monday"})
    older = dataclasses.replace(job.task, folder_format=3)
    fields = [task.schema.field("sampling").type.names for task in (job.task, older)]
    assert [name for name in fields[0] if name not in fields[1]] == [
        each.name for each in PARAMETERS if each.since == 4
    ]
    [row] = older.output(work, [Answer(work.requests[0], Entry(0, 0, [300, 3], "stop", text_end=-1))])
    table = pq.read_table(pa.BufferReader(shard.as_parquet([row], older.schema, {})))
    assert table.schema == older.schema
