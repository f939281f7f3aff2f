"""Cleaning up after engines: their temporary files, sockets, shared memory and semaphores.

The supervisor ends engines by SIGKILL, so they cannot clean up themselves. All that they make is in, or is named after,
a scratch folder of the run, which removes it at its end. What a killed run has left, the next one removes: nobody holds
the lock on its folder any more.
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
MARK = ".batchgen-scratch"  # a file in each: a folder without it is not ours, whatever its name
VARIABLE = "BATCHGEN_SCRATCH"
SHARED = Path("/dev/shm")
LONGEST = 60  # characters of a folder for sockets: their paths may have 107, and vLLM adds a name of 37
YOUNG = 60.0  # seconds after its last change in which a folder may be waiting for its lock


class Scratch:
    """Made at the start of a run; `close` removes it with all that is in it. Raises OSError if it cannot be made."""

    def __init__(self) -> None:
        self._locks: list[int] = []
        self._folders: list[Path] = []
        self._folder = self._make(Path(tempfile.gettempdir()))
        self._compiled = Path(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")

    def environment(self) -> dict[str, str]:
        """Variables for engine processes, beside our environment."""
        given = {"TMPDIR": str(self._folder), VARIABLE: self._folder.name}
        given["VLLM_RPC_BASE_PATH"] = str(self._for_sockets())
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # kept for the next run
            with suppress(OSError):
                self._compiled.mkdir(mode=0o700)
            if owners.is_ours(self._compiled):  # it will be executed
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
        with suppress(OSError):  # a file system without locks, where nobody sweeps either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._folders.append(folder)
        self._locks.append(lock)
        (folder / MARK).touch()
        return folder


def adopt() -> None:
    """Names this process's shared memory and semaphores after the run's scratch folder, so that they go with it."""
    if name := os.environ.get(VARIABLE):
        prefix = f"/{name}."
        # Private to the standard library, but the same since Python 3.8. Without them the names are just not ours.
        names = vars(shared_memory)
        if {"_SHM_NAME_PREFIX", "_SHM_SAFE_NAME_LENGTH"} <= names.keys():
            names.update(_SHM_NAME_PREFIX=prefix, _SHM_SAFE_NAME_LENGTH=len(prefix) + 16)
        multiprocessing.current_process()._config["semprefix"] = f"/{name}"  # type: ignore[attr-defined]


def _sweep(parent: Path) -> None:
    """Removes what this user's killed runs have left there."""
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
    for path in SHARED.glob(f"*{folder.name}*"):  # eight random letters: nobody else's
        with suppress(OSError):
            path.unlink()
