"""An output in an object store. What a folder does by links, locks and appending is done here by conditional writes:

- created: PUT, if nothing has the name; swapped: PUT, if the version that was read is there still
- appended to: objects of their own, uploaded by a thread
- found without reading: small facts are in the names of empty objects, which a listing shows
- final: the object whose name decides can be created once; whoever comes later takes its own bytes back

Every write may be made twice, as its answer may get lost on the way: it is won if what is there is ours.
"""

import base64
import binascii
import contextlib
import itertools
import os
import random
import socket
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..errors import JobError, Stopped
from ..host import clock, safeopen
from ..host.bucket import LAST, Bucket, Found
from . import layout
from .store import LISTED, Entry, Stat

STALE_SHARE = 4  # a request may take this part of the time after which a worker counts as dead, and twice that at most
KEPT = 0.8  # of the time within which what was appended is to be uploaded; the rest is for the upload
GRACE = 5.0  # seconds that another worker has to finish a commit that it has begun
ADDING = 60.0  # seconds in which a line finds a moment when no other host adds one: 100 at once take 7 (moto)
LONGEST_LINES = 1 << 28  # bytes of an object that lines are added to
LONGEST_LOG = 16 << 20  # bytes of a log that are uploaded, its last ones
LONGEST_PART = 200  # characters of a part of a name: services that keep objects as files allow 255
# What notes have in common, as zlib's dictionary, so that they are short. It decides what their names mean: never to be
# changed.
_ALIKE = (
    b'{"parquet":"0123456789abcdef","rejects":null,"size":1,"counts":{"rows":4096,"responses":4096,"rejects":{'
    b'"too_long":1,"empty":2,"bad_shape":3,"check_failed":4},"prompt_tokens":1,"response_tokens":1,"tries":1,"failed":1,'
    b'"segments":1,"failed_segments":0},"fingerprint":"","sampler":["v2","murmur3"],"segments":"",'
    b'"device":"NVIDIA H100 80GB HBM3","cpu","digest":"'
)


class BucketStore:
    """A place in a bucket. What vanishes or changes there while it is in use is found out as in a folder."""

    keeps_every = 10.0
    pause = 0.5

    def __init__(self, uri: str, stale: float):
        """stale: seconds of silence after which a worker counts as dead. Raises JobError or Stopped."""
        self._bucket = Bucket(uri, max(1.0, stale / STALE_SHARE))
        self._bucket.check()
        self._logs: Path | None = None
        self._uploaded: dict[str, int] = {}  # log -> bytes it had when it was last uploaded
        self._changed: dict[str, float] = {}  # when folders of notes had last changed, as they were last listed

    def __str__(self) -> str:
        return self._bucket.uri

    @property
    def location(self) -> str:
        return self._bucket.uri

    def where(self, name: str) -> str:
        return self._bucket.where(name)

    def prepare(self, shared: bool) -> None:
        self.now()  # whoever may not write learns it before a model is loaded

    def check(self, shared: bool) -> None:
        pass  # who may write to a bucket is its owner's to say

    def check_links(self, *folders: str) -> None:
        pass  # there are none

    def is_writable(self) -> bool:
        return True

    def now(self) -> float:
        self._bucket.put(layout.CLOCK, b"now")
        return self._bucket.head(layout.CLOCK).modified

    def log(self, name: str) -> Path:
        if self._logs is None:
            self._logs = Path(tempfile.mkdtemp(prefix="batchgen-logs-"))
            weakref.finalize(self, _remove_uploaded, self._logs, self._uploaded)
        return self._logs / name.rpartition("/")[2]

    def keep_log(self, log: Path) -> str:
        name = layout.kept_log(log.name, socket.gethostname(), os.getpid())
        try:
            with safeopen.reading(log) as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - LONGEST_LOG))
                self._bucket.put(name, stream.read())
                self._uploaded[log.name] = stream.tell()
        except (OSError, JobError, Stopped):
            return str(log)
        return self.where(name)

    # --- looks

    def exists(self, name: str) -> bool:
        return self._bucket.has(name)

    def stat(self, name: str, fresh: bool = False) -> Stat:
        found = self._bucket.head(name)
        return Stat(found.size, found.modified, tuple(found.version.values()))

    def changed(self, folder: str) -> float:
        if folder not in self._changed:
            times = [found.modified for found in self._bucket.below(folder)]
            if not times:
                raise FileNotFoundError(self.where(folder))
            return max(times)
        return self._changed[folder]

    def names(self, folder: str = "", missing_ok: bool = False) -> list[str]:
        folders, objects = self._bucket.names(folder)
        return sorted(name.rpartition("/")[2] for name in (*folders, *(found.name for found in objects)))

    def listed(self, folder: str, begin: str, cuts: Sequence[str] = (), missing_ok: bool = False) -> list[str]:
        return list(self.sizes(folder, begin, cuts))

    def sizes(self, folder: str, begin: str, cuts: Sequence[str] = ()) -> dict[str, int]:
        start = len(f"{folder}/") if folder else 0
        listed = self._pieces(folder, begin, cuts)
        return {each["path"][start:]: each["size"] for each in listed if each["path"].find("/", start) < 0}

    def entries(self, folder: str) -> list[Entry]:
        def read(found: Found) -> Entry | None:
            with contextlib.suppress(FileNotFoundError):
                content, now = self._bucket.get(found.name, safeopen.SMALL * 2)
                return Entry(_in(folder, found.name), content, now.modified)
            return None

        _, objects = self._bucket.names(folder)
        small = [found for found in objects if found.size <= safeopen.SMALL]
        return [entry for entry in self._bucket.side_by_side(read, small) if entry]

    def read(self, name: str, most: int = safeopen.SMALL) -> bytes:
        return self._bucket.get(name, most)[0]

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BufferedReader]:
        with self._bucket.open(name) as stream:
            yield stream

    def noted(self, name: str) -> list[bytes]:
        if found := [_noted(_in(name, each.name)) for each in self._bucket.below(name)]:
            return found
        raise FileNotFoundError(self.where(name))

    def notes(self, names: Sequence[str]) -> dict[str, list[bytes]]:
        if not names:
            return {}
        folder = names[0].rpartition("/")[0]
        found: dict[str, list[bytes]] = {name: [] for name in names}
        times = set()
        for each in self._pieces(folder, "", [_in(folder, name) for name in names[LISTED::LISTED]]):
            path = each["path"]
            length = path.find("/", len(folder) + 1)
            if (of := found.get(path[:length])) is not None:
                with contextlib.suppress(ValueError):
                    of.append(_noted(path[length + 1 :]))
            times.add(each["last_modified"])
        if times:
            self._changed[folder] = max(times).timestamp()
        return {name: notes for name, notes in found.items() if notes}

    def _pieces(self, folder: str, begin: str, cuts: Sequence[str]) -> Iterator[Any]:
        """A listing, of which the pieces between cuts are asked for side by side."""
        if not self._bucket.lists_from_anywhere:
            cuts = ()

        def piece(edges: tuple[str, str]) -> list[Any]:
            after, last = edges
            return list(itertools.chain.from_iterable(self._bucket.pages(folder, after, begin, last)))

        edges = [*itertools.pairwise(["", *cuts, LAST])]
        return itertools.chain.from_iterable(self._bucket.in_turn(piece, edges) if cuts else map(piece, edges))

    # --- changes

    def write(self, name: str, content: bytes | memoryview) -> None:
        self._bucket.put(name, content)

    def overwrite(self, name: str, content: bytes) -> None:
        self._bucket.put(name, content)

    def create(self, name: str, content: bytes | memoryview) -> None:
        if not self._bucket.create(name, content):
            raise FileExistsError(self.where(name))

    def publish(
        self, name: str, content: bytes | memoryview, beside: Mapping[str, bytes | memoryview], note: tuple[str, bytes]
    ) -> bool:
        new = {each: bytes(its_content) or None for each, its_content in beside.items()}
        before: dict[str, bytes | None] = {}
        put = self._bucket.side_by_side(lambda each: self._put_beside(name, each, new[each], before), new)
        if not all(put):
            return self._take_back(new, before) or self._is(name, content)
        noted = _note(*note)
        self._bucket.put(noted, b"")
        if self._bucket.create(name, content):
            # One that believed us dead may have put its own there.
            there = self._bucket.side_by_side(self._content, new)
            for each, its_content in zip(new, there, strict=True):
                if its_content != new[each]:
                    self.swap(each, its_content, new[each])
            return True
        self._bucket.delete([noted])
        return self._take_back(new, before)

    def _put_beside(self, name: str, beside: str, new: bytes | None, before: dict[str, bytes | None]) -> bool:
        """Puts something beside an object that is about to be published; what it took the place of goes to `before`.
        False if somebody else has published the object. What is there already may be of one who is just doing so: it
        has a while for that."""
        until = clock.monotonic() + GRACE
        while True:
            old = self._content(beside)
            if old == new:
                return True
            if old is None or clock.monotonic() > until:
                if self.swap(beside, old, new):
                    before[beside] = old
                    return True
            elif self.exists(name):
                return False
            else:
                clock.sleep(self.pause)

    def _take_back(self, new: Mapping[str, bytes | None], before: Mapping[str, bytes | None]) -> bool:
        for each, old in before.items():
            self.swap(each, new[each], old)
        return False

    def _is(self, name: str, content: bytes | memoryview) -> bool:
        return self.stat(name).size == len(content) and self._content(name) == content

    def _content(self, name: str) -> bytes | None:
        try:
            return self._bucket.get(name)[0]
        except FileNotFoundError:
            return None

    def swap(self, name: str, old: bytes | None, new: bytes | None) -> bool:
        if old is None:
            return new is None or self._bucket.create(name, new)
        try:
            content, found = self._bucket.get(name)
        except FileNotFoundError:
            return False
        if content != old or not self._bucket.swap(name, found.version, new or b""):
            return False
        if new is None:  # there is no conditional delete: nobody takes over at once what is empty
            self._bucket.delete([name])
        return True

    def add_line(self, name: str, line: bytes) -> None:
        """By writing all of it again, if nobody else has meanwhile: what has a line for each run is short."""
        until = clock.monotonic() + ADDING
        while True:
            try:
                content, found = self._bucket.get(name, LONGEST_LINES)
            except FileNotFoundError:
                if self._bucket.create(name, line + b"\n"):
                    return
                continue
            if line in content or self._bucket.swap(name, found.version, content + line + b"\n"):
                return
            if clock.monotonic() > until:
                raise Stopped(f"{self.where(name)}: others were faster for {ADDING:g} s")
            clock.sleep(random.uniform(0, 2 * self.pause))

    def appender(self, name: str, head: bytes, every: float) -> "_Segments":
        return _Segments(self, name, head, every)

    def move(self, name: str, to: str) -> None:
        self._bucket.copy(name, to)
        self._bucket.delete([name])

    def remove(self, *names: str, durable: bool = False) -> None:
        self._bucket.delete(names)

    def empty(self, *folders: str) -> None:
        for folder in folders:
            self._bucket.delete([found.name for found in self._bucket.below(folder)])

    def remove_unfinished(self) -> None:
        pass  # an object appears whole


def _remove_uploaded(logs: Path, uploaded: Mapping[str, int]) -> None:
    """What this machine alone has stays: of a worker that was stopped at once, or while the bucket was gone."""
    with contextlib.suppress(OSError):
        for log in logs.iterdir():
            if log.stat().st_size <= uploaded.get(log.name, 0):
                log.unlink()
        logs.rmdir()


def _in(folder: str, name: str) -> str:
    return name.removeprefix(f"{folder}/") if folder else name


# --- notes


def _note(name: str, content: bytes) -> str:
    """The name of an object that says something: below the name, in parts that are not too long."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=_ALIKE)
    text = base64.urlsafe_b64encode(packed.compress(content) + packed.flush()).decode().rstrip("=")
    return "/".join([name, *(text[start : start + LONGEST_PART] for start in range(0, len(text), LONGEST_PART))])


def _noted(text: str) -> bytes:
    """What such a name says. Raises ValueError if it is not one."""
    try:
        # base64's own takes as long for this as zlib for the rest: there are 100,000 of them.
        content = binascii.a2b_base64(text.replace("/", "").replace("-", "+").replace("_", "/") + "==")
        return zlib.decompressobj(-zlib.MAX_WBITS, zdict=_ALIKE).decompress(content, 1 << 16)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(str(error)) from None


# --- appending


class _Segments:
    """The appender of a bucket: what was appended is uploaded every few seconds, in an object of its own each time, by
    a thread. What fails there is told to whoever appends next."""

    def __init__(self, store: BucketStore, name: str, head: bytes, every: float):
        self._store, self._name, self._head = store, name, head
        self._pending: list[bytes] = []
        self._number = 0
        self._failure: Exception | None = None
        self._appending, self._uploading = threading.Lock(), threading.Lock()
        self._stop = clock.every(every * KEPT, self._upload_in_time)

    def append(self, data: bytes) -> None:
        if self._failure:
            raise self._failure
        with self._appending:
            self._pending.append(data)

    def keep(self, at_once: bool = False) -> None:
        if self._failure:
            raise self._failure
        if at_once:
            self._upload()

    def close(self) -> None:
        self._stop()
        with self._uploading, self._appending:  # nothing comes after this, when others may have removed the rest
            self._pending = []

    def _upload_in_time(self) -> None:
        try:
            self._upload()
        except Exception as error:
            self._failure = error

    def _upload(self) -> None:
        with self._uploading:
            with self._appending:
                data, self._pending = b"".join(self._pending), []
            if data:
                try:
                    self._store.write(layout.segment(self._name, self._number), self._head + data)
                except BaseException:
                    with self._appending:
                        self._pending.insert(0, data)
                    raise
                self._number += 1
