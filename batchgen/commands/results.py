"""What a job has finished, for whoever reads all of it: checked shard by shard, in input order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError
from ..input.plan import Shard
from ..job.spec import JobSpec, nearest
from ..output import opening, shard
from ..output.counts import Counts
from ..output.record import JobRecord, fingerprints
from ..output.store import Store
from ..task.output_columns import always
from . import dataset_card
from .verify import open_finished, set_aside_by

BATCH_ROWS = 64  # in memory as Python objects; with 20 log probabilities of 512 tokens each that is some 170 MB
_OWN_FACTS = {"shard", "first_row", "counts"}  # what a shard's metadata says of that shard alone


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
                for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=columns):
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
    opening.check_shards(out, record)
    for each in shards:
        _refuse(out, each, shard.damage(out, each))
    schema = _schema(out, shards[0])
    for each in shards[1:]:
        _refuse(out, each, "" if _schema(out, each) == schema else "its columns are not those of the first shard")
    schema = pa.schema([schema.field(name) for name in _picked(columns, schema.names)])
    return Results(out, record, spec, shards, missing, schema, shard.total(out, shards), _facts(out, shards))


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


def _footer(out: Store, planned: Shard) -> pq.FileMetaData:
    """Raises JobError if it is damaged."""
    try:
        return shard.metadata(out, planned)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's own
        _refuse(out, planned, "is damaged: its footer cannot be read")
        raise AssertionError from error


def _schema(out: Store, planned: Shard) -> pa.Schema:
    try:
        return _footer(out, planned).schema.to_arrow_schema().remove_metadata()
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


def _facts(out: Store, shards: list[Shard]) -> dict[str, list[str]]:
    facts: dict[str, list[str]] = {}
    for planned in shards:
        footer = _footer(out, planned)
        drawn = shard.sampler(footer)
        note = "" if drawn.is_recorded else " (by its vLLM's version)"
        about = shard.facts(footer) | {"runner": drawn.runner + note, "noise": drawn.noise + note}
        for name, value in about.items():
            if name not in _OWN_FACTS and value not in (values := facts.setdefault(name, [])):
                values.append(value)
    try:
        msgspec.json.decode(facts["model"][0], type=dataset_card.ModelFacts)
        [msgspec.json.decode(versions, type=dict[str, str]) for versions in facts["versions"]]
        facts["dtype"], facts["device"]
    except (KeyError, msgspec.DecodeError) as error:
        raise JobError(f"{out}: its shards do not say what made them ({error}); run the job again elsewhere") from None
    return facts
