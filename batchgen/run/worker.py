"""A worker: claim shards, read their rows, keep the engine full, journal every response, commit every shard.

It is a process of its own with one engine, started by the supervisor, so that an engine may die without the run.
"""

import dataclasses
import faulthandler
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

import msgspec

from ..engine import scratch
from ..engine.vllm import Engine, Response, set_up_process
from ..errors import EngineDied, JobError, MissingInput, Reject, Stopped, TimeUp, in_one_line, on_disk
from ..host import console
from ..host.lifeline import die_with_parent
from ..input.conversation import Row
from ..input.source import Shard
from ..output import folder, journal, shard
from ..output.claims import Claims
from ..output.folder import JobRecord
from ..output.heartbeat import Activity, Pace
from ..output.journal import Entry, Journal
from ..output.opening import Fence
from ..task import columns, item
from ..task.item import Item
from .messages import Accused, Ended, Mark, Orders, Report, Started, Totals, Warned, Work
from .prepare import Job, prepare

# So that a request is there the moment another one ends: behind those that run, as many wait. Of long prompts fewer do:
# their ids are held three times, here, in vLLM's front end and in its core.
WINDOW_PER_SEQUENCE = 2
WINDOW_TOKENS = 1 << 20
SORTED = 8192  # requests of the last shard that are held at a time, to be put in order
REPORT_EVERY = 0.5  # seconds, when there is nothing new
STEPS_PER_TOKEN = 4  # that a request may need at most, were it deep in a pipeline
DEADLY = 3  # deaths of engines with the same item in them, alone in the last, after which the item is rejected
KILLER = f"the engine died {DEADLY} times with this item in it, the last time with nothing else"
ENDED = f"{DEADLY} workers ended, or hung, while they made this row ready"
AS_ASKED = "stopped as asked; run the same command again to go on"
TIME_IS_UP = "stopped, as the time is nearly up; run the same command again to go on"
STOPPING = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP}
LATEST = 500  # finished items, the slowest of which says how long the next one may take


@dataclass(eq=False)
class OpenShard:
    """A shard that is being read and generated. Every row of it ends in answers or in a reject."""

    shard: Shard
    journal: Journal
    kept: dict[tuple[int, int], Entry]
    finished: list[tuple[Item, Entry]] = field(default_factory=list)
    rejects: dict[int, dict[str, Any]] = field(default_factory=dict)
    samples_left: dict[int, int] = field(default_factory=dict)
    rows_done: int = 0
    in_engine: int = 0
    all_read: bool = False

    @property
    def complete(self) -> bool:
        return self.all_read and not self.in_engine


@dataclass(slots=True)
class Request:
    """An item with the row and the shard it came from, and when it went into the engine."""

    item: Item
    row: Row
    shard: OpenShard
    admitted: float = 0.0


class Worker:
    """Generates shards of one job with one engine."""

    def __init__(
        self,
        job: Job,
        engine: Engine,
        claims: Claims,
        report: Callable[[Report], None] = lambda report: None,
        window: int | None = None,
        accused: Accused | None = None,
        until: float | None = None,
        mark: Mark | None = None,
    ):
        """window: most requests in the engine, running and waiting; accused, until: see Orders; accused may change;
        mark: of the row that is being made ready."""
        self._mark = mark or Mark()
        self.totals = Totals()
        self._job = job
        self._engine = engine
        self._claims = claims
        self._report = report
        self._window = window or WINDOW_PER_SEQUENCE * engine.max_num_seqs
        # Requests are made ready in batches, twice as fast as one by one between the engine's steps.
        self._refill_at = min(self._window - 1, (self._window + engine.max_num_seqs) // 2)
        self._accused = accused or Accused()
        self._open: list[OpenShard] = []
        self._in_engine: dict[str, Request] = {}
        self._prompt_tokens = 0  # in the engine
        self._next: Request | None = None
        self._exhausted = False
        self._admitted: list[str] = []
        self._finished: list[str] = []
        self._reported = 0.0
        self._empty_steps = 0  # in a row that finished no request
        self._last_response = time.monotonic()
        self._stop_at: float | None = None
        self._until = until
        self._out_of_time = False
        self._took: deque[float] = deque(maxlen=LATEST)  # seconds from admission to finish
        self._pace = Pace(0, 0, 0)
        self._fence = Fence(job.out, job.record.fingerprint)
        self._shape = job.shape
        self._reader = item.reader(job, running=True)
        self._facts = {
            "versions": job.record.versions,
            "model": {"name": job.model.name, "revision": job.model.revision, "digests": job.record.results["model"]},
            "dtype": engine.dtype,
            "device": engine.device,
        }

    def stop(self, use_all_time: bool = False) -> None:
        """From now on no request is admitted; those in the engine have `drain` seconds, or all that is left of the
        run's time, if that is known. Safe in a signal handler."""
        if self._stop_at is None:
            drained = time.monotonic() + self._job.spec.output.drain
            self._stop_at = self._until if use_all_time and self._until is not None else drained

    def run(self, shards: Iterable[Shard]) -> None:
        """Generates those of the shards that nobody else does. Raises Stopped, JobError or EngineDied; anything else is
        a bug, and all that has finished is in the journal then.

        The engine stays full across the shards' boundaries: the next one is claimed and read while the last drains.
        """
        try:
            self._run(shards)
        except Exception:
            with suppress(Exception):
                self._keep(at_once=True)
            raise

    def _run(self, shards: Iterable[Shard]) -> None:
        with on_disk(self._job.out):
            self._claims.tell(self.activity)
        requests = self._requests(shards)
        while True:
            more = self._fill(requests)
            self._say_what_is_in_the_engine()
            if self._in_engine:
                self._step()
            elif self._stop_at is not None or not more:
                break
            else:
                time.sleep(REPORT_EVERY)  # all that is left is held by others, who may yet die
            self._keep()  # before the commits, which take their time
            for opened in list(self._open):
                self._commit_if_complete(opened)
            if self._stop_at is not None and time.monotonic() > self._stop_at:
                break
        self._leave()
        if self._stop_at is not None and (more or self._open):
            raise TimeUp(TIME_IS_UP) if self._out_of_time else Stopped(AS_ASKED)

    # --- rows in

    def _requests(self, shards: Iterable[Shard]) -> Iterator[Request | None]:
        """What is to be generated, shard by shard; None where there is nothing for now."""
        shards = list(shards)
        for planned in self._claimed(shards):
            if planned is None:
                yield None
                continue
            opened = self._open_shard(planned)
            requests = self._read(opened)
            yield from _longest_first(requests) if planned is shards[-1] else requests
            opened.all_read = True
            self._commit_if_complete(opened)

    def _read(self, opened: OpenShard) -> Iterator[Request]:
        """What of a shard is to be generated, in order. Bad rows are rejected on the way, journaled items answered."""
        job = self._job
        for row, items in item.make_all(self._marked(opened.shard), job):
            self._mark.clear()
            if isinstance(items, Reject):
                self._reject(opened, row, item.best_id(row, job), items)
                continue
            opened.samples_left[row.number] = len(items)
            for each in items:
                request = Request(each, row, opened)
                if entry := opened.kept.pop((each.row, each.sample), None):
                    self.totals.kept += 1
                    self._answer(request, entry)
                else:
                    yield request

    def _marked(self, planned: Shard) -> Iterator[Row]:
        """The rows of a shard but for those that ended workers, each marked for as long as it is in the making."""
        self._mark.set(planned.row_numbers[0])
        for row in self._reader.read(planned):
            self._say_what_is_in_the_engine()  # and that we are alive: rows that come to nothing may take long together
            self._mark.set(row.number)
            deadly = str(row.number) in self._accused.deadly
            yield dataclasses.replace(row, fault=Reject("engine_error", ENDED)) if deadly else row
            self._mark.set(row.number + 1)
        self._mark.clear()

    def _claimed(self, left: list[Shard]) -> Iterator[Shard | None]:
        """Shards to generate, as they can be claimed; None while others hold all the rest."""
        idle_since: float | None = None
        while left:
            held = []
            for planned in left:
                if self._is_finished(planned):
                    continue
                with on_disk(self._job.out):
                    taken = self._claims.take(planned.index)
                if not taken:
                    held.append(planned)
                elif self._is_finished(planned):
                    self._claims.release(planned.index)
                else:
                    idle_since = None
                    yield planned
            left = held
            idle_since = idle_since or time.monotonic()
            with on_disk(self._job.out):
                if held and self._claims.at_work([planned.index for planned in held], idle_since):
                    return
            if held:
                yield None

    def _is_finished(self, planned: Shard) -> bool:
        with on_disk(self._job.out):
            return folder.shard_path(self._job.out, planned).exists()

    def _open_shard(self, planned: Shard) -> OpenShard:
        """Opens a shard with what earlier journals hold of it; entries of a damaged one are journaled again."""
        self._fence.check()
        out, fingerprint = self._job.out, self._job.fingerprint_of(planned)
        opened = OpenShard(planned, Journal(journal.path_of(out, planned.index, self._claims.worker), fingerprint), {})
        with on_disk(out):
            for path in journal.paths_of(out, planned.index):
                entries, damage = journal.read(path, fingerprint)
                opened.kept |= {(entry.row, entry.sample): entry for entry in entries}
                if damage:
                    for entry in entries:
                        opened.journal.append(entry)
                    opened.journal.flush()
                    opened.journal.sync(at_once=True)
                    aside = folder.quarantine(out, path)
                    self._report(Warned(f"{path}: {damage}; moved to {aside}"))
        self._open.append(opened)
        return opened

    # --- the engine

    def _fill(self, requests: Iterator[Request | None]) -> bool:
        """Admits what fits into the window and the time. False once there is nothing more to come."""
        if self._stop_at is None and self._time_is_short():
            self._out_of_time = True
            self.stop(use_all_time=True)
        if self._exhausted or self._stop_at is not None:
            return not self._exhausted
        if len(self._in_engine) > self._refill_at:
            return True
        while self._has_room():
            if self._next is None:
                try:
                    self._next = next(requests)
                except StopIteration:
                    self._exhausted = True
                    return False
            if self._next is None or not self._may_admit(self._next):
                return True
            self._admit(self._next)
            self._next = None
        return True

    def _has_room(self) -> bool:
        held = len(self._in_engine)
        return held < self._window and (held < self._engine.max_num_seqs or self._prompt_tokens < WINDOW_TOKENS)

    def _time_is_short(self) -> bool:
        """Whether a request that is admitted now may not finish in time."""
        return self._until is not None and time.monotonic() + max(self._took, default=0.0) > self._until

    def _may_admit(self, request: Request) -> bool:
        """A suspect runs alone, so that its next death takes nobody with it and proves it guilty."""
        suspects = self._accused.suspects
        if request.item.name in suspects:
            return not self._in_engine
        return not suspects or suspects.isdisjoint(self._in_engine)

    def _admit(self, request: Request) -> None:
        made = request.item
        if request.row.number in request.shard.rejects:
            return  # one sample of its row failed, so none is needed
        if made.name in self._accused.deadly:
            self._reject(request.shard, request.row, made.id, Reject("engine_error", KILLER))
            return
        request.admitted = time.monotonic()
        self._admitted.append(made.name)
        try:
            with end_of_engine():
                self._engine.add(made.name, made.prompt_token_ids, made.written, made.seed)
        except Reject as why:
            self._finished.append(made.name)
            self._reject(request.shard, request.row, made.id, why)
            return
        except EngineDied:
            self._say_what_is_in_the_engine()  # with the item that it died of
            raise
        request.shard.in_engine += 1
        self._in_engine[made.name] = request
        self._prompt_tokens += len(made.prompt_token_ids)

    def _step(self) -> None:
        """One step of the engine. Raises EngineDied, also if steps return nothing for ever; one that does not return is
        the supervisor's to notice.

        Every step brings the oldest request on by a token, of its prompt or of its response, so that some request ends
        within as many steps as the context has tokens.
        """
        with end_of_engine():
            responses = self._engine.step()
        for response in responses:
            self._finish(response)
        if responses:
            self._empty_steps, self._last_response = 0, time.monotonic()
            return
        self._empty_steps += 1
        silent = time.monotonic() - self._last_response > self._job.spec.output.stall
        if silent and self._empty_steps > STEPS_PER_TOKEN * self._job.context:
            raise EngineDied(f"no response in {self._empty_steps:,} steps")

    def _finish(self, response: Response) -> None:
        request = self._in_engine.pop(response.request_id)
        request.shard.in_engine -= 1
        self._finished.append(response.request_id)
        self._took.append(time.monotonic() - request.admitted)
        made = request.item
        self._prompt_tokens -= len(made.prompt_token_ids)
        if response.finish_reason not in ("stop", "length"):
            why = Reject("engine_error", f"the engine ended the request with: {response.finish_reason}")
            self._reject(request.shard, request.row, made.id, why)
            return
        entry = Entry(
            made.row, made.sample, response.token_ids, response.finish_reason, response.logprobs, response.text_end
        )
        request.shard.journal.append(entry)
        self.totals.responses += 1
        self.totals.prompt_tokens += len(made.prompt_token_ids)
        self.totals.response_tokens += len(response.token_ids)
        self._answer(request, entry)

    # --- responses out

    def _answer(self, request: Request, entry: Entry) -> None:
        opened, row = request.shard, request.item.row
        opened.finished.append((request.item, entry))
        opened.samples_left[row] -= 1
        if not opened.samples_left[row]:
            del opened.samples_left[row]
            self._row_done(opened)

    def _reject(self, opened: OpenShard, row: Row, id: str, why: Reject) -> None:
        """Rejects a row; of a row with several samples the first failure counts."""
        if row.number not in opened.rejects:
            opened.rejects[row.number] = shard.reject_line(row, id, why)
            self._row_done(opened)

    def _row_done(self, opened: OpenShard) -> None:
        opened.rows_done += 1
        self.totals.open_rows += 1

    def _commit_if_complete(self, opened: OpenShard) -> None:
        if not opened.complete:
            return
        # A row of which one sample failed is rejected as a whole.
        good = [(made, entry) for made, entry in opened.finished if made.row not in opened.rejects]
        answers = [columns.answer(made, entry, self._job) for made, entry in good]
        rejects = list(opened.rejects.values())
        self._fence.check()
        with on_disk(self._job.out):
            if not self._is_finished(opened.shard):  # a worker that took this one for dead may have been faster
                facts = {"fingerprint": self._job.fingerprint_of(opened.shard), **self._facts}
                try:
                    shard.commit(self._job.out, opened.shard, answers, rejects, self._shape, facts)
                except shard.DOES_NOT_FIT:
                    if not self._reject_unwritable(opened):
                        raise
                    self._commit_if_complete(opened)
                    return
            opened.journal.close()
            journal.remove(self._job.out, opened.shard.index)
            self._claims.release(opened.shard.index)
        self._open.remove(opened)
        counts = shard.counted(len(opened.shard.row_numbers), answers, rejects)
        self.totals += Totals(rows=counts.rows, rejects=counts.rejects, open_rows=-opened.rows_done)
        with on_disk(self._job.out):
            self._claims.beat()  # or the shard's rows would count twice: as committed ones, and as open ones

    def _reject_unwritable(self, opened: OpenShard) -> bool:
        """Rejects the rows whose answers no shard can hold; False if there are none."""
        before = len(opened.rejects)
        for made, entry in opened.finished:
            try:
                shard.as_parquet([columns.answer(made, entry, self._job)], self._shape, {})
            except shard.DOES_NOT_FIT as error:
                row = Row(made.row, {})
                self._reject(opened, row, made.id, Reject("engine_error", f"cannot be written: {in_one_line(error)}"))
        return len(opened.rejects) > before

    def _keep(self, at_once: bool = False) -> None:
        """Journals what has finished: with the system at once, on the disk within a second."""
        with on_disk(self._job.out):
            for opened in self._open:
                opened.journal.flush()
            for opened in self._open:
                opened.journal.sync(at_once)

    def _leave(self) -> None:
        self._keep(at_once=True)
        self._reported = 0.0  # the last word tells all that was done
        self._say_what_is_in_the_engine()
        with on_disk(self._job.out):
            for opened in self._open:
                opened.journal.close()
            self._claims.close()

    def _say_what_is_in_the_engine(self) -> None:
        """Before every step the supervisor knows which items would go down with the engine."""
        now = time.monotonic()
        if not (self._admitted or self._finished) and now - self._reported < REPORT_EVERY:
            return
        self._report(Work(self._admitted, self._finished, self.totals, *self._running_and_waiting()))
        self._admitted, self._finished, self._reported = [], [], now

    def _running_and_waiting(self) -> tuple[int, int]:
        running = min(len(self._in_engine), self._engine.max_num_seqs)
        return running, len(self._in_engine) - running

    def activity(self) -> Activity:
        """For the beat, on a thread of its own."""
        totals = self.totals
        rows = totals.rows + totals.open_rows
        generated = rows - totals.kept / self._job.spec.sampling.n  # those from journals say nothing of the pace
        pace = self._pace.rates(generated, totals.prompt_tokens, totals.response_tokens)
        running, waiting = self._running_and_waiting()
        return Activity(
            state="running" if self._stop_at is None else "draining",
            rows=rows,
            open_rows=totals.open_rows,
            prompt_tokens=totals.prompt_tokens,
            response_tokens=totals.response_tokens,
            rows_per_second=pace[0],
            prompt_tokens_per_second=pace[1],
            response_tokens_per_second=pace[2],
            running=running,
            waiting=waiting,
        )


@contextmanager
def end_of_engine() -> Iterator[None]:
    """Around calls of the engine: what vLLM raises of itself is its end. All other exceptions are ours, and no new
    engine would mend them."""
    try:
        yield
    except (Reject, JobError):
        raise
    except Exception as error:
        raise EngineDied(in_one_line(error)) from error


def _longest_first(requests: Iterator[Request]) -> Iterator[Request]:
    """So that the last ones to run are short, and the engine does not end with one long response in it. The length of a
    response is not known before, but grows with its limit and with its prompt."""
    while held := list(itertools.islice(requests, SORTED)):
        held.sort(
            key=lambda request: (request.item.sampling.max_tokens, len(request.item.prompt_token_ids)), reverse=True
        )
        yield from held


# --- the process


def main() -> None:
    harden()
    os.register_at_fork(after_in_child=_harden_child)
    # Not sys.stdin: a thread that reads holds its lock, and a process that is forked meanwhile waits for it for ever.
    told = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    orders = msgspec.json.decode(told.readline(), type=Orders)
    if os.getppid() != orders.supervisor:
        return  # it is gone already
    threading.Thread(target=_listen, args=(told, orders.accused), daemon=True).start()
    lock = threading.RLock()  # the thread that waits for the engine's death reports too

    def report(what: Report) -> None:
        line = memoryview(msgspec.json.encode(what) + b"\n")
        with lock:
            while line:
                line = line[os.write(orders.report_to, line) :]

    try:
        _work(orders, report)
        report(Ended("done", ""))
    except TimeUp as why:
        report(Ended("time_up", str(why)))
    except Stopped as why:
        report(Ended("stopped", str(why)))
    except MissingInput as error:  # it was there when the run began
        report(Ended("stopped", f"{error}; mend that and run the same command again"))
    except JobError as error:
        report(Ended("refused", str(error)))
    except EngineDied as error:  # the log has the traceback
        traceback.print_exc()
        _end(report, "died", str(error))
    except Exception as error:
        traceback.print_exc()
        where = " ".join(getattr(error, "__notes__", []))
        _end(report, "bug", " ".join(filter(None, [f"{type(error).__name__}: {in_one_line(error)}", where])))


def _work(orders: Orders, report: Callable[[Report], None]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: _end(report, "stopped", AS_ASKED))
    signal.signal(signal.SIGUSR1, lambda *_: _end(report, "stopped", AS_ASKED))
    begin = time.monotonic()
    with open(orders.job_from, "rb") as opened:
        record = msgspec.json.decode(opened.read(), type=JobRecord)
    job = prepare(orders.spec, begun=record)
    job.checker.start()  # it loads while the engine does
    with on_disk(job.out):
        claims = Claims(job.out, job.spec.output.stale)
    with end_of_engine():
        engine = Engine(job.model, job.spec.engine, job.context)
    engine.when_process_dies(lambda reason: _end(report, "died", reason))
    report(Started(time.monotonic() - begin))
    mark = Mark(orders.mark)
    worker = Worker(job, engine, claims, report, accused=orders.accused, until=orders.until, mark=mark)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    signal.signal(signal.SIGUSR1, lambda *_: worker.stop(use_all_time=True))
    worker.run(job.plan.shards)


def _listen(told: IO[bytes], accused: Accused) -> None:
    """Takes down what other workers' engines died of: their shards may come to this one."""
    for line in told:
        now = msgspec.json.decode(line, type=Accused)
        accused.suspects, accused.deadly = now.suspects, now.deadly


def _end(report: Callable[[Report], None], how: str, text: str) -> NoReturn:
    """Not by the way of an exception, which vLLM may catch, nor of atexit handlers: a broken engine's may wait for
    ever. The supervisor ends what this process has started."""
    report(Ended(how, text))
    sys.stderr.flush()
    os._exit(1)


def harden() -> None:
    """Makes this process, one of a worker's, fit for what may befall it."""
    die_with_parent()
    console.set_up()
    sys.stdout = console.Console(sys.stdout)  # type: ignore[assignment]
    faulthandler.enable(sys.__stderr__ or 2)  # a crash names its signal in the log
    scratch.adopt()
    for number in (signal.SIGINT, signal.SIGHUP):  # of a terminal: the supervisor's to obey
        signal.signal(number, signal.SIG_IGN)


def _harden_child() -> None:
    """Slurm, systemd and `kill` may signal every process of a run. Its worker drains then, and needs its engine for
    that: vLLM's processes, whose own handlers drop what is running, hear only each other. They end with the worker."""
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    """An engine that fails ends its processes by SIGTERM and waits for them."""
    while signal.sigwaitinfo(STOPPING).si_pid != parent:
        continue
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # a process that vLLM spawned from ours
    harden()
    os.register_at_fork(after_in_child=_harden_child)
    _harden_child()
    set_up_process()
