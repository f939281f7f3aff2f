"""Translating whole datasets with the demo model: structure, exactness, kills, and a second night."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from wrapped import Dataset, datasets, shape_of, texts_of

from batchgen.commands.export import export
from batchgen.commands.verify import verify

TABLES = {
    "prompt": {"template": "{text}"},
    "sampling": {"temperature": 0, "max_tokens": 96},
    "output": {"shard_rows": 20},
    "check": {"checks": ["empty", "truncated", "repetition", "copy", "language", "length", "numbers"]},
}
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
        if not should.isascii()
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
def test_of_all_the_demo_s_sentences_98_in_100_texts_come_out_exactly_right(generate, tmp_path):
    right = total = 0
    for dataset in datasets(980):
        out = generate([dataset.write(tmp_path)], dataset.name, **tables(dataset))
        found = records_of(out, dataset)
        assert list(map(shape_of, found)) == list(map(shape_of, dataset.expected))
        texts = sum(not text.isascii() for record in dataset.expected for text in texts_of(record))
        right += share_right(found, dataset.expected) * texts
        total += texts
    assert right / total >= 0.98
