"""A scorer of the user's own: what it may return, and what it cannot break."""

import os

import pytest

from batchgen.errors import JobError
from batchgen.metrics.scorer import MOST, Scorer


def scorer(tmp_path, body, name="score"):
    file = tmp_path / "my.py"
    file.write_text(f"def {name}(row, response):\n    {body}\n")
    return Scorer(f"{file}:{name}")


@pytest.mark.parametrize(
    ("body", "values"),
    [
        ("return len(response)", {"score": 4.0}),
        ("return row['weight'] * 0.5", {"score": 1.5}),
        ("return response == 'text'", {"score": 1.0}),
        ("return {'fluency': 1, 'mean-length': 2.5}", {"score.fluency": 1.0, "score.mean-length": 2.5}),
        ("return {}", {}),
        ("import numpy; return numpy.float32(0.5)", {"score": 0.5}),
        ("import fractions; return fractions.Fraction(1, 4)", {"score": 0.25}),
    ],
)
def test_a_number_or_several_by_name(tmp_path, body, values):
    score = scorer(tmp_path, body)
    assert score({"weight": 3}, "text") == values
    assert score.faults == 0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return row['no such']", "my.py:2: KeyError: 'no such'"),
        ("raise SystemExit(3)", "my.py:2: SystemExit: 3"),
        ("return response * 1000000", "score is str, which must be a finite number"),
        ("return None", "score is NoneType, which must be a finite number"),
        ("return float('nan')", "score is nan, which must be a finite number"),
        ("return float('-inf')", "score is -inf, which must be a finite number"),
        ("return 10 ** 400", "score is int, which must be a finite number"),
        ("return {'a': 1, 'b': 'x'}", "score.b is str, which must be a finite number"),
        ("return {'a b': 1}", "'score.a b' cannot be the name of a metric: use letters, digits and '_'"),
        ("return {'\\x1b[2J': 1}", "'score.\\x1b[2J' cannot be the name of a metric: use letters, digits and '_'"),
        ("return {'n' * 100000: 1}", None),
        ("return {str(i): i for i in range(10)}", None),
        ("def f(): return f()\n    return f()", None),
        ("raise ValueError('x' * 10 ** 7)", None),
        ("raise ValueError('\\x1b[2J\\nbatchgen: all is well \\ud800')", None),
    ],
)
def test_whatever_it_does_else_is_a_missing_value_that_is_told_once(tmp_path, body, told):
    score = scorer(tmp_path, body)
    assert score({}, "text") == score({}, "other") == {}
    assert score.faults == 2
    assert told in (None, score.first_fault)
    assert 0 < len(score.first_fault) < 500
    assert score.first_fault.encode().isascii() and score.first_fault.isprintable()


def test_it_cannot_change_the_row(tmp_path):
    row = {"reference": "r"}
    scorer(tmp_path, "row['reference'] = response; return 1")(row, "text")
    assert row == {"reference": "r"}


def test_it_cannot_make_a_metric_of_every_row(tmp_path):
    score = scorer(tmp_path, "return {response: 1}")
    found = [name for at in range(MOST + 5) for name in score({}, f"m{at}")]
    assert (len(found), score.faults) == (MOST, 5)


def test_a_file_that_fails_itself_is_run_once(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('x')\n1 / 0\ndef score(row, response): return 1\n")
    score = Scorer(f"{file}:score")
    assert [score({}, "text") for _ in range(3)] == [{}, {}, {}]
    assert (tmp_path / "ran").read_text() == "x"
    assert (score.faults, score.first_fault) == (3, "broken.py:2: ZeroDivisionError: division by zero")


def test_the_file_is_not_run_before_it_is_needed(tmp_path):
    file = tmp_path / "late.py"
    file.write_text("1 / 0\ndef score(row, response): return 1\n")
    Scorer(f"{file}:score")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def other(row, response): return 1\n", "has no function score: write def score(row, response)"),
        ("def score(:\n", ":1: invalid syntax"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_scorer_is_told_ahead(tmp_path, text, told):
    file = tmp_path / "my.py"
    if text:
        file.write_text(text)
    with pytest.raises(JobError) as caught:
        Scorer(f"{file}:score")
    assert str(caught.value).startswith(f"[metrics] scorer: {file}")
    assert told in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_another_users_code_is_not_run(tmp_path):
    file = tmp_path / "theirs.py"
    file.write_text("def score(row, response): return 1\n")
    os.chown(file, 12345, 12345)
    with pytest.raises(JobError, match="another user's, whose code is not run"):
        Scorer(f"{file}:score")
