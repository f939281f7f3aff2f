"""An engine that is kept between calls, for whoever generates from Python: no folder, no shards, no resume.

It runs in a process of its own, as a worker's does: an engine may die without its caller, and a script needs no
`if __name__ == "__main__"`. What goes in and comes out are the same requests and answers as in a run.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import IO, Any, NamedTuple

import msgspec

from ..engine.choice import chosen, require_engine
from ..engine.scratch import Scratch
from ..engine.types import Response
from ..errors import JobError, MachineError, Reject
from ..host import environment
from ..job.sampling import Sampling
from ..job.spec import JobSpec
from ..task.flow import work_of
from ..task.task import Entry, Request
from .admission import WINDOW_PER_SEQUENCE
from .division import divide
from .open_shard import OpenShard
from .prepare import Job

LOG_TAIL = 2000  # characters of a dead engine's log that its error shows


class Setup(msgspec.Struct):
    """What the process is started with. supervisor: process that it ends with; context: of every job to come."""

    spec: JobSpec
    context: int
    supervisor: int


class Ready(msgspec.Struct, tag=True):
    max_num_seqs: int


class Ask(msgspec.Struct, array_like=True):
    """A request for the engine. name: of all calls."""

    name: str
    prompt: list[int]
    sampling: Sampling
    seed: int
    adapter: str | None
    scored: int


class Answers(msgspec.Struct, tag=True):
    responses: list[Response]


class Refused(msgspec.Struct, tag=True):
    """The engine does not take a request."""

    name: str
    reason: str
    detail: str


class Failed(msgspec.Struct, tag=True):
    """The engine's end. is_ours: the job's fault, not the machine's."""

    text: str
    is_ours: bool


Told = Ready | Answers | Refused | Failed


def write(stream: IO[bytes], message: Any) -> None:
    content = msgspec.msgpack.encode(message)
    stream.write(len(content).to_bytes(4, "little") + content)
    stream.flush()


def read(stream: IO[bytes], kind: Any) -> Any:
    """The next message; None once the other side has closed its end."""
    head = stream.read(4)
    size = int.from_bytes(head, "little")
    content = stream.read(size) if len(head) == 4 else b""
    return msgspec.msgpack.decode(content, type=kind) if head and len(content) == size else None


class Made(NamedTuple):
    """A row with its output rows, or with the reject line that says why it has none."""

    row: int
    output: list[dict[str, Any]]
    reject: dict[str, Any] | None


class KeptEngine:
    """An engine, for any number of jobs with one model and the same `[engine]`."""

    def __init__(self, job: Job):
        """Starts the engine. Raises JobError or MachineError."""
        require_engine(job.spec.engine)
        self.key = key_of(job)
        self._is_closed = False
        self._calls = itertools.count()
        self._lock = threading.RLock()
        self._inbox: dict[int, list[Response | Refused]] = {}
        self._scratch = Scratch()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = self._start(job)
        try:
            self._window = WINDOW_PER_SEQUENCE * self._hear(Ready).max_num_seqs
        except BaseException:
            self.close()
            raise

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        variables = {**environment.of_worker([]), **self._scratch.environment(), **divide(job, 1).environments[0]}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "batchgen.runner.kept_engine_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**variables, **environment.of_engine(), **environment.OFFLINE},
            start_new_session=True,
        )
        assert process.stdin
        write(process.stdin, Setup(job.spec, job.context, os.getpid()))
        return process

    @property
    def is_alive(self) -> bool:
        return not self._is_closed and self._process.poll() is None

    def close(self) -> None:
        """Ends the engine. Answers that are not there yet are lost."""
        self._is_closed = True
        self._process.kill()
        self._process.wait()
        with self._lock:  # another thread that waits for an answer has been told by now
            for stream in (self._process.stdin, self._process.stdout, self._log):
                assert stream
                with suppress(BrokenPipeError):
                    stream.close()
        self._scratch.close()

    def _check_open(self) -> None:
        """Raises JobError."""
        if self._is_closed:
            raise JobError(
                "the engine of these answers was closed, by close() or by a call with another model or [engine]; "
                "take all answers of a call before that"
            )

    def generate(self, job: Job) -> Generator[Made, None, None]:
        """Every row of a job, in order, each as soon as it and those before it are done. Raises JobError or
        MachineError."""
        call = next(self._calls)
        self._inbox[call] = []
        try:
            yield from _in_order(self._as_they_come(call, job))
        finally:
            del self._inbox[call]

    def _as_they_come(self, call: int, job: Job) -> Iterator[Made]:
        opened = OpenShard(job.plan.shards[0], job.task, _NoJournal(), {})  # type: ignore[arg-type]
        rows = work_of(job.task, job.reader(), job.plan.shards)
        asked: dict[str, Request] = {}
        ready: deque[Request] = deque()
        while True:
            while len(asked) < self._window:
                if not ready and (made := next(rows, None)) is not None:
                    row, work = made
                    if isinstance(work, Reject):
                        opened.reject(row, job.task.id_of(row), work)
                    else:
                        ready += opened.take(row, work)
                    continue
                if not ready:
                    break
                request = ready.popleft()
                asked[f"{call}.{request.name}"] = request
                self._ask(call, request)
            yield from _finished(job, opened)
            if not asked:
                return
            for answer in self._answers(call):
                name = answer.name if isinstance(answer, Refused) else answer.request_id
                ready += _taken(opened, asked.pop(name), answer)

    def _ask(self, call: int, request: Request) -> None:
        asked = request.prompt_token_ids, request.sampling, request.seed, request.adapter, request.scored
        assert self._process.stdin
        with self._lock:
            self._check_open()
            try:
                write(self._process.stdin, Ask(f"{call}.{request.name}", *asked))
            except BrokenPipeError:
                self._hear(Failed)  # says why
                raise

    def _answers(self, call: int) -> list[Response | Refused]:
        """The next ones of a call. Those of other calls, which other threads wait for, are put by."""
        while True:
            with self._lock:
                if self._inbox[call]:
                    found, self._inbox[call] = self._inbox[call], []
                    return found
                told = self._hear(Answers | Refused)
                for answer in [told] if isinstance(told, Refused) else told.responses:
                    name = answer.name if isinstance(answer, Refused) else answer.request_id
                    if (of := int(name.partition(".")[0])) in self._inbox:  # or its caller has lost interest
                        self._inbox[of].append(answer)

    def _hear(self, kind: Any) -> Any:
        """Raises JobError or MachineError, if that is what the engine came to."""
        assert self._process.stdout
        self._check_open()
        told = read(self._process.stdout, Told)
        if isinstance(told, kind) and not isinstance(told, Failed):
            return told
        if isinstance(told, Failed) and told.is_ours:
            raise JobError(told.text)
        self._check_open()  # another thread may have closed it meanwhile
        self._process.kill()  # what has ended must not be taken for alive by the next call
        self._process.wait()
        self._log.seek(0)
        log = self._log.read().decode(errors="replace").strip()[-LOG_TAIL:]
        text = told.text if isinstance(told, Failed) else "its process ended"
        raise MachineError(f"the engine failed: {text}" + (f"\n{log}" if log else ""))


def key_of(job: Job) -> bytes:
    """Equal for jobs that can share an engine."""
    spec, model = job.spec, job.model
    what = [str(model.folder), model.revision, spec.model.adapter, spec.model.reasoning_parser, spec.prompt.format]
    return msgspec.json.encode([chosen(), job.context, what, spec.engine], order="deterministic")


class _NoJournal:
    """Takes the place of a journal where nothing is resumed."""

    def append(self, entry: Entry) -> None: ...


def _taken(opened: OpenShard, request: Request, answer: Response | Refused) -> list[Request]:
    """Hands an answer to its row. Returns what is to be asked next because of it."""
    if isinstance(answer, Refused):
        return opened.fail(request, Reject(answer.reason, answer.detail))  # type: ignore[arg-type]
    try:
        entry = answer.as_entry(request.name)
    except Reject as why:
        return opened.fail(request, why)
    return opened.answer(request, entry)


def _finished(job: Job, opened: OpenShard) -> Iterator[Made]:
    """The rows that are done, and takes them out."""
    done, opened.finished = opened.finished, []
    for work, answers in done:
        if work.row in opened.rejects:
            continue
        try:
            yield Made(work.row, job.task.output(work, answers), None)
        except Reject as why:
            line = {"row": work.row, "id": work.id, "reason": why.reason, "detail": why.detail, "raw": ""}
            yield Made(work.row, [], line)
    rejected, opened.rejects = opened.rejects, {}
    for number, line in rejected.items():
        yield Made(number, [], line)


def _in_order(made: Iterator[Made]) -> Iterator[Made]:
    waiting: dict[int, Made] = {}
    following = 0
    for each in made:
        waiting[each.row] = each
        while following in waiting:
            yield waiting.pop(following)
            following += 1
