"""What a job will be: its rows, rejects and prompt lengths, by real tokenizing and without an engine."""

import itertools
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import folder, ids, item
from .errors import Reject
from .item import Item
from .job import JobSpec
from .prepare import Job, prepare

# vLLM's prefix cache keeps prompts in blocks of 16 tokens; a block counts as shared with all that stands before it.
BLOCK = 16
MOST_BLOCKS = 2_000_000  # remembered; some 200 MB


@dataclass
class Forecast:
    """new_rows: those that an incremental job has got since its last run, None if there was none; shapes: of the rows
    that have a prompt; lengths: tokens of every prompt; over_length: rows whose prompt is too long, rejected or
    shortened; shared: tokens in blocks that an earlier prompt begins with too."""

    job: Job
    new_rows: int | None = None
    rejects: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    over_length: int = 0
    shared: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def percentiles(self) -> dict[str, int]:
        """Smallest, middle, 99th of a hundred and largest prompt, in tokens."""
        ordered = sorted(self.lengths) or [0]
        last = len(ordered) - 1
        return {"min": ordered[0], "median": ordered[last // 2], "p99": ordered[last * 99 // 100], "max": ordered[-1]}

    def histogram(self, bins: int = 10) -> list[tuple[int, int, int]]:
        """(from, to, prompts) of equally wide ranges of tokens."""
        if not self.lengths:
            return []
        low, high = min(self.lengths), max(self.lengths)
        width = (high - low) // bins + 1
        counted = Counter((length - low) // width for length in self.lengths)
        starts = range(low, high + 1, width)
        return [(start, start + width - 1, counted[number]) for number, start in enumerate(starts)]


def plan(spec: JobSpec) -> Forecast:
    """Renders and tokenizes every row. Raises JobError."""
    job = prepare(spec)
    old = folder.read_job(job.out)
    if old and old.plan == job.plan:  # of a new plan `prepare` has told
        ids.tell(job.plan, spec.input.id)
    forecast = Forecast(job, job.plan.rows - old.plan.rows if old and spec.input.incremental else None)
    blocks: set[int] = set()
    for made in _items(forecast):
        if isinstance(made, Reject):
            forecast.rejects[made.reason] += 1
            forecast.over_length += made.reason == "too_long"
        else:
            forecast.shapes[made.shape] += 1
            forecast.lengths.append(len(made.prompt_token_ids))
            forecast.over_length += made.truncated > 0
            forecast.shared += _shared(made.prompt_token_ids, blocks)
    return forecast


def show(forecast: Forecast, prompts: int) -> list[Item]:
    """The first rendered prompts."""
    return list(itertools.islice((made for made in _items(forecast) if isinstance(made, Item)), prompts))


def _items(forecast: Forecast) -> Iterator[Item | Reject]:
    """One item per row (its first sample), or why there is none."""
    job = forecast.job
    reader = item.reader(job)
    for planned in job.plan.shards:
        for _, made in item.make_all(reader.read(planned), job):
            yield made if isinstance(made, Reject) else made[0]


def _shared(token_ids: list[int], blocks: set[int]) -> int:
    """How many tokens of a prompt stand in blocks that are known, after it is known too."""
    shared, chain = 0, 0
    for start in range(0, len(token_ids) - BLOCK + 1, BLOCK):
        chain = hash((chain, *token_ids[start : start + BLOCK]))
        if chain in blocks:
            shared += BLOCK
        elif len(blocks) < MOST_BLOCKS:
            blocks.add(chain)
    return shared
