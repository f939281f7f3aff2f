"""Opening files in folders where others may write: whatever is in a file's place (a link, a pipe, a device) is never
followed, waited for or read without end.
"""

import contextlib
import errno
import io
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import JobError

SMALL = 1 << 20  # bytes: limit for a file about one shard or worker
RECORD = 1 << 30  # bytes: limit for a job's record, about 100 per file or shard and 8 per row picked by a retry
# What open() fails with for a link, a socket, a pipe without a reader, and a folder.
_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.EISDIR)
# What a file system without hard links says to a link.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
# What one says that cannot sync folders: some FUSE and network file systems, and those of virtual machines.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

StrPath = str | Path


def create(path: StrPath) -> int:
    """Creates a file for writing and returns its descriptor. Raises FileExistsError if anything has that name."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def write_again(path: StrPath, flags: int = 0) -> int:
    """Reopens a file of ours for writing, or creates it. Raises JobError if it is somebody else's, or a hard link."""
    file = _open(path, os.O_WRONLY | os.O_CREAT | flags)
    about = os.fstat(file)
    # On a network share our own files may have another owner's number; the folder then has the same.
    if about.st_uid not in (os.geteuid(), os.stat(os.path.dirname(path)).st_uid) or about.st_nlink > 1:
        os.close(file)
        raise JobError(f"{path}: belongs to another user, or is a hard link; remove it and run the same command again")
    return file


def replace(
    path: Path,
    content: bytes | memoryview,
    *,
    temporary: Path | None = None,
    durable: bool = False,
    new: bool = False,
) -> None:
    """Writes a file that appears whole or not at all, in the place of what has its name; a link is not followed but
    replaced.

    temporary: what it is called until then, on the same file system; durable: it is on the disk when this returns, and
    so is its name; new: nothing may have its name. Of several that try at once one succeeds, the others get
    FileExistsError; on a file system without hard links, those that try within the same milliseconds may all succeed,
    and the last counts.
    """
    temporary = temporary or path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(create(temporary), "wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        if new:
            _move_where_nothing_is(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk needs the room
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def _move_where_nothing_is(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        if temporary.stat().st_nlink != 2:  # NFS: the link was made, but its answer got lost and it was asked for again
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)
        return
    temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder, new or gone, outlast a power loss, on file systems that can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def read(path: StrPath, most: int = SMALL) -> bytes:
    """The content of a regular file. Raises JobError if it is not one, or has more than `most` bytes."""
    file = _open(path, os.O_RDONLY)
    try:
        parts = [os.read(file, _size(path, os.fstat(file), most) + 1)]
        while parts[-1] and sum(map(len, parts)) <= most:
            parts.append(os.read(file, 1 << 16))
        return b"".join(parts)
    finally:
        os.close(file)


def read_below(folder: StrPath, names: Sequence[str], most: int) -> bytes:
    """The first `most` bytes of a regular file below a folder, on the way to which there is no link; the folder itself
    may be one.

    names: of the folders on the way and of the file, none of them `..`. Raises OSError (ELOOP for a link), or JobError
    if it is no regular file.
    """
    path = os.path.join(folder, *names)
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
            os.close(place)
            place = inner
        size = _size(path, os.fstat(place), None)
        content = os.read(place, min(size + 1, most))  # which takes that much memory, however short the file is
        while len(content) < most and (part := os.read(place, most - len(content))):
            content += part
        return content
    finally:
        os.close(place)


@contextlib.contextmanager
def reading(path: StrPath, most: int | None = None) -> Iterator[io.BufferedReader]:
    """The same as a stream; of any length if `most` is not given."""
    with open(_open(path, os.O_RDONLY), "rb") as stream:
        _size(path, os.fstat(stream.fileno()), most)
        yield stream


@contextlib.contextmanager
def updating(path: StrPath) -> Iterator[io.BufferedRandom]:
    """A file to lock, which may be somebody else's."""
    with open(_open(path, os.O_RDWR), "r+b") as stream:
        yield stream


@contextlib.contextmanager
def adding(path: StrPath) -> Iterator[io.BufferedRandom]:
    """A file to add to, which is created if there is none."""
    with open(_open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "r+b") as stream:
        yield stream


def facts(path: StrPath) -> os.stat_result:
    """Of a regular file. Raises JobError if it is not one."""
    about = os.stat(path, follow_symlinks=False)
    _size(path, about, None)
    return about


def _open(path: StrPath, flags: int) -> int:
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _no_file(path, os.lstat(path)) from None
        raise
    try:
        _size(path, os.fstat(file), None)
        return file
    except JobError:
        os.close(file)
        raise


def _size(path: StrPath, about: os.stat_result, most: int | None) -> int:
    if not stat.S_ISREG(about.st_mode):
        raise _no_file(path, about)
    if most is not None and about.st_size > most:
        raise JobError(f"{path}: has {about.st_size:,} bytes, but cannot have more than {most:,}; remove it")
    return about.st_size


def _no_file(path: StrPath, about: os.stat_result) -> JobError:
    kind = _KINDS.get(stat.S_IFMT(about.st_mode), "not a file")
    advice = ", or copy the folder with cp -rL, which resolves links" if kind == "a link" else ""
    return JobError(f"{path}: is {kind}, but must be a regular file; remove it{advice}")
