"""`_job.json`: which job an output folder is, and all that decides what its shards hold."""

import bisect
import errno
import functools
import itertools
import operator
import os
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from .. import __version__
from ..errors import JobError, refused, warn
from ..host import credentials, safeopen
from ..input.compressed import COMPRESSIONS
from ..input.file_formats import KINDS
from ..input.plan import DIGITS, InputFile, Plan
from ..job.drift import fingerprint, with_defaults
from ..job.spec import OF_RUNS, TABLES, JobSpec, keys_of, without
from . import layout
from .sealed import opened, sealed, unsealed
from .store import Store

# Of `_job.json`, and of all that lies beside it. In 1, which does not say so, results hold every key; in 2 only what
# differs from the defaults; from 3 on [prompt] control_tokens holds; from 4 on there are the sampling parameters
# that job/sampling.py has since 4, and structured JSON has no white space, whatever vLLM makes it; from 5 on shards say
# how many digits the numbers in their names have. Whatever a later format is, this field and the digest stay: so it is
# known for what it is.
FORMAT = 5
COMPACT_JSON = 4  # since when it is so
NO_EMPTY_GROUPS = 5  # since when a shard without answers has no row group


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


def read_job(out: Store) -> JobRecord | None:
    """The job that lives in a folder, with all that it has grown by; None if the folder is new or empty. Raises
    JobError or Stopped."""
    job = _read_root(out)
    while job:
        name = layout.growth(job.fingerprint)
        try:
            content = out.read(name, safeopen.RECORD)
        except FileNotFoundError:
            return _without_credentials(out, job)
        try:
            job = _grown(job, unsealed(content, Plan))
        except ValueError as error:
            raise JobError(f"{out.where(name)}: damaged ({error}); name another output folder") from None
    return None


def where(out: Store) -> str:
    """`_job.json`, for messages."""
    return out.where(layout.JOB)


def job_of(out: Store) -> JobRecord:
    """The job of a folder that is to have one. Raises JobError."""
    out.check_links()
    record = read_job(out) if out.exists(layout.JOB) else None
    if record is None:
        raise JobError(f"{out}: no batchgen output folder (it has no {layout.JOB})")
    return record


def is_behind(out: Store, job: JobRecord) -> bool:
    """Whether `_job.json` is that of a time before the job grew: a kill or a slow run came between."""
    root = _read_root(out)
    return root is not None and root.fingerprint != job.fingerprint


def write(out: Store, job: JobRecord) -> None:
    out.write(layout.JOB, written(job))


def create(out: Store, job: JobRecord) -> None:
    """Raises FileExistsError if another run has made one before."""
    out.create(layout.JOB, written(job))


def written(job: JobRecord) -> bytes:
    return msgspec.json.format(sealed(job), indent=1)


def spec_of(out: Store, record: JobRecord) -> JobSpec:
    """The job that a folder was made by, as if it were asked for again, with its results there. Raises JobError."""
    try:
        spec = msgspec.convert(record.spec, JobSpec, str_keys=True)
    except msgspec.ValidationError as error:
        path = where(out)
        raise JobError(f"{path}: its job is not one that this batchgen ({__version__}) can run: {error}") from None
    output = msgspec.structs.replace(spec.output, path=out.location)
    return msgspec.structs.replace(without(spec, OF_RUNS), output=output)


def _read_root(out: Store) -> JobRecord | None:
    """`_job.json` as it is. Runs that let the job grow write it too, and a slow one may write an old one."""
    out.check_links(layout.STATE)
    content = _root_content(out)
    if content is None:
        others = [name for name in out.names(missing_ok=True) if name not in (layout.STATE, layout.HUGGING_FACE)]
        if layout.JOB in others:  # another run has just made it
            content = _root_content(out)
            if content is None:  # it has just vanished, most likely with the whole folder
                raise refused(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), where(out))
        elif others:
            listed = ", ".join(others[:3])
            raise JobError(f"{out}: holds something else ({listed}); name a new or empty folder")
    return None if content is None else _decoded(out, content)


def _root_content(out: Store) -> bytes | None:
    try:
        return out.read(layout.JOB, safeopen.RECORD)
    except FileNotFoundError:
        return None


def _decoded(out: Store, content: bytes) -> JobRecord:
    """Raises JobError."""
    try:
        table = opened(content)
        if (format := table.get("format", 1)) > FORMAT:
            raise _newer(out, f"format {format}, and this one ({__version__}) knows formats up to {FORMAT}")
        record = msgspec.convert(table, JobRecord)
        _check_keys(out, record.spec)
        _check(record)
    except (ValueError, TypeError, msgspec.ValidationError) as error:
        path = where(out)
        raise JobError(f"{path}: damaged, or not batchgen's ({error}); name another output folder") from None
    spec_of(out, record)
    return record


def _newer(out: Store, what: str) -> JobError:
    return JobError(f"{out}: made by a newer batchgen: {what}; update batchgen, or name another output folder")


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


def _without_credentials(out: Store, job: JobRecord) -> JobRecord:
    """A job that an older version recorded with the keys in its URIs, and tokens in [engine]: nothing of them is shown
    or written again. Results do not hang on them."""
    files = [msgspec.structs.replace(file, path=credentials.stripped(file.path)) for file in job.plan.files]
    spec = {**job.spec, "engine": credentials.without_secrets(job.spec.get("engine", {}))}
    if isinstance(paths := spec.get("input", {}).get("path"), list):
        spec["input"] = {**spec["input"], "path": [credentials.stripped(path) for path in paths]}
    if files == job.plan.files and spec == {"engine": {}, **job.spec}:
        return job
    _warn_of_credentials(where(out))
    return msgspec.structs.replace(job, spec=spec, plan=msgspec.structs.replace(job.plan, files=files))


@functools.cache
def _warn_of_credentials(path: str) -> None:
    warn(f"{path}: an older batchgen wrote keys or tokens into it; revoke them, they may have been read")


# --- whether batchgen can have written it


def _check_keys(out: Store, spec: dict[str, Any]) -> None:
    """Refuses keys that this version does not know: it cannot know what they mean. Raises JobError."""
    for table, values in spec.items():
        if table != "engine" and table not in TABLES:
            raise _newer(out, f"its job has a table [{table}], which this one ({__version__}) does not know")
        for key in values:
            if table != "engine" and key not in keys_of(table):
                raise _newer(out, f"its job has [{table}] {key}, which this one ({__version__}) does not know")


def _check(job: JobRecord) -> None:
    """Whoever hands a folder over may have made its record. Raises ValueError if batchgen writes no such record."""
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
    yield from map(str, (job.spec.get("model", {}).get("adapter") or {}).values())


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
        if not DIGITS <= shard.digits <= DIGITS * 2:
            raise ValueError(f"its plan has a shard whose name cannot be: {index}")
        if not 0 <= shard.file < len(plan.files):
            raise ValueError(f"its plan has a shard of no file: {index}")
