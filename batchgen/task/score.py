"""The task of scoring: how likely the model finds texts that are there already.

A continuation is scored behind its prompt, in one request: the sum of the log probabilities of its tokens. Prompt and
continuation are tokenized apart, without special tokens, as lm-evaluation-harness does.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from ..errors import Reject
from ..input import conversation, shapes
from ..input.columns import Column
from ..input.conversation import Row
from ..input.cursor import passed_value
from ..input.turns import as_list
from ..job.sampling import Sampling
from ..job.spec import JobSpec
from ..prompt.formats import to_model_text
from .generate import NO_MEMORY, Generate, Prompted
from .output_columns import SCORES
from .task import Answer, Entry, Name, Request

SAMPLING = Sampling(max_tokens=1, temperature=0.0)  # of requests that are scored: nothing is sampled
TEXT = "text"  # the column of `mode = "text"`, if none is named

TOKEN = pa.struct([("token_id", pa.int32()), ("logprob", pa.float32()), ("rank", pa.int32())])
TOKENS = pa.field("token_logprobs", pa.list_(pa.list_(TOKEN)))


class Target(NamedTuple):
    """What is scored: its text, and that as tokens."""

    text: str
    token_ids: list[int]


class Scored(msgspec.Struct, frozen=True, gc=False):
    """A row that is to be scored.

    prompted: the row; of a text by itself without a prompt
    right: number of the right choice, if the row says so
    """

    row: int
    id: str
    prompted: Prompted
    targets: list[Target]
    right: int | None
    requests: list[Request]


class Sum(NamedTuple):
    """logprob: of some tokens together; is_greedy: each was the likeliest"""

    logprob: float
    tokens: int
    is_greedy: bool


@dataclass(frozen=True)
class Score:
    """The task of a job with `[score]`.

    generate: what makes the prompts, each with room for the longest text behind it
    context: most tokens of prompt and text together
    skip: rows that are to be rejected
    """

    spec: JobSpec
    generate: Generate
    context: int
    columns: list[Column]
    skip: frozenset[int]

    @cached_property
    def schema(self) -> pa.Schema:
        passed = [pa.field(column.name, column.type) for column in self.columns]
        return pa.schema([*SCORES, *passed, *([TOKENS] if self.spec.score.tokens else [])])

    @property
    def columns_read(self) -> list[str]:
        own = [self.column, self.spec.score.reference, self.spec.input.id]
        of_prompts = self.generate.columns_read if self.spec.score.mode != "text" else []
        return list(dict.fromkeys([*of_prompts, *(name for name in own if name)]))

    @property
    def column(self) -> str:
        return self.spec.score.column or (TEXT if self.spec.score.mode == "text" else "")

    # --- a row becomes requests

    def prepare(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Scored | Reject]]:
        if self.spec.score.mode == "text":
            for row in rows:
                yield row, self._caught(row, self._of_text, row)
        else:
            for row, made in replace(self.generate, skip=self.skip).prepare(rows):
                yield row, made if isinstance(made, Reject) else self._caught(row, self._of_prompt, row, made)

    def _caught(self, row: Row, make: Any, *arguments: Any) -> Scored | Reject:
        try:
            if row.number in self.skip:
                raise Reject("skipped", "[input] skip names the row")
            made: Scored = make(*arguments)
            return made
        except Reject as why:
            return why
        except MemoryError:
            return Reject("too_costly", NO_MEMORY)

    def id_of(self, row: Row) -> str:
        return self.generate.id_of(row)

    def room(self, record: dict[str, Any]) -> int:
        """Tokens that the longest text of a record needs behind its prompt, which has one at least. Raises Reject."""
        longest = max(len(target.token_ids) for target in self._targets(record))
        if longest + 2 > self.context:
            raise Reject("too_long", f"a text to score has {longest:,} tokens, and the context {self.context:,}")
        return longest + 1  # vLLM generates one more, which is dropped

    def _targets(self, record: dict[str, Any]) -> list[Target]:
        """Raises Reject."""
        return [self._target(text) for text in self._texts(record)]

    def _texts(self, record: dict[str, Any]) -> list[str]:
        name = self.column
        if not name:
            return [shapes.answer_of(record, shapes.shape_of(record, self.spec.input.format))]
        value = record.get(name)
        if self.spec.score.mode != "choices":
            return [conversation.text_of(value, name)]
        choices = as_list(value)
        if not choices:
            raise Reject("bad_shape", f"{name} is {conversation.kind_of(value)}, not a list of choices")
        return [conversation.text_of(choice, f"{name}[{number}]") for number, choice in enumerate(choices)]

    def _target(self, text: str) -> Target:
        ids = self.generate.model.tokenizer.encode(to_model_text(text, self.generate.format))
        if not ids:
            raise Reject("empty", "a text to score has no tokens")
        return Target(text, ids)

    def _of_prompt(self, row: Row, made: Prompted) -> Scored:
        record = row.record()
        targets = self._targets(record)
        asked = [(made.prompt_token_ids, target.token_ids) for target in targets]
        if self.spec.score.also_without_prompt:
            asked += [(self._nothing, target.token_ids) for target in targets]
        requests = [self._request(row.number, part, *pair, made.adapter) for part, pair in enumerate(asked)]
        return Scored(row.number, made.id, made, targets, self._right(record, targets), requests)

    def _of_text(self, row: Row) -> Scored:
        record = row.record()
        id = conversation.row_id(record, self.spec.input.id, row.number)
        text = conversation.text_of(record.get(self.column), self.column)
        target = self._target(text)
        passed = {column.name: passed_value(row, record, column) for column in self.columns}
        made = Prompted(row.number, id, [], "", [], 0, SAMPLING, passed, TEXT, None, [])
        windows = windows_of([*self._nothing, *target.token_ids], self.context - 1)
        requests = [self._request(row.number, part, *window, None) for part, window in enumerate(windows)]
        return Scored(row.number, id, made, [target], None, requests)

    @property
    def _nothing(self) -> list[int]:
        """What stands ahead of a text that has no prompt."""
        return self.generate.model.tokenizer.eos_ids[:1]

    def _request(self, row: int, part: int, ahead: list[int], target: list[int], adapter: str | None) -> Request:
        return Request(Name(row, part, 0, 0), [*ahead, *target], SAMPLING, 0, None, adapter, len(target))

    def _right(self, record: dict[str, Any], targets: list[Target]) -> int | None:
        """Raises Reject."""
        name = self.spec.score.reference
        value = record.get(name) if name else None
        if conversation.is_blank(value):
            return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise Reject("bad_shape", f"{name} is {conversation.kind_of(value)}, not a choice's number or text")
        texts = [target.text for target in targets]
        number = value if isinstance(value, int) else texts.index(value) if value in texts else -1
        if not 0 <= number < len(texts):
            raise Reject("bad_shape", f"{name} is {value!r:.80}, which is none of the {len(texts)} choices")
        return number

    # --- answers become output rows

    def next_tries(self, work: Scored, request: Request, entry: Entry) -> list[Request]:
        return []

    def output(self, work: Scored, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        sums = [sum_of(entry) for _, entry in answers]
        if self.spec.score.mode == "text":
            sums = [_together(sums)]
        without = sums[len(work.targets) :]
        scores = [
            _score(target, own, without[number].logprob if without else None)
            for number, (target, own) in enumerate(zip(work.targets, sums, strict=False))
        ]
        best = max(range(len(scores)), key=lambda number: scores[number]["logprob"])
        made = work.prompted
        row = {
            "id": work.id,
            "row": work.row,
            "conversation": [utterance._asdict() for utterance in made.conversation],
            "prompt_tokens": len(made.prompt_token_ids),
            "truncated": made.truncated,
            "scores": scores,
            "best": best,
            "right": None if work.right is None else best == work.right,
            "perplexity": perplexity(sums[0]) if len(work.targets) == 1 else None,
        }
        tokens = {TOKENS.name: self._tokens(work, answers)} if self.spec.score.tokens else {}
        return [row | made.columns | tokens]

    def _tokens(self, work: Scored, answers: Sequence[Answer]) -> list[list[dict[str, Any]]]:
        found = [_tokens_of(entry) for _, entry in answers]
        if self.spec.score.mode == "text":
            return [[token for window in found for token in window]]
        return found[: len(work.targets)]

    def has_failed(self, row: dict[str, Any]) -> bool:
        return False

    def audit(self, finished: Iterable[Scored]) -> None:
        return None


def windows_of(token_ids: Sequence[int], most: int) -> Iterator[tuple[list[int], list[int]]]:
    """(ahead, scored) of a long text, every token but the first scored once: the first window whole, each further one
    with as much of the text ahead as has room. So does lm-evaluation-harness with `loglikelihood_rolling`.

    token_ids: of the text behind what stands ahead of it
    most: tokens of a window
    """
    begins = [1, *range(most, len(token_ids), most - 1)] if len(token_ids) > most else [1]
    for begin, end in pairwise([*begins, len(token_ids)]):
        yield list(token_ids[max(0, end - most) : begin]), list(token_ids[begin:end])


def sum_of(entry: Entry) -> Sum:
    logprobs = [step[0][1] for step in entry.logprobs or []]
    return Sum(math.fsum(logprobs), len(logprobs), all(rank == 1 for rank in entry.ranks or []))


def _together(sums: Sequence[Sum]) -> Sum:
    logprob = math.fsum(each.logprob for each in sums)
    return Sum(logprob, sum(each.tokens for each in sums), all(each.is_greedy for each in sums))


def perplexity(scored: Sum) -> float:
    return math.exp(-scored.logprob / scored.tokens)


def _score(target: Target, own: Sum, without_prompt: float | None) -> dict[str, Any]:
    return {
        "text": target.text,
        "logprob": own.logprob,
        "tokens": own.tokens,
        "logprob_per_token": own.logprob / own.tokens,
        "logprob_per_char": own.logprob / max(1, len(target.text)),
        "greedy": own.is_greedy,
        "without_prompt": without_prompt,
    }


def _tokens_of(entry: Entry) -> list[dict[str, Any]]:
    pairs = zip(entry.logprobs or [], entry.ranks or [], strict=True)
    return [{"token_id": step[0][0], "logprob": step[0][1], "rank": rank} for step, rank in pairs]
