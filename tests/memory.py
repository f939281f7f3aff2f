"""A store that keeps everything in this process: what a bucket could do, and nothing that only a disk can."""

import io
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from batchgen.host import safeopen
from batchgen.host.safeopen import SMALL
from batchgen.output.store import Entry, Stat


class Appending:
    def __init__(self, store: "MemoryStore", name: str):
        self._store, self._name = store, name

    def append(self, data: bytes) -> None:
        self._store.write(self._name, self._store.read(self._name, 1 << 40) + data)

    def keep(self, at_once: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryStore:
    location = "memory://out"
    keeps_every = 1.0
    pause = 0.02

    def __init__(self, logs: Path):
        self.objects: dict[str, bytes] = {}
        self._written: dict[str, tuple[float, int]] = {}  # when, and as which version
        self._versions = 0
        self._lock = threading.RLock()
        self._logs = logs

    def __str__(self) -> str:
        return self.location

    def where(self, name: str) -> str:
        return f"{self.location}/{name}"

    def prepare(self, shared: bool) -> None:
        pass

    def check(self, shared: bool) -> None:
        pass

    def check_links(self, *folders: str) -> None:
        pass

    def is_writable(self) -> bool:
        return True

    def now(self) -> float:
        return time.time()

    def log(self, name: str) -> Path:
        return self._logs / name.replace("/", "-")

    def keep_log(self, log: Path) -> str:
        return str(log)

    # --- looks

    def exists(self, name: str) -> bool:
        return name in self.objects

    def stat(self, name: str, fresh: bool = False) -> Stat:
        with self._lock:
            return Stat(len(self._of(name)), *self._written[name])

    def changed(self, folder: str) -> float:
        times = [when for name, (when, _) in self._written.items() if name.startswith(f"{folder}/")]
        if not times:
            raise FileNotFoundError(folder)
        return max(times)

    def names(self, folder: str = "", missing_ok: bool = False) -> list[str]:
        start = f"{folder}/" if folder else ""
        with self._lock:
            return sorted({name.removeprefix(start).split("/")[0] for name in self.objects if name.startswith(start)})

    def listed(self, folder: str, begin: str, cuts: Sequence[str] = (), missing_ok: bool = False) -> list[str]:
        return [name for name in self.names(folder) if name.startswith(begin)]

    def sizes(self, folder: str, begin: str, cuts: Sequence[str] = ()) -> dict[str, int]:
        start = f"{folder}/" if folder else ""
        return {name: len(self.objects[start + name]) for name in self.listed(folder, begin)}

    def noted(self, name: str) -> list[bytes]:
        return [self.read(name)]

    def notes(self, names: Sequence[str]) -> dict[str, list[bytes]]:
        return {name: [self.objects[name]] for name in names if name in self.objects}

    def publish(
        self, name: str, content: bytes | memoryview, beside: Mapping[str, bytes | memoryview], note: tuple[str, bytes]
    ) -> bool:
        with self._lock:
            if name in self.objects:
                return self.objects[name] == content
            for each, its_content in beside.items():
                self.remove(each)
                if its_content:
                    self.write(each, its_content)
            self.write(*note)
            self.write(name, content)
            return True

    def entries(self, folder: str) -> list[Entry]:
        with self._lock:
            paths = [(name, f"{folder}/{name}") for name in self.names(folder)]
            found = [Entry(name, self.objects[path], self._written[path][0]) for name, path in paths]
        return [entry for entry in found if len(entry.content) <= SMALL]

    def read(self, name: str, most: int = SMALL) -> bytes:
        content = self._of(name)
        if len(content) > most:  # refused in the words of a folder
            (self._logs / "long").write_bytes(content)
            return safeopen.read(self._logs / "long", most)
        return content

    @contextmanager
    def open(self, name: str) -> Iterator[io.BufferedReader]:
        yield io.BufferedReader(io.BytesIO(self._of(name)))

    def _of(self, name: str) -> bytes:
        try:
            return self.objects[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    # --- changes

    def write(self, name: str, content: bytes | memoryview) -> None:
        with self._lock:
            self._versions += 1
            self.objects[name], self._written[name] = bytes(content), (time.time(), self._versions)

    overwrite = write

    def create(self, name: str, content: bytes | memoryview) -> None:
        if not self.swap(name, None, bytes(content)):
            raise FileExistsError(name)

    def swap(self, name: str, old: bytes | None, new: bytes | None) -> bool:
        with self._lock:
            if self.objects.get(name) != old:
                return False
            if new is None:
                self.remove(name)
            else:
                self.write(name, new)
            return True

    def add_line(self, name: str, line: bytes) -> None:
        with self._lock:
            self.write(name, self.objects.get(name, b"") + line + b"\n")

    def appender(self, name: str, head: bytes, every: float) -> Appending:
        self.create(name, head)
        return Appending(self, name)

    def move(self, name: str, to: str) -> None:
        with self._lock:
            self.write(to, self._of(name))
            self.remove(name)

    def remove(self, *names: str, durable: bool = False) -> None:
        with self._lock:
            for name in names:
                self.objects.pop(name, None)
                self._written.pop(name, None)

    def empty(self, *folders: str) -> None:
        for folder in folders:
            self.remove(*(f"{folder}/{name}" for name in self.names(folder)))

    def remove_unfinished(self) -> None:
        pass
