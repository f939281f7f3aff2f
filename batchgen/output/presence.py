"""Who is at work in an output folder, and whose turn it is to say which job the folder is.

A run makes itself known before it opens `_job.json`, by a beat in `_state/runs` that goes on until it ends: the time in
which a model is loaded is covered too. Runs decide one at a time, under a claim, so that whoever decides sees all those
that have opened the folder; those that have not yet are behind it and will see what it decided.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ..errors import JobError, Stopped, on_disk
from ..host import safeopen
from ..host.safeopen import SMALL
from . import heartbeat as beat
from .claims import Claims
from .heartbeat import Activity, Beat

FILE_SYSTEM, THIS_HOST = "file system", "this host"
STALE = 60.0  # seconds of silence after which one is dead that does not say itself how many
DECIDING = "job"  # the name of the claim
WAIT = 0.02  # seconds between two looks at it
_OPENING = "opening"  # of a run that waits for its turn


class Presence:
    """That of one run, from before it opens the folder until it ends. `_state` and its folders are there already."""

    def __init__(self, out: Path, stale: float):
        self._out = out
        self._state = _OPENING
        self._claims = Claims(out, stale, beats="runs")
        self._claims.tell(lambda: Activity(state=self._state))

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """While it lasts no other run opens the folder."""
        while not self._claims.take(DECIDING):
            time.sleep(WAIT)
        try:
            yield
        finally:
            self._claims.release(DECIDING)

    def opened(self) -> None:
        """From now on nobody else may take the folder."""
        self._state = "running"
        self._claims.beat()

    def others(self) -> list[str]:
        """Other runs and workers that are alive, by host and process. Of those that only wait for their turn none."""
        return [
            f"{said.host}, process {said.pid}" if said else name
            for place in ("runs", "workers")
            for name, said in self._alive(place)
            if name != self._claims.worker and not (place == "runs" and (said is None or said.state == _OPENING))
        ]

    def tidy(self) -> None:
        """Removes the beats of the dead and, where nobody else is at work, the files that somebody was killed over."""
        state = self._out / "_state"
        for place in ("runs", "workers"):
            living = {name for name, _ in self._alive(place)}
            for name, _, _ in files_of(state / place):
                if name not in living:
                    (state / place / name).unlink(missing_ok=True)
        with self.deciding():
            if not self.others():
                for path in state.glob("*.tmp"):
                    path.unlink(missing_ok=True)

    def _alive(self, place: str) -> list[tuple[str, Beat | None]]:
        """Names and last beats of those in a folder of `_state` that are not known to be dead. The file system's clock
        is read off our own beat, made now."""
        files = files_of(self._out / "_state" / place)
        self._claims.beat()
        now = (self._out / "_state" / "runs" / self._claims.worker).stat().st_mtime
        beats = [(name, beat.decode(content), now - mtime) for name, content, mtime in files]
        return [
            (name, said)
            for name, said, age in beats
            if age <= ((said and said.stale) or STALE) and not (said and beat.is_gone(said))
        ]

    def close(self) -> None:
        self._claims.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with on_disk(self._out):
                self.close()
        except Stopped:
            if kind is None:  # or else the disk has said already why the run ends; the beat goes silent by itself
                raise


def now(state: Path) -> tuple[float, str]:
    """The time by the clock that stamps the beats, as a file shows it that is touched and gone; hosts' clocks differ.
    Where we may not write it is our own, and silence proves nothing."""
    try:
        with tempfile.TemporaryFile(dir=state) as file:
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_mtime, FILE_SYSTEM
    except OSError:
        return time.time(), THIS_HOST


def files_of(place: Path) -> list[tuple[str, bytes, float]]:
    """Name, content and mtime of every file of a folder, but for what cannot be one of ours."""
    files = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(place)):
            # NFS asks the server for the times of a file that is opened; others it may remember for a minute.
            with contextlib.suppress(FileNotFoundError, JobError), safeopen.reading(place / name, SMALL) as file:
                files.append((name, file.read(SMALL), os.fstat(file.fileno()).st_mtime))
    return files
