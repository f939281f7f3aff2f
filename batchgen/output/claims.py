"""Which worker holds which shard. Any number of workers, on any hosts that share the folder, without a leader.

A claim holds the name of its worker, and only one that creates it or swaps its own name for a dead worker's has it. A
worker is alive while its heartbeat goes on. Clocks of hosts are never compared: a watcher times a silent heartbeat by
its own clock. Two workers on one shard are harmless, since both write the same shard; claims are there to save their
time.
"""

import contextlib
import os
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import JobError, Stopped
from ..host import clock
from . import heartbeat, layout
from .heartbeat import Activity
from .store import Store

BEATS = 6  # heartbeats within the time after which a silent worker counts as dead
_NAME = re.compile(r"[\w.-]+")


class Seen(NamedTuple):
    """The last heartbeat of another worker, when we first saw it, and whether we had seen an earlier one."""

    content: bytes
    since: float
    went_on: bool


class Claims:
    """The claims of one worker, and its heartbeat. stale: seconds of silence after which a worker counts as dead;
    beats: the folder where heartbeats of its kind lie."""

    def __init__(self, out: Store, stale: float, beats: str = layout.WORKERS):
        self._out = out
        self._stale = stale
        self._workers = beats
        self.worker = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._me = self.worker.encode()
        self.beat_name = f"{beats}/{self.worker}"
        self._who = heartbeat.identity(self.worker, stale)
        self._activity: Callable[[], Activity] = Activity
        self._beats = 0
        self._beating = threading.Lock()
        self._held: set[int | str] = set()
        self._seen: dict[str, Seen] = {}  # by worker
        self._closed = False
        self.beat()
        self._stop_beating = clock.every(stale / BEATS, self._beat_again)

    def take(self, shard: int | str) -> bool:
        """Claims a shard, or what else goes by a name, if nobody who is alive holds it."""
        claim = layout.claim(shard)
        holder = self._read(claim)
        if holder == self._me and shard not in self._held:  # asked for once, and granted after it was given up
            self._held.add(shard)
            return True
        if holder is not None and (holder == self._me or self.is_alive(holder.decode(errors="replace"))):
            return False
        if taken := self._out.swap(claim, holder, self._me):
            self._held.add(shard)
        return taken

    def holder(self, shard: int | str) -> str | None:
        """The worker that holds it, alive or dead; None if none does."""
        holder = self._read(layout.claim(shard))
        return None if holder is None else holder.decode(errors="replace")

    def release(self, shard: int | str) -> None:
        """Gives a shard back; a claim that somebody took over meanwhile stays theirs."""
        self._held.discard(shard)
        claim = layout.claim(shard)
        if self._read(claim) == self._me:
            self._out.swap(claim, self._me, None)

    def is_alive(self, worker: str) -> bool:
        """False once a worker's process is known to be gone, or its heartbeat was silent for `stale` seconds."""
        last: bytes | None = b""  # of an empty claim: its maker has not written its name yet, or was killed before
        if worker:
            last = self._read(f"{self._workers}/{worker}") if _NAME.fullmatch(worker) else None
        if last is None or ((who := heartbeat.decode(last)) and heartbeat.is_gone(who)):
            return False
        seen = self._seen.get(worker)
        if seen is None or seen.content != last:
            self._seen[worker] = Seen(last, clock.monotonic(), went_on=seen is not None)
            return True
        return clock.monotonic() - seen.since < self._stale

    def at_work(self, shards: Iterable[int], since: float) -> bool:
        """Whether heartbeats of all who hold these shards were seen to go on after `since`: they will finish them."""
        holders = [(self._read(layout.claim(shard)) or b"").decode(errors="replace") for shard in shards]
        return all((seen := self._seen.get(holder)) and seen.went_on and seen.since > since for holder in holders)

    def tell(self, activity: Callable[[], Activity]) -> None:
        """From now on the heartbeat says what this gives. It is asked on another thread, never on two at once."""
        self._activity = activity
        self.beat()

    def beat(self) -> None:
        """Writes a heartbeat now, with what others should know at once."""
        with self._beating:
            if self._closed:
                return
            self._beats += 1
            self._out.overwrite(self.beat_name, heartbeat.encode(self._who, self._activity(), self._beats))

    def close(self) -> None:
        """Releases everything and ends the heartbeat."""
        self._stop_beating()
        self._closed = True
        for shard in list(self._held):
            self.release(shard)
        with self._beating:  # one more would bring it back
            self._out.remove(self.beat_name)

    def _beat_again(self) -> None:
        with contextlib.suppress(Stopped, JobError):  # a vanished disk is the main thread's to report
            self.beat()

    def _read(self, name: str) -> bytes | None:
        try:
            return self._out.read(name)
        except FileNotFoundError:
            return None


def claimed(out: Store) -> set[int]:
    """The shards that somebody holds or, dead by now, held."""
    shards = map(layout.claimed_shard, out.names(layout.CLAIMS))
    return {shard for shard in shards if shard is not None}


def holders(out: Store) -> dict[str, list[int]]:
    """The shards that each worker has claimed, finished ones too."""
    held: dict[str, list[int]] = {}
    for entry in out.entries(layout.CLAIMS):
        if (shard := layout.claimed_shard(entry.name)) is not None:
            held.setdefault(entry.content.decode(errors="replace"), []).append(shard)
    return held
