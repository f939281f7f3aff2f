"""The task of translating: chosen texts inside of a record are replaced, and everything else of it stays as it is.

A text is cut into segments, and every segment is a part of its row that has tries of its own. What asks the engine is
the task `generate`: to it a segment is a row with the columns of the template, whose id is the digest of its prompt.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import Any

import msgspec
import pyarrow as pa

from ..check.checks import Judged, failed
from ..errors import Reject
from ..input.columns import Column
from ..input.conversation import Row
from ..job.spec import JobSpec
from ..segment.cut import Rule, joined, pieces
from ..segment.glossary import ALTERNATIVES, Glossary, missing
from ..segment.pieces import Piece, Segment
from ..segment.protect import Masked, Protect, restore
from . import tries
from .generate import NO_MEMORY, TEMPLATE, Generate, Prompted
from .records import Record, Records
from .segment_rows import SegmentRow
from .task import Answer, Entry, Name, Request
from .tries import Try

# What a translation of any text needs at most: 3 tokens for each of its own, and some more where it is short.
TOKENS_PER_TOKEN, MORE_TOKENS = 3, 32
BEFORE, TERMS = "before", "glossary"  # what a template may show beside the text
PLACES = ("text", "from", "into", BEFORE, TERMS, "path")

# The checks that a translation has besides those of [check].
PROTECTED, GLOSSARY, LINES = "protected", "glossary", "lines"
_QUOTES = {'"': '"', "“": "”", "「": "」", "『": "』", "'": "'", "‘": "’"}


class Text(msgspec.Struct, frozen=True, gc=False):
    """A text, cut. parts: numbers of those that its segments are, in order"""

    pieces: list[Piece]
    parts: list[int]


class Part(msgspec.Struct, gc=False):
    """A distinct segment of a row, or a piece of one that is split.

    key: digest of its prompt
    source: the segment
    path: of the text that it was first found in
    prompted: what is asked; None where the memory has the answer
    known: what the memory has
    masked: the source with marks in place of what is protected, if there is any
    split: around what is protected, for when a mark is lost
    terms: of the glossary, that it has
    tried: its tries by attempt, as they are judged
    is_asked: whether its first request was made
    is_split: whether that is what answers it
    """

    key: str
    source: str
    path: str
    masked: Masked | None
    terms: list[tuple[str, str]]
    values: dict[str, Any]
    known: SegmentRow | None = None
    prompted: Prompted | None = None
    split: Text | None = None
    tried: dict[int, Try] = {}
    is_asked: bool = False
    is_split: bool = False


class Translation(msgspec.Struct, gc=False):
    """A row that is being translated. settled: what became of each part, by number, once all are answered"""

    row: int
    id: str
    record: Record
    texts: list[Text]
    parts: list[Part]
    requests: list[Request] = []
    settled: dict[int, SegmentRow] = {}

    @property
    def used(self) -> Counter[int]:
        """How often each part is in the texts; those that are only pieces of another one are not."""
        return Counter(number for text in self.texts for number in text.parts)


@dataclass(frozen=True)
class Translate:
    """The task of a job with `[translate]`.

    generate: what asks the engine
    records: how records are taken apart and put together
    memory: the segment with a key, if it was translated before
    skip: rows that are to be rejected
    """

    spec: JobSpec
    generate: Generate
    records: Records
    protect: Protect
    glossary: Glossary | None
    languages: tuple[str, str]
    memory: Callable[[str], SegmentRow | None]
    skip: frozenset[int]

    @property
    def schema(self) -> pa.Schema:
        return self.records.schema

    @property
    def columns(self) -> list[Column]:
        return self.records.columns

    @property
    def columns_read(self) -> list[str]:
        return [self.spec.input.id] if self.spec.input.id else []

    @cached_property
    def rule(self) -> Rule:
        asked = self.spec.translate
        tokenizer = self.generate.model.tokenizer
        count = lambda text: len(tokenizer.encode(text))  # noqa: E731
        return Rule(asked.segment, asked.max_segment, count, self.languages[0], self.protect)

    # --- a row becomes requests

    def prepare(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Translation | Reject]]:
        for row in rows:
            try:
                yield row, self._work(row)
            except Reject as why:
                yield row, why
            except MemoryError:
                yield row, Reject("too_costly", NO_MEMORY)

    def id_of(self, row: Row) -> str:
        return self.generate.id_of(row)

    def _work(self, row: Row) -> Translation:
        """Raises Reject."""
        if row.number in self.skip:
            raise Reject("skipped", "[input] skip names the row")
        id = self.generate.row_id(row.record(), row)
        record = self.records.of(row, id)
        found = Cutter(self)
        texts = [found.text(leaf.text, leaf.path) for leaf in record.leaves]
        work = Translation(row.number, id, record, texts, found.parts)
        self._prompt(work)
        work.requests = self._ask(work, work.used)
        return work

    def key_of(self, source: str, values: dict[str, Any]) -> str:
        """A digest of all that decides what a segment becomes: its prompt, what its marks stand for, the language it is
        translated into, which a template need not say, and what a check of the user's own sees beside these. Its seeds
        come from it, so that a text has the same ones in every row, shard, job and night."""
        prefix, turns = self.generate.turns(values, TEMPLATE)
        seen = [values["path"]] if self.generate.has_user_check else []
        decisive = [prefix, turns, source, self.languages[1], *seen]
        return hashlib.blake2b(msgspec.json.encode(decisive), digest_size=16).hexdigest()

    def _prompt(self, work: Translation) -> None:
        """Gives the parts that may be asked their prompts: those that the memory does not have. Raises Reject."""
        used = work.used
        pieces = (part.split.parts for number in used if (part := work.parts[number]).split and not part.known)
        wanted = sorted({*used, *chain.from_iterable(pieces)})
        unknown = [part for number in wanted if not (part := work.parts[number]).known]
        rows = (Row(work.row, {"id": part.key, **part.values}) for part in unknown)
        for part, (_, made) in zip(unknown, self.generate.prepare(rows), strict=True):
            if isinstance(made, Reject):
                raise Reject(made.reason, f"{part.path}: {made.detail}")
            most = min(made.sampling.max_tokens, TOKENS_PER_TOKEN * self.rule.count(part.source) + MORE_TOKENS)
            shorter = msgspec.structs.replace(made.sampling, max_tokens=most)
            part.prompted = msgspec.structs.replace(made, sampling=shorter, source=part.source, requests=[])

    def _ask(self, work: Translation, numbers: Iterable[int]) -> list[Request]:
        """The first requests for some parts, as far as they were not asked before and the memory does not have them."""
        asked = []
        for number in numbers:
            part = work.parts[number]
            if not part.is_asked and not part.known:
                part.is_asked = True
                asked.append(self._request(work.row, number, part, 0))
        return asked

    def _request(self, row: int, number: int, part: Part, attempt: int) -> Request:
        assert part.prompted
        return self.generate.request(part.prompted, Name(row, number, 0, attempt), key=(part.key, attempt))

    # --- answers become output rows

    def next_tries(self, work: Translation, request: Request, entry: Entry) -> list[Request]:
        _, number, _, attempt = request.name
        if attempt + 1 >= self.spec.check.tries:
            return []
        part = work.parts[number]
        try:
            wrong = self._tried(part, request, entry).failed
        except Reject:  # a check's own fault: `output` meets it again, and rejects the row
            return []
        if PROTECTED in wrong and part.split:
            part.is_split = True
            return self._ask(work, part.split.parts)
        return [self._request(work.row, number, part, attempt + 1)] if wrong else []

    def _tried(self, part: Part, request: Request, entry: Entry) -> Try:
        """An answer as people read it with the checks that it fails, which are asked once. Raises
        Reject(check_error)."""
        attempt = request.name.attempt
        if attempt not in part.tried:
            part.tried[attempt] = self._judged(part, request, entry)
        return part.tried[attempt]

    def _judged(self, part: Part, request: Request, entry: Entry) -> Try:
        text = bare(self.generate.text(request, entry), part.source)
        restored = restore(text, part.masked) if part.masked else text
        wrong = [] if restored is not None else [PROTECTED]
        text = text if restored is None else restored
        if text.count("\n") != part.source.count("\n"):
            wrong.append(LINES)
        if missing(part.terms, text):
            wrong.append(GLOSSARY)
        judged = Judged(text, entry.finish_reason, part.source, part.values, tries.mean_logprob(entry))
        return Try(request, entry, text, failed(self.generate.checks, judged) + wrong)

    def output(self, work: Translation, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        by_part = {number: list(some) for number, some in groupby(answers, key=lambda answer: answer.request.name.part)}
        settled: dict[int, SegmentRow] = {}
        used = work.used
        for number in used:
            self._settle(work, number, by_part, settled)
        work.settled = settled
        bad = [settled[number] for number in used if settled[number].failed_checks]
        if bad and self.spec.translate.on_failure == "reject":
            path, names, times = bad[0].path, ", ".join(bad[0].failed_checks), bad[0].tries
            raise Reject("check_failed", f"{path}: {names}: {f'each of {times} tries' if times > 1 else 'it'} failed")
        report = {
            "segments": used.total(),
            "failed": sum(times for number, times in used.items() if settled[number].failed_checks),
            "tries": sum(settled[number].tries for number in used),
            "checks": list(dict.fromkeys(name for row in bad for name in row.failed_checks)),
        }
        made = [self._joined(text, settled) for text in work.texts]
        return [work.record.replaced(made) | {self.spec.translate.report: report}]

    def has_failed(self, row: dict[str, Any]) -> bool:
        return bool(row[self.spec.translate.report]["failed"])

    def _joined(self, text: Text, settled: dict[int, SegmentRow]) -> str | None:
        """A text made of the answers to its segments; None if it is to be null."""
        policy = self.spec.translate.on_failure
        answers = []
        for number in text.parts:
            row = settled[number]
            if row.failed_checks and policy == "null":
                return None
            keeps_source = row.answer is None or (row.failed_checks and policy == "source")
            answers.append(row.source if keeps_source else row.answer or "")
        return joined(text.pieces, answers, *self.languages)

    def _settle(
        self, work: Translation, number: int, answers: dict[int, list[Answer]], settled: dict[int, SegmentRow]
    ) -> SegmentRow:
        """What became of a part: its best try, or its pieces put together. Raises Reject(check_error)."""
        if number not in settled:
            part = work.parts[number]
            if part.known:
                about = {"row": work.row, "path": part.path, "source": part.source, "uses": 1}
                settled[number] = msgspec.structs.replace(part.known, **about)
                for piece in part.split.parts if part.split and part.known.split else ():
                    if work.parts[piece].known:  # so that a shard has the same segments with a memory as without
                        self._settle(work, piece, answers, settled)
            else:
                made = [self._tried(part, *answer) for answer in answers[number]]
                settled[number] = self._row(work.row, part, made)
            if part.is_split and part.split:
                inner = [self._settle(work, piece, answers, settled) for piece in part.split.parts]
                settled[number] = self._composed(part, part.split, settled[number], inner)
        return settled[number]

    def _row(self, row: int, part: Part, made: list[Try]) -> SegmentRow:
        assert part.prompted
        best = tries.best(made)
        return SegmentRow(
            key=part.key,
            row=row,
            path=part.path,
            source=part.source,
            answer=best.text,
            tries=len(made),
            failed_checks=best.failed,
            finish_reason=best.entry.finish_reason,
            seed=best.request.seed,
            sampling=self.generate.sampling_of(part.prompted, best.request.name.attempt),
            uses=1,
            split=False,
            mean_logprob=tries.mean_logprob(best.entry),
        )

    def _composed(self, part: Part, split: Text, whole: SegmentRow, inner: list[SegmentRow]) -> SegmentRow:
        """A part that lost a mark, made of its pieces. whole: its own tries"""
        text = joined(split.pieces, [row.answer or row.source for row in inner], *self.languages)
        wrong = list(dict.fromkeys(name for row in inner for name in row.failed_checks))
        if missing(part.terms, text):
            wrong.append(GLOSSARY)
        return msgspec.structs.replace(
            whole, answer=text, failed_checks=wrong, tries=whole.tries + sum(row.tries for row in inner), split=True
        )

    def audit(self, finished: Iterable[Translation]) -> list[SegmentRow]:
        """The segments of a shard, in the order of their first uses. finished: in order, each with its output made"""
        found: dict[str, SegmentRow] = {}
        for work in finished:
            count_in(work, found)
        return list(found.values())

    def seeds_of(self, key: str) -> Iterator[int]:
        """Which seeds a segment may have: those of all its tries."""
        for attempt in range(self.spec.check.tries):
            yield self.generate.seed_of_id(key, attempt)


def count_in(work: Translation, found: dict[str, SegmentRow]) -> None:
    """Adds the segments of a row, whose output was made, to those of the rows ahead of it, which are there by key."""
    used = work.used
    for number, row in work.settled.items():
        times = used[number] or 1  # a piece of one that is split
        before = found.get(row.key)
        found[row.key] = msgspec.structs.replace(before or row, uses=times + (before.uses if before else 0))


class Cutter:
    """Cuts the texts of one row, and collects the parts that it has."""

    def __init__(self, task: Translate):
        self.parts: list[Part] = []
        self._task, self._asked = task, task.spec.translate
        self._numbers: dict[str, int] = {}
        self._segments = 0

    def text(self, text: str, path: str) -> Text:
        found = pieces(text, self._task.rule)
        may_mask = self._asked.protect_by == "mask"
        if not may_mask:
            found = [each for piece in found for each in self._split(piece)]
        return self._cut(found, path, self._asked.context, may_mask)

    def _split(self, piece: Piece) -> list[Piece]:
        return self._task.protect.split(piece.text) if isinstance(piece, Segment) else [piece]

    def _cut(self, pieces: list[Piece], path: str, context: int, may_mask: bool) -> Text:
        segments = [piece.text for piece in pieces if isinstance(piece, Segment)]
        self._segments += len(segments)
        if self._segments > (most := self._task.spec.limits.segments):
            raise Reject("too_large", f"{path}: more than {most:,} segments, and [limits] segments allows no more")
        numbers = [
            self._part(segment, path, segments[max(0, place - context) : place], may_mask)
            for place, segment in enumerate(segments)
        ]
        return Text(pieces, numbers)

    def _part(self, source: str, path: str, before: list[str], may_mask: bool) -> int:
        """The number of the part that a segment is; of a new one if none has its prompt."""
        task = self._task
        terms = task.glossary.terms(source) if task.glossary else []
        masked = task.protect.mask(source) if may_mask else None
        values = {
            "text": masked.text if masked else source,
            "from": self._asked.source,
            "into": self._asked.into,
            BEFORE: "\n".join(before),
            TERMS: "\n".join(f"{term} = {translated.partition(ALTERNATIVES)[0]}" for term, translated in terms),
            "path": re.sub(r"\[\d+\]", "[*]", path),
        }
        key = task.key_of(source, values)
        if (number := self._numbers.get(key)) is not None:
            return number
        number = self._numbers[key] = len(self.parts)
        self.parts.append(part := Part(key, source, path, masked, terms, values, task.memory(key)))
        if masked:  # whatever the memory has: the numbers of parts, by which journals name them, must not depend on it
            part.split = self._cut(task.protect.split(source), path, context=0, may_mask=False)
        return number


def bare(answer: str, source: str) -> str:
    """An answer without white space around it, and without quotes around all of it that its source does not have."""
    answer = answer.strip()
    closing = _QUOTES.get(answer[:1])
    if closing and len(answer) > 1 and answer[-1] == closing and source[:1] not in _QUOTES:
        inner = answer[1:-1]
        if closing not in inner and answer[0] not in inner:
            return inner.strip()
    return answer
