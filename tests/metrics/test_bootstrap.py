"""Intervals by resampling rows: they cover the truth, and pair the settings."""

import time

import numpy as np
import pytest

from batchgen.metrics.bootstrap import GROUPS, _below, compare

NAN = np.nan


def simulated(random, rows, samples):
    """rows x 1 x samples of 0 or 1: every row has a difficulty of its own."""
    chance = random.beta(0.5, 0.5, (rows, 1, 1))
    return (random.random((rows, 1, samples)) < chance).astype(np.float64)


def test_the_interval_covers_the_truth_and_one_over_samples_does_not():
    """300 data sets of 60 rows with 6 samples each, of which the true mean is 0.5."""
    random = np.random.default_rng(5)
    covered = naive = 0
    for _ in range(300):
        drawn = simulated(random, rows=60, samples=6)
        by_row = compare(drawn.mean(axis=2), "higher", 300)
        error = 1.96 * drawn.std(ddof=1) / np.sqrt(drawn.size)  # as if the 360 samples were 360 rows
        covered += by_row.lows[0] <= 0.5 <= by_row.highs[0]
        naive += abs(drawn.mean() - 0.5) <= error
    assert 0.90 <= covered / 300 <= 0.98
    assert naive / 300 < 0.75


def test_a_paired_difference_is_surer_than_an_unpaired_one():
    random = np.random.default_rng(6)
    rows = random.normal(size=(300, 1)) + random.normal(scale=0.1, size=(300, 2)) + [0.0, 0.1]
    found = compare(rows, "higher", 1000)
    paired = found.difference_highs[0] - found.difference_lows[0]
    unpaired = np.hypot(*(found.highs - found.lows))
    assert paired < unpaired / 4
    assert found.best == 1
    assert found.difference_lows[0] < found.differences[0] < found.difference_highs[0] < 0  # it can be told apart
    assert not found.lows[1] > found.highs[0]  # which the two intervals by themselves would not say


def test_a_difference_covers_the_truth_where_rows_are_missing():
    """Half of the rows have no value in one of two settings whose true difference is 0.3."""
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        rows = random.normal(scale=3, size=(80, 1)) + random.normal(size=(80, 2)) + [0.0, 0.3]
        rows[random.random(80) < 0.5, 0] = NAN
        found = compare(rows, "higher", 200)
        other = 1 - found.best
        truth = 0.3 if found.best == 0 else -0.3
        covered += found.difference_lows[other] <= truth <= found.difference_highs[other]
    assert 0.88 <= covered / 300 <= 0.98


@pytest.mark.parametrize(("better", "best"), [("higher", 1), ("lower", 0), ("", None)])
def test_the_best_setting_by_the_good_end(better, best):
    found = compare(np.array([[1.0, 2.0], [2.0, 3.0], [0.0, 4.0]]), better, 200)
    assert found.best == best
    if best is None:
        assert np.isnan(found.best_shares).all() and np.isnan(found.held_out)
    else:
        assert found.best_shares[best] == 1.0
        assert found.differences[best] == 0


def test_equal_settings_share_and_the_first_of_them_is_the_best():
    random = np.random.default_rng(8)
    rows = random.random((50, 1)).repeat(3, axis=1)
    found = compare(rows, "higher", 200)
    assert found.best == 0
    assert found.best_shares == pytest.approx([1 / 3] * 3)
    assert found.difference_lows == pytest.approx([0, 0, 0])


def test_the_best_of_many_equal_settings_is_worth_less_on_other_rows():
    """24 settings without any difference: the best one's mean is luck, and the truth is 0."""
    random = np.random.default_rng(9)
    found = [compare(random.normal(size=(100, 24)), "higher", 100) for _ in range(30)]
    assert np.mean([each.means[each.best] for each in found]) > 0.15
    assert np.mean([each.held_out for each in found]) == pytest.approx(0, abs=0.04)


def test_missing_values_are_left_out():
    found = compare(np.array([[1.0, NAN], [NAN, NAN], [3.0, 5.0], [2.0, 7.0]]), "higher", 200)
    assert found.means.tolist() == [2.0, 6.0]
    assert found.counts.tolist() == [3, 2]
    assert found.differences.tolist() == [-3.5, 0]  # over the two rows that have both


@pytest.mark.parametrize(
    "rows", [np.full((3, 2), NAN), np.array([[NAN, 1.0]]), np.array([[1.0]]), np.array([[NAN, 1.0], [2.0, NAN]])]
)
def test_what_cannot_be_known_is_nan(rows):
    found = compare(rows, "higher", 100)
    assert (np.isnan(found.means) == np.isnan(rows).all(axis=0)).all()
    assert np.isnan(found.lows).all() and np.isnan(found.highs).all()


def test_the_same_numbers_give_the_same_intervals():
    rows = np.random.default_rng(10).normal(size=(40, 3))
    first, again = compare(rows, "higher", 300), compare(rows.copy(), "higher", 300)
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other, equal_nan=True)


def test_more_rows_than_groups_have_the_intervals_of_the_rows_themselves():
    """The mean of 2 * GROUPS numbers is normal, so its interval is known."""
    rows = np.random.default_rng(11).normal(size=(2 * GROUPS + 17, 1))
    rows[::7] = NAN
    found = compare(rows, "higher", 1000)
    there = rows[~np.isnan(rows)]
    assert found.means[0] == pytest.approx(there.mean())
    assert found.counts[0] == len(there)
    assert found.highs[0] - found.lows[0] == pytest.approx(2 * 1.96 * there.std() / np.sqrt(len(there)), rel=0.1)


def test_drawn_numbers_are_below_the_limit_and_even():
    drawn = _below(7, np.random.PCG64(1), 70_000)
    assert np.bincount(drawn, minlength=7) == pytest.approx([10_000] * 7, rel=0.05)
    assert drawn.max() == 6


def test_a_sweep_of_the_usual_size_takes_a_moment():
    rows = np.random.default_rng(12).normal(size=(600, 24))
    began = time.process_time()
    compare(rows, "higher", 1000)
    assert time.process_time() - began < 2
