"""The names of all that lies in an output folder: relative to it, with `/` between their parts. No other room spells
one out.

    _job.json                                  what the job is (record.py)
    part-00000-of-00040.parquet                a finished shard (shard.py)
    _rejects/part-00000-of-00040.jsonl         the rows of it that were rejected
    _segments/part-00000-of-00040.parquet      what became of its segments, if it was translated (segments.py)
    _sweep/                                    what a sweep comes to: settings.json and others (commands/sweep.py)
    _SUCCESS                                   the accounting of a finished job (success.py)
    _runs.jsonl                                a line for each run that worked on it (runner/outcome.py)
    .huggingface.yaml                          tells `datasets` which files are data
    _state/checksums/part-00000-of-00040.json  digests and counts of a finished shard
    _state/journal/part-00000.WORKER.journal   finished items of a shard under way (journal.py)
    _state/claims/part-00000, .../job          who holds a shard, or decides which job the folder is (claims.py)
    _state/workers/WORKER, _state/runs/RUN     heartbeats (heartbeat.py, presence.py)
    _state/grown/FINGERPRINT.json              what the job of that fingerprint grew by (growth.py)
    _state/quarantine/                         damaged files, for people to look at
    _state/engine*.log                         what engines and workers print

In a bucket the same, but for what cannot be there: a journal is several objects, `….journal.000007`; the content of
`checksums` is in their names, `….json/CONTENT`; and each host and process has logs of its own,
`_state/logs/HOST.PID/engine.log`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..input.plan import Shard

JOB = "_job.json"
SUCCESS = "_SUCCESS"
RUN_LOG = "_runs.jsonl"
HUGGING_FACE = ".huggingface.yaml"
REJECTS = "_rejects"
SEGMENTS = "_segments"
SWEEP = "_sweep"
SETTINGS = "_sweep/settings.json"  # of a sweep
METRICS = "_sweep/metrics.parquet"  # a value per row, setting and metric
SUMMARY = "_sweep/summary.json"  # the settings compared
BEST = "_sweep/best.toml"  # the best of them, to paste into a job file
REPORT = "_sweep/report.html"  # a page of all that
STATE = "_state"
CLAIMS = "_state/claims"
RUNS = "_state/runs"
WORKERS = "_state/workers"
JOURNALS = "_state/journal"
CHECKSUMS = "_state/checksums"
GROWN = "_state/grown"
QUARANTINE = "_state/quarantine"
CLOCK = "_state/clock"  # written to see when that is
KEPT_LOGS = "_state/logs"

FROM_THE_START = (STATE, CLAIMS, RUNS, WORKERS, JOURNALS, CHECKSUMS)
WHEN_NEEDED = (REJECTS, SEGMENTS, SWEEP, GROWN, QUARANTINE)
FOLDERS = (STATE, REJECTS, SEGMENTS, SWEEP, CLAIMS, RUNS, WORKERS, JOURNALS, CHECKSUMS, GROWN, QUARANTINE)

DECIDING = "job"  # the claim of a run that decides which job the folder is


def part(shard: "Shard") -> str:
    return f"{stem(shard)}.parquet"


PARTS = "part-"  # what the name of every shard begins with


def is_part(name: str) -> bool:
    """Whether a file of the folder has the name of a shard, whatever job's it is."""
    return name.startswith(PARTS) and name.endswith(".parquet")


def rejects(shard: "Shard") -> str:
    return f"{REJECTS}/{stem(shard)}.jsonl"


def segments(shard: "Shard") -> str:
    return f"{SEGMENTS}/{part(shard)}"


def checksums(shard: "Shard") -> str:
    return checksums_of(part(shard))


def checksums_of(part: str) -> str:
    return f"{CHECKSUMS}/{part.removesuffix('.parquet')}.json"


def stem(shard: "Shard") -> str:
    """What the names of all that is of this shard begin with."""
    return f"part-{shard.index:0{shard.digits}}-of-{shard.of:05}"


def journal(shard: int, worker: str) -> str:
    return f"{JOURNALS}/part-{shard:05}.{worker}.journal"


def journals(shard: int) -> str:
    """What the name of a file in JOURNALS begins with that is of this shard, of whatever worker."""
    return f"part-{shard:05}."


def segment(journal: str, number: int) -> str:
    """A part of a journal, where nothing can be appended to."""
    return f"{journal}.{number:06}"


def journaled_shard(name: str) -> int | None:
    """The shard that a file in JOURNALS is of."""
    index = name.removeprefix("part-").partition(".")[0]
    return int(index) if index.isdigit() else None


def claim(shard: int | str) -> str:
    """Of a shard, or of what else goes by a name."""
    return f"{CLAIMS}/{shard if isinstance(shard, str) else f'part-{shard:05}'}"


def claimed_shard(name: str) -> int | None:
    """The shard that a file in CLAIMS is about, if it is about one."""
    index = name.removeprefix("part-")
    return int(index) if index.isdigit() else None


def growth(fingerprint: str) -> str:
    return f"{GROWN}/{fingerprint}.json"


def log(worker: int, user: int | None = None) -> str:
    """What the worker of this number, from 1 on, and its engine print. user: where several share a folder, so that
    nobody writes to another one's log."""
    return f"{STATE}/engine{'' if user is None else f'.{user}'}{'' if worker == 1 else f'-{worker}'}.log"


def kept_log(file: str, host: str, process: int) -> str:
    """A log of this host, where those of all hosts are kept."""
    return f"{KEPT_LOGS}/{host}.{process}/{file}"
