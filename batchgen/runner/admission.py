"""Which requests are in the engine together: no more than the window holds, poison items alone, none too late."""

from collections import deque

import msgspec

from ..host import clock
from ..task.task import Request
from .messages import PoisonItems
from .open_shard import OpenShard

# As many requests wait as run, so that the next one is there the moment one ends. Fewer wait if prompts are long: their
# ids are held three times, here, in vLLM's front end and in its core.
WINDOW_PER_SEQUENCE = 2
WINDOW_TOKENS = 1 << 20
WINDOW_BYTES = 1 << 30  # of prompts with images, beside their ids
LATEST = 500  # finished requests, the slowest of which says how long the next one may take


class Admitted(msgspec.Struct, frozen=True, eq=False, gc=False):
    request: Request
    shard: OpenShard
    since: float


class Admission:
    """The requests that are in the engine, by name, and which may join them."""

    def __init__(self, max_num_seqs: int, window: int | None, poison: PoisonItems, until: float | None, width: int = 0):
        """window: most requests, running and waiting; until: by when all must have ended, by clock.monotonic; width: of
        the model's embeddings."""
        self.in_engine: dict[str, Admitted] = {}
        self._max_num_seqs = max_num_seqs
        self._window = window or WINDOW_PER_SEQUENCE * max_num_seqs
        # Requests are prepared in batches: twice as fast as one by one between the engine's steps.
        self._refill_at = min(self._window - 1, (self._window + max_num_seqs) // 2)
        self._poison = poison
        self._until = until
        self._width = width
        self._prompt_tokens = self._image_bytes = 0
        self._seconds: deque[float] = deque(maxlen=LATEST)  # from admission to the end
        self._entered: list[str] = []
        self._left: list[str] = []

    @property
    def is_due(self) -> bool:
        """Whether enough has left that the window should be filled again."""
        return len(self.in_engine) <= self._refill_at

    @property
    def has_room(self) -> bool:
        held = len(self.in_engine)
        if self._image_bytes >= WINDOW_BYTES:
            return False
        return held < self._window and (held < self._max_num_seqs or self._prompt_tokens < WINDOW_TOKENS)

    @property
    def is_too_late(self) -> bool:
        """Whether a request that is admitted now may not end in time."""
        return self._until is not None and clock.monotonic() + max(self._seconds, default=0.0) > self._until

    @property
    def running_and_waiting(self) -> tuple[int, int]:
        running = min(len(self.in_engine), self._max_num_seqs)
        return running, len(self.in_engine) - running

    def may_enter(self, name: str) -> bool:
        """A suspected poison item runs alone: if the engine dies again, that proves it, and costs no other item."""
        suspected = self._poison.suspected
        if name in suspected:
            return not self.in_engine
        return not suspected or suspected.isdisjoint(self.in_engine)

    def enter(self, name: str, request: Request, opened: OpenShard) -> None:
        self.in_engine[name] = Admitted(request, opened, clock.monotonic())
        self._entered.append(name)
        self._prompt_tokens += len(request.prompt_token_ids)
        self._image_bytes += image_bytes(request, self._width)
        opened.in_engine += 1

    def leave(self, name: str) -> Admitted:
        admitted = self.in_engine.pop(name)
        self._left.append(name)
        self._prompt_tokens -= len(admitted.request.prompt_token_ids)
        self._image_bytes -= image_bytes(admitted.request, self._width)
        admitted.shard.in_engine -= 1
        return admitted

    def finish(self, name: str) -> Admitted:
        """Takes out a request that the engine has finished."""
        admitted = self.leave(name)
        self._seconds.append(clock.monotonic() - admitted.since)
        return admitted

    def changes(self) -> tuple[list[str], list[str]]:
        """The names that entered and left since the last call."""
        entered, left = self._entered, self._left
        self._entered, self._left = [], []
        return entered, left

    @property
    def has_changed(self) -> bool:
        return bool(self._entered or self._left)


def image_bytes(request: Request, width: int) -> int:
    """The most that an engine holds of a prompt with images beside its ids: an embedding for each of them, and the
    pixels of the images, all in float32. width: of the embeddings."""
    if not request.images:
        return 0
    pixels = sum(each.size[0] * each.size[1] for each in request.images)
    return 4 * (width * len(request.prompt_token_ids) + 3 * pixels)
