"""The task of a sweep: a row is answered with several settings, each time as a plain job with that setting would.

A setting is a part of the row: it has a Generate of its own, whose prompts, seeds, tries and output rows these are.
What a row would be asked twice, as two settings mean the same for it or its samples are greedy, is asked once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import msgspec
import pyarrow as pa

from ..errors import Reject
from ..input.columns import Column
from ..input.conversation import Row
from ..job.settings import Setting, meaning
from ..job.spec import JobSpec
from ..prompt.checker import ToFit
from .generate import Draft, Generate, Made, Prompted
from .task import Answer, Entry, Request


class Swept(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A row with its prompt for each setting, by the settings' numbers."""

    row: int
    id: str
    made: list[Prompted]
    requests: list[Request]


@dataclass(frozen=True)
class Sweep:
    """The task of a job with `[sweep]`.

    settings, generates: by number
    skip: rows that are to be rejected
    """

    spec: JobSpec
    settings: Sequence[Setting]
    generates: Sequence[Generate]
    skip: frozenset[int]

    @cached_property
    def schema(self) -> pa.Schema:
        return self.generates[0].schema

    @property
    def columns_read(self) -> list[str]:
        return list(dict.fromkeys(name for generate in self.generates for name in generate.columns_read))

    @property
    def columns(self) -> list[Column]:
        return self.generates[0].columns

    # --- a row becomes requests

    def prepare(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Swept | Reject]]:
        drafted = ((row, drafts, _asked(drafts)) for row, drafts in self._drafted(rows))
        for row, drafts, fitted in self.generates[0].fit_all(drafted):
            yield row, self._finished(row, drafts, fitted)

    def _drafted(self, rows: Iterable[Row]) -> Iterator[tuple[Row, "list[Draft | Reject]"]]:
        for row in rows:
            if row.number in self.skip:
                yield row, [Reject("skipped", "[input] skip names the row")] * len(self.generates)
            else:
                read = _read(row)
                yield row, [generate.drafted(read) for generate in self.generates]

    def _finished(self, row: Row, drafts: "list[Draft | Reject]", fitted: list[Made]) -> Swept | Reject:
        asked = _asked(drafts)
        made: list[Prompted | Reject] = []
        for generate, draft in zip(self.generates, drafts, strict=True):
            if isinstance(draft, Reject):
                made.append(draft)
            else:
                made.append(generate.finish(draft, fitted[asked.index(draft.asked)]))
        rejects = [each for each in made if isinstance(each, Reject)]
        if rejects:
            return self._why(made, rejects)
        whole = [each for each in made if isinstance(each, Prompted)]
        return Swept(
            row.number, whole[0].id, whole, [asked for part, each in enumerate(whole) for asked in _of(part, each)]
        )

    def _why(self, made: "list[Prompted | Reject]", rejects: list[Reject]) -> Reject:
        """Why a row is rejected as a whole: one setting is reason enough, and is named unless all have the same."""
        first = rejects[0]
        if len(rejects) == len(made) and len({str(each) for each in rejects}) == 1:
            return first
        return self._with(self.settings[made.index(first)], first)

    def _with(self, setting: Setting, why: Reject) -> Reject:
        return Reject(why.reason, f"with {setting.name}: {why.detail}")

    def id_of(self, row: Row) -> str:
        return self.generates[0].id_of(row)

    # --- answers become output rows

    def next_tries(self, work: Swept, request: Request, entry: Entry) -> list[Request]:
        part = request.name.part
        made = work.made[part]
        return [_keyed(again, made) for again in self.generates[part].next_tries(made, request, entry)]

    def output(self, work: Swept, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        rows = []
        for part, of_setting in groupby(answers, key=lambda answer: answer.request.name.part):
            try:
                rows += self.generates[part].output(work.made[part], list(of_setting))
            except Reject as why:
                raise self._with(self.settings[part], why) from None
        return rows

    def has_failed(self, row: dict[str, Any]) -> bool:
        return self.generates[0].has_failed(row)

    def audit(self, finished: Iterable[Swept]) -> None:
        return None


def _read(row: Row) -> Row:
    """The same row, parsed once for all settings."""
    try:
        return replace(row, raw=row.record())
    except (Reject, MemoryError):
        return row


def _asked(drafts: "list[Draft | Reject]") -> list[ToFit]:
    """The prompts that a row needs, each once."""
    asked: list[ToFit] = []
    for draft in drafts:
        if isinstance(draft, Draft) and draft.asked not in asked:
            asked.append(draft.asked)
    return asked


def _of(part: int, made: Prompted) -> Iterator[Request]:
    """A setting's requests, with names and keys by which they differ from those of the others."""
    for request in made.requests:
        named = msgspec.structs.replace(request, name=request.name._replace(part=part))
        yield _keyed(named, made)


def _keyed(request: Request, made: Prompted) -> Request:
    """A request whose key is that of all requests of its row with the same answer. Greedy ones do not hang on seeds."""
    params = meaning(request.sampling)
    seed = request.seed if params.temperature else None
    told = msgspec.msgpack.encode((request.prompt_token_ids, params, seed))
    digest = hashlib.blake2b(told, digest_size=16).digest()
    return msgspec.structs.replace(request, key=(made.row, digest))
