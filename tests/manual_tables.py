"""The tables of the manual that are made from the types; test_manual_tables.py says when they are old.

    python tests/manual_tables.py       writes them anew

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; all else in a page is written by hand.
"""

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from batchgen import manual
from batchgen.flags import SHORT, Key, flag_name, keys
from batchgen.job.drift import ENGINE_MEANS, MEANS
from batchgen.job.spec import OF_RUNS, TABLES
from batchgen.metrics.metrics import METRICS, MetricKind
from batchgen.model import series
from batchgen.task.output_columns import COLUMNS, in_words
from batchgen.task.segment_rows import SCHEMA, SegmentRow

FOLDER = Path(manual.__file__).parent
PAGES = {name: FOLDER / f"{name}.md" for name in ("job-file", "output", "sweeping")}
UNITS = {
    **{("output", key): "seconds" for key in ("drain", "stall", "stale")},
    ("output", "shard_rows"): "rows",
    **{("sampling", key): "tokens" for key in ("max_tokens", "min_tokens")},
    **{("limits", key): "bytes" for key in ("row_bytes", "text_bytes", "schema_bytes")},
    ("limits", "max_tokens"): "tokens",
    ("translate", "max_segment"): "tokens",
    ("limits", "check_seconds"): "seconds",
    ("limits", "check_mb"): "MB",
    ("limits", "image_pixels"): "pixels",
}
WORDS = {str: "text", int: "integer", float: "number", bool: "true, false"}
WHEN_THERE = {
    "setting": "; in a sweep",
    "logprobs": "; if `[sampling] logprobs` is set",
    "adapter": "; if the job has adapters",
    "images": "; if `[input] image` is set",
    "reasoning": "; if `[model] reasoning_parser` is set",
    **dict.fromkeys(("tries", "failed_checks"), "; if the job has checks"),
}
WIDTH = 118  # of lines that are not a table's


def parts(name: str) -> dict[str, str]:
    """The generated parts of a page, by their names."""
    if name == "output":
        return {"columns": _columns(), "segments": _segments()}
    if name == "sweeping":
        return {"metrics": _metrics()}
    found = {table: table_of([key for key in keys() if key.table == table]) for table in TABLES}
    return found | {"flags": _flags(), "engine": _engine(), "cards": _cards()}


def page(name: str, old: str) -> str:
    made = parts(name)
    return re.sub(
        r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: found[1] + made[found[2]] + found[3],
        old,
        flags=re.S,
    )


def table_of(of_table: list[Key]) -> str:
    rows = [
        (f"`{key.name}`", _type(key), _default(key), _unit(key), _fingerprint(key), _meaning(key)) for key in of_table
    ]
    return _table(("key", "type", "default", "unit", "fingerprint", "meaning"), rows)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table that reads well as text too: cells padded, but for the last column's."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles) - 1)]
    lines = [titles, tuple("-" * width for width in [*widths, 3]), *rows]
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)) + " |\n"
        for line in lines
    )


def _type(key: Key) -> str:
    limits = [_number(bound) for bound in (key.bounds.ge, key.bounds.le)]
    if None not in limits:
        bounds = f", {limits[0]} to {limits[1]}"
    elif limits[0] is not None:
        bounds = f", {limits[0]} or more"
    elif key.bounds.gt is not None:
        bounds = f", above {_number(key.bounds.gt)}" + (f", up to {limits[1]}" if limits[1] else "")
    else:
        bounds = f", up to {key.bounds.max_length:,}" if key.bounds.max_length else ""
    return _word(key.type) + bounds


def _word(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _word(inner[0])
    if origin is list:
        return f"list of {_word(inner[0])}s"
    if origin is Literal:
        return "choice"
    if origin in (Union, UnionType):
        return " or ".join(f"`{get_args(each)[0]}`" if get_origin(each) is Literal else _word(each) for each in inner)
    return WORDS.get(kind, "table")


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,}"


def _default(key: Key) -> str:
    if key.default is msgspec.NODEFAULT:
        return "required"
    if key.is_of_the_model:
        return "the model's"
    if key.default is None:
        return "not set"
    plain = msgspec.to_builtins(key.default)
    if isinstance(plain, int | float) and not isinstance(plain, bool):
        return f"{plain:,}".removesuffix(".0")
    return f"`{msgspec.json.encode(plain).decode()}`"


def _unit(key: Key) -> str:
    return UNITS.get((key.table, key.name), "")


def _fingerprint(key: Key) -> str:
    """Whether a job that goes on must have the same value. Models go by their digests."""
    return "no" if key.table in OF_RUNS or key.name in MEANS[key.table] else "yes"


def _meaning(key: Key) -> str:
    choices = f": {', '.join(f'`{choice}`' for choice in key.choices)}" if key.choices else ""
    return f"{key.description}{choices}".replace("|", "\\|")


def _flags() -> str:
    """The flags whose names are not simply those of their keys."""
    others = [
        (f"`--engine {'KEY=VALUE'}`", "any key of `[engine]`"),
        *(
            (_with_short(flag_name(key.table, key.name)), f"`[{key.table}] {key.name}`")
            for key in keys()
            if flag_name(key.table, key.name) != f"--{key.name}".replace("_", "-")
            and key.table != "limits"
            and (key.table, key.name) != ("input", "path")
        ),
    ]
    return _table(("flag", "key"), others)


def _with_short(flag: str) -> str:
    return f"`{flag}`, `{SHORT[flag]}`" if flag in SHORT else f"`{flag}`"


def _engine() -> str:
    return textwrap.fill(", ".join(f"`{name}`" for name in sorted(ENGINE_MEANS)) + ".", WIDTH) + "\n"


def _cards() -> str:
    names = ("temperature", "top_p", "repetition_penalty", "max_tokens")
    rows = []
    for family in (series.BILINGUAL, series.BILINGUAL_8K, series.JAPANESE):
        for card in family.cards:
            stated = card.sampling or {}
            values = [str(stated.get(name, "")) for name in names]
            rows.append((f"{family.name}, {card.models}", f"`{card.format}`", *values))
    return _table(("model", "prompt format", *names), rows)


def _columns() -> str:
    rows = []
    for column in COLUMNS:
        kind = "struct" if column.name == "sampling" else in_words(column.type)
        optional = WHEN_THERE.get(column.name, "; if `include` names it")
        rows.append((f"`{column.name}`", kind, column.meaning + (optional if column.is_optional else "")))
    return _table(("column", "type", "meaning"), rows)


def _segments() -> str:
    rows = []
    for field in inspect.type_info(SegmentRow).fields:
        kind = "struct" if field.name == "sampling" else in_words(SCHEMA.field(field.name).type)
        rows.append((f"`{field.name}`", kind, _description(field.type)))
    return _table(("column", "type", "meaning"), rows)


def _metrics() -> str:
    rows = [
        (f"`{name}`", kind.better, _needs(kind), f"{kind.meaning} ({kind.source})" if kind.source else kind.meaning)
        for name, kind in METRICS.items()
    ]
    return _table(("metric", "better", "needs", "meaning"), rows)


def _needs(kind: MetricKind) -> str:
    said = {"reference": "`reference`", "chrf": "sacrebleu", "language": "`language`"}
    return ", ".join(said[need] for need in kind.needs if need in said)


def _description(kind: inspect.Type) -> str:
    kinds = kind.types if isinstance(kind, inspect.UnionType) else [kind]
    said = [each.extra_json_schema or {} for each in kinds if isinstance(each, inspect.Metadata)]
    return next(each["description"] for each in said if "description" in each)


if __name__ == "__main__":
    for name, path in PAGES.items():
        path.write_text(page(name, path.read_text("utf-8")), "utf-8")
