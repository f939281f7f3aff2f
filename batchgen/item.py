"""From a row to its items: one generation each, ready for the engine."""

from dataclasses import dataclass
from typing import Any

import msgspec

from . import bodies, conversation, prompt, sampling, shapes, structure
from .conversation import Conversation, Row, Utterance
from .engine import Logprobs
from .errors import Reject
from .job import JobSpec
from .prepare import Job
from .sampling import Sampling
from .source import column_value

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

    def answer(self, token_ids: list[int], finish_reason: str, logprobs: Logprobs | None, job: Job) -> dict[str, Any]:
        """Its row of the shard, with all optional columns; the schema picks."""
        text = job.model.tokenizer.decode(token_ids)
        stop = self.written.stop
        if stop and finish_reason == "stop" and token_ids[-1] not in self._stop_ids(job):
            text = _cut_at(text, stop, self.sampling.include_stop_str_in_output)
        return {
            "id": self.id,
            "row": self.row,
            "sample": self.sample,
            "conversation": [utterance._asdict() for utterance in self.conversation],
            "response": prompt.response_text(text, job.format),
            "finish_reason": finish_reason,
            "prompt_tokens": len(self.prompt_token_ids),
            "truncated": self.truncated,
            "response_tokens": len(token_ids),
            "seed": self.seed,
            "sampling": _as_column(self.sampling),
            **self.columns,
            "prompt": self.prompt,
            "prompt_token_ids": self.prompt_token_ids,
            "response_token_ids": token_ids,
            "logprobs": logprobs
            and [[{"token_id": token, "logprob": value} for token, value in step] for step in logprobs],
        }

    def _stop_ids(self, job: Job) -> set[int]:
        """Token ids that end this item: a response that ends with one of them was not ended by a stop text."""
        return {*self.sampling.stop_token_ids, *([] if self.sampling.ignore_eos else job.model.tokenizer.eos_ids)}


def make(row: Row, job: Job) -> list[Item]:
    """The n items of a row. Raises Reject with the first thing that is wrong with it."""
    record, spec = row.record(), job.spec
    id = conversation.row_id(record, spec.input.id, row.number)
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
    policy = spec.prompt.on_overlength
    limit = job.context - (1 if policy == "reject" else min(params.max_tokens, job.context - 1))
    fitted = prompt.fit(turns, prefix, job.render, job.model.tokenizer.encode, limit, policy)
    params = _within(params, job.context - len(fitted.token_ids))
    written = _as_written(params, job.format)
    passed = {name: column_value(record.get(name), kind, name) for name, kind in job.columns.items()}
    return [
        Item(row.number, sample, id, *fitted, params, written, _seed(spec, seed, id, sample), passed, shape)
        for sample in range(n)
    ]


def _shape(record: dict[str, Any], job: Job) -> str:
    if job.template:
        return TEMPLATE
    return shapes.shape_of(record, job.spec.input.format)


def _turns(record: dict[str, Any], shape: str, job: Job) -> tuple[Conversation, Conversation]:
    """The fixed turns ahead of a row's own, and these. A system message becomes part of the one or of the other."""
    spec = job.spec
    prefix = [Utterance(turn.speaker, turn.text) for turn in spec.prompt.prefix]
    if job.template:
        turns = job.template.fill(record)
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


def _cut_at(text: str, stop: list[str], keep: bool) -> str:
    """The text without the stop text that ended it (with it, if `keep`): the one that ends last, as generation ended
    with the token that completed it."""
    end, start = max((text.rfind(each) + len(each), text.rfind(each)) for each in stop if each in text)
    return text[: end if keep else start]


def columns_read(job: Job) -> list[str]:
    """The columns of a Parquet input that `make` looks at."""
    table = job.spec.input
    shape = job.template.candidates if job.template else shapes.COLUMNS
    named = [name for name in (table.id, table.seed, table.sampling, table.system) if name]
    return list(dict.fromkeys([*shape, *named, *job.columns]))


def best_id(row: Row, column: str) -> str:
    """The id of a rejected row, as far as it can be read."""
    try:
        return conversation.row_id(row.record(), column, row.number)
    except Reject:
        return str(row.number)


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
