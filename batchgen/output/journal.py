"""The journal: every finished item of a shard, on disk within a second of its last token.

A journal is a file of records: length and CRC-32, both 4 bytes little-endian, then the payload. The CRC covers the
length too. The first payload is the job's fingerprint, each further one an entry in msgpack. Every worker writes a
file of its own, so nobody ever appends to what another one wrote.
"""

import os
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from ..host import safeopen
from ..job.sampling import FINISH_REASONS
from .folder import sync_folder

SYNC_EVERY = 0.5  # seconds; the promise is one second, the rest is for the disk
LONGEST = 1 << 29  # bytes of a record; a million tokens with 20 log probabilities each have 0.3 GB
_HEAD = struct.Struct("<II")


TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A finished item: what the engine gave for it. All else can be read off the input again.

    text_end: as in engine.Response; None in journals of batchgen 0.1.0, which did not write it. New fields go to the
    end, with a default: older journals are read without them.
    """

    row: int
    sample: int
    token_ids: list[TokenId]
    finish_reason: Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(FINISH_REASONS)})$")]
    logprobs: list[list[tuple[TokenId, float]]] | None = None
    text_end: int | None = None


def path_of(out: Path, shard: int, worker: str) -> Path:
    return out / "_state" / "journal" / f"part-{shard:05}.{worker}.journal"


def paths_of(out: Path, shard: int) -> list[Path]:
    """Every journal of a shard, of whatever worker. Unlike `glob`, raises what the disk refuses."""
    journals = out / "_state" / "journal"
    start = f"part-{shard:05}."
    return [journals / name for name in sorted(os.listdir(journals)) if name.startswith(start)]


def rows_done(out: Path, shard: int, fingerprint: str, samples: int) -> int:
    """How many rows of a shard have so many samples in its journals."""
    found = {(entry.row, entry.sample) for path in paths_of(out, shard) for entry in read(path, fingerprint)[0]}
    return sum(number >= samples for number in Counter(row for row, _ in found).values())


def remove(out: Path, shard: int) -> None:
    """Removes the journals of a shard that is committed."""
    for path in paths_of(out, shard):
        path.unlink(missing_ok=True)


class Journal:
    """Writes the journal of one shard. The file is made at the first entry. Raises OSError as the disk does."""

    def __init__(self, path: Path, fingerprint: str):
        self._path = path
        self._fingerprint = fingerprint
        self._file = -1  # not made yet
        self._pending: list[bytes] = []
        self._synced = time.monotonic()
        self._dirty = False

    def append(self, entry: Entry) -> None:
        self._pending.append(_record(msgspec.msgpack.encode(entry)))

    def flush(self) -> None:
        """Hands what was appended to the operating system: a kill of this process loses nothing of it."""
        if not self._pending:
            return
        if self._file < 0:
            self._create()
        _write_all(self._file, b"".join(self._pending))
        self._pending.clear()
        self._dirty = True

    def sync(self, at_once: bool = False) -> None:
        """Puts it on the disk, if that was not done for a while: a power loss loses nothing of it."""
        if self._dirty and (at_once or time.monotonic() - self._synced >= SYNC_EVERY):
            os.fsync(self._file)
            self._dirty = False
            self._synced = time.monotonic()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _create(self) -> None:
        self._file = safeopen.create(self._path)
        _write_all(self._file, _record(self._fingerprint.encode()))
        sync_folder(self._path.parent)


def _record(payload: bytes) -> bytes:
    length = len(payload).to_bytes(4, "little")
    return length + zlib.crc32(length + payload).to_bytes(4, "little") + payload


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def read(path: Path, fingerprint: str) -> tuple[list[Entry], str]:
    """The whole entries of one journal, and what is wrong behind the last of them, if anything.

    A journal of another job (a spec mended before anything was finished) has no entries of this one.
    """
    entries: list[Entry] = []
    try:
        with safeopen.reading(path) as stream:
            for number, payload in enumerate(_payloads(stream)):
                if number:
                    entries.append(msgspec.msgpack.decode(payload, type=Entry))
                elif payload != fingerprint.encode():
                    return [], ""
    except (ValueError, msgspec.DecodeError) as error:
        return entries, f"{error}; {len(entries)} whole entries kept"
    return entries, ""


def count(path: Path) -> int:
    """How many whole entries a journal has, of whatever job."""
    number = 0
    try:
        with safeopen.reading(path) as stream:
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
