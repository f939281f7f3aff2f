"""Who owns an output folder. What another user has made, or may write to, can be turned into anything while a run works
there: without `--shared`, which says that a team does so, such a folder is refused.
"""

import contextlib
import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import JobError
from .layout import FOLDERS

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ROOT = 0


@contextlib.contextmanager
def writing(shared: bool) -> Iterator[None]:
    """What is made meanwhile, by this process and those that it starts, others may not write to, whatever the umask;
    the team may, as the umask says."""
    before = os.umask(0o022)
    os.umask(before if shared else before | OTHERS_WRITE)
    try:
        yield
    finally:
        os.umask(before)


def check_folders(out: Path, shared: bool, names: Collection[str] = FOLDERS) -> None:
    """An output folder and its own folders, as far as they are there, must be ours alone, or a team's. Raises JobError.

    A link to it must be ours too. What is above it is not looked at, as groups keep their folders in common ones:
    whoever may rename things there can take the whole folder away from a run.
    """
    check_link(str(out), out)
    check_links(out, names)
    there = _there(out) if not shared else None
    for path in (out, *(out / name for name in names)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            about = path.stat()
            if there:
                _check(path, about, there)


def check_links(out: Path, names: Iterable[str] = FOLDERS) -> None:
    """Raises JobError if one of an output folder's own folders is none: a link would lead out of it, and with it what
    is written and removed there."""
    for path in (out / name for name in names):
        try:
            kind = path.stat(follow_symlinks=False).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(kind):
            what = "a link" if stat.S_ISLNK(kind) else "no folder"
            raise JobError(f"{path}: is {what}, and nothing outside the output folder is touched; remove it")


def check_link(what: str, path: Path) -> None:
    """A link that another user made leads where that user likes. Raises JobError."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode) and about.st_uid not in _mine():
            raise JobError(f"{what}: is a link that {_name(about.st_uid)} made; name what it leads to")


def is_ours(path: Path) -> bool:
    """Whether a path is a folder that we made and nobody else may write to."""
    with contextlib.suppress(OSError):
        about = path.lstat()
        return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not _others_write(path, about)
    return False


class _There(NamedTuple):
    """Who we are on a file system, and whether it keeps modes."""

    users: set[int]
    keeps_modes: bool = True


def _there(out: Path) -> _There:
    """Shares may show other owners and modes than those that were asked for: the first folder we make there tells."""
    users = _mine()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        about = out.stat()
        if about.st_uid not in users or about.st_mode & OTHERS_WRITE:
            with tempfile.TemporaryDirectory(dir=out, prefix=".batchgen-") as made:
                shown = os.stat(made)
            return _There(users | {shown.st_uid}, not shown.st_mode & OTHERS_WRITE)
    return _There(users)


def _mine() -> set[int]:
    """Root can do anything anyway. Under sudo it works for the user who called it."""
    sudo = os.environ.get("SUDO_UID", "") if os.geteuid() == _ROOT else ""
    return {os.geteuid(), _ROOT, *([int(sudo)] if sudo.isdecimal() else [])}


def _check(path: Path, about: os.stat_result, there: _There) -> None:
    if about.st_uid not in there.users:
        raise JobError(
            f"{path}: belongs to {_name(about.st_uid)}, who may put anything into it; name a folder of your own, "
            "or give --shared if you are a team"
        )
    if there.keeps_modes and _others_write(path, about):
        who = "everybody" if about.st_mode & stat.S_IWOTH else f"group {_group(about.st_gid)}"
        raise JobError(
            f"{path}: {who} may write to it; `chmod -R go-w` it, name another folder, "
            "or give --shared if you are a team"
        )


def _others_write(path: Path, about: os.stat_result) -> bool:
    if about.st_mode & stat.S_IWOTH:
        return True
    return bool(about.st_mode & stat.S_IWGRP) and not (_is_private(about.st_gid) and _has_no_acl(path))


def _is_private(group: int) -> bool:
    """Whether it is the group of our own name with nobody else in it, as Debian and Fedora give to every user; with it
    comes a umask of 002. In a container that does not know us by name, the group of our own number."""
    name, members = None, set()
    with contextlib.suppress(KeyError):
        found = grp.getgrgid(group)
        name, members = found.gr_name, set(found.gr_mem)
    try:
        me = pwd.getpwuid(os.geteuid())
    except KeyError:
        return group == os.geteuid() and not members
    return (name, group) == (me.pw_name, me.pw_gid) and members <= {me.pw_name}


def _has_no_acl(path: Path) -> bool:
    """With an access list the group's bits stand for all whom that names."""
    try:
        os.getxattr(path, "system.posix_acl_access")
    except OSError:
        return True
    return False


def _name(user: int) -> str:
    with contextlib.suppress(KeyError):
        return f"user {pwd.getpwuid(user).pw_name}"
    return f"user {user}"


def _group(group: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(group).gr_name
    return str(group)
