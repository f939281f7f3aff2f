"""What a worker says when something is wrong with most rows or responses, and when it stops for that."""

import os

import pytest
from conftest import MODEL
from translator import Translator, work

from batchgen.errors import JobError
from batchgen.job.spec import load
from batchgen.output import opening
from batchgen.output.claims import Claims
from batchgen.runner import first_look
from batchgen.runner.messages import Warn
from batchgen.runner.prepare import Job, prepare
from batchgen.runner.run import missing_shards
from batchgen.runner.worker import Worker

LOOP, LONG, SAME = ("はい。" * 30, "length"), ("one and two", "length"), "the same answer to all of them"


@pytest.fixture
def job(write_rows, tmp_path):
    def made(rows, **output) -> Job:
        tables = {
            "input": {"path": [str(write_rows(rows))]},
            "model": {"path": str(MODEL)},
            "output": {"path": str(tmp_path / "out"), **output},
        }
        prepared = prepare(load(None, tables))
        opening.open_job(prepared.out, prepared.record)
        return prepared

    return made


def warnings(job: Job, says) -> list[str]:
    reports = []
    Worker(job, Translator(says), Claims(job.out, stale=60), reports.append).run(missing_shards(job))
    return [report.text for report in reports if isinstance(report, Warn)]


def rows(count: int) -> list[dict]:
    return [{"text": f"row {number}"} for number in range(count)]


@pytest.mark.parametrize(
    "wrong, what",
    [
        (LONG, "cut off: [sampling] max_tokens (512)"),
        (LOOP, "end in a loop; [sampling] repetition_penalty"),
        (" ", "are empty; look at [prompt] format (it is speaker)"),
        (SAME, "are the same text; does [prompt] template"),
    ],
)
def test_what_is_wrong_with_most_responses_is_said_once_with_the_key(job, monkeypatch, wrong, what):
    monkeypatch.setattr(first_look, "RESPONSES", 20)

    def says(text, attempt):
        number = int(text.split()[1])
        return wrong if number % 3 else f"answer {number}"

    said = warnings(job(rows(60)), says)
    assert [text for text in said if what in text] == said[:1]
    assert len(said) == (2 if wrong == LOOP else 1)
    assert said[0].startswith("most of the first 20 responses ")


def test_half_of_them_is_not_most(job, monkeypatch):
    monkeypatch.setattr(first_look, "RESPONSES", 20)
    assert warnings(job(rows(60)), lambda text, attempt: LONG if int(text.split()[1]) % 2 else text) == []


def test_short_answers_may_be_the_same(job, monkeypatch):
    monkeypatch.setattr(first_look, "RESPONSES", 20)
    assert warnings(job(rows(30)), lambda text, attempt: "yes") == []


def mixed(count: int) -> list[dict]:
    """Of three rows two have no text."""
    return [{"text": "row 1"} if number % 3 == 0 else {"txt": ""} for number in range(count)]


def test_most_rows_rejected_is_said_with_the_first_and_the_key(job, monkeypatch):
    monkeypatch.setattr(first_look, "ROWS", 30)
    made = job(mixed(60))
    [said] = warnings(made, lambda text, attempt: text)
    path = made.spec.input.path[0]
    assert said.startswith(f"most of the first 30 rows are rejected; the first at {path}:2: bad_shape: ")
    assert said.endswith("; look at [input] format or [prompt] template")


def test_a_run_stops_where_more_are_rejected_than_it_allows(job, monkeypatch):
    monkeypatch.setattr(first_look, "ROWS", 30)
    made = job(mixed(300), abort_if_rejected=0.5)
    with pytest.raises(JobError, match=r"^20 of the first 30 rows are rejected \(bad_shape 20\), .* allows 50%; the"):
        work(made, Translator())


def test_it_goes_on_where_fewer_are(job, monkeypatch):
    monkeypatch.setattr(first_look, "ROWS", 30)
    made = job(mixed(60), abort_if_rejected=0.7)
    work(made, Translator())
    assert not missing_shards(made)


def test_the_command_exits_with_2(write_rows, tmp_path, batchgen_process):
    flags = ["--model", MODEL, "--output", tmp_path / "out", "--abort-if-rejected", "0.5"]
    done = batchgen_process("run", write_rows(mixed(60)), *flags, env={**os.environ, "BATCHGEN_ENGINE": "instant"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("batchgen: 40 of the first 60 rows are rejected (bad_shape 40)")
    assert not (tmp_path / "out").exists()  # no engine was started for it
