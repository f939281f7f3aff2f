"""GPT-NeoX as vLLM runs it, ours or its own: held against transformers on small models of random weights."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from conftest import MODEL, demo_records
from processes import hook, said
from safetensors.torch import save_file
from transformers import GPTNeoXConfig
from unpatched import GPTNeoXForCausalLM

from batchgen.engine.installed import has
from batchgen.engine.vllm import VllmEngine, add_gpt_neox
from batchgen.job.sampling import Sampling
from batchgen.model.model import load_model

NATIVE = "vllm" if has("gpt_neox") else "batchgen"
of_ours = pytest.mark.skipif(has("gpt_neox"), reason="this vLLM has a GPT-NeoX of its own, which cannot do this")

SMALL = {
    "vocab_size": 1030,  # no multiple of 64, to which vLLM pads
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
RINNA = {**SMALL, "use_parallel_residual": False, "hidden_act": "gelu", "rotary_pct": 1.0, "rotary_emb_base": 10000}
STRETCHED = {**RINNA, "rope_scaling": {"type": "linear", "factor": 4}, "max_position_embeddings": 2048}
PYTHIA = {
    **SMALL,
    "use_parallel_residual": True,
    "hidden_act": "gelu_fast",
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25},
}
TIED = {**RINNA, "tie_word_embeddings": True, "hidden_act": "gelu_new"}
UNBIASED = {**RINNA, "attention_bias": False, "rotary_pct": 0.5, "hidden_act": "silu"}

PROMPTS = [[5 + (97 * i + 31 * j) % 1000 for j in range(1 + 12 * i)] for i in range(8)]  # of 1 to 85 tokens
LONG = [[5 + 31 * j % 1000 for j in range(2100)]]  # beyond what the 8k model was trained on
NEW = 24


@dataclass
class Reference:
    """A model as transformers runs it, and the folder that vLLM loads it from."""

    folder: Path
    network: GPTNeoXForCausalLM

    def generate(self, prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        made = self.network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW)
        return made[0, len(prompt) :].tolist()

    @torch.inference_mode()
    def logprobs(self, prompt: list[int], response: list[int]) -> torch.Tensor:
        """Of all ids at every token of a response: [tokens, ids]."""
        logits = self.network(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits.float(), -1)


@pytest.fixture
def reference(tmp_path):
    """Makes a model with a config.json of exactly these keys. keys: what it calls its weights, see named."""

    def make(config: dict, keys: str) -> Reference:
        torch.manual_seed(1)
        network = GPTNeoXForCausalLM(GPTNeoXConfig(**config)).eval()
        network.generation_config.eos_token_id = None  # so that each response has all its tokens
        network.generation_config.pad_token_id = 0
        for name, weight in network.named_parameters():
            if name.endswith(("bias", "norm.weight")):  # which transformers makes 0 and 1
                weight.data += 0.2 * torch.randn_like(weight)
        stated = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], **config}
        (tmp_path / "config.json").write_text(json.dumps(stated))
        for file in ("spiece.model", "tokenizer_config.json"):
            shutil.copy(MODEL / file, tmp_path)
        weights = named(network, keys)
        if keys == "old":
            torch.save(weights, tmp_path / "pytorch_model.bin")
        else:
            save_file(weights, tmp_path / "model.safetensors")
        return Reference(tmp_path, network)

    return make


def named(network: GPTNeoXForCausalLM, keys: str) -> dict[str, torch.Tensor]:
    """A checkpoint's weights by name. old: as transformers 4 wrote them, with buffers that can be computed; new: as
    transformers 5 does; bare: of the body alone."""
    new = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    if keys == "new":
        return new
    if keys == "bare":
        return {name.removeprefix("gpt_neox."): weight for name, weight in new.items()}
    old = {name.replace("lm_head.", "embed_out."): weight for name, weight in new.items()}
    for layer in range(network.config.num_hidden_layers):
        attention = f"gpt_neox.layers.{layer}.attention"
        old[f"{attention}.bias"] = torch.ones(1, 1, 128, 128, dtype=torch.uint8).tril()
        old[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        old[f"{attention}.rotary_emb.inv_freq"] = torch.full([16], torch.nan)
    return old


def answers(
    folder: Path, prompts: list[list[int]], adapter: Path | None = None, **args
) -> list[tuple[list[int], list[dict[int, float]]]]:
    """The greedy response of every prompt, and the log probabilities of the five likeliest ids at each token of it."""
    from vllm.lora.request import LoRARequest

    model = load_model(str(folder))
    engine = VllmEngine(model, {"dtype": "float32", "max_num_seqs": 8, **args}, model.context)
    params = engine.params(Sampling(temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=5), 0)
    request = LoRARequest("adapter", 1, str(adapter)) if adapter else None
    for number, prompt in enumerate(prompts):
        ids = {"type": "token", "prompt_token_ids": prompt}
        engine._engine.add_request(str(number), ids, params, lora_request=request)
    finished = {}
    while len(finished) < len(prompts):
        finished |= {int(response.request_id): response for response in engine.step()}
    return [(finished[i].token_ids, [dict(step) for step in finished[i].logprobs]) for i in range(len(prompts))]


def error(steps: list[dict[int, float]], true: torch.Tensor) -> float:
    """The largest, of log probabilities."""
    return max(
        abs(value - float(row[token])) for step, row in zip(steps, true, strict=True) for token, value in step.items()
    )


def assert_equal(expected: Reference, prompts: list[list[int]], found: list) -> None:
    for prompt, (tokens, steps) in zip(prompts, found, strict=True):
        assert tokens == expected.generate(prompt)
        assert error(steps, expected.logprobs(prompt, tokens)) < 1e-4


@pytest.mark.parametrize(
    ("config", "keys", "prompts"),
    [
        pytest.param(RINNA, "old", PROMPTS, id="rinna"),
        pytest.param(STRETCHED, "new", PROMPTS + LONG, id="8k", marks=of_ours),
        pytest.param(PYTHIA, "old", PROMPTS, id="pythia"),
        pytest.param(TIED, "bare", PROMPTS, id="tied", marks=of_ours),
        pytest.param(UNBIASED, "old", PROMPTS, id="unbiased"),
    ],
)
def test_greedy_tokens_are_those_of_transformers_and_log_probabilities_within_1e_4(reference, config, keys, prompts):
    expected = reference(config, keys)
    found = answers(expected.folder, prompts)
    assert len({tuple(tokens) for tokens, _ in found}) == len(prompts)
    assert_equal(expected, prompts, found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_it_is_as_near_to_float32_as_transformers_is(reference, dtype):
    exact = reference(RINNA, "old")
    half = Reference(exact.folder, GPTNeoXForCausalLM(exact.network.config).eval())
    half.network.load_state_dict(exact.network.state_dict())
    half.network.to(getattr(torch, dtype))
    ours = theirs = 0.0
    for prompt, (tokens, steps) in zip(PROMPTS, answers(exact.folder, PROMPTS, dtype=dtype), strict=True):
        true, rounded = exact.logprobs(prompt, tokens), half.logprobs(prompt, tokens)
        of_half = [{token: float(row[token]) for token in step} for step, row in zip(steps, rounded, strict=True)]
        ours, theirs = max(ours, error(steps, true)), max(theirs, error(of_half, true))
        for token, row in zip(
            tokens, true, strict=True
        ):  # the likeliest, or as likely as the rounding lets it be known
            assert float(row.max() - row[token]) < 2 * theirs
    assert ours < 1.5 * theirs < 1


@of_ours
def test_an_adapter_adds_to_query_key_value_in_the_checkpoints_order(reference, tmp_path):
    """transformers has it merged into the weights: W + B A alpha / rank."""
    expected = reference(PYTHIA, "new")
    plain = answers(expected.folder, PROMPTS)
    folder, rank, tensors = tmp_path / "adapter", 8, {}
    folder.mkdir()
    for layer in range(PYTHIA["num_hidden_layers"]):
        for name in ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"):
            module = f"gpt_neox.layers.{layer}.{name}"
            linear = expected.network.get_submodule(module)
            a, b = 0.1 * torch.randn(rank, linear.in_features), 0.1 * torch.randn(linear.out_features, rank)
            linear.weight.data += b @ a * 2
            tensors |= {f"base_model.model.{module}.lora_{x}.weight": value for x, value in (("A", a), ("B", b))}
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    adapted = answers(expected.folder, PROMPTS, folder, enable_lora=True, max_lora_rank=rank)
    assert [tokens for tokens, _ in adapted] != [tokens for tokens, _ in plain]
    assert_equal(expected, PROMPTS, adapted)


@of_ours
def test_without_vllms_insides_as_they_were_the_transformers_backend_is_left_and_the_reason_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "batchgen.engine.gpt_neox", None)
    assert add_gpt_neox.__wrapped__().startswith("ModuleNotFoundError: import of batchgen.engine.gpt_neox halted")


def test_a_shard_says_whose_implementation_ran(generate, write_rows):
    assert implementation(generate([write_rows(demo_records(3))], sampling={"max_tokens": 4})) == NATIVE


# --- whole runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "model_impl"),
    [
        pytest.param(["enforce_eager=false"], NATIVE, id="compiled"),
        pytest.param(["tensor_parallel_size=2"], NATIVE, id="two tensor-parallel devices"),
        pytest.param(["pipeline_parallel_size=2", "enforce_eager=false"], NATIVE, id="a pipeline of two"),
        pytest.param(["model_impl=transformers"], "transformers", id="transformers"),
    ],
)
def test_compiled_over_two_devices_and_by_the_other_backend_the_tokens_are_the_same(
    start, generate, write_rows, tmp_path, flags, model_impl
):
    source = write_rows(demo_records(200))
    keep = {"include": ["response_token_ids"]}
    expected = generate([source], "expected", sampling={"temperature": 0, "max_tokens": 64}, output=keep)
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    options = [part for flag in flags for part in ("--engine", flag)]
    settings = ["--temperature", 0, "--max-tokens", 64, "--include", "response_token_ids"]
    run = start(source, tmp_path / "out", *settings, *options, env=environment)
    assert run.wait() == 0, run.stderr
    assert tokens(tmp_path / "out") == tokens(expected)
    assert implementation(tmp_path / "out") == model_impl


def implementation(out: Path) -> str:
    """Of the model, as the only shard says."""
    [path] = out.glob("part-*")
    return pq.read_metadata(path).metadata[b"batchgen.model_impl"].decode()


def tokens(out: Path) -> list[list[int]]:
    return ds.dataset(out).to_table(["response_token_ids"])["response_token_ids"].to_pylist()


@of_ours
@pytest.mark.slow
def test_a_run_that_has_to_do_without_our_gpt_neox_says_so_once(start, write_rows, tmp_path):
    source = write_rows(demo_records(3))
    broken = hook(tmp_path / "hook", "def patch(engine): pass\n")
    with (tmp_path / "hook" / "sitecustomize.py").open("a") as site:
        site.write("\nimport sys; sys.modules['batchgen.engine.gpt_neox'] = None\n")
    run = start(source, tmp_path / "out", "--include", "response_token_ids", env=broken)
    assert run.wait() == 0, run.stderr
    [line] = said(run.stderr)
    assert line.startswith("batchgen: warning: batchgen's GPT-NeoX does not go with this vLLM")
    assert len(tokens(tmp_path / "out")) == 3
    assert implementation(tmp_path / "out") == "transformers"
