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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import JobError
from ..host import safeopen
from . import heartbeat as beat
from .heartbeat import Activity

BEATS = 6  # within the time after which a silent worker counts as dead
_NAME = re.compile(r"[\w.-]+")


class Seen(NamedTuple):
    """The last beat of another worker, when we first saw it, and whether it is not the first one we saw."""

    beat: bytes
    since: float
    went_on: bool


class Claims:
    """The claims of one worker, and its beat. stale: seconds of silence after which a worker counts as dead; beats: the
    folder in `_state` where it beats among its like."""

    def __init__(self, out: Path, stale: float, beats: str = "workers"):
        self._stale = stale
        self._claims = out / "_state" / "claims"
        self._workers = out / "_state" / beats
        self.worker = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._me = self.worker.encode()
        self._who = beat.identity(self.worker, stale)
        self._activity: Callable[[], Activity] = Activity
        self._beats = 0
        self._beating = threading.Lock()
        self._held: set[int | str] = set()
        self._seen: dict[str, Seen] = {}  # by worker
        self._stop = threading.Event()
        self.beat()
        threading.Thread(target=self._beat_on, daemon=True).start()

    def take(self, shard: int | str) -> bool:
        """Claims a shard, or what else goes by a name, if nobody who is alive holds it."""
        path = self._path(shard)
        holder = _read(path)
        if holder is not None:
            if holder == self._me or self.is_alive(holder.decode(errors="replace")):
                return False
            if not self._take_away(path, holder):
                return False
        try:
            file = safeopen.create(path)
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

    def release(self, shard: int | str) -> None:
        """Gives a shard back; a claim that somebody took over meanwhile stays theirs."""
        self._held.discard(shard)
        if _read(self._path(shard)) == self._me:
            self._path(shard).unlink(missing_ok=True)

    def is_alive(self, worker: str) -> bool:
        """False once a worker's process is known to be gone, or its beat was silent for `stale` seconds."""
        last: bytes | None = b""  # of a claim that its maker is about to write its name into, or never will
        if worker:
            last = _read(self._workers / worker) if _NAME.fullmatch(worker) else None
        if last is None or ((who := beat.decode(last)) and beat.is_gone(who)):
            return False
        seen = self._seen.get(worker)
        if seen is None or seen.beat != last:
            self._seen[worker] = Seen(last, time.monotonic(), went_on=seen is not None)
            return True
        return time.monotonic() - seen.since < self._stale

    def at_work(self, shards: Iterable[int], since: float) -> bool:
        """Whether the holders of all these shards were seen to beat on after `since`: they will finish them."""
        holders = [(_read(self._path(shard)) or b"").decode(errors="replace") for shard in shards]
        return all((seen := self._seen.get(holder)) and seen.went_on and seen.since > since for holder in holders)

    def tell(self, activity: Callable[[], Activity]) -> None:
        """From now on the beat says what this gives. It is asked on another thread, never on two at once."""
        self._activity = activity
        self.beat()

    def beat(self) -> None:
        """Beats now, for what others should know at once."""
        with self._beating:
            if self._stop.is_set():
                return
            self._beats += 1
            file = safeopen.write_again(self._workers / self.worker)
            try:
                os.pwrite(file, beat.encode(self._who, self._activity(), self._beats), 0)
            finally:
                os.close(file)

    def close(self) -> None:
        """Releases everything and ends the beat."""
        self._stop.set()
        for shard in list(self._held):
            self.release(shard)
        with self._beating:  # one more beat would bring the file back
            (self._workers / self.worker).unlink(missing_ok=True)

    def _path(self, shard: int | str) -> Path:
        return self._claims / (shard if isinstance(shard, str) else f"part-{shard:05}")

    def _take_away(self, path: Path, holder: bytes) -> bool:
        """Removes the claim of a dead worker. Of several watchers one succeeds; where there are no locks, two may."""
        try:
            with safeopen.updating(path) as claim:
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
        while not self._stop.wait(self._stale / BEATS):
            with contextlib.suppress(OSError, JobError):  # a vanished disk is the main thread's to report
                self.beat()


def _read(path: Path) -> bytes | None:
    try:
        return safeopen.read(path)
    except FileNotFoundError:
        return None
