"""A fleet of workers on one core: a discrete-event simulation of what the store of a job has to take.

    python tests/bench/fleet.py --workers 10,100,1000 --rows 1e9

Claims, heartbeats, journals, the queue, the loop of a worker and the commits are batchgen's own code. What is simulated
is the clock, the engine (it sleeps), and the store (it keeps everything in memory, takes the time that a request takes,
and counts requests). Each worker is a thread, and one of them runs at a time: whichever is due next on the fake clock.

A shard's rows are sampled: it has GROUPS rows here, each of which stands for as many as are needed.
"""

import argparse
import contextlib
import dataclasses
import heapq
import itertools
import random
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent.parent))

from memory import MemoryStore

from batchgen.engine.types import Response
from batchgen.host import clock
from batchgen.input.conversation import Row
from batchgen.input.plan import Plan, Shard
from batchgen.job.sampler import NONE
from batchgen.job.sampling import Sampling
from batchgen.output import heartbeat, layout, shard
from batchgen.output.claims import Claims
from batchgen.output.opening import Fence
from batchgen.output.store import Entry, Stat
from batchgen.run.worker import Worker
from batchgen.task.task import Name, Request

GROUPS = 32  # rows of a shard, as simulated
PARALLEL = 2  # of them in the engine at a time
ROWS_PER_SECOND = 30.0  # of a worker: the 4B model on an H100, some 500 tokens each
ENGINE_START = 90.0  # seconds
REPLACED = 300.0  # seconds until another machine is there for one that was taken
STALE = 60.0
DAY = 86_400.0
PATIENCE = 20_000_000  # requests, after which something walks in circles
BYTES = memoryview(b"parquet")


class Site(NamedTuple):
    """What keeps the output. seconds: of a request of each kind; dollars: of 1,000 requests; page: names in a listing;
    journal_every: seconds between two writes of what a journal was given; limit: requests a second that it stands."""

    name: str
    seconds: dict[str, float]
    dollars: dict[str, float]
    page: int
    journal_every: float
    limit: dict[str, float]


# S3 in us-east-1: its price list, its documented limits per prefix, and usual latencies from a machine in the region.
BUCKET = Site(
    "bucket",
    {"PUT": 0.04, "GET": 0.02, "HEAD": 0.02, "LIST": 0.06, "DELETE": 0.02},
    {"PUT": 0.005, "GET": 0.0004, "HEAD": 0.0004, "LIST": 0.005, "DELETE": 0.0},
    1000,
    10.0,
    {"PUT": 3500, "GET": 5500},
)
# A share on NFS: a look is one round trip, a durable write some three and the disk.
FOLDER = Site(
    "folder",
    {"PUT": 0.005, "GET": 0.001, "HEAD": 0.0005, "LIST": 0.002, "DELETE": 0.001},
    {},
    1000,
    0.5,
    {"PUT": 2000, "GET": 20_000},
)
SITES = {site.name: site for site in (BUCKET, FOLDER)}


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
        if (process := self.running) is None:
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
        self._turn = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

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


class CountingStore(MemoryStore):
    """A bucket or a share: it counts requests, and takes their time."""

    def __init__(self, fleet: Fleet, site: Site, logs: Path):
        super().__init__(logs)
        self._fleet, self._site = fleet, site
        self._folders: dict[str, set[str]] = {}
        self.requests: Counter[str] = Counter()
        self.at: Counter[tuple[str, int]] = Counter()  # by kind and ten seconds
        self.now = lambda: fleet.now

    def _ask(self, kind: str, number: int = 1, side_by_side: int = 1) -> None:
        self.requests[kind] += number
        self.at["GET" if kind in ("HEAD", "LIST") else kind, int(self._fleet.now) // 10] += number
        self._fleet.sleep(self._site.seconds[kind] * -(-number // side_by_side))

    # --- looks

    def exists(self, name: str) -> bool:
        self._ask("HEAD")
        return name in self.objects

    def stat(self, name: str, fresh: bool = False) -> Stat:
        self._ask("HEAD")
        return super().stat(name)

    def read(self, name: str, most: int = 0) -> bytes:
        self._ask("GET")
        return self._of(name)

    def names(self, folder: str = "", missing_ok: bool = False) -> list[str]:
        names = sorted(self._folders.get(folder, ()))
        self._ask("LIST", max(1, -(-len(names) // self._site.page)), side_by_side=16)
        return names

    def entries(self, folder: str) -> list[Entry]:
        names = self.names(folder)
        self._ask("GET", max(1, len(names)), side_by_side=16)
        paths = [(name, f"{folder}/{name}") for name in names]
        return [Entry(name, self.objects[path], self._written[path][0]) for name, path in paths if path in self.objects]

    # --- changes

    def write(self, name: str, content: bytes | memoryview) -> None:
        self._ask("PUT")
        self._put(name, bytes(content))

    overwrite = write

    def _put(self, name: str, content: bytes) -> None:
        self._versions += 1
        self.objects[name], self._written[name] = content, (self._fleet.now, self._versions)
        folder, _, last = name.rpartition("/")
        self._folders.setdefault(folder, set()).add(last)

    def swap(self, name: str, old: bytes | None, new: bytes | None) -> bool:
        if old is not None:
            self._ask("GET")  # for its ETag
        self._ask("PUT")
        if self.objects.get(name) != old:
            return False
        if new is None:
            self.remove(name)
        else:
            self._put(name, new)
        return True

    def publish(self, name, content, beside, note) -> bool:
        for each, its_content in (*beside.items(), note, (name, content)):
            if its_content:
                self.write(each, its_content)
        return True

    def appender(self, name: str, head: bytes, every: float) -> "Segments":
        return Segments(self, name, head)

    def remove(self, *names: str, durable: bool = False) -> None:
        for name in names:
            self._ask("DELETE")
            if self.objects.pop(name, None) is not None:
                del self._written[name]
                folder, _, last = name.rpartition("/")
                self._folders[folder].discard(last)


class Segments:
    """A journal: what it is given is in the store once a timer has put it there."""

    def __init__(self, store: CountingStore, name: str, head: bytes):
        self._store, self._name, self._content = store, name, head
        self._pending = b""
        self._stop = clock.every(store._site.journal_every, self._keep)

    def append(self, data: bytes) -> None:
        self._pending += data

    def _keep(self) -> None:
        if self._pending:
            self._content, self._pending = self._content + self._pending, b""
            self._store.write(self._name, self._content)

    def keep(self, at_once: bool = False) -> None:
        """In time, by the timer."""

    def close(self) -> None:
        self._stop()


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
            yield row, Work(row.number, str(row.number), [Request(name, [1], self.sampling, 0)])

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

    out: CountingStore
    plan: Plan
    task: Task = dataclasses.field(default_factory=Task)
    record: SimpleNamespace = dataclasses.field(default_factory=lambda: SimpleNamespace(fingerprint="0", versions={}))
    spec: SimpleNamespace = dataclasses.field(
        default_factory=lambda: SimpleNamespace(output=SimpleNamespace(drain=30.0, stall=1e9, journal_every=None))
    )
    model: SimpleNamespace = dataclasses.field(default_factory=lambda: SimpleNamespace(name="", revision=""))
    digests: dict = dataclasses.field(default_factory=dict)
    context: int = 2048

    def fingerprint_of(self, planned: Shard) -> str:
        return "0"

    def reader(self, running: bool = False) -> "Job":
        return self

    def read(self, planned: Shard) -> Iterator[Row]:
        return (Row(number, {}) for number in planned.row_numbers)


class Engine:
    """Takes its time. done: requests that all engines have generated, parts of them counted"""

    max_num_seqs = PARALLEL
    dtype = device = model_impl = ""
    sampler = NONE
    done = 0.0

    def __init__(self, fleet: Fleet, seconds: float, pace: random.Random):
        """seconds: of one request, on average"""
        self._fleet, self._seconds, self._pace = fleet, seconds, pace
        self._waiting: deque[str] = deque()
        self._running: dict[str, tuple[float, float]] = {}  # how long they take, and when they end

    def add(self, name: str, *_) -> None:
        self._waiting.append(name)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < PARALLEL:
            takes = self._seconds * self._pace.uniform(0.8, 1.2)
            self._running[self._waiting.popleft()] = takes, self._fleet.now + takes

    def step(self) -> list[Response]:
        name = min(self._running, key=lambda name: self._running[name][1])
        try:
            self._fleet.sleep(max(0.0, self._running[name][1] - self._fleet.now))
        except Killed:
            Engine.done += sum(1 - max(0.0, end - self._fleet.now) / takes for takes, end in self._running.values())
            raise
        Engine.done += 1
        del self._running[name]
        self._fill()
        return [Response(name, [1], "length")]


class Result(NamedTuple):
    """hours: to the last commit, and until the last worker has left; ideal: of the same fleet without a loss; redone:
    share of all generation; requests: by kind; peak: most a second, in ten seconds."""

    workers: int
    shards: int
    hours: float
    left: float
    ideal: float
    redone: float
    kills: int
    requests: Counter[str]
    peak: dict[str, float]
    site: Site

    @property
    def shard_hours(self) -> float:
        """Of one worker that makes one."""
        return self.ideal * self.workers / self.shards

    @property
    def dollars_a_day(self) -> float:
        dollars = sum(self.requests[kind] / 1000 * price for kind, price in self.site.dollars.items())
        return dollars / self.left * 24


def simulate(
    workers: int, shards: int, shard_rows: int, site: Site = BUCKET, preempted: float = 0.05, seed: int = 0
) -> Result:
    """preempted: share of the machines that is taken in an hour, without notice; another one comes for each."""
    random.seed(seed)
    fleet, pace = Fleet(), random.Random(seed)
    seconds = shard_rows / GROUPS * PARALLEL / ROWS_PER_SECOND
    Engine.done = 0.0
    plan = Plan([], [Shard(index, shards, index * GROUPS, GROUPS, 0, 0) for index in range(shards)])
    live: list[Process] = []
    kills = 0
    last_commit = last_left = 0.0

    def work() -> None:
        nonlocal last_left
        fleet.sleep(ENGINE_START * pace.uniform(0.8, 1.2))
        finished = set(out._folders.get("", ()))  # as the run has listed them before it began
        missing = [planned for planned in plan.shards if layout.part(planned) not in finished]
        claims = Claims(out, STALE)
        claims._beating = contextlib.nullcontext()  # timers run between processes, and must not wait for one
        Worker(job, Engine(fleet, seconds, pace), claims).run(missing)
        last_left = fleet.now

    def preempt() -> None:
        nonlocal kills
        live[:] = [process for process in live if not process.ended]
        if len(out._folders.get("", ())) >= shards or not live:
            return
        victim = live.pop(pace.randrange(len(live)))
        victim.killed = True
        kills += 1
        live.append(fleet.start(work, REPLACED * pace.uniform(0.5, 1.5)))
        fleet.at(fleet.now + pace.expovariate(preempted * workers / 3600), preempt)

    number = itertools.count()
    with (
        tempfile.TemporaryDirectory() as logs,
        fleet.clock(),
        mock.patch.object(heartbeat, "is_gone", lambda beat: False),  # each is a machine of its own
        mock.patch.object(heartbeat, "identity", lambda worker, stale: {**WHO, "pid": next(number), "stale": stale}),
        mock.patch.object(shard, "as_parquet", lambda *_: BYTES),
        mock.patch.object(Fence, "check", lambda self: out._ask("HEAD")),
    ):
        out = CountingStore(fleet, site, Path(logs))
        job = Job(out, plan)
        put = out._put

        def noting(name: str, content: bytes) -> None:
            nonlocal last_commit
            if layout.is_part(name):
                last_commit = fleet.now
            put(name, content)

        out._put = noting
        live += [fleet.start(work, pace.uniform(0, 60)) for _ in range(workers)]
        if preempted:
            fleet.at(ENGINE_START, preempt)
        fleet.run()
    assert sum(map(layout.is_part, out._folders[""])) == shards
    useful = shards * shard_rows / ROWS_PER_SECOND
    peak = {kind: max(n for (k, _), n in out.at.items() if k == kind) / 10 for kind in ("PUT", "GET")}
    hours = last_commit / 3600
    redone = Engine.done / (shards * GROUPS) - 1
    ideal = (useful / workers + ENGINE_START) / 3600
    return Result(workers, shards, hours, last_left / 3600, ideal, redone, kills, out.requests, peak, site)


WHO = {"worker": "w", "host": "h", "boot": "b", "started": "0", "slurm": {}}


def table(results: list[Result]) -> list[str]:
    lines = [
        "| workers | shards | kills | ideal | last shard | redone | PUT | GET, HEAD | LIST | peak a second | a day |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in results:
        per_day = {kind: number / each.left * 24 for kind, number in each.requests.items()}
        lines.append(
            f"| {each.workers:,} | {each.shards:,} | {each.kills:,} | {each.ideal:.2f} h | {each.hours:.2f} h | "
            f"{each.redone:.2%} | {per_day['PUT']:,.0f} | {per_day['GET'] + per_day['HEAD']:,.0f} | "
            f"{per_day['LIST']:,.0f} | {each.peak['PUT']:,.0f} PUT, {each.peak['GET']:,.0f} GET | "
            f"${each.dollars_a_day:,.2f} |"
        )
    return lines


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--workers", default="10,100,1000", help="numbers of workers, by commas")
    flags.add_argument("--rows", type=float, default=1e9)
    flags.add_argument("--shard-rows", default="4096", help="by commas")
    flags.add_argument("--site", choices=SITES, default="bucket")
    flags.add_argument("--preempted", type=float, default=0.05, help="share of the machines, an hour")
    asked = flags.parse_args()
    threading.stack_size(1 << 18)
    sizes = list(itertools.product(map(int, asked.workers.split(",")), map(int, asked.shard_rows.split(","))))
    results = []
    for workers, shard_rows in sizes:
        results.append(
            simulate(workers, -(-int(asked.rows) // shard_rows), shard_rows, SITES[asked.site], asked.preempted)
        )
        print(*table(results)[-1 if len(results) > 1 else 0 :], sep="\n", flush=True)


if __name__ == "__main__":
    main()
