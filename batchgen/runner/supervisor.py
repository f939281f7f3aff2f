"""Runs worker processes: shows their progress, restarts those whose engine died, passes signals on."""

import math
import selectors
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import msgspec

from ..engine import choice
from ..engine.installed import needs_gpu
from ..engine.scratch import Scratch
from ..errors import JobError, MachineError, Stopped, Stopping, warn
from ..host import caller, events, signals
from ..host.caller import Seen, Watching
from ..host.events import Level
from ..output import logs, shard
from . import deadline, death
from .death import Death
from .engine_log import EngineLog
from .messages import Committed, Exit, ExitKind, FirstReject, Started, Totals, Warn, Work
from .other_engine import OtherEngine
from .poison import PoisonDetector
from .prepare import Job
from .worker_process import WorkerProcess

TICK = 0.2  # seconds between two looks at signals and at the watchdog
MAX_BACKOFF = 60.0  # seconds before a restart
GRACE = 30.0  # seconds beyond `drain` before workers are killed: one step may be long, and the disk slow
AWAY = 1.0  # seconds by which a turn may be late before we take it that the machine was suspended
START_STALLS = 10  # a start may be silent for this many times as long as a running engine: it loads a model


@dataclass(eq=False)
class Slot:
    """A share of the machine for one worker at a time.

    name: of its engine, in messages
    variables: of its workers' environment, beside ours
    log: of its workers' stdout and stderr
    worker: the one that runs
    start_at: when the next one is to be started, by time.monotonic; None: not at all
    engine_start: seconds, of all engine starts
    deaths: in a row, without a response in between
    failure: why no worker is started here any more; empty while that is not so
    past: totals of workers that have ended
    told: how far its log was passed on to the user
    kept: where its log can be read once this run is over
    """

    name: str
    variables: dict[str, str]
    log: Path
    worker: WorkerProcess | None = None
    start_at: float | None = 0.0
    engine_start: float = 0.0
    deaths: int = 0
    failure: str = ""
    past: Totals = field(default_factory=Totals)
    told: EngineLog | None = None
    kept: str = ""

    @property
    def totals(self) -> Totals:
        return self.past + self.worker.totals if self.worker else self.past

    def remove(self, worker: WorkerProcess, lost: bool) -> None:
        """Ends the worker. lost: others will find what it had open in the journals, and count it."""
        worker.kill()
        self.worker = None
        self.past += worker.totals
        if lost:
            self.past.open_rows -= worker.totals.open_rows
            self.past.open_rejects -= worker.totals.open_rejects


class Supervisor:
    """Brings a job to its end, over as many deaths of its engines as the job allows."""

    def __init__(self, job: Job, progress: Watching, environments: list[dict[str, str]], until: float | None = None):
        """environments: one per worker, what it has beside ours; until: when running requests have to end, in seconds
        since the epoch."""
        self.signals: list[int] = []  # all that came
        self.lost = False  # whether a worker ended without a word: what it had open is known from journals alone
        self._job = job
        self._progress = progress
        self._slots = _slots(job, environments)
        self._poison = PoisonDetector()
        self._has_rejects = False  # as a worker said
        self._warned: set[str] = set()  # what workers said: it is printed once, however many of them say it
        self._scratch: Scratch | None = None
        self._until = deadline.monotonic(until) if until else None
        self._turned = time.monotonic()  # when the current turn began
        self._stopping = Stopping.NO  # why workers were asked to drain
        self._stop_by = self._until + deadline.MARGIN / 2 if self._until else math.inf  # when they have to be gone
        self._obeyed = 0  # how many of the signals have been handled
        self._stopped: list[Stopped] = []  # of workers that left some of the work undone, or were not started for it

    def run(self) -> None:
        """Raises Stopped, JobError (vLLM refuses an argument) or MachineError."""
        with self._catching_signals():
            try:
                self._scratch = Scratch()
                self._other_engine = OtherEngine(self._job)
                if now := choice.known_sampler():
                    self._warn(self._other_engine.of_noise(now))
                with selectors.DefaultSelector() as self._selector:
                    while any(slot.worker or slot.start_at is not None for slot in self._slots):
                        try:
                            self._turn()
                        except KeyboardInterrupt:  # where signals are not ours to catch
                            self.signals.append(signal.SIGINT)
            finally:
                for slot in self._slots:
                    if slot.worker:
                        slot.remove(slot.worker, lost=False)
                if self._scratch:
                    self._scratch.close()
        if self._stopped:
            raise self._early_end()
        failures = [slot.failure for slot in self._slots if slot.failure]
        if failures and self._work_left():
            raise MachineError(failures[-1])

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

    # --- the loop

    def _turn(self) -> None:
        self._start_what_is_due()
        # Before we look at the pipes: what has ended by now has reported all.
        ended = [slot for slot in self._slots if slot.worker and slot.worker.process.poll() is not None]
        heard = {key.data for key, _ in self._selector.select(TICK)}
        self._forgive_absence()
        self._obey_signals()
        for slot in self._slots:
            if worker := slot.worker:
                if slot in heard:
                    self._hear(slot, worker)
                elif slot in ended:  # a process of its engine may still hold the pipe open
                    self._on_exit(slot, worker)
            if slot.told:
                slot.told.pass_on(slot.name)
            if worker := slot.worker:
                self._check_for_stall(slot, worker)
        self._show()

    def _start_what_is_due(self) -> None:
        for slot in self._slots:
            if slot.start_at is not None and time.monotonic() >= slot.start_at:
                slot.start_at = None
                self._start(slot)

    def _start(self, slot: Slot) -> None:
        assert self._scratch
        if self._until and time.monotonic() > self._until:
            self._stopped.append(Stopped(why=Stopping.TIME_UP))
            return
        variables = {**self._scratch.environment(), **slot.variables}
        try:
            slot.worker = WorkerProcess.start(self._job, variables, slot.log, self._poison.items, self._until)
        except Stopped as why:
            self._stop_with(why)
            return
        slot.told = EngineLog(slot.log, slot.worker.log_begin)
        self._selector.register(slot.worker.reports, selectors.EVENT_READ, slot)

    def _forgive_absence(self) -> None:
        """If this process was suspended, so were most likely the workers: their silence meanwhile does not count."""
        now = time.monotonic()
        away, self._turned = now - self._turned - TICK, now
        if away > AWAY:
            for slot in self._slots:
                if slot.worker:
                    slot.worker.last_report = min(now, slot.worker.last_report + away)
            if self._stopping is not Stopping.NO and self._stop_by != math.inf:
                self._stop_by = max(self._stop_by, now + GRACE)

    def _hear(self, slot: Slot, worker: WorkerProcess) -> None:
        reports = worker.read_reports()
        if reports is None:
            self._on_exit(slot, worker)
            return
        for report in reports:
            match report:
                case Started() as started:
                    self._on_start(slot, worker, started)
                case Work() as work:
                    worker.take(work)
                    self._poison.clear(work.finished)
                case Warn(text=text) if text not in self._warned:
                    self._warned.add(text)
                    self._warn(text)
                case Committed() as committed:
                    self._tell_of_shard(committed)
                case FirstReject() as first if not self._has_rejects:
                    self._has_rejects = True
                    events.note(Level.info, "first_reject", f"first reject: {first.text}", reason=first.reason)
                case Exit() as end:
                    self._on_exit(slot, worker, end)
                    return  # the thread that watches the engine's processes may have reported another one

    def _check_for_stall(self, slot: Slot, worker: WorkerProcess) -> None:
        now = self._turned  # not later: an absence since then has not been noticed yet
        is_starting = worker.engine_start is None and worker.row is None
        allowed = self._job.spec.output.stall * (START_STALLS if is_starting else 1)
        if now > self._stop_by:
            if self._stopping is Stopping.NO:
                self._stopped.append(Stopped(why=Stopping.TIME_UP))
            self._on_exit(slot, worker, Exit(ExitKind.STOPPED, why=Stopping.NOT_DRAINED))
        elif now - worker.last_report > allowed:
            what = "token" if worker.row is None else "progress"
            self._on_exit(slot, worker, Exit(ExitKind.DIED, f"no {what} for {allowed:g} s", row=worker.row))

    def _show(self) -> None:
        workers = [slot.worker for slot in self._slots if slot.worker]
        running, waiting = sum(worker.running for worker in workers), sum(worker.waiting for worker in workers)
        totals = self.totals
        if not totals.responses and workers and all(worker.engine_start is None for worker in workers):
            self._progress.starting()
            return
        rows, tokens = totals.rows + totals.open_rows, (totals.prompt_tokens, totals.response_tokens)
        rejected, by_length = totals.rejected + totals.open_rejects, totals.by_length / max(1, totals.responses)
        self._progress.show(Seen(rows, *tokens, running, waiting, rejected, by_length))

    def _warn(self, text: str) -> None:
        if text:
            warn(text)

    def _on_start(self, slot: Slot, worker: WorkerProcess, started: Started) -> None:
        worker.engine_start = started.seconds
        slot.engine_start += started.seconds
        events.note(
            Level.debug,
            "engine_started",
            f"{slot.name} is up on {started.device} after {started.seconds:,.1f} s",
            engine=slot.name,
            seconds=started.seconds,
            device=started.device,
            again=bool(slot.deaths),
        )
        self._warn(self._other_engine.of_noise(started.sampler))
        self._warn(self._other_engine.of_device(started.device))

    def _tell_of_shard(self, committed: Committed) -> None:
        counts, total = committed.counts, len(self._job.plan.shards)
        events.note(
            Level.debug,
            "shard",
            f"shard {committed.shard} of {total:,} is finished: {counts}",
            shard=committed.shard,
            shards=total,
            **msgspec.to_builtins(counts),
        )

    # --- stopping

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        if not caller.current().catches_signals:
            yield
            return
        with signals.caught(self._on_signal, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            yield

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)

    def _obey_signals(self) -> None:
        """The first one asks the workers to drain. A Ctrl-C after that stops at once."""
        if (stop := caller.current().stop) and stop.is_set() and not self.signals:
            self.signals.append(signal.SIGTERM)
        while self._obeyed < len(self.signals):
            number = self.signals[self._obeyed]
            self._obeyed += 1
            if self._stopping is Stopping.NO:
                self._drain(Stopping.TIME_UP if number == signal.SIGUSR1 else Stopping.AS_ASKED)
            elif number == signal.SIGINT:
                raise Stopped(why=Stopping.AT_ONCE)

    def _drain(self, why: Stopping) -> None:
        """Has the workers finish what runs, in `drain` seconds; in all that is left of the time if Slurm says, by
        SIGUSR1, that it is nearly up."""
        use_all_time = why is Stopping.TIME_UP
        seconds = self._job.spec.output.drain
        if use_all_time and self._until:
            seconds = max(0.0, self._until - time.monotonic())
        self._stopping = why
        self._stop_by = min(self._stop_by, time.monotonic() + seconds + GRACE)
        for slot in self._slots:
            if slot.worker:
                slot.worker.process.send_signal(signal.SIGUSR1 if use_all_time else signal.SIGTERM)
            elif slot.start_at is not None:
                slot.start_at = None
                self._stopped.append(Stopped(why=Stopping.AS_ASKED))
        if any(slot.worker for slot in self._slots):
            said = f"stopping; running requests have {seconds:.3g} s to finish (Ctrl-C again: stop now)"
            events.note(Level.info, "stopping", said, seconds=seconds)

    def _stop_with(self, stopped: Stopped) -> None:
        """One worker has stopped, so all do: the disk that it cannot write to is theirs too."""
        self._stopped.append(stopped)
        if self._stopping is Stopping.NO:
            self._drain(stopped.why)

    def _early_end(self) -> Stopped:
        """What the run ends with if workers left work undone. It tells of a fault, if there was one, and in any case
        whether the time is up: then Slurm may start the job again."""
        expected = (Stopping.AS_ASKED, Stopping.TIME_UP)
        told = next((stopped for stopped in self._stopped if stopped.why not in expected), self._stopped[0])
        time_up = any(stopped.why is Stopping.TIME_UP for stopped in self._stopped)
        return Stopped(str(told), Stopping.TIME_UP) if time_up or signal.SIGUSR1 in self.signals else told

    # --- ends of workers

    def _on_exit(self, slot: Slot, worker: WorkerProcess, end: Exit | None = None) -> None:
        """end: None if the worker is gone without a report. Raises JobError or MachineError if that ends the run."""
        self._selector.unregister(worker.reports)
        lost = end is None or end.kind in (ExitKind.DIED, ExitKind.BUG) or end.why is Stopping.NOT_DRAINED
        self.lost |= lost
        slot.remove(worker, lost)
        if slot.told:
            slot.told.pass_on(slot.name)
        slot.kept = self._job.out.keep_log(slot.log)
        if end is None:
            end = death.of_process(worker.process.returncode)
            end.row = worker.row
        match end.kind:
            case ExitKind.REFUSED:
                raise JobError(end.text)
            case ExitKind.BUG:
                why = f"a bug in batchgen: {end.text}; finished responses are kept; see {slot.kept}"
                raise MachineError(why)
            case ExitKind.STOPPED if end.why is Stopping.TIME_UP:  # the others know how long their own requests take
                self._stopped.append(Stopped(end.text, end.why))
            case ExitKind.STOPPED:
                self._stop_with(Stopped(end.text, end.why))
            case ExitKind.DIED:
                cause = death.explain(end, slot.log, worker.log_begin, not needs_gpu())
                self._after_death(slot, worker, cause, end.row)

    def _after_death(self, slot: Slot, worker: WorkerProcess, why: Death, row: int | None = None) -> None:
        """Decides whether and when the slot gets another worker. Raises MachineError if no slot does any more. row:
        that the worker was preparing, so that its engine is not to blame."""
        if self._stopping is not Stopping.NO:
            self._stopped.append(Stopped(why=Stopping.AS_ASKED))
            return
        self._record_death(worker, row)
        slot.deaths = 1 if worker.responses else slot.deaths + 1
        what, hint = slot.name, ""
        if row is not None:
            what, hint = f"the worker that was preparing row {row}", f"; --skip {row} rejects it"
        elif why.signal == signal.SIGKILL and slot.deaths > 1:
            hint = death.OUT_OF_MEMORY
        # A first start that fails will always fail, and so will a build for another CPU; one that was killed may not.
        if not slot.engine_start and (not why.signal or why.is_crash):
            self._give_up(slot, f"{what} failed: {why.text}{hint}")
        elif slot.deaths > self._job.spec.output.max_restarts:
            self._give_up(slot, f"{what} died {slot.deaths} times in a row: {why.text}{hint}")
        else:
            pause = min(2.0 ** (slot.deaths - 1), MAX_BACKOFF)
            slot.start_at = time.monotonic() + pause
            said = f"{what} died ({why.text}); restarting in {pause:g} s{hint}"
            warn(said, engine=slot.name, died=why.text, restart_in=pause)

    def _record_death(self, worker: WorkerProcess, row: int | None) -> None:
        self._poison.record_death(worker.in_engine, row)
        for slot in self._slots:
            if slot.worker:
                slot.worker.tell(self._poison.items)

    def _give_up(self, slot: Slot, why: str) -> None:
        slot.failure = f"{why}; see {slot.kept}"
        others = [other for other in self._slots if not other.failure]
        if not others:
            raise MachineError(slot.failure)
        self._warn(f"{slot.failure}; the other workers go on")
        if self._work_left():
            for other in others:
                if not other.worker and other.start_at is None:  # it had ended, leaving the rest to this one
                    other.start_at = time.monotonic()

    def _work_left(self) -> bool:
        return len(shard.finished(self._job.out, self._job.plan)) < len(self._job.plan.shards)


def _slots(job: Job, environments: list[dict[str, str]]) -> list[Slot]:
    several = len(environments) > 1
    return [
        Slot(
            f"worker {number}'s engine" if several else "the engine",
            variables,
            logs.of_worker(job.out, number, job.spec.output.shared),
        )
        for number, variables in enumerate(environments, 1)
    ]
