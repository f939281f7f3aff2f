"""The demo's sentences and their translations, wrapped as people's datasets wrap texts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from translator import gold


class Dataset(NamedTuple):
    """records: to translate; expected: the same, translated; fields: paths of the texts; kind: of file"""

    name: str
    fields: list[str]
    records: list[dict]
    expected: list[dict]
    kind: str = "jsonl"

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.name}.{self.kind}"
        if self.kind == "parquet":
            pq.write_table(pa.Table.from_pylist(self.records, SCHEMA), path, row_group_size=50)
        else:
            path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records), "utf-8")
        return path


SCHEMA = pa.schema(
    [
        ("id", pa.int32()),
        ("turns", pa.list_(pa.struct([("role", pa.dictionary(pa.int32(), pa.string())), ("text", pa.string())]))),
        ("score", pa.float32()),
    ]
)
CODE = "`print(x)`"
URL = "https://example.org/a?b=1"


def datasets(sentences: int, of: str = "English") -> list[Dataset]:
    """Of so many of the demo's sentences in this language, each shape with its share."""
    some = [text for text in gold() if text.isascii() == (of == "English")][:sentences]
    share = len(some) // 7
    groups = [some[begin : begin + share] for begin in range(0, share * 7, share)]
    made = [_hh, _flan, _messages, _nested, _parquet, _lines, _with_code]
    return [make(group) for make, group in zip(made, groups, strict=True)]


def _translated(make, group: list[str], size: int) -> tuple[list[dict], list[dict]]:
    """Records of so many sentences each, and the same of their translations."""
    some = list(_in(group, size))
    return (
        [make(number, texts) for number, texts in enumerate(some)],
        [make(number, [gold()[text] for text in texts]) for number, texts in enumerate(some)],
    )


def _in(group: list[str], size: int) -> Iterator[list[str]]:
    for begin in range(0, len(group) - size + 1, size):
        yield group[begin : begin + size]


def _hh(group: list[str]) -> Dataset:
    def record(number, texts):
        shared = f"\n\nHuman: {texts[0]}\n\nAssistant: {texts[1]}\n\nHuman: {texts[2]}\n\nAssistant: "
        return {"chosen": shared + texts[3], "rejected": shared + texts[4]}

    return Dataset("hh", ["chosen", "rejected"], *_translated(record, group, 5))


def _flan(group: list[str]) -> Dataset:
    def record(number, texts):
        return {"inputs": f"{texts[0]}\n{texts[1]}\n", "targets": texts[2], "task": "nli", "n": 1.50}

    return Dataset("flan", ["inputs", "targets"], *_translated(record, group, 3))


def _messages(group: list[str]) -> Dataset:
    def record(number, texts):
        roles = ["user", "assistant"]
        return {
            "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)],
            "id": f"m{number}",
        }

    return Dataset("messages", ["messages[*].content"], *_translated(record, group, 4))


def _nested(group: list[str]) -> Dataset:
    def record(number, texts):
        turns = [{"parts": [{"text": texts[0]}, {"image": 3}]}, {"parts": [{"text": texts[1]}]}]
        return {"turns": turns, "meta": {"title": texts[2], "tags": ["a", None]}, "more": None}

    return Dataset("nested", ["turns[*].parts[*].text", "meta.title"], *_translated(record, group, 3))


def _parquet(group: list[str]) -> Dataset:
    def record(number, texts):
        turns = [{"role": "user", "text": texts[0]}, None, {"role": "bot", "text": texts[1]}]
        return {"id": number, "turns": turns if number % 5 else turns[:1], "score": float("nan") if number % 3 else 0.5}

    return Dataset("parquet", ["turns[*].text"], *_translated(record, group, 2), kind="parquet")


def _lines(group: list[str]) -> Dataset:
    def record(number, texts):
        a, b, c, d = texts
        return {"text": f"# {a}\n\n- {b}\n  1. {c}\n\n```py\nprint('not this')\n```\n\n> {d}\n\n---\n"}

    return Dataset("lines", ["text"], *_translated(record, group, 4))


def _with_code(group: list[str]) -> Dataset:
    def record(number, texts):
        return {"text": f"{texts[0]} {URL} {texts[1]} {CODE} {texts[2]}"}

    return Dataset("code", ["text"], *_translated(record, group, 3))


def texts_of(value) -> Iterator[str]:
    """Every string in a record, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_of(part)


def shape_of(value):
    """A record without its strings' words."""
    if isinstance(value, str):
        return "".join(sign for sign in value if sign in "\n#->`|")
    if isinstance(value, dict):
        return {key: shape_of(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape_of(part) for part in value]
    return repr(value)
