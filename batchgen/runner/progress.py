"""The progress of a run: a bar on a terminal, a line every 30 s in a log file."""

import time
from collections import deque
from typing import IO

from tqdm import tqdm

from ..host import terminal
from ..host.caller import Seen

LOG_EVERY = 30.0  # seconds between two lines in a log file
RATE_OVER = 30.0  # seconds over which throughput is averaged

STARTING, STARTING_AFTER = "starting the engine", 5.0  # seconds, before a log file has a line of it


class Progress:
    """Shows on `console` how far a job of `rows` rows has come, `done` of which earlier runs finished."""

    def __init__(self, console: IO[str], rows: int, done: int):
        self._console = console
        self._log = not console.isatty()
        self._next_line = time.monotonic() + LOG_EVERY
        self._past = deque([(time.monotonic(), 0, 0)])
        self._bar = tqdm(
            total=rows, initial=done, unit="row", file=console, disable=self._log, dynamic_ncols=True, mininterval=0.5
        )
        self._rows, self._done, self._begin = rows, done, time.monotonic()
        self._is_starting = self._said_so = self._has_begun = False

    def starting(self) -> None:
        """No engine is up yet: it may take minutes, in which nothing else moves."""
        if self._has_begun:
            return
        self._bar.set_postfix_str(STARTING, refresh=False)
        self._bar.update(0)
        if self._log and not self._said_so and time.monotonic() - self._begin > STARTING_AFTER:
            self._log_line(STARTING)
            self._said_so = True
        self._is_starting = True

    def show(self, seen: Seen) -> None:
        """Draws at most once a second."""
        now, tokens = time.monotonic(), (seen.prompt_tokens, seen.response_tokens)
        if self._is_starting and not self._has_begun:  # the start of an engine says nothing of its pace
            self._past = deque([(now, *tokens)])
            self._begin = now
        self._has_begun = True
        if now - self._past[-1][0] < 1:
            return
        self._past.append((now, *tokens))
        while len(self._past) > 2 and now - self._past[0][0] > RATE_OVER:  # two, even if we were suspended meanwhile
            self._past.popleft()
        rates = self._rates(seen)
        self._bar.set_postfix_str(rates, refresh=False)
        self._bar.update(self._done + seen.rows - self._bar.n)
        if self._log and now >= self._next_line:
            self._next_line = now + LOG_EVERY
            self._log_line(f"{self._rows_line(seen.rows, now)}, {rates}")

    def _rates(self, seen: Seen) -> str:
        (then, prompts, responses), (now, *_) = self._past[0], self._past[-1]
        rates = (
            f"prompt {(seen.prompt_tokens - prompts) / (now - then):,.0f} tok/s, "
            f"response {(seen.response_tokens - responses) / (now - then):,.0f} tok/s, "
            f"running {seen.running}, waiting {seen.waiting}"
        )
        rejected = f", rejects {seen.rejected:,}" if seen.rejected else ""
        return rates + rejected + (f", {seen.by_length:.0%} by length" if seen.by_length else "")

    def _log_line(self, text: str) -> None:
        """With the time: a log file has the lines of many runs."""
        self._console.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _rows_line(self, rows: int, now: float) -> str:
        """rows: of this run."""
        done = self._done + rows
        left = (now - self._begin) / rows * (self._rows - done) if rows else None
        eta = tqdm.format_interval(left) if left is not None else "?"
        return f"{done:,}/{self._rows:,} rows ({done / self._rows:.0%}), ETA {eta}"

    def write(self, line: str) -> None:
        """A line of its own, above the bar."""
        tqdm.write(terminal.message(line), file=self._console)

    def close(self, rows: int) -> None:
        self._bar.update(self._done + rows - self._bar.n)
        self._bar.close()
