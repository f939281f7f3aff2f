"""`batchgen show`: the answers of a job, finished or under way, of every kind, and which of them are shown."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records
from translator import Translator, job_of, work

from batchgen.commands import answers, status
from batchgen.errors import Stopped
from batchgen.host import width
from batchgen.job.spec import load
from batchgen.output import opening
from batchgen.output.claims import Claims
from batchgen.runner.prepare import prepare
from batchgen.runner.run import missing_shards
from batchgen.runner.worker import Worker

JA = {"Hello.": "こんにちは。", "See you.": "またね。"}


def says(text, attempt):
    return JA.get(text, " ")


@pytest.fixture
def out(instantly, write_rows):
    """Seven rows in three shards, the last row rejected."""
    rows = [{"id": f"a-{day}", "text": f"May {day}", "topic": "days"} for day in range(6)]
    return instantly([write_rows([*rows, {"text": ""}])], output={"shard_rows": 3, "columns": ["topic"]})


@pytest.fixture
def shown(batchgen):
    """The JSON objects that `show` prints."""

    def run(*arguments) -> list[dict]:
        done = batchgen("show", *arguments, "--json")
        assert (done.exit_code, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def ids(items: list[dict]) -> list[str]:
    return [item["id"] for item in items]


def stopped(engine, tables, after: int) -> Path:
    """A job that was stopped after so many steps of its engine."""
    job = prepare(load(None, tables))
    opening.open_job(job.out, job.record)
    worker = Worker(job, engine, Claims(job.out, stale=60), window=8)
    step, steps = engine.step, []

    def stopping():
        steps.append(1)
        if len(steps) == after:
            worker.stop()
        return step()

    engine.step = stopping
    try:
        with pytest.raises(Stopped):
            worker.run(missing_shards(job))
    finally:
        engine.step = step
    return Path(job.out.location)


@pytest.fixture
def under_way(instant_engine, write_rows, tmp_path) -> Path:
    """A job of 40 rows in shards of 20: the first is finished, and a journal has 8 rows of the second."""
    path = write_rows([{"id": f"a-{day}", "text": f"May {day}"} for day in range(40)])
    tables = {
        "input": {"path": [str(path)]},
        "model": {"path": str(MODEL)},
        "output": {"path": str(tmp_path / "half"), "shard_rows": 20},
    }
    return stopped(instant_engine, tables, after=4)


def test_the_first_rows_are_shown_with_all_that_tells_how_they_came_about(out, batchgen):
    answer = pq.read_table(out / "part-00000-of-00003.parquet").to_pylist()[0]
    done = batchgen("show", out, "-n", 1)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"row 0, id a-0, {answer['prompt_tokens']} prompt tokens",
        "    [topic] days",
        "    ユーザー: May 0",
        f"  {answer['finish_reason']}, {answer['response_tokens']} tokens",
        *(f"    {line}" for line in answer["response"].split("\n")),
    ]


def test_five_rows_are_shown_if_nothing_is_said(out, shown):
    assert ids(shown(out)) == [f"a-{day}" for day in range(5)]


def test_a_row_is_found_by_its_number_and_by_its_id(out, shown):
    assert ids(shown(out, "--row", 4)) == ids(shown(out, "--id", "a-4")) == ["a-4"]


def test_a_text_is_found_in_upper_and_lower_case(out, shown):
    assert ids(shown(out, "--grep", "MAY 5")) == ["a-5"]


def test_random_rows_are_the_same_for_a_seed_and_others_for_another(out, shown):
    some = {seed: ids(shown(out, "--random", 3, "--seed", seed)) for seed in range(5)}
    assert some[0] == ids(shown(out, "--random", 3)) == sorted(some[0])
    assert len({*map(tuple, some.values())}) > 1
    assert ids(shown(out, "--random", 100)) == [f"a-{day}" for day in range(6)]


def test_every_row_is_as_likely_as_any_other(out, monkeypatch):
    found = answers.Answers(out, print)
    monkeypatch.setattr(found, "items", lambda planned, wanted, rows: [(planned.index, row) for row in rows])
    drawn = [item for seed in range(600) for item in answers.at_random(found, answers.ALL, 2, seed)]
    assert all(160 < drawn.count((row // 3, row)) < 240 for row in range(6))  # of 200 each; 5 standard deviations


def test_rows_of_a_job_under_way_are_shown_from_its_journals(under_way, shown, batchgen):
    seen = shown(under_way, "-n", 100)
    assert ids(seen) == [f"a-{day}" for day in range(len(seen))]
    assert 20 < len(seen) < 40
    assert [item.get("unfinished", False) for item in seen] == [False] * 20 + [True] * (len(seen) - 20)
    assert batchgen("show", under_way, "--row", 20).stdout.startswith("row 20, id a-20")
    assert set(ids(shown(under_way, "--random", 100))) == set(ids(seen))


def test_the_status_of_a_stopped_job_counts_what_its_journals_hold(under_way, shown):
    seen = status.look(under_way)
    assert (seen.state, seen.finished.rows, seen.rows_done) == ("stopped", 20, len(shown(under_way, "-n", 100)))


def test_what_a_journal_has_is_what_the_shard_will_have(under_way, shown, instant_engine):
    before = {item["id"]: item["answers"] for item in shown(under_way, "-n", 100)}
    job = prepare(answers.Answers(under_way, print).spec)
    Worker(job, instant_engine, Claims(job.out, stale=60)).run(missing_shards(job))
    after = {item["id"]: item["answers"] for item in shown(under_way, "-n", 100)}
    assert len(after) == 40 and before.items() <= after.items()


def test_without_the_input_only_finished_shards_are_shown(under_way, write_rows, batchgen):
    write_rows([{"text": "another"}])
    done = batchgen("show", under_way, "-n", 100, "--json")
    assert len(done.stdout.splitlines()) == 20
    assert done.stderr.startswith("batchgen: warning: shards under way are not shown: ")


def test_code_that_a_folder_names_is_not_run(instant_engine, write_rows, tmp_path, batchgen):
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"def check(row, response):\n    open({str(ran)!r}, 'w')\n")
    tables = {
        "input": {"path": [str(write_rows([{"text": f"May {day}"} for day in range(40)]))]},
        "model": {"path": str(MODEL)},
        "check": {"checks": [f"{tmp_path / 'own.py'}:check"]},
        "output": {"path": str(tmp_path / "half")},
    }
    out = stopped(instant_engine, tables, after=2)
    ran.unlink()  # by the worker
    done = batchgen("show", out)
    assert not ran.exists()
    assert (done.exit_code, done.stdout) == (0, "no such answers\n")
    assert "a check of your own code" in done.stderr


def test_answers_are_picked_by_what_ended_them_and_by_what_they_are(tmp_path, instantly, write_rows, shown, batchgen):
    rows = [
        {"id": "cut", "text": "May 1", "sampling": {"max_tokens": 3}},
        {"id": "whole", "text": "May 2"},
        {"id": "loop", "text": "May 3", "sampling": {"max_tokens": 60, "allowed_token_ids": [300]}},
    ]
    out = instantly([write_rows(rows)], input={"sampling": "sampling"})
    assert "cut" in ids(shown(out, "--only", "length")) and "whole" not in ids(shown(out, "--only", "length"))
    assert ids(shown(out, "--only", "stop", "--grep", "May 2")) == ["whole"]
    wrong = batchgen("show", out, "--only", "lenght")
    assert (wrong.exit_code, wrong.stderr.split(";")[0]) == (2, "batchgen: --only lenght: no such reason")


def test_loops_and_nothing_are_found():
    item = answers.Item(
        row=1,
        answers=[answers.Answer(text=text, finish_reason="length") for text in ("ん" * 50, " \n", None, "so it is")],
    )
    kinds = {only: answers.Wanted(only=only).of(item) for only in ("repetition", "empty", "stop")}
    assert [answer.text for answer in kinds["repetition"].answers] == ["ん" * 50]
    assert [answer.text for answer in kinds["empty"].answers] == [" \n", None]
    assert kinds["stop"] is None


def test_equal_samples_of_a_row_are_shown_once():
    one, other = ({"text": text, "finish_reason": "stop"} for text in ("one", "other"))
    made = [
        answers.Answer(samples=[sample], settings=[setting], **made)
        for setting in (0, 1)
        for sample, made in enumerate([one, other if setting else one])
    ]
    folded = answers.Item(row=0, answers=made).folded.answers
    assert [(answer.settings, answer.samples) for answer in folded] == [([0, 0, 1], [0, 1, 0]), ([1], [1])]


def test_samples_are_shown_with_their_numbers(instantly, write_rows, batchgen):
    out = instantly([write_rows([{"text": "May 1"}])], sampling={"n": 3})
    lines = batchgen("show", out).stdout.splitlines()
    named = [line.split(":")[0] for line in lines if re.match("  samples? [0-9, ]+: ", line)]
    assert sorted(re.findall(r"\d+", " ".join(named))) == ["0", "1", "2"]


def test_equal_answers_of_a_sweep_are_shown_once_with_the_names_of_their_settings(instantly, write_rows, batchgen):
    out = instantly([write_rows([{"text": "May 1"}])], sweep={"method": "grid", "vary": {"temperature": [0.5, 1.0]}})
    assert "\n  settings 0, 1: " in batchgen("show", out).stdout
    (out / "_sweep").mkdir()
    settings = [{"number": number, "name": name, "more": 1} for number, name in enumerate(["cold", "hot\x1b[1m"])]
    (out / "_sweep" / "settings.json").write_text(json.dumps(settings))
    assert "\n  cold; hot\\x1b[1m: " in batchgen("show", out).stdout


def test_a_translation_is_shown_by_its_segments(tmp_path, write_rows, batchgen):
    path = write_rows([{"a": ["Hello.", "See you."]}, {"a": ["Hello.", "fails"]}])
    work(job_of([path], tmp_path / "out", ["a[*]"]), Translator(says))
    done = batchgen("show", tmp_path / "out")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == (
        "row 0, id 0\n"
        "  a[0]: stop\n    source: Hello.\n    こんにちは。\n"
        "  a[1]: stop\n    source: See you.\n    またね。\n"
        "\n"
        "row 1, id 1\n"
        "  a[0]: stop\n    source: Hello.\n    こんにちは。\n"
        "  a[1]: stop, 3 tries, fails empty\n    source: fails\n    (empty)\n"
    )


def test_the_segments_that_fail_are_found_and_those_of_a_columnar_file(tmp_path, shown):
    pq.write_table(pa.table({"text": ["Hello.", "fails", "See you."]}), path := tmp_path / "in.parquet")
    work(job_of([path], tmp_path / "out", ["text"]), Translator(says))
    assert [(item["row"], item["answers"][0]["source"]) for item in shown(tmp_path / "out", "--failed")] == [
        (1, "fails")
    ]
    assert [item["row"] for item in shown(tmp_path / "out", "--grep", "またね")] == [2]
    assert shown(tmp_path / "out", "--grep", "nowhere") == []


def test_a_translation_under_way_shows_the_records_that_have_all_their_segments(tmp_path, write_rows, shown):
    path = write_rows([{"a": ["Hello."]}, {"a": ["Hello.", "See you."]}, {"a": ["fails"]}])
    job = job_of([path], tmp_path / "out", ["a[*]"])
    with pytest.raises(Stopped):
        work(job, Translator(says), stop_after=2)
    assert [(item["row"], len(item["answers"])) for item in shown(tmp_path / "out")] == [(0, 1), (1, 2)]


def test_scores_are_shown_with_the_likeliest_text(instantly, write_rows, batchgen):
    rows = [{"text": "Friday", "choices": ["金曜日", "月曜日"], "gold": number} for number in (0, 1)]
    score = {"mode": "choices", "column": "choices", "reference": "gold"}
    out = instantly([write_rows(rows)], score=score)
    [scored, _] = pq.read_table(out / "part-00000-of-00001.parquet").to_pylist()
    best = scored["scores"][scored["best"]]
    done = batchgen("show", out, "--failed").stdout
    assert done.count("row ") == 1
    assert f"  log likelihood {best['logprob']:,.2f}, {best['tokens']} tokens, the likeliest, wrong\n" in done
    assert batchgen("show", out, "--only", "length").exit_code == 2


def test_checks_that_fail_are_shown_and_asked_for(instantly, write_rows, shown, batchgen, out):
    checked = instantly([write_rows([{"text": "May 1"}])], out="checked", check={"checks": ["regex:never"]})
    assert shown(checked, "--failed")[0]["answers"][0]["failed_checks"] == ["regex:never"]
    refused = batchgen("show", out, "--failed")
    assert (refused.exit_code, refused.stderr) == (2, "batchgen: --failed: the job has no checks ([check] checks)\n")


def test_nothing_in_a_text_reaches_the_terminal_or_passes_for_a_line_of_ours(instantly, write_rows, batchgen):
    text = "clears \x1b[2J\nrow 9, id forged\u202e"
    out = instantly(
        [write_rows([{"id": "a\x1b]0;x\x07", "text": text, "topic": "\x1b[1m"}])], output={"columns": ["topic"]}
    )
    for flags in ((), ("--json",)):
        done = batchgen("show", out, *flags).stdout
        assert not {"\x1b", "\x07", "\u202e"} & {*done}
        assert "\nrow 9" not in done


def test_a_long_text_is_cut_unless_all_is_asked_for(instantly, write_rows, batchgen):
    out = instantly([write_rows([{"text": "May 1", "topic": "x" * 3000}])], output={"columns": ["topic"]})
    assert f"{'x' * 2000}... (3,000 characters in all; --full shows them)\n" in batchgen("show", out).stdout
    assert "x" * 3000 in batchgen("show", out, "--full").stdout


def test_a_damaged_shard_is_one_line(out, batchgen):
    part = out / "part-00000-of-00003.parquet"
    part.write_bytes(part.read_bytes()[:-10] + bytes(10))
    done = batchgen("show", out)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"batchgen: {part}: damaged (") and done.stderr.count("\n") == 1


def test_looking_changes_nothing(under_way, shown):
    def tree():
        return {path: path.stat().st_mtime_ns for path in under_way.rglob("*")}

    before = tree()
    shown(under_way, "--random", 5)
    assert tree() == before


def in_terminal(*arguments, columns: int, **variables) -> str:
    """What a terminal of this width gets."""
    leader, follower = pty.openpty()
    os.set_blocking(leader, True)
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", **variables}
    command = [sys.executable, "-m", "batchgen", "show", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=follower, env=environment)
    os.close(follower)
    got = b""
    try:
        while some := os.read(leader, 1 << 16):
            got += some
    except OSError:
        pass  # how a terminal ends
    process.wait()
    os.close(leader)
    return got.decode().replace("\r\n", "\n")


def test_on_a_terminal_lines_are_broken_to_its_width_and_coloured_unless_told_not_to(instantly, write_rows):
    text = " ".join(record["conversation"][0]["text"] for record in demo_records(6))
    out = instantly([write_rows([{"text": text}])])
    plain = in_terminal(out, columns=40, NO_COLOR="1")
    assert "\x1b" not in plain
    assert [line for line in plain.split("\n") if width.width(line) > 40] == []
    assert in_terminal(out, columns=40).startswith("\x1b[1mrow 0")
