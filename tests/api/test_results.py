"""`batchgen.open`: what a job has made, for Python."""

import json

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from conftest import demo_records

from batchgen.api.results import Results
from batchgen.errors import JobError
from batchgen.output import layout


@pytest.fixture
def out(instantly, write_rows):
    """Six rows in three shards, one of them rejected, two samples of each."""
    rows = [*demo_records(3), {"text": ""}, {"id": "b", "text": "Monday", "seed": 5}, *demo_records(1)]
    return instantly([write_rows(rows)], sampling={"n": 2}, output={"shard_rows": 2, "columns": ["expected"]})


def test_a_dataset_has_all_rows_in_order(out):
    results = Results(out)
    table = results.dataset().to_table()
    assert table["row"].to_pylist() == [0, 0, 1, 1, 2, 2, 4, 4, 5, 5]
    assert len(results) == results.dataset().count_rows() == 10
    assert results.is_complete and (results.counts.rows, results.counts.rejects) == (6, {"empty": 1})


def test_rows_come_as_dicts(out):
    assert list(Results(str(out))) == Results(out).dataset().to_table().to_pylist()


def test_tables_of_every_kind_hold_the_same(out):
    results, columns = Results(out), ["response", "row"]
    expected = results.dataset().to_table(columns=columns).to_pylist()
    assert isinstance(results.to_arrow(columns), pa.Table) and results.to_arrow(columns).to_pylist() == expected
    assert isinstance(results.to_pandas(columns), pd.DataFrame)
    assert results.to_pandas(columns).to_dict("records") == expected
    assert isinstance(results.to_hf(columns), datasets.Dataset) and list(results.to_hf(columns)) == expected
    assert results.to_arrow().num_columns == len(results.dataset().schema)


def test_rejects_say_what_and_where(out):
    [reject] = Results(out).rejects()
    assert (reject.row, reject.id, reject.reason) == (3, "3", "empty")
    assert reject.place.endswith("in.jsonl:4") and json.loads(reject.raw) == {"text": ""}


def test_input_rows_are_joined_and_keep_what_has_the_name_of_a_column(out):
    joined = list(Results(out).join_input())
    assert [row["row"] for row in joined] == [0, 0, 1, 1, 2, 2, 4, 4, 5, 5]
    assert joined[0]["input_conversation"] == demo_records(1)[0]["conversation"]
    assert joined[6]["text"] == "Monday" and joined[6]["input_seed"] == 5 == joined[6]["seed"]


def test_an_unfinished_job_shows_what_is_finished(out):
    (out / "part-00001-of-00003.parquet").unlink()
    results = Results(out)
    assert not results.is_complete and [row["row"] for row in results] == [0, 0, 1, 1, 4, 4, 5, 5]
    assert "2 of 3 shards" in repr(results)


def test_a_job_that_has_finished_nothing_has_no_columns(out):
    for part in out.glob("part-*"):
        part.unlink()
    assert len(Results(out)) == 0
    with pytest.raises(JobError, match="no shard is finished yet"):
        Results(out).dataset()


def test_what_is_no_output_folder_is_told(tmp_path, out):
    with pytest.raises(JobError, match=layout.JOB):
        Results(tmp_path)
    with pytest.raises(JobError, match="no column respons; did you mean response"):
        Results(out).to_arrow(["respons"])
