"""What a job has finished, for whoever reads all of it: checked shard by shard, in input order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError
from ..input.plan import Shard
from ..job.spec import JobSpec, nearest
from ..output import opening, shard
from ..output.counts import Counts
from ..output.quarantine import set_aside_by
from ..output.record import JobRecord, fingerprints
from ..output.store import Store
from ..report import about
from ..task.output_columns import always
from .verify import open_finished

BATCH_ROWS = 64  # in memory as Python objects; with 20 log probabilities of 512 tokens each that is some 170 MB


@dataclass(frozen=True)
class Results:
    """What a job has finished.

    missing: shards that are not there
    schema: of the columns to export
    counts: as in `_SUCCESS`
    facts: what the shards' metadata say of the job, each with its different values as text
    """

    out: Store
    record: JobRecord
    spec: JobSpec
    shards: list[Shard]
    missing: int
    schema: pa.Schema
    counts: Counts
    facts: dict[str, list[str]]

    @property
    def is_of_lines(self) -> bool:
        """Whether it is a translation of JSON lines, whose records are the lines."""
        return bool(self.spec.translate.fields) and not any(file.is_columnar for file in self.record.plan.files)

    def batches(self, shards: Iterable[Shard], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Rows in input order, samples in order. Raises JobError if a shard is damaged."""
        made_by = fingerprints(self.record)
        for planned in shards:
            fingerprint = made_by[self.record.plan.files[planned.file].growth]
            _refuse(self.out, planned, shard.wrong_content(self.out, planned, fingerprint, always(self.spec)))
            with shard.opened(self.out, planned) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                    yield batch.select(columns)


def results_of(out: Store, columns: str, partial: bool) -> Results:
    """The finished results of a job. columns: names with commas between, or empty for all; partial: take what is there
    of an unfinished job. Raises JobError or Stopped."""
    record, spec = open_finished(out)
    planned = record.plan.shards
    shards = shard.finished(out, record.plan)
    missing = len(planned) - len(shards)
    if missing and not partial:
        raise JobError(
            f"{out}: {missing:,} of {len(planned):,} shards are missing; "
            "run the job to its end, or give --partial to export what is there"
        )
    if not shards:
        raise JobError(f"{out}: no shard is finished; there is nothing to export")
    survey = opening.check_shards(out, record)
    for each in shards:
        _refuse(out, each, survey.damage(each))
    schema = _schema(out, shards[0])
    for each in shards[1:]:
        _refuse(out, each, "" if _schema(out, each) == schema else "its columns are not those of the first shard")
    schema = pa.schema([schema.field(name) for name in _picked(columns, schema.names)])
    return Results(out, record, spec, shards, missing, schema, survey.total(shards), about.made_by(out, shards))


def records_of(results: Results, format: str, columns: str) -> Results:
    """What is exported of a translation: as JSON lines the input's own records, and nothing beside them."""
    if format != "jsonl" or columns:
        return results
    report = results.spec.translate.report
    own = ["record"] if results.is_of_lines else [name for name in results.schema.names if name != report]
    return replace(results, schema=pa.schema([results.schema.field(name) for name in own]))


def _refuse(out: Store, planned: Shard, damage: str) -> None:
    if damage:
        raise JobError(f"{shard.where(out, planned)}: {damage}; {set_aside_by(out)}")


def _schema(out: Store, planned: Shard) -> pa.Schema:
    try:
        return about.footer(out, planned).schema.to_arrow_schema().remove_metadata()
    except UnicodeDecodeError as error:
        _refuse(out, planned, "is damaged: its columns have no names")
        raise AssertionError from error


def _picked(columns: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in columns.split(",") if name.strip()] if columns else known
    for name in names:
        if name not in known:
            raise JobError(f"--columns {name}: no such column{nearest(name, known)}")
        if names.count(name) > 1:
            raise JobError(f"--columns {name}: named twice")
    if not names:
        raise JobError(f"--columns: name one or more of {', '.join(known)}")
    return names
