"""What became of one run of a job: for the caller, and as the line that is kept of it."""

import socket
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from ..errors import JobError, Stopped
from ..host import terminal
from ..output import layout
from ..output.counts import Counts
from ..output.store import Store
from .messages import Totals

Ended = Literal["done", "too_many_rejects", "trial", "left_to_others", "nothing_to_do", "stopped", "failed", "refused"]
EXIT_CODES: dict[Ended, int] = {
    "done": 0,
    "trial": 0,
    "left_to_others": 0,
    "nothing_to_do": 0,
    "failed": 1,
    "refused": 2,
    "too_many_rejects": 3,
    "stopped": 75,
}


@dataclass(frozen=True)
class Outcome:
    """max_rejects: as the job has it; totals: what this run did; counts: the whole job's accounting, None while other
    workers are still at it; rejected: rows that max_rejects is about; first_reject: where the first of them is, and
    why; seconds: of this run, and of its engine starts; trial: the rows that it was to do, if they are done and others
    are not; closed: whether it is this run that closed the job; nothing: why there is nothing to do yet."""

    out: Store
    max_rejects: int | None = None
    totals: Totals = field(default_factory=Totals)
    counts: Counts | None = None
    rejected: int = 0
    seconds: float = 0.0
    engine_start: float = 0.0
    first_reject: str = ""
    trial: str = ""
    closed: bool = False
    nothing: str = ""

    @property
    def has_too_many_rejects(self) -> bool:
        return self.max_rejects is not None and self.rejected > self.max_rejects

    @property
    def tokens_per_second(self) -> float:
        """Of responses, or of prompts where there are only scores; the engine's start is not counted."""
        seconds = max(self.seconds - self.engine_start, 1e-9)
        return (self.totals.response_tokens or self.totals.prompt_tokens) / seconds

    @property
    def figures(self) -> dict[str, Any]:
        """What is told of it in JSON, everywhere under the same names, which are those of RunRecord."""
        totals = self.totals
        return {
            "output": self.out.location,
            "outcome": self.ended,
            "exit_code": EXIT_CODES[self.ended],
            "rows": totals.rows,
            "open_rows": totals.open_rows,
            "responses": totals.responses,
            "kept": totals.kept,
            "rejects": totals.rejects,
            "finish_reasons": totals.finish_reasons or {},
            "prompt_tokens": totals.prompt_tokens,
            "response_tokens": totals.response_tokens,
            "seconds": round(self.seconds, 3),
            "engine_start_seconds": round(self.engine_start, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "first_reject": terminal.message(self.first_reject),
            "job": self.counts,
        }

    @property
    def ended(self) -> Ended:
        if self.has_too_many_rejects:
            return "too_many_rejects"
        if self.counts:
            return "done"
        if self.nothing:
            return "nothing_to_do"
        return "trial" if self.trial else "left_to_others"


class RunRecord(msgspec.Struct, kw_only=True):
    """One run of a job, as `_runs.jsonl` and others are told of it. Secrets are never in it.

    start, end: in UTC, as ISO 8601 has them
    versions: of batchgen, vLLM and whatever else decides results
    outcome: how it ended, and its exit code; why: the line about one that did not reach its end
    rows, rejects, finish_reasons: of the shards that it finished, so that over all runs they add up to the job's
    open_rows: rows that it finished beyond those, which are in journals
    responses, prompt_tokens, response_tokens: the engine's in this run; kept: responses found in journals
    seconds: of the run, and of engine starts in it; tokens_per_second: of responses, after that
    job: the whole job's accounting, once no shard of it is missing
    """

    start: str
    end: str
    host: str
    output: str
    versions: dict[str, str]
    outcome: Ended
    exit_code: int
    why: str = ""
    rows: int = 0
    open_rows: int = 0
    responses: int = 0
    kept: int = 0
    rejects: dict[str, int] = {}
    finish_reasons: dict[str, int] = {}
    prompt_tokens: int = 0
    response_tokens: int = 0
    seconds: float = 0.0
    engine_start_seconds: float = 0.0
    tokens_per_second: float = 0.0
    first_reject: str = ""
    job: Counts | None = None


def record_of(
    done: Outcome | None, place: str, start: float, versions: dict[str, str], error: Exception | None = None
) -> RunRecord:
    """done: None if it was over before the job was known; place: of its output; start: in seconds since the epoch;
    error: what the run ended with, if it did not reach its end."""
    ended = done.ended if done and not error else _ended_by(error)
    figures = (done.figures if done else {}) | {"output": place, "outcome": ended, "exit_code": EXIT_CODES[ended]}
    return RunRecord(
        start=_iso(start),
        end=_iso(time.time()),
        host=socket.gethostname(),
        versions=versions,
        why=terminal.message(str(error) or type(error).__name__) if error else "",
        **figures,
    )


def _ended_by(error: Exception | None) -> Ended:
    if isinstance(error, Stopped):
        return "stopped"
    return "refused" if isinstance(error, JobError) else "failed"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def log(out: Store, run: RunRecord) -> None:
    """Adds a run to those that the folder tells of. Raises Stopped or JobError."""
    out.add_line(layout.RUN_LOG, msgspec.json.encode(run))
