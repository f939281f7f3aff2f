"""No engine is started where there is nothing to ask it, and what is left is committed all the same."""

import json

import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records
from processes import Watch, dataset, said

BAD = {"chosen": "of no shape"}


@pytest.fixture
def watch(tmp_path):
    return Watch(tmp_path, step=0)


@pytest.fixture
def run(watch, batchgen_process, tmp_path):
    def command(name, *arguments, out="out", code=0):
        flags = ["--output", tmp_path / out, *([] if name == "retry" else ["--model", MODEL])]
        done = batchgen_process(name, *arguments, *flags, env=watch.environment)
        assert done.returncode == code, done.stderr
        return done

    return command


def test_a_trial_that_is_done_starts_none_again(run, watch, write_rows):
    source = write_rows([*demo_records(8), BAD, *demo_records(30)])
    first = run("run", source, "--limit", 10)
    again = run("run", source, "--limit", 10)
    assert len(watch.started()) == 1
    assert again.stdout.splitlines()[0] == first.stdout.splitlines()[0]
    run("run", source, "--limit", 11)
    assert len(watch.started()) == 2


def test_rows_that_are_all_rejected_start_none(run, watch, write_rows, tmp_path, batchgen):
    done = run("run", write_rows([BAD] * 12), "--shard-rows", 5, "--max-rejects", 12)
    assert watch.started() == []
    assert done.stdout.startswith("done: 12 rows, 0 responses, 12 rejects (bad_shape 12)")
    assert "; the engine was asked for nothing\n" in done.stdout
    assert batchgen("verify", tmp_path / "out").exit_code == 0


def test_a_night_whose_new_rows_are_all_rejected_starts_none_and_warns_of_no_other_engine(run, watch, tmp_path):
    (source := tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demo_records(5)))
    run("run", source, "--incremental")
    for rows, engines in (([BAD] * 3, 1), ([], 1), ([{"text": "Monday"}], 2)):
        with source.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        done = run("run", source, "--incremental")
        assert said(done.stderr) == []
        assert len(watch.started()) == engines
    parts = sorted((tmp_path / "out").glob("part-*"))
    made_by = {pq.read_metadata(part).metadata[b"batchgen.device"] for part in parts}
    assert (len(parts), len(made_by)) == (3, 1)


def test_a_shard_of_rejects_is_the_same_bytes_with_and_without_an_engine(run, watch, write_rows, tmp_path):
    source = write_rows([*demo_records(5), *[BAD] * 5])
    run("run", source, "--shard-rows", 5, out="at once")
    run("run", source, "--shard-rows", 5, "--limit", 5)
    run("run", source, "--shard-rows", 5)
    assert len(watch.started()) == 2
    assert dataset(tmp_path / "out") == dataset(tmp_path / "at once")


def test_a_translation_that_its_memory_knows_whole_starts_none(run, watch, tmp_path):
    (source := tmp_path / "in.jsonl").write_text('{"a": "Hello."}\n{"a": "See you."}\n')
    asked = [source, "--template", "{text}", "--translate-fields", "a", "--translate-into", "ja"]
    run("run", *asked, out="first")
    done = run("run", *asked, "--translate-memory", tmp_path / "first", out="second")
    assert len(watch.started()) == 1
    assert done.stdout.startswith("done: 2 rows, 2 records")


@pytest.mark.parametrize("task", [[], ["--score-mode", "text"]])
def test_a_job_that_is_done_and_a_retry_of_nothing_start_none(run, watch, write_rows, tmp_path, task):
    source = write_rows([{"text": "Monday"}, {"text": "Tuesday"}])
    for _ in range(2):
        done = run("run", source, *task)
    assert done.stdout.startswith("all done already: 2 rows")
    assert run("retry", tmp_path / "out", "--only", "length", out="again", code=2).stdout == ""
    assert len(watch.started()) == 1
