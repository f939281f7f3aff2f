"""A worker's process: one engine and the loop around it, started by the supervisor, so that an engine may die without
the run."""

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import IO, NoReturn

import msgspec

from ..engine import scratch
from ..engine.choice import engine_class
from ..engine.types import Engine
from ..errors import EngineDied, JobError, MissingInput, Stopped, Stopping, in_one_line
from ..host import console, garbage
from ..host.lifeline import die_with_parent
from ..output.claims import Claims
from ..output.record import JobRecord
from ..output.shard import finished
from . import idle
from .messages import Exit, ExitKind, Mark, PoisonItems, Report, Started, Totals, Warn, Work, WorkerConfig
from .prepare import Job, prepare
from .worker import Worker, end_of_engine

STOPPING = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP}


def main() -> None:
    harden()
    garbage.collect_rarely()
    os.register_at_fork(after_in_child=_harden_child)
    # Not sys.stdin: a thread that reads holds its lock, and a process that is forked meanwhile waits for it for ever.
    told = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    config = msgspec.json.decode(told.readline(), type=WorkerConfig)
    if os.getppid() != config.supervisor:
        return  # it is gone already
    threading.Thread(target=_listen, args=(told, config.poison), daemon=True).start()
    lock = threading.RLock()  # the thread that waits for the engine's death reports too

    def report(what: Report) -> None:
        line = memoryview(msgspec.json.encode(what) + b"\n")
        with lock:
            while line:
                line = line[os.write(config.report_to, line) :]

    try:
        _work(config, report)
        report(Exit(ExitKind.DONE))
    except Stopped as stopped:
        report(Exit(ExitKind.STOPPED, str(stopped), stopped.why))
    except MissingInput as error:  # it was there when the run began
        text = f"{error}; fix that and run the same command again"
        report(Exit(ExitKind.STOPPED, text, Stopping.FAULT))
    except JobError as error:
        report(Exit(ExitKind.REFUSED, str(error)))
    except EngineDied as error:  # the log has the traceback
        traceback.print_exc()
        _end(report, Exit(ExitKind.DIED, str(error)))
    except Exception as error:
        traceback.print_exc()
        where = " ".join(getattr(error, "__notes__", []))
        text = " ".join(filter(None, [f"{type(error).__name__}: {in_one_line(error)}", where]))
        _end(report, Exit(ExitKind.BUG, text))


def _work(config: WorkerConfig, report: Callable[[Report], None]) -> None:
    as_asked = Exit(ExitKind.STOPPED, why=Stopping.AS_ASKED)
    signal.signal(signal.SIGTERM, lambda *_: _end(report, as_asked))
    signal.signal(signal.SIGUSR1, lambda *_: _end(report, as_asked))
    begin = time.monotonic()
    with open(config.job_from, "rb") as opened:
        record = msgspec.json.decode(opened.read(), type=JobRecord)
    job = prepare(config.spec, begun=record)
    job.generate.checker.start()  # it loads while the engine does
    claims = Claims(job.out, job.spec.output.stale)
    mark = Mark(config.mark)
    report(Work([], [], Totals(), 0, 0))  # from here on a row may hang
    done = {planned.index for planned in finished(job.out, job.plan)}
    missing = [planned for planned in job.plan.shards if planned.index not in done]
    if idle.is_over(job, missing, mark, config.poison):
        return
    engine: Engine | None = idle.stand_in(job, missing, mark, config.poison)
    if not engine:
        engine = _started(job, begin, report)
    worker = Worker(job, engine, claims, report, poison=config.poison, until=config.until, mark=mark)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    signal.signal(signal.SIGUSR1, lambda *_: worker.stop(use_all_time=True))
    worker.run(job.shards)


def _started(job: Job, begin: float, report: Callable[[Report], None]) -> Engine:
    """begin: of the worker, by time.monotonic"""
    with end_of_engine():
        engine = engine_class()(job.model, job.spec.engine_args, job.context)
        for params in job.samplings:
            engine.check(params)
    engine.when_process_dies(lambda reason: _end(report, Exit(ExitKind.DIED, reason)))
    garbage.collect_rarely()  # again, with all that is there now
    report(Started(time.monotonic() - begin, engine.sampler, engine.device))
    for text in engine.warnings:
        report(Warn(text))
    return engine


def _listen(told: IO[bytes], poison: PoisonItems) -> None:
    """Keeps up with what other workers' engines died of: their shards may come to this one."""
    for line in told:
        now = msgspec.json.decode(line, type=PoisonItems)
        poison.suspected, poison.poisoned = now.suspected, now.poisoned


def _end(report: Callable[[Report], None], end: Exit) -> NoReturn:
    """Not by the way of an exception, which vLLM may catch, nor of atexit handlers: a broken engine's may wait for
    ever. The supervisor ends what this process has started."""
    report(end)
    sys.stderr.flush()
    os._exit(1)


def harden(tie: Callable[[], None] = die_with_parent) -> None:
    """Makes this process, one of a worker's, fit for what may befall it. tie: what makes it end with its parent"""
    tie()
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
    with garbage.not_collected():
        from ..engine.vllm import install_into_vllm

        install_into_vllm()
