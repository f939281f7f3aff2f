"""Translating whole datasets with the demo model: structure, exactness, kills, and a second night."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from translator import Translator, job_of, work
from wrapped import Dataset, datasets, shape_of, texts_of

from batchgen.commands.export import export
from batchgen.commands.verify import verify
from batchgen.errors import Stopped
from batchgen.output import journal, shard
from batchgen.output.claims import Claims
from batchgen.runner import run
from batchgen.runner.progress import Progress
from batchgen.runner.supervisor import Supervisor
from batchgen.runner.worker import Worker

TABLES = {
    "prompt": {"template": "{text}"},
    "sampling": {"temperature": 0, "max_tokens": 96},
    "output": {"shard_rows": 20},
    "check": {"checks": ["empty", "truncated", "repetition", "copy", "language", "length", "numbers"]},
}
UNTOUCHED = {"user", "assistant", "bot", "nli", "a"}
ASKED = {"from": "English", "into": "Japanese", "protect": ["code", "url"]}


def tables(dataset: Dataset, **more) -> dict:
    return {**TABLES, "output": dict(TABLES["output"]), "translate": {**ASKED, "fields": dataset.fields, **more}}


def records_of(out: Path, dataset: Dataset) -> list[dict]:
    """What an export of a translation has, without the report."""
    if dataset.kind == "parquet":
        return pq.read_table(out, columns=["id", "turns", "score"]).to_pylist()
    export(out, to := out.with_name("made.jsonl"), "", "", partial=False, overwrite=True)
    return [json.loads(line) for line in to.read_text("utf-8").splitlines()]


def share_right(found: list[dict], expected: list[dict]) -> float:
    pairs = [
        (has, should)
        for one, other in zip(found, expected, strict=True)
        for has, should in zip(texts_of(one), texts_of(other), strict=True)
        if should not in UNTOUCHED
    ]
    return sum(has == should for has, should in pairs) / len(pairs)


@pytest.fixture(params=range(7), ids=["hh", "flan", "messages", "nested", "parquet", "lines", "code"])
def dataset(request) -> Dataset:
    return datasets(210)[request.param]


def test_a_dataset_comes_back_translated_with_its_structure(generate, dataset, tmp_path):
    out = generate([dataset.write(tmp_path)], **tables(dataset))
    found = records_of(out, dataset)
    assert list(map(shape_of, found)) == list(map(shape_of, dataset.expected))
    assert share_right(found, dataset.expected) >= 0.9  # of 30 sentences; all of them are in the slow test
    assert verify(out).problems == []


@pytest.mark.slow
@pytest.mark.parametrize("languages", [("English", "Japanese"), ("Japanese", "English")])
def test_of_all_the_demo_s_sentences_98_in_100_texts_come_out_exactly_right(generate, tmp_path, languages):
    source, target = languages
    right = total = 0
    for dataset in datasets(1146, source):
        out = generate([dataset.write(tmp_path)], dataset.name, **tables(dataset, **{"from": source, "into": target}))
        found = records_of(out, dataset)
        assert list(map(shape_of, found)) == list(map(shape_of, dataset.expected))
        texts = sum(text not in UNTOUCHED for record in dataset.expected for text in texts_of(record))
        right += share_right(found, dataset.expected) * texts
        total += texts
    print(f"\n{right / total:.2%} of {total:,} texts")
    assert right / total >= 0.98


def fails(text: str, attempt: int) -> str:
    return " " if text == "fails" else "こんにちは。"


@pytest.fixture
def stopped(tmp_path):
    """A translation that was stopped with some of its 8 answers, all of them in journals."""
    (path := tmp_path / "in.jsonl").write_text(
        '{"text": "Hello.\\nSee you.\\nfails"}\n{"text": "One.\\nTwo.\\nThree."}\n'
    )
    job = job_of([path], tmp_path / "out", ["text"])
    with pytest.raises(Stopped):
        work(job, Translator(fails), stop_after=5)
    return job


def test_a_row_whose_answers_are_partly_there_counts_as_none_that_is_done(stopped):
    supervisor = Supervisor(stopped, Progress(io.StringIO(), 2, 0), [{}])
    assert journal.count(stopped.out) >= 5
    assert run._rows_done(stopped, supervisor) == 0


def test_the_pace_leaves_out_what_was_in_journals(stopped):
    worker = Worker(stopped, Translator(fails), Claims(stopped.out, stale=60))
    counted = []
    worker._pace.rates = lambda *counters: counted.append(counters) or [0.0, 0.0, 0.0]
    worker.run(stopped.plan.shards)
    worker.activity()
    journaled = worker.totals.kept
    assert 5 <= journaled < 8
    assert 0 < counted[-1][0] < 2  # of 2 rows, less the share of their answers that was there


def test_segments_that_fail_are_counted_apart_from_records(tmp_path, batchgen_here):
    (path := tmp_path / "in.jsonl").write_text('{"text": "Hello.\\nfails"}\n{"text": "fails"}\n{"text": "Hello."}\n')
    job = job_of([path], tmp_path / "out", ["text"], output={"shard_rows": 2})
    work(job, Translator(fails))
    assert str(shard.Survey(job.out, job.plan.shards).total(job.plan.shards)) == (
        "3 rows, 3 records, 0 rejects, 3 segments, 2 further tries, 1 segments in 2 records that no try got right"
    )
    shown = batchgen_here("status", tmp_path / "out", "--prometheus", tmp_path / "prom").stdout
    assert "3 records, 0 rejects, " in shown
    assert "segments     3; 1 in 2 records that no try got right; 2 further tries\n" in shown
    assert 'batchgen_failed_segments_total{out="' in (tmp_path / "prom").read_text()
    assert verify(tmp_path / "out").counts.summary == "3 rows, 3 records, 0 rejects"
