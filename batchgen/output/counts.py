"""The accounting: what became of rows, in numbers. Of a shard, a job or a run; `+` adds up."""

from collections.abc import Mapping
from typing import Any, Self

import msgspec

from ..errors import shown


class Counts(msgspec.Struct):
    """What became of some rows: each has all its responses, or is rejected.

    rejects: rejected rows by reason
    prompt_tokens: of the prompts of all responses and tries; a row with three of them counts three times
    tries: further ones, of responses that failed a check; left out where there are none, as in older folders
    failed: responses that fail a check; the same
    """

    rows: int = 0
    responses: int = 0
    rejects: dict[str, int] = {}
    prompt_tokens: int = 0
    response_tokens: int = 0
    tries: int | msgspec.UnsetType = msgspec.UNSET
    failed: int | msgspec.UnsetType = msgspec.UNSET

    def __add__(self, other: Self) -> Self:
        """Reasons stay in the order in which they were first seen."""
        return type(self)(*map(_added, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))

    @property
    def rejected(self) -> int:
        """Rows, for whatever reason."""
        return sum(self.rejects.values())

    @property
    def summary(self) -> str:
        return f"{self.rows:,} rows, {self.responses:,} responses, {self.rejected:,} rejects"

    def __str__(self) -> str:
        tries = f", {self.tries:,} further tries" if self.tries else ""
        failed = f", {self.failed:,} responses that fail a check" if self.failed else ""
        return f"{self.summary}{by_reason(self.rejects)}{tries}{failed}"


def _added(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {key: one.get(key, 0) + other.get(key, 0) for key in one | other}
    if one is msgspec.UNSET or other is msgspec.UNSET:
        return other if one is msgspec.UNSET else one
    return one + other


def by_reason(rejects: Mapping[str, int]) -> str:
    """What follows a number of rejects: ` (empty 1, too_long 2)`, or nothing."""
    listed = ", ".join(f"{shown(reason)} {number:,}" for reason, number in rejects.items())
    return f" ({listed})" if listed else ""
