"""Data in memory is written once beside the output, and is input like any other."""

import json
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import demo_records

from batchgen.api.data import paths_of
from batchgen.errors import JobError

ROWS = [{"id": "a", "text": "Friday"}, {"id": "b", "text": "Monday"}]
TABLES = {
    "arrow": pa.Table.from_pylist(ROWS),
    "batch": pa.RecordBatch.from_pylist(ROWS),
    "pandas": pd.DataFrame(ROWS, index=[7, 3]),
    "datasets": datasets.Dataset.from_list(ROWS),
    "datasets, some": datasets.Dataset.from_list([ROWS[1], *ROWS]).select([1, 2]),
}


@pytest.fixture
def out(tmp_path) -> str:
    return str(tmp_path / "out")


def test_paths_stay_paths(out, tmp_path):
    assert paths_of("in/*.jsonl", out) == ["in/*.jsonl"]
    assert paths_of(Path("in"), out) == ["in"]
    assert paths_of([tmp_path, str(tmp_path), "s3://b/k"], out) == [str(tmp_path), str(tmp_path), "s3://b/k"]


@pytest.mark.parametrize("data", TABLES.values(), ids=TABLES)
def test_a_table_becomes_parquet(data, out):
    [path] = paths_of(data, out)
    assert path.startswith(f"{out}.input-") and path.endswith(".parquet")
    assert pq.read_table(path).to_pylist() == ROWS


def test_dicts_and_texts_become_json_lines(out):
    [path] = paths_of([*ROWS, "Tuesday\n"], out)
    lines = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    assert lines == [*ROWS, {"text": "Tuesday\n"}]


def test_a_generator_of_rows_is_taken_too(out):
    [path] = paths_of((row for row in ROWS), out)
    assert paths_of(ROWS, out) == [path]


def test_the_same_data_is_the_same_file(out):
    [path] = paths_of(ROWS, out)
    before = Path(path).stat()
    assert paths_of(list(map(dict, ROWS)), out) == [path]
    assert Path(path).stat() == before
    assert paths_of(ROWS[:1], out) != [path]


def test_nested_rows_come_back_as_they_are(out):
    [path] = paths_of(demo_records(5), out)
    assert [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()] == demo_records(5)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([], "no rows"),
        ([1], "row 0 is a int; rows are dicts or texts"),
        ([{"a": object()}], "row 0 cannot be written as JSON"),
        (7, "a int is no data that can be read"),
        (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), "a streaming dataset has no fixed rows"),
    ],
)
def test_what_is_no_data_is_told(data, error, out):
    with pytest.raises(JobError, match=error):
        paths_of(data, out)


def test_data_in_memory_needs_a_folder_to_lie_beside():
    with pytest.raises(JobError, match="has to be a folder"):
        paths_of(ROWS, "s3://bucket/out")
