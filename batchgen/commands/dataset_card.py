"""The card of an exported dataset: what a Hugging Face dataset's README.md says of it, as far as it is known."""

import re
from collections.abc import Iterable, Iterator

import msgspec
import pyarrow as pa

from ..host import terminal
from ..output.counts import Counts
from ..output.record import JobRecord
from ..report import about
from ..task.output_columns import COLUMNS, SCORE_MEANINGS

_HEAD = """\
---
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

_MEANINGS = {column.name: column.meaning for column in COLUMNS}


def text(
    title: str,
    record: JobRecord,
    counts: Counts,
    facts: dict[str, list[str]],
    schema: pa.Schema,
    missing: int,
) -> str:
    """counts, facts, missing: see export.Results; schema: of the columns that are there."""
    size = size_category(counts.responses)
    head = _HEAD.format(title=_text(title), size=size, what=_what(record, counts, about.model_of(facts).name))
    passed = record.settings["output"]["columns"]
    meanings = _meanings(record) | dict.fromkeys(passed, "from the input")
    columns = ((_code(field.name), _code(str(field.type)), meanings.get(field.name, "")) for field in schema)
    parts = about.parameters(record)
    return "\n".join(
        [
            head,
            *_table(("", ""), _facts(record, counts, facts, missing)),
            "\n## Parameters\n\nThose of the job; a row may have had its own.\n",
            "```json",
            terminal.document(msgspec.json.format(msgspec.json.encode(parts), indent=1)),
            "```\n\n## Columns\n",
            *_table(("column", "type", ""), columns),
            "",
        ]
    )


def _what(record: JobRecord, counts: Counts, model: str) -> str:
    asked = record.settings["translate"]
    names = {"model": _code(model), **msgspec.structs.asdict(counts)}
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


def _facts(record: JobRecord, counts: Counts, facts: dict[str, list[str]], missing: int) -> Iterator[tuple[str, str]]:
    for fact in about.facts(record, counts, facts, missing):
        yield _text(fact.name), _code(fact.value) if fact.is_code else _text(fact.value)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |"


def _text(name: str) -> str:
    """A name from elsewhere as Markdown that says just that: no tag, link, picture or further line."""
    return re.sub(r"([\\`*<>\[\]&~$])", r"\\\1", terminal.line(str(name)))


def _code(name: str) -> str:
    """The same as a piece of code, which ends at the next backquote."""
    return "`" + terminal.line(str(name)).replace("`", "'") + "`"
