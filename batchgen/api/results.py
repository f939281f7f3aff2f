"""What a job has made, for Python: `batchgen.open("out")`."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from ..commands.rejects import rejected
from ..commands.verify import open_finished
from ..errors import JobError
from ..host import bucket
from ..input.cursor import EVERY_COLUMN
from ..input.rows import Reader
from ..job.spec import JobSpec, nearest
from ..output import shard, store
from ..output.counts import Counts
from ..runner.outcome import Outcome


class Rejected(NamedTuple):
    """A row without a response.

    row: its number
    id: its id, as far as it could be read
    reason: one word, such as too_long
    detail: the reason in words
    raw: the row as text, cut if it is long
    place: its file and line
    """

    row: int
    id: str
    reason: str
    detail: str
    raw: str
    place: str


class Score(NamedTuple):
    """How likely a text is.

    logprob: the sum over its tokens, of which there are so many
    greedy: whether every token was the likeliest
    without_prompt: the sum without the prompt, if the job asks for it
    """

    text: str
    logprob: float
    tokens: int
    logprob_per_token: float
    logprob_per_char: float
    greedy: bool
    without_prompt: float | None


class ScoredRow(NamedTuple):
    """A row with its scores.

    scores: of each of its texts
    best: number of the likeliest text, from 0; right: whether that is the reference, None if the row has none
    perplexity: if there is one text alone
    record: the whole output row, as the job writes it
    """

    row: int
    id: str
    scores: list[Score]
    best: int | None
    right: bool | None
    perplexity: float | None
    record: dict[str, Any]


class Results:
    """The results of a job, finished or not: of one that runs, what has been finished when this was opened."""

    def __init__(self, out: str | Path):
        """Raises JobError if it is no output folder."""
        self._store = store.at(out)
        self._record, self.spec = open_finished(self._store)
        self._shards = shard.finished(self._store, self._record.plan)

    spec: JobSpec

    @property
    def path(self) -> str:
        return str(self._store)

    @property
    def is_complete(self) -> bool:
        """Whether all shards are there."""
        return len(self._shards) == len(self._record.plan.shards)

    @cached_property
    def counts(self) -> Counts:
        """The accounting of what is finished: rows, responses, rejects, tokens."""
        return shard.Survey(self._store, self._shards).total(self._shards)

    def __len__(self) -> int:
        """Output rows: responses, translated records or scores."""
        return self.counts.responses

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else f"{len(self._shards)} of {len(self._record.plan.shards)} shards"
        return f"<batchgen results in {self.path}: {self.counts.summary}, {state}>"

    # --- all at once

    def dataset(self) -> ds.Dataset:
        """As an Arrow dataset, which reads as little as is asked of it. Raises JobError if nothing is finished."""
        self._check()
        files = [shard.where(self._store, planned) for planned in self._shards]
        if not bucket.is_uri(self.path):
            return ds.dataset(files, format="parquet")
        system, place = fs.FileSystem.from_uri(self.path)
        return ds.dataset([file.replace(self.path, place, 1) for file in files], filesystem=system, format="parquet")

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """columns: some of them, in this order; None for all"""
        names = self._names(columns)
        return pa.concat_tables(shard.read(self._store, planned, names).select(names) for planned in self._shards)

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        """A pandas.DataFrame. columns: some of them, in this order; None for all"""
        return self.to_arrow(columns).to_pandas()

    def to_polars(self, columns: Sequence[str] | None = None) -> Any:
        """A polars.DataFrame. columns: some of them, in this order; None for all"""
        import polars  # type: ignore[import-not-found, unused-ignore]

        return polars.from_arrow(self.to_arrow(columns))

    def to_hf(self, columns: Sequence[str] | None = None) -> Any:
        """A datasets.Dataset. columns: some of them, in this order; None for all"""
        import datasets

        return datasets.Dataset(self.to_arrow(columns))

    # --- row by row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Output rows in input order, samples in order; one shard is in memory at a time."""
        for planned in self._shards:
            yield from shard.read(self._store, planned, self._schema.names).to_pylist()

    def join_input(self) -> Iterator[dict[str, Any]]:
        """Output rows, each with all columns of its input row; those that have the name of a column of the output are
        called input_NAME."""
        reader, own = Reader(self._record.plan, [EVERY_COLUMN]), set(self._schema.names)
        for planned in self._shards:
            rows = shard.read(self._store, planned, self._schema.names).to_pylist()
            wanted = {row["row"] for row in rows}
            records = {row.number: row.record() for row in reader.read(planned) if row.number in wanted}
            for row in rows:
                given = records[row["row"]].items()
                yield {**row, **{f"input_{name}" if name in own else name: value for name, value in given}}

    def rejects(self) -> Iterator[Rejected]:
        """The rows without a response, of what is finished."""
        for place, line in rejected(self.path, []):
            yield Rejected(**line, place=place)

    # --- inside

    def _check(self) -> None:
        if not self._shards:
            raise JobError(f"{self.path}: no shard is finished yet; there is nothing to read")

    @cached_property
    def _schema(self) -> pa.Schema:
        self._check()
        return shard.metadata(self._store, self._shards[0]).schema.to_arrow_schema()

    def _names(self, columns: Sequence[str] | None) -> list[str]:
        known = self._schema.names
        for name in columns or ():
            if name not in known:
                raise JobError(f"{self.path}: no column {name}{nearest(name, known)}")
        return list(known if columns is None else columns)


class Scores:
    """What a run of a job with `[score]` came to. Going through it yields the scored rows, in input order."""

    def __init__(self, outcome: Outcome):
        self.outcome = outcome

    @property
    def results(self) -> Results:
        """All that is finished, by whichever run."""
        return Results(self.outcome.out.location)

    def __iter__(self) -> Iterator[ScoredRow]:
        for row in self.results if not self.outcome.nothing else ():
            scores = [Score(**score) for score in row["scores"]]
            yield ScoredRow(row["row"], row["id"], scores, row["best"], row["right"], row["perplexity"], row)


def open(out: str | Path) -> Results:
    """The results of the job in an output folder. Raises JobError if it is none."""
    return Results(out)
