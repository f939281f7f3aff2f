"""An output folder as the page sees it: what one pass over its shards has counted, and which rows it has chosen."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from ..errors import JobError, in_one_line
from ..input.plan import Shard, locator
from ..job.spec import JobSpec
from ..output import opening, record, shard, store
from ..output.counts import Counts
from ..output.quarantine import set_aside_by
from ..output.record import JobRecord
from ..output.store import Store
from . import about
from .cases import Case, name
from .tally import Array, Smallest, Spread

CELLS = 5000  # answers on a page; pages above 10 MB freeze browsers
BINS = 50  # of the input, for what changes along it
MOST_ALONE = 2000  # rows to choose samples from, of one output
MOST_JOINED = 200_000  # of several: rows of one are looked for in the others, and those that differ are counted
REJECTS_SHOWN, PLACES_SHOWN = 3, 6  # details of each reason, and rows of each detail
LONGEST_REJECT = 300  # characters of one's detail, and of its row


class Along:
    """How something changes along the input: its mean in each part of it.

    is_share: whether that is a share
    """

    def __init__(self, rows: int, is_share: bool):
        """rows: of the input"""
        self.is_share = is_share
        self._rows = max(rows, 1)
        self._sums, self._numbers = np.zeros(BINS), np.zeros(BINS)

    def add(self, rows: Array, values: Array) -> None:
        places = np.clip(rows * BINS // self._rows, 0, BINS - 1)
        self._sums += np.bincount(places, values, BINS)
        self._numbers += np.bincount(places, minlength=BINS)

    def means(self) -> list[float | None]:
        return [
            float(total / number) if number else None for total, number in zip(self._sums, self._numbers, strict=True)
        ]


@dataclass
class Tally:
    """What a pass over the shards of one output counts.

    is_joined: whether its rows are looked for in other outputs
    spreads: numbers, by what they are; counters: how often each of some words; along: means along the input
    sample: a random choice of rows, by their keys; worst: those of which some answer is bad, whose keys are `item`.
    Their columns: place (a row number, or what else the kind of job finds its cases by), bad, digest (of the answers)
    answers: most of them that a row has; settings: of a sweep, that rows have; 0 elsewhere
    """

    is_joined: bool
    rows: int
    spreads: dict[str, Spread] = field(default_factory=dict)
    counters: dict[str, Counter[str]] = field(default_factory=dict)
    along: dict[str, Along] = field(default_factory=dict)
    answers: int = 1
    settings: int = 0
    sample: Smallest = field(init=False)
    worst: Smallest = field(init=False)

    def __post_init__(self) -> None:
        self.sample = Smallest(MOST_JOINED if self.is_joined else MOST_ALONE, ["place", "bad", "digest"])
        self.worst = Smallest(MOST_ALONE, ["place", "bad", "item"])

    def spread(self, what: str, values: Array) -> None:
        self.spreads.setdefault(what, Spread()).add(values)

    def count(self, what: str, words: pa.Array | pa.ChunkedArray) -> None:
        counter = self.counters.setdefault(what, Counter())
        for each in words.value_counts().to_pylist():
            counter[name(str(each["values"]))] += each["counts"]

    def go_along(self, what: str, rows: Array, values: Array) -> None:
        """values: of the rows; booleans make a share"""
        self.along.setdefault(what, Along(self.rows, values.dtype == bool)).add(rows, values)

    def choose(self, keys: Array, places: Array, bad: Array, digest: Array) -> None:
        """keys: scrambled numbers, the same of a row in every output; bad: 0 is fine, at most 65,535"""
        self.sample.add(keys, place=places, bad=bad, digest=digest)
        some = bad > 0
        worst = ((np.uint64(0xFFFF) - bad[some].astype(np.uint64)) << np.uint64(48)) | (keys[some] >> np.uint64(16))
        self.worst.add(worst, place=places[some], bad=bad[some], item=keys[some])


class Kind(Protocol):
    """What one kind of job has in its shards."""

    noun: str  # of what is counted: "responses"
    case: str  # of what is chosen: "row"
    answer: str  # of what each of them has: "response"
    done: str  # to its rows: "answered"

    def look(self, out: "Outcome", planned: Shard) -> None:
        """The first pass: counts and choices, without what is only shown."""

    def cases(self, out: "Outcome", planned: Shard, places: Array) -> Iterator[tuple[int, Case]]:
        """The second: what is shown of the chosen ones that this shard has, each with its place."""


class RejectExample(NamedTuple):
    """Rows that were rejected for the same, in the same words. places: of the first ones; raw: the first of them"""

    detail: str
    raw: str
    places: list[str]


class RejectGroup(NamedTuple):
    """Rejected rows of one reason."""

    reason: str
    number: int
    examples: list[RejectExample]


@dataclass
class Outcome:
    """name: for people; shards: that are finished; missing: how many are not; made: see about.made_by"""

    name: str
    store: Store
    record: JobRecord
    spec: JobSpec
    shards: list[Shard]
    missing: int
    counts: Counts
    made: dict[str, list[str]]
    rejects: list[RejectGroup]
    tally: Tally
    kind: Kind

    @property
    def rows_in_all(self) -> int:
        return sum(len(each.row_numbers) for each in self.record.plan.shards)


def open_outcome(place: Any, kind_of: Callable[[JobSpec], Kind], is_joined: bool) -> Outcome:
    """Opens an output folder and makes the first pass over it. Raises JobError or Stopped."""
    out = store.at(place)
    job = record.job_of(out)
    spec = record.spec_of(out, job)
    survey = opening.check_shards(out, job)
    shards = shard.finished(out, job.plan)
    for planned in shards:
        if damage := survey.damage(planned):
            raise JobError(f"{shard.where(out, planned)}: {damage}; {set_aside_by(out)}")
    rows = sum(file.rows for file in job.plan.files)
    found = Outcome(
        name(PurePosixPath(out.location).name or Path(out.location).resolve().name),
        out,
        job,
        spec,
        shards,
        len(job.plan.shards) - len(shards),
        survey.total(shards),
        about.made_by(out, shards),
        _rejects(out, job, shards, survey),
        Tally(is_joined, rows),
        kind_of(spec),
    )
    for planned in shards:
        with reading(out, planned):
            found.kind.look(found, planned)
    return found


def cases_of(out: Outcome, places: Array) -> dict[int, Case]:
    """The second pass: what is shown of the chosen rows, by their places."""
    found: dict[int, Case] = {}
    for planned in out.shards:
        with reading(out.store, planned):
            found.update(out.kind.cases(out, planned, places))
    return found


@contextlib.contextmanager
def reading(out: Store, planned: Shard) -> Iterator[None]:
    """Whoever made a folder may have put anything into its shards. Raises JobError if it is none of ours."""
    try:
        yield
    except FileNotFoundError:
        raise JobError(f"{shard.where(out, planned)}: is gone; run batchgen verify {out}") from None
    except OSError as error:
        if error.errno:
            raise  # the disk's own
        raise _damaged(out, planned, error) from None
    except (pa.ArrowException, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise _damaged(out, planned, error) from None


def _damaged(out: Store, planned: Shard, error: Exception) -> JobError:
    why = f"damaged, or not batchgen's ({in_one_line(error)})"
    return JobError(f"{shard.where(out, planned)}: {why}; run batchgen verify {out}")


def _rejects(out: Store, job: JobRecord, shards: Sequence[Shard], survey: shard.Survey) -> list[RejectGroup]:
    """By number. Only shards that have some of a reason that lacks examples are read."""
    place = locator(job.plan)
    numbers: Counter[str] = Counter()
    examples: dict[str, dict[str, RejectExample]] = {}
    for planned in shards:
        here = survey.total([planned]).rejects
        numbers.update(here)
        if any(_lacks(examples.get(reason, {})) for reason in here):
            for line in shard.read_rejects(out, planned):
                same = examples.setdefault(line["reason"], {})
                detail = _short(line["detail"])
                if detail not in same and len(same) < REJECTS_SHOWN:
                    same[detail] = RejectExample(detail, _short(line["raw"]), [])
                if detail in same and len(same[detail].places) < PLACES_SHOWN:
                    same[detail].places.append(name(PurePosixPath(place(line["row"])).name))
    return [
        RejectGroup(name(reason), number, list(examples.get(reason, {}).values()))
        for reason, number in numbers.most_common()
    ]


def _lacks(examples: dict[str, RejectExample]) -> bool:
    return sum(len(each.places) for each in examples.values()) < PLACES_SHOWN


def _short(raw: str) -> str:
    return name(raw, LONGEST_REJECT)
