"""Which job an output folder is: a run makes it its own, goes on with the job there, or is refused.

A folder is one job's. Of several that begin there the first decides, as `_job.json` can be made only once. Another job
gets the folder only if the one there left nothing and nobody is at work on it, or if it is told to drop what is there.
Whoever works on goes by the fence: before it opens or commits a shard it looks whether the folder is its job's still.
"""

from collections.abc import Hashable
from typing import NamedTuple

import msgspec

from ..errors import JobError, Stopped, on_disk, warn
from ..job.drift import differences
from . import growth, hugging_face, journal, layout, owners, record, shard
from .presence import Presence
from .record import JobRecord
from .store import Store


def open_job(out: Store, job: JobRecord, presence: Presence | None = None, discard: bool = False) -> bool:
    """Makes `out` the folder of this job, or goes on with the same job there, which may grow to this one. False if the
    job there is not the one any more that this one was prepared after: another run was faster; prepare it again.

    presence: of the run that is going to work there, which is known from now on; discard: drop what another job has
    left. Raises JobError on drift.
    """
    if presence is None:
        shared = job.spec["output"]["shared"]
        with owners.writing(shared):
            out.prepare(shared)
            with Presence(out, job.spec["output"]["stale"]) as presence:
                return open_job(out, job, presence, discard)
    version = _version_of_record(out)
    old = record.read_job(out) if version else None
    if (old.fingerprint if old else None) != job.after:
        return False
    is_as_it_is_to_be = old and old.fingerprint == job.fingerprint and not _is_to_be_written(out, old, job)
    if is_as_it_is_to_be and _joins(out, version, presence):
        out.check(job.spec["output"]["shared"])
        return True
    with presence.deciding(lambda: _version_of_record(out) == version) as is_our_turn:
        old = record.read_job(out) if is_our_turn else None
        if not is_our_turn or (old.fingerprint if old else None) != job.after:
            return False
        try:
            if old is None:
                hugging_face.write(out, job.fingerprint)
                record.create(out, job)
            elif old.fingerprint == job.fingerprint:
                _go_on(out, old, job)
            elif growth.is_growth(old, job):
                growth.grow(out, old, job)
            else:
                _take(out, old, job, presence, discard)
        except FileExistsError:
            return False
        out.check(job.spec["output"]["shared"])
        presence.opened()
    return True


def _joins(out: Store, version: Hashable, presence: Presence) -> bool:
    """Goes on with the same job without a turn, as nothing is to be written: in turns, with a plan of 100,000 shards to
    read in each, 1,000 runs that start together would take half an hour. False if somebody has written meanwhile, or
    was killed while deciding.

    version: of `_job.json`, as it was read. Whoever comes to decide once we are at work sees us; who was deciding then
    holds the claim still, or has written.
    """
    while _version_of_record(out) == version:
        presence.opened()
        if presence.is_nobody_deciding() and _version_of_record(out) == version:
            return True
        presence.waits()
        if not presence.waited_for_decision():
            return False
    return False


def _version_of_record(out: Store) -> Hashable:
    """None if there is none."""
    try:
        return out.stat(layout.JOB, fresh=True).version
    except FileNotFoundError:
        return None


def _go_on(out: Store, old: JobRecord, job: JobRecord) -> None:
    """The same job: only where things lie may be new, for whoever reads `_job.json` later."""
    if _is_to_be_written(out, old, job):
        record.write(out, _as_it_is_now(old, job))


def _is_to_be_written(out: Store, old: JobRecord, job: JobRecord) -> bool:
    return _as_it_is_now(old, job) != old or (old.plan.growth > 0 and record.is_behind(out, old))


def _as_it_is_now(old: JobRecord, job: JobRecord) -> JobRecord:
    return msgspec.structs.replace(old, plan=job.plan, spec=job.spec)


def _take(out: Store, old: JobRecord, job: JobRecord, presence: Presence, discard: bool) -> None:
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
    growth.forget(out, job)
    record.write(out, job)


def drift(out: Store, changes: list[str]) -> JobError:
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


def held_in(out: Store) -> Held:
    parts = part_names(out)
    return Held(len(parts), sum(shard.responses(out, name) for name in parts) + journal.count(out))


def part_names(out: Store) -> list[str]:
    """Every file that has the name of a shard, whatever job's it is."""
    return [name for name in out.names(missing_ok=True) if layout.is_part(name)]


def _clear(out: Store) -> None:
    """Removes all that a job has made, but for what people may want to look at: logs, and what was set aside."""
    out.remove(layout.SUCCESS, *part_names(out), durable=True)
    out.empty(layout.REJECTS, layout.SEGMENTS, layout.SWEEP, layout.JOURNALS, layout.CHECKSUMS, layout.GROWN)


# --- later


def check_shards(out: Store, job: JobRecord, survey: shard.Survey | None = None) -> shard.Survey:
    """Refuses shards of other jobs: what has a shard's name but is none of the plan's, or was not made by this job.
    Raises JobError or Stopped. survey: of just now; the one that was made if there was none is returned."""
    survey = survey or shard.Survey(out, job.plan.shards)
    names = survey.names
    known = {layout.part(planned): planned for planned in job.plan.shards}
    if any(name not in known for name in names):  # the job may have grown meanwhile
        job = check_owner(out, job.fingerprint)
        known = {layout.part(planned): planned for planned in job.plan.shards}
    made_by = record.fingerprints(job)
    for name in names:
        path, planned = out.where(name), known.get(name)
        if planned is None:
            raise JobError(f"{path}: is no shard of this job; move it away, or name another output folder")
        with on_disk(out):
            is_foreign = survey.is_foreign(planned, made_by[job.plan.files[planned.file].growth])
        if is_foreign:
            raise JobError(f"{path}: is a shard of another job; move it away, or name another output folder")
    return survey


def strangers(out: Store, job: JobRecord) -> list[str]:
    """Where something has a shard's name but is none of the plan's."""
    known = {layout.part(planned) for planned in job.plan.shards}
    return [out.where(name) for name in part_names(out) if name not in known]


class Fence:
    """Whether the folder is the job's still, asked again and again. One look costs what opening a file costs."""

    def __init__(self, out: Store, fingerprint: str):
        self._out = out
        self._fingerprint = fingerprint
        self._seen: Hashable = None  # which version of `_job.json` was found to be ours

    def check(self) -> None:
        """Raises JobError if it is another job's by now, Stopped if it is nobody's."""
        with on_disk(self._out):
            version = self._out.stat(layout.JOB, fresh=True).version
        if version != self._seen:
            check_owner(self._out, self._fingerprint)
            self._seen = version


def check_owner(out: Store, fingerprint: str) -> JobRecord:
    """The job in the folder, which is the one with this fingerprint, or that has grown from it. Raises JobError or
    Stopped."""
    job = record.read_job(out)
    if job is None:
        raise Stopped(f"{out}: has lost its {layout.JOB}; fix that and run the same command again")
    if fingerprint not in record.fingerprints(job):
        raise JobError(f"{out}: is another job's by now (fingerprint {job.fingerprint}); name another output folder")
    return job
