"""`batchgen verify --replay` of a translation: the segments of random rows, generated again."""

import json

import pytest
from translator import Translator, gold, job_of, work

ASKED = {"fields": ["text"], "from": "English", "into": "Japanese"}
FIRST, SECOND, THIRD = [text for text in gold() if text.isascii()][:3]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [f"{FIRST}\n{SECOND}", SECOND, THIRD, " "]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return path


@pytest.fixture
def translated(generate, lines):
    def make(out, **asked):
        tables = {"prompt": {"template": "{text}"}, "output": {"shard_rows": 2}, "translate": {**ASKED, **asked}}
        return generate([lines], out, sampling={"temperature": 1, "max_tokens": 96}, **tables)

    return make


def test_the_segments_of_random_rows_come_out_the_same(translated, batchgen_here):
    done = batchgen_here("verify", translated("out"), "--replay", 3)
    assert done.exit_code == 0, done.stderr
    found = done.stdout.splitlines()[-1].split()
    assert (found[0], found[4:]) == ("replayed:", ["segments", "are", "the", "same"])
    assert found[1] == found[3] and int(found[1]) >= 2


def test_what_the_memory_has_is_left_out(translated, batchgen_here):
    second = translated("second", memory=[str(translated("out"))])
    done = batchgen_here("verify", second, "--replay", 4)
    assert done.exit_code == 1
    assert "replayed: 0 of 0 segments are the same\nleft out: 3 segments: they are of the memory" in done.stdout


def test_the_first_segment_that_differs_is_shown(lines, tmp_path, batchgen_here):
    job = job_of([lines], tmp_path / "out", ["text"], sampling={"temperature": 0})
    work(job, Translator(lambda text, attempt: "偽物です。"))
    done = batchgen_here("verify", tmp_path / "out", "--replay", 4)
    assert "replayed: 0 of 3 segments are the same\n" in done.stdout
    assert f"first difference: {lines}:1: text: '偽物です。' then, '" in done.stdout


def test_what_another_noise_drew_is_not_generated_again(lines, tmp_path, batchgen_here):
    work(job_of([lines], tmp_path / "out", ["text"]), Translator(lambda text, attempt: "偽物です。"))
    done = batchgen_here("verify", tmp_path / "out", "--replay", 2)
    assert done.exit_code == 1
    assert "replayed: 0 of 0 rows are the same\nleft out: 2 rows: they were sampled with" in done.stdout
