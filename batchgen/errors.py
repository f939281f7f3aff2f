"""Everything that can go wrong, by what has to be done about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, Literal, get_args

from .host import caller, events, terminal

shown = terminal.line

RejectReason = Literal[
    "invalid_json",
    "invalid_utf8",
    "bad_shape",
    "unknown_speaker",
    "empty",
    "bad_sampling",
    "unknown_adapter",
    "too_long",
    "too_large",
    "too_costly",
    "image_missing",
    "image_unreadable",
    "skipped",
    "engine_error",
    "check_failed",
    "check_error",
]
REJECT_REASONS: tuple[RejectReason, ...] = get_args(RejectReason)
LONGEST_DETAIL = 2000  # characters of a Reject's detail


class JobError(Exception):
    """Wrong usage, spec, input or model. The text is what the user sees; the command exits 2.

    It is one line. Pass several arguments for several lines: a newline inside one of them is escaped, so that quoted
    text cannot fake another line.
    """

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


class MissingInput(JobError):
    """An input file that does not exist: wrong usage before the job runs, a fault of the machine after that."""


class NoRows(JobError):
    """There is no row in the input, which is there: wrong usage, but of a job whose rows are to come."""


class Reject(Exception):
    """A row that gets no response. The job continues; the row is listed under `_rejects/`.

    Attributes:
        detail: a sentence for the person who has to fix the data.
    """

    def __init__(self, reason: RejectReason, detail: str):
        if len(detail) > LONGEST_DETAIL:  # a row may have a million columns
            detail = f"{detail[:LONGEST_DETAIL]}..."
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


# The HTTP clients of fsspec and of huggingface_hub (httpx2 and httpcore2 from its 2.0 on), by their packages.
_HTTP_CLIENTS = {"aiohttp", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


def is_of_network(error: BaseException) -> bool:
    """Whether an error comes from an HTTP client: no connection, or a setting that allows none."""
    return any(kind.__module__.partition(".")[0] in _HTTP_CLIENTS for kind in type(error).__mro__)


class MachineError(Exception):
    """The engine or the machine failed. The text is the one line that the user sees; the command exits 1."""


class EngineDied(RuntimeError):
    """An engine failed as a whole, while starting or running. A new one may take over where it left off."""


class Stopping(Enum):
    """Why a run, or one of its workers, stops before its work is done."""

    NO = "no"  # it does not
    AS_ASKED = "as asked"  # by a signal
    TIME_UP = "time up"  # nearly: that of `stop_at`, or of Slurm's allocation
    AT_ONCE = "at once"  # by a second Ctrl-C
    NOT_DRAINED = "not drained"  # requests in the engine took longer than they had
    FAULT = "fault"  # of disk or input, which is not ours to fix


_SENTENCES = {
    Stopping.AS_ASKED: "stopped as asked",
    Stopping.TIME_UP: "stopped, as the time is nearly up",
    Stopping.AT_ONCE: "stopped at once",
    Stopping.NOT_DRAINED: "stopped; the engine did not drain",
}


class Stopped(Exception):
    """The run ended early and lost nothing; the same command resumes it. This one exits with 75.

    text: the one line that the user sees; if empty, the sentence for `why`.
    """

    def __init__(self, text: str = "", why: Stopping = Stopping.FAULT):
        super().__init__(text or f"{_SENTENCES[why]}; run the same command again to resume")
        self.why = why


def in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def plain(message: str) -> str:
    """An error message of msgspec's as the end of a line, without "| null": leaving the key out means null."""
    return message[:1].lower() + message[1:].replace("`", "").replace(" | null", "")


def warn(text: str, **figures: Any) -> None:
    """Tells of something that the user should know and that does not stop the run: in one line on stderr, or as the
    Python program that has called wants it. figures: what a log of JSON says besides"""
    if tell := caller.current().warn:
        tell(text)
        return
    events.tell(events.Level.warning, "warning", text, **figures)


@contextmanager
def on_disk(folder: object) -> Iterator[None]:
    """Wraps reading and writing of the output folder: an OSError becomes Stopped, so that the run can be resumed."""
    try:
        yield
    except OSError as error:
        raise refused(error, str(folder)) from error


def refused(error: OSError, place: str) -> Stopped:
    """place: what the disk was asked about, if the error does not say so itself."""
    reason = error.strerror or str(error)
    return Stopped(f"{error.filename or place}: {reason}; fix that and run the same command again")
