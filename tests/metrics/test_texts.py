"""What metrics count in texts and token ids, against cases made by hand."""

import random
import subprocess
import sys
import time

import pytest

from batchgen.metrics import texts

ROUGE = """
import json, sys
from rouge_score import rouge_scorer
class Spaces:
    def tokenize(self, text): return text.split()
scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Spaces())
print(json.dumps([scorer.score(reference, own)["rougeL"].fmeasure for own, reference in json.load(sys.stdin)]))
"""


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [
        ("", "", 0),
        ("", "ABC", 0),
        ("ABC", "ABC", 3),
        ("ABCBDAB", "BDCABA", 4),  # BCBA, the example of the textbooks
        ("police killed the gunman", "police kill the gunman", 22),  # all but "ed"
        ("AAAA", "AA", 2),
        ("ABCD", "DCBA", 1),
    ],
)
def test_the_longest_common_subsequence(one, other, length):
    assert texts.longest_common_subsequence(one, other) == length


def test_the_longest_common_subsequence_is_that_of_the_table():
    """The textbook's table, row by row, on texts long enough for several machine words."""
    rng = random.Random(1)
    for _ in range(50):
        one, other = ([rng.randrange(8) for _ in range(rng.randrange(150))] for _ in range(2))
        row = [0] * (len(other) + 1)
        for item in one:
            above = row
            row = [0]
            for at, against in enumerate(other):
                row.append(above[at] + 1 if item == against else max(above[at + 1], row[-1]))
        assert texts.longest_common_subsequence(one, other) == row[-1]


@pytest.mark.parametrize(
    ("ids", "reference", "f1"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
        ([1, 5, 3, 6], [1, 2, 3, 4], 0.5),
        ([1, 2], [1, 2, 3, 4, 5, 6], 0.5),  # precision 1, recall 1/3
        ([4, 3, 2, 1], [1, 2, 3, 4], 0.25),  # the words of it, not their order
        ([], [1], 0.0),
        ([1], [], 0.0),
        ([], [], 0.0),
    ],
)
def test_rouge_l(ids, reference, f1):
    assert texts.rouge_l(ids, reference) == pytest.approx(f1)


@pytest.mark.slow
def test_rouge_l_is_that_of_the_rouge_score_package(tmp_path):
    import json

    made = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--target", tmp_path, "rouge-score"], capture_output=True
    )
    if made.returncode:
        pytest.skip("rouge-score cannot be installed here")
    rng = random.Random(2)
    cases = [[[rng.randrange(9) for _ in range(rng.randrange(40))] for _ in range(2)] for _ in range(200)]
    spelled = json.dumps([[" ".join(map(str, ids)) for ids in case] for case in cases])
    asked = subprocess.run([sys.executable, "-c", ROUGE], input=spelled, capture_output=True, text=True, cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert [texts.rouge_l(*case) for case in cases] == pytest.approx(json.loads(asked.stdout))


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([], 0.0),
        ([1, 1, 1], 0.0),  # no 4-gram at all
        ([1, 2, 3, 4, 5, 6], 0.0),
        ([1, 1, 1, 1, 1, 1, 1, 1], 0.8),  # five 4-grams, one different
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),  # five, of which 1234 is there twice
    ],
)
def test_seq_rep_4(ids, share):
    assert texts.seq_rep(ids, 4) == pytest.approx(share)


@pytest.mark.parametrize(
    ("responses", "n", "share"),
    [
        ([[1, 2, 3]], 1, 1.0),
        ([[1, 2, 1, 2]], 1, 0.5),
        ([[1, 2, 1, 2]], 2, 2 / 3),  # 12, 21, 12
        ([[1, 2], [1, 2]], 2, 0.5),  # over both responses, and not across their border
        ([[1, 2], [3, 4]], 1, 1.0),
        ([[1], []], 2, None),
        ([], 1, None),
    ],
)
def test_distinct(responses, n, share):
    assert texts.distinct(responses, n) == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("responses", "share"),
    [(["a", "a"], 1.0), (["a", "b"], 0.0), (["a", "a", "b"], 1 / 3), (["a", "a", "b", "b"], 1 / 3), (["a"], None)],
)
def test_the_share_of_equal_pairs(responses, share):
    assert texts.equal_pairs(responses) == (share if share is None else pytest.approx(share))


def test_folding():
    assert texts.folded("　ﾃｽﾄ１２\n\tＡＢＣ  ") == "テスト12 ABC"
    assert texts.folded("") == ""


def test_long_texts_take_no_quadratic_time():
    """A megabyte of tokens each: a table of the textbook's kind has 10^12 cells."""
    one, other = [7] * 1_000_000, [7, 8] * 500_000
    began = time.process_time()
    assert texts.rouge_l(one, other) == pytest.approx(0.5, abs=0.2)  # of the first tokens
    assert texts.seq_rep(one, 4) > 0.999
    assert texts.distinct([one, other], 2) < 0.001
    assert time.process_time() - began < 5
