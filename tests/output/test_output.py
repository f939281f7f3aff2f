"""The output folder: columns, metadata, accounting, and that other programs open it as it is."""

import json
import shutil
from collections import Counter

import datasets
import duckdb
import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import CONVERSATIONS, MODEL, demo_records
from translator import Translator, work

from batchgen import __version__
from batchgen.errors import Stopped
from batchgen.job.spec import load
from batchgen.output import hugging_face, opening, record
from batchgen.output.store import FolderStore
from batchgen.runner.prepare import prepare


@pytest.fixture
def out(generate, write_rows):
    """Six rows in three shards, one of them rejected."""
    rows = [*demo_records(4), {"text": ""}, {"text": "Monday", "expected": None}]
    return generate(
        [write_rows(rows)],
        sampling={"temperature": 0, "seed": 9},
        output={"shard_rows": 2, "columns": ["expected"], "include": ["prompt", "prompt_token_ids"]},
    )


def test_columns_and_types_are_the_documented_ones(out):
    schema = pq.read_schema(out / "part-00000-of-00003.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "id": "string",
        "row": "int64",
        "sample": "int32",
        "conversation": "list<element: struct<speaker: string, text: string>>",
        "response": "string",
        "finish_reason": "string",
        "prompt_tokens": "int32",
        "truncated": "int32",
        "response_tokens": "int32",
        "seed": "int64",
        "sampling": "struct<temperature: double, top_p: double, top_k: int32, min_p: double, "
        "repetition_penalty: double, presence_penalty: double, frequency_penalty: double, max_tokens: int32, "
        "min_tokens: int32, ignore_eos: bool, stop: list<element: string>, stop_token_ids: list<element: int32>, "
        "include_stop_str_in_output: bool, bad_words: list<element: string>, allowed_token_ids: list<element: int32>, "
        "logit_bias: list<element: struct<token_id: int32, bias: double>>, structured_outputs: string, "
        "logprobs: int32, repetition_detection: string, thinking_token_budget: int32>",
        "expected": "string",
        "prompt": "string",
        "prompt_token_ids": "list<element: int32>",
    }


def test_every_file_has_the_documented_place(out):
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert [name for name in found if not name.startswith("_state/")] == [
        ".huggingface.yaml",
        "_SUCCESS",
        "_job.json",
        "_rejects/part-00002-of-00003.jsonl",
        "part-00000-of-00003.parquet",
        "part-00001-of-00003.parquet",
        "part-00002-of-00003.parquet",
    ]


def test_metadata_says_where_a_shard_comes_from(out):
    metadata = pq.read_metadata(out / "part-00002-of-00003.parquet").metadata
    about = {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"batchgen.")}
    job = json.loads((out / "_job.json").read_text())
    assert about["batchgen.fingerprint"] == job["fingerprint"]
    assert json.loads(about["batchgen.versions"])["batchgen"] == __version__
    assert {"vllm", "torch"} <= json.loads(about["batchgen.versions"]).keys()
    model = json.loads(about["batchgen.model"])
    assert model["name"] == "model"
    assert set(model["digests"]) == {"config.json", "spiece.model", "tokenizer_config.json", "model.safetensors"}
    assert (about["batchgen.dtype"], about["batchgen.device"]) == ("float32", "cpu")
    assert (about["batchgen.runner"], about["batchgen.noise"]) == ("V1", "SplitMix64")
    assert (about["batchgen.shard"], about["batchgen.first_row"]) == ("2", "4")
    counts = json.loads(about["batchgen.counts"])
    assert (counts["rows"], counts["responses"], counts["rejects"]) == (2, 1, {"empty": 1})


def test_success_holds_the_counts_of_all_shards(out):
    success = json.loads((out / "_SUCCESS").read_text())
    table = ds.dataset(out).to_table()
    assert success["rows"] == 6
    assert success["responses"] == table.num_rows == 5
    assert success["rejects"] == {"empty": 1}
    assert success["response_tokens"] == sum(table["response_tokens"].to_pylist())
    assert success["finish_reasons"] == Counter(table["finish_reason"].to_pylist())


def test_responses_that_are_empty_or_end_in_a_loop_are_counted(write_rows, tmp_path, batchgen):
    answers = {"loop": ("はい。" * 30, "length"), "cut": ("one two", "length"), "blank": " ", "fine": "yes"}
    tables = {
        "input": {"path": [str(write_rows([{"text": text} for text in answers]))]},
        "model": {"path": str(MODEL)},
        "output": {"path": str(tmp_path / "out")},
    }
    job = prepare(load(None, tables))
    opening.open_job(job.out, job.record)
    work(job, Translator(lambda text, attempt: answers[text]))
    success = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    found = {name: success[name] for name in ("finish_reasons", "empty", "repetitive")}
    assert found == {"finish_reasons": {"length": 2, "stop": 2}, "empty": 1, "repetitive": 1}
    line = "stop 2, length 2 (50.0%); 1 empty, 1 repetitive"
    assert f"\nended        {line}\n" in batchgen("status", tmp_path / "out").stdout
    batchgen("export", tmp_path / "out", "--to", tmp_path / "card")
    assert f"| finish reasons | {line} |" in (tmp_path / "card" / "README.md").read_text()
    batchgen("status", tmp_path / "out", "--prometheus", tmp_path / "out.prom")
    metrics = (tmp_path / "out.prom").read_text()
    assert f'batchgen_finish_reasons_total{{out="{tmp_path / "out"}",reason="length"}} 2\n' in metrics
    about = pq.read_metadata(tmp_path / "out" / "part-00000-of-00001.parquet").metadata
    assert "finish_reasons" not in json.loads(about[b"batchgen.counts"])  # so that shards are what older versions made


def test_rows_are_in_input_order_and_samples_in_order(generate, write_rows):
    rows = [{"text": "Monday", "sampling": {"max_tokens": 1 + (7 * i) % 23, "ignore_eos": True}} for i in range(90)]
    out = generate([write_rows(rows)], sampling={"n": 3}, output={"shard_rows": 40})
    found = [(row["row"], row["sample"]) for row in ds.dataset(out).to_table().to_pylist()]
    assert found == [(row, sample) for row in range(90) for sample in range(3)]


def test_the_conversation_is_as_rendered_and_a_plain_prompt_is_the_users(generate, write_rows):
    out = generate([write_rows([{"prompt": "Monday"}])], output={"include": ["prompt"]}, sampling={"max_tokens": 4})
    [row] = ds.dataset(out).to_table().to_pylist()
    assert row["conversation"] == [{"speaker": "ユーザー", "text": "Monday"}]
    assert row["prompt"] == "ユーザー: Monday\nシステム: "


def test_earlier_turns_are_joined_by_newlines(generate, write_rows):
    turns = [("ユーザー", "Monday"), ("システム", "月曜日"), ("ユーザー", "Friday")]
    rows = [{"conversation": [{"speaker": speaker, "text": text} for speaker, text in turns]}]
    out = generate([write_rows(rows)], output={"include": ["prompt"]}, sampling={"max_tokens": 4})
    [row] = ds.dataset(out).to_table().to_pylist()
    assert row["prompt"] == "ユーザー: Monday\nシステム: 月曜日\nユーザー: Friday\nシステム: "


def test_special_tokens_in_a_users_text_are_plain_text(generate, write_rows):
    out = generate(
        [write_rows([{"text": "</s>"}])], output={"include": ["prompt_token_ids"]}, sampling={"max_tokens": 4}
    )
    [row] = ds.dataset(out).to_table().to_pylist()
    assert 3 not in row["prompt_token_ids"]  # </s>


# --- passed-through columns


def test_json_columns_get_the_types_of_their_values(generate, write_rows):
    rows = [
        {"text": "a", "name": "x", "count": 1, "share": 0.5, "good": True, "tags": ["p", "q"], "mixed": 1},
        {"text": "b", "name": None, "count": 2, "share": 1, "good": False, "tags": {"r": 1}, "mixed": "2"},
        {"text": "c"},
    ]
    names = ["name", "count", "share", "good", "tags", "mixed"]
    out = generate([write_rows(rows)], output={"columns": names}, sampling={"max_tokens": 2})
    table = ds.dataset(out).to_table(names)
    assert [str(type) for type in table.schema.types] == ["string", "int64", "double", "bool", "string", "string"]
    assert table.to_pylist()[0] == {
        "name": "x", "count": 1, "share": 0.5, "good": True, "tags": '["p","q"]', "mixed": "1"
    }  # fmt: skip
    assert table.to_pylist()[2] == dict.fromkeys(names)


def test_a_value_that_does_not_fit_its_declared_column_is_rejected(generate, write_rows):
    rows = [{"text": "a", "count": 1}, {"text": "b", "count": "many"}, {"text": "c", "count": 2**63}]
    out = generate([write_rows(rows)], output={"columns": ["count:int64"]}, sampling={"max_tokens": 2})
    lines = [json.loads(line) for line in (out / "_rejects" / "part-00000-of-00001.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == [(1, "bad_shape"), (2, "bad_shape")]


def test_parquet_columns_keep_their_arrow_types(generate, tmp_path):
    types = {"when": pa.timestamp("us"), "price": pa.decimal128(9, 2), "where": pa.struct([("x", pa.float32())])}
    table = pa.table({"text": ["a"], "when": [0], "price": [None], "where": [{"x": 1.5}]})
    table = table.cast(pa.schema([("text", pa.string()), *types.items()]))
    pq.write_table(table, tmp_path / "in.parquet")
    out = generate([tmp_path / "in.parquet"], output={"columns": list(types)}, sampling={"max_tokens": 2})
    found = ds.dataset(out).to_table(list(types))
    assert found.schema.types == list(types.values())
    assert found.to_pylist() == table.select(list(types)).to_pylist()


# --- other programs


def test_pyarrow_dataset_opens_the_folder(out):
    assert ds.dataset(out).to_table()["id"].to_pylist() == [*(f"demo-{i:05}" for i in range(4)), "5"]


def test_pandas_opens_the_folder(out):
    frame = pd.read_parquet(out)
    assert len(frame) == 5
    assert frame["sampling"][0]["temperature"] == 0


def test_duckdb_opens_the_folder(out):
    query = f"select count(*), min(id), max(sampling.max_tokens) from '{out}/*.parquet'"
    [(count, first, _)] = duckdb.sql(query).fetchall()
    assert (count, first) == (5, "5")


def test_duckdb_takes_a_folder_named_parquet_for_a_table(out, tmp_path):
    named = shutil.copytree(out, tmp_path / "answers.parquet")
    assert duckdb.sql(f"select count(*) from '{named}'").fetchall() == [(5,)]


def test_hugging_face_datasets_opens_the_folder(out, tmp_path):
    """Also where there are more files of rejects than of responses, which it would otherwise take for the data."""
    for number in range(5):
        shutil.copy(out / "_rejects" / "part-00002-of-00003.jsonl", out / "_rejects" / f"{number}.jsonl")
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 5
    assert loaded[0]["conversation"] == demo_records(1)[0]["conversation"]


def test_hugging_face_datasets_does_not_go_on_with_rows_of_before(instantly, write_rows, tmp_path):
    """It keeps what it has read by what `.huggingface.yaml` says: of an unfinished job, or of another of this name."""

    def loaded(out) -> list[str]:
        return datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))["id"][:]

    def made(*rows, order=None):
        inputs = [write_rows([{"id": row, "text": row} for row in rows])]
        return instantly(inputs, order=order, output={"shard_rows": 2})

    with pytest.raises(Stopped):  # as it cannot be closed
        made("a", "b", "c", order=lambda shards: shards[:1])
    assert loaded(tmp_path / "out") == ["a", "b"]
    begun = hugging_face.begun(FolderStore(tmp_path / "out"))
    assert loaded(made("a", "b", "c")) == ["a", "b", "c"]
    assert hugging_face.begun(FolderStore(tmp_path / "out")) == pytest.approx(begun, abs=0.001)
    shutil.rmtree(tmp_path / "out")
    assert loaded(made("a", "d", "c")) == ["a", "d", "c"]


def test_hugging_face_datasets_opens_a_folder_with_a_shard_of_rejects_alone(instantly, write_rows, tmp_path):
    """It reads no file whose first row group is empty."""
    out = instantly([write_rows([{"text": "a"}, {"text": ""}])], output={"shard_rows": 1})
    assert [pq.read_metadata(path).num_row_groups for path in sorted(out.glob("part-*"))] == [1, 0]
    assert datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache")).num_rows == 1
    assert pq.read_table(out).num_rows == 1


def test_a_folder_of_before_goes_on_with_the_empty_group_that_such_a_shard_had(instantly, write_rows, tmp_path):
    inputs, tables = [write_rows([{"text": "a"}, {"text": ""}])], {"output": {"shard_rows": 1}}
    with pytest.raises(Stopped):
        instantly(inputs, order=lambda shards: shards[:1], **tables)
    folder = FolderStore(tmp_path / "out")
    record.write(folder, msgspec.structs.replace(record.read_job(folder), format=4))
    out = instantly(inputs, **tables)
    assert [pq.read_metadata(path).num_row_groups for path in sorted(out.glob("part-*"))] == [1, 1]


def test_the_shipped_data_has_what_the_readme_says():
    assert len(CONVERSATIONS.read_text(encoding="utf-8").splitlines()) == 2000
