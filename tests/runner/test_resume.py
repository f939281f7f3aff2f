"""A second run goes on where the first stopped, and refuses to mix two jobs in one folder."""

import json
import shutil

import pytest
from conftest import MODEL, demo_records

GREEDY = {"temperature": 0, "max_tokens": 32}


@pytest.fixture
def source(write_rows):
    return write_rows(demo_records(50))


@pytest.fixture
def flags(source, tmp_path):
    return ["run", source, "--model", MODEL, "--output", tmp_path / "out"]


def test_finished_shards_are_kept_and_missing_ones_made_again_the_same(generate, source):
    options = {"sampling": GREEDY, "output": {"shard_rows": 10}}
    out = generate([source], **options)
    parts = sorted(out.glob("part-*"))
    before = {part: (part.read_bytes(), part.stat().st_mtime_ns) for part in parts}
    for lost in (1, 3):
        parts[lost].unlink()
    (out / "_SUCCESS").unlink()

    generate([source], **options)
    for number, part in enumerate(parts):
        content, changed = before[part]
        assert part.read_bytes() == content
        assert (part.stat().st_mtime_ns == changed) == (number not in (1, 3))


def test_a_finished_job_says_so_and_starts_no_engine(generate, batchgen, flags, source, tmp_path):
    generate([source], sampling=GREEDY)
    result = batchgen(*flags, "--temperature", 0, "--max-tokens", 32)
    assert result.exit_code == 0
    assert result.stdout.startswith("all done already: 50 rows, 50 responses, 0 rejects")
    assert not (tmp_path / "out" / "_state" / "engine.log").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--temperature", "0.5"], "sampling.temperature: 0.0 -> 0.5"),
        (["--max-tokens", "33"], "sampling.max_tokens: 32 -> 33"),
        (["--seed", "1"], "sampling.seed: 0 -> 1"),
        (["--n", "2"], "sampling.n: 1 -> 2"),
        (["--shard-rows", "9"], "output.shard_rows: 4096 -> 9"),
        (["--column", "expected"], "output.columns: {} -> (none)"),
        (["--include", "prompt"], 'output.include: [] -> ["prompt"]'),
        (["--id", "expected"], 'input.id: "id" -> "expected"'),
        (["--engine", "dtype=bfloat16"], 'engine.dtype: (none) -> "bfloat16"'),
        (["--engine", "max_model_len=256"], "engine.max_model_len: 512 -> 256"),
    ],
)
def test_drift_is_refused_with_the_field_old_and_new(generate, batchgen, flags, source, change, line):
    generate([source], sampling=GREEDY)
    result = batchgen(*flags, "--temperature", 0, "--max-tokens", 32, *change)
    assert result.exit_code == 2
    assert f"  {line}\n" in result.stderr


def test_changed_input_is_refused(generate, batchgen, flags, source):
    generate([source], sampling=GREEDY)
    source.write_bytes(source.read_bytes().replace(b"demo-00000", b"demo-0000x"))
    result = batchgen(*flags, "--temperature", 0, "--max-tokens", 32)
    assert result.exit_code == 2
    assert "input.files[0].digest" in result.stderr


def test_another_model_is_refused(generate, batchgen, source, tmp_path):
    generate([source], sampling=GREEDY)
    shutil.copytree(MODEL, tmp_path / "other")
    config = json.loads((MODEL / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"rotary_emb_base": 20000}))
    arguments = ["run", source, "--model", tmp_path / "other", "--output", tmp_path / "out"]
    result = batchgen(*arguments, "--temperature", 0, "--max-tokens", 32)
    assert result.exit_code == 2
    assert "model.config.json" in result.stderr


def test_what_cannot_change_results_may_differ(generate, batchgen, flags, source):
    generate([source], sampling=GREEDY)
    means = ["--engine", "max_num_seqs=7", "--engine", "gpu_memory_utilization=0.5", "--max-rejects", 3, "--workers", 2]
    assert batchgen(*flags, "--temperature", 0, "--max-tokens", 32, *means).exit_code == 0


def test_input_and_model_may_move(generate, batchgen, source, tmp_path):
    generate([source], sampling=GREEDY)
    moved = source.rename(tmp_path / "moved.jsonl")
    shutil.copytree(MODEL, tmp_path / "copy")
    arguments = ["run", moved, "--model", tmp_path / "copy", "--output", tmp_path / "out"]
    assert batchgen(*arguments, "--temperature", 0, "--max-tokens", 32).exit_code == 0


def test_a_job_that_has_made_nothing_yet_may_be_mended(generate, source, tmp_path):
    out = generate([source], sampling=GREEDY)
    for part in out.glob("part-*"):
        part.unlink()
    (out / "_SUCCESS").unlink()
    generate([source], sampling={**GREEDY, "max_tokens": 40})
    assert json.loads((out / "_job.json").read_text())["results"]["sampling"]["max_tokens"] == 40
