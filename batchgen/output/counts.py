"""The accounting: what became of rows, in numbers. Of a shard, a job or a run; `+` adds up."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Self

import msgspec

from ..errors import shown

ENDINGS = ("finish_reasons", "empty", "repetitive")  # what a shard's own metadata leave to its checksums


class Counts(msgspec.Struct):
    """What became of some rows: each has all its responses, or is rejected.

    rejects: rejected rows by reason
    prompt_tokens: of the prompts of all responses and tries; a row with three of them counts three times
    tries: further ones, of responses that failed a check; left out where there are none, as in older folders
    failed: responses that fail a check; the same. Of a translation: records that have a segment that does
    segments: of a translation, distinct ones of each shard; only a translation has these and the next
    failed_segments: those of them that no try got right
    finish_reasons: of the responses, of a translation of its segments; left out in older folders, as the next are
    empty: responses without a sign in them; left out where there are none
    repetitive: responses that were caught in a loop when they ended; the same
    """

    rows: int = 0
    responses: int = 0
    rejects: dict[str, int] = {}
    prompt_tokens: int = 0
    response_tokens: int = 0
    tries: int | msgspec.UnsetType = msgspec.UNSET
    failed: int | msgspec.UnsetType = msgspec.UNSET
    segments: int | msgspec.UnsetType = msgspec.UNSET
    failed_segments: int | msgspec.UnsetType = msgspec.UNSET
    finish_reasons: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    empty: int | msgspec.UnsetType = msgspec.UNSET
    repetitive: int | msgspec.UnsetType = msgspec.UNSET

    def __add__(self, other: Self) -> Self:
        """Reasons stay in the order in which they were first seen."""
        return type(self)(*map(_added, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))

    @classmethod
    def total(cls, some: Iterable[Self]) -> Self:
        """The sum of many: 100,000 of them in a quarter of a second, where `+` takes two."""
        return cls(*map(_total, zip(*map(msgspec.structs.astuple, some), strict=True)))

    @property
    def rejected(self) -> int:
        """Rows, for whatever reason."""
        return sum(self.rejects.values())

    @property
    def whole(self) -> Self:
        """Without what only some shards say: those that an older version made do not say how responses ended."""
        ended = sum((self.finish_reasons or {}).values())
        if ended == (self.responses if self.segments is msgspec.UNSET else self.segments):
            return self
        unset = dict.fromkeys(ENDINGS, msgspec.UNSET)
        return msgspec.structs.replace(self, **unset)

    @property
    def endings(self) -> str:
        """How responses ended: `stop 1,950, length 50 (2.5%); 3 empty, 12 repetitive`; empty if that is not known."""
        if not self.finish_reasons:
            return ""
        total = sum(self.finish_reasons.values())
        listed = [
            f"{shown(reason)} {number:,}" + ("" if reason == "stop" else f" ({number / total:.1%})")
            for reason, number in sorted(self.finish_reasons.items(), reverse=True)
        ]
        marked = [f"{number:,} {what}" for what in ("empty", "repetitive") if (number := getattr(self, what))]
        return ", ".join(listed) + (f"; {', '.join(marked)}" if marked else "")

    @property
    def answers(self) -> str:
        """What a row becomes: `1,200 responses`; of a translation, records."""
        return f"{self.responses:,} {'responses' if self.segments is msgspec.UNSET else 'records'}"

    @property
    def summary(self) -> str:
        return f"{self.rows:,} rows, {self.answers}, {self.rejected:,} rejects"

    def __str__(self) -> str:
        segments = "" if self.segments is msgspec.UNSET else f", {self.segments:,} segments"
        tries = f", {self.tries:,} further tries" if self.tries else ""
        failed = f", {self.failed:,} responses that fail a check" if self.failed and not segments else ""
        if self.failed_segments:
            failed = f", {self.failed_segments:,} segments in {self.failed or 0:,} records that no try got right"
        return f"{self.summary}{by_reason(self.rejects)}{segments}{tries}{failed}"


def _total(values: Iterable[Any]) -> Any:
    found = [value for value in values if value is not msgspec.UNSET]
    if found and isinstance(found[0], dict):
        return functools.reduce(_added, filter(None, found), {})
    return sum(found) if found else msgspec.UNSET


def _added(one: Any, other: Any) -> Any:
    if one is msgspec.UNSET or other is msgspec.UNSET:
        return other if one is msgspec.UNSET else one
    if isinstance(one, dict):
        return {key: one.get(key, 0) + other.get(key, 0) for key in one | other}
    return one + other


def by_reason(rejects: Mapping[str, int]) -> str:
    """What follows a number of rejects: ` (empty 1, too_long 2)`, or nothing."""
    listed = ", ".join(f"{shown(reason)} {number:,}" for reason, number in rejects.items())
    return f" ({listed})" if listed else ""
