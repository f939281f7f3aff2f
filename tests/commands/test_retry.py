"""`batchgen retry` makes a new job of what went wrong; `batchgen rejects` shows what was refused."""

import json

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import demo_records

SHORT = {"temperature": 0, "max_tokens": 12}


@pytest.fixture
def out(generate, write_rows):
    rows = [*demo_records(30), "no", {"text": "Monday", "sampling": {"max_tokens": 0}}]
    return generate([write_rows(rows)], sampling=SHORT, output={"shard_rows": 8, "columns": ["expected"]})


def test_a_retry_answers_the_picked_rows_under_their_old_numbers_and_ids(out, batchgen_here, batchgen, tmp_path):
    new = tmp_path / "new"
    command = ["retry", out, "--only", "length", "--max-tokens", "96", "--output", new]
    done = batchgen_here(*command)
    assert done.exit_code == 0, done.stderr

    old = {row["row"]: row for row in ds.dataset(out).to_table().to_pylist()}
    cut = [number for number, row in old.items() if row["finish_reason"] == "length"]
    found = ds.dataset(new).to_table().to_pylist()
    assert 5 < len(cut) < 30
    assert [row["row"] for row in found] == cut
    for row in found:
        before = old[row["row"]]
        assert (row["id"], row["seed"], row["expected"]) == (before["id"], before["seed"], before["expected"])
        assert row["finish_reason"] == "stop"
        assert row["sampling"]["max_tokens"] == 96
        assert row["response"].startswith(before["response"].rstrip("\ufffd"))

    record, origin = (json.loads((folder / "_job.json").read_text()) for folder in (new, out))
    assert record["retry_of"] == {"path": str(out), "fingerprint": origin["fingerprint"], "only": ["length"]}
    assert batchgen("verify", new).exit_code == 0
    again = batchgen(*command)
    assert again.stdout.startswith(f"all done already: {len(cut)} rows")


@pytest.mark.slow
def test_rejected_rows_can_be_retried_too(out, batchgen_here, tmp_path):
    command = ["retry", out, "--only", "bad_sampling,invalid_json", "--output", tmp_path / "new"]
    refused = batchgen_here(*command)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "all 2 rows would be rejected (bad_sampling 1, invalid_json 1)" in refused.stderr
    done = batchgen_here(*command, "--max-rejects", 2)
    assert "done: 2 rows, 0 responses, 2 rejects (bad_sampling 1, invalid_json 1)" in done.stdout


@pytest.mark.slow
def test_a_retry_of_parquet_input(generate, batchgen_here, tmp_path):
    texts = [record["conversation"][-1]["text"] for record in demo_records(20)]
    table = pa.table({"text": texts, "when": pa.array(range(20), pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=3)
    out = generate([tmp_path / "in.parquet"], sampling=SHORT, output={"columns": ["when"]})
    done = batchgen_here("retry", out, "--only", "length", "--max-tokens", "96", "--output", tmp_path / "new")
    assert done.exit_code == 0, done.stderr
    old = ds.dataset(out).to_table(filter=ds.field("finish_reason") == "length")
    new = ds.dataset(tmp_path / "new").to_table()
    assert new["row"] == old["row"]
    assert new["when"] == old["when"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "lenght"], "no such reason; did you mean length?"),
        (["--only", ","], "name one or more of stop, length"),
        (["--only", "empty"], "no row ended with empty; there is nothing to retry"),
        (["--only", "length", "--shard-rows", "3"], "a retry keeps the shards of its job"),
        (["--only", "length", "--top-p", "3"], "[sampling] top_p: expected float <= 1.0"),
    ],
)
def test_a_retry_that_cannot_be_is_one_line(out, batchgen, tmp_path, arguments, message):
    result = batchgen("retry", out, "--output", tmp_path / "new", *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_retry_into_its_own_folder_or_none(out, batchgen):
    assert "a retry needs a folder of its own" in batchgen("retry", out, "--only", "length", "--output", out).stderr
    assert "no output: add --output OUT" in batchgen("retry", out, "--only", "length").stderr


def test_a_retry_of_changed_input(out, batchgen, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "x"}\n' * 32)
    result = batchgen("retry", out, "--only", "length", "--output", tmp_path / "new")
    assert (result.exit_code, "its rows cannot be found again" in result.stderr) == (2, True)


def test_rejects_shows_where_each_row_stands_and_why(out, batchgen, tmp_path):
    shown = batchgen("rejects", out).stdout.splitlines()
    assert shown[0].startswith(f"{tmp_path}/in.jsonl:31: invalid_json: ")
    assert shown[1] == "    no"
    assert shown[2].startswith(f"{tmp_path}/in.jsonl:32: bad_sampling: ")
    assert shown[-1] == "2 rejected rows"


def test_rejects_of_one_reason_only(out, batchgen):
    assert batchgen("rejects", out, "--only", "invalid_json").stdout.splitlines()[-1] == "1 rejected rows"


def test_rejects_of_no_job(batchgen, tmp_path):
    assert batchgen("rejects", tmp_path).exit_code == 2
