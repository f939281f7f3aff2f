"""LoRA adapters in vLLM: each answers as the model with its weights merged does, whatever else is in the batch."""

import json
import re

import pyarrow.dataset as ds
import pytest
import torch
from adapters import OF_DEMO, OF_LLAMA, write_adapter
from conftest import MODEL
from llama import llama  # noqa: F401
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from batchgen.engine.vllm import VllmEngine
from batchgen.errors import JobError
from batchgen.job.sampling import Sampling
from batchgen.model.model import load_model

NAMES = (None, "a", "b")
PROMPTS = [[5, 300 + place, 20, 49 * place % 500 + 6, 99] for place in range(9)]
GREEDY = Sampling(temperature=0, max_tokens=16, ignore_eos=True)
SAMPLED = Sampling(temperature=1.0, top_p=1.0, max_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def model(llama, tmp_path_factory):  # noqa: F811
    """With two adapters of different ranks."""
    folder = tmp_path_factory.mktemp("adapters")
    adapters = {"a": write_adapter(folder / "a", 1), "b": write_adapter(folder / "b", 2, rank=9)}
    return load_model(str(llama), adapters={name: str(place) for name, place in adapters.items()})


@pytest.fixture(scope="module")
def lora_engine(model):
    """max_loras is too small for a CPU, where the last slot has to stay empty."""
    return VllmEngine(model, {"max_num_seqs": 16, "max_loras": 1}, model.context)


def answers(engine, requests) -> dict[str, list[int]]:
    """Of requests by name, each a prompt, an adapter and its sampling, all in the engine at the same time."""
    for name, (prompt, adapter, sampling) in requests.items():
        engine.add(name, prompt, sampling, hash(name) % 1000, adapter)
    found: dict[str, list[int]] = {}
    while len(found) < len(requests):
        found |= {response.request_id: response.token_ids for response in engine.step()}
    return found


def merged(model, adapter):
    """transformers' network with the weights of an adapter added to its own."""
    network = LlamaForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    if adapter:
        [found] = [each for each in model.adapters if each.name == adapter]
        weights = load_file(found.folder / "adapter_model.safetensors")
        scale = json.loads((found.folder / "adapter_config.json").read_text())["lora_alpha"] / found.rank
        for name in [name for name in weights if "lora_A" in name]:
            target = name.removeprefix("base_model.model.").replace(".lora_A", "")
            network.get_parameter(target).data += scale * weights[name.replace("lora_A", "lora_B")] @ weights[name]
    return network


def test_greedy_answers_of_a_mixed_batch_are_those_of_transformers_with_merged_weights(model, lora_engine):
    requests = {f"{place}": (prompt, NAMES[place % 3], GREEDY) for place, prompt in enumerate(PROMPTS)}
    found = answers(lora_engine, requests)
    for adapter in NAMES:
        network = merged(model, adapter)
        for name, (prompt, asked, _) in requests.items():
            if asked == adapter:
                ids = torch.tensor([prompt])
                options = {"do_sample": False, "max_new_tokens": 16, "min_new_tokens": 16, "repetition_penalty": 1.0}
                whole = network.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, **options)
                assert found[name] == whole[0, len(prompt) :].tolist(), (name, adapter)


def test_a_row_is_answered_alike_alone_and_beside_other_adapters(lora_engine):
    requests = {f"s{place}": (prompt, NAMES[place % 3], SAMPLED) for place, prompt in enumerate(PROMPTS)}
    together = answers(lora_engine, requests)
    alone = {name: answers(lora_engine, {name: requests[name]})[name] for name in reversed(requests)}
    assert together == alone


def test_one_prompt_has_an_answer_of_its_own_from_each_adapter_whatever_the_prefix_cache_holds(lora_engine):
    prompt = list(range(100, 140))  # more than two blocks of the cache
    requests = {f"p{adapter}": (prompt, adapter, GREEDY) for adapter in NAMES}
    first = answers(lora_engine, requests)
    again = {name: answers(lora_engine, {name: requests[name]})[name] for name in requests}
    assert first == again and len({tuple(ids) for ids in first.values()}) == 3


def test_an_adapter_that_only_vllm_refuses_is_one_line_and_the_engine_goes_on(model, lora_engine, tmp_path):
    folder = write_adapter(tmp_path / "c", 3, {**OF_LLAMA, "model.layers.{}.self_attn.x_proj": (64, 64)})
    wrong = load_model(str(model.folder), adapters={"c": str(folder)}).adapters[0]._replace(number=9)
    with pytest.raises(JobError, match=rf"^\[model\] adapter c: vLLM refuses {re.escape(str(folder))}: .*$"):
        lora_engine.load_adapter(wrong)
    assert answers(lora_engine, {"after": (PROMPTS[0], "a", GREEDY)})


@pytest.mark.slow
def test_a_run_and_its_replay_answer_with_the_adapters_of_the_rows(model, batchgen_process, write_rows, tmp_path):
    source = write_rows([{"text": f"{row} ?", "lang": NAMES[row % 3]} for row in range(12)])
    flags = [part for each in model.adapters for part in ("--adapter", f"{each.name}={each.folder}")]
    flags += ["--adapter-column", "lang", "--max-tokens", 12, "--temperature", 1, "--include", "response_token_ids"]
    done = batchgen_process("run", source, "--model", model.folder, "--output", tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    found = ds.dataset(tmp_path / "out").to_table(["row", "adapter"]).to_pylist()
    assert [row["adapter"] for row in found] == [NAMES[row % 3] for row in range(12)]
    again = batchgen_process("verify", tmp_path / "out", "--replay", 12)
    assert again.stdout.endswith("replayed: 12 of 12 responses are the same\n"), again.stderr


def test_a_kind_of_model_that_takes_no_adapters_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("vllm.model_executor.models.supports_lora", lambda kind: False)
    folder = write_adapter(tmp_path / "a", 1, OF_DEMO)
    with pytest.raises(JobError, match=r"^\[model\] adapter: GPTNeoX\w+ takes no adapters in vLLM .*; merge .*$"):
        loaded = load_model(str(MODEL), adapters={"a": str(folder)})
        VllmEngine(loaded, {}, loaded.context)
