"""Shards: the output schema, the commit, and reading their facts back."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError, Reject, Stopped
from ..host import safeopen
from ..input.columns import Cell, assemble
from ..input.conversation import Row
from ..input.source import Shard
from .counts import Counts
from .folder import (
    check_links,
    checksum_path,
    make_folder,
    publish,
    rejects_path,
    sealed,
    shard_path,
    sync_folder,
    unsealed,
)

PREFIX = "batchgen."

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
    """

    parquet: str
    rejects: str | None
    size: int
    counts: Counts
    fingerprint: str = ""


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


def counted(rows: int, answers: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> Counts:
    """A shard's accounting: rows = rows with all samples + rejected rows."""
    reasons = Counter(sorted(line["reason"] for line in rejects))
    tokens = (sum(answer[what] for answer in answers) for what in ("prompt_tokens", "response_tokens"))
    return Counts(rows, len(answers), dict(reasons), *tokens)


def total(out: Path, shards: Iterable[Shard]) -> Counts:
    """The accounting of finished shards, added up. Raises Stopped if a part of it is damaged."""
    found = Counts()
    for planned in shards:
        try:
            found += read_checksums(out, planned).counts
        except ValueError as error:
            path = shard_path(out, planned)
            raise Stopped(f"{path}: its checksums are damaged ({error}); run the same command again") from None
    return found


def commit(
    out: Path,
    shard: Shard,
    answers: list[dict[str, Any]],
    rejects: list[dict[str, Any]],
    shape: pa.Schema,
    facts: dict[str, Any],
) -> None:
    """Makes a shard final: first its rejects and checksums, then its Parquet file.

    Nothing in it depends on time, so whoever commits the same shard writes the same bytes.
    """
    counts = counted(len(shard.row_numbers), answers, rejects)
    about = {"shard": shard.index, "first_row": shard.first_row, "counts": msgspec.to_builtins(counts), **facts}
    if skipped := sorted(line["row"] for line in rejects if line["reason"] == "skipped"):
        about["skipped"] = skipped
    content = as_parquet(sorted(answers, key=lambda answer: (answer["row"], answer["sample"])), shape, about)
    rejected = b"".join(msgspec.json.encode(line) + b"\n" for line in sorted(rejects, key=lambda line: line["row"]))
    check_links(out, ["_rejects"])
    if rejects:
        make_folder(out / "_rejects")
        publish(out, rejects_path(out, shard), rejected)
    elif (left := rejects_path(out, shard)).exists():  # by a job that was mended since
        left.unlink(missing_ok=True)
        sync_folder(left.parent)
    digests = _digest(content), _digest(rejected) if rejects else None
    sums = Checksums(*digests, len(content), counts, facts.get("fingerprint", ""))
    publish(out, checksum_path(out, shard), sealed(sums))
    publish(out, shard_path(out, shard), content)


def as_parquet(answers: list[dict[str, Any]], shape: pa.Schema, about: dict[str, Any]) -> memoryview:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, shape, compression="zstd") as writer:
        for some in _in_parts(answers):
            writer.write_table(
                pa.table([assemble([row.get(field.name) for row in some], field.type) for field in shape], shape)
            )
        writer.add_key_value_metadata({PREFIX + key: _text(value) for key, value in about.items()})
    return memoryview(sink.getvalue())


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


def _file_digest(path: Path) -> str:
    with safeopen.reading(path) as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def read_checksums(out: Path, shard: Shard) -> Checksums:
    """Raises FileNotFoundError, or ValueError if they are damaged."""
    return unsealed(safeopen.read(checksum_path(out, shard)), Checksums)


def damage(out: Path, shard: Shard) -> str:
    """What can be seen to be wrong with a finished shard without reading all of it; empty if nothing."""
    path = shard_path(out, shard)
    try:
        sums = read_checksums(out, shard)
    except (FileNotFoundError, ValueError) as error:
        return f"its checksums are gone or damaged ({error})"
    size = safeopen.size(path)
    if size != sums.size:
        return f"it has {size} bytes, not {sums.size}"
    if sums.rejects and not rejects_path(out, shard).exists():
        return "its rejects are gone"
    return ""


def wrong_content(out: Path, shard: Shard, fingerprint: str, required: pa.Schema) -> str:
    """What is wrong with the bytes of a finished shard of this job or of its rejects; empty if nothing.

    required: columns that every shard has; where they are not nullable, without a null
    """
    sums = read_checksums(out, shard)
    path = shard_path(out, shard)
    if _file_digest(path) != sums.parquet:
        return "its content does not fit its checksum"
    if _made_by(path) != fingerprint:
        return "it is a shard of another job"
    if not _has_columns(path, required):
        return "its columns are not those of a shard"
    if sums.rejects and _file_digest(rejects_path(out, shard)) != sums.rejects:
        return "its rejects do not fit their checksum"
    return ""


def _has_columns(path: Path, required: pa.Schema) -> bool:
    """Whether a file has the columns of a shard, and values in them: whoever makes checksums anew can give them to
    anything."""
    try:
        with safeopen.reading(path) as stream:
            file = pq.ParquetFile(stream)
            filled = [field.name for field in required if not field.nullable]
            table = file.read([name for name in filled if name in file.schema_arrow.names])
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's own
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


def is_foreign(out: Path, shard: Shard, fingerprint: str) -> bool:
    """Whether what has the shard's name was made by another job. Its checksums tell, if they are its own; one whose
    size is another was put there, and tells itself. One that this job made and that is damaged is none."""
    path = shard_path(out, shard)
    try:
        sums = read_checksums(out, shard)
    except (FileNotFoundError, ValueError):
        sums = None
    if sums and sums.size == safeopen.size(path):
        return (sums.fingerprint or _made_by(path) or fingerprint) != fingerprint
    return (_made_by(path) or fingerprint) != fingerprint


def _made_by(path: Path) -> str:
    """The fingerprint in a shard; empty if it cannot be read."""
    try:
        with safeopen.reading(path) as stream:
            about = pq.read_metadata(stream).metadata or {}
    except FileNotFoundError:
        return ""
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's own
        return ""
    return about.get(f"{PREFIX}fingerprint".encode(), b"").decode(errors="replace")


def read_rejects(out: Path, shard: Shard) -> list[dict[str, Any]]:
    """Raises JobError if a line is none of ours."""
    check_links(out, ["_rejects"])
    path = rejects_path(out, shard)
    try:
        with safeopen.reading(path) as stream:
            lines = iter(lambda: stream.readline(LONGEST_LINE), b"")
            return [msgspec.structs.asdict(msgspec.json.decode(line, type=RejectLine)) for line in lines]
    except FileNotFoundError:
        return []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: damaged ({error}); run batchgen verify") from None
