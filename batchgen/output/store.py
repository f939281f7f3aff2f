"""Where a job's output lies, as the rest of this room sees it: objects by name, whatever keeps them.

`Store` is all that is asked of it; `FolderStore` is a folder on a disk or a network share, `BucketStore` (bucket.py) a
place in an object store. Names are relative, with `/` between their parts; `layout.py` has them all.

What a store refuses (a full disk, a share that is gone, a service that does not answer) stops the run, resumable: every
method raises Stopped then. It raises JobError if what has the name is no file of ours: a link, a pipe, or far too long.
FileNotFoundError and FileExistsError leave a method only where its docstring says so.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
import uuid
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import JobError, refused, warn
from ..host import bucket, clock, mounts, safeopen
from . import layout, owners

STALE = 60.0  # seconds of silence after which a worker counts as dead, where no job says how many
SYNCED = 0.5  # of the time within which what was appended is to be on the disk; the rest is for the disk
# 10,000 small files: on a local disk one thread is as fast; where each takes a round trip of 1 ms, 32 threads make
# 12 s to 1 s.
READERS, FILES_AT_A_TIME = 32, 64
# Names of one piece of a listing. Buckets list 1,000 at a time: with the rest of them the end of a piece shows itself,
# where one of 1,000 took a second request to see that there is no more.
LISTED = 990
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Stat(NamedTuple):
    """size: in bytes; modified: seconds since the epoch, by the store's clock; version: another one for whatever is
    written in its place."""

    size: int
    modified: float
    version: Hashable


class Entry(NamedTuple):
    """A small object, and when it was last written, by the store's clock."""

    name: str
    content: bytes
    modified: float


class Appender(Protocol):
    """An object that is written bit by bit, by one process alone. Raises Stopped, as its store does."""

    def append(self, data: bytes) -> None:
        """Hands it on: where a file takes it, a kill of this process loses nothing of it."""

    def keep(self, at_once: bool = False) -> None:
        """Sees to it that all that was appended outlasts a power loss, within the time that the appender was made with.
        at_once: it does so when this returns. Does not wait for a network otherwise."""

    def close(self) -> None:
        """What was not kept may be lost."""


class Store(Protocol):
    """keeps_every: seconds within which what is appended is kept, if a job does not say how many; pause: seconds
    between two looks at what another process may change."""

    keeps_every: float
    pause: float

    # --- the place

    def __str__(self) -> str:
        """As its user names it, for messages."""

    @property
    def location(self) -> str:
        """The same, as a job record names it."""

    def where(self, name: str) -> str:
        """An object in it, for messages."""

    def prepare(self, shared: bool) -> None:
        """Makes ready what a run writes to. Raises JobError if others than its user, or a team that shares it, may
        write there."""

    def check(self, shared: bool) -> None:
        """The same of a store that is there, and makes nothing."""

    def check_links(self, *folders: str) -> None:
        """Raises JobError if one of these folders, or of all, leads out of the store."""

    def is_writable(self) -> bool: ...

    def now(self) -> float | None:
        """The store's clock; None where it cannot be asked."""

    def log(self, name: str) -> Path:
        """A file of this machine, for what writes by a file descriptor. It may be gone once the store is."""

    def keep_log(self, log: Path) -> str:
        """Has the store keep what such a file holds now. Says where that can be read: in the file, if nowhere else."""

    # --- looks

    def exists(self, name: str) -> bool: ...

    def stat(self, name: str, fresh: bool = False) -> Stat:
        """fresh: not as remembered from a moment ago, which network file systems do. Raises FileNotFoundError."""

    def changed(self, folder: str) -> float:
        """When an object in a folder last came or went, by the store's clock. Raises FileNotFoundError."""

    def names(self, folder: str = "", missing_ok: bool = False) -> list[str]:
        """Of all that lies in a folder, in order. missing_ok: nothing lies in one that is not there."""

    def listed(self, folder: str, begin: str, cuts: Sequence[str] = (), missing_ok: bool = False) -> list[str]:
        """The same of what begins with `begin`, at the cost of that alone. cuts: names that part it into pieces which
        may be listed side by side, in order."""

    def sizes(self, folder: str, begin: str, cuts: Sequence[str] = ()) -> dict[str, int]:
        """The same, in bytes, by name; none if the folder is not there."""

    def entries(self, folder: str) -> list[Entry]:
        """Every small object of a folder, in order, but for what cannot be one of ours; none if it is not there."""

    def read(self, name: str, most: int = safeopen.SMALL) -> bytes:
        """All of an object. Raises FileNotFoundError, and JobError if it has more than `most` bytes."""

    def open(self, name: str) -> AbstractContextManager[BufferedReader]:
        """An object of any length, seekable. Raises FileNotFoundError."""

    def noted(self, name: str) -> list[bytes]:
        """What was noted under a name (see `publish`): of several writers, what each of them has, in no order. Raises
        FileNotFoundError if it is nothing."""

    def notes(self, names: Sequence[str]) -> dict[str, list[bytes]]:
        """The same of many names of one folder, in order, by name; without those that have nothing, or what cannot be
        ours."""

    # --- changes

    def write(self, name: str, content: bytes | memoryview) -> None:
        """The object appears whole and durable, in the place of what has its name, or not at all."""

    def create(self, name: str, content: bytes | memoryview) -> None:
        """The same where nothing has the name. Raises FileExistsError; of several that try at once all but one get it
        (see safeopen.replace for file systems without hard links)."""

    def publish(
        self, name: str, content: bytes | memoryview, beside: Mapping[str, bytes | memoryview], note: tuple[str, bytes]
    ) -> bool:
        """Makes an object final: first what lies beside it, and its note, then itself, each whole or not at all.

        Whoever finds the object finds the others that its writer has put there. Where several publish one name at
        once, all have the same; if they have not, a store that can tell (a bucket; a folder cannot) keeps what the
        first has, and gives the others False.

        beside: by name; nothing is left under a name whose content is empty. note: a name, and up to 500 bytes that are
        found with the name by listing where that is cheaper than reading (`noted`)
        """

    def swap(self, name: str, old: bytes | None, new: bytes | None) -> bool:
        """Puts `new` in the place of `old`, or does nothing and returns False if that is not what is there. None:
        nothing. Of several that swap at once one succeeds. Who reads in that moment may find nothing, or an empty
        object.

        For small contents that no two writers have in common, so that a store whose answer gets lost on the way (the
        client asks again, and is told that it came too late) can read who has won.
        """

    def overwrite(self, name: str, content: bytes) -> None:
        """Writes again what has the same length each time, even on a full disk. It need not outlast a power loss, and
        who reads in that moment may find a part of the old and a part of the new."""

    def add_line(self, name: str, line: bytes) -> None:
        """Adds a line, unlike any other, to what several hosts add lines to. One that was torn by a power loss stays a
        line of its own. Raises JobError if it is no file of ours."""

    def appender(self, name: str, head: bytes, every: float) -> Appender:
        """A new object that begins with `head`, or several whose names begin with this one, each with the head. every:
        seconds within which what is appended is kept."""

    def move(self, name: str, to: str) -> None:
        """Durable. Raises FileNotFoundError if somebody else was faster."""

    def remove(self, *names: str, durable: bool = False) -> None:
        """Removes what is there of these. durable: none of them comes back after a power loss."""

    def empty(self, *folders: str) -> None:
        """Removes all that lies in these folders."""

    def remove_unfinished(self) -> None:
        """Removes what writers that were killed have left half-written. Nobody may be writing."""


Place = str | Path  # of an output, as a user names it: a folder, or the URI of one in a bucket


def at(place: Place, stale: float = STALE) -> Store:
    """The store of a place. stale: seconds of silence after which a worker there counts as dead: no request may take as
    long. Raises JobError, or Stopped, if it is a bucket that cannot be opened."""
    if bucket.is_uri(place):
        from .bucket import BucketStore

        return BucketStore(str(place), stale)
    return FolderStore(Path(place))


class FolderStore:
    """A folder, on a local disk or on a share that several hosts have.

    A folder that vanishes while it is in use (an unmounted share) is not made again, on the disk beneath it: only
    `prepare` makes folders with their parents.
    """

    keeps_every = 1.0
    pause = 0.02

    def __init__(self, path: Path):
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    @property
    def location(self) -> str:
        return str(self._path.absolute())

    def where(self, name: str) -> str:
        return str(self._path / name)

    def prepare(self, shared: bool) -> None:
        if program := mounts.bucket_at(self._path):
            warn(
                f"{self}: lies in a bucket that {program} mounts, where two workers may take one shard and a kill may "
                "cost more than a second; name it by its URI (s3://, gs://, az://), which needs no mount"
            )
        with self._stopping():
            owners.check_folders(self._path, shared, layout.FROM_THE_START)
            for each in (*reversed(self._path.parents), self._path, *map(self._at, layout.FROM_THE_START)):
                _make(each)
            owners.check_folders(self._path, shared, layout.FROM_THE_START)  # what was made meanwhile

    def check(self, shared: bool) -> None:
        with self._stopping():
            owners.check_folders(self._path, shared)

    def check_links(self, *folders: str) -> None:
        with self._stopping():
            owners.check_links(self._path, folders or layout.FOLDERS)

    def is_writable(self) -> bool:
        return os.access(self._path, os.W_OK, effective_ids=True)

    def now(self) -> float | None:
        try:  # as a file shows it that is touched and gone
            with tempfile.TemporaryFile(dir=self._at(layout.STATE)) as file:
                os.utime(file.fileno())
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return None

    def log(self, name: str) -> Path:
        return self._at(name)

    def keep_log(self, log: Path) -> str:
        return str(log)  # it lies there

    # --- looks

    def exists(self, name: str) -> bool:
        with self._stopping(name):
            try:
                self._at(name).stat()
            except OSError as error:
                if error.errno not in _NOTHING_THERE:
                    raise
                return False
        return True

    def stat(self, name: str, fresh: bool = False) -> Stat:
        with self._stopping(name, FileNotFoundError):
            if fresh:  # NFS asks the server about a file that is opened; others it may remember for a minute
                with safeopen.reading(self._at(name)) as file:
                    facts = os.fstat(file.fileno())
            else:
                facts = safeopen.facts(self._at(name))
        return Stat(facts.st_size, facts.st_mtime, (facts.st_ino, facts.st_mtime_ns, facts.st_size))

    def changed(self, folder: str) -> float:
        with self._stopping(folder, FileNotFoundError):
            return self._at(folder).stat().st_mtime

    def names(self, folder: str = "", missing_ok: bool = False) -> list[str]:
        with self._stopping(folder):
            try:
                return sorted(os.listdir(self._at(folder)))
            except FileNotFoundError:
                if missing_ok:
                    return []
                raise

    def listed(self, folder: str, begin: str, cuts: Sequence[str] = (), missing_ok: bool = False) -> list[str]:
        return [name for name in self.names(folder, missing_ok) if name.startswith(begin)]

    def sizes(self, folder: str, begin: str, cuts: Sequence[str] = ()) -> dict[str, int]:
        found = {}
        for name in self.listed(folder, begin, missing_ok=True):
            with contextlib.suppress(FileNotFoundError):
                found[name] = self.stat(f"{folder}/{name}" if folder else name).size
        return found

    def entries(self, folder: str) -> list[Entry]:
        found = []
        for name in self.names(folder, missing_ok=True):
            with contextlib.suppress(FileNotFoundError, JobError):
                found.append(self._entry(folder, name))
        return found

    def _entry(self, folder: str, name: str) -> Entry:
        path = self._at(f"{folder}/{name}")
        # Opened, so that its time is fresh, as in `stat`.
        with self._stopping(name, FileNotFoundError), safeopen.reading(path, safeopen.SMALL) as file:
            return Entry(name, file.read(safeopen.SMALL), os.fstat(file.fileno()).st_mtime)

    def read(self, name: str, most: int = safeopen.SMALL) -> bytes:
        with self._stopping(name, FileNotFoundError):
            content = safeopen.read(self._at(name), most)
            self._check_folder_of(name)
        return content

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BufferedReader]:
        with self._stopping(name, FileNotFoundError), safeopen.reading(self._at(name)) as stream:
            self._check_folder_of(name)
            yield stream

    def noted(self, name: str) -> list[bytes]:
        return [self.read(name)]

    def notes(self, names: Sequence[str]) -> dict[str, list[bytes]]:
        def read(some: Sequence[str]) -> dict[str, list[bytes]]:
            found = {}
            for name in some:
                with contextlib.suppress(FileNotFoundError, JobError):
                    found[name] = self.noted(name)
            return found

        parts = [names[start : start + FILES_AT_A_TIME] for start in range(0, len(names), FILES_AT_A_TIME)]
        with ThreadPoolExecutor(READERS) as readers:
            return {name: noted for part in readers.map(read, parts) for name, noted in part.items()}

    # --- changes

    def write(self, name: str, content: bytes | memoryview) -> None:
        self._replace(name, content, new=False)

    def create(self, name: str, content: bytes | memoryview) -> None:
        self._replace(name, content, new=True)

    def _replace(self, name: str, content: bytes | memoryview, new: bool) -> None:
        path = self._at(name)
        # Hosts may have one name, and their containers one process id: neither tells two writers apart.
        temporary = self._at(f"{layout.STATE}/{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        with self._stopping(name, FileExistsError):
            self._check_folder_of(name, make=True)
            safeopen.replace(path, content, temporary=temporary, durable=True, new=new)

    def publish(
        self, name: str, content: bytes | memoryview, beside: Mapping[str, bytes | memoryview], note: tuple[str, bytes]
    ) -> bool:
        for each, its_content in beside.items():
            if its_content:
                self.write(each, its_content)
            elif self.exists(each):
                self.remove(each, durable=True)
        self.write(*note)
        self.write(name, content)
        return True

    def swap(self, name: str, old: bytes | None, new: bytes | None) -> bool:
        path = self._at(name)
        with self._stopping(name):
            if old is not None and not _take_away(path, old):
                return False
            return new is None or _put(path, new)

    def overwrite(self, name: str, content: bytes) -> None:
        with self._stopping(name):
            file = safeopen.write_again(self._at(name))
            try:
                os.pwrite(file, content, 0)
            finally:
                os.close(file)

    def add_line(self, name: str, line: bytes) -> None:
        with self._stopping(name), safeopen.adding(self._at(name)) as stream:
            with contextlib.suppress(OSError):  # where there are no locks, two hosts may tear each other's lines
                fcntl.flock(stream, fcntl.LOCK_EX)
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            is_torn = stream.read(1) not in (b"", b"\n")
            stream.write(b"\n" * is_torn + line + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def appender(self, name: str, head: bytes, every: float) -> "_File":
        return _File(self, name, head, every)

    def move(self, name: str, to: str) -> None:
        with self._stopping(name, FileNotFoundError):
            self._check_folder_of(to, make=True)
            self._at(name).rename(self._at(to))
            safeopen.sync_folder(self._at(to).parent)
            safeopen.sync_folder(self._at(name).parent)

    def remove(self, *names: str, durable: bool = False) -> None:
        with self._stopping():
            for name in names:
                self._check_folder_of(name)
                self._at(name).unlink(missing_ok=True)
            if durable:
                for folder in {self._at(name).parent for name in names}:
                    safeopen.sync_folder(folder)

    def empty(self, *folders: str) -> None:
        with self._stopping():
            for link in filter(Path.is_symlink, map(self._at, layout.FOLDERS)):
                link.unlink(missing_ok=True)  # what it leads to is nobody's to remove
        for folder in folders:
            self.remove(*(f"{folder}/{name}" for name in self.names(folder, missing_ok=True)))

    def remove_unfinished(self) -> None:
        self.remove(*(f"{layout.STATE}/{name}" for name in self.names(layout.STATE) if name.endswith(".tmp")))

    # --- inside

    def _at(self, name: str) -> Path:
        return self._path / name

    @contextlib.contextmanager
    def _stopping(self, name: str = "", *answers: type[OSError]) -> Iterator[None]:
        """Around all that asks the disk. answers: errors that tell the caller what it wants to know."""
        try:
            yield
        except answers:
            raise
        except OSError as error:
            if not error.errno:  # Arrow's, of the bytes that it has read
                raise
            if isinstance(error, NotADirectoryError) and not self._path.is_dir():
                file = next(each for each in (self._path, *self._path.parents) if each.exists())
                raise JobError(f"{file}: is a file; name a folder for the output") from None
            raise refused(error, self.where(name)) from error

    def _check_folder_of(self, name: str, make: bool = False) -> None:
        """Of those folders that every run has looked at before it began there is no more to say."""
        folder = name.rpartition("/")[0]
        if folder in layout.WHEN_NEEDED:
            self.check_links(folder)
            if make:
                _make(self._at(folder))


def _make(folder: Path) -> None:
    """Makes a folder in one that is there."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        safeopen.sync_folder(folder.parent)


def _put(path: Path, content: bytes) -> bool:
    """False if there is something. By O_EXCL and not by a link: that tells on file systems without hard links too."""
    try:
        file = safeopen.create(path)
    except FileExistsError:
        return False
    try:
        os.write(file, content)
        os.fsync(file)  # others would wait a while for a name that a power loss took away
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    return True


def _take_away(path: Path, content: bytes) -> bool:
    """Removes a file if it holds just this. Of several that try one succeeds; where there are no locks, two may."""
    try:
        with safeopen.updating(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                pass
            if file.read(len(content) + 1) != content or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return False  # somebody else was faster
            path.unlink()
    except FileNotFoundError:
        return False
    return True


class _File:
    """The appender of a folder."""

    def __init__(self, store: FolderStore, name: str, head: bytes, every: float):
        self._store, self._name, self._every = store, name, every
        self._synced = clock.monotonic()
        self._is_dirty = False
        with store._stopping(name):
            self._file = safeopen.create(store._at(name))
            try:
                _write_all(self._file, head)
                safeopen.sync_folder(store._at(name).parent)
            except OSError:
                os.close(self._file)
                raise

    def append(self, data: bytes) -> None:
        with self._store._stopping(self._name):
            _write_all(self._file, data)
        self._is_dirty = True

    def keep(self, at_once: bool = False) -> None:
        if self._is_dirty and (at_once or clock.monotonic() - self._synced >= self._every * SYNCED):
            with self._store._stopping(self._name):
                os.fsync(self._file)
            self._is_dirty = False
            self._synced = clock.monotonic()

    def close(self) -> None:
        with self._store._stopping(self._name):
            os.close(self._file)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
