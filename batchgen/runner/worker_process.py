"""A worker as its supervisor sees it: a process in a session of its own, and what it has reported so far."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from ..engine.installed import SPACED_JSON
from ..errors import JobError, Stopped
from ..host import environment
from ..output import logs
from ..output.record import COMPACT_JSON
from .messages import Mark, PoisonItems, Report, Totals, Work, WorkerConfig
from .prepare import Job


@dataclass(eq=False)
class WorkerProcess:
    """A running worker.

    reports: our end of the pipe that it writes to
    log_begin: size of its log before it began, in bytes
    mark: of the row that it is preparing
    partial: the beginning of a report of which the rest has not come yet
    last_report: by time.monotonic
    engine_start: seconds that its engine took to start; None while it starts
    in_engine: items by name
    responses: that its engine has finished
    totals, running, waiting: see Work
    """

    process: subprocess.Popen[bytes]
    reports: IO[bytes]
    log_begin: int
    mark: Mark | None = None
    partial: bytes = b""
    last_report: float = field(default_factory=time.monotonic)
    engine_start: float | None = None
    in_engine: set[str] = field(default_factory=set)
    responses: int = 0
    totals: Totals = field(default_factory=Totals)
    running: int = 0
    waiting: int = 0

    @classmethod
    def start(
        cls, job: Job, variables: dict[str, str], log: Path, poison: PoisonItems, until: float | None
    ) -> "WorkerProcess":
        """variables: of its environment, beside ours; poison, until: see WorkerConfig. Raises Stopped or JobError if
        its log cannot be written."""
        read, write = os.pipe()
        record, mark = _in_memory(msgspec.json.encode(job.record)), Mark.new()
        own_mark = Mark(mark)
        inherited = environment.of_worker(_places(job))
        try:
            with logs.appending(log) as stream:
                log_begin = stream.tell()
                process = subprocess.Popen(
                    # -P: a file in the user's folder must not stand in for one of our modules.
                    [sys.executable, "-P", "-m", "batchgen.runner.process"],
                    stdin=subprocess.PIPE,
                    stdout=stream,
                    stderr=stream,
                    pass_fds=[write, record, mark],
                    env={**inherited, **variables, **environment.of_engine(), **_offline(job), **_of_its_format(job)},
                    start_new_session=True,  # a Ctrl-C on the terminal reaches us alone; we ask the worker to drain
                )
        except (Stopped, JobError):
            os.close(read)
            raise
        finally:
            for file in (write, record, mark):
                os.close(file)
        worker = cls(process, os.fdopen(read, "rb", buffering=0), log_begin, own_mark)
        worker.tell(WorkerConfig(job.spec, record, write, mark, os.getpid(), poison, until))
        return worker

    def tell(self, what: WorkerConfig | PoisonItems) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.write(msgspec.json.encode(what) + b"\n")
            self.process.stdin.flush()

    def read_reports(self) -> list[Report] | None:
        """What has come since the last call; None once the worker has closed its end."""
        data = os.read(self.reports.fileno(), 1 << 20)
        if not data:
            return None
        self.last_report = time.monotonic()
        *lines, self.partial = (self.partial + data).split(b"\n")
        return [msgspec.json.decode(line, type=Report) for line in lines]

    def take(self, work: Work) -> None:
        self.in_engine |= set(work.admitted)
        self.in_engine -= set(work.finished)
        self.responses += len(work.finished)
        self.totals, self.running, self.waiting = work.totals, work.running, work.waiting

    @property
    def row(self) -> int | None:
        """The row that it is preparing, or was preparing when it ended."""
        return self.mark.row if self.mark else None

    def kill(self) -> None:
        """Ends the worker and everything that it started, which is in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reports.close()
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()


def _places(job: Job) -> list[str]:
    """All that a worker reads or writes."""
    spec = job.spec
    of_input = (*(file.path for file in job.plan.files), spec.input.image_folder)
    of_model = (spec.model.path, spec.model.vision, *spec.model.adapter.values())
    return [*of_input, *of_model, spec.translate.glossary, *spec.translate.memory, job.out.location]


def _of_its_format(job: Job) -> dict[str, str]:
    return {} if job.record.format >= COMPACT_JSON else {SPACED_JSON: "1"}


def _offline(job: Job) -> dict[str, str]:
    """A worker finds its model on the disk, so only its input may need a hub."""
    on_hub = any(file.path.startswith("hf://") for file in job.plan.files)
    return {} if on_hub else environment.OFFLINE


def _in_memory(content: bytes) -> int:
    """The descriptor of a file in memory, open at its beginning. A pipe would block us once it is full."""
    file = os.memfd_create("batchgen-job")
    with open(file, "wb", closefd=False) as stream:
        stream.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file
