"""What can go wrong, sorted by what has to be done about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from .host import console, terminal

shown = terminal.line

RejectReason = Literal[
    "invalid_json",
    "invalid_utf8",
    "bad_shape",
    "unknown_speaker",
    "empty",
    "bad_sampling",
    "too_long",
    "too_large",
    "too_costly",
    "skipped",
    "engine_error",
]
REJECT_REASONS: tuple[RejectReason, ...] = get_args(RejectReason)
LONGEST_DETAIL = 2000  # characters of why a row is rejected


class JobError(Exception):
    """Wrong usage, spec, input or model. Its text is the one line the user sees; the command exits 2. Given several
    lines, each is shown as one: no newline in what they quote makes more of them."""

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


class MissingInput(JobError):
    """An input file that is not there: wrong usage at first, a fault of the machine once the job runs."""


class Reject(Exception):
    """One row that gets no response. The job goes on; the row is listed under `_rejects/`.

    detail: a sentence for the person who fixes the data
    """

    def __init__(self, reason: RejectReason, detail: str):
        if len(detail) > LONGEST_DETAIL:  # a row may have a million columns
            detail = f"{detail[:LONGEST_DETAIL]}..."
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class MachineError(Exception):
    """The engine or the machine failed. Its text is the one line the user sees; the command exits 1."""


class EngineDied(RuntimeError):
    """An engine that was up, or was about to be, failed as a whole: another one may go on where it was."""


class Stopped(Exception):
    """The run ended early and lost nothing; its text says why. The same command goes on; this one exits 75."""


class TimeUp(Stopped):
    """It ended early because the time for it is nearly up: Slurm's allocation, or that of `stop_at`."""


def in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def plain(message: str) -> str:
    """A complaint of msgspec's as the end of a line. Null is not mentioned: whoever leaves a key out has it."""
    return message[:1].lower() + message[1:].replace("`", "").replace(" | null", "")


def warn(text: str) -> None:
    """One line on stderr, for what the user should know though it stops nothing."""
    print(terminal.message(f"batchgen: warning: {text}"), file=console.stderr())


@contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Around our own reading and writing of the output folder: what the disk refuses stops the run, resumable."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise Stopped(f"{error.filename or folder}: {reason}; mend that and run the same command again") from error
