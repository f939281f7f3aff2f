"""Models in a bucket: each state of one is downloaded once, into a folder of the cache that is whole or not there."""

import contextlib
import fcntl
import fnmatch
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import JobError, refused
from ..host.bucket import Bucket, Found

PART, AT_ONCE = 8 << 20, 16  # bytes of a request, and requests side by side: all that is in memory


def folder_of(uri: str, patterns: Sequence[str], kind: str = "model") -> Path:
    """The folder with the files of a model or what else: those at the top whose names fit one of the patterns. Raises
    JobError or Stopped."""
    place = Bucket(uri)
    files = _files(place, patterns)
    if not files:
        raise JobError(f"{uri}: no {kind} is there; in a bucket it is a folder of its files")
    state = hashlib.blake2b(repr([(each.name, each.size, each.version) for each in files]).encode(), digest_size=8)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(caches) / "batchgen" / "models" / state.hexdigest() / place.uri.rpartition("/")[2]
    try:
        if not folder.is_dir():
            _download(place, files, folder)
    except OSError as error:
        raise refused(error, str(folder)) from None
    return folder


def _files(place: Bucket, patterns: Sequence[str]) -> list[Found]:
    found = [each for each in place.below() if any(_fits(each.name, pattern) for pattern in patterns)]
    if any(each.name.endswith(".safetensors") for each in found):
        return [each for each in found if not each.name.endswith(".bin")]
    return found


def _fits(name: str, pattern: str) -> bool:
    """Part by part: whoever filled the bucket may have put `..` into a name."""
    return name.count("/") == pattern.count("/") and ".." not in name and fnmatch.fnmatchcase(name, pattern)


def _download(place: Bucket, files: list[Found], folder: Path) -> None:
    """Goes on where a download that was killed has ended. Of several that want one model one downloads it."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(folder.parent / "lock"):
        if folder.is_dir():
            return
        made = folder.parent / "incomplete"
        for each in files:
            file = made / each.name
            if not (file.is_file() and file.stat().st_size == each.size):
                file.parent.mkdir(parents=True, exist_ok=True)
                _copy(place, each, file)
        if [place.head(each.name) for each in files] != files:
            raise JobError(f"{place.uri}: changed while it was downloaded; run the same command again")
        made.rename(folder)


def _copy(place: Bucket, found: Found, to: Path) -> None:
    begun = to.with_name(f"{to.name}.begun")
    with begun.open("wb") as stream:
        for start in range(0, found.size, PART * AT_ONCE):
            starts = range(start, min(found.size, start + PART * AT_ONCE), PART)
            for part in place.side_by_side(lambda at: place.part(found.name, at, min(found.size, at + PART)), starts):
                stream.write(part)
    begun.rename(to)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as stream:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
