"""The answers of a job, a row at a time, while it runs or later: those of finished shards, then those in journals.

A journal has token ids, so that its answers take the model's tokenizer and the input; those of finished shards do not.
Of a translation a row's segments are found by cutting its texts again, which takes both too.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..check.loops import longest_loop
from ..errors import JobError, Reject, Stopped, in_one_line
from ..input.columns import pythons
from ..input.conversation import Row
from ..input.plan import Shard, changed_files
from ..job import own_check
from ..job.sampling import FINISH_REASONS
from ..job.spec import nearest
from ..output import journal, layout, record, segments, shard, store
from ..output.journal import Journal
from ..output.store import Place
from ..runner.open_shard import OpenShard
from ..runner.prepare import Job, prepare
from ..task.flow import work_of
from ..task.segment_rows import SegmentRow
from ..task.translate import Translate, Translation
from .verify import grows, open_finished

BATCH_ROWS = 256  # in memory as Python objects
ONLY = (*FINISH_REASONS, "empty")  # what --only takes
_IN_TEXTS = ("repetition", "empty")  # what of them the text tells; a loop need not have ended the response


class Turn(msgspec.Struct):
    speaker: str | None
    text: str | None


class Answer(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A response, the translation of a segment, or a text that was scored.

    text: None where the job leaves it out, or no try gave one
    tokens: of the response, or of the text that was scored
    tries: how often it was generated
    samples, settings: which of the row's responses it is; several that are equal may be one, and then these lists have
        an entry for each. settings: of a sweep; names: theirs, as far as they are known
    path, source: of a segment
    logprob: sum over the tokens of a text that was scored
    """

    text: str | None
    finish_reason: str = ""
    tokens: int | None = None
    reasoning: str | None = None
    failed_checks: list[str] = []
    tries: int = 1
    samples: list[int] = []
    settings: list[int] = []
    names: list[str] = []
    path: str = ""
    source: str | None = None
    logprob: float | None = None


class Item(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A row with its answers.

    columns: what the job passes through
    right: of a row that was scored, whether its likeliest text is the reference
    unfinished: its shard is not finished: these answers are a journal's
    """

    row: int
    id: str = ""
    conversation: list[Turn] = []
    prompt_tokens: int | None = None
    columns: dict[str, Any] = {}
    answers: list[Answer] = []
    right: bool | None = None
    unfinished: bool = False

    @property
    def folded(self) -> "Item":
        """The row with each of its equal responses once."""
        made: dict[tuple[Any, ...], Answer] = {}
        for place, answer in enumerate(self.answers):
            what = answer.text, answer.reasoning, answer.finish_reason, *answer.failed_checks
            key = what if answer.samples else (place,)
            if same := made.get(key):
                which = {name: getattr(same, name) + getattr(answer, name) for name in ("samples", "settings", "names")}
                answer = msgspec.structs.replace(same, **which)
            made[key] = answer
        return msgspec.structs.replace(self, answers=list(made.values()))

    @property
    def likeliest(self) -> float:
        """The most that any of its texts has as log probability."""
        return max((answer.logprob for answer in self.answers if answer.logprob is not None), default=-math.inf)


class Wanted(NamedTuple):
    """Which rows are looked for, and which of their answers.

    failed: answers that fail a check; of a row that was scored, whether another text than the reference is likelier
    only: one of ONLY; empty for all
    id, row: of one row
    grep: text in the conversation, the source or the answer, in upper or lower case
    """

    failed: bool = False
    only: str = ""
    id: str | None = None
    row: int | None = None
    grep: str = ""

    @property
    def columns(self) -> set[str]:
        """Of the output, that tell."""
        found = {"row", "id"} | ({"failed_checks", "right"} if self.failed else set())
        found |= {"finish_reason", "response"} if self.only else set()
        return found | ({"conversation", "response", "reasoning", "scores"} if self.grep else set())

    @property
    def is_all(self) -> bool:
        return self == Wanted()

    def among(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch of output rows without most of those that are not wanted."""
        exact = {"id": self.id} | ({} if self.only in ("", *_IN_TEXTS) else {"finish_reason": self.only})
        for name, value in exact.items():
            if value is not None and name in batch.schema.names:
                batch = batch.filter(pc.equal(batch[name], value))
        return batch

    def of(self, item: Item) -> Item | None:
        """The row with the answers that are wanted; None if it is not."""
        if self.id not in (None, item.id) or self.row not in (None, item.row):
            return None
        answers = [answer for answer in item.answers if self._is_wanted(answer, item)]
        return msgspec.structs.replace(item, answers=answers) if answers else None

    def _is_wanted(self, answer: Answer, item: Item) -> bool:
        if self.failed and not answer.failed_checks and item.right is not False:
            return False
        if self.only and not _is_of_kind(answer, self.only):
            return False
        texts = (answer.text, answer.source, answer.reasoning, *(turn.text for turn in item.conversation))
        return not self.grep or any(self.grep.casefold() in text.casefold() for text in texts if text)


def _is_of_kind(answer: Answer, kind: str) -> bool:
    if kind == "empty":
        return not (answer.text or "").strip()
    is_loop = kind == "repetition" and bool(answer.text) and longest_loop(answer.text or "") is not None
    return answer.finish_reason == kind or is_loop


ALL = Wanted()


def wanted(only: str, id: str | None, **more: Any) -> Wanted:
    """Of the command line. Raises JobError."""
    if only and only not in ONLY:
        raise JobError(f"--only {only}: no such reason{nearest(only, ONLY)}; they are {', '.join(ONLY)}")
    return Wanted(only=only, id=id, **more)


class Answers:
    """The answers of the job in a folder. Raises JobError if there is no job.

    warn: told why answers that may be there cannot be shown
    """

    def __init__(self, out: Place, warn: Callable[[str], None]):
        self.out = store.at(out)
        self.record, self.spec = open_finished(self.out)
        self.is_translation = bool(self.spec.translate.fields)
        self._warn = warn
        self._passed = list(self.record.settings["output"]["columns"])
        self._made_by = record.fingerprints(self.record)

    def check(self, wanted: Wanted) -> None:
        """Raises JobError if the job has no such answers."""
        if wanted.only and self.spec.score.mode != "off":
            raise JobError(f"--only {wanted.only}: scores do not end for a reason; --failed shows those that are wrong")
        if wanted.failed and self.spec.score.mode != "off" and not self.spec.score.reference:
            raise JobError("--failed: the scores have no reference ([score] reference)")
        if wanted.failed and self.spec.score.mode == "off" and not (self.spec.check.checks or self.is_translation):
            raise JobError("--failed: the job has no checks ([check] checks)")

    def shards(self) -> list[Shard]:
        """Those that have answers: the finished ones, then those under way."""
        finished = shard.finished(self.out, self.record.plan)
        done = {planned.index for planned in finished}
        begun = journal.shards(self.out) - done
        if begun and not self._may_read_journals:
            begun = set()
        return finished + [planned for planned in self.record.plan.shards if planned.index in begun]

    @cached_property
    def _may_read_journals(self) -> bool:
        if any(map(own_check.parse, self.spec.check.checks)):
            # Whoever made the folder must not say what code is run to look at it.
            self._warn("shards under way are not shown: a check of your own code says which try counts")
            return False
        return self._job is not None

    @cached_property
    def _job(self) -> Job | None:
        """The job as a run has it, without the engine; None if the model or the input is not here."""
        try:
            if changed := changed_files(self.record.plan, trust_times=True, growing=grows(self.record)):
                raise JobError(f"{changed[0]}: is not what the job read")
            return prepare(self.spec, begun=self.record)
        except (JobError, Stopped) as error:
            left_out = (
                "of each segment only its first use is shown"
                if self.is_translation
                else "shards under way are not shown"
            )
            self._warn(f"{left_out}: {error}")
            return None

    @cached_property
    def _names(self) -> dict[int, str]:
        """Of the settings of a sweep, by their numbers: they are there once it is done. Raises JobError."""
        self.out.check_links(layout.SWEEP)
        try:
            settings = msgspec.json.decode(self.out.read(layout.SETTINGS), type=list[_Named])
        except FileNotFoundError:
            return {}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise JobError(
                f"{self.out.where(layout.SETTINGS)}: damaged ({error}); run the same command again"
            ) from None
        return {setting.number: setting.name for setting in settings}

    # --- rows of a shard

    def rows(self, planned: Shard, wanted: Wanted) -> Iterable[int]:
        """The numbers of the rows that are wanted, in order."""
        if wanted.row is not None and wanted.row not in planned.row_numbers:
            return []
        if wanted.is_all and shard.is_finished(self.out, planned):
            rejected = {line["row"] for line in shard.read_rejects(self.out, planned)}
            return (row for row in planned.row_numbers if row not in rejected)
        return (item.row for item in self.items(planned, wanted, wanted.columns))

    def items(
        self,
        planned: Shard,
        wanted: Wanted = ALL,
        columns: Iterable[str] | None = None,
        rows: list[int] | None = None,
    ) -> Iterator[Item]:
        """The rows that are wanted, with the answers that are. columns: that are needed, None is all; rows: their
        numbers, if they are known."""
        if rows is None and wanted.row is not None:
            rows = [wanted.row] if wanted.row in planned.row_numbers else []
        if rows == []:
            return iter(())
        found = self._items(planned, wanted, None if columns is None else set(columns), rows)
        return (item for each in found if (item := wanted.of(each)))

    def _items(
        self, planned: Shard, wanted: Wanted, columns: set[str] | None, rows: list[int] | None
    ) -> Iterator[Item]:
        try:
            if not shard.is_finished(self.out, planned):
                return self._journaled(planned, rows)
            survey = shard.survey_of(self.out, planned)
            if what := survey.damage(planned):
                raise JobError(f"{shard.where(self.out, planned)}: {what}; run batchgen verify {self.out}")
        except FileNotFoundError:  # of a job that is just being removed
            return iter(())
        if survey.is_foreign(planned, self._made_by[self.record.plan.files[planned.file].growth]):
            raise JobError(
                f"{shard.where(self.out, planned)}: is a shard of another job; run batchgen verify {self.out}"
            )
        if self.is_translation:
            return self._translated(planned, wanted, rows)
        return self._of_output(self._read(planned, wanted, columns, rows), unfinished=False)

    # --- of finished shards

    def _read(
        self, planned: Shard, wanted: Wanted, columns: set[str] | None, rows: list[int] | None
    ) -> Iterator[dict[str, Any]]:
        """Output rows, those that are wanted and some others."""
        known = {*_RESPONSE, *_SCORES, *self._passed} if columns is None else {*columns, "row", "id"} | _WHICH
        picked = None if rows is None else pa.array(rows, pa.int64())
        try:
            with shard.opened(self.out, planned) as stream:
                file = pq.ParquetFile(stream)
                names = [name for name in file.schema_arrow.names if name in known]
                for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
                    some = wanted.among(batch if picked is None else batch.filter(pc.is_in(batch["row"], picked)))
                    values = [pythons(some[name]) for name in names]
                    yield from (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))
        except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise self._damaged(planned, in_one_line(error)) from None
        except OSError as error:  # the disk's own have a number
            if error.errno:
                raise
            raise self._damaged(planned, in_one_line(error)) from None

    def _damaged(self, planned: Shard, what: str) -> JobError:
        return JobError(f"{shard.where(self.out, planned)}: damaged ({what}); run batchgen verify {self.out}")

    def _of_output(self, rows: Iterable[dict[str, Any]], unfinished: bool) -> Iterator[Item]:
        """Output rows, put together by the row that they are of. Raises JobError."""
        for _, some in itertools.groupby(rows, itemgetter("row")):
            first, *more = some
            made: dict[str, Any] = {name: value for name, value in first.items() if name in _ITEM and value is not None}
            is_scored = "scores" in first
            made["answers"] = list(map(_scored, first["scores"]) if is_scored else map(_response, [first, *more]))
            for each in made["answers"]:
                each["names"] = [name for number in each.get("settings", ()) if (name := self._names.get(number))]
            made["columns"] = {name: first[name] for name in self._passed if name in first}
            try:
                yield msgspec.convert({**made, "unfinished": unfinished}, Item)
            except msgspec.ValidationError as error:
                raise JobError(f"{self.out}: not batchgen's ({error}); run batchgen verify {self.out}") from None

    def _translated(self, planned: Shard, wanted: Wanted, rows: list[int] | None) -> Iterator[Item]:
        """Records of a translation, with their segments."""
        audit = [row for some in segments.read(self.out, planned) for row in some]
        texts = wanted._replace(id=None, row=None)
        if not texts.is_all and not any(texts.of(_item(row.row, "", [row])) for row in audit):
            return  # without a look at the input: every row is made of these
        rejected = {line["row"] for line in shard.read_rejects(self.out, planned)}
        numbers = {*(planned.row_numbers if rows is None else rows)} - rejected
        if self._job is None:
            by_row = itertools.groupby(audit, key=lambda row: row.row)
            yield from (_item(row, str(row), list(some)) for row, some in by_row if row in numbers)
            return
        assert isinstance(self._job.task, Translate)
        task = dataclasses.replace(self._job.task, memory={row.key: row for row in audit}.get)
        for _, work in work_of(task, self._job.reader(), [planned], _only(numbers)):
            if not isinstance(work, Reject):
                with contextlib.suppress(Reject, KeyError):  # an answer is not there: `verify` looks closer
                    task.output(work, [])
                    yield _of_translation(work, unfinished=False)

    # --- of journals

    def _journaled(self, planned: Shard, rows: list[int] | None) -> Iterator[Item]:
        """The rows of a shard under way that have all their answers."""
        job = self._job
        assert job
        fingerprint = job.fingerprint_of(planned)
        entries = {entry.name: entry for entry in journal.entries(self.out, planned.index, fingerprint)}
        numbers = {*planned.row_numbers} if self.is_translation else {name.row for name in entries}
        opened = OpenShard(planned, job.task, Journal(self.out, planned.index, "", fingerprint), entries)
        wanted = numbers if rows is None else numbers & {*rows}
        asked = numbers if self.is_translation else wanted  # of which each may have the answer to another one's segment
        for row, work in work_of(job.task, job.reader(), [planned], _only(asked)):
            if isinstance(work, Reject):
                continue
            opened.take(row, work)
            opened.waiting.clear()  # what lacks an answer
            while opened.finished:
                done, answers = opened.finished.pop()
                if done.row not in wanted:
                    continue
                with contextlib.suppress(Reject):
                    made = job.task.output(done, answers)
                    if isinstance(done, Translation):
                        yield _of_translation(done, unfinished=True)
                    else:
                        yield from self._of_output(_as_read(made, job.task.schema), unfinished=True)


class _Named(msgspec.Struct):
    """What names a setting."""

    number: int
    name: str


# --- output rows as answers

_WHICH = {"sample", "setting"}
_RESPONSE = (
    "row id sample setting conversation response reasoning finish_reason prompt_tokens response_tokens tries "
    "failed_checks"
).split()
_SCORES = ("scores", "right")
_ITEM = ("row", "id", "conversation", "prompt_tokens", "right")


def _response(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "text": row.get("response"),
        "finish_reason": row.get("finish_reason", ""),
        "tokens": row.get("response_tokens"),
        "reasoning": row.get("reasoning"),
        "failed_checks": row.get("failed_checks") or [],
        "tries": row.get("tries") or 1,
        "samples": [row["sample"]] if "sample" in row else [],
        "settings": [row["setting"]] if "setting" in row else [],
    }


def _scored(score: dict[str, Any]) -> dict[str, Any]:
    return {name: score[name] for name in ("text", "tokens", "logprob")}


def _of_translation(work: Translation, unfinished: bool) -> Item:
    """A record whose output was made."""
    made = _item(work.row, work.id, [work.settled[number] for number in work.used])
    return msgspec.structs.replace(made, unfinished=unfinished)


def _item(row: int, id: str, segmented: list[SegmentRow]) -> Item:
    answers = [
        Answer(
            text=each.answer,
            finish_reason=each.finish_reason,
            failed_checks=each.failed_checks,
            tries=each.tries,
            path=each.path,
            source=each.source,
        )
        for each in segmented
    ]
    return Item(row=row, id=id, answers=answers)


def _as_read(rows: list[dict[str, Any]], schema: pa.Schema) -> Iterator[dict[str, Any]]:
    """Output rows as they are read from a shard."""
    table = shard.as_table(rows, schema).combine_chunks()
    values = [[value for chunk in column.chunks for value in pythons(chunk)] for column in table.columns]
    return (dict(zip(schema.names, row, strict=True)) for row in zip(*values, strict=True))


def _only(numbers: set[int]) -> Callable[[Shard, Iterator[Row]], Iterator[Row]]:
    return lambda _, rows: (row for row in rows if row.number in numbers)


# --- which of them are shown


def first(answers: Answers, wanted: Wanted, count: int | None) -> Iterator[Item]:
    """The first rows that are wanted; None is all of them."""
    found = (item for planned in answers.shards() for item in answers.items(planned, wanted))
    return itertools.islice(found, count)


def at_random(answers: Answers, wanted: Wanted, count: int, seed: int) -> Iterator[Item]:
    """So many rows of those that are wanted, each as likely as any other; the same ones for the same seed."""
    kinds = [("key", np.float64), ("place", np.int64), ("row", np.int64)]
    kept, draw = np.zeros(0, kinds), np.random.default_rng(seed)
    shards = answers.shards()
    for place, planned in enumerate(shards):
        rows = np.fromiter(answers.rows(planned, wanted), np.int64)
        more = np.zeros(len(rows), kinds)
        more["key"], more["place"], more["row"] = draw.random(len(rows)), place, rows
        kept = np.concatenate([kept, more])
        kept = kept[np.argsort(kept["key"])[:count]]
    for place, planned in enumerate(shards):
        chosen = sorted(kept["row"][kept["place"] == place].tolist())
        yield from answers.items(planned, wanted, rows=chosen)
