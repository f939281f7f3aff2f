"""The progress of a run: a bar on a terminal, a line every 30 s in a log."""

import time
from collections import deque
from typing import IO, Any

from tqdm import tqdm

from ..host import events
from ..host.caller import Seen

LOG_EVERY = 30.0  # seconds between two lines in a log file
RATE_OVER = 30.0  # seconds over which throughput is averaged

STARTING, STARTING_AFTER = "starting the engine", 5.0  # seconds, before a log file has a line of it


class Progress:
    """Shows on `console` how far a job of `rows` rows has come, `done` of which earlier runs finished."""

    def __init__(self, console: IO[str], rows: int, done: int):
        self._console = console
        style = events.style()
        self._log = style.as_json or not console.isatty()
        is_drawn = not (self._log or style.quiet)
        self._next_line = time.monotonic() + LOG_EVERY
        self._past = deque([(time.monotonic(), 0, 0)])
        self._bar = tqdm(
            total=rows,
            initial=done,
            unit="row",
            file=console,
            disable=not is_drawn,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        if is_drawn:
            events.above_a_bar(lambda line: tqdm.write(line, file=console))
        self._rows, self._done, self._begin = rows, done, time.monotonic()
        self._is_starting = self._said_so = self._has_begun = False

    def starting(self) -> None:
        """No engine is up yet: it may take minutes, in which nothing else moves."""
        if self._has_begun:
            return
        self._bar.set_postfix_str(STARTING, refresh=False)
        self._bar.update(0)
        if self._log and not self._said_so and time.monotonic() - self._begin > STARTING_AFTER:
            self._say("starting", STARTING)
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
            self._log_line(seen, rates, now)

    def _per_second(self, seen: Seen) -> tuple[float, float]:
        """Tokens of prompts, and of responses."""
        (then, prompts, responses), (now, *_) = self._past[0], self._past[-1]
        return (seen.prompt_tokens - prompts) / (now - then), (seen.response_tokens - responses) / (now - then)

    def _rates(self, seen: Seen) -> str:
        prompt, response = self._per_second(seen)
        rates = (
            f"prompt {prompt:,.0f} tok/s, response {response:,.0f} tok/s, running {seen.running}, "
            f"waiting {seen.waiting}"
        )
        rejected = f", rejects {seen.rejected:,}" if seen.rejected else ""
        return rates + rejected + (f", {seen.by_length:.0%} by length" if seen.by_length else "")

    def _log_line(self, seen: Seen, rates: str, now: float) -> None:
        done = self._done + seen.rows
        left = (now - self._begin) / seen.rows * (self._rows - done) if seen.rows else None
        eta = tqdm.format_interval(left) if left is not None else "?"
        prompt, response = self._per_second(seen)
        self._say(
            "progress",
            f"{done:,}/{self._rows:,} rows ({done / self._rows:.0%}), ETA {eta}, {rates}",
            rows=self._rows,
            rows_done=done,
            rejects=seen.rejected,
            by_length=seen.by_length,
            prompt_tokens_per_second=prompt,
            response_tokens_per_second=response,
            running=seen.running,
            waiting=seen.waiting,
            eta=left,
        )

    def _say(self, event: str, line: str, **figures: Any) -> None:
        events.tell(events.Level.info, event, line, stream=self._console, **figures)

    def close(self, rows: int) -> None:
        self._bar.update(self._done + rows - self._bar.n)
        self._bar.close()
        events.above_a_bar(None)
