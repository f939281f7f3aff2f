"""The status of a job, read from its folder: from any host, while it runs or later. Changes nothing."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from ..errors import JobError
from ..host import garbage, safeopen
from ..input.plan import Shard
from ..output import claims, journal, presence, record, shard, store, success
from ..output import heartbeat as beat
from ..output.counts import Counts
from ..output.heartbeat import Activity
from ..output.presence import FILE_SYSTEM, Heard
from ..output.record import JobRecord
from ..output.store import Place, Store
from ..runner.first_look import told

WATCH_EVERY = 2.0  # seconds
STATES = ("starting", "running", "stopped", "done", "unknown")
WORKER_STATES = ("starting", "running", "draining", "dead", "silent", "unknown")


class Finished(Counts):
    """The counts of finished shards. unreadable: shards whose counts are damaged or gone."""

    unreadable: int = 0


class Shards(msgspec.Struct):
    """running: held by live workers; left: by nobody, or by a dead one."""

    total: int
    done: int
    running: int
    left: int


class Worker(Activity, kw_only=True):
    """A worker, by its last beat, heartbeat_age seconds ago. state: as the worker said it; `dead` once its process is
    known to be gone or it was silent too long, `silent` if that is only by this host's own clock; `unknown` while its
    beat cannot be read. shards: those it holds."""

    worker: str
    heartbeat_age: float
    shards: list[int]
    host: str = ""
    pid: int = 0
    slurm: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        return self.state not in ("dead", "silent")

    @property
    def slurm_task(self) -> str:
        """As Slurm's own commands name it: ARRAY_TASK, or JOB."""
        if "array_task_id" in self.slurm:
            return f"{self.slurm.get('array_job_id')}_{self.slurm['array_task_id']}"
        return self.slurm.get("job_id", "")


class Status(msgspec.Struct, kw_only=True):
    """state: starting | running | stopped | done, or `unknown` if all workers are silent; rows_done: of finished
    shards, what live workers have finished of others, and what lies in the journals of those that have stopped;
    finished: what the finished shards hold. Rates are the sum of the live workers' last 30 seconds; `overall` is all
    finished shards' since the job was begun, pauses included. eta: seconds left at the live workers' pace. What is not
    known is null. clock: by whose time a beat's age is, that of the "file system" or, where we may not write, of "this
    host". journaled: of a translation or sweep, answers in journals of shards that nobody works on; rows_done leaves
    them out, as only a run knows which rows they complete. first_reject: of finished shards, where it is and why."""

    out: str
    fingerprint: str
    state: str
    shards: Shards
    rows: int
    rows_done: int
    finished: Finished
    rows_per_second: float
    prompt_tokens_per_second: float
    response_tokens_per_second: float
    response_tokens_per_second_overall: float | None
    eta: float | None
    clock: str
    workers: list[Worker]
    journaled: int = 0
    first_reject: str = ""

    @property
    def live(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_alive]


def watch(out: Place) -> Iterator[Status]:
    """The status of a job every 2 seconds, until it is done. Raises JobError if there is no job."""
    known: dict[int, Counts] = {}
    while True:
        seen = look(out, known)
        yield seen
        if seen.state == "done":
            return
        time.sleep(WATCH_EVERY)


def look(out: Place, known: dict[int, Counts] | None = None) -> Status:
    """The status of a job. Raises JobError if there is no job.

    known: the counts of shards that an earlier look has read; those of this one are added.
    """
    place = store.at(out)
    job = record.job_of(place)
    done = shard.finished(place, job.plan)  # before the heartbeats: a shard counts rather too late than twice
    with ThreadPoolExecutor(1) as beside:  # a bucket may take as long for the ten small questions as for the counts
        counted = known if known is not None else {}
        counting = beside.submit(_finished, place, done, counted)
        workers, clock = _workers(place, {planned.index for planned in done}, job.spec["output"].get("stale", 60.0))
        live = [worker for worker in workers if worker.is_alive]
        left_behind, journaled = _left_behind(place, job, done, live)
        is_done = len(done) == len(job.plan.shards) and success.is_there(place)
        begun = shard.begun(place)
        finished = counting.result()
    rows, rows_done = job.plan.rows, sum(len(planned.row_numbers) for planned in done)
    rows_done = min(rows, rows_done + sum(worker.open_rows for worker in live) + left_behind)
    rows_rate, prompt_rate, response_rate = (
        round(sum(getattr(worker, f"{what}_per_second") for worker in live), 3)
        for what in ("rows", "prompt_tokens", "response_tokens")
    )
    # Of those that drain nothing more can be expected.
    pace = sum(worker.rows_per_second for worker in live if worker.state != "draining")
    running = sum(len(worker.shards) for worker in live)
    total = len(job.plan.shards)
    return Status(
        out=place.location,
        fingerprint=job.fingerprint,
        state=_state(is_done, workers),
        shards=Shards(total, len(done), running, total - len(done) - running),
        rows=rows,
        rows_done=rows_done,
        finished=finished,
        rows_per_second=rows_rate,
        prompt_tokens_per_second=prompt_rate,
        response_tokens_per_second=response_rate,
        response_tokens_per_second_overall=_overall(place, begun, finished.response_tokens),
        eta=round((rows - rows_done) / pace, 1) if pace else 0.0 if rows_done == rows else None,
        clock=clock,
        workers=workers,
        journaled=journaled,
        first_reject=_first_reject(place, job, done, counted),
    )


def _first_reject(out: Store, job: JobRecord, done: list[Shard], counted: dict[int, Counts]) -> str:
    """Of the first shard that has any; no other is read."""
    rejected = next((planned for planned in done if planned.index in counted and counted[planned.index].rejects), None)
    with contextlib.suppress(JobError):  # damaged
        for line in shard.read_rejects(out, rejected) if rejected else []:
            return told(job.plan, line["row"], line["reason"], line["detail"])
    return ""


def _left_behind(out: Store, job: JobRecord, done: list[Shard], live: list[Worker]) -> tuple[int, int]:
    """Rows that have all their answers in journals of shards that nobody works on. How many answers a row of a
    translation or of a sweep needs no journal says: of these the number of answers."""
    here = {planned.index for planned in done} | {index for worker in live for index in worker.shards}
    begun = journal.shards(out) - here
    if not begun:
        return 0, 0
    if job.settings["translate"]["fields"] or job.settings["sweep"]["method"]:
        return 0, sum(journal.count(out, index) for index in begun)
    made_by, samples = record.fingerprints(job), job.spec["sampling"].get("n", 1)
    rows = 0
    for planned in job.plan.shards:
        if planned.index in begun:
            with contextlib.suppress(FileNotFoundError):  # it has just been finished
                rows += journal.rows_done(out, planned.index, made_by[job.plan.files[planned.file].growth], samples)
    return rows, 0


def _state(done: bool, workers: list[Worker]) -> str:
    if done:
        return "done"
    states = {worker.state for worker in workers} - {"dead"}
    if not states:
        return "stopped"
    if states == {"silent"}:
        return "unknown"
    return "starting" if states <= {"starting", "silent"} else "running"


# --- finished shards


def _finished(out: Store, shards: list[Shard], known: dict[int, Counts]) -> Finished:
    """The sum over finished shards; what had to be read for it is added to `known`, by the shard's number."""
    with garbage.not_collected():  # of 100,000 shards: it took a fifth of the time
        known.update(shard.counts_of(out, [planned for planned in shards if planned.index not in known]))
    readable = [known[planned.index] for planned in shards if planned.index in known]
    return Finished(**msgspec.structs.asdict(Counts.total(readable).whole), unreadable=len(shards) - len(readable))


def _overall(out: Store, begun: float, tokens: int) -> float | None:
    """Tokens per second from the job's first moment to its last commit."""
    seconds = shard.last_commit(out) - begun
    return round(tokens / seconds, 3) if tokens and seconds > 0 else None


# --- workers


def _workers(out: Store, done: set[int], stale: float) -> tuple[list[Worker], str]:
    """All workers that have not left, by name, and whose clock their ages are by. done: shards; stale: of the job, in
    seconds."""
    held = claims.holders(out)
    heard, clock = presence.workers(out)
    workers = []
    for each in heard:
        shards = [index for index in held.get(each.name, []) if index not in done]
        worker = Worker(worker=each.name, heartbeat_age=round(max(0.0, each.age), 1), shards=shards)
        if said := each.beat:
            for fact in (*Activity.__struct_fields__, "host", "pid", "slurm"):
                setattr(worker, fact, getattr(said, fact))
        worker.state = _state_of(each, stale, clock)
        if not worker.is_alive:  # of what it said only what it had done is still true
            worker.open_rows = worker.running = worker.waiting = 0
            worker.rows_per_second = worker.prompt_tokens_per_second = worker.response_tokens_per_second = 0.0
        workers.append(worker)
    return workers, clock


def _state_of(heard: Heard, stale: float, clock: str) -> str:
    said = heard.beat
    if said and beat.is_gone(said):
        return "dead"
    if presence.is_silent(heard, stale):
        return "dead" if clock == FILE_SYSTEM else "silent"
    return said.state if said else "unknown"


# --- for Prometheus


def write_metrics(path: Path, seen: Status) -> None:
    """Writes a file for node_exporter's textfile collector, which must never see half of it. Raises OSError."""
    safeopen.replace(path, metrics(seen).encode())


def metrics(seen: Status) -> str:
    """In Prometheus' text format. Counters are of finished shards: those never go back."""
    lines: list[str] = []

    def family(name: str, what: str, values: float | Mapping[str, float], label: str = "") -> None:
        kind = "counter" if name.endswith("_total") else "gauge"
        lines.extend([f"# HELP batchgen_{name} {what}", f"# TYPE batchgen_{name} {kind}"])
        for value, number in values.items() if isinstance(values, Mapping) else [("", values)]:
            labels = {"out": seen.out} | ({label: value} if label else {})
            shown = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
            lines.append(f"batchgen_{name}{{{shown}}} {number}")

    live, shards, finished = seen.live, seen.shards, seen.finished
    states = {state: int(state == seen.state) for state in STATES}
    parts = {"done": shards.done, "running": shards.running, "left": shards.left}
    workers = {state: sum(worker.state == state for worker in seen.workers) for state in WORKER_STATES}
    requests = {name: sum(getattr(worker, name) for worker in live) for name in ("running", "waiting")}
    family("job_info", "The job, by its fingerprint.", {seen.fingerprint: 1}, "fingerprint")
    family("job_state", "1 for the state that the job is in.", states, "state")
    family("job_rows", "Rows of the job.", seen.rows)
    family("job_rows_done", "Rows that are done, in finished shards and in others.", seen.rows_done)
    family("job_shards", "Shards of the job.", parts, "state")
    family("rows_total", "Rows of finished shards.", finished.rows)
    family("responses_total", "Responses in finished shards.", finished.responses)
    family("rejects_total", "Rejected rows of finished shards.", finished.rejects, "reason")
    family("prompt_tokens_total", "Prompt tokens of finished shards.", finished.prompt_tokens)
    family("response_tokens_total", "Response tokens of finished shards.", finished.response_tokens)
    if finished.finish_reasons:
        family(
            "finish_reasons_total",
            "Responses (segments of a translation), by what ended them.",
            finished.finish_reasons,
            "reason",
        )
        family("empty_responses_total", "Those of them without a sign in them.", finished.empty or 0)
        family("repetitive_responses_total", "Those that ended in a loop.", finished.repetitive or 0)
    if finished.segments is not msgspec.UNSET:
        family("segments_total", "Distinct segments of finished shards.", finished.segments)
        family("failed_segments_total", "Those of them that no try got right.", finished.failed_segments or 0)
    family("response_tokens_per_second", "Of all live workers, over 30 seconds.", seen.response_tokens_per_second)
    family("eta_seconds", "Time left at the present pace; absent if unknown.", {} if seen.eta is None else seen.eta)
    family("workers", "Workers that have not left.", workers, "state")
    family("requests", "Requests in the engines.", requests, "state")
    return "\n".join([*lines, ""])


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
