"""What all of batchgen's tasks have in common: a row becomes requests, and their answers become output rows.

The loop that claims shards, keeps an engine full, journals and commits knows tasks by this interface alone.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

import msgspec
import pyarrow as pa

from ..input.columns import Column
from ..input.conversation import Row
from ..job.sampling import FINISH_REASONS, Sampling
from ..prompt.pictures import Picture

if TYPE_CHECKING:
    from .segment_rows import SegmentRow

WHOLE = -1  # as the end of a response's text: no stop text cut it

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class Name(NamedTuple):
    """Which request of a job one is, over all shards and runs.

    row: number of the input row
    part: of what the row is made into; 0 where it is one prompt
    sample: of several responses to the same prompt
    attempt: the try; above 0 where a task rejected an earlier answer
    """

    row: int
    part: int
    sample: int
    attempt: int

    def __str__(self) -> str:
        """As the engine, the supervisor and messages call it."""
        more = f"-{self.part}-{self.attempt}" if self.part or self.attempt else ""
        return f"{self.row}-{self.sample}{more}"


class Request(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One generation. A struct, as every row has some: cheaper to make, and nothing the garbage collector goes over.

    sampling: with its texts as the model writes them
    adapter: the name of the one that is to answer; None is the model alone
    key: two requests of a shard with the same key are generated once; None is never the same
    scored: how many of the prompt's last tokens are scored, instead of generating any
    images: of the prompt, in the order of their places in it
    """

    name: Name
    prompt_token_ids: list[int]
    sampling: Sampling
    seed: int
    key: Hashable = None
    adapter: str | None = None
    scored: int = 0
    images: Sequence[Picture] = ()


class Reasoned(NamedTuple):
    """The text of a model that reasons, in two.

    reasoning: what it thought before it answered; None if it did not
    answer: the rest; empty if it was cut while it thought
    """

    reasoning: str | None
    answer: str


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The engine's answer to a request, as the journal keeps it. Everything else can be derived from the input again.

    New fields go to the end, with a default: older journals are read without them.

    logprobs: of each token, the sampled one first
    text_end: characters of the response's text, WHOLE if a stop text does not cut it; None in journals of batchgen
        0.1.0, which did not write it
    reasoned: the response's text in two, if a reasoning parser did that
    ranks: which likeliest each token of a scored request was, from 1; its logprobs are theirs, and it generated none
    """

    row: int
    sample: int
    token_ids: list[TokenId]
    finish_reason: Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(FINISH_REASONS)})$")]
    logprobs: list[list[tuple[TokenId, float]]] | None = None
    text_end: int | None = None
    part: int = 0
    attempt: int = 0
    reasoned: Reasoned | None = None
    ranks: list[int] | None = None

    @property
    def name(self) -> Name:
        return Name(self.row, self.part, self.sample, self.attempt)

    def named(self, name: Name) -> "Entry":
        """This answer as that of another request."""
        row, part, sample, attempt = name
        return msgspec.structs.replace(self, row=row, part=part, sample=sample, attempt=attempt)


class Answer(NamedTuple):
    request: Request
    entry: Entry


class Work(Protocol):
    """A row that is ready for the engine, with whatever its task needs to make its output rows."""

    @property
    def row(self) -> int: ...

    @property
    def id(self) -> str: ...

    @property
    def requests(self) -> Sequence[Request]:
        """The first ones, all of this row; none if it needs no answer."""
        ...


class Task(Protocol):
    """What a job does to every row of a dataset."""

    @property
    def schema(self) -> pa.Schema:
        """Of the output rows."""
        ...

    @property
    def columns_read(self) -> Sequence[str]:
        """The columns of a columnar input that `prepare` looks at."""
        ...

    @property
    def columns(self) -> list[Column]:
        """That are passed through."""
        ...

    def prepare(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Any]]:
        """Every row, in order, with its Work or with the Reject that says why it has none."""
        ...

    def id_of(self, row: Row) -> str:
        """The id of a rejected row, as far as it can be read."""
        ...

    def next_tries(self, work: Any, request: Request, entry: Entry) -> list[Request]:
        """What is asked in place of a request that was just answered; nothing if the answer is accepted, or tries are
        used up."""
        ...

    def output(self, work: Any, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """The output rows of a row, in order. Raises Reject.

        answers: to all of its requests, every try of each, by name
        """
        ...

    def has_failed(self, row: dict[str, Any]) -> bool:
        """Whether what an output row holds fails a check."""
        ...

    def audit(self, finished: Iterable[Any]) -> "Sequence[SegmentRow] | None":
        """What became of the segments of a shard's rows, whose output was made; None of a task that has no segments.

        finished: their works, in order
        """
        ...
