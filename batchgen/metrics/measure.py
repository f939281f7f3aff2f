"""From rows with their responses to numbers per row and setting, means with intervals, and the best setting."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..job.spec import CheckTable, MetricsTable
from .summary import MeasuredSetting, Summary

if TYPE_CHECKING:
    import pyarrow as pa


class Encoder(Protocol):
    """What metrics need of a model's tokenizer."""

    def encode(self, text: str) -> list[int]: ...


class Measured(NamedTuple):
    """table: row int64, setting int32, then a float64 column per metric: its mean over the samples of that row and
    setting, null where it has none"""

    table: "pa.Table"
    summary: Summary


def measure(
    rows: Iterable[tuple[dict[str, Any] | None, Sequence[dict[str, Any]]]],
    settings: Sequence[MeasuredSetting],
    table: MetricsTable,
    tokenizer: Encoder | None,
    check: CheckTable | None = None,
    outs: Sequence[str] = (".",),
) -> Measured:
    """Measures every response, and compares the settings.

    Args:
        rows: of each input row its record, None if that is not at hand, and its output rows in order of setting and
            sample; their `setting` is a number of `settings`, and without one it is 0. May be gone through once.
        settings: without values, numbered from 0 in order
        tokenizer: of the model; without one there are no metrics that count tokens
        check: the job's `[check]`, for its language and the column that responses are compared with
        outs: for `Summary.outs`

    Raises:
        JobError: `table` names something that is not there.
    """
    raise NotImplementedError


def best_toml(summary: Summary) -> str:
    """The best setting as tables to paste into a job file, with the evidence as comments. It ends in a newline."""
    raise NotImplementedError
