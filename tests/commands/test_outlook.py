"""What `batchgen plan` says a job will still take."""

import json

import pytest
from conftest import MODEL, demo_records
from faulty import worker_here


@pytest.fixture
def planned(write_rows, tmp_path, batchgen):
    source = write_rows([*demo_records(10), "no"])

    def run(*flags) -> dict:
        command = ["plan", source, "--model", MODEL, "--output", tmp_path / "out", "--shard-rows", 4, *flags]
        done = batchgen(*command, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)["outlook"] | {"text": batchgen(*command).stdout}

    return run


def test_before_a_run_it_is_the_most_that_may_be_asked_for(planned):
    seen = planned("--max-tokens", 100, "--n", 2)
    assert (seen["requests"], seen["tokens"], seen["is_measured"], seen["seconds"]) == (20, 2000, False, None)
    assert "\ntime           20 requests, at most 2,000 tokens; at what pace, " in seen["text"]


def test_a_given_pace_makes_it_a_time(planned):
    seen = planned("--max-tokens", 100, "--tokens-per-second", 2)
    assert seen["seconds"] == 500
    assert "\ntime           at most 0:08:20: 10 requests, at most 1,000 tokens at 2 tokens/s\n" in seen["text"]


def test_once_it_was_begun_it_goes_by_what_is_there(planned, instant_engine, batchgen, tmp_path, write_rows):
    source = write_rows([*demo_records(10), "no"])
    flags = ["--model", MODEL, "--output", tmp_path / "out", "--shard-rows", 4]
    with worker_here(instant_engine):
        batchgen("run", source, *flags, "--limit", 4)
    seen = planned()
    assert (seen["requests"], seen["tokens"], seen["is_measured"]) == (6, 51, True)  # 7 of 11 rows; 8 tokens each
    assert seen["seconds"] == pytest.approx(seen["tokens"] / seen["tokens_per_second"])
    size = (tmp_path / "out" / "part-00000-of-00003.parquet").stat().st_size
    assert seen["bytes"] == round(size / 4 * 10 * 7 / 11)


def test_a_job_that_is_done_takes_nothing(planned, instant_engine, batchgen, tmp_path, write_rows):
    source = write_rows([*demo_records(10), "no"])
    with worker_here(instant_engine):
        batchgen("run", source, "--model", MODEL, "--output", tmp_path / "out", "--shard-rows", 4)
    seen = planned()
    assert (seen["requests"], seen["tokens"], seen["bytes"]) == (0, 0, 0)
    assert "\ntime " not in seen["text"]


def test_of_scores_it_is_the_tokens_of_the_prompts(planned):
    seen = planned("--score-mode", "text", "--score-column", "expected", "--tokens-per-second", 1)
    assert seen["requests"] == 10 and seen["tokens"] > 10
    assert not seen["is_measured"]
