"""The output folder: what lies where, how a file gets there whole, and whether a job may go on in it."""

import bisect
import contextlib
import errno
import functools
import itertools
import operator
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .. import __version__
from ..errors import JobError, on_disk, warn
from ..host import credentials, safeopen
from ..input.compressed import COMPRESSIONS
from ..input.file_formats import KINDS
from ..input.plan import InputFile, Plan, Shard
from ..job.spec import TABLES, JobSpec, fingerprint, with_defaults

# What a file system without hard links says to a link.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
# What one says that cannot sync folders: some FUSE and network file systems, and those of virtual machines.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


# Of `_job.json`, and of all that lies beside it. In 1, which does not say so, results hold every key; in 2 only what
# differs from the defaults; from 3 on [prompt] control_tokens holds. Whatever a later format is, this field and the
# digest stay: so it is known for what it is.
FORMAT = 3

# All that lies in an output folder.
STATE_FOLDERS = ("claims", "runs", "workers", "journal", "checksums", "grown", "quarantine")
FOLDERS = ("_state", "_rejects", *(f"_state/{name}" for name in STATE_FOLDERS))


class JobRecord(msgspec.Struct, kw_only=True):
    """`_job.json`. results: all that decides what the shards hold, in the words of the format that the folder was
    begun in; fingerprint: its digest; spec: as resolved by the run that opened the folder last; after: the fingerprint
    of the job that was in the folder when this one was prepared; retry_of: the job whose rows these are, and why they
    were picked, if it is a retry; sha256: of the model's weights, which results name by MD5; schema: the Arrow types
    of the passed-through columns (passthrough.written), empty in jobs of the first version."""

    format: int = 1
    fingerprint: str
    results: dict[str, dict[str, Any]]
    spec: dict[str, dict[str, Any]]
    versions: dict[str, str]
    plan: Plan
    after: str | None = None
    retry_of: dict[str, Any] | None = None
    schema: str = ""
    sha256: dict[str, str] = {}

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Its results with the defaults of what they do not state."""
        return with_defaults(self.results)

    @property
    def control_tokens(self) -> str:
        """What those in texts are; before format 3 they were what they are in prompts, and in such folders stay so."""
        return self.settings["prompt"]["control_tokens"] if self.format >= 3 else "token"


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
    # Hosts may have one name, and their containers one process id: neither tells two writers apart.
    temporary = out / "_state" / f"{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with open(safeopen.create(temporary), "wb") as stream:
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
        return msgspec.convert(opened(content), kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def opened(content: bytes) -> dict[str, Any]:
    """The same, whatever its fields are."""
    try:
        table = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if table.pop("digest", "") != fingerprint(table):
        raise ValueError("it does not fit its own digest")
    return table


def make_folder(folder: Path) -> None:
    """Makes a folder in one that is there: if that has vanished, it must not come back half."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def check_links(out: Path, names: Iterable[str] = FOLDERS) -> None:
    """Raises JobError if one of an output folder's own folders is none: a link would lead out of it, and with it what
    is written and removed there."""
    for path in (out / name for name in names):
        try:
            kind = path.stat(follow_symlinks=False).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(kind):
            what = "a link" if stat.S_ISLNK(kind) else "no folder"
            raise JobError(f"{path}: is {what}, and nothing outside the output folder is touched; remove it")


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder, new or gone, outlast a power loss, on file systems that can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def quarantine(out: Path, path: Path) -> Path:
    """Moves a damaged file out of the way, for people to look at."""
    aside = out / "_state" / "quarantine" / f"{path.name}.{uuid.uuid4().hex[:8]}"
    check_links(out, ["_state/quarantine"])
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
                content = safeopen.read(path, safeopen.RECORD)
            except FileNotFoundError:
                return _without_credentials(out, job)
            check_links(out, ["_state/grown"])
        try:
            job = _grown(job, unsealed(content, Plan))
        except ValueError as error:
            raise JobError(f"{path}: damaged ({error}); name another output folder") from None
    return None


def _without_credentials(out: Path, job: JobRecord) -> JobRecord:
    """A job that an older version recorded with the keys in its URIs, and tokens in [engine]: nothing of them is shown
    or written again. Results do not hang on them."""
    files = [msgspec.structs.replace(file, path=credentials.stripped(file.path)) for file in job.plan.files]
    spec = {**job.spec, "engine": credentials.without_secrets(job.spec.get("engine", {}))}
    if isinstance(paths := spec.get("input", {}).get("path"), list):
        spec["input"] = {**spec["input"], "path": [credentials.stripped(path) for path in paths]}
    if files == job.plan.files and spec == {"engine": {}, **job.spec}:
        return job
    _warn_of_credentials(out)
    return msgspec.structs.replace(job, spec=spec, plan=msgspec.structs.replace(job.plan, files=files))


@functools.cache
def _warn_of_credentials(out: Path) -> None:
    warn(f"{out}/_job.json: an older batchgen wrote keys or tokens into it; make them void, they may have been read")


def job_of(out: Path) -> JobRecord:
    """The job of a folder that is to have one. Raises JobError."""
    with on_disk(out):
        check_links(out)
    record = read_job(out) if (out / "_job.json").exists() else None
    if record is None:
        raise JobError(f"{out}: no batchgen output folder (it has no _job.json)")
    return record


def _read_root(out: Path) -> JobRecord | None:
    """`_job.json` as it is. Runs that let the job grow write it too, and a slow one may write an old one."""
    path = out / "_job.json"
    with on_disk(out):
        check_links(out, ["_state"])
        there = next(folder for folder in (out, *out.parents) if folder.exists())
        if not there.is_dir() and there.exists():  # nor has it just vanished
            raise JobError(f"{there}: is a file; name a folder for the output")
        ours = ("_state", ".huggingface.yaml")
        others = [name for name in sorted(os.listdir(out)) if name not in ours] if there == out else []
        try:
            content = safeopen.read(path, safeopen.RECORD)
        except FileNotFoundError:  # after the listing: one that another run has just made is not something else
            if "_job.json" in others:  # it has just vanished, most likely with the whole folder
                raise
            if others:
                raise JobError(
                    f"{out}: holds something else ({', '.join(others[:3])}); name a new or empty folder"
                ) from None
            return None
    try:
        table = opened(content)
        if (format := table.get("format", 1)) > FORMAT:
            raise _newer(out, f"format {format}, and this one ({__version__}) knows formats up to {FORMAT}")
        record = msgspec.convert(table, JobRecord)
        _check_keys(out, record.spec)
        _check(record)
    except (ValueError, TypeError, msgspec.ValidationError) as error:
        raise JobError(f"{path}: damaged, or not batchgen's ({error}); name another output folder") from None
    spec_of(out, record)
    return record


def _check(job: JobRecord) -> None:
    """Whoever hands a folder over may have made its record. Raises ValueError if it is none that batchgen writes."""
    table, names = job.results, [job.fingerprint, job.after or job.fingerprint]
    if not all(re.fullmatch("[0-9a-f]{32}", name) for name in names) or fingerprint(table) != job.fingerprint:
        raise ValueError("its fingerprint is not that of its results")
    if not {"input", "prompt", "sampling", "engine", "output"} <= table.keys():
        raise ValueError("its results lack a table")
    if table["input"].get("files") != facts_of(job.plan.files):
        raise ValueError("its results are not those of its plan")
    settings = job.settings
    msgspec.convert(settings["output"]["columns"], dict[str, str])
    msgspec.convert([settings["output"]["shard_rows"], settings["prompt"]["format"]], tuple[int, str])
    if job.retry_of is not None:
        msgspec.convert([job.retry_of.get("fingerprint"), job.retry_of.get("only")], tuple[str, list[str]])
    if any("\0" in path for path in _paths(job)):
        raise ValueError("a path of it has a NUL in it")
    _check_plan(job.plan)


def _paths(job: JobRecord) -> Iterator[str]:
    yield from (file.path for file in job.plan.files)
    for table in ("input", "model", "output"):
        yield str(job.spec.get(table, {}).get("path"))


def _check_plan(plan: Plan) -> None:
    """Raises ValueError if its shards are not cut from its files, in order."""
    if not plan.files or not plan.shards:
        raise ValueError("its plan is empty")
    for before, file in itertools.pairwise([plan.files[0], *plan.files]):
        if not 0 <= file.growth - before.growth <= 1 or min(file.size, file.rows, file.start, file.end) < 0:
            raise ValueError(f"its plan has a file that cannot be: {file.path!r:.200}")
        if file.kind not in KINDS or file.compression not in COMPRESSIONS:
            raise ValueError(f"its plan has a file of a kind that is unknown: {file.kind!r:.50}")
    if plan.files[0].growth:
        raise ValueError("its plan has no beginning")
    end, rows = 0, sum(file.rows for file in plan.files)
    for index, shard in enumerate(plan.shards):
        begin, end = end, shard.first_row + shard.rows
        picked = shard.picked or [shard.first_row]
        fits = begin <= shard.first_row <= picked[0] and picked[-1] < end <= rows < 1 << 53 and shard.picked != []
        ordered = all(map(operator.lt, picked, picked[1:]))
        if not (fits and ordered and shard.index == index < shard.of < 1 << 31 and shard.position >= 0):
            raise ValueError(f"its plan has a shard that cannot be: {index}")
        if not 0 <= shard.file < len(plan.files):
            raise ValueError(f"its plan has a shard of no file: {index}")


def _check_keys(out: Path, spec: dict[str, Any]) -> None:
    """Refuses keys that this version does not know: it cannot know what they mean. Raises JobError."""
    for table, values in spec.items():
        if table != "engine" and table not in TABLES:
            raise _newer(out, f"its job has a table [{table}], which this one ({__version__}) does not know")
        for key in values:
            if table != "engine" and key not in TABLES[table].__struct_fields__:
                raise _newer(out, f"its job has [{table}] {key}, which this one ({__version__}) does not know")


def spec_of(out: Path, record: JobRecord) -> JobSpec:
    """The job that a folder was made by, as if it were asked for again, with its results there. Raises JobError."""
    try:
        spec = msgspec.convert(record.spec, JobSpec, str_keys=True)
    except msgspec.ValidationError as error:
        raise JobError(f"{out}/_job.json: its job is none that this batchgen ({__version__}) can do: {error}") from None
    return msgspec.structs.replace(spec, output=msgspec.structs.replace(spec.output, path=str(out.absolute())))


def _newer(out: Path, what: str) -> JobError:
    return JobError(f"{out}: made by a newer batchgen: {what}; update batchgen, or name another output folder")


def written(job: JobRecord) -> bytes:
    return msgspec.json.format(sealed(job), indent=1)


# --- a job that grows
#
# The input of an incremental job grows, and its plan with it. What it grew by is a file named after the fingerprint
# that it had before; a job has one successor, because a file can be made only once (a link: that holds on NFS too, and
# needs no lock). Any number of runs may try at once, each with the input as it was when it looked: the others take the
# plan of the first and look again for what it lacks, so no row is lost and none has two numbers. The files are never
# removed, so a run that was slow for days still finds that it came late. `_job.json` holds the outcome, for people.
#
# Each growth has a fingerprint, over the settings and all the input up to it; shards and journals hold that of the
# growth they were planned in. So they stay valid while the job grows, a job may become incremental and cease to be,
# and a shard over other input is still known for a stranger. (Leaving the input out of an incremental job's fingerprint
# would be shorter, but a shard of another night's or folder's input would pass.)


def fingerprints(job: JobRecord) -> list[str]:
    """The job's fingerprint after each growth."""
    brought = [file.growth for file in job.plan.files]
    return [
        fingerprint(with_files(job.results, job.plan.files[: bisect.bisect_right(brought, growth)]))
        for growth in range(job.plan.growth + 1)
    ]


def facts_of(files: list[InputFile]) -> list[dict[str, Any]]:
    """What of the input files decides results: not where they lie."""
    return [{"digest": file.digest, "rows": file.rows} for file in files]


def with_files(results: dict[str, Any], files: list[InputFile]) -> dict[str, Any]:
    return {**results, "input": {**results["input"], "files": facts_of(files)}}


def _grown(job: JobRecord, more: Plan) -> JobRecord:
    """Raises ValueError if there is not more of it than before."""
    if not more.files or {file.growth for file in more.files} != {job.plan.growth + 1}:
        raise ValueError("it does not grow the plan")
    plan = Plan(job.plan.files + more.files, job.plan.shards + more.shards)
    _check_plan(plan)
    results = with_files(job.results, plan.files)
    return msgspec.structs.replace(
        job, plan=plan, results=results, fingerprint=fingerprint(results), after=job.fingerprint
    )


def is_growth(old: JobRecord, job: JobRecord) -> bool:
    """Whether a job is the other with a growth more."""
    return fingerprints(job)[-2:-1] == [old.fingerprint]


def grow(out: Path, old: JobRecord, job: JobRecord) -> None:
    """Raises FileExistsError if another run has let the job grow before."""
    path = _growth_path(out, old.fingerprint)
    check_links(out, ["_state/grown"])
    make_folder(path.parent)
    (out / "_SUCCESS").unlink(missing_ok=True)
    more = Plan(job.plan.files[len(old.plan.files) :], job.plan.shards[len(old.plan.shards) :])
    publish(out, path, sealed(more), new=True)
    publish(out, out / "_job.json", written(msgspec.structs.replace(job, versions=old.versions)))


def forget_growth(out: Path, job: JobRecord) -> None:
    """So that a job which was in the folder before, and grew there, begins where it is now."""
    _growth_path(out, job.fingerprint).unlink(missing_ok=True)


def is_behind(out: Path, job: JobRecord) -> bool:
    """Whether `_job.json` is that of a time before the job grew: a kill or a slow run came between."""
    root = _read_root(out)
    return root is not None and root.fingerprint != job.fingerprint


def _growth_path(out: Path, fingerprint: str) -> Path:
    return out / "_state" / "grown" / f"{fingerprint}.json"
