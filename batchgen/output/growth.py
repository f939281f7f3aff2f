"""A job that grows: the input of an incremental job grows, and its plan with it.

What it grew by is an object named after the fingerprint that the job had before; a job has one successor, because it
can be created only once (that holds on NFS too, and needs no lock). Any number of runs may try at once, each with the
input as it was when it looked: the others take the plan of the first and look again for what it lacks, so no row is
lost and none has two numbers. These objects are never removed, so a run that was slow for days still finds that it came
late. `_job.json` holds the outcome, for people.

Each growth has a fingerprint, over the settings and all the input up to it; shards and journals hold that of the
growth they were planned in. So they stay valid while the job grows, a job may become incremental and cease to be,
and a shard over other input is still recognized as another job's. (Leaving the input out of an incremental job's
fingerprint would be shorter, but a shard of another night's or folder's input would pass.)
"""

import msgspec

from ..input.plan import Plan
from . import layout, record, success
from .record import JobRecord
from .sealed import sealed
from .store import Store


def is_growth(old: JobRecord, job: JobRecord) -> bool:
    """Whether a job is the other grown once more."""
    return record.fingerprints(job)[-2:-1] == [old.fingerprint]


def grow(out: Store, old: JobRecord, job: JobRecord) -> None:
    """Raises FileExistsError if another run has let the job grow before."""
    out.check_links(layout.GROWN)
    success.remove(out)
    more = Plan(job.plan.files[len(old.plan.files) :], job.plan.shards[len(old.plan.shards) :])
    out.create(layout.growth(old.fingerprint), sealed(more))
    record.write(out, msgspec.structs.replace(job, versions=old.versions))


def forget(out: Store, job: JobRecord) -> None:
    """So that a job which was in the folder before, and grew there, begins where it is now."""
    out.remove(layout.growth(job.fingerprint))
