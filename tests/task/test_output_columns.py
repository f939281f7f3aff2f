"""The table of output columns: complete, and each value fits its type."""

from types import SimpleNamespace
from typing import get_args

import msgspec
import msgspec.inspect
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from parameters import GIVEN

from batchgen.input.conversation import Utterance
from batchgen.input.plan import Plan, source_finder
from batchgen.input.scan import InputFile
from batchgen.job.sampling import NAMES, PARAMETERS, Sampling
from batchgen.job.spec import OptionalColumn, load
from batchgen.task.generate import Prompted
from batchgen.task.output_columns import (
    ALWAYS,
    COLUMNS,
    Answered,
    as_column,
    columns_of,
    from_column,
    in_words,
    sampling_type,
)
from batchgen.task.task import Entry


def sampling_of(given: dict) -> Sampling:
    return msgspec.convert(given, Sampling)


def test_the_job_file_offers_the_optional_columns_but_those_that_other_keys_ask_for():
    optional = [column.name for column in COLUMNS if column.is_optional]
    by_other_tables = ["setting", "reasoning", "tries", "failed_checks", "logprobs", "images", "adapter"]
    assert [name for name in optional if name not in by_other_tables] == [*get_args(OptionalColumn)]
    assert set(by_other_tables) <= set(optional)
    tables = {"input": {"path": ["in"]}, "model": {"path": "m"}, "sampling": {"logprobs": 0}}
    spec = load(None, {**tables, "output": {"path": "out", "include": ["response_token_ids"]}})
    assert [column.name for column in columns_of(spec)] == [
        *ALWAYS.names,
        "response_token_ids",
        "logprobs",
    ]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_every_column_has_a_meaning_and_a_value_of_its_type(column):
    asked = sampling_of({"logit_bias": {5: 1.5}})
    turns = [Utterance("ユーザー", "月曜日")]
    seen = SimpleNamespace(digest="ab", width=2, height=3, is_animated=False)
    work = Prompted(9, "a", turns, "ユーザー: 月曜日", [5, 6], 2, asked, {}, "text", "ja", [], images=[seen])
    entry = Entry(9, 1, [7, 8], "stop", [[(7, -0.5), (8, -1.0)], [(8, 0.0)]], 3)
    done = Answered(work, 77, entry, "金曜日", asked, 2, ["numbers"], "日曜日", {"file": "a.jsonl", "line": 3})
    value = column.value(done)
    assert column.meaning
    assert pa.array([value], column.type).to_pylist() == [value]
    assert value not in (None, [], "")


def test_types_have_words_for_the_manual():
    kinds = {column.name: in_words(column.type) for column in COLUMNS}
    assert kinds["row"] == "int64"
    assert kinds["conversation"] == "list of struct of `speaker` string, `text` string"
    assert kinds["logprobs"] == "list of list of struct of `token_id` int32, `logprob` float"
    assert in_words(sampling_type().field("logit_bias").type) == "list of struct of `token_id` int32, `bias` double"


def test_the_column_sampling_has_every_parameter():
    assert [field.name for field in sampling_type()] == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_survives_its_column(name):
    """As `verify --replay` reads it back, and as a row does that brings the column of an earlier job."""
    params = sampling_of({name: GIVEN[name]})
    assert params != Sampling()
    [value] = pa.array([as_column(params)], sampling_type()).to_pylist()
    assert sampling_of({key: part for key, part in from_column(value).items() if part is not None}) == params


def test_a_shard_of_an_older_version_may_lack_parameters():
    assert from_column({"temperature": 0.5}) == {"temperature": 0.5}


@pytest.mark.parametrize("name", [each.name for each in PARAMETERS if isinstance(each.kind, msgspec.inspect.FloatType)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_none(name, value):
    with pytest.raises(ValueError, match=f"{name} is not a finite number"):
        Sampling(**{name: value})


def test_source_is_the_file_and_the_line_of_a_row(generate, tmp_path):
    (tmp_path / "in" / "more").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "Monday"}\n{"text": "Tuesday"}\n')
    (tmp_path / "in" / "more" / "b.jsonl").write_text('{"text": "Friday"}\n')
    out = generate([tmp_path / "in"], sampling={"max_tokens": 2}, output={"include": ["source"], "shard_rows": 2})
    assert ds.dataset(out).to_table()["source"].to_pylist() == [
        {"file": "a.jsonl", "line": 1},
        {"file": "a.jsonl", "line": 2},
        {"file": "more/b.jsonl", "line": 1},
    ]


def test_source_counts_lines_on_where_a_file_has_grown(tmp_path):
    names = [("a", 0), ("b", 0), ("a", 1)]
    files = [InputFile(f"/in/{name}", 1, 0, "", 2, 9, growth=growth, start=9 * growth) for name, growth in names]
    files.append(InputFile("/elsewhere/c", 1, 0, "", 1, 9, growth=1))
    source = source_finder(Plan(files, []))
    assert [source(row) for row in (1, 2, 4, 5, 6)] == [("a", 2), ("b", 1), ("a", 3), ("a", 4), ("/elsewhere/c", 1)]
