"""Jobs from Python: the same folders as from the command line, typed results, nothing printed, no signal taken."""

import csv
import itertools
import os
import signal
import subprocess
import sys
import threading

import pyarrow.dataset as ds
import pytest
from conftest import CONVERSATIONS, MODEL, demo_records

import batchgen


@pytest.fixture(autouse=True)
def instant(monkeypatch):
    """Workers whose engine answers at once, or as slowly as a test says."""
    monkeypatch.setenv("BATCHGEN_ENGINE", "instant")


@pytest.fixture
def job(tmp_path):
    def load(rows=40, **tables):
        tables = {"sampling": {"max_tokens": 4}, "output": {"path": str(tmp_path / "out"), "shard_rows": 10}} | tables
        return batchgen.load(input=demo_records(rows), model=MODEL, **tables)

    return load


def test_a_job_is_run_and_read(job, tmp_path, capfd):
    outcome = batchgen.run(job())
    assert (outcome.counts.rows, outcome.counts.responses) == (40, 40)
    assert [row["row"] for row in batchgen.open(tmp_path / "out")] == list(range(40))
    assert batchgen.run(job()).totals.rows == 0  # all done already
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_it_makes_the_shards_that_the_command_line_makes(job, tmp_path, batchgen_process):
    batchgen.run(job())
    [source] = tmp_path.glob("out.input-*.jsonl")
    flags = ["--model", MODEL, "--output", tmp_path / "other", "--max-tokens", 4, "--shard-rows", 10]
    done = batchgen_process("run", source, *flags)
    assert done.returncode == 0, done.stderr
    assert ds.dataset(tmp_path / "other").to_table().equals(ds.dataset(tmp_path / "out").to_table())
    parts = sorted(path.name for path in (tmp_path / "out").glob("part-*"))
    assert all((tmp_path / "out" / part).read_bytes() == (tmp_path / "other" / part).read_bytes() for part in parts)


@pytest.mark.parametrize(
    "table, flags, rows",
    [
        (
            {"translate": {"fields": ["text"], "into": "Japanese"}, "prompt": {"template": "{text}"}},
            ["--translate-fields", "text", "--translate-into", "Japanese", "--template", "{text}"],
            [{"text": "Monday.\nFriday."}, {"text": "Sunday."}],
        ),
        ({"score": {"mode": "text"}}, ["--score-mode", "text"], [{"text": "Monday"}, {"text": ""}]),
    ],
)
def test_translations_and_scores_have_the_bytes_of_the_command_line(tmp_path, batchgen_process, table, flags, rows):
    job = batchgen.load(input=rows, model=MODEL, output=tmp_path / "out", **table)
    batchgen.translate(job) if "translate" in table else batchgen.score(job)
    [source] = tmp_path.glob("out.input-*.jsonl")
    done = batchgen_process("run", source, "--model", MODEL, "--output", tmp_path / "other", *flags)
    assert done.returncode == 0, done.stderr
    [mine], [other] = ((tmp_path / name).glob("part-*") for name in ("out", "other"))
    assert mine.read_bytes() == other.read_bytes()


def test_a_translation_counts_its_segments(tmp_path):
    tables = {"translate": {"fields": ["text"], "into": "Japanese"}, "prompt": {"template": "{text}"}}
    rows = [{"text": "Monday.\nFriday."}, {"text": "Monday."}]
    counts = batchgen.translate(batchgen.load(input=rows, model=MODEL, output=tmp_path / "out", **tables)).counts
    assert (counts.rows, counts.responses, counts.segments) == (2, 2, 2)  # the same one is translated once


def test_scores_are_typed_rows(tmp_path):
    rows = [{"id": "a", "text": "Friday", "choices": ["金曜日", "月曜日"], "label": 1}, {"id": "b", "choices": []}]
    choices = {"mode": "choices", "column": "choices", "reference": "label"}
    scores = batchgen.score(batchgen.load(input=rows, model=MODEL, output=tmp_path / "out", score=choices))
    assert (scores.outcome.counts.rows, scores.outcome.counts.rejected) == (2, 1)
    [row] = scores
    assert (row.row, row.id, [score.text for score in row.scores]) == (0, "a", ["金曜日", "月曜日"])
    assert row.best == max(range(2), key=lambda number: row.scores[number].logprob)
    assert row.right == (row.best == 1) and row.perplexity is None
    assert row.record == next(iter(scores.results))


def test_a_job_of_another_kind_is_refused(job, tmp_path):
    with pytest.raises(batchgen.JobError, match=r"^\[translate\] fields: the job translates nothing; .*\Z"):
        batchgen.translate(job())
    with pytest.raises(batchgen.JobError, match=r"^\[score\] mode: the job scores nothing; .*\Z"):
        batchgen.score(job())
    assert not (tmp_path / "out").exists()


def test_progress_is_told_to_its_end(job):
    told: list[batchgen.Progress] = []
    batchgen.run(job(), on_progress=told.append)
    assert told[-1].rows == told[-1].done == 40
    assert all(one.done <= other.done for one, other in itertools.pairwise(told))


def test_a_thread_can_run_a_job_and_signals_stay_the_programs_own(job):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    found = []
    thread = threading.Thread(target=lambda: found.append(batchgen.run(job())))
    thread.start()
    thread.join(60)
    assert found[0].counts.rows == 40
    batchgen.run(job(output=str(found[0].out) + "-2"))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setenv("BATCHGEN_ENGINE", "paced:Instant")
    monkeypatch.setenv("PYTHONPATH", f"{os.path.dirname(os.path.dirname(__file__))}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(os.path.dirname(os.path.dirname(__file__)))
    monkeypatch.setenv("BATCHGEN_TEST_STEP", "0.2")


def test_a_run_that_is_told_to_stop_is_resumed_by_the_next_call(job, slow, monkeypatch):
    stop = threading.Event()

    def watch(now: batchgen.Progress) -> None:
        if now.done >= 16:
            stop.set()

    with pytest.raises(batchgen.Stopped):
        batchgen.run(job(400), on_progress=watch, stop=stop)
    monkeypatch.setenv("BATCHGEN_TEST_STEP", "0")
    outcome = batchgen.run(job(400))
    assert outcome.counts.rows == 400 and 0 < outcome.totals.rows < 400


def test_ctrl_c_stops_a_run_resumably(job, slow, tmp_path, monkeypatch):
    """In a process of its own: pytest's takes no SIGINT."""
    program = (
        "import os, signal, sys, batchgen\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job has none
        "left = [signal.SIGINT]\n"
        "def watch(now):\n"
        "    if now.done >= 16 and left: os.kill(os.getpid(), left.pop())\n"
        "source, model, out = sys.argv[1:]\n"
        "tables = {'sampling': {'max_tokens': 4}, 'output': {'path': out, 'shard_rows': 10}}\n"
        "try: batchgen.run(batchgen.load(input=source, model=model, **tables), on_progress=watch)\n"
        "except batchgen.Stopped: print('stopped')\n"
    )
    [source] = job(400).input.path
    command = [sys.executable, "-c", program, source, MODEL, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("stopped\n", 0), done.stderr
    monkeypatch.setenv("BATCHGEN_TEST_STEP", "0")
    outcome = batchgen.run(job(400))
    assert outcome.counts.rows == 400 and 0 < outcome.totals.rows < 400


def test_warnings_are_pythons(job, tmp_path, capfd):
    rows = [{"id": "a", "text": "Monday"}] * 2
    with pytest.warns(batchgen.BatchgenWarning, match="have the id of an earlier row"):
        batchgen.plan(batchgen.load(input=rows, model=MODEL, output=tmp_path / "out"))
    assert capfd.readouterr().err == ""


def test_what_is_wrong_is_an_exception(job, tmp_path):
    with pytest.raises(batchgen.JobError, match=r"\[sampling\] temperatur: unknown key; did you mean temperature"):
        job(sampling={"temperatur": 1})
    with pytest.raises(batchgen.JobError, match=r"\[sampling\]: is a table"):
        job(sampling=1)
    batchgen.run(job())
    with pytest.raises(batchgen.JobError, match="max_tokens: 4 -> 5"):
        batchgen.run(job(sampling={"max_tokens": 5}))
    assert batchgen.run(job(sampling={"max_tokens": 5}), discard=True).counts.rows == 40


@pytest.mark.parametrize("function", ["run", "plan", "sweep", "translate", "score"])
def test_the_path_of_a_job_file_is_no_job(function):
    with pytest.raises(batchgen.JobError, match=r"'job.toml' is no job: batchgen.load\(...\) makes one"):
        getattr(batchgen, function)("job.toml")


def test_a_job_file_and_what_is_said_beside_it(tmp_path):
    (tmp_path / "job.toml").write_text('[input]\npath = "in.jsonl"\n[model]\npath = "m"\n[output]\npath = "out"\n')
    loaded = batchgen.load(tmp_path / "job.toml", sampling={"temperature": 0}, input=str(CONVERSATIONS))
    assert loaded.input.path == [str(CONVERSATIONS)] and loaded.sampling.temperature == 0
    assert loaded.output.path == str(tmp_path / "out")


def test_looking_and_checking_give_what_the_commands_print(job, tmp_path):
    forecast = batchgen.plan(job())
    assert (forecast.job.plan.rows, len(forecast.lengths), dict(forecast.shapes)) == (40, 40, {"speaker": 40})
    batchgen.run(job())
    assert batchgen.status(tmp_path / "out").rows_done == 40
    verdict = batchgen.verify(tmp_path / "out")
    assert verdict.problems == [] and verdict.counts.rows == 40
    (tmp_path / "out" / "part-00001-of-00004.parquet").write_bytes(b"")
    assert batchgen.verify(str(tmp_path / "out")).problems


def test_results_are_exported_and_rows_tried_again(job, tmp_path):
    batchgen.run(job())
    batchgen.export(tmp_path / "out", tmp_path / "all.csv", columns=["id", "response"])
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as lines:
        assert [row["id"] for row in csv.DictReader(lines)] == [record["id"] for record in demo_records(40)]
    again = batchgen.retry(tmp_path / "out", ["length"], sampling={"max_tokens": 9}, output=tmp_path / "longer")
    assert again.counts.rows == 40 and again.counts.responses == 40


def test_importing_batchgen_takes_no_time_and_loads_nothing(batchgen_process):
    code = (
        "import sys, time; t = time.perf_counter(); import batchgen; took = time.perf_counter() - t\n"
        "assert not {'pyarrow', 'numpy', 'click', 'vllm'} & set(sys.modules), 'heavy'\n"
        "assert took < 0.1, took; print(*dir(batchgen))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {*batchgen.__all__} <= set(done.stdout.split())
