"""A translation is proved by its content: whoever changes a shard, and all checksums with it, is found."""

import json
import shutil

import msgspec
import pytest
from translator import Translator, job_of, work

from batchgen.commands.verify import verify
from batchgen.output import layout, segments, shard

ROWS = [
    {"a": "Hello.\nSee you.", "n": 1},
    {"a": "Go to https://example.org/1 soon", "n": 2},
    {"a": "Hello.\nGood night.", "n": 3},
]


def says(text, attempt):
    """Loses marks."""
    return f"訳{text.replace('[1]', '')}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    (path := folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    job = job_of([path], folder / "out", ["a"], translate={"protect": ["url"]})
    work(job, Translator(says))
    return job


@pytest.fixture
def tampered(made, tmp_path):
    """Changes the only shard, with its checksums; gives what `verify` says of it."""

    def tamper(change) -> list[str]:
        shutil.copytree(made.out.location, out := tmp_path / "out")
        [planned] = made.plan.shards
        rows = shard.read(made.out, planned, made.task.schema.names).to_pylist()
        audit = [row for some in segments.read(made.out, planned) for row in some]
        rows, audit = change(rows, audit) or (rows, audit)
        counts, about = shard.read_checksums(made.out, planned).counts, shard.facts(shard.metadata(made.out, planned))
        facts = {name: value for name, value in about.items() if name not in ("shard", "first_row", "counts")}
        (out / layout.part(planned)).unlink()
        shard.commit(type(made.out)(out), planned, rows, [], made.task.schema, counts, facts, audit)
        return verify(out).problems

    return tamper


def test_what_nobody_changed_is_fine(made, tampered):
    assert verify(made.out.location).problems == []
    assert tampered(lambda rows, audit: None) == []


def changed(place: int, **facts):
    def change(rows, audit):
        rows[place] |= facts
        return rows, audit

    return change


def reported(rows, audit):
    rows[0]["translation"]["tries"] += 1


def elsewhere(place: int, **facts):
    def change(rows, audit):
        audit[place] = msgspec.structs.replace(audit[place], **facts)
        return rows, audit

    return change


CHANGES = {
    "a byte of a record": changed(0, record='{"a": "訳Hello.\\n訳See you.", "n": 2}'),
    "a translation": changed(2, record='{"a": "訳Hello.\\n訳Good day.", "n": 3}'),
    "an id": changed(1, id="7"),
    "a row's number": changed(1, row=7),
    "the report": reported,
    "rows in another order": lambda rows, audit: (rows[::-1], audit),
    "a row less": lambda rows, audit: (rows[:2], audit),
    "a row more": lambda rows, audit: ([*rows, rows[0]], audit),
    "a segment less": lambda rows, audit: (rows, audit[1:]),
    "a piece less": lambda rows, audit: (rows, [row for row in audit if row.source != "soon"]),
    "a segment more": lambda rows, audit: (rows, [*audit, audit[0]]),
    "segments in another order": lambda rows, audit: (rows, audit[::-1]),
    "an answer": elsewhere(0, answer="訳Hello"),
    "a source": elsewhere(0, source="Hello"),
    "a key": elsewhere(0, key="0" * 32),
    "a use": elsewhere(0, uses=1),
    "a place": elsewhere(0, row=1),
    "a seed": elsewhere(0, seed=1),
    "a failed check": elsewhere(0, failed_checks=["empty"]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_found(tampered, what):
    assert len(tampered(CHANGES[what])) == 1
