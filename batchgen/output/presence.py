"""Who is at work in an output folder, and whose turn it is to say which job the folder is.

A run makes itself known before it opens `_job.json`, by a heartbeat in `_state/runs` that goes on until it ends: the
time in which a model is loaded is covered too. Runs decide one at a time, under a claim, so that whoever decides sees
all those that have opened the folder; those that have not yet are behind it and will see what it decided.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

from ..errors import Stopped, on_disk
from ..host import clock
from . import heartbeat, layout
from .claims import Claims
from .heartbeat import Activity, Heartbeat
from .store import Entry, Store

FILE_SYSTEM, THIS_HOST = "file system", "this host"
STALE = 60.0  # seconds of silence after which one is dead that does not say itself how many
_OPENING = "opening"  # of a run that waits for its turn


class Heard(NamedTuple):
    """The last heartbeat of a worker or run, and its age in seconds; None while it cannot be read."""

    name: str
    beat: Heartbeat | None
    age: float


class Presence:
    """That of one run, from before it opens the folder until it ends. The store is prepared already."""

    def __init__(self, out: Store, stale: float):
        self._out = out
        self._state = _OPENING
        self._claims = Claims(out, stale, beats=layout.RUNS)
        self._claims.tell(lambda: Activity(state=self._state))

    @contextlib.contextmanager
    def deciding(self, still: Callable[[], bool] = lambda: True) -> Iterator[bool]:
        """While it lasts no other run opens the folder. Yields False, without a turn, if what is to be decided on is
        not `still` so when the turn comes."""
        while is_so := still():
            if self._claims.take(layout.DECIDING):
                break
            clock.sleep(self._out.pause)
        try:
            yield is_so
        finally:
            if is_so:
                self._claims.release(layout.DECIDING)

    def is_nobody_deciding(self) -> bool:
        """Somebody who was killed while deciding is somebody."""
        return self._claims.holder(layout.DECIDING) is None

    def waited_for_decision(self) -> bool:
        """Waits until nobody decides. False if whoever does is dead."""
        while (holder := self._claims.holder(layout.DECIDING)) is not None:
            if not self._claims.is_alive(holder):
                return False
            clock.sleep(self._out.pause)
        return True

    def opened(self) -> None:
        """From now on nobody else may take the folder."""
        self._say("running")

    def waits(self) -> None:
        """Takes that back."""
        self._say(_OPENING)

    def _say(self, state: str) -> None:
        self._state = state
        self._claims.beat()

    def others(self) -> list[str]:
        """Other runs and workers that are alive, by host and process. Of those that only wait for their turn none."""
        return [
            f"{said.host}, process {said.pid}" if said else name
            for place in (layout.RUNS, layout.WORKERS)
            for name, said in self._alive(place)
            if name != self._claims.worker and not (place == layout.RUNS and (said is None or said.state == _OPENING))
        ]

    def tidy(self) -> None:
        """After the last shard: removes the heartbeats of the dead and, where nobody else is at work, what those that
        were killed have left: claims, journals, and what is half-written."""
        for place in (layout.RUNS, layout.WORKERS):
            living = {name for name, _ in self._alive(place)}
            names = (entry.name for entry in self._out.entries(place))
            self._out.remove(*(f"{place}/{name}" for name in names if name not in living))
        with self.deciding():
            if not self.others():
                self._out.remove_unfinished()
                self._out.empty(layout.JOURNALS)
                claims = (name for name in self._out.names(layout.CLAIMS) if name != layout.DECIDING)
                self._out.remove(*(f"{layout.CLAIMS}/{name}" for name in claims))

    def _alive(self, place: str) -> list[tuple[str, Heartbeat | None]]:
        """Names and last heartbeats of those in a folder that are not known to be dead. The store's clock is read off
        our own heartbeat, made now."""
        entries = self._out.entries(place)
        self._claims.beat()
        with on_disk(self._out):
            now = self._out.stat(self._claims.beat_name).modified
        return [(heard.name, heard.beat) for heard in _heard(entries, now) if _lives(heard)]

    def close(self) -> None:
        self._claims.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except Stopped:
            if kind is None:  # or else the disk has said already why the run ends; the heartbeat goes silent by itself
                raise


def has_traces(out: Store) -> bool:
    """Whether anybody is at work, or has left what only those need who are: one who died on another host is known to be
    dead only after a while, and by then the job may be closed."""
    places = (layout.RUNS, layout.WORKERS, layout.JOURNALS, layout.CLAIMS)
    return any(out.names(place, missing_ok=True) for place in places)


def workers(out: Store) -> tuple[list[Heard], str]:
    """The last heartbeats of all workers that have not left, and whose clock their ages are by. Where we may not write
    it is our own, hosts' clocks differ, and silence proves nothing."""
    entries = out.entries(layout.WORKERS)
    now = out.now()
    clock = THIS_HOST if now is None else FILE_SYSTEM
    return list(_heard(entries, time.time() if now is None else now)), clock


def is_silent(heard: Heard, stale: float = STALE) -> bool:
    """stale: seconds after which it is, if it does not say so itself."""
    return heard.age > ((heard.beat and heard.beat.stale) or stale)


def _heard(entries: list[Entry], now: float) -> Iterator[Heard]:
    for name, content, modified in entries:
        yield Heard(name, heartbeat.decode(content), now - modified)


def _lives(heard: Heard) -> bool:
    return not is_silent(heard) and not (heard.beat and heartbeat.is_gone(heard.beat))
