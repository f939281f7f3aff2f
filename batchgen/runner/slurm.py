"""What a run inside a Slurm job asks of Slurm: when its allocation ends, and to be requeued. Tested with 22.05."""

import os
import signal
import subprocess

AGAIN = "Slurm starts it again"
PATIENCE = 60  # seconds; a busy controller is slow
# A job whose allocation is too short for the engine to start must not be requeued for ever.
FRUITLESS_RESTARTS = 3


def allocation_end() -> float | None:
    """When Slurm ends this job, in seconds since the epoch; None outside a job, or if it has no time limit."""
    if not (job := _this_job()):
        return None
    # In the environment since 23.02.
    end = os.environ.get("SLURM_JOB_END_TIME") or _facts(job).get("EndTime", "")
    return float(end) if end.isdecimal() else None


def requeue(time_is_up: bool, progress: bool) -> str:
    """Has Slurm start this job again if it ran out of time, not if its user stopped it. Returns what came of that, for
    the user; nothing where Slurm was not asked.

    time_is_up: by SIGUSR1 or by our own clock; progress: whether this run finished anything.

    A SIGTERM alone does not say why it came. What Slurm 22.05 then shows of the job: after a preemption, or a requeue
    by somebody else, Restarts is one more than this run's own count, and the job is back in the queue; at the time
    limit it is COMPLETING with the reason TimeLimit; after scancel it is COMPLETING without a reason, and `scontrol
    requeue` would bring it back all the same.
    """
    if not (job := _this_job()):
        return ""
    # The requeue sends us a TERM, and Slurm's USR1 may come only now: neither must interrupt the asking.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    facts = _facts(job)
    if _was_requeued(facts):
        return AGAIN
    at_limit = facts.get("Reason") == "TimeLimit"
    ended = any(state in facts.get("JobState", "") for state in ("COMPLETING", "CANCELLED"))
    if not at_limit and (ended or not time_is_up):
        return ""
    if not progress and _restarts() >= FRUITLESS_RESTARTS:
        return f"not requeued: {_restarts()} restarts, and nothing was finished in the last; give it a longer --time"
    answer = _call("scontrol", "requeue", job)
    # It may report a failure and have worked: somebody else's requeue came first, or the answer was lost.
    if answer.returncode and not _was_requeued(_facts(job)):
        return f"Slurm did not requeue it: {' '.join(answer.stderr.split())}"
    return AGAIN


def _this_job() -> str:
    """JOB_TASK in an array, of whose last task the SLURM_JOB_ID is the whole array's."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "")


def _facts(job: str) -> dict[str, str]:
    """What scontrol shows of a job, times in seconds since the epoch; empty if it does not answer."""
    fields = (field.partition("=") for field in _call("scontrol", "show", "job", "-o", job).stdout.split())
    return {key: value for key, _, value in fields}


def _was_requeued(facts: dict[str, str]) -> bool:
    return int(facts.get("Restarts", 0)) > _restarts()


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    """A command that is not there, or hangs, counts as one that failed."""
    environment = os.environ | {"SLURM_TIME_FORMAT": "%s"}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
