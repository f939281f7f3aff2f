"""Translating any records: what is given back unchanged changes nothing, and nothing but chosen texts ever changes."""

import json
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from arrow_values import TYPES, arrays
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from translator import Translator, job_of, work

from batchgen.commands.export import export
from batchgen.commands.verify import verify
from batchgen.errors import JobError
from batchgen.input.columns import pythons

ANY = settings(
    max_examples=int(__import__("os").environ.get("N", 25)), deadline=None, suppress_health_check=list(HealthCheck)
)

# What comes through the demo's tokenizer as it is.
WORDS = st.text("abzAZé あい亜。、.!?:;,'\"()「」『』-#*>|[]{}<>$%&=/\\`@0123", min_size=1, max_size=12)
SPANS = st.sampled_from(
    [
        *(
            "https://example.org/a?b=1#c",
            "x@example.org",
            "www.a.de/(b)",
            "`print(x)`",
            "$a+b$",
            "{name}",
            "%s",
            "${x}",
        ),
        *("<b>", "</b>", "<br/>", "&amp;", "[7]", "[8]", "⟦7⟧", "<7>", "#7#", "[7] [8]", "{text}", "{{x}}", "AB-12"),
        *("\n", "\n\n", "\r\n", "\t", "  ", "\u3000", "\n```py\nx = 1\n```\n", "\n| a | b |\n|---|---|\n| c | d |\n"),
        *("\n- ", "\n1. ", "\n> ", "# ", "\n$$\nx\n$$\n", '\n{"a": "b"}\n', "\u2028", "\x0b", "\x00"),
        *("\n\nHuman: ", "\n\nAssistant: ", "Good day. See you. ", "It is 3.5 m. Yes! 「はい。」と言った。"),
    ]
)
TEXTS = st.lists(WORDS | SPANS | SPANS, max_size=8).map("".join)
STEADY = TEXTS.filter(lambda text: not set(text) & set("\r\t\x00\x0b\u3000\u2028"))  # even inside of segments

KINDS = st.lists(
    st.sampled_from(["code", "url", "placeholder", "markup", r"regex:[A-Z]{2}-\d+"]), unique=True, max_size=5
)
ASKED = st.fixed_dictionaries(
    {
        "segment": st.sampled_from(["paragraph", "sentence", "whole"]),
        "protect": KINDS,
        "protect_by": st.sampled_from(["mask", "split"]),
        "max_segment": st.sampled_from([8, 20, 384]),
        "into": st.just("English"),
        "on_failure": st.just("best"),
    }
)


def forgetful(text: str, attempt: int) -> str:
    """The text, but for a mark that is lost now and then, until the second try. It is none of the text's own: those of
    SPANS have 7 and 8 in them, and no check has to miss a "[1]", as 1 may be no word there."""
    if attempt:
        return text
    lost = random.Random(f"{text}{attempt}").choice(["[1]", "⟦2⟧", "<1>", "", "", ""])
    return text.replace(lost, "", 1) if lost else text


def made(path: Path, folder: Path, fields: list[str], asked: dict, says=forgetful, **tables):
    tables = {"output": {"shard_rows": 3}, "sampling": {"temperature": 1, "max_tokens": 2000}, **tables}
    job = job_of([path], folder, fields, translate=asked, **tables)
    work(job, Translator(says, order=random.Random(1)))
    return job


# --- lines

VALUES = st.recursive(
    STEADY | STEADY | st.sampled_from([None, True, 1.5, 10**30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["t", "u", "v w"]), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, max_size=3).map(lambda more: {"a": None} | more)
PATHS = ["a", "a.*", "a[*]", "a[0]", "a.t", 'a["v w"]', "a[*].*", "a.*.*", "a.*[*]", "a[*][*]", "a[*].t[*]"]


@st.composite
def lines(draw) -> bytes:
    record = draw(RECORDS)
    text = json.dumps(record, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 0])))
    blank = draw(st.sampled_from(["", " ", "\t"]))
    return (blank + text.replace("\n", " ") + blank).encode()


@ANY
@given(st.lists(lines(), min_size=1, max_size=5), st.lists(st.sampled_from(PATHS), min_size=1, max_size=4), ASKED)
def test_lines_whose_segments_come_back_as_they_are_come_back_to_the_byte(rows, fields, asked):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (path := folder / "in.jsonl").write_bytes(b"".join(row + b"\n" for row in rows))
        made(path, folder / "out", fields, asked)
        export(folder / "out", to := folder / "made.jsonl", "", "", partial=False, overwrite=False)
        assert to.read_bytes() == path.read_bytes()
        assert verify(folder / "out").problems == []


# --- tables


def fields_of(kind: pa.DataType, path: str) -> list[str]:
    """Paths to all of a type that may be text."""
    if isinstance(kind, pa.BaseExtensionType):
        return fields_of(kind.storage_type, path)
    if pa.types.is_struct(kind):
        return [each for field in kind for each in fields_of(field.type, f"{path}.{field.name}")]
    if pa.types.is_map(kind):
        return fields_of(kind.item_type, f"{path}.*")
    if str(kind).startswith(("list", "large_list", "fixed_size_list")):
        return fields_of(kind.value_type, f"{path}[*]")
    return [path]


@ANY
@given(st.data(), TYPES, TYPES, ASKED)
def test_tables_whose_segments_come_back_as_they_are_come_back_array_for_array(data, kind, other, asked):
    texts = STEADY.map(str.encode)
    table = pa.table({"x": data.draw(arrays(kind, 5, texts)), "y": data.draw(arrays(other, 5))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with pa.OSFile(str(path := folder / "in.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        try:
            job = made(path, folder / "out", fields_of(kind, "x"), asked)
        except JobError as error:
            assume("cannot be passed through" not in str(error))  # Parquet has no such type
            raise
        assert verify(folder / "out").problems == []
        rejects = [json.loads(line) for part in folder.glob("out/_rejects/*") for line in part.open()]
        assert {line["reason"] for line in rejects} <= {"invalid_utf8", "bad_shape"}  # a time that Parquet cannot hold
        kept = [row for row in range(5) if row not in {line["row"] for line in rejects}]
        found = pa.concat_tables([pq.read_table(part) for part in sorted(folder.glob("out/part-*"))])
        for column in table.column_names:
            if "timestamp[s]" not in str(table.schema.field(column).type):  # of which Parquet makes milliseconds
                assert found.schema.field(column).type == job.task.schema.field(column).type
            assert told(found[column]) == [told(table[column])[row] for row in kept]


def told(column: pa.ChunkedArray) -> list[str]:
    """All values, in which even NaN is equal to itself."""
    return [repr(value) for chunk in column.chunks for value in pythons(chunk)]
