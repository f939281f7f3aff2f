"""From a row to its items: one generation each, ready for the engine."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from ..engine.types import WHOLE
from ..errors import Reject
from ..input import bodies, conversation, first_format, own_sampling, shapes
from ..input.conversation import Conversation, Row, Utterance
from ..input.cursor import passed_value
from ..input.source import Reader
from ..job import sampling
from ..job.lengths import RowLimits
from ..job.sampling import Sampling
from ..job.spec import JobSpec
from ..output.journal import Entry
from ..prompt import prompt, structured_outputs
from ..prompt.checker import ToFit, fit
from ..prompt.prompt import Fitted
from ..run.prepare import Job
from . import limits

REQUESTS = {"openai-batch": "body", "anthropic-batch": "params"}  # shapes -> the column that holds the request
TEMPLATE = "template"
NO_MEMORY = "this machine's memory does not suffice to make it ready"
TOGETHER = 16  # rows whose prompts another process makes at a time: one by one, waiting takes as long as making them


@dataclass(frozen=True, slots=True)
class Item:
    """One (row, sample): what goes into the engine, and what its output row says beside the response.

    truncated: how many tokens were taken off the prompt to make it fit; written: the sampling with its texts as the
    model writes them; shape: that of the row's record, or "template".
    """

    row: int
    sample: int
    id: str
    conversation: Conversation
    prompt: str
    prompt_token_ids: list[int]
    truncated: int
    sampling: Sampling
    written: Sampling
    seed: int
    columns: dict[str, Any]
    shape: str

    @property
    def name(self) -> str:
        """What the engine and the supervisor call it."""
        return f"{self.row}-{self.sample}"

    def answer(self, entry: Entry, job: Job) -> dict[str, Any]:
        """Its row of the shard, with all optional columns; the schema picks."""
        text = job.model.tokenizer.decode(entry.token_ids)
        end = self._text_end(text, entry, job) if entry.text_end is None else entry.text_end
        text = text if end == WHOLE else text[:end]
        return {
            "id": self.id,
            "row": self.row,
            "sample": self.sample,
            "conversation": [utterance._asdict() for utterance in self.conversation],
            "response": prompt.response_text(text, job.format),
            "finish_reason": entry.finish_reason,
            "prompt_tokens": len(self.prompt_token_ids),
            "truncated": self.truncated,
            "response_tokens": len(entry.token_ids),
            "seed": self.seed,
            "sampling": _as_column(self.sampling),
            "prompt": self.prompt,
            "prompt_token_ids": self.prompt_token_ids,
            "response_token_ids": entry.token_ids,
            "logprobs": entry.logprobs
            and [[{"token_id": token, "logprob": value} for token, value in step] for step in entry.logprobs],
            **self.columns,  # the input's own `prompt` too, where the job writes none
        }

    def _text_end(self, text: str, entry: Entry, job: Job) -> int:
        """Where the response ends in the text of an entry of batchgen 0.1.0, by that version's rule: before the stop
        text that ends last, if no stop token ended it."""
        found = [stop for stop in self.written.stop if stop in text]
        if entry.finish_reason != "stop" or self._stop_ids(job).intersection(entry.token_ids[-1:]) or not found:
            return WHOLE
        end, start = max((text.rfind(stop) + len(stop), text.rfind(stop)) for stop in found)
        return end if self.sampling.include_stop_str_in_output else start

    def _stop_ids(self, job: Job) -> set[int]:
        """Token ids that end this item: a response that ends with one of them was not ended by a stop text."""
        return {*self.sampling.stop_token_ids, *([] if self.sampling.ignore_eos else job.model.tokenizer.eos_ids)}


class Draft(NamedTuple):
    """A row that has everything but its prompt."""

    row: Row
    record: dict[str, Any]
    id: str
    shape: str
    params: Sampling
    n: int
    seed: int | None
    asked: ToFit


def make_all(rows: Iterable[Row], job: Job) -> Iterator[tuple[Row, list[Item] | Reject]]:
    """Every row with its items, or with why it has none, in order."""
    drafted = _drafted(rows, job)
    if not job.checker.has_prompts:
        for row, draft in drafted:
            yield row, draft if isinstance(draft, Reject) else finish(draft, fit_here(draft.asked, job), job)
        return
    some = list(islice(drafted, TOGETHER))
    while some:
        prompts = job.checker.fit([draft.asked for _, draft in some if isinstance(draft, Draft)])
        following = list(islice(drafted, TOGETHER))  # while the prompts are made
        for row, draft in some:
            yield row, draft if isinstance(draft, Reject) else finish(draft, next(prompts), job)
        some = following


def make(row: Row, job: Job) -> list[Item]:
    """The n items of a row. Raises Reject with the first thing that is wrong with it."""
    [(_, made)] = make_all([row], job)
    if isinstance(made, Reject):
        raise made
    return made


def _drafted(rows: Iterable[Row], job: Job) -> Iterator[tuple[Row, Draft | Reject]]:
    for row in rows:
        try:
            yield row, draft(row, job)
        except Reject as why:
            yield row, why
        except MemoryError:
            yield row, Reject("too_costly", NO_MEMORY)
        except Exception as error:
            error.add_note(f"at row {row.number}")
            raise


def draft(row: Row, job: Job) -> Draft:
    if row.number in job.skip:
        raise Reject("skipped", "[input] skip names the row")
    record, spec = row.record(), job.spec
    id = _row_id(record, row, job)
    shape = _shape(record, job)
    prefix, turns = _turns(record, shape, job)
    if len(turns) > spec.limits.turns:
        raise Reject("bad_shape", f"{len(turns):,} utterances, and [limits] turns allows {spec.limits.turns:,}")
    request = bodies.request_of(record, REQUESTS[shape]) if shape in REQUESTS else None
    columns = spec.input.seed, spec.input.sampling
    params, n, seed = own_sampling.of_row(job.sampling, spec.sampling.n, record, request, *columns)
    if params is not job.sampling or n != spec.sampling.n or seed is not None:
        _check_own(params, n, job)
    # A prompt is too long if it leaves no room at all; one that is shortened anyway leaves room for max_tokens.
    room = 1 if spec.prompt.on_overlength == "reject" else min(params.max_tokens, job.context - 1)
    return Draft(row, record, id, shape, params, n, seed, ToFit(turns, prefix, job.context - room))


def _check_own(params: Sampling, n: int, job: Job) -> None:
    """What a row brings itself; what the job says was checked as it was prepared. Raises Reject."""
    if job.spec.input.row_sampling == "off":
        raise Reject("bad_sampling", "the row brings parameters or a seed of its own, and [input] row_sampling is off")
    if params is job.sampling and n == job.spec.sampling.n:
        return
    try:
        limits.check(params, n, job.sampling, job.spec.limits)
        job.checker.check(params)
    except ValueError as error:
        raise Reject("bad_sampling", str(error)) from None


def fit_here(asked: ToFit, job: Job) -> Fitted | Reject:
    try:
        return fit(asked, job.render, job.model.tokenizer, job.on_overlength, job.format)
    except Reject as why:
        return why
    except MemoryError:
        return Reject("too_costly", NO_MEMORY)


def finish(draft: Draft, fitted: Fitted | Reject, job: Job) -> list[Item] | Reject:
    if isinstance(fitted, Reject):
        return fitted
    row, record, id, shape, params, n, seed, _ = draft
    if not fitted.token_ids:
        return Reject("empty", "the prompt has no tokens")
    try:
        params = _within(params, job.context - len(fitted.token_ids))
        written = _as_written(params, job.format)
        passed = {column.name: passed_value(row, record, column) for column in job.columns}
    except Reject as why:
        return why
    return [
        Item(row.number, sample, id, *fitted, params, written, _seed(job.spec, seed, id, sample), passed, shape)
        for sample in range(n)
    ]


def _shape(record: dict[str, Any], job: Job) -> str:
    if job.template:
        return TEMPLATE
    if job.is_of_first_format:
        return first_format.shape_of(record, job.spec.input.format)
    return shapes.shape_of(record, job.spec.input.format)


def _turns(record: dict[str, Any], shape: str, job: Job) -> tuple[Conversation, Conversation]:
    """The fixed turns ahead of a row's own, and these. A system message becomes part of the one or of the other."""
    spec = job.spec
    prefix = [Utterance(turn.speaker, turn.text) for turn in spec.prompt.prefix]
    if job.template:
        turns = job.template.fill(record)
    elif job.is_of_first_format:
        turns = first_format.read(record, shape, spec.input.drop_last_response)
    else:
        beside = shapes.SYSTEMS if spec.input.system is None else ()
        turns = shapes.read(record, shape, spec.input.drop_last_response, beside)
    system, turns = conversation.split_system(turns)
    if named := shapes.system_in(record, spec.input.system) if spec.input.system else "":
        system = f"{named}\n{system}" if system and system != named else named
    system = system or spec.prompt.system
    if system and job.format == "chat-template":
        return [Utterance(conversation.SYSTEM, system), *prefix], turns
    return prefix, conversation.with_system_ahead(system, turns)


def _as_written(params: Sampling, format: str) -> Sampling:
    """The same with its texts as the model writes them."""
    if not params.stop and not params.bad_words:
        return params
    stop, bad_words = ([prompt.as_written(text, format) for text in texts] for texts in (params.stop, params.bad_words))
    return msgspec.structs.replace(params, stop=stop, bad_words=bad_words)


def _as_column(params: Sampling) -> dict[str, Any]:
    """As the column `sampling` has it: no dicts, whose keys Arrow would need to know."""
    wanted = params.structured_outputs
    return msgspec.structs.asdict(params) | {
        "logit_bias": [{"token_id": token, "bias": bias} for token, bias in params.logit_bias.items()],
        "structured_outputs": structured_outputs.as_json(wanted) if wanted else None,
    }


def columns_read(job: Job) -> list[str]:
    """The columns of a columnar input that `make` looks at."""
    table = job.spec.input
    shape = job.template.candidates if job.template else shapes.COLUMNS
    named = [name for name in (table.id, table.seed, table.sampling, table.system) if name]
    return list(dict.fromkeys([*shape, *named]))


def reader(job: Job, running: bool = False) -> Reader:
    """What reads the rows of a job's shards for `make`. running: see Reader."""
    limits = RowLimits(job.spec.limits.row_bytes, job.spec.limits.row_values)
    return Reader(job.plan, columns_read(job), job.columns, running, limits)


def best_id(row: Row, job: Job) -> str:
    """The id of a rejected row, as far as it can be read."""
    try:
        return _row_id(row.record(), row, job)
    except (Reject, MemoryError):
        return str(row.number)


def _row_id(record: dict[str, Any], row: Row, job: Job) -> str:
    """Raises Reject(bad_shape)."""
    rule = first_format.row_id if job.is_of_first_format else conversation.row_id
    return rule(record, job.spec.input.id, row.number)


def _within(params: Sampling, room: int) -> Sampling:
    """max_tokens cut to what the context leaves, as the output row will say."""
    if params.max_tokens <= room:
        return params
    if params.min_tokens > room:
        raise Reject("too_long", f"min_tokens is {params.min_tokens}, but the context leaves {room}")
    return msgspec.structs.replace(params, max_tokens=room)


def _seed(spec: JobSpec, own: int | None, id: str, sample: int) -> int:
    """The row's own seed is that of its first sample; further samples derive theirs from it."""
    if own is None:
        return sampling.item_seed(spec.sampling.seed, id, sample)
    return own if sample == 0 else sampling.item_seed(own, id, sample)
