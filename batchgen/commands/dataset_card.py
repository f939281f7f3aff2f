"""The card of an exported dataset: what a Hugging Face dataset's README.md says of it, as far as it is known."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pyarrow as pa

from ..host import terminal
from ..output.counts import Counts, by_reason
from ..output.record import JobRecord
from ..task.output_columns import COLUMNS, SCORE_MEANINGS

_HEAD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
size_categories:
- {size}
tags:
- synthetic
---
# {title}

{what}
"""
_RESPONSES = "{responses:,} responses of {model} to {rows:,} conversations, generated with batchgen."
_SCORES = "{responses:,} rows whose texts {model} was asked how likely it finds, scored with batchgen."
_TRANSLATED = "{responses:,} records whose texts at {fields} were translated into {into} by {model}, with batchgen."

# What of [engine] is published. Other arguments may name this machine's files and services.
_ENGINE = frozenset(
    """
    BATCHGEN_ENGINE attention_backend calculate_kv_scales dtype enforce_eager kv_cache_dtype load_format max_model_len
    quantization rope_parameters rope_scaling rope_theta seed
    """.split()
)

_MEANINGS = {column.name: column.meaning for column in COLUMNS}


class ModelFacts(msgspec.Struct):
    """What a shard says of the model that made it."""

    name: str
    revision: str | None
    digests: dict[str, str]


def text(
    title: str,
    record: JobRecord,
    counts: Counts,
    facts: dict[str, list[str]],
    schema: pa.Schema,
    missing: int,
) -> str:
    """counts, facts, missing: see export.Results; schema: of the columns that are there."""
    model = msgspec.json.decode(facts["model"][0])
    size = size_category(counts.responses)
    head = _HEAD.format(title=_text(title), size=size, what=_what(record, counts, model))
    passed = record.settings["output"]["columns"]
    meanings = _meanings(record) | dict.fromkeys(passed, "from the input")
    columns = ((_code(field.name), _code(str(field.type)), meanings.get(field.name, "")) for field in schema)
    engine = {name: value if name in _ENGINE else "(not shown)" for name, value in record.settings["engine"].items()}
    parts = {name: record.settings[name] for name in ("prompt", "sampling")} | {"engine": engine}
    if record.settings["sweep"]["method"]:
        parts["sweep"] = {name: value for name, value in record.settings["sweep"].items() if value}
    if record.settings["translate"]["fields"]:
        parts["translate"] = {name: value for name, value in record.settings["translate"].items() if value}
    if parser := record.settings.get("model", {}).get("reasoning_parser"):
        parts["model"] = {"reasoning_parser": parser}
    return "\n".join(
        [
            head,
            *_table(("", ""), _facts(record, model, counts, facts, missing)),
            "\n## Parameters\n\nThose of the job; a row may have had its own.\n",
            "```json",
            terminal.document(msgspec.json.format(msgspec.json.encode(parts), indent=1)),
            "```\n\n## Columns\n",
            *_table(("column", "type", ""), columns),
            "",
        ]
    )


def _what(record: JobRecord, counts: Counts, model: dict[str, Any]) -> str:
    asked = record.settings["translate"]
    names = {"model": _code(model["name"]), **msgspec.structs.asdict(counts)}
    if record.settings["score"]["mode"] != "off":
        return _SCORES.format(**names)
    if not asked["fields"]:
        return _RESPONSES.format(**names)
    return _TRANSLATED.format(fields=", ".join(map(_code, asked["fields"])), into=_text(asked["into"]), **names)


def _meanings(record: JobRecord) -> dict[str, str]:
    asked = record.settings["translate"]
    if record.settings["score"]["mode"] != "off":
        return _MEANINGS | SCORE_MEANINGS
    if not asked["fields"]:
        return _MEANINGS
    return {
        "id": _MEANINGS["id"],
        "row": _MEANINGS["row"],
        "record": "the input's line, with its texts translated",
        asked["report"]: "segments of its texts, how many of them fail a check, how often all were generated, and the "
        "checks that failed",
    }


def size_category(rows: int) -> str:
    """The hub's size category for a number of rows."""
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    above = [step for power, step in enumerate(steps, start=3) if rows >= 10**power]
    if not above:
        return "n<1K"
    return "n>1T" if len(above) == len(steps) else f"{above[-1]}<n<{steps[len(above)]}"


def _facts(
    record: JobRecord, model: dict[str, Any], counts: Counts, facts: dict[str, list[str]], missing: int
) -> Iterator[tuple[str, str]]:
    shards = len(record.plan.shards)
    yield "model", _code(model["name"])
    if model["revision"]:
        yield "revision", _code(model["revision"])
    for file, md5 in model["digests"].items():
        yield f"MD5 of {_text(file)}", _code(md5)
    yield "prompt format", _text(record.settings["prompt"]["format"])
    yield "seed", str(record.settings["sampling"]["seed"])
    if missing:
        yield "partial", f"{missing:,} of the job's {shards:,} shards were not finished, their rows are not here"
    if record.retry_of:
        only = _text(" or ".join(record.retry_of["only"]))
        yield "retry", f"of the rows that ended with {only} in the job {_code(record.retry_of['fingerprint'])}"
    yield "rows", f"{counts.rows:,}"
    number, what = counts.answers.split()
    yield what, number
    yield "rejected rows", f"{counts.rejected:,}{_text(by_reason(counts.rejects))}"
    if counts.endings:
        yield "finish reasons", _text(counts.endings)
    yield "tokens", f"{counts.prompt_tokens:,} of prompts, {counts.response_tokens:,} of responses"
    yield "dtype", _text(", ".join(facts["dtype"]))
    yield "device", _text(", ".join(facts["device"]))
    yield "model runner", _text(", ".join(facts["runner"]))
    yield "noise", _text(", ".join(facts["noise"]))
    for versions in facts["versions"]:
        numbers = msgspec.json.decode(versions)
        yield "versions", _text(", ".join(f"{name} {number}" for name, number in numbers.items()))
    yield "fingerprint", _code(record.fingerprint)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |"


def _text(name: str) -> str:
    """A name from elsewhere as Markdown that says just that: no tag, link, picture or further line."""
    return re.sub(r"([\\`*<>\[\]&~$])", r"\\\1", terminal.line(str(name)))


def _code(name: str) -> str:
    """The same as a piece of code, which ends at the next backquote."""
    return "`" + terminal.line(str(name)).replace("`", "'") + "`"
