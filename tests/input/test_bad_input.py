"""Bad input: one clear line and exit 2 before anything starts, or one reject for one row."""

import gzip
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MODEL

from batchgen.input.conversation import ASSISTANT, USER
from batchgen.input.plan import COMPRESSION_BY_ENDING

GOOD = {"text": "Monday"}


def talk(*turns):
    return {"conversation": [{"speaker": speaker, "text": text} for speaker, text in turns]}


REJECTS = {
    "not JSON": ("Monday", "invalid_json"),
    "JSON cut off": ('{"text": "Mon', "invalid_json"),
    "two objects in a line": ('{"text": "a"} {"text": "b"}', "invalid_json"),
    "nested too deep": ("[" * 100_000, "invalid_json"),
    "half of a surrogate pair": ('{"text": "\\ud800"}', "invalid_json"),
    "not UTF-8": (b'{"text": "\xff\xfe"}', "invalid_utf8"),
    "UTF-16": ('{"text": "x"}'.encode("utf-16"), "invalid_utf8"),
    "a list": ("[1, 2]", "bad_shape"),
    "a number": ("7", "bad_shape"),
    "no conversation": ({"question": "Monday"}, "bad_shape"),
    "text is a number": ({"text": 7}, "bad_shape"),
    "conversation is text": ({"conversation": "Monday"}, "bad_shape"),
    "utterance without text": ({"conversation": [{"speaker": USER}]}, "bad_shape"),
    "utterance is text": ({"conversation": ["Monday"]}, "bad_shape"),
    "ends with the answer": (talk((USER, "Monday"), (ASSISTANT, "月曜日")), "bad_shape"),
    "another speaker": (talk(("user", "Monday")), "unknown_speaker"),
    "speaker is null": (talk((None, "Monday")), "unknown_speaker"),
    "speaker is a list": (talk((["x"], "Monday")), "unknown_speaker"),
    "blank line": ("", "empty"),
    "blank text": ({"text": " \n"}, "empty"),
    "no utterances": ({"conversation": []}, "empty"),
    "blank utterance": (talk((USER, ""), (ASSISTANT, "x"), (USER, "y")), "empty"),
    "temperature below 0": ({**GOOD, "sampling": {"temperature": -1}}, "bad_sampling"),
    "temperature that vLLM would change": ({**GOOD, "sampling": {"temperature": 0.001}}, "bad_sampling"),
    "top_p of 0": ({**GOOD, "sampling": {"top_p": 0}}, "bad_sampling"),
    "max_tokens of 0": ({**GOOD, "sampling": {"max_tokens": 0}}, "bad_sampling"),
    "max_tokens as text": ({**GOOD, "sampling": {"max_tokens": "9"}}, "bad_sampling"),
    "min_tokens above max_tokens": ({**GOOD, "sampling": {"min_tokens": 9, "max_tokens": 8}}, "bad_sampling"),
    "unknown parameter": ({**GOOD, "sampling": {"temprature": 1}}, "bad_sampling"),
    "temperature beyond vLLM's": ({**GOOD, "sampling": {"temperature": 2.1}}, "bad_sampling"),
    "top_k beyond its column": ({**GOOD, "sampling": {"top_k": 2**31}}, "bad_sampling"),
    "max_tokens beyond its column": ({**GOOD, "sampling": {"max_tokens": 2**31}}, "bad_sampling"),
    "negative seed": ({**GOOD, "seed": -1}, "bad_sampling"),
    "seed too large for JSON readers": ({**GOOD, "seed": 2**53}, "bad_sampling"),
    "stop token the model lacks": ({**GOOD, "sampling": {"stop_token_ids": [10**6]}}, "bad_sampling"),
    "allowed token the model lacks": ({**GOOD, "sampling": {"allowed_token_ids": [-1]}}, "bad_sampling"),
    "bias for a token the model lacks": ({**GOOD, "sampling": {"logit_bias": {"99999": 1}}}, "bad_sampling"),
    "empty stop text": ({**GOOD, "sampling": {"stop": [""]}}, "bad_sampling"),
    "logprobs the job does not write": ({**GOOD, "sampling": {"logprobs": 1}}, "bad_sampling"),
    "longer than the context": ({"text": "Monday " * 2000}, "too_long"),
    "no room for min_tokens": ({**GOOD, "sampling": {"min_tokens": 600, "max_tokens": 600}}, "too_long"),
}


def test_every_bad_row_is_rejected_with_its_reason_and_the_others_are_answered(generate, write_rows):
    rows = [row for bad, _ in REJECTS.values() for row in (bad, GOOD)]
    out = generate([write_rows(rows)], sampling={"max_tokens": 8})
    lines = [json.loads(line) for line in (out / "_rejects" / "part-00000-of-00001.jsonl").read_text().splitlines()]
    found = {line["row"]: line["reason"] for line in lines}
    assert found == {2 * number: reason for number, (_, reason) in enumerate(REJECTS.values())}
    assert all(line["detail"] for line in lines)
    answered = pq.read_table(out / "part-00000-of-00001.parquet")["row"].to_pylist()
    assert answered == [2 * number + 1 for number in range(len(REJECTS))]


def test_a_reject_shows_the_row_as_it_was(generate, write_rows):
    out = generate([write_rows([b'{"id": "a", "text": 7}', b"caf\xe9", GOOD])])
    lines = [json.loads(line) for line in (out / "_rejects" / "part-00000-of-00001.jsonl").read_text().splitlines()]
    assert [(line["id"], line["raw"]) for line in lines] == [("a", '{"id": "a", "text": 7}'), ("1", "caf\\xe9")]


def test_more_rejects_than_max_rejects_exit_3_with_all_results_kept(generate, batchgen, write_rows, tmp_path):
    rows = write_rows([GOOD, "no", "no"])
    out = generate([rows])
    arguments = ["run", rows, "--model", MODEL, "--output", out]
    assert batchgen(*arguments, "--max-rejects", 2).exit_code == 0
    result = batchgen(*arguments, "--max-rejects", 1)
    assert result.exit_code == 3
    assert "2 rows were rejected, max_rejects allows 1" in result.stderr


# --- what stops a job before it starts


@pytest.fixture
def refused(batchgen, tmp_path):
    """Runs a command that must fail with exit 2; gives its one line."""

    def run(*arguments) -> str:
        result = batchgen("run", *arguments)
        assert result.exit_code == 2, result.stdout + result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert not (tmp_path / "out" / "_job.json").exists()
        return result.stderr

    return run


@pytest.fixture
def flags(tmp_path):
    return ["--model", MODEL, "--output", tmp_path / "out"]


def copy_of_model(tmp_path, without=()):
    shutil.copytree(MODEL, tmp_path / "model")
    for name in without:
        (tmp_path / "model" / name).unlink()
    return tmp_path / "model"


def test_no_such_input(refused, flags, tmp_path):
    assert "nowhere.jsonl: no such file or folder" in refused(tmp_path / "nowhere.jsonl", *flags)


def test_a_glob_that_matches_nothing(refused, flags, tmp_path):
    assert "no file matches" in refused(tmp_path / "*.jsonl", *flags)


def test_a_folder_without_data(refused, flags, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("x")
    assert "folder without .jsonl" in refused(tmp_path / "data", *flags)


def test_a_uri_of_no_known_file_system(refused, flags):
    assert "nfs://host/x.jsonl: not a URI that can be opened" in refused("nfs://host/x.jsonl", *flags)


def test_the_same_file_twice(refused, flags, write_rows):
    rows = write_rows([GOOD])
    assert "named twice" in refused(rows, rows.parent, *flags)


def test_empty_file(refused, flags, write_rows):
    assert "in.jsonl: no rows; the input is empty" in refused(write_rows([]), *flags)


def test_not_parquet(refused, flags, write_rows):
    assert "in.parquet: not a Parquet file" in refused(write_rows(["PAR1 no more"], "in.parquet"), *flags)


@pytest.mark.parametrize("ending", COMPRESSION_BY_ENDING)
def test_cut_off_compressed_file(refused, flags, tmp_path, ending):
    path = tmp_path / f"in.jsonl{ending}"
    with pa.OSFile(str(path), "wb") as raw, pa.CompressedOutputStream(raw, COMPRESSION_BY_ENDING[ending]) as stream:
        stream.write(b"".join(json.dumps({"text": f"{i * i}"}).encode() + b"\n" for i in range(100_000)))
    path.write_bytes(path.read_bytes()[:-100])
    line = refused(path, *flags)
    assert f"in.jsonl{ending}: cut off or damaged {COMPRESSION_BY_ENDING[ending]} after" in line


def test_gz_that_is_no_gzip(refused, flags, write_rows):
    assert "in.jsonl.gz: cut off or damaged gzip" in refused(write_rows([b"\x1f\x8bno"], "in.jsonl.gz"), *flags)


def test_parquet_without_the_needed_column(refused, flags, tmp_path):
    pq.write_table(pa.table({"question": ["Monday"], "answer": ["月曜日"]}), tmp_path / "in.parquet")
    line = refused(tmp_path / "in.parquet", *flags)
    assert "none of the columns conversation, messages" in line


def test_no_such_model(refused, write_rows, tmp_path):
    line = refused(write_rows([GOOD]), "--model", tmp_path / "none", "--output", tmp_path / "out")
    assert "none: no such model folder" in line


@pytest.mark.parametrize("name", ["config.json", "spiece.model", "tokenizer_config.json"])
def test_model_folder_that_lacks_a_file(refused, write_rows, tmp_path, name):
    model = copy_of_model(tmp_path, without=[name])
    assert name in refused(write_rows([GOOD]), "--model", model, "--output", tmp_path / "out")


def test_model_folder_without_weights(refused, write_rows, tmp_path):
    model = copy_of_model(tmp_path, without=["model.safetensors"])
    assert "no weights" in refused(write_rows([GOOD]), "--model", model, "--output", tmp_path / "out")


def test_tokenizer_larger_than_the_model(refused, write_rows, tmp_path):
    model = copy_of_model(tmp_path)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    line = refused(write_rows([GOOD]), "--model", model, "--output", tmp_path / "out")
    assert "but the model only 300" in line


def test_output_folder_that_holds_something_else(refused, flags, write_rows, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    assert "out: holds something else (thesis.tex)" in refused(write_rows([GOOD]), *flags)


def test_output_that_is_a_file(refused, flags, write_rows, tmp_path):
    (tmp_path / "out").write_text("x")
    assert "out: is a file" in refused(write_rows([GOOD]), *flags)


def test_wrong_engine_argument_names_the_nearest_right_one(refused, flags, write_rows):
    line = refused(write_rows([GOOD]), *flags, "--engine", "max_num_seq=8")
    assert "[engine] max_num_seq: vLLM 0" in line
    assert "did you mean max_num_seqs?" in line


def test_engine_argument_that_batchgen_sets_itself(refused, flags, write_rows):
    assert "batchgen sets this itself" in refused(write_rows([GOOD]), *flags, "--engine", "skip_tokenizer_init=false")


def test_context_beyond_the_models(refused, flags, write_rows):
    assert "from 2 to 512" in refused(write_rows([GOOD]), *flags, "--engine", "max_model_len=4096")


def test_passed_through_column_that_is_not_there(refused, flags, write_rows):
    line = refused(write_rows([GOOD]), *flags, "--column", "expected")
    assert "column expected: not in the input" in line


def test_passed_through_column_with_a_name_of_batchgens_own(refused, flags, write_rows):
    line = refused(write_rows([{**GOOD, "response": "x"}]), *flags, "--column", "response")
    assert "response is one of batchgen's own columns" in line


def test_gzip_of_several_members_is_read_whole(generate, tmp_path):
    lines = [json.dumps({"text": f"{day}day"}).encode() + b"\n" for day in ("Mon", "Sun")]
    (tmp_path / "in.jsonl.gz").write_bytes(b"".join(map(gzip.compress, lines)))
    out = generate([tmp_path / "in.jsonl.gz"], sampling={"max_tokens": 4})
    assert pq.read_table(out / "part-00000-of-00001.parquet").num_rows == 2


# --- a job of which nothing can be answered


def test_a_job_of_which_all_rows_would_be_rejected_ends_before_anything_is_written(
    refused, flags, write_rows, tmp_path
):
    rows = write_rows([{"question": "Monday"}] * 199 + ["no JSON"])
    line = refused(rows, *flags)
    assert "all 200 rows would be rejected (bad_shape 199, invalid_json 1), the first at" in line
    assert "in.jsonl:1: bad_shape: needs one of" in line
    assert "--max-rejects 200 to go on" in line
    assert not (tmp_path / "out").exists()


def test_max_rejects_that_allows_them_all_says_that_it_is_meant(batchgen_here, flags, write_rows):
    rows = write_rows([{"question": "Monday"}] * 3)
    assert batchgen_here("run", rows, *flags, "--max-rejects", "2").exit_code == 2
    done = batchgen_here("run", rows, *flags, "--max-rejects", "3")
    assert (done.exit_code, "3 rows, 0 responses, 3 rejects" in done.stdout) == (0, True), done.stderr


def test_one_row_that_can_be_answered_is_enough(batchgen_here, flags, write_rows):
    rows = write_rows([{"question": "Monday"}] * 1500 + [GOOD])
    done = batchgen_here("run", rows, *flags, "--max-tokens", "2")
    assert "1,501 rows, 1 responses, 1,500 rejects" in done.stdout, done.stderr


def test_a_retry_that_changes_nothing_starts_no_engine(batchgen_here, batchgen, flags, write_rows, tmp_path):
    rows = write_rows([GOOD, "no JSON"])
    assert batchgen_here("run", rows, *flags, "--max-tokens", "2").exit_code == 0
    again = batchgen("retry", tmp_path / "out", "--only", "invalid_json", "--output", tmp_path / "again")
    assert again.exit_code == 2
    assert "all 1 rows would be rejected (invalid_json 1)" in again.stderr
