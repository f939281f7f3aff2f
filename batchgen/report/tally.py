"""Numbers of millions of rows in little memory: how often each occurs, and a choice among rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = Any  # of NumPy

MOST = 1 << 20  # larger numbers count as this one: no context has as many tokens
MASK = (1 << 64) - 1


class Bin(NamedTuple):
    """How many numbers are from `begin` to `end`, both included."""

    begin: int
    end: int
    number: int


class Spread:
    """How often each whole number occurs."""

    def __init__(self) -> None:
        self._counts = np.zeros(1, np.int64)

    def add(self, values: Array) -> None:
        found = np.bincount(np.clip(values, 0, MOST).astype(np.int64), minlength=len(self._counts))
        found[: len(self._counts)] += self._counts
        self._counts = found

    @property
    def total(self) -> int:
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        return float(self._counts @ np.arange(len(self._counts))) / max(self.total, 1)

    @property
    def most(self) -> int:
        return int(np.flatnonzero(self._counts)[-1]) if self.total else 0

    def quantile(self, share: float) -> int:
        """The smallest number that at least this share does not exceed."""
        return int(np.searchsorted(np.cumsum(self._counts), max(share * self.total, 1)))

    def count(self, value: int) -> int:
        return int(self._counts[value]) if value < len(self._counts) else 0

    def bins(self, number: int, begin: int, end: int) -> list[Bin]:
        """At most this number of equal width; what is below `begin` or above `end` is in the first or the last."""
        width = max(-(-(end + 1 - begin) // number), 1)
        edges = range(begin, end + 1, width)
        sums = np.concatenate([[0], np.cumsum(self._counts)])
        at = lambda value: int(sums[min(max(value, 0), len(sums) - 1)])  # noqa: E731
        starts = [0, *edges[1:]]
        ends = [*starts[1:], len(sums)]
        return [
            Bin(edge, min(edge + width - 1, end), at(stop) - at(start))
            for edge, start, stop in zip(edges, starts, ends, strict=True)
        ]


def scrambled(numbers: Array) -> Array:
    """A number of 64 bits for each, that looks random and is always the same (the finalizer of SplitMix64)."""
    mixed = np.asarray(numbers).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class Smallest:
    """Of all that was added, the records with the smallest keys. Where keys are scrambled, that is a random sample, and
    those of two outputs are of the same rows.

    keys: numbers of 64 bits; columns: of the records
    """

    def __init__(self, most: int, columns: Sequence[str]):
        self._most = most
        self._parts: dict[str, list[Array]] = {"key": [], **{name: [] for name in columns}}
        self._size = 0

    def add(self, keys: Array, **columns: Array) -> None:
        for name, values in {"key": keys, **columns}.items():
            self._parts[name].append(values)
        self._size += len(keys)
        if self._size > 4 * self._most:
            self._settle()

    def _settle(self) -> None:
        whole = {name: np.concatenate(parts) for name, parts in self._parts.items() if parts}
        if whole:
            kept = np.argsort(whole["key"], kind="stable")[: self._most]
            self._parts = {name: [values[kept]] for name, values in whole.items()}
            self._size = len(kept)

    def columns(self) -> dict[str, Array]:
        """By key."""
        self._settle()
        return {name: parts[0] if parts else np.zeros(0, np.uint64) for name, parts in self._parts.items()}
