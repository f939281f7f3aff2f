"""A fleet of workers on one core: a discrete-event simulation of what the store of a job has to take.

    python tests/bench/fleet.py --workers 10,100,1000 --rows 1e9

Claims, heartbeats, journals, the queue, the loop of a worker and the commits are batchgen's own code. What is simulated
is the clock, the engine (it sleeps), and the store (it keeps everything in memory, takes the time that a request takes,
and counts requests). Each worker is a thread, and one of them runs at a time: whichever is due next on the fake clock.

Rows go in groups of as many as an engine runs at a time: what is a request here stands for TOGETHER of them.
"""

import argparse
import bisect
import contextlib
import dataclasses
import heapq
import io
import itertools
import os
import random
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent.parent))

from memory import MemoryStore

from batchgen.engine.types import Response
from batchgen.host import bucket, clock
from batchgen.input.conversation import Row
from batchgen.input.plan import Plan, Shard
from batchgen.job.sampler import NONE
from batchgen.job.sampling import Sampling
from batchgen.output import bucket as bucket_store
from batchgen.output import claims, heartbeat, layout, opening, record, shard
from batchgen.output.bucket import BucketStore
from batchgen.output.presence import Presence
from batchgen.output.record import JobRecord
from batchgen.output.store import Stat
from batchgen.runner import queue
from batchgen.runner.worker import Worker
from batchgen.task.task import Name, Request

TOGETHER = 256  # rows that an engine runs at a time
ROWS_PER_SECOND = 30.0  # of a worker: the 4B model on an H100, some 500 tokens each
ENGINE_START = 90.0  # seconds
SPREAD = 60.0  # seconds in which the machines come up
REPLACED = 300.0  # seconds until another machine is there for one that was taken
STALE = 60.0
READ_SHARD = 5e-6  # seconds: a plan of 244,141 shards, 23 MB, takes 1.1 s
LISTINGS = 3  # of all shards, by a run that begins
BYTES = memoryview(b"parquet")
FINGERPRINT = "0" * 32
SPEC = {"output": {"stale": STALE, "shared": False}}
NO_PLAN = SimpleNamespace(growth=0)
WHO = {"worker": "w", "host": "h", "boot": "b", "started": "0", "stale": STALE, "slurm": {}}


class Site(NamedTuple):
    """What keeps the output. seconds: of a request of each kind; dollars: of 1,000 of them; journal_every: seconds
    within which what a journal was given is kept."""

    name: str
    seconds: dict[str, float]
    dollars: dict[str, float]
    journal_every: float


# S3 in us-east-1: its price list, and usual latencies from a machine in the region.
BUCKET = Site(
    "bucket",
    {"PUT": 0.04, "GET": 0.02, "HEAD": 0.02, "LIST": 0.06, "DELETE": 0.02},
    {"PUT": 0.005, "GET": 0.0004, "HEAD": 0.0004, "LIST": 0.005, "DELETE": 0.0},
    10.0,
)
# A share on NFS: a look is one round trip, a durable write some three and the disk.
FOLDER = Site(
    "folder", {"PUT": 0.005, "GET": 0.001, "HEAD": 0.0005, "LIST": 0.002, "APPEND": 0.002, "DELETE": 0.001}, {}, 0.5
)
SITES = {site.name: site for site in (BUCKET, FOLDER)}
PAGE = 1000  # names in an answer to LIST


class Killed(BaseException):
    """The machine under a worker is gone: as with kill -9, nothing is put in order."""


class Fleet:
    """The fake clock, and who runs by it. Of all threads one runs at a time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.running: Process | None = None
        self._due: list[tuple[float, int, Process | Callable[[], None]]] = []
        self._number = itertools.count()
        self._over = threading.Event()
        self.failure: BaseException | None = None

    def at(self, when: float, who: "Process | Callable[[], None]") -> None:
        heapq.heappush(self._due, (when, next(self._number), who))

    def start(self, work: Callable[[], None], after: float = 0.0) -> "Process":
        process = Process(self, work)
        self.at(self.now + after, process)
        return process

    def sleep(self, seconds: float) -> None:
        """Lets the others run until then. A timer's own work takes no time."""
        if (process := self.running) is None or not process.is_this_thread:
            return
        self.at(self.now + seconds, process)
        self.pass_on()
        process.wait()

    def every(self, seconds: float, act: Callable[[], None]) -> Callable[[], None]:
        owner, stopped = self.running, threading.Event()

        def again() -> None:
            if not stopped.is_set() and not (owner and owner.killed):
                act()
                self.at(self.now + seconds, again)

        self.at(self.now + seconds * random.random(), again)
        return stopped.set

    def pass_on(self) -> None:
        """Runs what is due up to the next process, and wakes that."""
        self.running = None
        while self._due:
            self.now, _, who = heapq.heappop(self._due)
            if isinstance(who, Process):
                self.running = who
                who.wake()
                return
            who()
        self._over.set()

    def run(self) -> None:
        """Until nothing is due any more."""
        self.pass_on()
        self._over.wait()
        if self.failure:
            raise self.failure

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        with (
            mock.patch.object(clock, "monotonic", lambda: self.now),
            mock.patch.object(clock, "sleep", self.sleep),
            mock.patch.object(clock, "every", self.every),
        ):
            yield


class Process:
    def __init__(self, fleet: Fleet, work: Callable[[], None]):
        self._fleet, self._work = fleet, work
        self.killed = self.ended = False
        self._turn = threading.Lock()  # free while it may run
        self._turn.acquire()
        self._thread: threading.Thread | None = None

    @property
    def is_this_thread(self) -> bool:
        """And not one of those that read side by side."""
        return threading.current_thread() is self._thread

    def wake(self) -> None:
        if self._thread:
            self._turn.release()
        else:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def wait(self) -> None:
        self._turn.acquire()
        if self.killed:
            raise Killed

    def _run(self) -> None:
        try:
            if not self.killed:
                self._work()
        except Killed:
            pass
        except BaseException as error:
            self._fleet.failure = error
            self._fleet._due.clear()
        self.ended = True
        self._fleet.pass_on()


class Requests:
    """Counts what a store is asked, and takes the time that it takes."""

    def __init__(self, fleet: Fleet, site: Site):
        self.number: Counter[str] = Counter()
        self._fleet, self._site = fleet, site
        self._at: Counter[tuple[str, int]] = Counter()  # by kind and ten seconds
        self._together: float | None = None  # seconds of those that are made side by side

    def ask(self, kind: str, number: int = 1) -> None:
        self.number[kind] += number
        self._at["PUT" if kind in ("PUT", "APPEND", "DELETE") else "GET", int(self._fleet.now) // 10] += number
        seconds = self._site.seconds[kind] * number
        if self._together is not None:
            self._together += seconds
        else:
            self._fleet.sleep(seconds)

    def list(self, names: int) -> None:
        self.ask("LIST", max(1, -(-names // PAGE)))

    @contextlib.contextmanager
    def side_by_side(self) -> Iterator[None]:
        if self._together is not None:
            yield
            return
        self._together = 0.0
        try:
            yield
        finally:
            seconds, self._together = self._together, None
        self._fleet.sleep(seconds / bucket.MANY)

    def most(self, kind: str) -> float:
        """A second, in ten seconds."""
        return max(number for (asked, _), number in self._at.items() if asked == kind) / 10


class Objects:
    """What is there, in order, by the folder that it is listed with."""

    def __init__(self, fleet: Fleet):
        self._fleet = fleet
        self._versions = itertools.count()
        self._names: dict[str, list[str]] = {}
        self.content: dict[str, tuple[bytes, float, int]] = {}

    @staticmethod
    def _folder(name: str) -> str:
        return "/".join(name.split("/")[:-1][:2])

    def names(self, folder: str) -> list[str]:
        return self._names.get(folder, [])

    def get(self, name: str) -> tuple[bytes, float, int]:
        try:
            return self.content[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def put(self, name: str, content: bytes) -> None:
        if name not in self.content:
            bisect.insort(self._names.setdefault(self._folder(name), []), name)
        self.content[name] = content, self._fleet.now, next(self._versions)

    def remove(self, name: str) -> None:
        if self.content.pop(name, None):
            names = self._names[self._folder(name)]
            del names[bisect.bisect_left(names, name)]


class Bucket:
    """host.bucket.Bucket on such objects, for the BucketStore of batchgen."""

    lists_from_anywhere = True
    uri = "s3://out"

    def __init__(self, objects: Objects, requests: Requests):
        self._objects, self._requests = objects, requests

    def where(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def _found(self, name: str) -> bucket.Found:
        content, modified, version = self._objects.get(name)
        return bucket.Found(name, len(content), modified, {"e_tag": str(version)})

    def head(self, name: str) -> bucket.Found:
        self._requests.ask("HEAD")
        return self._found(name)

    has = bucket.Bucket.has

    def get(self, name: str, most: int | None = None) -> tuple[bytes, bucket.Found]:
        self._requests.ask("GET")
        return self._objects.get(name)[0], self._found(name)

    def open(self, name: str) -> io.BufferedReader:
        self.head(name)
        return io.BufferedReader(io.BytesIO(self.get(name)[0]))

    def below(self, folder: str = "") -> Iterator[bucket.Found]:
        return (self._found(each["path"]) for page in self.pages(folder) for each in page)

    def pages(
        self, folder: str, after: str = "", begin: str = "", last: str = bucket.LAST
    ) -> Iterator[list[dict[str, Any]]]:
        start = f"{folder}/" if folder else ""
        names = self._objects.names(folder)
        place = bisect.bisect_left(names, start + max(after, begin))
        found = []
        while place < len(names) and names[place].startswith(start + begin) and names[place] <= start + last:
            if names[place] > start + after:
                found.append(names[place])
            place += 1
        self._requests.list(len(found))
        there = [self._found(name) for name in found if name in self._objects.content]
        times = [datetime.fromtimestamp(each.modified, UTC) for each in there]
        yield [
            {"path": each.name, "size": each.size, "last_modified": when}
            for each, when in zip(there, times, strict=True)
        ]

    def names(self, folder: str = "") -> tuple[list[str], list[bucket.Found]]:
        return [], list(self.below(folder))

    def side_by_side(self, work, parts) -> list:
        with self._requests.side_by_side():
            return [work(part) for part in parts]

    in_turn = side_by_side

    def put(self, name: str, content: bytes) -> None:
        self._requests.ask("PUT")
        self._objects.put(name, bytes(content))

    def create(self, name: str, content: bytes) -> bool:
        self._requests.ask("PUT")
        if is_new := name not in self._objects.content:
            self._objects.put(name, bytes(content))
        return is_new

    def swap(self, name: str, version: dict[str, str], content: bytes) -> bool:
        self._requests.ask("PUT")
        if is_there := name in self._objects.content and self._found(name).version == version:
            self._objects.put(name, content)
        return is_there

    def delete(self, names) -> None:
        with self._requests.side_by_side():
            for name in names:
                self._requests.ask("DELETE")
                self._objects.remove(name)


class Share(MemoryStore):
    """As much of a folder on a network share as a worker asks for."""

    def __init__(self, objects: Objects, requests: Requests, logs: Path):
        super().__init__(logs)
        self._objects, self._requests = objects, requests

    def exists(self, name: str) -> bool:
        self._requests.ask("HEAD")
        return name in self._objects.content

    def stat(self, name: str, fresh: bool = False) -> Stat:
        self._requests.ask("GET" if fresh else "HEAD")
        content, modified, version = self._objects.get(name)
        return Stat(len(content), modified, version)

    def names(self, folder: str = "", missing_ok: bool = False) -> list[str]:
        names = self._objects.names(folder)
        self._requests.list(len(names))
        return [name.rpartition("/")[2] for name in names]

    def read(self, name: str, most: int = 0) -> bytes:
        self._requests.ask("GET")
        return self._objects.get(name)[0]

    def open(self, name: str):
        return contextlib.nullcontext(io.BufferedReader(io.BytesIO(self.read(name))))

    def write(self, name: str, content: bytes | memoryview) -> None:
        self._requests.ask("PUT")
        self._objects.put(name, bytes(content))

    overwrite = write

    def publish(self, name, content, beside, note) -> bool:
        for each in beside:
            self.exists(each)
        self.write(*note)
        self.write(name, content)
        return True

    def swap(self, name: str, old: bytes | None, new: bytes | None) -> bool:
        if old is not None:
            self._requests.ask("GET")
        self._requests.ask("PUT" if new else "DELETE")
        there = self._objects.content.get(name, (None,))[0]
        if there == old:
            self._objects.put(name, new) if new else self._objects.remove(name)
        return there == old

    def appender(self, name: str, head: bytes, every: float) -> "Appending":
        self.write(name, head)
        return Appending(self, name, every)

    def remove(self, *names: str, durable: bool = False) -> None:
        for name in names:
            self._requests.ask("DELETE")
            self._objects.remove(name)


class Appending:
    """A journal in a folder: a kill loses nothing of it, but it is synced every so often."""

    def __init__(self, store: Share, name: str, every: float):
        self._store, self._name, self._every = store, name, every
        self._synced = clock.monotonic()

    def append(self, data: bytes) -> None:
        content = self._store._objects.get(self._name)[0]
        self._store._objects.put(self._name, content + data)

    def keep(self, at_once: bool = False) -> None:
        if at_once or clock.monotonic() - self._synced >= self._every:
            self._store._requests.ask("APPEND")
            self._synced = clock.monotonic()

    def close(self) -> None:
        pass


# --- a job


class Work(NamedTuple):
    row: int
    id: str
    requests: list[Request]


class Task:
    """A row is one request, whose answer is of no interest."""

    schema = pa.schema([("row", pa.int64())])
    sampling = Sampling(max_tokens=1)

    def prepare(self, rows):
        for row in rows:
            name = Name(row.number, 0, 0, 0)
            request = Request(name, [1], self.sampling, 0, scored=1)  # nobody looks at a text of it
            yield row, Work(row.number, str(row.number), [request])

    def next_tries(self, work, request, entry):
        return []

    def output(self, work, answers):
        return [{"row": work.row}]

    def has_failed(self, row):
        return False

    def audit(self, finished):
        return None


@dataclasses.dataclass(frozen=True)
class Job:
    """As much of a job as a worker asks for."""

    out: Any
    plan: Plan
    record: JobRecord
    task: Task = dataclasses.field(default_factory=Task)
    spec: SimpleNamespace = dataclasses.field(
        default_factory=lambda: SimpleNamespace(
            output=SimpleNamespace(drain=30.0, stall=1e9, journal_every=None, abort_if_rejected=None)
        )
    )
    model: SimpleNamespace = dataclasses.field(default_factory=lambda: SimpleNamespace(name="", revision="", width=0))
    digests: dict = dataclasses.field(default_factory=dict)
    context: int = 2048
    end: int | None = None

    def fingerprint_of(self, planned: Shard) -> str:
        return FINGERPRINT

    def is_cut(self, planned: Shard) -> bool:
        return False

    def reader(self, running: bool = False) -> "Job":
        return self

    def read(self, planned: Shard) -> Iterator[Row]:
        return (Row(number, {}) for number in planned.row_numbers)


class Engine:
    """Takes its time. done: requests that all engines have generated, parts of them counted"""

    max_num_seqs = 1
    dtype = device = model_impl = ""
    sampler = NONE
    done = 0.0

    def __init__(self, fleet: Fleet, seconds: float, pace: random.Random):
        """seconds: of one request, on average"""
        self._fleet, self._seconds, self._pace = fleet, seconds, pace
        self._waiting: deque[str] = deque()

    def add(self, name: str, *_) -> None:
        self._waiting.append(name)

    def step(self) -> list[Response]:
        takes = self._seconds * self._pace.uniform(0.8, 1.2)
        begin = self._fleet.now
        try:
            self._fleet.sleep(takes)
        finally:
            Engine.done += (self._fleet.now - begin) / takes
        return [Response(self._waiting.popleft(), [1], "length")]


class Result(NamedTuple):
    """hours: to the last commit, and until the last worker has left; ideal: of the same fleet without a loss; redone:
    share of all generation; requests: by kind; most: of those that change something, and of those that look, in a
    second."""

    workers: int
    shards: int
    hours: float
    left: float
    ideal: float
    redone: float
    kills: int
    requests: Counter[str]
    most: tuple[float, float]
    site: Site

    @property
    def shard_hours(self) -> float:
        """Of one worker that makes one."""
        return self.ideal * self.workers / self.shards

    def a_day(self, *kinds: str) -> float:
        """Requests of these kinds, all workers together."""
        return sum(self.requests[kind] for kind in kinds) / self.left * 24

    @property
    def dollars_a_day(self) -> float:
        return sum(self.a_day(kind) / 1000 * price for kind, price in self.site.dollars.items())


class Simulation:
    """A job, and its workers on machines of which some are taken."""

    def __init__(self, workers: int, shards: int, shard_rows: int, site: Site, preempted: float, seed: int):
        self._workers, self._shards, self._preempted = workers, shards, preempted
        self._seconds = TOGETHER / ROWS_PER_SECOND  # of a request
        self._useful = shards * shard_rows / ROWS_PER_SECOND
        self._site, self._pace = site, random.Random(seed)
        self._fleet = Fleet()
        self._objects, self._requests = Objects(self._fleet), Requests(self._fleet, site)
        self._live: list[Process] = []
        self._kills = 0
        self._last_commit = self._last_left = 0.0
        self._done: dict[int, Shard] = {}
        self._record = JobRecord(fingerprint=FINGERPRINT, results={}, spec=SPEC, versions={}, plan=NO_PLAN)
        self._groups = -(-shard_rows // TOGETHER)
        self._plan = Plan([], [Shard(n, shards, n * self._groups, self._groups, 0, 0) for n in range(shards)])

    def run(self) -> Result:
        with tempfile.TemporaryDirectory() as logs, self._fleet.clock(), self._shortened():
            self._out = self._store(Path(logs))
            self._live += [self._fleet.start(self._work, self._pace.uniform(0, SPREAD)) for _ in range(self._workers)]
            if self._preempted:
                self._fleet.at(ENGINE_START, self._preempt)
            self._fleet.run()
        assert len(self._done) == self._shards
        return Result(
            self._workers,
            self._shards,
            self._last_commit / 3600,
            self._last_left / 3600,
            (self._useful / self._workers + ENGINE_START) / 3600,
            Engine.done / (self._shards * self._groups) - 1,
            self._kills,
            self._requests.number,
            (self._requests.most("PUT"), self._requests.most("GET")),
            self._site,
        )

    def _store(self, logs: Path) -> Any:
        if self._site is FOLDER:
            return Share(self._objects, self._requests, logs)
        out = BucketStore.__new__(BucketStore)
        out._bucket, out._logs = Bucket(self._objects, self._requests), None
        return out

    @contextlib.contextmanager
    def _shortened(self) -> Iterator[None]:
        """What takes real time, or would be of the machine that the simulation runs on."""
        Engine.done = 0.0
        numbers = itertools.count()
        no_locks = SimpleNamespace(Lock=contextlib.nullcontext)  # timers run between processes, and must not wait
        commit = shard.commit

        def committing(out, planned, *more):
            commit(out, planned, *more)
            self._done[planned.index] = planned
            self._last_commit = self._fleet.now

        with (
            mock.patch.object(heartbeat, "is_gone", lambda beat: False),
            mock.patch.object(heartbeat, "identity", lambda worker, stale: {**WHO, "pid": next(numbers)}),
            mock.patch.object(claims, "threading", no_locks),
            mock.patch.object(bucket_store, "threading", no_locks),
            mock.patch.object(shard, "as_parquet", lambda *_: BYTES),
            mock.patch.object(shard, "commit", committing),
            mock.patch.object(queue, "finished", lambda out, plan: self._listed()),
            mock.patch.object(record, "create", lambda out, job: out.create(layout.JOB, b"{}")),
            mock.patch.object(record, "read_job", self._read_job),
            mock.patch.object(record, "fingerprints", lambda job: [job.fingerprint]),
            mock.patch.object(opening, "_version_of_record", self._version_of_record),
        ):
            yield

    def _listed(self) -> list[Shard]:
        with self._requests.side_by_side():
            self._requests.list(len(self._done))
        return list(self._done.values())

    def _read_job(self, out: Any) -> JobRecord | None:
        try:
            out.read(layout.JOB)
        except FileNotFoundError:
            out.names()
            return None
        with contextlib.suppress(FileNotFoundError):
            out.read(layout.growth(FINGERPRINT))
        self._fleet.sleep(READ_SHARD * self._shards)
        return self._record

    def _version_of_record(self, out: Any) -> object:
        try:
            return out.stat(layout.JOB, fresh=True).version
        except FileNotFoundError:
            return None

    # --- machines

    def _work(self) -> None:
        """One run: it prepares the job, opens it, looks at what is there, starts its engine and works."""
        out, fleet = self._out, self._fleet
        with Presence(out, STALE) as presence:
            opened = False
            while not opened:
                old = self._read_job(out)
                asked = msgspec.structs.replace(self._record, after=old and old.fingerprint)
                opened = opening.open_job(out, asked, presence)
            for _ in range(LISTINGS):
                self._listed()
            missing = [planned for planned in self._plan.shards if planned.index not in self._done]
            fleet.sleep(ENGINE_START * self._pace.uniform(0.8, 1.2))
            engine = Engine(fleet, self._seconds, self._pace)
            Worker(Job(out, self._plan, record=self._record), engine, claims.Claims(out, STALE)).run(missing)
        self._last_left = fleet.now

    def _preempt(self) -> None:
        live = self._live = [process for process in self._live if not process.ended]
        if len(self._done) >= self._shards or not live:
            return
        victim = live.pop(self._pace.randrange(len(live)))
        victim.killed = True
        self._kills += 1
        live.append(self._fleet.start(self._work, REPLACED * self._pace.uniform(0.5, 1.5)))
        pause = self._pace.expovariate(self._preempted * self._workers / 3600)
        self._fleet.at(self._fleet.now + pause, self._preempt)


def simulate(
    workers: int, shards: int, shard_rows: int, site: Site = BUCKET, preempted: float = 0.05, seed: int = 0
) -> Result:
    """preempted: share of the machines that is taken in an hour, without notice; another one comes for each."""
    random.seed(seed)
    return Simulation(workers, shards, shard_rows, site, preempted, seed).run()


def table(results: list[Result]) -> list[str]:
    lines = [
        "| workers | shards | taken | last shard; ideal | redone | writes | looks | listings | most a second | cost |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in results:
        writes, looks, listings = (
            each.a_day(*kinds) / each.workers for kinds in (("PUT", "APPEND"), ("GET", "HEAD"), ("LIST",))
        )
        lines.append(
            f"| {each.workers:,} | {each.shards:,} | {each.kills:,} | {each.hours:.2f}; {each.ideal:.2f} h | "
            f"{each.redone:.2%} | {writes:,.0f} | {looks:,.0f} | {listings:,.0f} | "
            f"{each.most[0]:,.0f} writes, {each.most[1]:,.0f} looks | ${each.dollars_a_day / each.workers:.3f} |"
        )
    return lines


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--workers", default="10,30,100,300,1000", help="numbers of workers, by commas")
    flags.add_argument("--rows", type=float, default=1e6, help="of each worker")
    flags.add_argument("--shard-rows", default="4096", help="by commas")
    flags.add_argument("--site", choices=SITES, default="bucket")
    flags.add_argument("--preempted", type=float, default=0.05, help="share of the machines, an hour")
    asked = flags.parse_args()
    threading.stack_size(1 << 18)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # threads that take turns do so faster on one core
    results: list[Result] = []
    for shard_rows, workers in itertools.product(_numbers(asked.shard_rows), _numbers(asked.workers)):
        shards = -(-int(asked.rows * workers) // shard_rows)
        results.append(simulate(workers, shards, shard_rows, SITES[asked.site], asked.preempted))
        print(*table(results)[-1 if len(results) > 1 else 0 :], sep="\n", flush=True)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
