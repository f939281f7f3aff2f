import numpy as np
import pytest

from batchgen.report.tally import MOST, Smallest, Spread, scrambled


def test_quantiles_are_those_of_all_numbers():
    numbers = np.random.default_rng(1).geometric(0.02, 10_000)
    spread = Spread()
    for part in np.array_split(numbers, 7):
        spread.add(part)
    assert spread.total == 10_000 and spread.most == numbers.max() and spread.mean == pytest.approx(numbers.mean())
    for share in (0, 0.5, 0.9, 0.99, 1):
        assert spread.quantile(share) == np.quantile(numbers, share, method="inverted_cdf")


def test_bins_hold_every_number_once_also_those_beyond_the_ends():
    spread = Spread()
    spread.add(np.array([0, 3, 4, 5, 9, 10, 50]))
    assert [tuple(each) for each in spread.bins(3, 3, 10)] == [(3, 5, 4), (6, 8, 0), (9, 10, 3)]


def test_a_number_that_no_context_has_takes_no_memory():
    spread = Spread()
    spread.add(np.array([2**62, -5]))
    assert (spread.most, spread.count(0)) == (MOST, 1)


def test_the_smallest_are_the_same_however_they_come():
    rows = np.arange(5000)
    keys = scrambled(rows)
    whole, parts = Smallest(100, ["row"]), Smallest(100, ["row"])
    whole.add(keys, row=rows)
    for some in np.array_split(np.random.default_rng(2).permutation(5000), 40):
        parts.add(keys[some], row=rows[some])
    assert parts.columns()["row"].tolist() == whole.columns()["row"].tolist() == rows[np.argsort(keys)][:100].tolist()


def test_a_sample_is_spread_over_the_input():
    sample = Smallest(1000, ["row"])
    sample.add(scrambled(np.arange(100_000)), row=np.arange(100_000))
    by_tenth = np.bincount(sample.columns()["row"] // 10_000, minlength=10)
    assert by_tenth.min() > 60 and by_tenth.max() < 140
