"""The journal: every finished item of a shard, on disk within a second of its last token, in a bucket within ten
(`[output] journal_every`).

A journal consists of records: length and CRC-32, both 4 bytes little-endian, then the payload. The CRC covers the
length too. The first payload is the job's fingerprint and, from 0.3 on, what drew the tokens, all parted by NULs; each
further one is an entry in msgpack. Every worker writes journals of its own, so nobody ever appends to what another one
wrote.
"""

import contextlib
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import msgspec

from ..errors import on_disk
from ..job.sampler import UNKNOWN, Sampler, joined
from ..task.task import Entry
from . import layout
from .quarantine import quarantine
from .store import READERS, Appender, Store

LONGEST = 1 << 29  # bytes of a record; a million tokens with 20 log probabilities each have 0.3 GB
_HEAD = struct.Struct("<II")


def names(out: Store, shard: int) -> list[str]:
    """Every journal of a shard, of whatever worker."""
    return [f"{layout.JOURNALS}/{name}" for name in out.listed(layout.JOURNALS, layout.journals(shard))]


def shards(out: Store) -> set[int]:
    """The shards that have journals."""
    names = out.names(layout.JOURNALS, missing_ok=True)
    return {index for name in names if (index := layout.journaled_shard(name)) is not None}


def entries(out: Store, shard: int, fingerprint: str) -> Iterator[Entry]:
    """The whole entries of all journals of a shard, as far as they are there: a worker may be writing them, or may
    have just made the shard final."""
    for name in names(out, shard):
        with contextlib.suppress(FileNotFoundError):
            yield from read(out, name, fingerprint)[0]


def rows_done(out: Store, shard: int, fingerprint: str, samples: int) -> int:
    """How many rows of a shard have at least `samples` samples in its journals, further tries that they may get left
    aside."""
    with on_disk(out):
        entries = (entry for name in names(out, shard) for entry in read(out, name, fingerprint).entries)
        found = {(entry.row, entry.sample) for entry in entries}
    return sum(number >= samples for number in Counter(row for row, _ in found).values())


def remove(out: Store, shard: int) -> None:
    """Removes the journals of a shard that is committed."""
    out.remove(*names(out, shard))


class Journal:
    """Writes one worker's journal of one shard. It is made at the first entry. Raises Stopped as the store does."""

    def __init__(
        self,
        out: Store,
        shard: int,
        worker: str,
        fingerprint: str,
        sampler: Sampler = UNKNOWN,
        every: float | None = None,
    ):
        """sampler: what draws that which is going to be appended; every: seconds within which it is kept, if not those
        of the store."""
        self._out = out
        self._every = every or out.keeps_every
        self._shard = shard
        self._name = layout.journal(shard, worker)
        self._fingerprint = fingerprint
        self._sampler = sampler
        self._drew: set[Sampler] = set()  # the entries of earlier journals
        self._begun = False
        self._file: Appender | None = None
        self._pending: list[bytes] = []

    def resume(self) -> tuple[list[Entry], list[str]]:
        """All whole entries of the shard's earlier journals, and a warning for each of these that is damaged: its
        entries are journaled here again, and it is moved to quarantine."""
        kept: list[Entry] = []
        warnings: list[str] = []
        with on_disk(self._out):
            for name, (entries, damage, drew) in self._earlier():
                kept += entries
                if entries:
                    self._drew.add(drew or self._sampler)
                if damage:
                    for entry in entries:
                        self.append(entry)
                    self.flush()
                    self.keep(at_once=True)
                    aside = quarantine(self._out, name)
                    warnings.append(f"{self._out.where(name)}: {damage}; moved to {self._out.where(aside)}")
            for drew in self._drew - {self._sampler}:
                begun = f"shard {self._shard} was begun with {drew}, and goes on with {self._sampler}"
                warnings.append(f"{self._out.where(layout.JOURNALS)}: {begun}")
        return kept, warnings

    def _earlier(self) -> Iterator[tuple[str, "Read"]]:
        """Each of them with what is in it. Read side by side: in a bucket a shard may have hundreds."""
        found = names(self._out, self._shard)
        if not found:
            return
        with ThreadPoolExecutor(READERS) as readers:
            yield from zip(
                found, readers.map(lambda name: read(self._out, name, self._fingerprint), found), strict=True
            )

    def append(self, entry: Entry) -> None:
        self._pending.append(_record(msgspec.msgpack.encode(entry)))

    def flush(self) -> None:
        """Hands on what was appended: on a disk, a kill of this process loses nothing of it."""
        if not self._pending:
            return
        file = self._file or self._create()
        file.append(b"".join(self._pending))
        self._pending.clear()

    def keep(self, at_once: bool = False) -> None:
        """Has the store keep it in time (Appender.keep)."""
        if self._file:
            self._file.keep(at_once)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    @property
    def sampler(self) -> Sampler:
        """What drew all entries of the shard: this worker's engine, and those of earlier ones. A journal of batchgen
        0.2 or older does not say it, and counts as this engine's."""
        return joined(self._drew | {self._sampler} if self._begun or not self._drew else self._drew)

    def _create(self) -> Appender:
        self._begun = True
        sampler = self.sampler
        head = [self._fingerprint, *([sampler.runner, sampler.noise] if sampler.is_recorded else [])]
        self._file = self._out.appender(self._name, _record("\0".join(head).encode()), self._every)
        return self._file


def _record(payload: bytes) -> bytes:
    length = len(payload).to_bytes(4, "little")
    return length + zlib.crc32(length + payload).to_bytes(4, "little") + payload


class Read(NamedTuple):
    """The whole entries of one journal; what is wrong after the last of them, if anything; and what drew them, if it
    says so."""

    entries: list[Entry]
    damage: str = ""
    drew: Sampler | None = None


def read(out: Store, name: str, fingerprint: str) -> Read:
    """Raises FileNotFoundError.

    A journal of another job (one whose spec was changed before anything was finished) has no entries of this one.
    """
    entries: list[Entry] = []
    drew = None
    try:
        with out.open(name) as stream:
            for number, payload in enumerate(_payloads(stream)):
                if number:
                    entries.append(msgspec.msgpack.decode(payload, type=Entry))
                    continue
                made_by, *drawn = payload.decode(errors="replace").split("\0")
                if made_by != fingerprint:
                    return Read([])
                drew = Sampler(drawn[0], drawn[1]) if len(drawn) == 2 else None
    except (ValueError, msgspec.DecodeError) as error:
        return Read(entries, f"{error}; {len(entries)} whole entries kept", drew)
    return Read(entries, drew=drew)


def count(out: Store, shard: int | None = None) -> int:
    """How many whole entries all journals have together, of a shard or of all, and of whatever job."""
    if shard is not None:
        return sum(_count(out, name) for name in names(out, shard))
    return sum(_count(out, f"{layout.JOURNALS}/{name}") for name in out.names(layout.JOURNALS, missing_ok=True))


def _count(out: Store, name: str) -> int:
    number = 0
    try:
        with out.open(name) as stream:
            for _ in _payloads(stream):
                number += 1
    except (ValueError, FileNotFoundError):
        pass
    return max(0, number - 1)


def _payloads(stream: BinaryIO) -> Iterator[bytes]:
    """Raises ValueError where the records end too early or do not fit their CRC."""
    position = 0
    while head := stream.read(_HEAD.size):
        if len(head) < _HEAD.size:
            raise ValueError(f"cut off at byte {position}")
        length, crc = _HEAD.unpack(head)
        # An empty record is never written: that is what a zero-filled file looks like.
        if not 0 < length <= LONGEST:
            raise ValueError(f"damaged at byte {position}")
        payload = stream.read(length)
        if len(payload) < length:
            raise ValueError(f"cut off at byte {position}")
        if zlib.crc32(head[:4] + payload) != crc:
            raise ValueError(f"damaged at byte {position}")
        yield payload
        position += _HEAD.size + length
