"""`batchgen init` writes a job file that runs as it is."""

import json
import tomllib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CONVERSATIONS, MODEL


@pytest.fixture
def init(batchgen, tmp_path, monkeypatch):
    """Runs the command on some records, and returns the tables of the job file that it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(records, *flags):
        (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
        done = batchgen("init", "in.jsonl", "--model", MODEL, *flags)
        assert done.exit_code == 0, done.stderr
        planned = batchgen("plan", "job.toml")
        assert planned.exit_code == 0 and "rejects        0\n" in planned.stdout, planned.output
        return tomllib.loads((tmp_path / "job.toml").read_text("utf-8"))

    return run


TALKS = [{"messages": [{"role": "user", "content": f"Where is bus number {n}?"}], "key": f"k{n}"} for n in range(9)]


def test_rows_of_a_known_shape_need_no_template(init):
    assert init(TALKS) == {
        "input": {"path": "in.jsonl", "id": "key"},
        "model": {"path": str(MODEL)},
        "sampling": {"max_tokens": 512},
        "output": {"path": "out"},
    }


def test_answers_at_the_end_of_conversations_are_left_out(init):
    answered = [{"messages": [*TALKS[0]["messages"], {"role": "assistant", "content": "Over there."}]}] * 3
    assert init(answered)["input"]["drop_last_response"] is True


def test_rows_of_no_shape_get_a_template_of_their_longest_text(init):
    job = init([{"title": f"Number {n}", "body": "It is about to rain today. " * 3, "lang": "en"} for n in range(3)])
    assert job["prompt"]["template"] == "{body}"
    assert job["output"]["columns"] == ["title", "lang"]


def test_it_says_how_many_rows_and_files_the_task_leaves_out(batchgen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.jsonl").write_text('{"question": "Where is it?", "choices": ["here", "there"]}\n' * 3)
    (tmp_path / "in" / "2.jsonl").write_text('{"text": "Where is it?"}\n' * 2)
    said = batchgen("init", "in", "-m", MODEL, "--task", "score").stdout
    assert "  2 of 5 rows have no choices and will be rejected; 1 of the 2 files looked at has none\n" in said


def test_a_column_is_the_id_only_if_no_two_rows_share_it(init):
    assert "id" not in init([{"text": "Where is the bus?", "uuid": "same"}] * 2)["input"]


def test_a_sweep_of_what_the_card_says_matters_is_ready_to_run(init, batchgen):
    job = init([{"text": f"Where is bus {n}?", "expected": "Here."} for n in range(3)], "--task", "sweep")
    assert job["sweep"].keys() == {"rows", "samples", "temperature", "top_p", "repetition_penalty"}
    assert job["metrics"] == {"reference": "expected"}
    shown = batchgen("sweep", "job.toml", "--dry-run").stdout
    assert "settings  12\n" in shown and "rows      3 of 3; 0 rejects\n" in shown


def test_the_number_of_a_choice_is_no_response(init):
    rows = [{"text": f"Where is bus {n}?", "choices": ["here", "there"], "answer": n % 2} for n in range(3)]
    assert "metrics" not in init(rows, "--task", "sweep")


def test_a_translation_takes_the_texts_that_have_sentences(init):
    rows = [{"turns": [{"role": "user", "text": "Where is the bus?"}], "meta": {"url": "http://a.b/c", "n": 1}}] * 3
    assert init(rows, "--into", "Japanese")["translate"] == {
        "fields": ["turns[*].text"],
        "from": "English",
        "into": "Japanese",
        "protect": ["code", "url"],
        "protect_by": "split",
    }


def test_the_language_of_a_translation_is_guessed_only_if_it_is_plain(init):
    rows = [{"text": "明日は雨が降るでしょう。"}] * 3
    assert init(rows, "--into", "English")["translate"]["from"] == "Japanese"
    mixed = [{"text": "Über Äpfel größerer Häuser fließt öliges Wasser"}] * 3
    assert "from" not in init(mixed, "--into", "English", "--overwrite")["translate"]


def test_a_score_is_of_choices_of_answers_or_of_texts(init):
    choices = [{"question": "Where is it?", "choices": ["here now", "there now"], "answer": 1}] * 3
    assert init(choices, "--task", "score")["score"] == {"mode": "choices", "column": "choices", "reference": "answer"}
    answered = [{"messages": [*TALKS[0]["messages"], {"role": "assistant", "content": "Over there."}]}] * 3
    assert init(answered, "--task", "score", "--overwrite")["score"] == {"mode": "continuation"}
    texts = [{"body": "It is about to rain today."}] * 3
    assert init(texts, "--task", "score", "--overwrite")["score"] == {"mode": "text", "column": "body"}


def test_the_job_file_says_why(init, tmp_path):
    init([{"note": "Where is the bus? " * 2}] * 3)
    assert "# the rows have no conversation of a known shape" in (tmp_path / "job.toml").read_text("utf-8")


def test_guesses_and_the_next_step_are_told(batchgen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = batchgen("init", CONVERSATIONS, "--model", MODEL)
    assert done.stdout.splitlines() == [
        "wrote job.toml, going by the first 1,000 rows:",
        "  conversations of shape speaker",
        "next: batchgen plan job.toml --show 2, then batchgen run job.toml",
    ]


def test_a_file_that_is_there_stays(batchgen, init, tmp_path):
    init(TALKS)
    (tmp_path / "job.toml").write_text("mine")
    done = batchgen("init", "in.jsonl", "--model", MODEL)
    assert done.exit_code == 2
    assert done.stderr == "batchgen: job.toml: is there already; give --overwrite, or another name with --to\n"
    assert (tmp_path / "job.toml").read_text() == "mine"


@pytest.mark.parametrize(
    "flags, error",
    [
        (["--task", "translate"], "--into: name the language to translate into, such as Japanese"),
        (["--into", "jp"], "--into jp: 'jp' is no language: did you mean ja?"),
        (["--task", "score", "--into", "ja"], "--into: is for --task translate"),
        (["--to", "job.yaml"], "--to job.yaml: the name of a job file ends in .toml"),
        (["--task", "translate", "--into", "ja"], "no text of the first 2 rows has more than one word"),
        (["--output", "s3:/talks/out"], "s3:/talks/out: a URI has two slashes; write s3://BUCKET/NAME"),
    ],
)
def test_what_cannot_be_asked_for_is_told(batchgen, tmp_path, monkeypatch, flags, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"a": "one"}\n{"a": "two"}\n')
    done = batchgen("init", "in.jsonl", "--model", MODEL, *flags)
    assert done.exit_code == 2 and error in done.stderr
    assert not list(tmp_path.glob("job.*"))


def test_rows_without_any_text_are_told_of(batchgen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"n": 1}\nno\n')
    done = batchgen("init", "in.jsonl", "--model", MODEL)
    assert done.exit_code == 2 and "no column of the first 2 rows holds text: " in done.stderr


def test_names_from_the_data_cannot_add_a_key(batchgen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'a"\n[engine]\nx = 1 #'
    table = pa.table({name: ["Where is the bus?"], "b\x1b[31m": ["Where is the other bus?"], "ok": ["Here it is"]})
    pq.write_table(table, tmp_path / "in.parquet")
    assert batchgen("init", "in.parquet", "--model", MODEL).exit_code == 0
    job = tomllib.loads((tmp_path / "job.toml").read_text("utf-8"))
    assert job["prompt"] == {"template": "{ok}"}
    assert job.keys() == {"input", "model", "prompt", "sampling", "output"} and job["output"].keys() == {"path"}


def test_of_many_files_only_some_are_read(batchgen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(100):
        (tmp_path / "in" / f"{number:03}.jsonl").write_text('{"text": "Where is the bus?"}\n' * 100)
    done = batchgen("init", "in", "--model", MODEL)
    assert "going by the first 1,000 rows" in done.stdout
    assert "1,000 rows of 100 files" in (tmp_path / "job.toml").read_text("utf-8")
