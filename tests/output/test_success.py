"""`_SUCCESS` says whether a job is closed, and whether what it says is still true."""

import json

import pytest

from batchgen.output import layout, success

TOTALS = {"rows": 3, "responses": 2, "rejects": {"empty": 1}, "fingerprint": "a" * 32}


def test_a_job_without_it_is_not_closed(store):
    assert not success.is_there(store)
    assert not success.says(store, TOTALS)
    assert not success.is_of(store, TOTALS["fingerprint"])


def test_it_holds_the_totals_as_json_for_people(store):
    success.write(store, TOTALS)
    assert json.loads(store.read(layout.SUCCESS)) == TOTALS
    assert store.read(layout.SUCCESS).startswith(b'{\n "rows": 3,\n')


@pytest.mark.parametrize("change", [{"rows": 4}, {"rejects": {}}, {"fingerprint": "b" * 32}], ids=str)
def test_it_says_these_totals_and_no_others(store, change):
    success.write(store, TOTALS)
    assert success.says(store, TOTALS)
    assert not success.says(store, TOTALS | change)


def test_of_a_job_that_has_grown_since_it_is_not(store):
    success.write(store, TOTALS)
    assert success.is_of(store, "a" * 32)
    assert not success.is_of(store, "b" * 32)


def test_it_can_be_taken_back_twice(store):
    success.write(store, TOTALS)
    success.remove(store)
    success.remove(store)
    assert not success.is_there(store)
