"""The best setting of a comparison as tables to paste into a job file, with the evidence for it."""

import json
import math
from typing import Any

import msgspec

from ..errors import shown
from ..job.sampling import JobSampling
from .summary import MeasuredSetting, Summary, Value

MOST_NAMED = 10  # settings that cannot be told from the best one
_PLAIN = msgspec.to_builtins(JobSampling())


def best_toml(summary: Summary) -> str:
    """`[sampling]`, and what else of a job the settings differ in; the evidence as comments. It ends in a newline."""
    if summary.best_setting is None:
        return _comments(["no setting was chosen, as no metric that could choose has a value", *summary.notes])
    best = summary.settings[summary.best_setting]
    return _comments(_evidence(summary, best)) + "".join(_tables(summary, best))


def _evidence(summary: Summary, best: MeasuredSetting) -> list[str]:
    value = best.values[summary.best]
    [better] = [metric.better for metric in summary.metrics if metric.name == summary.best]
    others = [(each, each.values[summary.best]) for each in summary.settings if each.number != best.number]
    alike = [_difference(each, of) for each, of in others if of.to_best and not of.to_best.is_told_apart]
    responses = f"{summary.samples} response{'s' if summary.samples > 1 else ''} each"
    lines = [
        f"{best.name}: the best of {len(summary.settings)} settings by {summary.best}, of which {better} is better",
        f"{summary.best} {_of(value)}, over {value.rows:,} rows, {responses}",
    ]
    if value.held_out is not None:
        lines.append(f"on rows that did not choose it: {value.held_out:.4g}")
    if others and value.best_share is not None:
        lines.append(f"the best in {value.best_share:.0%} of {summary.resamples:,} resamples of the rows")
    if alike:
        lines += ["cannot be told from:", *(f"  {each}" for each in alike[:MOST_NAMED])]
    elif others:
        lines.append("no other setting is as good, as far as these rows tell")
    if len(alike) > MOST_NAMED:
        lines.append(f"  and {len(alike) - MOST_NAMED:,} more")
    return lines


def _of(value: Value) -> str:
    if value.low is None:
        return f"{value.mean:.4g}"
    return f"{value.mean:.4g} (95 % interval {value.low:.4g} to {value.high:.4g})"


def _difference(setting: MeasuredSetting, value: Value) -> str:
    assert value.to_best
    mean, low, high = value.to_best.mean, value.to_best.low, value.to_best.high
    interval = "" if low is None or high is None else f" ({_signed(low)} to {_signed(high)})"
    return f"{setting.name}: {_signed(mean)}{interval}"


def _signed(value: float) -> str:
    return f"{value:+.4g}" if value else "0"


def _comments(lines: list[str]) -> str:
    return "".join(f"# {shown(line)}\n" for line in lines)


def _tables(summary: Summary, best: MeasuredSetting) -> list[str]:
    tables = {"sampling": {key: best.sampling[key] for key in best.sampling if _is_told(best, key)}}
    if len({each.template for each in summary.settings}) > 1:
        tables["prompt"] = {"template": best.template}
    if len({each.model for each in summary.settings}) > 1:
        tables["model"] = {"path": best.model}
    return [
        f"\n[{name}]\n"
        + "".join(f"{_key(key)} = {_toml(value)}\n" for key, value in table.items() if value is not None)
        for name, table in tables.items()
        if table
    ]


def _is_told(best: MeasuredSetting, key: str) -> bool:
    """Whether a key of `[sampling]` is to be written: not if it is what a job has that says nothing."""
    return key in best.changes or best.sampling[key] != _PLAIN.get(key)


def _toml(value: Any) -> str:
    """A value as TOML has it. What JSON calls null is not set."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(each)}" for key, each in value.items() if each is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # nan, inf, -inf
    # A string of JSON is one of TOML, but for DEL, and for escaped halves of characters.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: Any) -> str:
    text = str(key)
    return text if text.replace("_", "").isalnum() and text.isascii() else _toml(text)
