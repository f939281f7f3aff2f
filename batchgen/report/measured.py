"""Outputs measured beside each other, as the settings of a sweep are: the rows that all of them have, by their ids."""

from collections.abc import Sequence
from functools import reduce
from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np

from ..job.spec import MetricsTable
from ..metrics.measure import measure
from ..metrics.summary import MeasuredSetting, Summary
from ..task.output_columns import SETTING
from .outcome import Outcome, reading
from .responses import Responses, chosen_rows, columns_of
from .tally import Array

MOST_ANSWERS = 8000  # that are measured: 0.5 ms each


class _Answer(msgspec.Struct):
    """An output row, as far as metrics look at it."""

    row: int
    finish_reason: str
    response_tokens: int
    conversation: list[dict[str, str | None]] | None = None
    response: str | None = None
    failed_checks: list[str] | None = None
    mean_logprob: float | None = None


def measure_outputs(outs: Sequence[Outcome], table: MetricsTable | None = None) -> Summary | None:
    """Metrics of responses with intervals, each output as a setting. Of many rows a random sample is measured.

    outs: of which the first pass is done; None if one of them has no responses, or those of a sweep
    table: default: the reference and the language that the first output's job names. Nothing else of it counts: whoever
        made a folder may name any scorer there, and that is code. The column with references has to be passed through.

    Raises JobError.
    """
    if not all(isinstance(out.kind, Responses) and not out.spec.sweep.method for out in outs):
        return None
    known = outs[0].spec.metrics
    table = table or MetricsTable(reference=known.reference, language=known.language)
    answers = [_answers(out, rows, table.reference) for out, rows in zip(outs, _common(outs), strict=True)]
    rows = (
        (None, [row | {SETTING: at} for at, of in enumerate(same) for row in of]) for same in zip(*answers, strict=True)
    )
    settings = [
        MeasuredSetting(at, out.name, at, model=PurePosixPath(out.spec.model.path).name) for at, out in enumerate(outs)
    ]
    return measure(rows, settings, table, None, outs[0].spec.check, [out.name for out in outs]).summary


def _common(outs: Sequence[Outcome]) -> list[Array]:
    """Numbers of the rows that all outputs have, or of a random sample of them, in each output in the same order."""
    samples = [out.tally.sample.columns() for out in outs]
    firsts = [np.unique(sample["key"], return_index=True) for sample in samples]
    most = MOST_ANSWERS // max(sum(out.tally.answers for out in outs), 1)
    common = reduce(np.intersect1d, (keys for keys, _ in firsts))[: max(most, 1)]
    return [
        sample["place"][first[np.searchsorted(keys, common)]].astype(np.int64)
        for sample, (keys, first) in zip(samples, firsts, strict=True)
    ]


def _answers(out: Outcome, rows: Array, reference: str) -> list[list[dict[str, Any]]]:
    """The output rows of each of these rows."""
    found: dict[int, list[dict[str, Any]]] = {int(row): [] for row in rows}
    for planned in out.shards:
        with reading(out.store, planned):
            known = columns_of(out, planned)
            columns = [name for name in (*_Answer.__struct_fields__, reference) if name in known]
            for batch in chosen_rows(out, planned, columns, rows):
                for raw in batch.to_pylist():
                    answer = msgspec.structs.asdict(msgspec.convert(raw, _Answer))
                    found[answer["row"]].append({reference: raw.get(reference)} | answer)
    return list(found.values())
