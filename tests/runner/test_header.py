"""The lines that a run begins with."""

import re

from conftest import MODEL, demo_records

from batchgen.job.spec import load
from batchgen.runner import header
from batchgen.runner.prepare import prepare


def lines(source, out, **tables) -> list[str]:
    tables["input"] = {"path": [str(source)], **tables.get("input", {})}
    job = prepare(load(None, {"model": {"path": str(MODEL)}, "output": {"path": str(out), "shard_rows": 2}, **tables}))
    return list(header.lines(job, "1 worker (GPU 0)", rows_done=2))


def test_they_name_model_input_sampling_output_and_workers(write_rows, tmp_path):
    source = write_rows(demo_records(5))
    sampling = {"temperature": 0.3, "repetition_penalty": 1.1, "stop": ["\x1b[2J"], "seed": 7}
    begun, *found = lines(source, tmp_path / "out", sampling=sampling)
    assert re.match(r"run: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, batchgen [\d.]+", begun)
    assert found == [
        "model: model, speaker prompts, 512 tokens of context",
        "input: 5 rows in 1 file; the first is of the shape speaker",
        "sampling: temperature 0.3, repetition_penalty 1.1, max_tokens 512, stop ['\\x1b[2J'], seed 7",
        f"output: {tmp_path / 'out'}, 3 shards; 2 rows are done",
        "1 worker (GPU 0)",
    ]


def test_a_trial_a_translation_and_scores_say_so(write_rows, tmp_path):
    source = write_rows([{"text": "Monday"}] * 5)
    assert "input: 3 rows, the first of 5 in 1 file" in lines(source, tmp_path / "a", input={"limit": 3})[2]
    translate = {"fields": ["text"], "into": "Japanese"}
    made = lines(source, tmp_path / "b", translate=translate, prompt={"template": "{text}"})
    assert made[2].endswith("; the texts at text into Japanese")
    scored = lines(source, tmp_path / "c", score={"mode": "text"})
    assert scored[2].endswith("; scored: text") and not any(line.startswith("sampling") for line in scored)


def test_a_first_row_that_is_rejected_has_no_shape(write_rows, tmp_path):
    assert lines(write_rows(["no json", {"text": "Monday"}]), tmp_path / "out")[2] == "input: 2 rows in 1 file"
