"""`batchgen bench` measures the real thing, leaves nothing behind, and puts its timers away."""

import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import DEMO, MODEL, demo_records

from batchgen.commands import bench
from batchgen.engine.instant import InstantEngine
from batchgen.input.rows import Reader
from batchgen.model.model import load_model
from batchgen.output import journal, shard
from batchgen.task.generate import Generate

HERE = Path(__file__).parent.parent
STAGES = ["plan", "read", "render, encode", "admit", "engine", "decode", "journal", "journal's sync", "shard"]


@pytest.fixture
def measure(batchgen, tmp_path, monkeypatch):
    """Runs one of the commands; its figures as the JSON has them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()

    def run(*arguments) -> dict:
        done = batchgen("bench", *arguments, "--json", tmp_path / "figures.json")
        assert done.exit_code == 0, done.stderr
        figures = json.loads((tmp_path / "figures.json").read_bytes())
        assert [line.split()[0] for line in done.stdout.splitlines()] == list(figures)
        assert list((tmp_path / "scratch").iterdir()) == []
        return figures

    return run


def test_the_host_s_own_work(measure):
    figures = measure("host", "--rows", 500, "--prompt-tokens", 60, "--response-tokens", 40)
    assert (figures["rows"], figures["rejects"]) == (500, {})
    assert figures["prompt_tokens_per_row"] == pytest.approx(60, abs=3)
    assert figures["rows_per_second"] == pytest.approx(500 / figures["seconds"], rel=0.01)
    assert list(figures["stages"]) == [*STAGES, "reports", "all else"]
    assert sum(figures["stages"].values()) == pytest.approx(figures["seconds"], rel=0.05)
    assert len(figures["memory"]["after_each_tenth_mb"]) == 10
    assert 20 < max(figures["memory"]["after_each_tenth_mb"]) <= figures["memory"]["peak_mb"]


def test_the_input_s_figures(measure):
    figures = measure("input", "--gigabytes", 0.01)
    data = (DEMO / "data/conversations.jsonl").read_bytes()
    copies, rest = divmod(figures["bytes"], len(data))
    assert (figures["rows"], rest) == (copies * data.count(b"\n"), 0)
    assert 10_000_000 <= figures["bytes"] < 10_000_000 + len(data)
    assert figures["plan_gb_per_second"] > 0 and figures["plain_gb_per_second"] > 0


def test_the_engine_s_figures(batchgen_process, write_rows, tmp_path):
    rows = write_rows(demo_records(40))
    flags = ["--model", MODEL, "--output", tmp_path / "out", "--temperature", 0, "--json", tmp_path / "figures.json"]
    done = batchgen_process("bench", "engine", rows, "--rows", 24, "--rounds", 2, "--no-stock", *flags)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_bytes())
    assert (figures["rows"], figures["requests"]) == (24, 24)
    bare, whole = figures["bare"]["rounds"], figures["pipeline"]["rounds"]
    assert len(bare) == len(whole) == 2
    assert {each["response_tokens"] for each in bare + whole} == {figures["response_tokens"]["total"]}
    assert {each["prompt_tokens"] for each in bare + whole} == {figures["prompt_tokens"]["total"]}
    assert figures["ratio"] == pytest.approx(statistics.median(figures["ratios"]), abs=1e-4)
    assert list(figures["stages"]) == [*STAGES, "reports", "all else"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "in.jsonl"]


@pytest.mark.slow
def test_vllm_as_it_is_installed_has_its_rounds_beside_ours(batchgen_process, write_rows, tmp_path):
    rows = write_rows(demo_records(40))
    flags = ["--model", MODEL, "--output", tmp_path / "out", "--temperature", 0, "--json", tmp_path / "figures.json"]
    done = batchgen_process("bench", "engine", rows, "--rounds", 2, *flags)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_bytes())
    stock = figures["stock"]["rounds"]
    assert {each["response_tokens"] for each in stock} == {figures["response_tokens"]["total"]}  # greedy
    rates = [each["response_tokens_per_second"] for each in figures["pipeline"]["rounds"]]
    theirs = [each["response_tokens_per_second"] for each in stock]
    expected = statistics.median(one / other for one, other in zip(rates, theirs, strict=True))
    assert figures["ratio_to_stock"] == pytest.approx(expected, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "in.jsonl"]


def test_a_job_that_cannot_run_is_one_line(batchgen, write_rows, tmp_path):
    rows = write_rows(demo_records(1))
    flags = [rows, "--model", MODEL, "--output", tmp_path / "out"]
    done = batchgen("bench", "engine", *flags, "--engine", "max_num_sequences=3")
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1


def test_timers_are_gone_after_the_block():
    places = [
        (Reader, "read"),
        (Generate, "draft"),
        (Generate, "fit_here"),
        (Generate, "finish"),
        (Generate, "output"),
        (journal.Journal, "keep"),
        (shard, "commit"),
    ]
    before = [getattr(*place) for place in places]
    with pytest.raises(KeyError), bench.stages(InstantEngine):
        assert all(getattr(*place) is not was for place, was in zip(places, before, strict=True))
        raise KeyError
    assert [getattr(*place) for place in places] == before


def test_bytes_that_decoding_reads():
    """Weights: as they lie in the demo model's file, without the input embeddings and what is not used."""
    model = load_model(str(MODEL))
    content = (MODEL / "model.safetensors").read_bytes()
    tensors = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    unused = ("embed_in.weight", ".attention.bias", ".masked_bias", ".inv_freq", "__metadata__")
    read = [tensor["data_offsets"] for name, tensor in tensors.items() if not name.endswith(unused)]
    assert bench.weight_bytes(model, 2) == sum(end - start for start, end in read)
    assert bench.kv_bytes(model, "float16", "auto") == 2 * 2 * 4 * 128
    assert bench.kv_bytes(model, "float16", "fp8") == 2 * 4 * 128
    assert bench.tokens_read(10, 3) == 10 + 11 + 12


def test_the_share_of_the_bandwidth():
    """Two steps, and one response of 3 tokens to a prompt of 10, with all time spent on moving the bytes."""
    model = load_model(str(MODEL))
    job = SimpleNamespace(model=model, spec=SimpleNamespace(engine={"tensor_parallel_size": 2}))
    moved = 2 * bench.weight_bytes(model, 2) + (10 + 11 + 12) * bench.kv_bytes(model, "float16", "auto")
    bare = bench.Round(1.0, 1.0, 10, 3, steps=2, lengths=[(10, 3)])
    slower = bench.Round(4.0, 1.0, 10, 3)
    figures = bench._share_of_bandwidth(job, SimpleNamespace(dtype="float16"), [bare], [slower], moved / 2)
    assert figures["share_of_bandwidth"] == {"bare": 1.0, "pipeline": 0.25}
    assert figures["bytes"]["read"] == moved


def test_texts_have_the_lengths_that_were_asked_for():
    tokenizer = load_model(str(MODEL)).tokenizer
    lengths = [1, 20, 119, 500]
    made = [len(tokenizer.encode(text)) for text in bench.texts(tokenizer, lengths)]
    assert made == [pytest.approx(length, abs=2) for length in lengths]


@pytest.mark.slow
def test_the_lines_for_a_gpu_box_run_in_their_tiny_form(tmp_path):
    """Those of every kind, as a process each; run again, they are all done already."""
    names = ["some", "unseeded", "llm-generate", "transformers-batched", "replay"]
    command = [sys.executable, HERE / "bench" / "h100.py", tmp_path / "out", "--tiny", "--work", tmp_path / "work"]
    for expected in ([f"{name}: done" for name in names], []):
        done = subprocess.run(
            [*map(str, command), "--only", ",".join(names)], capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
        said = [line.partition(",")[0] for line in done.stdout.splitlines() if not line.startswith(("|", "{"))]
        assert [line for line in said if line] == expected
    figures = json.loads((tmp_path / "out" / "figures.json").read_bytes())
    assert set(figures) == set(names)
    assert figures["replay"]["replayed"] == "16 of 16"
    assert all(name in (tmp_path / "out" / "table.md").read_text() for name in names)


def test_the_workload_is_the_same_whenever_it_is_made(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE / "bench")
    import workload

    for name in ("one", "two"):
        workload.write(tmp_path / name, workload.TINY)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.*")} for name in ("one", "two"))
    assert one == two and len(one["rows.jsonl"].splitlines()) == 24


def test_the_real_shape_has_the_weights_of_the_4b_model(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE / "bench")
    import workload

    workload.write(tmp_path, dataclasses.replace(workload.FULL, rows=16))
    model = load_model(str(tmp_path / "model"))
    parameters = bench.weight_bytes(model, 1) + 65536 * 2816  # and the input embeddings
    assert parameters == pytest.approx(3.8e9, rel=0.01)
    assert bench.kv_bytes(model, "float16", "auto") == 2 * 2 * 36 * 2816


@pytest.mark.parametrize("which", ["engine", "peers"])
def test_a_translation_is_refused(which, tmp_path, batchgen):
    (job := tmp_path / "job.toml").write_text(
        '[input]\npath = "in.jsonl"\n[model]\npath = "model"\n[output]\npath = "out"\n'
        '[translate]\nfields = ["text"]\ninto = "Japanese"\n'
    )
    done = batchgen("bench", which, job)
    assert done.exit_code == 2 and "measure a job whose [prompt] template" in done.stderr
