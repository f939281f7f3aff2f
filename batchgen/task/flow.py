"""From the rows of shards to what the engine is asked: the one way that `run`, `plan`, `verify` and `bench` take."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..input.conversation import Row
from ..input.plan import Shard
from ..input.rows import Reader
from .task import Task

Watch = Callable[[Shard, Iterator[Row]], Iterator[Row]]


def work_of(
    task: Task, reader: Reader, shards: Iterable[Shard], watch: Watch = lambda shard, rows: rows
) -> Iterator[tuple[Row, Any]]:
    """The rows of these shards, in order: each with its Work, or with the Reject that says why it has none. Raises
    JobError or Stopped.

    watch: sees a shard's rows before they are prepared, and may replace them
    """
    for shard in shards:
        yield from task.prepare(watch(shard, reader.read(shard)))
