"""Runs a worker process, shows its progress, restarts it when its engine dies, hands signals on."""

import math
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

import msgspec

from . import deadline
from .errors import JobError, MachineError, Stopped, TimeUp, on_disk
from .prepare import Job
from .progress import Progress
from .report import Ended, Orders, Report, Started, Totals, Warned, Work
from .worker import DEADLY

TICK = 0.2  # seconds between two looks at signals and at the watchdog
LONGEST_PAUSE = 60.0  # seconds before a restart
GRACE = 30.0  # seconds beyond `drain`: one step may be long, and the disk slow
START_STALLS = 10  # loading a model may take this many times as long as a step


@dataclass
class WorkerProcess:
    """A running worker, and what it said so far."""

    process: subprocess.Popen[bytes]
    reports: IO[bytes]
    rest: bytes = b""  # of a report that is not whole yet
    last_report: float = field(default_factory=time.monotonic)
    engine_start: float | None = None
    in_engine: set[str] = field(default_factory=set)
    responses: int = 0
    totals: Totals = field(default_factory=Totals)
    running: int = 0
    waiting: int = 0
    last_word: Ended | None = None

    def kill(self) -> None:
        """Ends the worker and all that it has started: they are a session of their own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reports.close()


class Supervisor:
    """Brings one worker to the end of a job, over as many deaths of its engine as the job allows."""

    def __init__(self, job: Job, progress: Progress, until: float | None = None):
        """until: when running requests have to end, in seconds since the epoch."""
        self.signals: list[int] = []
        self.totals = Totals()
        self.engine_start = 0.0
        self._job = job
        self._progress = progress
        self._strikes: dict[str, int] = {}  # item -> deaths in a row with it in the engine
        self._deadly: list[str] = []
        self._deaths = 0  # in a row, without a response in between
        self._until = until
        # When a worker that was asked to drain, or whose time is up, has to be gone.
        self._stop_by = deadline.monotonic(until) + deadline.MARGIN / 2 if until else math.inf

    def run(self) -> None:
        """Raises Stopped (a signal, the time, the disk), JobError (vLLM refuses an argument) or MachineError."""
        caught = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = {number: signal.signal(number, self._on_signal) for number in caught}
        try:
            while not self._run_worker():
                pass
        except Stopped as why:
            if signal.SIGUSR1 in self.signals:
                raise TimeUp(str(why)) from why
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def rows(self) -> int:
        """Rows that this run finished, as far as they are committed or journaled."""
        return self.totals.rows + self.totals.open_rows

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)

    def _run_worker(self) -> bool:
        """One worker from start to end; True if the work is done, False if another one has to go on."""
        if self._until and time.time() > self._until:
            raise TimeUp("there is no time left; run the same command again to go on")
        worker = self._start()
        before = self.totals
        try:
            self._watch(worker, before)
        finally:
            worker.kill()
        word = worker.last_word or Ended("died", _exit_of(worker.process))
        if word.how == "stopped":
            raise Stopped(word.text)
        if word.how == "time_up":
            raise TimeUp(word.text)
        if word.how == "refused":
            raise JobError(word.text)
        if word.how == "died":
            self.totals.open_rows = 0  # the next worker finds them in the journals
            self._after_death(worker, word.text)
        return word.how == "done"

    def _start(self) -> WorkerProcess:
        read, write = os.pipe()
        suspects = [name for name, strikes in self._strikes.items() if strikes == DEADLY - 1]
        orders = Orders(self._job.spec, write, os.getpid(), suspects, self._deadly, self._until)
        with on_disk(self._job.out), (self._job.out / "_state" / "engine.log").open("ab") as log:
            process = subprocess.Popen(
                # -P: a file in the user's folder must not stand in for one of our modules.
                [sys.executable, "-P", "-m", "batchgen.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[write],
                start_new_session=True,  # a Ctrl-C on the terminal is for us; we ask the worker to drain
            )
        os.close(write)
        assert process.stdin
        with process.stdin as stdin, suppress(BrokenPipeError):
            stdin.write(msgspec.json.encode(orders))
        return WorkerProcess(process, os.fdopen(read, "rb", buffering=0))

    def _watch(self, worker: WorkerProcess, before: Totals) -> None:
        """Follows a worker to its end, adding what it does to what was done before."""
        handed_on = 0
        with selectors.DefaultSelector() as selector:
            selector.register(worker.reports, selectors.EVENT_READ)
            while worker.last_word is None:
                if selector.select(TICK):
                    if not self._listen(worker):
                        return
                elif worker.process.poll() is not None:
                    return  # its engine may hold the pipe open still
                self.totals = _sum(before, worker.totals)
                for number in self.signals[handed_on:]:
                    handed_on += 1
                    self._hand_on(worker, number, first=handed_on == 1)
                self._check_for_stall(worker)
                totals = self.totals
                self._progress.show(
                    self.rows, totals.prompt_tokens, totals.response_tokens, worker.running, worker.waiting
                )

    def _listen(self, worker: WorkerProcess) -> bool:
        """Takes what the worker said. False once it has gone."""
        data = os.read(worker.reports.fileno(), 1 << 20)
        *lines, worker.rest = (worker.rest + data).split(b"\n")
        for line in lines:
            worker.last_report = time.monotonic()
            match msgspec.json.decode(line, type=Report):
                case Started(seconds=seconds):
                    worker.engine_start = seconds
                    self.engine_start += seconds
                case Work() as work:
                    worker.in_engine |= set(work.admitted)
                    worker.in_engine -= set(work.finished)
                    worker.responses += len(work.finished)
                    worker.totals, worker.running, worker.waiting = work.totals, work.running, work.waiting
                case Warned(text=text):
                    self._progress.write(f"batchgen: warning: {text}")
                case Ended() as word:
                    worker.last_word = word
        return bool(data)

    def _hand_on(self, worker: WorkerProcess, number: int, first: bool) -> None:
        """The first signal asks the worker to drain; Ctrl-C after it is meant seriously."""
        if first:
            drain = self._job.spec.output.drain
            if number == signal.SIGUSR1 and self._until:  # Slurm says that the time is nearly up: all of it may be used
                drain = max(0.0, self._until - time.time())
            self._progress.write(f"batchgen: stopping; what is running gets {drain:.3g} s (Ctrl-C again: stop now)")
            worker.process.send_signal(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)
            self._stop_by = min(self._stop_by, time.monotonic() + drain + GRACE)
        elif number == signal.SIGINT:
            raise Stopped("stopped at once; run the same command again to go on")

    def _check_for_stall(self, worker: WorkerProcess) -> None:
        if time.monotonic() > self._stop_by:
            how = "stopped" if self.signals else "time_up"
            worker.last_word = Ended(how, "stopped; the engine did not drain; run the same command again to go on")
        allowed = self._job.spec.output.stall * (START_STALLS if worker.engine_start is None else 1)
        if time.monotonic() - worker.last_report > allowed:
            worker.last_word = Ended("died", f"no token for {allowed:g} s")

    def _after_death(self, worker: WorkerProcess, reason: str) -> None:
        """Decides whether and how to go on. Raises MachineError or Stopped."""
        log = self._job.out / "_state" / "engine.log"
        if self.signals:
            raise Stopped("stopped as asked; run the same command again to go on")
        if not self.engine_start:
            raise MachineError(f"the engine failed: {reason}; the whole story is in {log}")
        if worker.engine_start is not None:
            self._strikes = {name: self._strikes.get(name, 0) + 1 for name in worker.in_engine}
            self._deadly += [name for name, strikes in self._strikes.items() if strikes >= DEADLY]
        self._deaths = 1 if worker.responses else self._deaths + 1
        if self._deaths > self._job.spec.output.max_restarts:
            raise MachineError(f"the engine died {self._deaths} times in a row: {reason}; the whole story is in {log}")
        pause = min(2.0 ** (self._deaths - 1), LONGEST_PAUSE)
        self._progress.write(f"batchgen: warning: the engine died ({reason}); it starts again in {pause:g} s")
        end = time.monotonic() + pause
        while time.monotonic() < end and not self.signals:
            time.sleep(TICK)


def _sum(before: Totals, now: Totals) -> Totals:
    total = Totals(
        rows=before.rows + now.rows,
        open_rows=now.open_rows,
        rejects=dict(before.rejects),
        prompt_tokens=before.prompt_tokens + now.prompt_tokens,
        response_tokens=before.response_tokens + now.response_tokens,
        kept=before.kept + now.kept,
    )
    total.add_rejects(now.rejects)
    return total


def _exit_of(process: subprocess.Popen[bytes]) -> str:
    if process.returncode >= 0:
        return f"exit code {process.returncode}"
    try:
        return f"killed by {signal.Signals(-process.returncode).name}"
    except ValueError:
        return f"killed by signal {-process.returncode}"
