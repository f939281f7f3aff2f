"""A first look at what a worker reads and what its engine answers: whether something is wrong with most of it. It is
said once, while most of the time that it would cost is still to come, with the key to change.
"""

from collections import Counter
from collections.abc import Callable

from ..check.loops import is_endless
from ..errors import JobError, Reject
from ..input.conversation import Row
from ..input.plan import Plan, locate
from ..output.counts import by_reason
from ..task.task import Entry, Request
from .prepare import Job

ROWS, RESPONSES = 1000, 500  # that are looked at before anything is said
MOST = 0.5  # share of them that is too much
SAME_FROM = 20  # characters of a response that many rows may not have in common: a label may well be
SENTENCE = 300  # characters of a reject's detail

KEYS = {  # to look at, by the reason for which rows are rejected
    "invalid_json": "[input] path",
    "bad_shape": "[input] format or [prompt] template",
    "unknown_speaker": "[input] format",
    "empty": "[input] format or [prompt] template",
    "bad_sampling": "[input] sampling",
    "unknown_adapter": "[input] adapter",
    "too_long": "[prompt] on_overlength",
    "too_large": "[limits]",
    "too_costly": "[limits]",
}


def told(plan: Plan, row: int, reason: str, detail: str) -> str:
    """A reject in a sentence: where the row is, and why."""
    return f"{locate(plan, row)}: {reason}: {detail[:SENTENCE]}"


class FirstRows:
    """The rows that a worker reads, and how many of them are rejected."""

    def __init__(self, job: Job, warn: Callable[[str], None]):
        self._job, self._warn = job, warn
        self._rows = 0
        self._rejects: Counter[str] = Counter()
        self._first: dict[str, str] = {}  # by reason: where it is, and why
        self._look_at = min(ROWS, job.plan.rows)

    def take(self, row: Row, why: Reject | None) -> None:
        """Raises JobError if more rows are rejected than [output] abort_if_rejected allows."""
        self._rows += 1
        if why and why.reason != "skipped":
            self._rejects[why.reason] += 1
            if why.reason not in self._first:
                self._first[why.reason] = told(self._job.plan, row.number, why.reason, why.detail)
        if self._rows < self._look_at:
            return
        most = self._job.spec.output.abort_if_rejected
        if most is not None and (rejected := self._rejects.total()) > most * self._rows:
            raise JobError(
                f"{rejected:,} of the first {self._rows:,} rows are rejected{by_reason(self._rejects)}, and [output] "
                f"abort_if_rejected allows {most:.0%}; {self._worst()}"
            )
        if most is None and self._rows == ROWS and self._rejects and max(self._rejects.values()) > MOST * ROWS:
            self._warn(f"most of the first {ROWS:,} rows are rejected; {self._worst()}")

    def _worst(self) -> str:
        [(reason, _)] = self._rejects.most_common(1)
        key = f"; look at {KEYS[reason]}" if reason in KEYS else ""
        return f"the first at {self._first[reason]}{key}"


class FirstResponses:
    """The responses that a worker's engine generates."""

    def __init__(self, job: Job, warn: Callable[[str], None]):
        self._job, self._warn = job, warn
        self._seen = 0
        self._wrong: Counter[str] = Counter()
        self._texts: Counter[str] = Counter()

    def take(self, request: Request, entry: Entry) -> None:
        if self._seen >= RESPONSES or request.scored:
            return
        self._seen += 1
        text = self._job.generate.text(request, entry)
        self._wrong["loop"] += is_endless(text, entry.finish_reason)
        self._wrong["length"] += entry.finish_reason == "length"
        self._wrong["empty"] += not text.strip()
        if len(text) >= SAME_FROM:
            self._texts[text] += 1
        if self._seen == RESPONSES:
            self._judge()

    def _judge(self) -> None:
        which = f"most of the first {RESPONSES:,} responses"
        wrong = {what for what, number in self._wrong.items() if number > MOST * RESPONSES}
        spec = self._job.spec
        if "loop" in wrong:
            self._warn(f"{which} end in a loop; [sampling] repetition_penalty or another temperature may help")
        elif "length" in wrong:
            allowed = f"[sampling] max_tokens ({spec.sampling.max_tokens})"
            self._warn(f"{which} are cut off: {allowed} or [engine] max_model_len is too small for them")
        if "empty" in wrong:
            format = self._job.generate.format
            self._warn(f"{which} are empty; look at [prompt] format (it is {format}) and at [sampling] stop")
        if max(self._texts.values(), default=0) > MOST * RESPONSES:
            self._warn(f"{which} are the same text; does [prompt] template have what differs from row to row?")
        self._texts.clear()
