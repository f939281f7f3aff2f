"""Runs worker processes, shows their progress, restarts them when their engine dies, hands signals on."""

import math
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

import msgspec

from ..engine import vllm as engine
from ..engine.scratch import Scratch
from ..errors import JobError, MachineError, Stopped, TimeUp
from ..host import environment
from ..output import logs, shard
from . import deadline, death
from .death import Death
from .messages import Accused, Ended, Mark, Orders, Report, Started, Totals, Warned, Work
from .prepare import Job
from .progress import Progress
from .worker import AS_ASKED, DEADLY, TIME_IS_UP

TICK = 0.2  # seconds between two looks at signals and at the watchdog
LONGEST_PAUSE = 60.0  # seconds before a restart
GRACE = 30.0  # seconds beyond `drain`: one step may be long, and the disk slow
AWAY = 1.0  # seconds between two turns beyond TICK: we were suspended
START_STALLS = 10  # loading a model may take this many times as long as a step


@dataclass(eq=False)
class WorkerProcess:
    """A running worker, and what it said so far."""

    process: subprocess.Popen[bytes]
    reports: IO[bytes]
    log_begin: int  # bytes of its log that others wrote before
    mark: Mark | None = None
    rest: bytes = b""  # of a report that is not whole yet
    last_report: float = field(default_factory=time.monotonic)
    engine_start: float | None = None
    in_engine: set[str] = field(default_factory=set)
    responses: int = 0
    totals: Totals = field(default_factory=Totals)
    running: int = 0
    waiting: int = 0

    @classmethod
    def start(cls, job: Job, own: dict[str, str], log: Path, accused: Accused, until: float | None) -> "WorkerProcess":
        """Raises Stopped if the machine does not let it. own: what it has in its environment beside ours."""
        read, write = os.pipe()
        ours = environment.of_worker(file.path for file in job.plan.files)
        record, mark = _in_memory(msgspec.json.encode(job.record)), Mark.new()
        marked = Mark(mark)
        try:
            with logs.appending(log) as stream:
                log_begin = stream.tell()
                process = subprocess.Popen(
                    # -P: a file in the user's folder must not stand in for one of our modules.
                    [sys.executable, "-P", "-m", "batchgen.run.worker"],
                    stdin=subprocess.PIPE,
                    stdout=stream,
                    stderr=stream,
                    pass_fds=[write, record, mark],
                    env={**ours, **own, **environment.of_engine(), **_offline(job)},
                    start_new_session=True,  # a Ctrl-C on the terminal is for us; we ask the worker to drain
                )
        except (Stopped, JobError):
            os.close(read)
            raise
        finally:
            for file in (write, record, mark):
                os.close(file)
        worker = cls(process, os.fdopen(read, "rb", buffering=0), log_begin, marked)
        worker.tell(Orders(job.spec, record, write, mark, os.getpid(), accused, until))
        return worker

    def tell(self, what: Orders | Accused) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.write(msgspec.json.encode(what) + b"\n")
            self.process.stdin.flush()

    def listen(self) -> list[Report] | None:
        """What it says now; None once it has gone."""
        data = os.read(self.reports.fileno(), 1 << 20)
        if not data:
            return None
        self.last_report = time.monotonic()
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [msgspec.json.decode(line, type=Report) for line in lines]

    def take(self, work: Work) -> None:
        self.in_engine |= set(work.admitted)
        self.in_engine -= set(work.finished)
        self.responses += len(work.finished)
        self.totals, self.running, self.waiting = work.totals, work.running, work.waiting

    @property
    def row(self) -> int | None:
        """The row that it is making ready, or was as it ended."""
        return self.mark.row if self.mark else None

    def kill(self) -> None:
        """Ends the worker and all that it has started: they are a session of their own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reports.close()
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()


def _offline(job: Job) -> dict[str, str]:
    """A worker finds all of a model on the disk; only its input may be on a hub."""
    on_hub = any(file.path.startswith("hf://") for file in job.plan.files)
    return {} if on_hub else environment.OFFLINE


def _in_memory(content: bytes) -> int:
    """A file that lies nowhere, at its beginning: a pipe would hold up whoever writes more than it takes."""
    file = os.memfd_create("batchgen-job")
    with open(file, "wb", closefd=False) as stream:
        stream.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


@dataclass(eq=False)
class Slot:
    """Room for one worker, again and again: a share of the machine, a log, and so many restarts."""

    name: str  # of its engine, in messages
    environment: dict[str, str]
    log: Path
    worker: WorkerProcess | None = None
    start_at: float | None = 0.0  # when the next worker is due; None if one runs, or none is needed
    engine_start: float = 0.0  # seconds, of all its engine starts
    deaths: int = 0  # in a row, without a response in between
    given_up: str = ""  # why, once it has no restarts left
    past: Totals = field(default_factory=Totals)  # of the workers before

    @property
    def totals(self) -> Totals:
        return self.past + self.worker.totals if self.worker else self.past

    def leave(self, worker: WorkerProcess, lost: bool) -> None:
        """The worker is gone; if it was lost, others find what it had open in the journals, and count it."""
        worker.kill()
        self.worker = None
        self.past += worker.totals
        if lost:
            self.past.open_rows -= worker.totals.open_rows


class Strikes:
    """Which items may have killed engines, of whatever workers. An item gets a strike from each death with it in the
    engine, and loses all when it is finished. The last one counts only if it was alone in the engine.

    A death without it takes no strike away: where several items kill, the second one needs no three deaths again.
    """

    def __init__(self) -> None:
        self._strikes: dict[str, int] = {}
        self._deadly: set[str] = set()

    def death(self, in_engine: set[str], row: int | None = None) -> None:
        """row: that was being made ready, which is then the only one that may have done it."""
        names = in_engine if row is None else {str(row)}
        for name in names:
            self._strikes[name] = self._strikes.get(name, 0) + 1
            if len(names) == 1 and self._strikes[name] >= DEADLY:
                self._deadly.add(name)

    def finished(self, names: list[str]) -> None:
        for name in names:
            self._strikes.pop(name, None)

    @property
    def accused(self) -> Accused:
        suspects = {name for name, strikes in self._strikes.items() if strikes >= DEADLY - 1}
        return Accused(suspects - self._deadly, self._deadly)


class Supervisor:
    """Brings workers to the end of a job, over as many deaths of their engines as the job allows."""

    def __init__(self, job: Job, progress: Progress, environments: list[dict[str, str]], until: float | None = None):
        """environments: one per worker, what it has beside ours; until: when running requests have to end, in seconds
        since the epoch."""
        self.signals: list[int] = []
        self.lost = False  # a worker, of whose open shards only journals tell
        self._job = job
        self._progress = progress
        self._slots = [
            Slot(
                f"worker {number}'s engine" if len(environments) > 1 else "the engine",
                environment,
                logs.of_worker(job.out, number, job.spec.output.shared),
            )
            for number, environment in enumerate(environments, 1)
        ]
        self._strikes = Strikes()
        self._obeyed = 0  # of the signals
        self._until = deadline.monotonic(until) if until else None
        self._stopping = False  # by a signal, or as the disk asks
        # When workers that were asked to drain, or whose time is up, have to be gone.
        self._stop_by = self._until + deadline.MARGIN / 2 if self._until else math.inf
        self._turned = time.monotonic()  # when we last looked around
        self._scratch: Scratch | None = None
        self._stops: list[str] = []  # why workers stopped before the end of the work

    def run(self) -> None:
        """Raises Stopped (a signal, the time, the disk), JobError (vLLM refuses an argument) or MachineError."""
        caught = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            caught.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in caught}
        try:
            self._scratch = Scratch()
            with selectors.DefaultSelector() as self._selector:
                while any(slot.worker or slot.start_at is not None for slot in self._slots):
                    self._turn()
        finally:
            for slot in self._slots:
                if slot.worker:
                    slot.leave(slot.worker, lost=False)
            if self._scratch:
                self._scratch.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stops:
            why = next((why for why in self._stops if why not in (AS_ASKED, TIME_IS_UP)), self._stops[0])
            raise TimeUp(why) if signal.SIGUSR1 in self.signals or TIME_IS_UP in self._stops else Stopped(why)
        given_up = [slot.given_up for slot in self._slots if slot.given_up]
        if given_up and self._work_left():
            raise MachineError(given_up[-1])

    @property
    def totals(self) -> Totals:
        return sum((slot.totals for slot in self._slots), Totals())

    @property
    def rows(self) -> int:
        """Rows that this run finished, as far as they are committed or journaled."""
        totals = self.totals
        return totals.rows + totals.open_rows

    @property
    def engine_start(self) -> float:
        """Seconds that went by while engines started; those of several workers start side by side."""
        return max(slot.engine_start for slot in self._slots)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)

    def _turn(self) -> None:
        """Starts what is due, hears what workers say, looks at signals and at the watchdog."""
        for slot in self._slots:
            if slot.start_at is not None and time.monotonic() >= slot.start_at:
                self._start(slot)
        heard = {key.data for key, _ in self._selector.select(TICK)}
        self._notice_absence()
        while self._obeyed < len(self.signals):
            self._obeyed += 1
            self._obey(self.signals[self._obeyed - 1])
        for slot in self._slots:
            if worker := slot.worker:
                if slot in heard:
                    self._listen(slot, worker)
                elif worker.process.poll() is not None:  # its engine may hold the pipe open still
                    self._gone(slot, worker)
            if worker := slot.worker:
                self._check_for_stall(slot, worker)
        self._show()

    def _notice_absence(self) -> None:
        """If we were suspended, so were most likely the workers: the time away does not count as their silence."""
        now = time.monotonic()
        away, self._turned = now - self._turned - TICK, now
        if away > AWAY:
            for slot in self._slots:
                if slot.worker:
                    slot.worker.last_report = min(now, slot.worker.last_report + away)
            if self._stopping and self._stop_by != math.inf:
                self._stop_by = max(self._stop_by, now + GRACE)

    def _start(self, slot: Slot) -> None:
        assert self._scratch
        slot.start_at = None
        if self._until and time.monotonic() > self._until:
            self._stops.append(TIME_IS_UP)
            return
        try:
            accused = self._strikes.accused
            own = {**self._scratch.environment(), **slot.environment}
            slot.worker = WorkerProcess.start(self._job, own, slot.log, accused, self._until)
        except Stopped as why:
            self._stopped(str(why))
            return
        self._selector.register(slot.worker.reports, selectors.EVENT_READ, slot)

    def _listen(self, slot: Slot, worker: WorkerProcess) -> None:
        reports = worker.listen()
        if reports is None:
            self._gone(slot, worker)
            return
        for report in reports:
            match report:
                case Started(seconds=seconds):
                    worker.engine_start = seconds
                    slot.engine_start += seconds
                case Work() as work:
                    worker.take(work)
                    self._strikes.finished(work.finished)
                case Warned(text=text):
                    self._progress.write(f"batchgen: warning: {text}")
                case Ended() as word:
                    self._gone(slot, worker, word)
                    return  # the thread that waits for the engine's death may have had one too

    def _show(self) -> None:
        workers = [slot.worker for slot in self._slots if slot.worker]
        running, waiting = sum(worker.running for worker in workers), sum(worker.waiting for worker in workers)
        totals = self.totals
        rows = totals.rows + totals.open_rows
        self._progress.show(rows, totals.prompt_tokens, totals.response_tokens, running, waiting)

    # --- stopping

    def _obey(self, number: int) -> None:
        """The first signal asks the workers to drain; Ctrl-C after it is meant seriously."""
        if not self._stopping:
            self._stop(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)
        elif number == signal.SIGINT:
            raise Stopped("stopped at once; run the same command again to go on")

    def _stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        drain = self._job.spec.output.drain
        if number == signal.SIGUSR1 and self._until:  # Slurm says that the time is nearly up: all of it may be used
            drain = max(0.0, self._until - time.monotonic())
        self._stopping = True
        self._stop_by = min(self._stop_by, time.monotonic() + drain + GRACE)
        for slot in self._slots:
            if slot.worker:
                slot.worker.process.send_signal(number)
            elif slot.start_at is not None:
                slot.start_at = None
                self._stops.append(AS_ASKED)
        if any(slot.worker for slot in self._slots):
            self._progress.write(f"batchgen: stopping; what is running gets {drain:.3g} s (Ctrl-C again: stop now)")

    def _stopped(self, why: str) -> None:
        """One worker has stopped: the disk that it cannot write to is that of the others too."""
        self._stops.append(why)
        if not self._stopping:
            self._stop()

    def _check_for_stall(self, slot: Slot, worker: WorkerProcess) -> None:
        now = self._turned  # not later: an absence after that is not noticed yet
        allowed = self._job.spec.output.stall * (START_STALLS if worker.engine_start is None else 1)
        if now > self._stop_by:
            if not self._stopping:
                self._stops.append(TIME_IS_UP)
            why = "stopped; the engine did not drain; run the same command again to go on"
            self._gone(slot, worker, Ended("stopped", why))
        elif now - worker.last_report > allowed:
            what = "token" if worker.row is None else "end of that"
            self._gone(slot, worker, Ended("died", f"no {what} for {allowed:g} s", row=worker.row))

    # --- ends

    def _gone(self, slot: Slot, worker: WorkerProcess, word: Ended | None = None) -> None:
        """A worker has said its last word, or is gone without one. Raises JobError or MachineError if all ends here."""
        self._selector.unregister(worker.reports)
        lost = word is None or word.how in ("died", "bug")
        self.lost |= lost
        slot.leave(worker, lost)
        if word is None:
            word = death.of_process(worker.process.returncode)
            word.row = worker.row
        if word.how == "refused":
            raise JobError(word.text)
        if word.how == "bug":
            why = f"a bug in batchgen: {word.text}; what had finished is kept; the whole story is in {slot.log}"
            raise MachineError(why)
        if word.how == "stopped":
            self._stopped(word.text)
        elif word.how == "time_up":  # the others know best how long their own requests take
            self._stops.append(word.text)
        elif word.how != "done":
            cause = death.explain(word, slot.log, worker.log_begin, not engine.needs_gpu())
            self._after_death(slot, worker, cause, word.row)

    def _after_death(self, slot: Slot, worker: WorkerProcess, why: Death, row: int | None = None) -> None:
        """Decides whether and how the slot goes on. Raises MachineError if it does not, and was the last."""
        if self._stopping:
            self._stops.append(AS_ASKED)
            return
        self._strikes.death(worker.in_engine, row)
        what, hint = slot.name, ""
        if row is not None:  # the engine was well
            what, hint = f"the worker that made row {row} ready", f"; --skip {row} takes the row out"
        for other in self._slots:
            if other.worker:
                other.worker.tell(self._strikes.accused)
        slot.deaths = 1 if worker.responses else slot.deaths + 1
        hint = death.OUT_OF_MEMORY if why.signal == signal.SIGKILL and slot.deaths > 1 and not hint else hint
        # A wrong setup never gets better, nor does a build for another processor; a start that was killed may.
        if not slot.engine_start and (not why.signal or why.is_crash):
            self._give_up(slot, f"{what} failed: {why.text}{hint}")
        elif slot.deaths > self._job.spec.output.max_restarts:
            self._give_up(slot, f"{what} died {slot.deaths} times in a row: {why.text}{hint}")
        else:
            pause = min(2.0 ** (slot.deaths - 1), LONGEST_PAUSE)
            slot.start_at = time.monotonic() + pause
            self._progress.write(f"batchgen: warning: {what} died ({why.text}); it starts again in {pause:g} s{hint}")

    def _give_up(self, slot: Slot, why: str) -> None:
        slot.given_up = f"{why}; the whole story is in {slot.log}"
        others = [other for other in self._slots if not other.given_up]
        if not others:
            raise MachineError(slot.given_up)
        self._progress.write(f"batchgen: warning: {slot.given_up}; the other workers go on")
        if self._work_left():
            for other in others:
                if not other.worker and other.start_at is None:  # it had left the rest of the work to this one
                    other.start_at = time.monotonic()

    def _work_left(self) -> bool:
        return len(shard.finished(self._job.out, self._job.plan)) < len(self._job.plan.shards)
