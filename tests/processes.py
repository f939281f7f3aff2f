"""The installed command as processes of its own: started, watched from outside, stopped, killed."""

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import termios
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from conftest import MODEL, untimed

from batchgen.engine.choice import VARIABLE

LONG = {"ignore_eos": True, "max_tokens": 400}  # of a row's sampling: long enough to be stopped in
PATIENCE = 120  # seconds that anything may take on a slow machine

# Python runs this in every worker. It patches only what is asked for: the rest is the product and its engine.
_VLLM = """
import sys
if "batchgen.runner.process" in sys.orig_argv:
    from batchgen.engine import cpu
    from batchgen.engine.vllm import VllmEngine as Engine
    cpu.SEQUENCES = 64  # by default, so that requests wait
"""
_INSTANT = """
import os, sys
os.fsync = lambda file: None  # as in conftest.py
if "batchgen.runner.process" in sys.orig_argv:
    from paced import Instant
    Engine = Instant
"""
_PATCHED = """
import os, sys, time
if "batchgen.runner.process" in sys.orig_argv:
    init = Engine.__init__
    def patched(self, *arguments):
        init(self, *arguments)
        patch(self)
    Engine.__init__ = patched
"""


def instant(folder: Path, start: float = 0, step: float = 0) -> dict[str, str]:
    """An environment in which a worker's engine is up after `start` seconds and makes a step, of eight answers, in
    `step` seconds (paced.py): for tests of what happens around an engine, by the hundred."""
    return _site(folder, _INSTANT) | pace(start, step)


def pace(start: float = 0, step: float = 0) -> dict[str, str]:
    """What names the engine that answers at once, and sets its pace."""
    return {VARIABLE: "paced:Instant", "BATCHGEN_TEST_START": f"{start}", "BATCHGEN_TEST_STEP": f"{step}"}


def hook(folder: Path, code: str, step: float | None = None) -> dict[str, str]:
    """An environment in which workers run `code` when their engine is up; it defines patch(engine). The engine is
    vLLM, or one that answers at once and takes `step` seconds for a step."""
    environment = _site(folder, _VLLM) if step is None else instant(folder, step=step)
    with (folder / "sitecustomize.py").open("a") as site:
        site.write(_PATCHED + code)
    return environment


def _site(folder: Path, code: str) -> dict[str, str]:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    (folder / "paced.py").symlink_to(Path(__file__).with_name("paced.py"))
    path = os.pathsep.join(part for part in (str(folder), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path}


class Finished(NamedTuple):
    """An item that an engine has finished: when, by the machine's clock, of how many tokens, and in which process."""

    at: float
    item: str
    tokens: int
    worker: int


class Watch:
    """Writes down every item that goes into an engine or comes out of it, in the instant it does: kills lose nothing
    of it. That is what the journals are held against."""

    def __init__(self, folder: Path, together: int = 1, more: str = "", step: float | None = None):
        """together: the first engines begin when so many are up; more: lines that run in every worker by then; step:
        of hook."""
        self._log = folder / "watched"
        self._log.touch()
        self.environment = hook(
            folder / "watch",
            f"""
log = os.open({str(self._log)!r}, os.O_WRONLY | os.O_APPEND)
def write(lines):
    os.write(log, "".join(lines).encode())
def patch(engine):
    add, step = engine.add, engine.step
    write([f"^ {{os.getpid()}}\\n"])
    while open({str(self._log)!r}).read().count("^") < {together}:
        time.sleep(0.01)
    def watched_add(name, *arguments, **more):
        add(name, *arguments, **more)
        write([f"+ {{name}}\\n"])
    def watched_step():
        responses = step()
        now = time.monotonic()
        write([f"- {{now}} {{done.request_id}} {{len(done.token_ids)}} {{os.getpid()}}\\n" for done in responses])
        return responses
    engine.add, engine.step = watched_add, watched_step
{textwrap.indent(textwrap.dedent(more), "    ")}
""",
            step,
        )

    def started(self) -> list[int]:
        """The workers whose engines came up."""
        return [int(fields[1]) for fields in self._lines() if fields[0] == "^"]

    def added(self) -> list[str]:
        return [fields[1] for fields in self._lines() if fields[0] == "+"]

    def finished(self) -> list[Finished]:
        return [Finished(float(f[1]), f[2], int(f[3]), int(f[4])) for f in self._lines() if f[0] == "-"]

    def _lines(self) -> Iterator[list[str]]:
        return (line.split() for line in self._log.read_text().splitlines())


def standing(held: Path) -> Path:
    return held.with_name(f"{held.name}-standing")


def waits_while(held: Path) -> str:
    """For `more` of Watch: an engine that stands still for as long as the file is there, and says so in `standing`."""
    return f"""
        def step_unless_held():
            while os.path.exists({str(held)!r}):
                open({str(standing(held))!r}, "w").close()
                time.sleep(0.01)
            return watched_step()
        engine.step = step_unless_held
    """


def answers_once(folder: Path, held: Path) -> dict[str, str]:
    """An environment with an engine whose first step answers, and whose further ones bring nothing while `held` is
    there: a run that is at work for as long as a test likes."""
    held.touch()
    return hook(
        folder,
        f"""
def patch(engine):
    step, answered = engine.step, []
    def step_unless_held():
        if answered and os.path.exists({str(held)!r}):
            time.sleep(0.02)
            return []
        answered.append(True)
        return step()
    engine.step = step_unless_held
""",
        step=0,
    )


class Run:
    """`batchgen run`, started as a shell starts a job: in a process group of its own. name: of another command"""

    def __init__(self, source: Path, out: Path, *flags: object, env: dict[str, str] | None = None, name: str = "run"):
        command = [Path(sys.executable).with_name("batchgen"), name, source, "--model", MODEL, "--output", out, *flags]
        self.out = out
        self.begin = time.monotonic()
        self._stdout, self._stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=self._stdout, stderr=self._stderr, env=env, process_group=0
        )
        self._seen: dict[int, str] = {}  # worker -> when it was started: ids of processes come again

    @property
    def stdout(self) -> str:
        return _text(self._stdout.fileno())

    @property
    def stderr(self) -> str:
        return _text(self._stderr.fileno())

    def workers(self) -> list[int]:
        """Its worker processes, each the leader of a session of its own. The supervisor has children that are none,
        such as the process that tries a tokenizer."""
        if self.process.poll() is not None:
            return []
        found = {pid: stat.started for pid, stat in _processes().items() if stat.parent == self.process.pid}
        self._seen |= found
        return [pid for pid in found if b"batchgen.runner.process" in _command_line(pid)]

    def generating(self) -> bool:
        """Whether a journal has something in it: the engine works, and responses have come."""
        return any(path.stat().st_size > 100 for path in (self.out / "_state" / "journal").glob("*"))

    def wait(self, timeout: float = PATIENCE) -> int:
        return self.process.wait(timeout)

    def kill(self) -> None:
        """kill -9 of everything that still runs: the supervisor, its workers, and whatever these have started."""
        self.workers()
        leaders = [pid for pid, started in self._seen.items() if (stat := _stat(pid)) and stat.started == started]
        if self.process.poll() is None:
            leaders.append(self.process.pid)
        for pid in leaders:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.process.wait()


class Shown(NamedTuple):
    """What a command on a terminal printed, and what it drew there."""

    returncode: int
    stdout: str
    drawn: str


def on_a_terminal(*arguments: object, env: dict[str, str] | None = None) -> Shown:
    """The installed command with a terminal of 160 columns for its stderr."""
    command = [str(part) for part in (Path(sys.executable).with_name("batchgen"), *arguments)]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 160))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=env, text=True)
    os.close(theirs)
    drawn = b""
    with suppress(OSError):  # the other end is closed
        while part := os.read(ours, 4096):
            drawn += part
    stdout, _ = process.communicate()
    return Shown(process.returncode, stdout, drawn.decode())


@contextmanager
def starting() -> Iterator[Callable[..., Run]]:
    """Gives a function that starts a run; none of them outlasts the block."""
    runs: list[Run] = []

    def start(*arguments: object, **options: object) -> Run:
        runs.append(Run(*arguments, **options))
        return runs[-1]

    try:
        yield start
    finally:
        for run in runs:
            run.kill()


def until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Waits for a condition; raises TimeoutError if it does not come."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.002)


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    return pid in _processes()


def said(stderr: str) -> list[str]:
    """The lines on stderr but for those of progress, of which a slow machine has one every 30 s, those that a run
    begins with, that of the first reject, and the one that says that the engine is a test's. Without times."""
    progress = r"[\d-]+ [\d:]+ ([\d,]+/[\d,]+ rows \(|starting the engine)"
    unsaid = re.compile(
        rf"{progress}|batchgen: (\d+ workers? \(|(run|model|input|sampling|output|first reject): "
        rf"|warning: {VARIABLE}=)"
    )
    return [line for line in untimed(stderr).splitlines() if not unsaid.match(line)]


def dataset(out: Path) -> dict[str, bytes]:
    """All that a user reads of an output folder, by name."""
    names = [
        "_SUCCESS",
        *(path.relative_to(out) for kind in ("part-*", "_rejects/*", "_segments/*") for path in out.glob(kind)),
    ]
    return {str(name): (out / name).read_bytes() for name in names}


def _text(file: int) -> str:
    return os.pread(file, 1 << 20, 0).decode()  # not read(): the offset is the process's own


class _Stat(NamedTuple):
    parent: int
    started: str


def _processes() -> dict[int, _Stat]:
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return {pid: stat for pid in pids if (stat := _stat(pid))}


def _stat(pid: int) -> _Stat | None:
    """None if there is no such process, or only a zombie of it."""
    try:
        state, parent, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else _Stat(int(parent), fields[17])


def _command_line(pid: int) -> bytes:
    """Empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def assert_stopped_resumable(run: Run) -> None:
    """Exit 75, one closing message, every shard given back."""
    assert run.wait() == 75, run.stderr
    assert run.stderr.count("run the same command again") == 1
    assert "Traceback" not in run.stderr
    assert list((run.out / "_state" / "claims").iterdir()) == []
