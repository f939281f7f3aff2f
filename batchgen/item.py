"""From a row to its items: one generation each, ready for the engine."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from . import conversation, prompt, sampling
from .conversation import Conversation, Row
from .errors import Reject
from .job import JobSpec
from .models import Model
from .sampling import Sampling
from .source import column_value


@dataclass(frozen=True, slots=True)
class Item:
    """One (row, sample): what goes into the engine, and what its output row says beside the response."""

    row: int
    sample: int
    id: str
    conversation: Conversation
    prompt: str
    prompt_token_ids: list[int]
    sampling: Sampling
    seed: int
    columns: dict[str, Any]

    @property
    def name(self) -> str:
        """What the engine and the supervisor call it."""
        return f"{self.row}-{self.sample}"


def make(row: Row, spec: JobSpec, model: Model, context: int, columns: dict[str, str | pa.DataType]) -> list[Item]:
    """The n items of a row. Raises Reject with the first thing that is wrong with it."""
    record = row.record()
    id = conversation.row_id(record, spec.input.id, row.number)
    turns = conversation.from_record(record)
    text = prompt.render(turns)
    token_ids = model.tokenizer.encode(text)
    room = context - len(token_ids)
    if room < 1:
        raise Reject("too_long", f"the prompt has {len(token_ids)} tokens, the context {context}; no room to answer")
    params, seed = sampling.of_row(spec.sampling, record)
    if unknown := [token for token in params.stop_token_ids if not 0 <= token < model.vocab_size]:
        raise Reject("bad_sampling", f"stop_token_ids: {unknown[0]} is not one of the model's {model.vocab_size} ids")
    params = _within(params, room)
    passed = {name: column_value(record.get(name), kind, name) for name, kind in columns.items()}
    return [
        Item(row.number, sample, id, turns, text, token_ids, params, _seed(spec, seed, id, sample), passed)
        for sample in range(spec.sampling.n)
    ]


def columns_read(spec: JobSpec, columns: Iterable[str]) -> list[str]:
    """The columns of a Parquet input that `make` looks at."""
    return [*conversation.SHAPES, spec.input.id, "seed", "sampling", *columns]


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
    values = {name: getattr(params, name) for name in Sampling.__struct_fields__}
    return Sampling(**(values | {"max_tokens": room}))


def _seed(spec: JobSpec, own: int | None, id: str, sample: int) -> int:
    """The row's own seed is that of its first sample; further samples derive theirs from it."""
    if own is None:
        return sampling.item_seed(spec.sampling.seed, id, sample)
    return own if sample == 0 else sampling.item_seed(own, id, sample)
