"""Where results may go: a local path whose name can be written to records and printed on one line, or a bucket."""

import errno
import os
import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from ..errors import JobError, shown
from ..host import bucket

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash, as pathlib turns two into one
_LONGEST_NAME = 240  # bytes; file systems allow 255, and a file is first written under a longer temporary name


def check_output_path(what: str, path: str, in_bucket: bool = True) -> None:
    """Checks that results can go to a path, whether it exists or not.

    Args:
        what: where the path comes from; the error begins with it.
        path: the path.
        in_bucket: whether it may be one in a bucket.

    Raises:
        JobError: they cannot.
        OSError: the file system fails to say.
    """
    if path.startswith("file:///") and not _is_utf8(unquote_to_bytes(path)):  # see spec.recordable_path
        raise JobError(f"{what}: {path}: its name is not UTF-8, as records have to be; choose another path")
    if in_bucket and bucket.is_uri(path):
        bucket.check_uri(path)
        return
    if _URI.match(path):
        kinds = ", ".join(f"{scheme}://" for scheme in bucket.SCHEMES)
        may_be = f"local files or to a bucket ({kinds})" if in_bucket else "local files"
        raise JobError(f"{what}: {shown(path)}: results go to {may_be}, not to this URI; copy them from there")
    if any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in path):
        raise JobError(f"{what}: {shown(path)}: has a control character in its name; choose another path")
    if not _is_utf8(os.fsencode(path)):
        raise JobError(f"{what}: {shown(path)}: its name is not UTF-8, as records have to be; choose another path")
    if any(len(os.fsencode(name)) > _LONGEST_NAME for name in path.split("/")):
        raise JobError(f"{what}: {path[:80]}...: has a name of more than {_LONGEST_NAME} bytes; choose a shorter one")
    _check_links(what, path)


def _check_links(what: str, path: str) -> None:
    """Raises JobError for a broken link in the path: no folder could be made there."""
    while not _is_there(os.stat, path):
        if _is_there(os.lstat, path):
            raise JobError(f"{what}: {path}: is a broken link, or one to itself; fix it, or choose another path")
        path = os.path.dirname(path) or "."


def _is_there(look: Callable[[str], object], path: str) -> bool:
    """Whether the path exists. Raises OSError if that cannot be told, say because a server does not answer."""
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
