"""Data that is in memory as the input of a job: written once beside the output, so that a run can be resumed, shared by
workers and verified as one over any other files."""

import base64
import contextlib
import filecmp
import functools
import glob
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ..errors import JobError, on_disk
from ..host import safeopen
from ..host.bucket import Bucket
from ..input.files import is_named_like_data
from ..job.output_path import check_output_path

ROWS = 10_000  # of a Parquet row group, and of a Hugging Face dataset at a time
_PIECE = 1 << 20  # bytes, of what comes through a pipe
_DIGEST = 8  # bytes
_DEEPEST = 100  # levels of a row
_TIMES = "mM"  # kinds of numpy's
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # how files of them begin
_NO_ROWS = "input: no rows"
# What a library says of values that Arrow or Parquet has no place for.
_DOES_NOT_FIT = (pa.ArrowException, ValueError, TypeError, OverflowError)


def paths_of(data: Any, output: str) -> list[str]:
    """The input of a job as files.

    data: paths as they are: a text or Path, or a list of these; or rows as dicts or texts, in a list or as they come; a
        data frame of pandas or Polars, a table of Arrow, DuckDB or Hugging Face. These are written to a file that is
        named after the output and its own content; what comes piece by piece is never in memory as a whole
    output: folder of the job, or its URI

    Raises JobError.
    """
    if isinstance(data, str | Path):
        _check_path(data)
        return [str(data)]
    if isinstance(data, list) and _are_paths(data):
        return [str(each) for each in data]
    return [_beside(output, functools.partial(_written, data))]


def spooled(stream: TextIO | None, output: str) -> str:
    """What comes through a pipe as such a file. stream: sys.stdin; output: see paths_of. Raises JobError."""
    if stream is None or stream.isatty():
        raise JobError("-: is for what is piped in (cat talks.jsonl | batchgen ...), and nothing is; name a file")
    return _beside(output, functools.partial(_copied, stream.buffer))


def _beside(output: str, write: Callable[[Path], Path]) -> str:
    """write: writes the file beside the path of an output, and gives its path"""
    if "://" not in output:
        return str(write(Path(output).absolute()))
    check_output_path("output", output)
    folder, _, name = output.rstrip("/").rpartition("/")
    if folder.endswith("/"):
        raise JobError(
            f"{output}: data in memory is written beside the output, which needs a name in the bucket for that"
        )
    with tempfile.TemporaryDirectory(prefix="batchgen-input-") as scratch:
        made, place = write(Path(scratch) / name), Bucket(folder)
        if not place.has(made.name):  # its content is in its name
            place.upload(made.name, made)
        return place.where(made.name)


def _written(data: Any, path: Path) -> Path:
    """The file of data that is no paths. path: of the output, beside which it is written. Raises JobError."""
    _check_kind(data)
    tables = _tables(data)
    if tables is None and not isinstance(data, Iterable):
        raise JobError(f"input: a {type(data).__name__} is no data that can be read; give paths, dicts or a table")
    with _new(path) as made:
        if tables is None:
            _write_lines(data, made)
        else:
            _write_parquet(tables, made)
        return _in_place(made, path, ".jsonl" if tables is None else ".parquet")


def _copied(stream: BinaryIO, path: Path) -> Path:
    """What a file is, its content says, so that its name has no ending."""
    with _new(path) as made:
        with made.open("wb") as file:
            shutil.copyfileobj(stream, file, _PIECE)
            if not file.tell():
                raise JobError("-: nothing came in through the pipe")
        return _in_place(made, path, "")


@contextlib.contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A file beside the path that is to get its name when it is written. Raises JobError."""
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name[:150]}.input-{uuid.uuid4().hex[:12]}.tmp")
        try:
            os.close(safeopen.create(made))
            yield made
        finally:
            made.unlink(missing_ok=True)


# --- paths or rows


def _check_path(data: str | Path) -> None:
    """Raises JobError for a text by itself: most programs would take it for a prompt."""
    is_path = isinstance(data, Path) or "://" in data or is_named_like_data(data) or glob.has_magic(data)
    if not is_path and not _is_there(data):
        raise JobError(f"input: {data!r:.80}: no such file or folder; a text to be answered goes into a list, [text]")


def _are_paths(values: list[Any]) -> bool:
    """Raises JobError where some are paths, and the others would be taken for prompts."""
    named = [each for each in values if isinstance(each, Path) or _is_named_like_path(each)]
    if values and all(isinstance(each, Path) or _is_named_like_path(each) or _is_there(each) for each in values):
        return True
    if named and any(map(_is_there, named)):
        other = next(each for each in values if each not in named and not _is_there(each))
        raise JobError(f"input: {named[0]} is a path, and {str(other)[:80]!r} is none; give paths alone, or rows alone")
    return False


def _is_named_like_path(value: Any) -> bool:
    """A prompt has blanks, or has no ending of data."""
    return isinstance(value, str) and not any(map(str.isspace, value)) and ("://" in value or is_named_like_data(value))


def _is_there(value: Any) -> bool:
    try:
        return isinstance(value, str | Path) and os.path.exists(value)
    except ValueError:  # with a zero byte
        return False


def _check_kind(data: Any) -> None:
    """Raises JobError for what would be gone through and come out as something else."""
    if isinstance(data, Mapping):
        names = ", ".join(map(str, list(data)[:3]))
        raise JobError(f"input: a {type(data).__name__} with {names} is no list of rows: pick one, or put it in a list")
    if isinstance(data, bytes | bytearray | io.IOBase):
        raise JobError(f"input: a {type(data).__name__} holds no rows; give the path of the file")
    if isinstance(data, set | frozenset):
        raise JobError("input: a set has no order, on which seeds and resuming depend; give a list")


# --- tables


def _tables(data: Any) -> Iterator[pa.Table] | None:
    """The Arrow tables that data consists of; None if it is no table. Raises JobError."""
    if isinstance(data, pa.Table):
        return iter([data])
    if isinstance(data, pa.RecordBatch):
        return iter([pa.Table.from_batches([data])])
    if isinstance(data, ds.Dataset):
        data = data.scanner().to_reader()
    if hasattr(data, "with_format") and hasattr(data, "features"):  # Hugging Face
        # A streaming dataset may not know its columns; then it is rows.
        return iter(data.with_format("arrow").iter(batch_size=ROWS)) if data.features is not None else None
    if hasattr(data, "collect_schema"):  # Polars
        return iter([_of_polars(data)])
    if not hasattr(data, "columns") and not isinstance(data, pa.RecordBatchReader):
        return None
    if type(data).__module__.partition(".")[0] == "pandas":
        return iter([_of_pandas(data)])
    if hasattr(data, "__arrow_c_stream__"):  # DuckDB, and whoever else speaks Arrow
        return (pa.Table.from_batches([batch]) for batch in pa.RecordBatchReader.from_stream(data))
    raise JobError(f"input: a {type(data).__name__} is no table that can be read; give one of pandas, Polars or Arrow")


def _of_pandas(frame: Any) -> pa.Table:
    """With its index, where that has a name: whoever named it means it. Raises JobError."""
    try:
        if any(name is not None for name in frame.index.names):
            frame = frame.reset_index()
        return pa.Table.from_pandas(frame, preserve_index=False)
    except _DOES_NOT_FIT as error:
        raise JobError(f"input: the data frame has no form as a table: {_words(error)}") from None


def _of_polars(frame: Any) -> pa.Table:
    """A lazy frame is made first. Raises JobError."""
    frame = frame.collect() if hasattr(frame, "collect") else frame
    if objects := [name for name, kind in frame.schema.items() if str(kind).startswith("Object")]:
        raise JobError(f"input: column {objects[0]} holds Python objects; convert it, or leave it out")
    try:
        return frame.to_arrow()
    except _DOES_NOT_FIT as error:
        raise JobError(f"input: the data frame has no form as a table: {_words(error)}") from None


def _write_parquet(tables: Iterator[pa.Table], made: Path) -> None:
    """Without the tables' metadata, which may hold what differs from one machine to another. Raises JobError."""
    rows = 0
    with contextlib.ExitStack() as stack:
        writer = None
        try:
            for table in tables:
                table = table.replace_schema_metadata(None)
                _check_columns(table.schema)
                writer = writer or stack.enter_context(pq.ParquetWriter(made, table.schema, compression="zstd"))
                writer.write_table(table, row_group_size=ROWS)
                rows += table.num_rows
        except _DOES_NOT_FIT as error:
            raise JobError(f"input: cannot be written as Parquet: {_words(error)}") from None
    if not rows:
        raise JobError(_NO_ROWS)


def _check_columns(schema: pa.Schema) -> None:
    """Raises JobError."""
    if doubled := [name for name in schema.names if schema.names.count(name) > 1]:
        raise JobError(f"input: two columns are called {doubled[0]}; rename one")
    for field in schema:
        kind = field.type
        # A worker, which has not imported the library that made it, would see another type.
        if isinstance(kind, pa.BaseExtensionType) and not kind.extension_name.startswith("arrow."):
            raise JobError(f"input: column {field.name} is of a type that Arrow does not have ({kind}); convert it")


def _words(error: BaseException) -> str:
    """pandas' conversions say which column it was in a second argument."""
    return "; ".join(" ".join(str(part).split()) for part in error.args)


# --- rows


def _write_lines(rows: Iterable[Any], made: Path) -> None:
    """Raises JobError if a row is neither text nor JSON."""
    number = -1
    with made.open("wb") as stream:
        for number, row in enumerate(rows):
            stream.write(_line(number, row))
    if number < 0:
        raise JobError(_NO_ROWS)


def _line(number: int, row: Any) -> bytes:
    row = row.as_py() if isinstance(row, pa.Scalar) else row
    record = {"text": row} if isinstance(row, str) else row
    if not isinstance(record, Mapping):
        hint = '; a chat is {"messages": [...]}' if isinstance(record, list) else ""
        raise JobError(f"input: row {number} is of type {type(row).__name__}; rows are dicts or texts{hint}")
    try:
        return _json(dict(record))
    except (TypeError, ValueError, RecursionError):  # as seldom as this is, it is looked at only then
        return _json(_plain(record, f"input: row {number}"))


def _json(record: dict[str, Any]) -> bytes:
    if not all(isinstance(name, str) for name in record):
        raise TypeError("names are texts")
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") + b"\n"


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A value in JSON's own types: numpy's numbers and arrays as Python's, times as ISO 8601, decimal numbers as text,
    images as data: URIs, and what pandas has where nothing is as null. Raises JobError for what has no such form."""
    if depth > _DEEPEST:
        raise JobError(f"{where[:200]}: is nested too deeply")
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind not in _TIMES:
        value = value.tolist()
    match value:
        case Mapping():
            named = {str(name): _plain(each, f"{where}, {name}", depth + 1) for name, each in value.items()}
            if len(named) < len(value):
                raise JobError(f"{where}: two names are the same as texts")
            return named
        case list() | tuple():
            return [_plain(each, f"{where}[{index}]", depth + 1) for index, each in enumerate(value)]
        case None | str() | bool() | int():
            return value
        case _ if _is_missing(value):
            return None
        case float() if math.isfinite(value):
            return value
        case date() | datetime() | time():
            return value.isoformat()
        case Decimal() | uuid.UUID() | np.datetime64():
            return str(value)
        case _ if (file := _file_of_image(value)) is not None:
            return "data:;base64," + base64.b64encode(file).decode()
    what = "infinity" if isinstance(value, float) else f"of type {type(value).__name__}"
    raise JobError(f"{where}: is {what}, which JSON does not have; convert it, or leave it out")


def _file_of_image(value: Any) -> bytes | None:
    """Of one of Pillow, or of the bytes of a file that begins as images do; other bytes may be meant as anything."""
    if isinstance(value, bytes | bytearray):
        return bytes(value) if value.startswith(_IMAGES) else None
    if not any(kind.__module__ == "PIL.Image" for kind in type(value).__mro__):
        return None
    value.convert("RGB").save(file := io.BytesIO(), "PNG")  # which is all that is seen of it
    return file.getvalue()


def _is_missing(value: Any) -> bool:
    if isinstance(value, np.datetime64):
        return bool(np.isnat(value))
    return type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))


# --- files


def _in_place(made: Path, output: Path, ending: str) -> Path:
    """Gives a file its name, unless the same data of the same job lies there already."""
    with made.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=_DIGEST)).hexdigest()
        os.fsync(stream.fileno())
    path = output.with_name(f"{output.name}.input-{digest}{ending}")
    if not (path.is_file() and filecmp.cmp(path, made, shallow=False)):
        made.replace(path)
        safeopen.sync_folder(path.parent)
    return path
