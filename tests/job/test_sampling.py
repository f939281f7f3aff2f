"""Seeds and sampling parameters of rows."""

import hashlib

import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import Reject
from batchgen.input.row_sampling import of_row
from batchgen.job.sampling import MAX_SEED, Sampling, item_seed


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
