"""Shards: the output schema, the commit, and reading their facts back."""

import contextlib
import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from io import BufferedReader
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError, Reject, Stopped, on_disk
from ..input.columns import Cell, assemble
from ..input.conversation import Row
from ..input.plan import Plan, Shard
from ..job.sampler import UNKNOWN, Sampler, of_older
from ..task.segment_rows import SegmentRow
from . import hugging_face, layout, segments
from .counts import ENDINGS, Counts
from .quarantine import quarantine
from .sealed import sealed, unsealed
from .store import LISTED, Store

PREFIX = "batchgen."
DRAWN = ("runner", "noise")  # facts that are a Sampler

PART_BYTES = 4 << 30  # of passed-through values that are written at once
DOES_NOT_FIT = (pa.ArrowException, ValueError, TypeError, OverflowError)  # what a value says that has no place
RAW = 4096  # bytes of a rejected row that its line shows
LONGEST_LINE = 1 << 26  # bytes of such a line; ids and details are as long as the row has them


class RejectLine(msgspec.Struct):
    """A rejected row."""

    row: int
    id: str
    reason: str
    detail: str
    raw: str


class Checksums(msgspec.Struct):
    """What is known of a finished shard without reading it.

    parquet: blake2b of its Parquet file
    rejects: blake2b of its rejects, None if it has none
    size: of the Parquet file, in bytes
    fingerprint: of the job that made it; empty in folders of format 1, where only the Parquet file has it
    sampler: runner and noise that drew its tokens; empty up to batchgen 0.2
    segments: blake2b of what became of its segments; left out where there are none, as in older folders
    device: that it was made on, as vLLM calls it; empty up to batchgen 0.2
    """

    parquet: str
    rejects: str | None
    size: int
    counts: Counts
    fingerprint: str = ""
    sampler: list[str] = []
    segments: str | msgspec.UnsetType = msgspec.UNSET
    device: str = ""


def reject_line(row: Row, id: str, reject: Reject) -> dict[str, Any]:
    return {
        "row": row.number,
        "id": id,
        "reason": reject.reason,
        "detail": reject.detail,
        "raw": _raw(row),
    }


def _raw(row: Row) -> str:
    """The row for people, and how long it is if it is cut."""
    if isinstance(row.raw, bytes) and (size := row.size or len(row.raw)) > RAW:  # without a copy of all of it
        text = Row(row.number, row.raw[:RAW]).raw_text()
        return f"{_whole(text)}... ({size:,} bytes in all)"
    text = row.raw_text()
    if len(text) <= RAW:
        return text
    return f"{text[:RAW]}... ({len(text.encode('utf-8', 'surrogatepass')):,} bytes in all)"


def _whole(text: str) -> str:
    """Without the bytes of a letter that was cut."""
    return re.sub(r"(\\x[89a-f][0-9a-f]){1,3}$", "", text)


class _JustCounts(msgspec.Struct):
    """The part of a shard's checksums that tells how far a job is."""

    counts: Counts


_JUST_COUNTS = msgspec.json.Decoder(_JustCounts)


def counts_of(out: Store, shards: Sequence[Shard]) -> dict[int, Counts]:
    """The accounting of finished shards, by their numbers, in a hurry: its digest is not looked at. Without that of
    those where it is damaged or gone."""
    names = [layout.checksums(planned) for planned in shards]
    noted, found = out.notes(names), {}
    for name, planned in zip(names, shards, strict=True):
        with contextlib.suppress(FileNotFoundError, ValueError, JobError):
            match noted.get(name):
                case [only]:
                    found[planned.index] = _JUST_COUNTS.decode(only).counts
                case [*several] if several:
                    found[planned.index] = _fitting(out, layout.part(planned), several).counts
    return found


def finished(out: Store, plan: Plan, missing_ok: bool = False) -> list[Shard]:
    """The shards of a job that are there, in order. missing_ok: none are where no folder is."""
    names = set(out.listed("", layout.PARTS, cuts(plan.shards), missing_ok))
    return [shard for shard in plan.shards if layout.part(shard) in names]


def cuts(shards: Sequence[Shard]) -> list[str]:
    """Names of shards that part a listing of them."""
    return [layout.part(shard) for shard in shards[LISTED::LISTED]]


def is_finished(out: Store, shard: Shard) -> bool:
    return out.exists(layout.part(shard))


def where(out: Store, shard: Shard) -> str:
    """A finished shard's place, for messages."""
    return out.where(layout.part(shard))


def opened(out: Store, shard: Shard) -> AbstractContextManager[BufferedReader]:
    """A finished shard's Parquet file. Raises FileNotFoundError."""
    return out.open(layout.part(shard))


def size(out: Store, shard: Shard) -> int:
    """Of a finished shard's Parquet file, in bytes. Raises FileNotFoundError."""
    return out.stat(layout.part(shard)).size


def set_aside(out: Store, shard: Shard) -> str:
    """Moves a damaged shard to quarantine, and says where it is. Raises FileNotFoundError if it is there already."""
    return out.where(quarantine(out, layout.part(shard)))


def commit(
    out: Store,
    shard: Shard,
    answers: list[dict[str, Any]],
    rejects: list[dict[str, Any]],
    schema: pa.Schema,
    counts: Counts,
    facts: dict[str, Any],
    segmented: Sequence[SegmentRow] = (),
    empty_group: bool = False,
) -> None:
    """Makes a shard final: first its rejects, segments and checksums, then its Parquet file.

    Nothing in it depends on time, so whoever commits the same shard writes the same bytes, unless the engine's noise
    depends on what runs beside a request.

    answers: its output rows, in order
    segmented: what became of its segments, in order of their first use
    empty_group: see as_parquet
    """
    accounting = {name: value for name, value in msgspec.to_builtins(counts).items() if name not in ENDINGS}
    about = {"shard": shard.index, "first_row": shard.first_row, "counts": accounting, **facts}
    if skipped := sorted(line["row"] for line in rejects if line["reason"] == "skipped"):
        about["skipped"] = skipped
    content = as_parquet(answers, schema, about, empty_group)
    audit = segments.as_parquet(segmented, _metadata(about)) if segmented else b""
    rejected = b"".join(msgspec.json.encode(line) + b"\n" for line in sorted(rejects, key=lambda line: line["row"]))
    out.check_links(layout.REJECTS, layout.SEGMENTS)
    sums = Checksums(
        _digest(content),
        _digest(rejected) if rejects else None,
        len(content),
        counts,
        facts.get("fingerprint", ""),
        [facts[name] for name in DRAWN if name in facts],
        _digest(audit) if segmented else msgspec.UNSET,
        facts.get("device", ""),
    )
    # Nothing is left beside it where there is nothing to say; the same job may have, before its spec was changed.
    beside = {layout.rejects(shard): rejected, layout.segments(shard): audit}
    out.publish(layout.part(shard), content, beside, (layout.checksums(shard), sealed(sums)))


def as_parquet(
    answers: list[dict[str, Any]], schema: pa.Schema, about: dict[str, Any], empty_group: bool = False
) -> memoryview:
    """empty_group: where there are no answers, an empty row group says so, as up to 0.3.0; `datasets` reads no file
    whose first row group is empty"""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for some in _in_parts(answers) if answers or empty_group else ():
            writer.write_table(as_table(some, schema))
        writer.add_key_value_metadata(_metadata(about))
    return memoryview(sink.getvalue())


def as_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([assemble([row.get(field.name) for row in rows], field.type) for field in schema], schema=schema)


def _metadata(about: dict[str, Any]) -> dict[str, str]:
    return {PREFIX + key: _text(value) for key, value in about.items()}


def _in_parts(answers: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """All answers at once, as long as their passed-through values, which the input may hold once for all rows, take no
    more than a part may."""
    begin = size = 0
    for place, answer in enumerate(answers):
        size += sum(value.size for value in answer.values() if isinstance(value, Cell))
        if size > PART_BYTES and place > begin:
            yield answers[begin:place]
            begin, size = place, 0
    yield answers[begin:]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, order="deterministic").decode()


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_in(out: Store, name: str) -> str:
    """blake2b of an object, as checksums have it. Raises FileNotFoundError."""
    with out.open(name) as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def begun(out: Store) -> float:
    """The job's first moment, by the store's clock; infinitely late if that is not known."""
    try:
        # A growing job writes _job.json again, but the other file knows when it began.
        return min(out.stat(layout.JOB).modified, hugging_face.begun(out))
    except FileNotFoundError:
        return math.inf


def last_commit(out: Store) -> float:
    """The moment of a job's last commit, by the store's clock; 0 if that is not known."""
    try:
        return out.changed(layout.CHECKSUMS)  # where a commit writes to
    except FileNotFoundError:
        return 0.0


def read_checksums(out: Store, shard: Shard) -> Checksums:
    """Raises FileNotFoundError, or ValueError if they are damaged."""
    return _fitting(out, layout.part(shard), out.noted(layout.checksums(shard)))


def _fitting(out: Store, part: str, noted: list[bytes]) -> Checksums:
    """Of what several workers may have noted of a shard, what fits the one that is there. Raises ValueError if they are
    damaged."""
    sums = [unsealed(each, Checksums) for each in noted]
    if len(sums) > 1:
        digest = digest_in(out, part)
        sums = [each for each in sums if each.parquet == digest] or sums
    return sums[0]


def survey_of(out: Store, shard: Shard) -> "Survey":
    """Of one shard alone."""
    return Survey(out, [shard], layout.stem(shard))


class Survey:
    """What can be seen of many shards without reading them: in a bucket, by some listings."""

    def __init__(self, out: Store, shards: Sequence[Shard], begin: str = layout.PARTS):
        """begin: of the names that are looked at."""
        self._out = out
        pieces = cuts(shards)
        self._sizes = out.sizes("", begin, pieces)
        self._noted = out.notes([layout.checksums(planned) for planned in shards if self.is_there(planned)])
        self._beside = {
            f"{folder}/{name}"
            for folder in (layout.REJECTS, layout.SEGMENTS)
            for name in out.listed(folder, begin, pieces, missing_ok=True)
        }

    @property
    def names(self) -> list[str]:
        """Of all that has the name of a shard, whatever job's it is."""
        return [name for name in self._sizes if layout.is_part(name)]

    def is_there(self, shard: Shard) -> bool:
        return layout.part(shard) in self._sizes

    def checksums(self, shard: Shard) -> Checksums:
        """Raises FileNotFoundError, or ValueError if they are damaged."""
        if noted := self._noted.get(layout.checksums(shard)):
            return _fitting(self._out, layout.part(shard), noted)
        return read_checksums(self._out, shard)

    def damage(self, shard: Shard) -> str:
        """What can be seen to be wrong with a finished shard; empty if nothing."""
        try:
            sums = self.checksums(shard)
        except (FileNotFoundError, ValueError) as error:
            return f"its checksums are gone or damaged ({error})"
        if not self.is_there(shard):
            return "it is gone"
        if (has := self._sizes[layout.part(shard)]) != sums.size:
            return f"it has {has} bytes, not {sums.size}"
        if sums.rejects and layout.rejects(shard) not in self._beside:
            return "its rejects are gone"
        if sums.segments and layout.segments(shard) not in self._beside:
            return "its segments are gone"
        return ""

    def is_foreign(self, shard: Shard, fingerprint: str) -> bool:
        """Whether what has the shard's name was made by another job. Its checksums tell, if they are its own; one whose
        size is another was put there, and tells itself. One that this job made and that is damaged is none."""
        try:
            sums = self.checksums(shard)
        except (FileNotFoundError, ValueError):
            sums = None
        if sums and sums.size == self._sizes.get(layout.part(shard)):
            return (sums.fingerprint or _made_by(self._out, shard) or fingerprint) != fingerprint
        return (_made_by(self._out, shard) or fingerprint) != fingerprint

    def total(self, shards: Iterable[Shard]) -> Counts:
        """Their accounting, added up. Raises Stopped if a part of it is damaged or gone."""
        return Counts.total(map(self._counts, shards)).whole

    def _counts(self, shard: Shard) -> Counts:
        try:
            with on_disk(self._out):
                return self.checksums(shard).counts
        except ValueError as error:
            what = f"its checksums are damaged ({error})"
            raise Stopped(f"{where(self._out, shard)}: {what}; run the same command again") from None


def wrong_content(out: Store, shard: Shard, fingerprint: str, required: pa.Schema) -> str:
    """What is wrong with the bytes of a finished shard of this job, its rejects or segments; empty if nothing.

    required: columns that every shard has; where they are not nullable, without a null
    """
    sums = read_checksums(out, shard)
    if digest_in(out, layout.part(shard)) != sums.parquet:
        return "its content does not fit its checksum"
    if _made_by(out, shard) != fingerprint:
        return "it is a shard of another job"
    if not _has_columns(out, shard, required):
        return "its columns are not those of a shard"
    if sums.rejects and digest_in(out, layout.rejects(shard)) != sums.rejects:
        return "its rejects do not fit their checksum"
    if sums.segments and digest_in(out, layout.segments(shard)) != sums.segments:
        return "its segments do not fit their checksum"
    return ""


def _has_columns(out: Store, shard: Shard, required: pa.Schema) -> bool:
    """Whether a file has the columns of a shard, and values in them: whoever makes checksums anew can give them to
    anything."""
    try:
        with opened(out, shard) as stream:
            file = pq.ParquetFile(stream)
            filled = [field.name for field in required if not field.nullable]
            table = file.read([name for name in filled if name in file.schema_arrow.names], use_threads=False)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, UnicodeDecodeError, OSError):  # the disk's own are Stopped
        return False
    types = {field.name: field.type for field in file.schema_arrow}
    return (
        len(types) == len(file.schema_arrow)
        and all(field.name in types and _is_of_type(types[field.name], field.type) for field in required)
        and not any(column.null_count for column in table.columns)
    )


def _is_of_type(found: pa.DataType, required: pa.DataType) -> bool:
    """A struct may have other fields: there have come more over time."""
    return pa.types.is_struct(found) if pa.types.is_struct(required) else found == required


def _made_by(out: Store, shard: Shard) -> str:
    """The fingerprint in a shard; empty if it cannot be read."""
    try:
        about = metadata(out, shard).metadata or {}
    except (pa.ArrowException, UnicodeDecodeError, OSError):  # it is gone or damaged; the disk's own are Stopped
        return ""
    return about.get(f"{PREFIX}fingerprint".encode(), b"").decode(errors="replace")


def responses(out: Store, part: str) -> int:
    """How many a shard has of whatever job, by its checksums; 0 if they are gone or damaged."""
    try:
        return _fitting(out, part, out.noted(layout.checksums_of(part))).counts.responses
    except (FileNotFoundError, ValueError):
        return 0


def metadata(out: Store, shard: Shard) -> pq.FileMetaData:
    """Raises FileNotFoundError, and what Arrow does if it is damaged: an OSError without errno, too."""
    with opened(out, shard) as stream:
        return pq.read_metadata(stream)


def facts(footer: pq.FileMetaData) -> dict[str, str]:
    """What a shard says of itself. footer: its metadata"""
    pairs = (footer.metadata or {}).items()
    about = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in pairs}
    return {key.removeprefix(PREFIX): value for key, value in about.items() if key.startswith(PREFIX)}


def sampler(footer: pq.FileMetaData) -> Sampler:
    """What drew the tokens of a shard. footer: its metadata"""
    about = facts(footer)
    if about.keys() >= set(DRAWN):
        return Sampler(about["runner"], about["noise"])
    try:
        versions = msgspec.json.decode(about["versions"], type=dict[str, str])
        return of_older(about["dtype"], about["device"], versions.get("vllm"))
    except (KeyError, msgspec.DecodeError):
        return UNKNOWN


def engines(out: Store, shards: Sequence[Shard]) -> tuple[Counter[Sampler], Counter[str]]:
    """What drew the tokens of finished shards, and the devices that these were made on, each with the number of shards.
    One that is damaged or gone counts for neither. Raises Stopped."""
    samplers: Counter[Sampler] = Counter()
    devices: Counter[str] = Counter()
    survey = Survey(out, shards)
    for each in shards:
        with contextlib.suppress(OSError, ValueError, pa.ArrowException):  # the disk's own are Stopped
            sums = survey.checksums(each)
            if sums.counts and sums.counts.rejected == sums.counts.rows:
                continue  # nothing in it was made
            match sums.sampler:
                case [runner, noise]:
                    drew, device = Sampler(runner, noise), sums.device
                case _:
                    footer = metadata(out, each)
                    drew, device = sampler(footer), facts(footer).get("device", "")
            samplers[drew] += 1
            if device:
                devices[device] += 1
    return samplers, devices


def read(out: Store, shard: Shard, columns: list[str]) -> pa.Table:
    """Some columns of a finished shard, all at once. Raises as `metadata`."""
    with opened(out, shard) as stream:
        return pq.ParquetFile(stream).read(columns, use_threads=False)


def digest_of_all(out: Store, shards: Iterable[Shard]) -> str:
    """`sha256sum part-*.parquet _rejects/*.jsonl _segments/*.parquet | sha256sum`, of those that are there: whoever
    keeps it needs no batchgen to compare."""
    shards, lines = list(shards), []
    names = (sorted(map(name_of, shards)) for name_of in (layout.part, layout.rejects, layout.segments))
    for name in itertools.chain.from_iterable(names):
        with contextlib.suppress(FileNotFoundError), out.open(name) as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def first_reject(out: Store, shards: Iterable[Shard]) -> dict[str, Any] | None:
    """The line of the first rejected row, where there are some; a listing tells which shard has it. Raises Stopped if
    their folder is gone, as a share is that was unmounted."""
    there = {f"{layout.REJECTS}/{name}" for name in out.listed(layout.REJECTS, layout.PARTS)}
    some = (planned for planned in shards if layout.rejects(planned) in there)
    return next((line for planned in some for line in read_rejects(out, planned)), None)


def read_rejects(out: Store, shard: Shard) -> list[dict[str, Any]]:
    """Raises JobError if a line is not one that batchgen writes."""
    name = layout.rejects(shard)
    out.check_links(layout.REJECTS)
    try:
        with out.open(name) as stream:
            lines = iter(lambda: stream.readline(LONGEST_LINE), b"")
            return [msgspec.structs.asdict(msgspec.json.decode(line, type=RejectLine)) for line in lines]
    except FileNotFoundError:
        return []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JobError(f"{out.where(name)}: damaged ({error}); run batchgen verify") from None
