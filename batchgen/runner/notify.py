"""`[notify] command`: a program of the user's that is told how a run ended."""

import contextlib
import os
import shlex
import signal
import subprocess

import msgspec

from ..errors import in_one_line, warn
from .outcome import RunRecord

PATIENCE = 60.0  # seconds that the program may take: mail goes out in less, and a night waits for it


def tell(command: str, run: RunRecord) -> None:
    """Gives the record to the program as JSON on its stdin. What goes wrong with that is a warning: the run is over,
    and nothing of it depends on this.

    The program is started without a shell, in our environment; what it prints goes to stderr, as our stdout is the
    summary's alone.
    """
    words = shlex.split(command)
    try:
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=2, stderr=2, start_new_session=True) as program:
            try:
                program.communicate(msgspec.json.encode(run) + b"\n", PATIENCE)
            except BaseException as error:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGKILL)  # what it has started as well
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                warn(f"[notify] {words[0]}: was not done within {PATIENCE:g} s, and was ended")
                return
    except OSError as error:
        warn(f"[notify] {words[0]}: {error.strerror or in_one_line(error)}")
        return
    if program.returncode:
        warn(f"[notify] {words[0]}: ended with {program.returncode}")
