"""Which job an output folder is: a run makes it its own, goes on with the job there, or is refused.

A folder is one job's. Of several that begin there the first decides, as `_job.json` can be made only once. Another job
gets the folder only if the one there left nothing and nobody is at work on it, or if it is told to drop what is there.
Whoever works on goes by the fence: before it opens or commits a shard it looks whether the folder is its job's still.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..errors import JobError, Stopped, on_disk, warn
from ..host import safeopen
from ..job.spec import differences
from . import folder, journal, owners, shard
from .folder import JobRecord
from .presence import Presence

# Hugging Face datasets does not pass over names with `_`: without this it may take _rejects/ for the data.
_HUGGING_FACE = b"configs:\n- config_name: default\n  data_files: '*.parquet'\n"
_STATE = ("claims", "runs", "workers", "journal", "checksums")


def make_folders(out: Path, shared: bool = False) -> None:
    """All that a run needs to be there, as its own or, if a team shares it, somebody's. Raises JobError."""
    names = ["_state", *(f"_state/{name}" for name in _STATE)]
    owners.check_folders(out, shared, names)
    for each in (*reversed(out.parents), out, *(out / name for name in names)):
        folder.make_folder(each)
    owners.check_folders(out, shared, names)  # what was made meanwhile


def open_job(out: Path, job: JobRecord, presence: Presence | None = None, discard: bool = False) -> bool:
    """Makes `out` the folder of this job, or goes on with the same job there, which may grow to this one. False if the
    job there is not the one any more that this one was prepared after: another run was faster; prepare it again.

    presence: of the run that is going to work there, which is known from now on; discard: drop what another job has
    left. Raises JobError on drift.
    """
    if presence is None:
        shared = job.spec["output"]["shared"]
        with owners.writing(shared):
            make_folders(out, shared)
            with Presence(out, job.spec["output"]["stale"]) as presence:
                return open_job(out, job, presence, discard)
    with presence.deciding():
        old = folder.read_job(out)
        if (old.fingerprint if old else None) != job.after:
            return False
        try:
            if old is None:
                folder.publish(out, out / ".huggingface.yaml", _HUGGING_FACE)
                folder.publish(out, out / "_job.json", folder.written(job), new=True)
            elif old.fingerprint == job.fingerprint:
                _go_on(out, old, job)
            elif folder.is_growth(old, job):
                folder.grow(out, old, job)
            else:
                _take(out, old, job, presence, discard)
        except FileExistsError:
            return False
        owners.check_folders(out, job.spec["output"]["shared"])
        presence.opened()
    return True


def _go_on(out: Path, old: JobRecord, job: JobRecord) -> None:
    """The same job: only where things lie may be new, for whoever reads `_job.json` later."""
    now = msgspec.structs.replace(old, plan=job.plan, spec=job.spec)
    if now != old or folder.is_behind(out, old):
        folder.publish(out, out / "_job.json", folder.written(now))


def _take(out: Path, old: JobRecord, job: JobRecord, presence: Presence, discard: bool) -> None:
    """Makes the folder of another job this one's. Raises JobError if that would cost anybody anything."""
    changes = differences(old.settings, job.settings)
    if busy := presence.others():
        raise JobError(
            f"{out}: a run is at work there ({busy[0]}) whose job differs in",
            *_listed(changes),
            "wait for its end, or name another output folder",
        )
    held = held_in(out)
    if held and not discard:
        raise drift(out, changes)
    if held:
        warn(f"{out}: dropped {held.responses:,} responses of the job that was there, and {held.shards:,} shards")
    _clear(out)
    folder.forget_growth(out, job)
    folder.publish(out, out / "_job.json", folder.written(job))


def drift(out: Path, changes: list[str]) -> JobError:
    held = held_in(out)
    return JobError(
        f"{out}: holds results of a job that differs in",
        *_listed(changes),
        f"go on with the old values, or name another output folder; --discard drops the {held.responses:,} responses "
        "that are there and starts anew",
    )


def _listed(changes: list[str]) -> list[str]:
    return [f"  {line}" for line in changes]


class Held(NamedTuple):
    """What a folder holds of a job: shards, and responses in them and in journals."""

    shards: int
    responses: int

    def __bool__(self) -> bool:
        return self.shards > 0 or self.responses > 0


def held_in(out: Path) -> Held:
    with on_disk(out):
        parts = part_names(out)
        in_shards = sum(_responses(out, name) for name in parts)
        journals = _names(out / "_state" / "journal")
        return Held(len(parts), in_shards + sum(journal.count(out / "_state" / "journal" / name) for name in journals))


def part_names(out: Path) -> list[str]:
    """Every file that has the name of a shard, whatever job's it is."""
    return [name for name in _names(out) if name.startswith("part-") and name.endswith(".parquet")]


def _responses(out: Path, name: str) -> int:
    """Of a shard, by its checksums; 0 if they are gone or damaged."""
    path = out / "_state" / "checksums" / f"{name.removesuffix('.parquet')}.json"
    try:
        return folder.unsealed(safeopen.read(path), shard.Checksums).counts.responses
    except (FileNotFoundError, ValueError):
        return 0


def _clear(out: Path) -> None:
    """Removes all that a job has made, but for what people may want to look at: logs, and what was set aside."""
    state = out / "_state"
    parts = [out / name for name in part_names(out)]
    kept = (state / name for name in ("journal", "checksums", "grown"))
    links = [out / name for name in folder.FOLDERS if (out / name).is_symlink()]
    for path in [
        out / "_SUCCESS",
        *links,
        *parts,
        *_files(out / "_rejects"),
        *(path for place in kept for path in _files(place)),
    ]:
        path.unlink(missing_ok=True)
    folder.sync_folder(out)


def _files(place: Path) -> Iterator[Path]:
    if not place.is_symlink():  # what lies elsewhere is nobody's to remove
        yield from (place / name for name in _names(place))


def _names(place: Path) -> list[str]:
    try:
        return sorted(os.listdir(place))
    except FileNotFoundError:
        return []


# --- later


def check_shards(out: Path, job: JobRecord) -> None:
    """Refuses shards of other jobs: what has a shard's name but is none of the plan's, or was not made by this job.
    Raises JobError or Stopped."""
    with on_disk(out):
        names = part_names(out)
        known = {f"{planned.name}.parquet": planned for planned in job.plan.shards}
        if any(name not in known for name in names):  # the job may have grown meanwhile
            job = check_owner(out, job.fingerprint)
            known = {f"{planned.name}.parquet": planned for planned in job.plan.shards}
        made_by = folder.fingerprints(job)
        for name in names:
            planned = known.get(name)
            if planned is None:
                raise JobError(f"{out / name}: is no shard of this job; move it away, or name another output folder")
            if shard.is_foreign(out, planned, made_by[job.plan.files[planned.file].generation]):
                raise foreign(out / name)


def foreign(path: Path) -> JobError:
    return JobError(f"{path}: is a shard of another job; move it away, or name another output folder")


class Fence:
    """Whether the folder is the job's still, asked again and again. One look costs what opening a file costs."""

    def __init__(self, out: Path, fingerprint: str):
        self._out = out
        self._fingerprint = fingerprint
        self._seen: tuple[int, ...] = ()  # what told the `_job.json` from others that was found to be ours

    def check(self) -> None:
        """Raises JobError if it is another job's by now, Stopped if it is nobody's."""
        with on_disk(self._out), safeopen.reading(self._out / "_job.json") as file:  # as NFS remembers a bare stat
            facts = os.fstat(file.fileno())
        seen = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if seen != self._seen:
            check_owner(self._out, self._fingerprint)
            self._seen = seen


def check_owner(out: Path, fingerprint: str) -> JobRecord:
    """The job in the folder, which is the one with this fingerprint, or that has grown from it. Raises JobError or
    Stopped."""
    record = folder.read_job(out)
    if record is None:
        raise Stopped(f"{out}: has lost its _job.json; mend that and run the same command again")
    if fingerprint not in folder.fingerprints(record):
        raise JobError(f"{out}: is another job's by now (fingerprint {record.fingerprint}); name another output folder")
    return record
