"""Bytes that are needed later, kept on the disk instead of in memory for as long as somebody holds on to them."""

import itertools
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from ..errors import on_disk


class Spill:
    """A folder of its own for temporary files (below TMPDIR), which ends with it. It is made when first needed."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._numbers = itertools.count()

    def keep(self, content: bytes) -> "Kept":
        """Raises Stopped if there is no room."""
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="batchgen-spill-", ignore_cleanup_errors=True)
        path = Path(self._folder.name) / str(next(self._numbers))
        with on_disk(path):
            path.write_bytes(content)
        return Kept(path)


class Kept:
    """Some bytes in a file, which is removed when nobody refers to this any more."""

    __slots__ = ("_path",)

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> bytes:
        """Raises Stopped if somebody has removed the file."""
        with on_disk(self._path):
            return self._path.read_bytes()

    def __del__(self) -> None:
        with suppress(OSError):
            os.unlink(self._path)
