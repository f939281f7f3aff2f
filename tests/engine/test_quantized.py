"""Quantized models: named, run where this machine can, and one line where it cannot."""

import json

import pytest
import torch
from conftest import MODEL, demo_records
from llama import llama  # noqa: F401
from quantized import quantized

from batchgen.engine import cpu
from batchgen.engine.vllm import VllmEngine
from batchgen.errors import JobError
from batchgen.job.sampling import Sampling
from batchgen.model.model import load_model


@pytest.fixture(scope="module")
def int8(llama, tmp_path_factory):  # noqa: F811
    return quantized(llama, tmp_path_factory.mktemp("quantized") / "llama")


def test_inspect_and_plan_name_how_weights_and_cache_are_quantized(batchgen, int8, write_rows, tmp_path):
    assert "quantization     compressed-tensors, int-quantized\n" in batchgen("inspect", int8).stdout
    command = ["plan", write_rows(demo_records(2)), "--output", tmp_path / "out", "--model"]
    shown = batchgen(*command, int8, "--engine", "kv_cache_dtype=fp8").stdout
    assert "quantization   weights compressed-tensors, int-quantized, KV cache fp8\n" in shown
    assert "quantization" not in batchgen(*command, MODEL).stdout


def test_quantized_weights_take_the_memory_of_their_files(int8):
    model = load_model(str(int8))
    config = json.loads((int8 / "config.json").read_text())
    (int8 / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert cpu.weight_bytes(model, {}) == (int8 / "model.safetensors").stat().st_size


def test_how_weights_and_cache_are_quantized_is_part_of_a_job(instantly, batchgen, write_rows):
    source = write_rows(demo_records(2))
    out = instantly([source])
    for name, value in {"quantization": "awq", "kv_cache_dtype": "fp8"}.items():
        other = batchgen("run", source, "--model", MODEL, "--output", out, "--engine", f"{name}={value}")
        assert (other.exit_code, other.stderr.splitlines()[1]) == (2, f'  engine.{name}: (none) -> "{value}"')


def test_fp8_weights_on_a_cpu_are_one_line_before_anything_starts(batchgen, write_rows, tmp_path):
    command = ["run", write_rows(demo_records(2)), "--model", MODEL, "--output", tmp_path / "out"]
    ended = batchgen(*command, "--engine", "quantization=fp8")
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert "[engine] quantization: on a CPU vLLM cannot turn weights into fp8" in ended.stderr


@pytest.mark.slow
def test_int8_weights_run_on_a_cpu_and_say_nearly_what_they_were_made_from(llama, int8):  # noqa: F811
    def first_tokens(folder, **args) -> list[int]:
        model = load_model(str(folder))
        engine = VllmEngine(model, {"max_num_seqs": 16, **args}, model.context)
        for number in range(40):
            engine.add(f"{number}", [5, 300 + number, 20, 99], Sampling(temperature=0, max_tokens=1), 1)
        found = {}
        while len(found) < 40:
            found |= {response.request_id: response.token_ids[0] for response in engine.step()}
        return [found[f"{number}"] for number in range(40)]

    plain, small = torch.tensor(first_tokens(llama)), torch.tensor(first_tokens(int8))
    assert 30 <= int((plain == small).sum()) < 41
    cached = torch.tensor(first_tokens(llama, kv_cache_dtype="fp8"))
    assert int((plain == cached).sum()) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{"quantization": "awq"}, {"quantization": "none-such"}, {"kv_cache_dtype": "int3"}])
def test_what_vllm_does_not_know_or_find_is_one_line(llama, asked):  # noqa: F811
    model = load_model(str(llama))
    with pytest.raises(JobError, match=r"^\[engine\] vLLM refuses: .*$"):
        VllmEngine(model, asked, model.context)


@pytest.mark.slow
def test_weights_that_this_cpu_cannot_run_are_one_line(llama):  # noqa: F811
    model = load_model(str(llama))
    with pytest.raises(JobError, match=r"^vLLM cannot run the model's fp8 weights on this CPU: .*$"):
        VllmEngine(model, {"quantization": "fp8", "dtype": "bfloat16"}, model.context)
