"""How sure the difference between two settings is: intervals by resampling rows.

What differs most is the rows: some are easy for every setting. So rows are drawn, not responses (intervals over 4,800
responses to 600 rows were 30 % too narrow), and every setting is measured on the same drawn rows, which makes the
differences between settings far surer than the values themselves.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .summary import Better

Numbers = npt.NDArray[np.float64]

SEED = 20_230_731  # fixed: the same numbers give the same intervals
LEVEL = 0.95
SPLITS = 50  # of the rows into halves, for held_out
GROUPS = 5000  # more rows are drawn in so many groups: intervals get no surer by more, and 1,000,000 rows take seconds
AT_A_TIME = 4_000_000  # drawn rows that are in memory together
SAME = 1e-9  # by which two means may differ and still be one value: sums depend on the order in which they are made


class Compared(NamedTuple):
    """Of one metric, by setting. Where nothing can be said there is NaN.

    means, lows, highs: over rows, with their interval
    counts: rows with a value
    best: number of the best setting; None if the metric has no good end, or no value
    best_shares: share of the resamples in which each is the best; equal ones share
    differences, difference_lows, difference_highs: to the best one, over rows that have both
    held_out: the best setting's mean on rows that did not choose it
    """

    means: Numbers
    lows: Numbers
    highs: Numbers
    counts: Numbers
    best: int | None
    best_shares: Numbers
    differences: Numbers
    difference_lows: Numbers
    difference_highs: Numbers
    held_out: float


def compare(values: Numbers, better: Better, resamples: int) -> Compared:
    """values: rows x settings, NaN where there is none."""
    total, count = _grouped(values)
    means = _mean(total.sum(0), count.sum(0))
    best = _best(means, better)
    if best is None:
        differences, difference_count = np.zeros_like(total), np.zeros_like(count)
    else:
        differences, difference_count = _grouped(values - values[:, best : best + 1])
    drawn_means, drawn_differences = np.empty((2, resamples, values.shape[1]))
    at = 0
    for weights in _draws(len(total), resamples):
        drawn = slice(at, at := at + len(weights))
        drawn_means[drawn] = _mean(weights @ total, weights @ count)
        drawn_differences[drawn] = _mean(weights @ differences, weights @ difference_count)
    return Compared(
        means,
        *_interval(drawn_means, count.sum(0)),
        count.sum(0),
        best,
        _best_shares(drawn_means, better),
        _mean(differences.sum(0), difference_count.sum(0)),
        *_interval(drawn_differences, difference_count.sum(0)),
        held_out(total, count, better),
    )


def held_out(total: Numbers, count: Numbers, better: Better) -> float:
    """What the choice of a best setting is worth on other rows: the best of many is partly the luckiest.

    The rows are split in two halves, each half chooses its best setting, and that is measured on the other half; this
    is the mean over SPLITS splits, both ways. total, count: of the values, rows (or groups of them) x settings.
    """
    rows = len(total)
    if not better or rows < 2:
        return np.nan
    random = _random(SPLITS * rows).reshape(SPLITS, rows)
    chooses = (random.argsort(axis=1, kind="stable").argsort(axis=1) < rows // 2).astype(np.float64)
    halves = np.stack([chooses, 1 - chooses])
    means = _mean(halves @ total, halves @ count)  # by half, split and setting
    found = [
        means[1 - half, split, choice]
        for half in (0, 1)
        for split in range(SPLITS)
        if (choice := _best(means[half, split], better)) is not None
    ]
    known = [value for value in found if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def _grouped(values: Numbers) -> tuple[Numbers, Numbers]:
    """Sums of the values that are there, and how many these are, by row; of many rows, by group: row i is in group
    i % GROUPS, so that a group has rows from everywhere."""
    rows, settings = values.shape
    if rows <= GROUPS:
        is_there = ~np.isnan(values)
        return np.where(is_there, values, 0.0), is_there.astype(np.float64)
    total, count = np.zeros((2, GROUPS, settings))
    for begin in range(0, rows, GROUPS):
        part, is_there = _grouped(values[begin : begin + GROUPS])
        total[: len(part)] += part
        count[: len(part)] += is_there
    return total, count


def _mean(total: Numbers, count: Numbers) -> Numbers:
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _draws(rows: int, resamples: int) -> Iterator[Numbers]:
    """How often each row is in each resample, for some resamples at a time."""
    some = max(1, min(resamples, AT_A_TIME // max(rows, 1)))
    source = np.random.PCG64(SEED)
    for begin in range(0, resamples, some):
        many = min(some, resamples - begin)
        drawn = _below(rows, source, many * rows).reshape(many, rows)
        places = (drawn + np.arange(many)[:, np.newaxis] * rows).ravel()
        yield np.bincount(places, minlength=many * rows).reshape(many, rows).astype(np.float64)


def _below(limit: int, source: np.random.PCG64, size: int) -> npt.NDArray[np.int64]:
    """Whole numbers from 0 to limit - 1. From the bits themselves, which are the same in every version of numpy."""
    bits = source.random_raw(size) >> np.uint64(32)
    return (bits * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


def _random(size: int) -> npt.NDArray[np.uint64]:
    return np.asarray(np.random.PCG64(SEED).random_raw(size))


def _interval(drawn: Numbers, count: Numbers) -> tuple[Numbers, Numbers]:
    """By percentiles over the resamples. One row alone has none."""
    edge = 100 * (1 - LEVEL) / 2
    low, high = np.full((2, drawn.shape[1]), np.nan)
    if (enough := count > 1).any():
        # numpy's own way around NaN is many times slower.
        percentile = np.nanpercentile if np.isnan(drawn).any() else np.percentile
        low[enough], high[enough] = percentile(drawn[:, enough], [edge, 100 - edge], axis=0)
    return low, high


def _best(means: Numbers, better: Better) -> int | None:
    """The first of those that are the best."""
    if not better or np.isnan(means).all():
        return None
    return int(np.argmax(_are_best(means, better)))


def _best_shares(drawn: Numbers, better: Better) -> Numbers:
    if not better or np.isnan(drawn).all():
        return np.full(drawn.shape[1], np.nan)
    are_best = _are_best(drawn, better).astype(np.float64)
    shares = _mean(are_best, np.broadcast_to(are_best.sum(1, keepdims=True), are_best.shape))
    return np.asarray(np.nanmean(shares, axis=0))


def _are_best(means: Numbers, better: Better) -> npt.NDArray[np.bool_]:
    """Which are the best, or as good, along the last axis."""
    good = np.where(np.isnan(means), -np.inf, means if better == "higher" else -means)
    top = good.max(axis=-1, keepdims=True)
    return (good >= top - SAME) & ~np.isnan(means)
