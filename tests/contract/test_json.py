"""`--json`: a document on stdout and nothing else, under the names that Python has, with the exit code of the text."""

import dataclasses
import json

import pytest
from conftest import MODEL, demo_records
from processes import instant

from batchgen import verify
from batchgen.api.results import Rejected


@pytest.fixture
def out(instantly, write_rows):
    """A finished job of 12 rows, two of which are rejected."""
    return instantly([write_rows([*demo_records(10), {"chosen": "x"}, {"text": ""}])], output={"shard_rows": 5})


def test_verify(out, batchgen):
    done = batchgen("verify", out, "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, done.stderr, told["verified"], told["problems"]) == (0, "", True, [])
    expected = verify(out)
    assert {*told} == {"verified", "replay", *(field.name for field in dataclasses.fields(expected))}
    assert (told["counts"]["responses"], told["digest"]) == (10, expected.digest)


def test_verify_of_a_folder_that_lacks_a_shard(out, batchgen):
    next(out.glob("part-*")).unlink()
    done = batchgen("verify", out, "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["verified"], len(told["problems"])) == (1, False, 1)
    assert f"batchgen: {told['problems'][0]}\n" in done.stderr


def test_rejects_are_an_object_on_each_line(out, batchgen):
    done = batchgen("rejects", out, "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["row"], line["reason"]) for line in told] == [(10, "bad_shape"), (11, "empty")]
    assert all({*line} == {*Rejected._fields} for line in told) and told[0]["place"].endswith(":11")
    assert len(batchgen("rejects", out, "--json", "--only", "empty").stdout.splitlines()) == 1


def test_inspect(batchgen):
    told = json.loads(batchgen("inspect", MODEL, "--json").stdout)
    assert (told["prompt_format"], told["context"]) == ("speaker", 512)
    assert {*told["weights"]} == {"model.safetensors"} and told["defaults"]["max_tokens"]


def test_a_run_and_a_retry_say_what_the_log_of_runs_says(out, batchgen_process, tmp_path):
    env = instant(tmp_path / "env")
    flags = ["--only", "bad_shape", "--template", "{chosen}", "--output", tmp_path / "again", "--json"]
    done = batchgen_process("retry", out, *flags, env=env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    [logged] = map(json.loads, (tmp_path / "again" / "_runs.jsonl").read_text().splitlines())
    assert (told["rows"], told["responses"], told["outcome"]) == (1, 1, "done")
    same = told.keys() - {"seconds", "tokens_per_second"}
    assert {name: told[name] for name in same} == {name: logged[name] for name in same}


def test_nothing_is_printed_of_a_run_that_does_not_come_to_its_end(batchgen, tmp_path):
    done = batchgen("run", tmp_path / "none.jsonl", "--model", MODEL, "--output", tmp_path / "out", "--json")
    assert (done.exit_code, done.stdout) == (2, "")
