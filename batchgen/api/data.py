"""Data that is in memory as the input of a job: written once beside the output, so that a run can be resumed, shared by
workers and verified as one over any other files."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError, on_disk
from ..host import bucket, safeopen

ROWS = 10_000  # of a Parquet row group, and of a Hugging Face dataset at a time
_DIGEST = 8  # bytes


def paths_of(data: Any, output: str) -> list[str]:
    """The input of a job as files.

    data: paths as they are: a text or Path, or a list of these; or a list of dicts or of texts, a pandas or Polars data
        frame, an Arrow table or a Hugging Face dataset, which is written to a file named after the output and its own
        content
    output: folder of the job, or its URI

    Raises JobError.
    """
    if isinstance(data, str | Path):
        return [str(data)]
    if isinstance(data, list) and data and all(isinstance(each, Path) or _is_path(each) for each in data):
        return [str(each) for each in data]
    if "://" in output:
        raise JobError(f"{output}: data in memory is written beside the output, which has to be a folder for that")
    if isinstance(data, Iterable) and not hasattr(data, "__dataframe__") and not _tables(data):
        return [_write(_lines(data), output, ".jsonl")]
    tables = _tables(data)
    if tables is None:
        raise JobError(f"input: a {type(data).__name__} is no data that can be read; give paths, dicts or a table")
    return [_write(_parquet(tables), output, ".parquet")]


def _is_path(value: Any) -> bool:
    """Whether a text is meant as a path: one of a list of prompts has white space, or names nothing."""
    return isinstance(value, str) and ("://" in value or Path(value).exists())


def _tables(data: Any) -> Iterator[pa.Table] | None:
    """The Arrow tables that data consists of; None if it is no table."""
    if isinstance(data, pa.Table):
        return iter([data])
    if isinstance(data, pa.RecordBatch):
        return iter([pa.Table.from_batches([data])])
    if hasattr(data, "with_format") and hasattr(data, "features"):  # Hugging Face
        if not hasattr(data, "num_rows"):
            raise JobError("input: a streaming dataset has no fixed rows; save it to files, or take one in memory")
        return iter(data.with_format("arrow").iter(batch_size=ROWS))
    if hasattr(data, "to_arrow"):  # Polars
        return iter([data.to_arrow()])
    if type(data).__module__.partition(".")[0] == "pandas":
        return iter([pa.Table.from_pandas(data, preserve_index=False)])
    return None


def _lines(rows: Iterable[Any]) -> bytes:
    """Raises JobError if a row is neither text nor JSON."""
    lines = []
    for number, row in enumerate(rows):
        record = {"text": row} if isinstance(row, str) else row
        if not isinstance(record, Mapping):
            raise JobError(f"input: row {number} is a {type(row).__name__}; rows are dicts or texts")
        try:
            lines.append(json.dumps(dict(record), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        except (TypeError, ValueError) as error:
            raise JobError(f"input: row {number} cannot be written as JSON: {error}") from None
    if not lines:
        raise JobError("input: no rows")
    return b"".join(lines)


def _parquet(tables: Iterator[pa.Table]) -> bytes:
    """Without the tables' metadata, which may hold what differs from one machine to another."""
    sink, writer = pa.BufferOutputStream(), None
    try:
        for table in tables:
            table = table.replace_schema_metadata(None)
            writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=ROWS)
    except (pa.ArrowException, ValueError) as error:
        raise JobError(f"input: cannot be written as Parquet: {error}") from None
    if writer is None:
        raise JobError("input: no rows")
    writer.close()
    return bytes(sink.getvalue())


def _write(content: bytes, output: str, ending: str) -> str:
    """Where it lies; the same data of the same job lies there already."""
    digest = hashlib.blake2b(content, digest_size=_DIGEST).hexdigest()
    if bucket.is_uri(output):
        folder, _, name = output.rstrip("/").rpartition("/")
        name = f"{name}.input-{digest}{ending}"
        bucket.Bucket(folder).create(name, content)
        return f"{folder}/{name}"
    path = Path(output).absolute()
    path = path.with_name(f"{path.name}.input-{digest}{ending}")
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            safeopen.replace(path, content, durable=True)
    return str(path)
