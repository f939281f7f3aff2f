"""`batchgen rejects`: of a translation, the segments that no try got right."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from translator import Translator, job_of, work

from batchgen.errors import Stopped

JA = {"Hello.": "こんにちは。", "See you.": "またね。"}


def says(text, attempt):
    return JA.get(text, " ")


@pytest.fixture
def translate(tmp_path):
    def run(path, fields, stop_after=0, **tables):
        job = job_of([path], tmp_path / "out", fields, **tables)
        work(job, Translator(says), stop_after)
        return job.out.location

    return run


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"a": [{"text": "See you."}, {"text": "Hello.\nfails"}]}, {"a": [{"text": "fails"}]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_segment_that_fails_is_shown_with_its_place_checks_and_texts(translate, lines, batchgen_here):
    done = batchgen_here("rejects", translate(lines, ["a[*].text"]), "--segments")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{lines}:1: a[1].text: empty (3 tries, used 2 times)",
        "    source  fails",
        "    best    ",
        "1 segments that no try got right (empty 1)",
    ]


def test_a_row_of_a_columnar_file_goes_by_its_number(tmp_path, translate, batchgen_here):
    pq.write_table(pa.table({"text": ["Hello.", "fails"]}), path := tmp_path / "in.parquet")
    done = batchgen_here("rejects", translate(path, ["text"]), "--segments")
    assert done.stdout.startswith(f"{path} row 1: text: empty")


def test_nothing_in_a_text_reaches_the_terminal(tmp_path, translate, batchgen_here):
    (path := tmp_path / "in.jsonl").write_text(json.dumps({"text": "clears \x1b[2J"}) + "\n")
    done = batchgen_here("rejects", translate(path, ["text"]), "--segments")
    assert "source  clears \\x1b[2J\n" in done.stdout


def test_the_finished_shards_of_an_unfinished_job_are_shown(tmp_path, batchgen_here):
    (path := tmp_path / "in.jsonl").write_text('{"text": "fails"}\n' + '{"text": "Hello."}\n' * 4)
    job = job_of([path], tmp_path / "out", ["text"], output={"shard_rows": 1})
    with pytest.raises(Stopped):
        work(job, Translator(says), stop_after=5)
    done = batchgen_here("rejects", tmp_path / "out", "--segments")
    assert done.stdout.endswith("1 segments that no try got right (empty 1)\n")


def test_rows_that_were_rejected_for_a_segment_are_counted(translate, lines, batchgen_here):
    done = batchgen_here("rejects", translate(lines, ["a[*].text"], translate={"on_failure": "reject"}), "--segments")
    assert done.stdout == (
        "0 segments that no try got right; 2 rows were rejected for theirs, which batchgen rejects shows\n"
    )


def test_a_job_that_is_no_translation_is_told(instantly, write_rows, batchgen_here):
    out = instantly([write_rows([{"text": "Monday"}])])
    done = batchgen_here("rejects", out, "--segments")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"batchgen: {out}: is no translation")


def test_reasons_of_rows_are_none_of_segments(tmp_path, batchgen_here):
    done = batchgen_here("rejects", tmp_path, "--segments", "--only", "empty")
    assert done.exit_code == 2 and "--only: is for reasons of rejected rows" in done.stderr
