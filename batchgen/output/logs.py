"""What workers and their engines print: into files of this machine, as they write by file descriptors."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import on_disk
from ..host import safeopen
from . import layout
from .store import Store


def of_worker(out: Store, worker: int, shared: bool) -> Path:
    """worker: its number, from 1 on; shared: by several users, and nobody writes to another one's log."""
    return out.log(layout.log(worker, os.geteuid() if shared else None))


@contextlib.contextmanager
def appending(log: Path) -> Iterator[IO[bytes]]:
    """Raises Stopped, for what is done with it too."""
    with on_disk(log), open(safeopen.write_again(log, os.O_APPEND), "ab") as stream:
        yield stream
