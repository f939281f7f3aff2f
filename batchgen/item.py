"""From a row to its items: one generation each, ready for the engine."""

from dataclasses import dataclass
from typing import Any

import msgspec

from . import bodies, conversation, first_format, prompt, sampling, shapes, structure
from .conversation import Conversation, Row, Utterance
from .cursor import passed_value
from .engine import WHOLE
from .errors import Reject
from .job import JobSpec
from .journal import Entry
from .prepare import Job
from .sampling import Sampling
from .source import Reader

REQUESTS = {"openai-batch": "body", "anthropic-batch": "params"}  # shapes -> the column that holds the request
TEMPLATE = "template"


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


def make(row: Row, job: Job) -> list[Item]:
    """The n items of a row. Raises Reject with the first thing that is wrong with it."""
    record, spec = row.record(), job.spec
    id = _row_id(record, row, job)
    shape = _shape(record, job)
    prefix, turns = _turns(record, shape, job)
    request = bodies.request_of(record, REQUESTS[shape]) if shape in REQUESTS else None
    asked = spec.input.seed, spec.input.sampling
    params, n, seed = sampling.of_row(job.sampling, spec.sampling.n, record, request, *asked)
    if params is not job.sampling:  # which was checked as the job was prepared
        try:
            structure.check(params, job.model.vocab_size)
        except ValueError as error:
            raise Reject("bad_sampling", str(error)) from None
    # A prompt is too long if it leaves no room at all; one that is shortened anyway leaves room for max_tokens.
    policy = job.on_overlength
    limit = job.context - (1 if policy == "reject" else min(params.max_tokens, job.context - 1))
    tokenizer, verbatim = job.model.tokenizer, job.format != "chat-template"
    fitted = prompt.fit(turns, prefix, job.render, tokenizer.encode, limit, policy, tokenizer.exceeds, verbatim)
    params = _within(params, job.context - len(fitted.token_ids))
    written = _as_written(params, job.format)
    passed = {column.name: passed_value(row, record, column) for column in job.columns}
    return [
        Item(row.number, sample, id, *fitted, params, written, _seed(spec, seed, id, sample), passed, shape)
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
        "structured_outputs": structure.as_json(wanted) if wanted else None,
    }


def columns_read(job: Job) -> list[str]:
    """The columns of a columnar input that `make` looks at."""
    table = job.spec.input
    shape = job.template.candidates if job.template else shapes.COLUMNS
    named = [name for name in (table.id, table.seed, table.sampling, table.system) if name]
    return list(dict.fromkeys([*shape, *named]))


def reader(job: Job, running: bool = False) -> Reader:
    """What reads the rows of a job's shards for `make`. running: see Reader."""
    return Reader(job.plan, columns_read(job), job.columns, running)


def best_id(row: Row, job: Job) -> str:
    """The id of a rejected row, as far as it can be read."""
    try:
        return _row_id(row.record(), row, job)
    except Reject:
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
