"""Which rows are shown: a random sample, those that differ between outputs, and the worst."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from .outcome import CELLS, MOST_ALONE, MOST_JOINED, Outcome
from .tally import Array

MOST_CASES = 1000
RANDOM, DIFFERENT = 0.6, 0.2  # shares of what is shown, where there are others; the worst have the rest


class Choice(NamedTuple):
    """places: of the chosen rows in each output, -1 where one does not have it; ranks: their places in the random
    sample, or -1; bad: how bad the worst answer of each is. common, equal: rows that all outputs have, and those of
    them whose answers are the same in all; is_sampled: whether only a part of the rows was compared; is_all: whether
    all rows are chosen."""

    places: list[Array]
    ranks: Array
    bad: Array
    common: int = 0
    equal: int = 0
    is_sampled: bool = False
    is_all: bool = False


def choose(outs: Sequence[Outcome]) -> Choice:
    answers = sum(out.tally.answers for out in outs)
    most = max(min(MOST_CASES, CELLS // answers), 1)
    return _of_one(outs[0], most) if len(outs) == 1 else _of_several(outs, most)


def _of_one(out: Outcome, most: int) -> Choice:
    sample, worst = out.tally.sample.columns(), out.tally.worst.columns()
    _, first_of_all = np.unique(sample["key"], return_index=True)  # a segment may be in several shards
    is_first = np.zeros(len(sample["key"]), bool)
    is_first[first_of_all] = True
    _, first = np.unique(worst["item"], return_index=True)
    is_other = np.zeros(len(worst["item"]), bool)
    is_other[first] = True
    room = most - min(len(first), round(most * (1 - RANDOM)))
    random = np.flatnonzero(is_first)[:room]
    is_other &= ~np.isin(worst["item"], sample["key"][random])
    others = np.flatnonzero(is_other)[: most - len(random)]
    return Choice(
        [np.concatenate([sample["place"][random], worst["place"][others]]).astype(np.int64)],
        np.concatenate([np.arange(len(random)), np.full(len(others), -1)]),
        np.concatenate([sample["bad"][random], worst["bad"][others]]).astype(np.int64),
        is_all=len(random) == len(first_of_all) and len(sample["key"]) < MOST_ALONE,
    )


def _of_several(outs: Sequence[Outcome], most: int) -> Choice:
    columns = [out.tally.sample.columns() for out in outs]
    firsts = [dict(zip(("key", "at"), np.unique(each["key"], return_index=True), strict=True)) for each in columns]
    common = reduce(np.intersect1d, (first["key"] for first in firsts))  # sorted, so a random order
    at = [first["at"][np.searchsorted(first["key"], common)] for first in firsts]
    of = lambda what: [each[what][places] for each, places in zip(columns, at, strict=True)]  # noqa: E731
    digests = of("digest")
    differs = np.any([digest != digests[0] for digest in digests], axis=0)
    bad = np.max([each.astype(np.int64) for each in of("bad")], axis=0)
    random = np.arange(min(len(common), round(most * RANDOM) if len(common) > most else most))
    different = np.setdiff1d(np.flatnonzero(differs), random)[: round(most * DIFFERENT)]
    taken = np.concatenate([random, different])
    worst = np.argsort(-bad, kind="stable")
    worst = worst[~np.isin(worst, taken) & (bad[worst] > 0)][: most - len(taken)]
    chosen = np.concatenate([taken, worst]).astype(np.int64)
    is_sampled = any(len(each["key"]) >= MOST_JOINED for each in columns)
    return Choice(
        [each[chosen].astype(np.int64) for each in of("place")],
        np.concatenate([np.arange(len(random)), np.full(len(chosen) - len(random), -1)]),
        bad[chosen],
        len(common),
        int(np.count_nonzero(~differs)),
        is_sampled,
        len(chosen) == len(common) and not is_sampled,
    )
