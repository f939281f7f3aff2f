"""The output folder: what lies where, how a file gets there whole, and whether a job may go on in it."""

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .errors import JobError, on_disk
from .job import differences, fingerprint
from .source import Plan, Shard

# Hugging Face datasets does not pass over names with `_`: without this it may take _rejects/ for the data.
_HUGGING_FACE = b"configs:\n- config_name: default\n  data_files: '*.parquet'\n"


class JobRecord(msgspec.Struct, kw_only=True):
    """`_job.json`. results: all that decides what the shards hold; fingerprint: its digest; spec: as resolved;
    retry_of: the job whose rows these are, and why they were picked, if it is a retry."""

    fingerprint: str
    results: dict[str, Any]
    spec: dict[str, Any]
    versions: dict[str, str]
    plan: Plan
    retry_of: dict[str, Any] | None = None


def shard_path(out: Path, shard: Shard) -> Path:
    return out / f"{shard.name}.parquet"


def rejects_path(out: Path, shard: Shard) -> Path:
    return out / "_rejects" / f"{shard.name}.jsonl"


def checksum_path(out: Path, shard: Shard) -> Path:
    return out / "_state" / "checksums" / f"{shard.name}.json"


def finished(out: Path, plan: Plan) -> list[Shard]:
    """The shards of a job that are there, in order."""
    names = set(os.listdir(out))
    return [shard for shard in plan.shards if f"{shard.name}.parquet" in names]


def publish(out: Path, path: Path, content: bytes | memoryview) -> None:
    """Writes a file of the output folder: it appears whole and on disk, or not at all."""
    temporary = out / "_state" / f"{path.name}.{os.uname().nodename}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # a full disk needs the room
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sealed(facts: msgspec.Struct) -> bytes:
    """A struct as JSON that holds a digest of itself."""
    table = msgspec.to_builtins(facts)
    return msgspec.json.encode({**table, "digest": fingerprint(table)})


Facts = TypeVar("Facts", bound=msgspec.Struct)


def unsealed(content: bytes, kind: type[Facts]) -> Facts:
    """What `sealed` made. Raises ValueError if any of it has changed since."""
    try:
        table = msgspec.json.decode(content, type=dict[str, Any])
        if table.pop("digest", "") != fingerprint(table):
            raise ValueError("it does not fit its own digest")
        return msgspec.convert(table, kind)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def make_folder(folder: Path) -> None:
    """Makes a folder in one that is there: if that has vanished, it must not come back half."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder, new or gone, outlast a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def quarantine(out: Path, path: Path) -> Path:
    """Moves a damaged file out of the way, for people to look at."""
    aside = out / "_state" / "quarantine" / f"{path.name}.{uuid.uuid4().hex[:8]}"
    make_folder(aside.parent)
    path.rename(aside)
    sync_folder(aside.parent)
    sync_folder(path.parent)
    return aside


def read_job(out: Path) -> JobRecord | None:
    """The job that lives in a folder; None if the folder is new or empty. Raises JobError or Stopped."""
    path = out / "_job.json"
    with on_disk(out):
        there = next(folder for folder in (out, *out.parents) if folder.exists())
        if not there.is_dir():
            raise JobError(f"{there}: is a file; name a folder for the output")
        if not path.exists():
            ours = ("_state", ".huggingface.yaml")
            others = [name for name in sorted(os.listdir(out)) if name not in ours] if there == out else []
            if others:
                raise JobError(f"{out}: holds something else ({', '.join(others[:3])}); name a new or empty folder")
            return None
        content = path.read_bytes()
    try:
        return unsealed(content, JobRecord)
    except ValueError as error:
        raise JobError(f"{path}: damaged, or not batchgen's ({error}); name another output folder") from None


def open_job(out: Path, job: JobRecord) -> None:
    """Makes `out` the folder of this job, or goes on with the same job there. Raises JobError on drift."""
    old = read_job(out)
    if old and old.fingerprint != job.fingerprint:
        if finished(out, old.plan):
            changes = "\n".join(f"  {line}" for line in differences(old.results, job.results))
            raise JobError(
                f"{out}: holds results of a job that differs in\n{changes}\n"
                "go on with the old values, or name another output folder"
            )
        old = None  # nothing was finished yet: a mended job may take the folder
    state = out / "_state"
    parts = (state / name for name in ("claims", "workers", "journal", "checksums"))
    for part in (*reversed(out.parents), out, state, *parts):
        make_folder(part)
    if old is None:
        publish(out, out / ".huggingface.yaml", _HUGGING_FACE)
        publish(out, out / "_job.json", msgspec.json.format(sealed(job), indent=1))
