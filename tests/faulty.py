"""Jobs run in this process, on a disk that fails on demand: every call on a folder can be seen, failed or the last."""

import builtins
import functools
import io
import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import msgspec
from conftest import MODEL

import batchgen.model.model
import batchgen.runner.prepare
import batchgen.runner.run
from batchgen.engine.types import Engine
from batchgen.errors import Stopped, warn
from batchgen.job.spec import JobSpec, load
from batchgen.model.model import Model
from batchgen.output import opening, shard, store
from batchgen.output.claims import Claims
from batchgen.output.counts import Counts
from batchgen.output.record import JobRecord
from batchgen.runner.messages import Report, Totals, Warn
from batchgen.runner.outcome import Outcome
from batchgen.runner.prepare import Job, prepare
from batchgen.runner.progress import Progress
from batchgen.runner.worker import Worker

# A fork has one thread: work that OpenMP shares out would wait for the others for ever. Read when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# --- a job, in this process


class _Here:
    """In the supervisor's place: the worker in this process, on the tests' engine, every response synced at once."""

    engine: Engine

    def __init__(self, job: Job, progress: Progress, environments: list[dict[str, str]], until: float | None):
        self.totals, self.rows, self.engine_start, self.lost = Totals(), 0, 0.0, False
        self._job, self._progress = job, progress

    def run(self) -> None:
        job = self._prepared()
        worker = Worker(job, self.engine, Claims(job.out, job.spec.output.stale), self._hear)
        with mock.patch.object(store, "SYNCED", 0):
            worker.run(job.shards)
        self.totals = worker.totals

    def _prepared(self) -> Job:
        return self._job

    def _hear(self, report: Report) -> None:
        if isinstance(report, Warn):
            warn(report.text)


class _HereByItself(_Here):
    """It prepares the job anew from what a supervisor tells its worker, as a process of its own does."""

    def _prepared(self) -> Job:
        record = msgspec.json.decode(msgspec.json.encode(self._job.record), type=JobRecord)
        return prepare(self._job.spec, begun=record)


@contextmanager
def worker_here(engine: Engine, kind: type[_Here] = _HereByItself) -> Iterator[None]:
    """Whatever runs a job in this block has its worker in this process, on this engine."""
    with (
        mock.patch.object(batchgen.runner.run, "Supervisor", kind),
        mock.patch.object(_Here, "engine", engine, create=True),
    ):
        yield


_load_once = functools.cache(batchgen.model.model.load_model)
_versions = functools.cache(batchgen.engine.installed.versions)


def _load_model(path: str, revision: str, format: str, adapters: dict[str, str], vision: str, images: bool) -> Model:
    assert not (adapters or vision or images)  # adapters have no hash
    return _load_once(path, revision, format)


def spec_of(
    source: Path,
    out: Path,
    shard_rows: int = 3,
    stale: float = 60,
    incremental: bool = False,
    max_rejects: int | None = None,
    output: dict | None = None,
    **sampling,
) -> JobSpec:
    output = {"path": str(out), "shard_rows": shard_rows, "stale": stale, **(output or {})}
    output |= {} if max_rejects is None else {"max_rejects": max_rejects}
    input = {"path": [str(source)], "incremental": incremental}
    tables = {"input": input, "model": {"path": str(MODEL)}, "output": output}
    return load(None, {**tables, "sampling": {"max_tokens": 4, **sampling}})


def finished_in_shards_of_one(source: Path, out: Path) -> Job:
    """A job whose every row has a shard of its own, with an answer that no engine gave; nothing is synced."""
    job = prepare(spec_of(source, out, shard_rows=1))
    facts = {"prompt_tokens": 1, "response_tokens": 1, "sample": 0}
    made_by = {"fingerprint": job.record.fingerprint}
    with mock.patch.object(os, "fsync"):
        opening.open_job(job.out, job.record)
        for planned in job.plan.shards:
            counts = Counts(rows=1, responses=1, prompt_tokens=1, response_tokens=1)
            answers = [{"row": planned.first_row, **facts}]
            shard.commit(job.out, planned, answers, [], job.task.schema, counts, made_by)
    return job


def run_here(engine: Engine, spec: JobSpec) -> Outcome:
    """`batchgen run` but for the supervisor and the worker's own process."""
    with (
        worker_here(engine, _Here),
        # What reads vLLM's source, its versions and the model, and has nothing to do with the disk:
        mock.patch.object(batchgen.runner.prepare, "check_args"),
        mock.patch.object(batchgen.runner.prepare, "versions", _versions),
        mock.patch.object(batchgen.runner.prepare, "load_model", _load_model),
    ):
        return batchgen.runner.run.run(spec)


def dataset(out: Path) -> dict[str, bytes]:
    """What must be the same, byte for byte, whatever happened on the way."""
    files = [*out.glob("part-*"), *out.glob("_rejects/*"), *out.glob("_segments/*"), out / "_SUCCESS"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


# --- a process that may fail


def in_child(work: Callable[[], object], timeout: float = 60) -> str:
    """Runs it in a fork of this process, loaded engine and all: "done", "stopped: ...", "killed", or a traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            try:
                work()
                word = "done"
            except Stopped as why:
                word = f"stopped: {why}"
            except BaseException:
                word = traceback.format_exc()
            os.write(writing, word.encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        if not select.select([pipe], [], [], timeout)[0]:
            os.kill(child, signal.SIGKILL)
        word = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else word


# --- a disk that may fail

CHANGES = ("create", "write", "pwrite", "mkdir", "unlink", "rename", "replace", "link")
LOOKS = ("stat", "listdir", "scandir", "fsync", "read", "close")  # and open


class Disk:
    """Puts itself between Python and the system; for good, so only in a child process. `before` sees every call."""

    def __init__(self, root: Path):
        self.root = os.fspath(root)
        self.calls: list[str] = []
        self.files: dict[int, str] = {}  # open ones: descriptor -> path

    def watch(self) -> None:
        self._os_open, self._io_open = os.open, io.open
        for name in {*CHANGES, *LOOKS} & set(dir(os)):
            setattr(os, name, self._watched(name, getattr(os, name)))
        os.open, io.open, builtins.open = self._open_descriptor, self._open_file, self._open_file

    def do(self, name: str, real: Callable, *args, **options):
        """One call: by path, or by a file that is open under the folder. Any other goes by unseen."""
        places = [self.files.get(arg) if isinstance(arg, int) else arg for arg in args[:2]]
        ours = [place for place in places if isinstance(place, str | os.PathLike) and self._is_ours(place)]
        if ours:
            self.calls.append(f"{name} {os.path.relpath(ours[0], self.root)}")
            self.before(name, real, *args)
        result = real(*args, **options)
        if name == "close":
            self.files.pop(args[0], None)
        return result

    def before(self, name: str, real: Callable, *args) -> None:
        """May raise, or take notes."""

    def _is_ours(self, place: str | os.PathLike) -> bool:
        path = os.fspath(place)
        return path == self.root or path.startswith(self.root + "/")

    def _watched(self, name: str, real: Callable) -> Callable:
        return lambda *args, **options: self.do(name, real, *args, **options)

    def _open_descriptor(self, path, flags, mode=0o777, **options) -> int:
        file = self.do("create" if flags & os.O_CREAT else "open", self._os_open, path, flags, mode, **options)
        self.files[file] = os.fspath(path)
        return file

    def _open_file(self, path, mode="r", buffering=-1, *args, **options):
        """A binary file under the folder becomes one whose every read and write is a call of its own."""
        ours = path in self.files if isinstance(path, int) else self._is_ours(path)
        if not ours:
            return self._io_open(path, mode, buffering, *args, **options)
        assert "b" in mode, mode
        if isinstance(path, int):
            raw = _File(self, path, mode)
        else:
            raw = self.do("open" if "r" in mode else "create", lambda path, mode: _File(self, path, mode), path, mode)
            self.files[raw.fileno()] = os.fspath(path)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        return buffered(raw)


class _File(io.FileIO):
    def __init__(self, disk: Disk, path: str | int, mode: str):
        super().__init__(path, mode.replace("b", ""))
        self._disk = disk

    def write(self, data) -> int:
        return self._disk.do("write", lambda file, data: io.FileIO.write(self, data), self.fileno(), bytes(data))

    def read(self, size: int = -1) -> bytes:
        return self._disk.do("read", lambda file: io.FileIO.read(self, size), self.fileno())

    def readall(self) -> bytes:
        return self._disk.do("read", lambda file: io.FileIO.readall(self), self.fileno())

    def close(self) -> None:
        if not self.closed:
            self._disk.do("close", lambda file: io.FileIO.close(self), self.fileno())


class DiskWithOneFault(Disk):
    """`fault` is called right before call number `at`, after `part` of the data of a write is on the disk."""

    def __init__(self, root: Path, at: int, fault: Callable[[], object], part: float = 0):
        super().__init__(root)
        self._at, self._fault, self._part = at, fault, part

    def before(self, name, real, *args):
        if len(self.calls) - 1 != self._at:
            return
        if name in ("write", "pwrite") and self._part:
            real(args[0], args[1][: int(len(args[1]) * self._part)], *args[2:])
        if name == "close":  # a file whose close fails is closed all the same
            real(*args)
        self._fault()


class DiskThatLosesPower(Disk):
    """At every sync it writes to `lost` what the disk would hold if the power had gone just before.

    That is the content of files as last synced, under names that were there when their folder was last synced.
    Of what a file got since, nothing is left, or (in a second copy) zeros.
    """

    def __init__(self, root: Path, lost: Path):
        super().__init__(root)
        self._lost = lost
        self._content: dict[int, bytes] = {}  # inode -> as synced
        self._names: dict[int, list[tuple[str, int]]] = {}  # inode of a folder -> names and inodes, as synced
        self._held: dict[int, int] = {}  # inode -> descriptor, so that no inode is used again

    def before(self, name, real, *args):
        if name != "fsync":
            return
        self.lose_power()
        path = self.files[args[0]]
        if os.path.isdir(path):
            self._names[self._hold(path)] = [(entry, self._hold(f"{path}/{entry}")) for entry in os.listdir(path)]
        else:
            self._content[self._hold(path)] = os.pread(self._held[self._hold(path)], 1 << 30, 0)

    def lose_power(self) -> None:
        number = len(list(self._lost.iterdir()))
        for zeros in (False, True):
            self._restore(self._hold(self.root), self._lost / f"{number + zeros:03}", zeros)

    def _hold(self, path: str) -> int:
        inode = os.lstat(path).st_ino
        if inode not in self._held:
            self._held[inode] = self._os_open(path, os.O_RDONLY)
        return inode

    def _restore(self, inode: int, target: Path, zeros: bool) -> None:
        facts = os.fstat(self._held[inode])
        if facts.st_mode & 0o040000:
            target.mkdir()
            for name, child in self._names.get(inode, []):
                self._restore(child, target / name, zeros)
        else:
            content = self._content.get(inode, b"")
            target.write_bytes(content.ljust(facts.st_size, b"\0") if zeros else content)


def killed_at_commit(engine: Engine, spec: JobSpec) -> Path:
    """Runs a job until it is about to commit its first shard; gives the journal that is left."""
    out = Path(spec.output.path)

    class DiskBeforeCommit(Disk):
        def before(self, name, real, *args):
            if "_state/part-" in self.calls[-1]:
                os.kill(os.getpid(), signal.SIGKILL)

    def work():
        DiskBeforeCommit(out).watch()
        run_here(engine, spec)

    assert in_child(work) == "killed"
    [journal] = out.glob("_state/journal/*")
    return journal
