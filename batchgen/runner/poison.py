"""Poison items: requests that kill every engine they come into, and rows that end every worker that prepares them.

Without this one bad row would end a run for good. The supervisor counts the deaths of all workers; workers run a
suspected item alone, and reject a poisoned one.
"""

from collections import Counter
from collections.abc import Iterable

from .messages import PoisonItems

MAX_DEATHS = 3  # deaths with the same item in the engine, alone in the last, before it is rejected
KILLS_ENGINES = f"the engine died {MAX_DEATHS} times with this item in it, the last time with nothing else"
ENDS_WORKERS = f"{MAX_DEATHS} workers died, or hung, while they prepared this row"


class PoisonDetector:
    """Counts for every item, by name, the deaths of engines that it was in; rows in preparation go by their number.

    An item that finishes is cleared. A death without it clears nothing: where several items are poison, the second is
    found by its next death and need not kill three more engines.
    """

    def __init__(self) -> None:
        self._deaths: Counter[str] = Counter()
        self._poisoned: set[str] = set()

    def record_death(self, in_engine: Iterable[str], row: int | None = None) -> None:
        """in_engine: the items that were in the engine; row: the one that was being prepared, which is then the only
        suspect."""
        suspects = set(in_engine) if row is None else {str(row)}
        self._deaths.update(suspects)
        self._poisoned |= {name for name in suspects if len(suspects) == 1 and self._deaths[name] >= MAX_DEATHS}

    def clear(self, finished: Iterable[str]) -> None:
        for name in finished:
            self._deaths.pop(name, None)

    @property
    def items(self) -> PoisonItems:
        suspected = {name for name, deaths in self._deaths.items() if deaths >= MAX_DEATHS - 1}
        return PoisonItems(suspected - self._poisoned, self._poisoned)
