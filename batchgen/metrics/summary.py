"""What a comparison of settings comes to, as OUT/_sweep/summary.json has it."""

from typing import Any, Literal

import msgspec

FORMAT = 1

Better = Literal["higher", "lower", ""]


class Metric(msgspec.Struct, frozen=True):
    """One column of the comparison.

    meaning: in words, without a full stop
    better: which end of it is the good one; "" is neither
    signature: of the tool that computes it, where versions of that differ; else ""
    """

    name: str
    meaning: str
    better: Better = ""
    signature: str = ""


class ToBest(msgspec.Struct, frozen=True):
    """A setting's value less that of the best setting, over the rows that have both.

    low, high: 95 % interval; one that contains 0 cannot tell the two apart. None if too few rows have both.
    """

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def is_told_apart(self) -> bool:
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


class Value(msgspec.Struct, frozen=True):
    """Of one metric for one setting. What cannot be known is None.

    mean: over rows, of the mean over each row's samples
    low, high: 95 % interval, by resampling rows
    rows: that have a value
    best_share: in what share of the resamples the setting is the best of all; equal ones share
    to_best: None for the best setting itself, and for a metric that has no good end
    held_out: of the best setting alone: see bootstrap.held_out
    """

    mean: float | None
    low: float | None
    high: float | None
    rows: int
    best_share: float | None = None
    to_best: ToBest | None = None
    held_out: float | None = None


class MeasuredSetting(msgspec.Struct, frozen=True):
    """A setting of a sweep, or an output folder that is compared with others.

    number: its place in `Summary.settings`, from 0, and the value of `setting` in the rows that are measured
    name: for people
    out: its place in `Summary.outs`
    setting: its number in that folder
    changes, sampling, template, same: as job/settings.py has them
    values: by metric; a metric that has no value for it is there with the mean None
    """

    number: int
    name: str
    out: int = 0
    setting: int = 0
    model: str = ""
    changes: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    template: str = ""
    same: list[dict[str, Any]] = []
    values: dict[str, Value] = {}


class Summary(msgspec.Struct, frozen=True):
    """Of a sweep, or of outputs that are compared.

    rows: that were measured
    samples: most responses of a row in one setting
    resamples: of rows, that intervals come from
    best: the metric that chooses; "" if there is none
    outs: output folders, relative to the one that the summary lies in
    axes: what the settings differ in, with its values in order
    best_setting: number of the setting that `best` chooses
    notes: what a reader has to know, a sentence each: metrics that could not be had, faults of the scorer
    """

    rows: int
    samples: int
    resamples: int
    best: str
    outs: list[str]
    metrics: list[Metric]
    axes: dict[str, list[Any]]
    settings: list[MeasuredSetting]
    best_setting: int | None = None
    notes: list[str] = []
    format: int = FORMAT
