"""A trial: the first rows of a job, which are kept when the limit is lifted."""

import json

import pytest
from conftest import MODEL
from faulty import dataset, worker_here
from translator import Translator, job_of, work

from batchgen.commands import status


@pytest.fixture
def run(instant_engine, write_rows, tmp_path, batchgen):
    """`batchgen run` of 50 rows, some of them rejected, in shards of 20."""
    rows = [{"id": f"a-{number}", "text": "" if number % 10 == 3 else f"row {number}"} for number in range(50)]
    source = write_rows(rows)

    def command(*flags, out="out"):
        with worker_here(instant_engine):
            done = batchgen("run", source, "--model", MODEL, "--output", tmp_path / out, "--shard-rows", 20, *flags)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    return command


@pytest.mark.parametrize("limits", [[7], [20], [5, 45], [45, 5], [7, 7]], ids=str)
def test_a_job_that_began_as_a_trial_becomes_the_same_byte_for_byte(run, tmp_path, limits):
    for limit in limits:
        assert f"trial: the first {limit} of 50 rows are done in " in run("--limit", limit)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert run().startswith("done: 50 rows, 45 responses, 5 rejects")
    run(out="at once")
    assert dataset(tmp_path / "out") == dataset(tmp_path / "at once")


def test_only_its_rows_are_generated_and_none_of_them_again(run, tmp_path, instant_engine):
    asked = []
    add = instant_engine.add
    instant_engine.add = lambda name, *more: (asked.append(int(name.split("-")[0])), add(name, *more))
    run("--limit", 25)
    assert sorted(asked) == [number for number in range(25) if number % 10 != 3]
    seen = status.look(tmp_path / "out")
    assert (seen.state, seen.shards.done, seen.rows_done) == ("stopped", 1, 20 + 4)
    run()
    assert sorted(asked) == [number for number in range(50) if number % 10 != 3]


def test_what_it_has_made_can_be_looked_at(run, tmp_path, batchgen):
    run("--limit", 8)
    shown = batchgen("show", tmp_path / "out", "--json", "-n", 50).stdout
    assert [json.loads(line)["row"] for line in shown.splitlines()] == [0, 1, 2, 4, 5, 6, 7]


def test_a_limit_beyond_the_last_row_is_none(run, tmp_path):
    assert run("--limit", 50).startswith("done: 50 rows")
    assert run("--limit", 10).startswith("all done already: 50 rows")


def test_a_trial_of_a_translation_goes_on_too(write_rows, tmp_path):
    source = write_rows([{"a": [f"row {number}.", "Hello."]} for number in range(6)])
    answers = Translator(lambda text, attempt: f"<{text}>")
    job = job_of([source], tmp_path / "out", ["a[*]"], input={"limit": 2})
    work(job, answers, shards=job.shards)
    assert len(answers.asked) == 3
    work(job_of([source], tmp_path / "out", ["a[*]"]), answers)
    assert len(answers.asked) == 7


def test_plan_says_what_the_first_rows_will_be(run, tmp_path, write_rows, batchgen):
    source = write_rows([{"text": "row"}] * 5 + [{"text": ""}] * 5, "plan.jsonl")
    seen = batchgen("plan", source, "--model", MODEL, "--output", tmp_path / "planned", "--limit", 5).stdout
    assert seen.startswith("rows           10 in 1 files; what follows is of the first 5\nrejects        0\n")
