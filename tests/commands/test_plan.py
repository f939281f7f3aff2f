"""`batchgen plan` says what a run will find, and does so without an engine."""

import json
import re

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records

from batchgen.model.model import load_model


@pytest.fixture
def rows(write_rows):
    return write_rows([*demo_records(50), {"text": ""}, "no", {"text": "Monday " * 2000}])


@pytest.fixture
def flags(tmp_path):
    return ["--model", MODEL, "--output", tmp_path / "out", "--shard-rows", 20]


def test_a_plan_agrees_with_the_run_that_follows(batchgen, generate, rows, flags):
    shown = batchgen("plan", rows, *flags).stdout
    out = generate([rows], sampling={"max_tokens": 512}, output={"shard_rows": 20})
    job, success = (json.loads((out / name).read_text()) for name in ("_job.json", "_SUCCESS"))
    assert "rows           53 in 1 files\n" in shown
    assert "rejects        3 (empty 1, invalid_json 1, too_long 1)\n" in shown
    assert success["rejects"] == {"empty": 1, "invalid_json": 1, "too_long": 1}
    lengths = sorted(ds.dataset(out).to_table()["prompt_tokens"].to_pylist())
    expected = f"{sum(lengths):,}; min {lengths[0]}, median {lengths[24]}, p99 {lengths[48]}, max {lengths[-1]}\n"
    assert f"prompt tokens  {expected}" in shown
    assert "over-length    1 rows, on_overlength = reject\n" in shown
    assert "shards         3 of 20 rows\n" in shown
    assert f"fingerprint    {job['fingerprint']}\n" in shown


def test_a_plan_writes_nothing(batchgen, rows, flags, tmp_path):
    assert batchgen("plan", rows, *flags).exit_code == 0
    assert not (tmp_path / "out").exists()


def test_a_plan_without_an_output_minds_no_folder_that_is_there(batchgen, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    assert batchgen("plan", rows, "--model", MODEL).exit_code == 0


def test_the_histogram_counts_every_prompt(batchgen, rows, flags):
    bars = re.findall(r"^ *\d+ - *\d+ #* +(\d+)$", batchgen("plan", rows, *flags).stdout, re.MULTILINE)
    assert len(bars) == 10
    assert sum(map(int, bars)) == 50


def test_show_prints_prompts_with_their_ids(batchgen, rows, flags):
    shown = batchgen("plan", rows, *flags, "--show", 2).stdout
    text = f"ユーザー: {demo_records(1)[0]['conversation'][0]['text']}\nシステム: "
    assert f"row 0, id demo-00000, {len(load_model(str(MODEL)).tokenizer.encode(text))} tokens\n{text}\n[" in shown
    assert "row 1, id demo-00001" in shown and "row 2," not in shown


def test_clipped_rows_count_as_over_length_and_not_as_rejects(batchgen, rows, flags):
    shown = batchgen("plan", rows, *flags, "--on-overlength", "clip", "--max-tokens", 64).stdout
    assert "rejects        2 (empty 1, invalid_json 1)\n" in shown
    assert "over-length    1 rows, on_overlength = clip\n" in shown


def test_prompts_that_begin_alike_are_seen(batchgen, write_rows, flags):
    prefix = json.dumps([{"speaker": "ユーザー", "text": "Monday " * 30}, {"speaker": "システム", "text": "月曜日"}])
    shown = batchgen("plan", write_rows([{"text": f"{i}"} for i in range(100)]), *flags, "--prefix", prefix).stdout
    assert int(re.search(r"shared +(\d+)%", shown)[1]) > 70


def test_the_shapes_of_the_rows_are_counted(batchgen, write_rows, flags):
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"messages": [{"role": "user", "content": "c"}]}, {"text": ""}]
    assert "shapes         prompt 2, openai 1\n" in batchgen("plan", write_rows(rows), *flags).stdout
    assert "shapes         template 2\n" in batchgen("plan", write_rows(rows), *flags, "--template", "{prompt}").stdout


def test_an_input_of_nothing_but_rejects(batchgen, write_rows, flags):
    shown = batchgen("plan", write_rows(["no"]), *flags).stdout
    assert "prompt tokens  0; min 0, median 0, p99 0, max 0\n" in shown


def test_the_texts_of_a_translation_are_counted_by_their_paths(tmp_path, batchgen):
    rows = [{"a": "x", "b": {"c": "y", "d": "z"}}, {"a": "x", "b": {"c": "y", "d": None}}, {"a": None, "b": None}]
    pq.write_table(pa.Table.from_pylist(rows), path := tmp_path / "in.parquet")
    asked = [
        "--translate-fields",
        "b.c",
        "--translate-fields",
        "a",
        "--translate-fields",
        "b.d",
        "--translate-into",
        "ja",
    ]
    command = ["plan", path, "--model", MODEL, "--output", tmp_path / "out", "--template", "{text}", *asked]
    found = json.loads(batchgen(*command, "--json").stdout)["translation"]
    assert found["fields"] == {"b.c": 2, "a": 2, "b.d": 1}
    assert found["missing"] == {"b.c": 1, "b.d": 2, "a": 1}


def test_a_path_that_leads_to_no_text_in_any_row_is_told(tmp_path, batchgen):
    (path := tmp_path / "in.jsonl").write_text('{"a": [{"b": "x"}], "c": "y"}\n')
    command = [path, "--model", MODEL, "--output", tmp_path / "out", "--template", "{text}", "--translate-into", "ja"]
    done = batchgen("plan", *command, "--translate-fields", "a[*].d", "--translate-fields", "c")
    assert done.stderr == "batchgen: warning: [translate] fields: a[*].d: no row was found that has a text there\n"
    shown = batchgen("plan", *command, "--translate-fields", "a").stdout
    assert "no texts       a in 1 rows\n" in shown
    refused = batchgen("run", *command, "--translate-fields", "a[*].d")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "[translate] fields: no row has a text at a[*].d" in refused.stderr
