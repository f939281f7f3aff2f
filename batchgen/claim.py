"""Which worker holds which shard. Any number of workers, on any hosts that share the folder, without a leader.

A claim is a file made with O_EXCL that names its worker; a worker is alive while the beat in its own file goes on.
Clocks of hosts are never compared: a watcher times a silent beat by its own clock. Two workers on one shard are
harmless, since both write the same shard; claims are there to save their time.
"""

import contextlib
import fcntl
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

BEATS = 6  # within the time after which a silent worker counts as dead
_NAME = re.compile(r"[\w.-]+")


class Seen(NamedTuple):
    """The last beat of another worker, when we first saw it, and whether it is not the first one we saw."""

    beat: bytes
    since: float
    went_on: bool


class Claims:
    """The claims of one worker, and its beat. stale: seconds of silence after which a worker counts as dead."""

    def __init__(self, out: Path, stale: float):
        self._stale = stale
        self._claims = out / "_state" / "claims"
        self._workers = out / "_state" / "workers"
        self.worker = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._me = self.worker.encode()
        self._facts = {
            "worker": self.worker,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        self._held: set[int] = set()
        self._seen: dict[str, Seen] = {}  # by worker
        self._stop = threading.Event()
        self._beat(0)
        threading.Thread(target=self._beat_on, daemon=True).start()

    def take(self, shard: int) -> bool:
        """Claims a shard, if nobody who is alive holds it."""
        path = self._path(shard)
        holder = _read(path)
        if holder is not None:
            if holder == self._me or self.is_alive(holder.decode(errors="replace")):
                return False
            if not self._take_away(path, holder):
                return False
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(file, self._me)
            os.fsync(file)  # others would wait a while for a name that a power loss took away
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        self._held.add(shard)
        return True

    def release(self, shard: int) -> None:
        """Gives a shard back; a claim that somebody took over meanwhile stays theirs."""
        self._held.discard(shard)
        if _read(self._path(shard)) == self._me:
            self._path(shard).unlink(missing_ok=True)

    def is_alive(self, worker: str) -> bool:
        """False once a worker's process is known to be gone, or its beat was silent for `stale` seconds."""
        beat: bytes | None = b""  # of a claim that its maker is about to write its name into, or never will
        if worker:
            beat = _read(self._workers / worker) if _NAME.fullmatch(worker) else None
        if beat is None or _is_gone(beat):
            return False
        seen = self._seen.get(worker)
        if seen is None or seen.beat != beat:
            self._seen[worker] = Seen(beat, time.monotonic(), went_on=seen is not None)
            return True
        return time.monotonic() - seen.since < self._stale

    def at_work(self, shards: Iterable[int], since: float) -> bool:
        """Whether the holders of all these shards were seen to beat on after `since`: they will finish them."""
        holders = [(_read(self._path(shard)) or b"").decode(errors="replace") for shard in shards]
        return all((seen := self._seen.get(holder)) and seen.went_on and seen.since > since for holder in holders)

    def close(self) -> None:
        """Releases everything and ends the beat."""
        self._stop.set()
        for shard in list(self._held):
            self.release(shard)
        (self._workers / self.worker).unlink(missing_ok=True)

    def _path(self, shard: int) -> Path:
        return self._claims / f"part-{shard:05}"

    def _take_away(self, path: Path, holder: bytes) -> bool:
        """Removes the claim of a dead worker. Of several watchers one succeeds; where there are no locks, two may."""
        try:
            with path.open("r+b") as claim:
                try:
                    fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                except OSError:
                    pass
                if claim.read() != holder or not os.path.samestat(os.fstat(claim.fileno()), path.stat()):
                    return False  # somebody else took it over meanwhile
                path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _beat_on(self) -> None:
        number = 0
        while not self._stop.wait(self._stale / BEATS):
            number += 1
            with contextlib.suppress(OSError):  # a vanished disk is the main thread's to report
                self._beat(number)

    def _beat(self, number: int) -> None:
        """In place, so that even a full disk takes it."""
        facts: dict[str, Any] = {**self._facts, "beat": f"{number:012}"}
        file = os.open(self._workers / self.worker, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(file, msgspec.json.encode(facts), 0)
        finally:
            os.close(file)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _boot() -> str:
    """Names this boot of this machine, and the process ids that can be seen here (containers have their own)."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def _is_gone(beat: bytes) -> bool:
    """Whether the beat's process ran on this very machine and is no more: that is known at once."""
    try:
        facts = msgspec.json.decode(beat)
        if facts["host"] == socket.gethostname() and facts["boot"] == _boot():
            os.kill(facts["pid"], 0)
            return facts["started"] != _started(facts["pid"])
    except ProcessLookupError:
        return True
    except (msgspec.DecodeError, KeyError, TypeError, OSError):
        pass
    return False


def _started(pid: int) -> str | None:
    """When a process of this machine was started, which tells it from a later one with its id; None if it has ended."""
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]  # a zombie waits for its parent, maybe for ever
