"""Two outputs side by side: rows are joined on their ids, and what differs within the texts is marked."""

import hashlib
import itertools
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ..errors import JobError
from .answers import Answer, Answers, Item, Wanted

# A word; in scripts without spaces a sign, as in everything that is no word; white space.
_UNIT = re.compile(r"\s+|[^\W\u2e80-\ua4cf\uf900-\ufaff\uff66-\uff9f]+|.", re.DOTALL)
MOST_PAIRS = 4_000_000  # of units that are compared with each other, which takes seconds: beyond, all counts as new

_DIGESTED = {"row", "id", "sample", "setting", "response", "scores"}  # columns that say whether a row is the same
_KINDS = [("id", np.uint64), ("answers", np.uint64), ("place", np.int64), ("row", np.int64)]


class Span(NamedTuple):
    """A piece of two texts. kind: "same", or of one of them only: "old" or "new"."""

    kind: str
    text: str


class Change(msgspec.Struct, omit_defaults=True):
    """Two answers to the same; None where one output has no such answer."""

    old: Answer | None
    new: Answer | None

    @property
    def spans(self) -> list[Span]:
        return spans(*((answer.text if answer else None) or "" for answer in (self.old, self.new)))


class Difference(msgspec.Struct, omit_defaults=True):
    """A row that has other answers in another output. same: how many answers are the same"""

    row: int
    id: str
    changes: list[Change]
    same: int = 0


class Comparison(msgspec.Struct):
    """Counts of rows. old, new: that only this output has an answer to"""

    same: int
    different: int
    old: int
    new: int


class Compared:
    """Two outputs. It holds 32 bytes for each row of either. Raises JobError if their answers are of two kinds."""

    def __init__(self, old: Answers, new: Answers, wanted: Wanted):
        """wanted: rows of the old one"""
        if _kind(old) != _kind(new):
            raise JobError(f"--diff {new.out}: {_kind(new)}, and {old.out} has {_kind(old)}")
        self._old, self._new, self._wanted = old, new, wanted
        self._shards = old.shards(), new.shards()
        mine, others = _digests(old, wanted), _digests(new, Wanted(id=wanted.id))
        _, here, there = np.intersect1d(mine["id"], others["id"], return_indices=True)  # the first of equal ids
        self._pairs = np.sort(np.stack([here, there], axis=1).view([("old", here.dtype), ("new", here.dtype)])[:, 0])
        self._mine, self._others = mine, others
        is_other = mine["answers"][self._pairs["old"]] != others["answers"][self._pairs["new"]]
        self._different = self._pairs[is_other]
        both, different = len(self._pairs), len(self._different)
        only_new = len(np.unique(others["id"])) - both if wanted.is_all else 0
        self.counts = Comparison(both - different, different, len(np.unique(mine["id"])) - both, only_new)

    def first(self, count: int | None) -> Iterator[Difference]:
        return (self._difference(pair) for pair in itertools.islice(self._different, count))

    def at_random(self, count: int, seed: int) -> Iterator[Difference]:
        chosen = np.random.default_rng(seed).permutation(len(self._different))[:count]
        return (self._difference(pair) for pair in self._different[np.sort(chosen)])

    def _difference(self, pair: Any) -> Difference:
        old = _item(self._old, self._shards[0], self._mine[pair["old"]])
        new = _item(self._new, self._shards[1], self._others[pair["new"]])
        ones, others = ({_place(answer): answer for answer in item.answers} for item in (old, new))
        pairs = [(ones.get(place), others.get(place)) for place in ones | others]
        changes = [Change(*both) for both in pairs if not _are_same(*both)]
        return Difference(old.row, old.id, changes, len(pairs) - len(changes))


def _kind(answers: Answers) -> str:
    return "segments" if answers.is_translation else "responses" if answers.spec.score.mode == "off" else "scores"


def _digests(answers: Answers, wanted: Wanted) -> Any:
    """Of every row that is wanted: its id and its answers in 8 bytes each, the place of its shard, its number."""
    columns = _DIGESTED | wanted.columns
    found = (
        (_digest(item.id), _digest(*map(_identity, item.answers)), place, item.row)
        for place, planned in enumerate(answers.shards())
        for item in answers.items(planned, wanted, columns)
    )
    return np.fromiter(found, _KINDS)


def _digest(*what: Any) -> int:
    return int.from_bytes(hashlib.blake2b(msgspec.msgpack.encode(what), digest_size=8).digest(), "little")


def _place(answer: Answer) -> tuple[Any, ...]:
    """What an answer is to."""
    scored = answer.text if answer.logprob is not None else None
    return answer.path, answer.source, *answer.settings, *answer.samples, scored


def _identity(answer: Answer) -> tuple[Any, ...]:
    return *_place(answer), answer.text, answer.logprob


def _are_same(old: Answer | None, new: Answer | None) -> bool:
    return old is not None and new is not None and _identity(old) == _identity(new)


def _item(answers: Answers, shards: list[Any], found: Any) -> Item:
    """Raises JobError if it is gone meanwhile."""
    for item in answers.items(shards[found["place"]], rows=[int(found["row"])]):
        return item
    raise JobError(f"{answers.out}: row {found['row']} is not there any more; run the same command again")


def spans(old: str, new: str) -> list[Span]:
    """The differences of two texts, by words; in scripts without spaces, by signs."""
    one, other = _UNIT.findall(old), _UNIT.findall(new)
    ahead = _common(one, other)
    behind = _common(one[ahead:][::-1], other[ahead:][::-1])
    middle = one[ahead : len(one) - behind], other[ahead : len(other) - behind]
    found = [Span("same", "".join(one[:ahead])), *_spans(*middle), Span("same", "".join(one[len(one) - behind :]))]
    return [span for span in found if span.text]


def _spans(old: list[str], new: list[str]) -> Iterator[Span]:
    if len(old) * len(new) > MOST_PAIRS:
        yield from (Span("old", "".join(old)), Span("new", "".join(new)))
        return
    for kind, begin, end, other_begin, other_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            yield Span("same", "".join(old[begin:end]))
        else:
            yield from (Span("old", "".join(old[begin:end])), Span("new", "".join(new[other_begin:other_end])))


def _common(one: list[str], other: list[str]) -> int:
    """How many units two texts begin with in common."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in pairs)
