"""From rows with their responses to numbers per row and setting, means with intervals, and the best setting."""

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from ..errors import shown
from ..job.spec import CheckTable, MetricsTable
from . import bootstrap
from .bootstrap import Compared, Numbers
from .judge import Judge, Record
from .metrics import METRICS, Encoder, best_of, choose, tools_of
from .scorer import Scorer
from .summary import MeasuredSetting, Metric, Summary, ToBest, Value

if TYPE_CHECKING:
    import pyarrow as pa

DECIMALS = 9  # of a summary's numbers: the last of the sixteen depend on the order of additions


class Measured(NamedTuple):
    """table: row int64, setting int32, then a float64 column per metric: its mean over the samples of that row and
    setting, null where it has none"""

    table: "pa.Table"
    summary: Summary


def require(table: MetricsTable, check: CheckTable) -> None:
    """Says ahead of a run what would be wrong with its metrics after it. Raises JobError."""
    choose(table, tools_of(table, check, _AnyTokenizer()), _scorer_of(table))


class _AnyTokenizer:
    """The one that there will be."""

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError


def measure(
    rows: Iterable[tuple[Record | None, Sequence[Record]]],
    settings: Sequence[MeasuredSetting],
    table: MetricsTable,
    tokenizer: Encoder | None,
    check: CheckTable | None = None,
    outs: Sequence[str] = (".",),
) -> Measured:
    """Measures every response, and compares the settings.

    Args:
        rows: of each input row its record, None if that is not at hand, and its output rows; their `setting` is a
            number of `settings`, and without one it is 0. Gone through once. A row without output rows counts nowhere.
        settings: without values, numbered from 0 in order
        tokenizer: of the model; without one there are no metrics that count tokens
        check: the job's `[check]`, for its languages and the column that responses are compared with
        outs: for `Summary.outs`

    Raises:
        JobError: `table` names something that is not there.
    """
    check = check or CheckTable()
    tools, scorer = tools_of(table, check, tokenizer), _scorer_of(table)
    judge = Judge(tools, choose(table, tools, scorer), scorer, check.source, [each.template for each in settings])
    cells = _Cells(len(settings))
    for record, outputs in rows:
        if outputs:
            cells.add(outputs[0]["row"], judge.row(record, outputs))
    values = cells.values()
    best = best_of(table, list(values), scorer)
    compared = {name: bootstrap.compare(of, _better(name), table.resamples) for name, of in values.items()}
    summary = Summary(
        rows=len(cells.rows),
        samples=judge.samples,
        resamples=table.resamples,
        best=best,
        outs=list(outs),
        metrics=[_metric(name, judge) for name in values],
        axes=axes_of(settings),
        settings=[_measured(setting, compared) for setting in settings],
        best_setting=compared[best].best if best else None,
        notes=_notes(table, judge, cells),
    )
    return Measured(cells.table(), summary)


def _scorer_of(table: MetricsTable) -> Scorer | None:
    return Scorer(table.scorer) if table.scorer else None


class _Cells:
    """A number per row, setting and metric: 8 bytes each, so that 1,000,000 rows fit in memory.

    rows: their numbers
    """

    def __init__(self, settings: int):
        self._settings = settings
        self._columns: dict[str, array[float]] = {}
        self.rows = array("q")

    def add(self, row: int, found: Iterable[tuple[int, dict[str, float]]]) -> None:
        """found: settings, and the row's values there by metric"""
        begin = len(self.rows) * self._settings
        self.rows.append(row)
        nothing = array("d", [np.nan]) * self._settings
        for column in self._columns.values():
            column.extend(nothing)
        for setting, values in found:
            for name, value in values.items():
                if name not in self._columns:
                    self._columns[name] = array("d", [np.nan]) * (begin + self._settings)
                self._columns[name][begin + setting] = value

    def values(self) -> dict[str, Numbers]:
        """rows x settings by metric, the scorer's first; NaN where there is none."""
        own = sorted(name for name in self._columns if name not in METRICS)
        names = [*own, *(name for name in METRICS if name in self._columns)]
        return {name: np.frombuffer(self._columns[name]).reshape(-1, self._settings) for name in names}

    def table(self) -> "pa.Table":
        import pyarrow as pa

        columns = {
            "row": pa.array(np.repeat(np.frombuffer(self.rows, np.int64), self._settings)),
            "setting": pa.array(np.tile(np.arange(self._settings, dtype=np.int32), len(self.rows))),
        }
        values = {name: pa.array(of.ravel(), from_pandas=True) for name, of in self.values().items()}  # NaN is null
        return pa.table(columns | values)


# --- the summary


def _better(name: str) -> Any:
    return METRICS[name].better if name in METRICS else "higher"


def _metric(name: str, judge: Judge) -> Metric:
    if kind := METRICS.get(name):
        signature = judge.tools.chrf.signature if "chrf" in kind.needs and judge.tools.chrf else ""
        return Metric(name, kind.meaning.replace("`", ""), kind.better, signature)
    assert judge.scorer
    return Metric(name, f"as {shown(judge.scorer.file_name)} says", "higher")


def axes_of(settings: Sequence[MeasuredSetting]) -> dict[str, list[Any]]:
    """What settings differ in, with its values: numbers by size, others in the order of the settings."""
    found: dict[str, list[Any]] = {}
    for setting in settings:
        for key, value in ({"model": setting.model} | setting.changes).items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return {key: _by_size(values) for key, values in found.items() if len(values) > 1}


def _by_size(values: list[Any]) -> list[Any]:
    are_numbers = all(isinstance(value, int | float) for value in values)
    return sorted(values) if are_numbers else values


def _measured(setting: MeasuredSetting, compared: dict[str, Compared]) -> MeasuredSetting:
    values = {name: _value(of, setting.number) for name, of in compared.items()}
    return msgspec.structs.replace(setting, values=values)


def _value(of: Compared, number: int) -> Value:
    is_best = number == of.best
    to_best = None
    if of.best is not None and not is_best and not np.isnan(of.differences[number]):
        low, high = _rounded(of.difference_lows[number]), _rounded(of.difference_highs[number])
        to_best = ToBest(round(float(of.differences[number]), DECIMALS), low, high)
    return Value(
        mean=_rounded(of.means[number]),
        low=_rounded(of.lows[number]),
        high=_rounded(of.highs[number]),
        rows=int(of.counts[number]),
        best_share=_rounded(of.best_shares[number]),
        to_best=to_best,
        held_out=_rounded(of.held_out) if is_best else None,
    )


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DECIMALS) + 0.0  # no -0.0


def _notes(table: MetricsTable, judge: Judge, cells: _Cells) -> list[str]:
    rows, found = len(cells.rows), judge.chosen.notes.copy()
    if without := rows - judge.references if table.reference else 0:
        found.append(f"{without:,} of {rows:,} rows have no reference in the column {shown(table.reference)}")
    if (scorer := judge.scorer) and scorer.faults:
        found.append(f"{scorer.name} has no value for {scorer.faults:,} responses; the first: {scorer.first_fault}")
    values = cells.values()
    own = [name for name in values if scorer and scorer.owns(name)]
    missing = [name for name in table.use if name not in values and not (scorer and name == scorer.name and own)]
    found += [f"{name} has no value for any row" for name in missing]
    if table.best and table.best not in values:
        found.append(f"{table.best} has no value for any row, so that no setting is chosen")
    return found
