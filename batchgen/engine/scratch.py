"""A place for what engines leave behind: temporary files, sockets, shared memory, semaphores. A run removes its own.

The supervisor ends engines with SIGKILL, so that nothing of theirs tidies up. Whatever they make has this place's name,
and a run that was killed itself is known by its lock, which nobody holds any more.
"""

import fcntl
import multiprocessing
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from multiprocessing import shared_memory
from pathlib import Path

from ..output import owners

PREFIX = "batchgen-engine-"
MARK = ".batchgen-scratch"  # in each of them: a folder that only has such a name is none of ours
VARIABLE = "BATCHGEN_SCRATCH"
SHARED = Path("/dev/shm")
LONGEST = 60  # characters of a folder for sockets, whose paths may have 107: vLLM's own names have 37
YOUNG = 60.0  # seconds that a folder may be there without its lock


class Scratch:
    """Made at the start of a run, removed with all that is in it by `close`. Raises OSError if it cannot be made."""

    def __init__(self) -> None:
        self._locks: list[int] = []
        self._folders: list[Path] = []
        self._folder = self._make(Path(tempfile.gettempdir()))
        self._compiled = Path(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")

    def environment(self) -> dict[str, str]:
        """What engine processes have beside our environment."""
        given = {"TMPDIR": str(self._folder), VARIABLE: self._folder.name}
        given["VLLM_RPC_BASE_PATH"] = str(self._for_sockets())
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # what was compiled is worth keeping; it is run, so whose it is
            with suppress(OSError):
                self._compiled.mkdir(mode=0o700)
            if owners.is_ours(self._compiled):
                given["TORCHINDUCTOR_CACHE_DIR"] = str(self._compiled)
        return given

    def close(self) -> None:
        with suppress(OSError):  # it is not empty, or not there
            self._compiled.rmdir()
        for folder, lock in zip(self._folders, self._locks, strict=True):
            _remove(folder)
            os.close(lock)
        self._folders, self._locks = [], []

    def _for_sockets(self) -> Path:
        if len(str(self._folder)) <= LONGEST:
            return self._folder
        for parent in map(Path, ("/tmp", "/var/tmp", "/dev/shm", f"/run/user/{os.getuid()}")):
            with suppress(OSError):
                return self._make(parent)
        return self._folder

    def _make(self, parent: Path) -> Path:
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks: then nobody sweeps there either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._folders.append(folder)
        self._locks.append(lock)
        (folder / MARK).touch()
        return folder


def adopt() -> None:
    """Names this process's shared memory and semaphores after the run's scratch, to be removed with it."""
    if name := os.environ.get(VARIABLE):
        prefix = f"/{name}."
        # Private to the standard library, the same from Python 3.8 on; without them the names are merely not ours.
        names = vars(shared_memory)
        if {"_SHM_NAME_PREFIX", "_SHM_SAFE_NAME_LENGTH"} <= names.keys():
            names.update(_SHM_NAME_PREFIX=prefix, _SHM_SAFE_NAME_LENGTH=len(prefix) + 16)
        multiprocessing.current_process()._config["semprefix"] = f"/{name}"  # type: ignore[attr-defined]


def _sweep(parent: Path) -> None:
    """Removes what runs of ours left there that are gone."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            seen = folder.lstat()
            old = time.time() - seen.st_mtime > YOUNG
            if not (stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and old and (folder / MARK).exists()):
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for path in SHARED.glob(f"*{folder.name}*"):  # nobody else's: the name is made of eight random letters
        with suppress(OSError):
            path.unlink()
