"""Where results may go: a path of this machine whose name can be written into records and lines, and be read there."""

import errno
import os
import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from ..errors import JobError, shown

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes one slash of two
_LONGEST_NAME = 240  # bytes, of the 255 that file systems take; a file is written under a longer name first


def check_output_path(what: str, path: str) -> None:
    """Raises JobError, which begins with `what`, if results cannot go to a path, there or not; OSError if the
    disk does not tell."""
    if path.startswith("file:///") and not _is_utf8(unquote_to_bytes(path)):  # as such paths are recorded
        raise JobError(f"{what}: {path}: its name is not UTF-8, which records are written in; name another place")
    if _URI.match(path):
        raise JobError(f"{what}: {shown(path)}: results go to this machine's files, not to a URI; copy them from there")
    if any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in path):
        raise JobError(f"{what}: {shown(path)}: has a control character in its name; name another place")
    if not _is_utf8(os.fsencode(path)):
        raise JobError(
            f"{what}: {shown(path)}: its name is not UTF-8, which records are written in; name another place"
        )
    if any(len(os.fsencode(name)) > _LONGEST_NAME for name in path.split("/")):
        raise JobError(f"{what}: {path[:80]}...: has a name of more than {_LONGEST_NAME} bytes; name a shorter one")
    _check_links(what, path)


def _check_links(what: str, path: str) -> None:
    """A link in it must lead somewhere, or no folder can be made there."""
    while not _is_there(os.stat, path):
        if _is_there(os.lstat, path):
            raise JobError(f"{what}: {path}: is a link to nothing, or to itself; mend it, or name another place")
        path = os.path.dirname(path) or "."


def _is_there(look: Callable[[str], object], path: str) -> bool:
    """Raises OSError as the disk does: what cannot be looked at for a moment may be there."""
    try:
        look(path)
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
