"""The task of answering conversations: a row is one prompt, and has as many samples as it asks for."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeVar

import msgspec
import pyarrow as pa

from ..check.checks import Check, Judged, checks_of, failed
from ..errors import Reject
from ..input import batch_requests, conversation, first_format, row_sampling, shapes
from ..input.columns import Column
from ..input.conversation import Conversation, Row, Utterance
from ..input.cursor import EVERY_COLUMN, passed_value
from ..input.template import Template
from ..job import own_check, sampling
from ..job.sampling import Sampling
from ..job.spec import DEFAULT_ADAPTER, JobSpec
from ..model.model import Model
from ..prompt.checker import Checker, ToFit, fit
from ..prompt.fit import Fitted
from ..prompt.formats import Render, renderer, response_text, to_model_text
from ..prompt.pictures import Picture
from . import limits, tries
from .output_columns import Answered, OutputColumn, columns_of, schema_of
from .sight import Sight, kept
from .task import WHOLE, Answer, Entry, Name, Reasoned, Request

REQUESTS = {"openai-batch": "body", "anthropic-batch": "params"}  # shapes -> the column that holds the request
TEMPLATE = "template"
NO_MEMORY = "this machine has too little memory to prepare it"
TOGETHER = 16  # rows whose prompts another process makes at a time; one by one, waiting would take as long


class Draft(NamedTuple):
    """A row with everything but its prompt."""

    row: Row
    record: dict[str, Any]
    id: str
    shape: str
    params: Sampling
    n: int
    seed: int | None
    adapter: str | None
    asked: ToFit
    images: Sequence[Picture] = ()


Made = Fitted | Reject
Drafts = TypeVar("Drafts")


class Prompted(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A row with its prompt: what its output rows say beside the responses.

    truncated: tokens removed from the prompt to make it fit
    sampling: as the row and the job give it; in the requests, its texts are as the model writes them
    columns: passed-through values
    shape: of the row's record, or "template"
    adapter: that answers it; None is the model alone
    own_seed: that the row brings
    source: what its responses are compared with, if they are checked
    record: of the input, if a check of the user's own gets it
    images: of its prompt
    checked: tries of its requests, with the checks that they fail
    """

    row: int
    id: str
    conversation: Conversation
    prompt: str
    prompt_token_ids: list[int]
    truncated: int
    sampling: Sampling
    columns: dict[str, Any]
    shape: str
    adapter: str | None
    requests: list[Request]
    own_seed: int | None = None
    source: str = ""
    record: dict[str, Any] = {}
    images: Sequence[Picture] = ()
    checked: dict[Name, tries.Try] = {}


@dataclass(frozen=True)
class Generate:
    """The task of a job: what it makes of every row.

    context: most tokens of prompt and response together
    format: of prompts
    sampling: of rows that bring none of their own
    columns: passed-through ones
    control_tokens: see HfTokenizer
    folder_format: in which the output folder was begun: rows become what the versions of it would have made of them
    skip: rows that are to be rejected
    source: gives the file and line of a row, if the output has them
    sight: how images come to the model, if the job has some
    room: tokens that have to be left behind the prompt of a record, if its sampling does not say; raises Reject
    """

    spec: JobSpec
    model: Model
    context: int
    format: str
    sampling: Sampling
    template: Template | None
    columns: list[Column]
    checker: Checker
    control_tokens: str
    folder_format: int
    skip: frozenset[int]
    source: Callable[[int], tuple[str, int]] | None = None
    sight: Sight | None = None
    room: Callable[[dict[str, Any]], int] | None = None

    @property
    def columns_read(self) -> list[str]:
        table = self.spec.input
        if self.has_user_check:
            return [EVERY_COLUMN]
        wanted = self.template.candidates if self.template else shapes.COLUMNS
        own = (table.id, table.seed, table.sampling, table.system, table.adapter, table.image, self.spec.check.source)
        named = [name for name in own if name]
        return list(dict.fromkeys([*wanted, *named]))

    @cached_property
    def schema(self) -> pa.Schema:
        return schema_of(self._own_columns, self.columns, self.folder_format)

    @property
    def is_of_first_format(self) -> bool:
        return self.folder_format == first_format.FORMAT

    @cached_property
    def _own_columns(self) -> list[OutputColumn]:
        return columns_of(self.spec)

    @cached_property
    def render(self) -> Render:
        return renderer(self.format, self.model.tokenizer, self.control_tokens)

    @property
    def on_overlength(self) -> str:
        """How a prompt is shortened, as prompt/fit.py takes it."""
        policy = self.spec.prompt.on_overlength
        return first_format.CLIP if policy == "clip" and self.is_of_first_format else policy

    @cached_property
    def checks(self) -> dict[str, Check]:
        """Of responses, by name. Raises JobError."""
        return checks_of(self.spec.check)

    @cached_property
    def has_user_check(self) -> bool:
        """Whether a check gets the row's whole record, or all columns of its template."""
        return any(map(own_check.parse, self.spec.check.checks))

    # --- a row becomes requests

    def prepare(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Prompted | Reject]]:
        drafted = ((row, self.drafted(row)) for row in rows)
        asking = ((row, draft, [] if isinstance(draft, Reject) else [draft.asked]) for row, draft in drafted)
        for row, draft, fitted in self.fit_all(asking):
            yield row, draft if isinstance(draft, Reject) else self.finish(draft, *fitted)

    def fit_all(self, drafted: Iterator[tuple[Row, Drafts, list[ToFit]]]) -> Iterator[tuple[Row, Drafts, list[Made]]]:
        """Rows with the prompts that they ask for."""
        if not self.checker.has_prompts:
            for row, drafts, asked in drafted:
                yield row, drafts, [self.fit_here(each) for each in asked]
            return
        some = list(islice(drafted, TOGETHER))
        while some:
            prompts = self.checker.fit([each for _, _, asked in some for each in asked])
            following = list(islice(drafted, TOGETHER))  # while the prompts are made
            for row, drafts, asked in some:
                yield row, drafts, list(islice(prompts, len(asked)))
            some = following

    def prepare_row(self, row: Row) -> Prompted:
        """One row by itself. Raises Reject with the first thing that is wrong with it."""
        [(_, made)] = self.prepare([row])
        if isinstance(made, Reject):
            raise made
        return made

    def id_of(self, row: Row) -> str:
        try:
            return self.row_id(row.record(), row)
        except (Reject, MemoryError):
            return str(row.number)

    def drafted(self, row: Row) -> Draft | Reject:
        try:
            return self.draft(row)
        except Reject as why:
            return why
        except MemoryError:
            return Reject("too_costly", NO_MEMORY)
        except Exception as error:
            error.add_note(f"at row {row.number}")
            raise

    def draft(self, row: Row) -> Draft:
        if row.number in self.skip:
            raise Reject("skipped", "[input] skip names the row")
        record, spec = row.record(), self.spec
        id = self.row_id(record, row)
        told, files = self.sight.files_of(record, row.number) if self.sight else (record, [])
        shape = self._shape(told)
        prefix, turns = self.turns(record if self.template else told, shape)
        turns = self.sight.placed(prefix, turns, len(files)) if self.sight else turns
        if len(turns) > spec.limits.turns:
            raise Reject("bad_shape", f"{len(turns):,} utterances, and [limits] turns allows {spec.limits.turns:,}")
        request = batch_requests.request_of(told, REQUESTS[shape]) if shape in REQUESTS else None
        columns, known = (spec.input.seed, spec.input.sampling), sampling.names_of(self.folder_format)
        params, n, seed = row_sampling.of_row(self.sampling, spec.sampling.n, record, request, *columns, known)
        if params is not self.sampling or n != spec.sampling.n or seed is not None:
            self._check_own(params, n)
        # With "reject" a prompt is too long if it leaves no room at all; a shortened one leaves room for max_tokens.
        room = 1 if spec.prompt.on_overlength == "reject" else min(params.max_tokens, self.context - 1)
        room = self.room(record) if self.room else room
        asked, adapter = ToFit(turns, prefix, self.context - room), self._adapter(record)
        pictures = self.sight.pictures(files) if self.sight else []
        return Draft(row, record, id, shape, params, n, seed, adapter, asked, pictures)

    def row_id(self, record: dict[str, Any], row: Row) -> str:
        """Raises Reject(bad_shape)."""
        rule = first_format.row_id if self.is_of_first_format else conversation.row_id
        return rule(record, self.spec.input.id, row.number)

    def _shape(self, record: dict[str, Any]) -> str:
        if self.template:
            return TEMPLATE
        rule = first_format.shape_of if self.is_of_first_format else shapes.shape_of
        return rule(record, self.spec.input.format)

    def turns(self, record: dict[str, Any], shape: str) -> tuple[Conversation, Conversation]:
        """The fixed turns ahead of a row's own, and these. A system message becomes part of the one or of the other."""
        spec = self.spec
        prefix = [Utterance(turn.speaker, turn.text) for turn in spec.prompt.prefix]
        if self.template:
            turns = self.template.fill(record)
        elif self.is_of_first_format:
            turns = first_format.read(record, shape, spec.input.drop_last_response)
        else:
            beside = shapes.SYSTEMS if spec.input.system is None else ()
            turns = shapes.read(record, shape, spec.input.drop_last_response, beside)
        system, turns = conversation.split_system(turns)
        if named := shapes.system_in(record, spec.input.system) if spec.input.system else "":
            system = f"{named}\n{system}" if system and system != named else named
        system = system or spec.prompt.system
        if system and self.format == "chat-template":
            return [Utterance(conversation.SYSTEM, system), *prefix], turns
        return prefix, conversation.with_system_ahead(system, turns)

    def _adapter(self, record: dict[str, Any]) -> str | None:
        """The adapter that answers a row. Raises Reject."""
        column = self.spec.input.adapter
        named = record.get(column) if column else None
        if conversation.is_blank(named):
            return DEFAULT_ADAPTER if DEFAULT_ADAPTER in self._adapters else None
        name = named.decode("utf-8", "replace") if isinstance(named, bytes) else named
        if name not in self._adapters:
            raise Reject("unknown_adapter", f"{column} is {named!r:.80}, and the job has {', '.join(self._adapters)}")
        return str(name)

    @cached_property
    def _adapters(self) -> list[str]:
        return [adapter.name for adapter in self.model.adapters]

    def _check_own(self, params: Sampling, n: int) -> None:
        """Checks parameters that the row brings; the job's were checked when it was prepared. Raises Reject."""
        if self.spec.input.row_sampling == "off":
            off = "the row brings parameters or a seed of its own, and [input] row_sampling is off"
            raise Reject("bad_sampling", off)
        if params is self.sampling and n == self.spec.sampling.n:
            return
        try:
            limits.check(params, n, self.sampling, self.spec.limits)
            self.checker.check(params)
        except ValueError as error:
            raise Reject("bad_sampling", str(error)) from None

    def fit_here(self, asked: ToFit) -> Fitted | Reject:
        try:
            return fit(asked, self.render, self.model.tokenizer, self.on_overlength, self.format, self._encode)
        except Reject as why:
            return why
        except MemoryError:
            return Reject("too_costly", NO_MEMORY)

    @cached_property
    def _encode(self) -> Callable[[str], list[int]]:
        encode = self.model.tokenizer.encode
        return self.sight.encoder(encode) if self.sight else encode

    def finish(self, draft: Draft, fitted: Fitted | Reject) -> Prompted | Reject:
        if isinstance(fitted, Reject):
            return fitted
        row, record, id, shape, params, n, own_seed, adapter, _, pictures = draft
        ids = fitted.token_ids
        if not ids:
            return Reject("empty", "the prompt has no tokens")
        try:
            params = _within(params, self.context - len(ids))
            written = _as_written(params, self.format)
            passed = {column.name: passed_value(row, record, column) for column in self.columns}
        except Reject as why:
            return why
        number, job_seed = row.number, self.spec.sampling.seed
        written = self._ranked(written)
        pictures = kept(pictures, fitted.conversation)
        requests = [
            Request(
                Name(number, 0, sample, 0),
                ids,
                written,
                _seed(job_seed, own_seed, id, sample),
                adapter=adapter,
                images=pictures,
            )
            for sample in range(n)
        ]
        made = Prompted(number, id, *fitted, params, passed, shape, adapter, requests, own_seed, images=pictures)
        return self._to_be_checked(made, record) if self.spec.check.checks else made

    def _to_be_checked(self, made: Prompted, record: dict[str, Any]) -> Prompted | Reject:
        """The row with what its responses are compared with."""
        try:
            if column := self.spec.check.source:
                source = conversation.text_of(record.get(column), column)
            else:
                source = self.template.values(record) if self.template else made.conversation[-1].text
        except Reject as why:
            return why
        return msgspec.structs.replace(made, source=source, record=record if self.has_user_check else {})

    # --- answers become output rows

    def next_tries(self, work: Prompted, request: Request, entry: Entry) -> list[Request]:
        row, part, sample, attempt = request.name
        if not self.spec.check.checks or attempt + 1 >= self.spec.check.tries:
            return []
        try:
            if not self._checked(work, request, entry).failed:
                return []
        except Reject:  # a check's own fault: `output` meets it again, and rejects the row
            return []
        return [self.request(work, Name(row, part, sample, attempt + 1))]

    def request(self, work: Prompted, name: Name, key: Hashable = None) -> Request:
        """What the engine is asked for a try of a row."""
        sampling = self._of_try(work, name.attempt)[1]
        seed, images = self._seed_of(work, name), work.images
        return Request(name, work.prompt_token_ids, sampling, seed, key, work.adapter, images=images)

    def output(self, work: Prompted, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        by_sample = groupby(answers, key=lambda answer: answer.request.name.sample)
        best = [self._best(work, list(of_sample)) for _, of_sample in by_sample]
        if self.spec.sampling.rerank:
            best = [min(best, key=lambda each: (len(each[0].failed), -tries.rank(each[0].entry)))]
        return [self._row_of(work, *each) for each in best]

    def has_failed(self, row: dict[str, Any]) -> bool:
        return bool(row.get("failed_checks"))

    def audit(self, finished: Iterable[Prompted]) -> None:
        return None

    def _best(self, work: Prompted, answers: list[Answer]) -> tuple[tries.Try, int]:
        """The best try of one sample, and how many there were. Raises Reject(check_error)."""
        if not self.spec.check.checks:
            [(request, entry)] = answers
            return tries.Try(request, entry, self.text(request, entry), []), 1
        return tries.best([self._checked(work, *answer) for answer in answers]), len(answers)

    def _row_of(self, work: Prompted, best: tries.Try, made: int) -> dict[str, Any]:
        """The output row of one sample. Raises Reject(check_failed)."""
        request, entry, text, wrong = best
        policy = self.spec.check.on_failure
        if wrong and policy == "reject":
            how_often = f"each of {made} tries" if made > 1 else "it"
            raise Reject("check_failed", f"sample {request.name.sample}: {', '.join(wrong)}: {how_often} failed")
        shown = None if wrong and policy == "null" else text
        return self._row(work, request, entry, shown, made, wrong)

    def _checked(self, work: Prompted, request: Request, entry: Entry) -> tries.Try:
        """A try with the checks that it fails, which are asked once. Raises Reject(check_error)."""
        name = request.name
        if name not in work.checked:
            text = self.text(request, entry)
            answer = Judged(text, entry.finish_reason, work.source, work.record, tries.mean_logprob(entry))
            work.checked[name] = tries.Try(request, entry, text, failed(self.checks, answer))
        return work.checked[name]

    def _of_try(self, work: Prompted, attempt: int) -> tuple[Sampling, Sampling]:
        """The parameters of a try, as the row and the job give them and as the engine gets them."""
        params = tries.sampling_of(work.sampling, attempt, self.spec.check)
        params = _within(params, self.context - len(work.prompt_token_ids))
        return params, self._ranked(_as_written(params, self.format))

    def _ranked(self, params: Sampling) -> Sampling:
        """With the log probabilities that tries are ranked and checked by."""
        return tries.ranked(params) if self._are_ranked else params

    @cached_property
    def _are_ranked(self) -> bool:
        is_shown = "mean_logprob" in self.spec.output.include
        return is_shown or bool(self.spec.sampling.rerank) or tries.are_ranked(self.spec.check)

    def sampling_of(self, work: Prompted, attempt: int) -> Sampling:
        """The parameters of a try, as its output row shows them."""
        return self._of_try(work, attempt)[0] if attempt else work.sampling

    def seeds_of(self, work: Prompted, request: Request) -> list[int]:
        """Which seeds the row's answer to a request may have: those of all its tries."""
        row, part, sample, _ = request.name
        attempts = range(self.spec.check.tries if self.spec.check.checks else 1)
        return [self._seed_of(work, Name(row, part, sample, attempt)) for attempt in attempts]

    def seed_of_id(self, id: str, attempt: int) -> int:
        return _seed(self.spec.sampling.seed, None, id, 0, attempt)

    def _seed_of(self, work: Prompted, name: Name) -> int:
        return _seed(self.spec.sampling.seed, work.own_seed, work.id, name.sample, name.attempt)

    def text(self, request: Request, entry: Entry) -> str:
        """A response as people are to read it."""
        if reasoned := self._reasoned(entry):
            return response_text(reasoned.answer, self.format)
        tokenizer = self.model.tokenizer
        text = tokenizer.decode(entry.token_ids)
        if entry.text_end is None:
            ended = entry.token_ids, entry.finish_reason
            text = first_format.cut_at_stop_text(text, *ended, request.sampling, tokenizer.eos_ids)
        elif entry.text_end != WHOLE:
            text = text[: entry.text_end]
        return response_text(text, self.format)

    def _row(
        self, work: Prompted, request: Request, entry: Entry, text: str | None, made: int = 1, wrong: Sequence[str] = ()
    ) -> dict[str, Any]:
        """made: how many tries; wrong: the checks that the answer fails"""
        attempt = request.name.attempt
        params = self.sampling_of(work, attempt)
        reasoned = self._reasoned(entry)
        reasoning = response_text(reasoned.reasoning, self.format) if reasoned and reasoned.reasoning else None
        place = dict(zip(("file", "line"), self.source(work.row), strict=True)) if self.source else None
        done = Answered(work, request.seed, entry, text, params, made, wrong, reasoning, place)
        return {column.name: column.value(done) for column in self._own_columns} | work.columns

    def _reasoned(self, entry: Entry) -> Reasoned | None:
        """The answer in two, if that is what the job asks for."""
        return entry.reasoned if self.spec.model.reasoning_parser else None


def _within(params: Sampling, room: int) -> Sampling:
    """max_tokens cut to what the context leaves, as the output row will say."""
    if params.max_tokens <= room:
        return params
    if params.min_tokens > room:
        raise Reject("too_long", f"min_tokens is {params.min_tokens}, but the context leaves {room}")
    return msgspec.structs.replace(params, max_tokens=room)


def _as_written(params: Sampling, format: str) -> Sampling:
    """The same parameters, with their texts as the model writes them."""
    if not params.stop and not params.bad_words:
        return params
    stop, bad_words = ([to_model_text(text, format) for text in texts] for texts in (params.stop, params.bad_words))
    return msgspec.structs.replace(params, stop=stop, bad_words=bad_words)


def _seed(job_seed: int, own: int | None, id: str, sample: int, attempt: int = 0) -> int:
    """The row's own seed is that of its first sample; further samples and tries derive theirs from it."""
    if own is None:
        return sampling.item_seed(job_seed, id, sample, 0, attempt)
    return sampling.item_seed(own, id, sample, 0, attempt) if sample or attempt else own
