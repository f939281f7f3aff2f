"""A shard in progress: its rows wait for answers until each has all of them or is rejected."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..errors import Reject
from ..input.conversation import Row
from ..input.plan import Shard
from ..output import shard
from ..output.journal import Journal
from ..task.task import Answer, Entry, Name, Request, Task, Work


class OpenRow(msgspec.Struct, eq=False, gc=False):
    """A row that waits for answers. missing: requests that still need one; resumed: those whose answers were in a
    journal."""

    row: Row
    work: Any
    missing: int
    resumed: int = 0
    answers: list[Answer] = []


@dataclass(eq=False)
class OpenShard:
    """A shard between its claim and its commit.

    journaled: answers of earlier runs, removed as their requests come up
    waiting: rows whose answers are not all there, by number
    finished: rows with all their answers
    rejects: their lines, by row number
    in_engine: requests
    resumed: answers that were in a journal; rows_resumed: finished rows that are made of them, or parts of rows
    is_cut: a trial leaves out some of its rows, so that it cannot be finished yet
    same: by key, requests that wait for the one that is generated for all of them
    known: by key, answers that further requests get at once
    """

    shard: Shard
    task: Task
    journal: Journal
    journaled: dict[Name, Entry]
    waiting: dict[int, OpenRow] = field(default_factory=dict)
    finished: list[tuple[Work, list[Answer]]] = field(default_factory=list)
    rejects: dict[int, dict[str, Any]] = field(default_factory=dict)
    in_engine: int = 0
    all_read: bool = False
    resumed: int = 0
    rows_resumed: float = 0.0
    same: dict[Hashable, list[Request]] = field(default_factory=dict)
    known: dict[Hashable, Entry] = field(default_factory=dict)
    is_cut: bool = False

    @property
    def is_complete(self) -> bool:
        return self.all_read and not self.is_cut and not self.waiting and not self.in_engine

    @property
    def rows_done(self) -> int:
        return len(self.finished) + len(self.rejects)

    def take(self, row: Row, work: Work) -> list[Request]:
        """Adds a row, and returns its requests that have to be generated."""
        self.waiting[row.number] = open_row = OpenRow(row, work, len(work.requests))
        if not open_row.missing:
            self._finish(open_row)
        return [asked for request in work.requests for asked in self._ask(request)]

    def answer(self, request: Request, entry: Entry) -> list[Request]:
        """Records the engine's answer to a request and to all that wait for the same one. Returns the further tries
        that are to be generated."""
        self.journal.append(entry)
        return self._share(request, entry)

    def reject(self, row: Row, id: str, why: Reject) -> None:
        """Rejects a row as a whole; if several of its requests fail, the first counts."""
        if row.number not in self.rejects:
            self.waiting.pop(row.number, None)
            self.rejects[row.number] = shard.reject_line(row, id, why)

    def fail(self, request: Request, why: Reject) -> list[Request]:
        """Rejects a request's row. Returns what is to be generated in its place."""
        if open_row := self.waiting.get(request.name.row):
            self.reject(open_row.row, open_row.work.id, why)
        return self.drop(request)

    def drop(self, request: Request) -> list[Request]:
        """Returns the next request that waits for this one's answer, if any: this one will have none."""
        others = self.same.pop(request.key, [])
        for place, other in enumerate(others):
            if other.name.row in self.waiting:
                self.same[other.key] = others[place + 1 :]
                return [other]
        return []

    def is_wanted(self, request: Request) -> bool:
        return request.name.row in self.waiting

    def _ask(self, request: Request) -> list[Request]:
        """What has to be generated for a request: itself, or a further try if a journal has its answer; nothing if all
        is known, or if it waits for another one's answer."""
        if self.journaled and (entry := self.journaled.pop(request.name, None)):
            self.resumed += 1
            if open_row := self.waiting.get(request.name.row):
                open_row.resumed += 1
            return self._share(request, entry)
        if request.key is None:
            return [request]
        if entry := self.known.get(request.key):
            return self._record(request, entry.named(request.name))
        if request.key in self.same:
            self.same[request.key].append(request)
            return []
        self.same[request.key] = []
        return [request]

    def _share(self, request: Request, entry: Entry) -> list[Request]:
        if request.key is not None:  # two journals may have an answer each: the first counts for all
            entry = self.known.setdefault(request.key, entry).named(request.name)
        asked = self._record(request, entry)
        if request.key is not None:
            for other in self.same.pop(request.key, []):
                asked += self._record(other, entry.named(other.name))
        return asked

    def _record(self, request: Request, entry: Entry) -> list[Request]:
        if (open_row := self.waiting.get(request.name.row)) is None:
            return []  # rejected meanwhile
        open_row.answers.append(Answer(request, entry))
        again = self.task.next_tries(open_row.work, request, entry)
        open_row.missing += len(again) - 1
        if not open_row.missing:
            self._finish(open_row)
        return [asked for other in again for asked in self._ask(other)]

    def _finish(self, open_row: OpenRow) -> None:
        del self.waiting[open_row.row.number]
        open_row.answers.sort(key=lambda answer: answer.request.name)
        self.rows_resumed += open_row.resumed / max(1, len(open_row.answers))
        self.finished.append((open_row.work, open_row.answers))
