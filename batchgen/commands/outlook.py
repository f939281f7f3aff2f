"""What a job will still take: time, and room on the disk. By what its folder has measured, as far as it has; or else by
the most that can be asked for."""

import shutil
from pathlib import Path
from typing import NamedTuple

from ..output import record, shard
from ..runner.prepare import Job
from . import status
from .status import Status

BYTES_PER_TOKEN = 3  # of prompts and responses, in a shard; 2.6 were measured with the demo


class Outlook(NamedTuple):
    """What is left of a job.

    requests: to be answered
    tokens: that the engine will generate for them; of scores, that it will read
    is_measured: whether that goes by the responses that are there; or else it is the most that they may have
    tokens_per_second: None if it is not known
    seconds: the same
    bytes: that shards will take in the output folder, beside what is there
    free: bytes there; None if that is not known
    """

    requests: int
    tokens: int
    is_measured: bool
    tokens_per_second: float | None
    seconds: float | None
    bytes: int
    free: int | None


def of(job: Job, requests: int, most_tokens: int, prompt_tokens: int, given: float | None) -> Outlook:
    """requests, most_tokens, prompt_tokens: of the whole job; given: tokens per second, over what was measured"""
    old = record.read_job(job.out)
    seen = status.look(job.out.location) if old and old.fingerprint == job.record.fingerprint else None
    left = 1 - min(seen.rows_done, job.rows) / job.rows if seen else 1.0
    made = seen.finished.responses if seen and not job.spec.translate.fields else 0  # records say nothing of requests
    is_score = job.spec.score.mode != "off"
    mean = seen.finished.response_tokens / made if seen and made and not is_score else None
    total = prompt_tokens if is_score else most_tokens if mean is None else mean * requests
    tokens = round(total * left)
    speed = given or (_measured(seen, is_score) if seen else None)
    sizes = [shard.size(job.out, planned) for planned in shard.finished(job.out, job.plan)] if made else []
    texts = prompt_tokens + (0 if is_score else total)
    disk = sum(sizes) / made * requests * left if made else texts * left * BYTES_PER_TOKEN
    seconds = tokens / speed if speed else None
    return Outlook(round(requests * left), tokens, mean is not None, speed, seconds, round(disk), _free(job))


def _measured(seen: Status, is_score: bool) -> float | None:
    """By the workers that are alive; or else by the whole job, pauses included."""
    if is_score:
        return seen.prompt_tokens_per_second or None
    return seen.response_tokens_per_second or seen.response_tokens_per_second_overall


def _free(job: Job) -> int | None:
    """Where the output folder is or will be; of a bucket nobody knows."""
    path = Path(job.out.location)
    if "://" in job.out.location:
        return None
    return shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free
