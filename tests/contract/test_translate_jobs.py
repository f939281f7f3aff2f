"""jobs/translate: each job file is valid, and translates a file of its kind with the demo model."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import MODEL
from wrapped import datasets, texts_of

from batchgen.commands.export import export
from batchgen.job.spec import load

JOBS = Path(__file__).parent.parent.parent / "jobs" / "translate"
KINDS = {"hh-rlhf": "hh", "flan": "flan", "messages": "messages", "nested": "parquet"}  # job file -> of what dataset


def test_there_is_a_dataset_for_each_job_file():
    assert {path.stem for path in JOBS.iterdir()} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_paths_are_relative_to_the_job_file(name):
    spec = load(str(JOBS / f"{name}.toml"), {})
    assert all(Path(path).parent.is_relative_to(JOBS) for path in [*spec.input.path, spec.output.path])


@pytest.mark.parametrize("name", KINDS)
def test_a_job_file_translates_a_dataset_of_its_kind(name, batchgen_here, tmp_path):
    dataset = next(each for each in datasets(105) if each.name == KINDS[name])
    out = tmp_path / "out"
    of_the_demo = ["--model", MODEL, "--template", "{text}", "--temperature", 0, "--max-tokens", 96]
    done = batchgen_here("run", JOBS / f"{name}.toml", dataset.write(tmp_path), "--output", out, *of_the_demo)
    assert done.exit_code == 0, done.stderr
    if dataset.kind == "parquet":
        found = pq.read_table(out, columns=["id", "turns", "score"]).to_pylist()
    else:
        export(out, to := tmp_path / "made.jsonl", "", "", partial=False, overwrite=False)
        found = [json.loads(line) for line in to.read_text("utf-8").splitlines()]
    pairs = [
        (has, should)
        for one, other in zip(found, dataset.expected, strict=True)
        for has, should in zip(texts_of(one), texts_of(other), strict=True)
    ]
    assert sum(has == should for has, should in pairs) >= 0.9 * len(pairs)
