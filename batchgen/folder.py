"""The output folder: what lies where, how a file gets there whole, and whether a job may go on in it."""

import bisect
import contextlib
import errno
import os
import uuid
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .errors import JobError, on_disk
from .job import differences, fingerprint
from .source import InputFile, Plan, Shard

# Hugging Face datasets does not pass over names with `_`: without this it may take _rejects/ for the data.
_HUGGING_FACE = b"configs:\n- config_name: default\n  data_files: '*.parquet'\n"

# What a file system without hard links says to a link.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class JobRecord(msgspec.Struct, kw_only=True):
    """`_job.json`. results: all that decides what the shards hold; fingerprint: its digest; spec: as resolved;
    after: the fingerprint of the job that was in the folder when this one was prepared; retry_of: the job whose rows
    these are, and why they were picked, if it is a retry; schema: the Arrow types of the passed-through columns
    (passed.written), empty in jobs of the first version."""

    fingerprint: str
    results: dict[str, Any]
    spec: dict[str, Any]
    versions: dict[str, str]
    plan: Plan
    after: str | None = None
    retry_of: dict[str, Any] | None = None
    schema: str = ""


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


def publish(out: Path, path: Path, content: bytes | memoryview, new: bool = False) -> None:
    """Writes a file of the output folder: it appears whole and on disk, or not at all.

    new: it must not be there. Of several that try at once one succeeds, the others get FileExistsError; on a file
    system without hard links, those that try within the same milliseconds may all succeed, and the last counts.
    """
    temporary = out / "_state" / f"{path.name}.{os.uname().nodename}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            _move_where_nothing_is(temporary, path)
        else:
            temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # a full disk needs the room
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _move_where_nothing_is(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        if temporary.stat().st_nlink != 2:  # NFS: the link was made, but its answer got lost and it was asked for again
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)
        return
    temporary.unlink()


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
    """The job that lives in a folder, with all that it has grown by; None if the folder is new or empty. Raises
    JobError or Stopped."""
    job = _read_root(out)
    while job:
        path = _growth_path(out, job.fingerprint)
        with on_disk(out):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return job
        try:
            job = _grown(job, unsealed(content, Plan))
        except ValueError as error:
            raise JobError(f"{path}: damaged ({error}); name another output folder") from None
    return None


def _read_root(out: Path) -> JobRecord | None:
    """`_job.json` as it is. Runs that let the job grow write it too, and a slow one may write an old one."""
    path = out / "_job.json"
    with on_disk(out):
        there = next(folder for folder in (out, *out.parents) if folder.exists())
        if there.is_file():
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


def open_job(out: Path, job: JobRecord) -> bool:
    """Makes `out` the folder of this job, or goes on with the same job there, which may grow to this one. False if the
    job there is not the one any more that this one was prepared after: another run was faster; prepare it again.

    Raises JobError on drift.
    """
    old = read_job(out)
    if (old.fingerprint if old else None) != job.after:
        return False
    grows = old is not None and fingerprints(job)[-2:-1] == [old.fingerprint]
    if old and old.fingerprint != job.fingerprint and not grows and finished(out, old.plan):
        raise drift(out, differences(old.results, job.results))
    state = out / "_state"
    parts = (state / name for name in ("claims", "workers", "journal", "checksums"))
    for part in (*reversed(out.parents), out, state, *parts):
        make_folder(part)
    try:
        if old is None:
            publish(out, out / ".huggingface.yaml", _HUGGING_FACE)
            publish(out, out / "_job.json", _written(job), new=True)
        elif grows:
            _grow(out, old, job)
        elif old.fingerprint != job.fingerprint:  # nothing was finished yet: a mended job may take the folder
            _growth_path(out, job.fingerprint).unlink(missing_ok=True)  # if it was here before, and has grown
            publish(out, out / "_job.json", _written(job))
        elif old.plan != job.plan or _is_behind(out, old):  # the input has moved, or a kill or a slow run came between
            publish(out, out / "_job.json", _written(msgspec.structs.replace(old, plan=job.plan)))
    except FileExistsError:
        return False
    return True


def drift(out: Path, changes: list[str]) -> JobError:
    lines = "\n".join(f"  {line}" for line in changes)
    return JobError(
        f"{out}: holds results of a job that differs in\n{lines}\n"
        "go on with the old values, or name another output folder"
    )


def _written(job: JobRecord) -> bytes:
    return msgspec.json.format(sealed(job), indent=1)


# --- a job that grows
#
# The input of an incremental job grows, and its plan with it. What it grew by is a file named after the fingerprint
# that it had before; a job has one successor, because a file can be made only once (a link: that holds on NFS too, and
# needs no lock). Any number of runs may try at once, each with the input as it was when it looked: the others take the
# plan of the first and look again for what it lacks, so no row is lost and none has two numbers. The files are never
# removed, so a run that was slow for days still finds that it came late. `_job.json` holds the outcome, for people.
#
# Each generation has a fingerprint, over the settings and all the input up to it; shards and journals hold that of the
# generation they were planned in. So they stay valid while the job grows, a job may become incremental and cease to be,
# and a shard over other input is still known for a stranger. (Leaving the input out of an incremental job's fingerprint
# would be shorter, but a shard of another night's or folder's input would pass.)


def fingerprints(job: JobRecord) -> list[str]:
    """The job's fingerprint after each generation."""
    brought = [file.generation for file in job.plan.files]
    return [
        fingerprint(_with_files(job.results, job.plan.files[: bisect.bisect_right(brought, generation)]))
        for generation in range(job.plan.generation + 1)
    ]


def facts_of(files: list[InputFile]) -> list[dict[str, Any]]:
    """What of the input files decides results: not where they lie."""
    return [{"digest": file.digest, "rows": file.rows} for file in files]


def _with_files(results: dict[str, Any], files: list[InputFile]) -> dict[str, Any]:
    return {**results, "input": {**results["input"], "files": facts_of(files)}}


def _grown(job: JobRecord, more: Plan) -> JobRecord:
    plan = Plan(job.plan.files + more.files, job.plan.shards + more.shards)
    results = _with_files(job.results, plan.files)
    return msgspec.structs.replace(
        job, plan=plan, results=results, fingerprint=fingerprint(results), after=job.fingerprint
    )


def _grow(out: Path, old: JobRecord, job: JobRecord) -> None:
    """Raises FileExistsError if another run has let the job grow before."""
    path = _growth_path(out, old.fingerprint)
    make_folder(path.parent)
    (out / "_SUCCESS").unlink(missing_ok=True)
    more = Plan(job.plan.files[len(old.plan.files) :], job.plan.shards[len(old.plan.shards) :])
    publish(out, path, sealed(more), new=True)
    publish(out, out / "_job.json", _written(msgspec.structs.replace(job, versions=old.versions)))


def _is_behind(out: Path, job: JobRecord) -> bool:
    root = _read_root(out)
    return root is not None and root.fingerprint != job.fingerprint


def _growth_path(out: Path, fingerprint: str) -> Path:
    return out / "_state" / "grown" / f"{fingerprint}.json"
