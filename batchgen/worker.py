"""The loop: read rows, keep the engine full, commit every shard whose last response is there."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from . import conversation, item, shard, source
from .conversation import Row
from .engine import Engine, Response
from .errors import Reject
from .item import Item
from .prepare import Job
from .progress import Progress, Totals
from .source import Shard

# So that a request is there the moment another one ends: behind those that run, as many wait.
WINDOW_PER_SEQUENCE = 2


@dataclass(eq=False)
class OpenShard:
    """A shard that is being read and generated. Every row of it ends in answers or in rejects."""

    shard: Shard
    answers: list[dict[str, Any]] = field(default_factory=list)
    rejects: dict[int, dict[str, Any]] = field(default_factory=dict)
    in_engine: int = 0
    all_read: bool = False

    def reject(self, row: Row, id: str, why: Reject) -> None:
        self.rejects[row.number] = shard.reject_line(row, id, why)

    @property
    def complete(self) -> bool:
        return self.all_read and not self.in_engine


@dataclass(frozen=True, slots=True)
class Request:
    """An item with the row and the shard it came from."""

    item: Item
    row: Row
    shard: OpenShard


class Worker:
    """Generates shards of one job with one engine, and counts what it did in `totals`."""

    def __init__(self, job: Job, engine: Engine, progress: Progress, window: int | None = None):
        """window: most requests in the engine, running and waiting."""
        self.window = window or WINDOW_PER_SEQUENCE * engine.max_num_seqs
        self.totals = Totals()
        self._job = job
        self._engine = engine
        self._progress = progress
        self._in_engine: dict[str, Request] = {}
        self._shape = job.shape
        self._columns = [*conversation.SHAPES, job.spec.input.id, "seed", "sampling", *job.columns]
        self._facts = {
            "fingerprint": job.record.fingerprint,
            "versions": job.record.versions,
            "model": {"name": job.model.name, "digests": job.model.digests},
            "dtype": engine.dtype,
            "device": engine.device,
        }

    def run(self, shards: Iterable[Shard]) -> None:
        """Generates all of these shards. The engine stays full across their boundaries."""
        requests = self._requests(shards)
        while True:
            while len(self._in_engine) < self.window and (request := next(requests, None)):
                self._admit(request)
            if not self._in_engine:
                return
            for response in self._engine.step():
                self._finish(response)
            running = min(len(self._in_engine), self._engine.max_num_seqs)
            self._progress.show(self.totals, running, len(self._in_engine) - running)

    def _requests(self, shards: Iterable[Shard]) -> Iterator[Request]:
        """The items of all rows in order; bad rows are rejected on the way."""
        job = self._job
        for planned in shards:
            opened = OpenShard(planned)
            for row in source.read(job.plan, planned, self._columns):
                try:
                    items = item.make(row, job.spec, job.model, job.context, job.columns)
                except Reject as why:
                    opened.reject(row, _best_id(row, job.spec.input.id), why)
                else:
                    for each in items:
                        yield Request(each, row, opened)
            opened.all_read = True
            self._commit_if_complete(opened)

    def _admit(self, request: Request) -> None:
        made = request.item
        try:
            self._engine.add(made.key, made.prompt_token_ids, made.sampling, made.seed)
        except Reject as why:
            request.shard.reject(request.row, made.id, why)
            return
        request.shard.in_engine += 1
        self._in_engine[made.key] = request

    def _finish(self, response: Response) -> None:
        request = self._in_engine.pop(response.request_id)
        answer = shard.output_row(request.item, response, self._job.model.tokenizer)
        request.shard.answers.append(answer)
        request.shard.in_engine -= 1
        self.totals.rows += request.item.sample == self._job.spec.sampling.n - 1
        self.totals.prompt_tokens += answer["prompt_tokens"]
        self.totals.response_tokens += answer["response_tokens"]
        self._commit_if_complete(request.shard)

    def _commit_if_complete(self, opened: OpenShard) -> None:
        if not opened.complete:
            return
        # A row of which one sample failed is rejected as a whole.
        answers = [answer for answer in opened.answers if answer["row"] not in opened.rejects]
        rejects = list(opened.rejects.values())
        count = len(self._job.plan.shards)
        shard.commit(self._job.out, count, opened.shard, answers, rejects, self._shape, self._facts)
        self.totals.rows += len(rejects)
        for line in rejects:
            self.totals.rejects[line["reason"]] = self.totals.rejects.get(line["reason"], 0) + 1


def _best_id(row: Row, column: str) -> str:
    """The id of a rejected row, as far as it can be read."""
    try:
        return conversation.row_id(row.record(), column, row.number)
    except Reject:
        return str(row.number)
