"""Other users of the machine, as they are: a fork of this process that has become one of them. Needs root."""

import encodings.utf_32_le  # noqa: F401, as other users cannot read Python itself, if it is in root's home folder
import os
import select
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from conftest import MODEL
from faulty import run_here, spec_of

from batchgen.engine.instant import InstantEngine
from batchgen.errors import JobError, Stopped
from batchgen.model.model import load_model as load

ATTACKER, VICTIM, TEAM = 1001, 1002, 2000
DONE = "done"
PATIENCE = 60  # seconds


def instant_engine() -> InstantEngine:
    model = load(str(MODEL))
    return InstantEngine(model, {}, model.context)


def as_user(user: int, work: Callable[[], object], umask: int = 0o022, group: int | None = None) -> str:
    """What it gives as text, or the one line that it ends with. The user is in TEAM too, or first of all."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        word = ""
        try:
            os.setgroups([TEAM])
            os.setresgid(*[group or user] * 3)
            os.setresuid(user, user, user)
            os.umask(umask)
            word = str(work())
        except (JobError, Stopped) as error:
            word = str(error)
        except BaseException:
            word = traceback.format_exc()
        finally:
            os.write(writing, word.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        if not select.select([pipe], [], [], PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)
        word = pipe.read()
    os.waitpid(child, 0)
    return word


def runs(user: int, source: Path, out: Path, umask: int = 0o022, group: int | None = None, **output) -> str:
    """A run by a user. Gives DONE, or why not."""

    def work() -> str:
        spec = spec_of(source, out, output=output)
        return DONE if run_here(instant_engine(), spec).counts else "others are at work"

    return as_user(user, work, umask, group)


def snapshot(folder: Path) -> dict[str, tuple]:
    """All that is in a folder, and when it was changed."""
    seen = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() and about.st_size < 1 << 20 else b""
        seen[str(path.relative_to(folder))] = (about.st_mode, about.st_uid, about.st_mtime_ns, about.st_ino, content)
    return seen
