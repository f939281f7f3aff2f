"""The models of the series: context, weights in either form, withdrawn and image models, what inspect says of them."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from conftest import CONVERSATIONS, MODEL, demo_records
from minigpt4 import minigpt4  # noqa: F401
from safetensors.torch import load_file, save_file

from batchgen.errors import JobError
from batchgen.job.spec import load
from batchgen.model import model_files
from batchgen.model.model import load_model
from batchgen.model.series import RELEASED_MD5, WITHDRAWN_MD5
from batchgen.runner.prepare import prepare

LINEAR = {"type": "linear", "factor": 4.0}
CONFIG = json.loads((MODEL / "config.json").read_text())


@pytest.fixture
def model(tmp_path):
    """Makes a copy of the demo model with another config; weights stay out if asked."""

    def make(name="model", weights=True, **config):
        shutil.copytree(MODEL, tmp_path / name)
        if not weights:
            (tmp_path / name / "model.safetensors").unlink()
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG | config))
        return tmp_path / name

    return make


# --- context


@pytest.mark.parametrize(
    ("positions", "scaling", "context"),
    [
        (2048, None, 2048),
        (2048, LINEAR, 8192),
        (8192, LINEAR, 8192),
        (2048, {"type": "linear", "factor": 2.0}, 4096),
        (2048, {"type": "dynamic", "factor": 4.0}, 2048),
    ],
)
def test_context(model, positions, scaling, context):
    assert load_model(str(model(max_position_embeddings=positions, rope_scaling=scaling))).context == context


def test_a_scaling_without_factor_is_refused(model):
    with pytest.raises(JobError, match=r"config\.json: rope_scaling has the factor None"):
        load_model(str(model(max_position_embeddings=2048, rope_scaling={"type": "linear"})))


def write_random_weights(folder) -> None:
    """Two layers with heads of 64, sharp enough that attention, and so every position, decides the tokens."""
    random = torch.Generator().manual_seed(5)
    hidden, inner, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    shapes = {"gpt_neox.embed_in": (vocab, hidden), "embed_out": (vocab, hidden)}
    norms = ["gpt_neox.final_layer_norm"]
    for layer in ("gpt_neox.layers.0", "gpt_neox.layers.1"):
        shapes[f"{layer}.attention.query_key_value"] = (3 * hidden, hidden)
        shapes[f"{layer}.attention.dense"] = (hidden, hidden)
        shapes[f"{layer}.mlp.dense_h_to_4h"] = (inner, hidden)
        shapes[f"{layer}.mlp.dense_4h_to_h"] = (hidden, inner)
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
    weights = {f"{name}.weight": torch.randn(shape, generator=random) * 0.15 for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items() if "layers" in name}
    weights |= {f"{name}.weight": torch.ones(hidden) for name in norms}
    weights |= {f"{name}.bias": torch.zeros(hidden) for name in norms}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def greedy_of_transformers(folder, prompt: list[int], count: int) -> list[int]:
    from transformers import GPTNeoXForCausalLM

    network = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens: list[int] = []
    with torch.inference_mode():
        out = network(torch.tensor([prompt]), use_cache=True)
        while len(tokens) < count:
            tokens.append(int(out.logits[0, -1].argmax()))
            out = network(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize("positions", [2048, 8192])
def test_greedy_tokens_beyond_position_2048_are_those_of_transformers(
    model, batchgen_process, write_rows, tmp_path, positions
):
    config = {"num_hidden_layers": 2, "max_position_embeddings": positions, "torch_dtype": "float32"}
    stretched = model(rope_scaling=LINEAR, **config)
    write_random_weights(stretched)
    text = CONVERSATIONS.read_text(encoding="utf-8")[:4500]
    prompt = load_model(str(stretched)).tokenizer.encode(text)
    assert 2300 < len(prompt) < 3500
    flags = ["--model", stretched, "--output", tmp_path / "out", "--prompt-format", "raw", "--temperature", 0]
    flags += ["--max-tokens", 30, "--ignore-eos", "--include", "response_token_ids", "--include", "prompt_token_ids"]
    done = batchgen_process("run", write_rows([{"text": text}]), *flags)
    assert done.returncode == 0, done.stderr
    [row] = pq.read_table(tmp_path / "out" / "part-00000-of-00001.parquet").to_pylist()
    assert row["prompt_token_ids"] == prompt
    expected = greedy_of_transformers(stretched, prompt, 30)
    assert row["response_token_ids"] == expected
    (stretched / "config.json").write_text(json.dumps(CONFIG | config))
    assert greedy_of_transformers(stretched, prompt, 30) != expected


# --- weights


def test_pytorch_model_bin_answers_as_safetensors_do(model, generate, batchgen_process, write_rows, tmp_path):
    """With the buffers that old checkpoints carry in every layer."""
    folder = model(weights=False)
    weights = load_file(MODEL / "model.safetensors")
    for layer in range(CONFIG["num_hidden_layers"]):
        attention = f"gpt_neox.layers.{layer}.attention"
        weights[f"{attention}.bias"] = torch.ones(1, 1, 512, 512, dtype=torch.bool).tril()
        weights[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        weights[f"{attention}.rotary_emb.inv_freq"] = 1 / 10000 ** (torch.arange(0, 64, 2) / 64)
    torch.save(weights, folder / "pytorch_model.bin")
    rows = write_rows(demo_records(40))
    safe = generate([rows], out="safe", sampling={"temperature": 0.0, "max_tokens": 96})
    flags = ["--model", folder, "--output", tmp_path / "bin", "--temperature", 0, "--max-tokens", 96]
    done = batchgen_process("run", rows, *flags)
    assert done.returncode == 0, done.stderr
    answers = [pq.read_table(out / "part-00000-of-00001.parquet")["response"] for out in (safe, tmp_path / "bin")]
    assert answers[0] == answers[1]


@pytest.fixture
def with_md5(model, tmp_path, monkeypatch):
    """A model whose pytorch_model.bin has a given MD5, as far as the cache of digests says."""

    def make(md5: str, beside_safetensors=False):
        folder = model(weights=beside_safetensors)
        weights = folder / "pytorch_model.bin"
        weights.write_bytes(b"x")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (tmp_path / "cache" / "batchgen").mkdir(parents=True)
        digests = {model_files.identity(weights, weights.stat()): md5}
        (tmp_path / "cache" / "batchgen" / "digests.json").write_text(json.dumps(digests))
        return folder

    return make


@pytest.mark.parametrize("beside_safetensors", [False, True])
def test_the_withdrawn_weights_are_refused(with_md5, batchgen, write_rows, tmp_path, beside_safetensors):
    folder = with_md5(WITHDRAWN_MD5, beside_safetensors)
    result = batchgen("run", write_rows([{"text": "x"}]), "--model", folder, "--output", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "has the weights of 2023-07-31, withdrawn" in result.stderr
    assert "--allow-withdrawn" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_withdrawn_weights_may_be_allowed(with_md5, write_rows, tmp_path, capsys):
    folder = with_md5(WITHDRAWN_MD5)
    tables = {
        "input": {"path": [str(write_rows([{"text": "x"}]))]},
        "model": {"path": str(folder), "allow_withdrawn": True},
        "output": {"path": str(tmp_path / "out")},
    }
    assert prepare(load(None, tables)).model.withdrawn
    assert "batchgen: warning: " in capsys.readouterr().err


# --- images


def test_a_minigpt4_model_needs_blip_2s_vision(batchgen, minigpt4):  # noqa: F811
    alone = minigpt4.model.with_name("alone")
    alone.mkdir(exist_ok=True)
    (alone / "checkpoint.pth").write_bytes((minigpt4.model / "checkpoint.pth").read_bytes())
    result = batchgen("inspect", alone)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert (
        "alone: a MiniGPT-4 model, which sees by BLIP-2's vision: name its weights in [model] vision" in result.stderr
    )
    seen = batchgen("inspect", minigpt4.model, "--vision", minigpt4.vision).stdout
    assert "images           MiniGPT-4: 32 embeddings in place of <ImageHere>, by BLIP-2's vision" in seen
    assert seen.count("blip2_pretrained_flant5xxl.pth  ") == 1 and "vision/eva_vit_g.pth" in seen


def test_vision_goes_with_a_minigpt4_model_alone(batchgen, minigpt4):  # noqa: F811
    for vision, why in ((minigpt4.vision, "has no checkpoint.pth"), ("nowhere", "has no checkpoint.pth")):
        assert why in batchgen("inspect", MODEL, "--vision", vision).stderr
    assert "nowhere: no such model folder" in batchgen("inspect", minigpt4.model, "--vision", "nowhere").stderr
    assert "has neither eva_vit_g.pth and" in batchgen("inspect", minigpt4.model, "--vision", MODEL.parent).stderr


def test_a_complete_model_is_taken_whatever_its_name(model):
    assert load_model(str(model("like-minigpt4"))).context == 512


# --- inspect


def inspected(batchgen, *arguments) -> dict[str, str]:
    """What inspect prints, by the name at the start of each line."""
    result = batchgen("inspect", *arguments)
    assert result.exit_code == 0, result.stderr
    found: dict[str, str] = {}
    name = ""
    for line in result.stdout.splitlines():
        name = line[:15].strip() or name
        found[name] = f"{found[name]}\n{line[17:]}" if name in found else line[17:]
    return found


@pytest.mark.parametrize(
    ("config", "family", "format", "sampling"),
    [
        ({}, "a GPT-NeoX of the rinna kind, none of the series", "speaker", "not stated"),
        ({"vocab_size": 65536}, "bilingual-gpt-neox-4b\n", "speaker", "top_p 0.85, max_tokens 512"),
        (
            {"vocab_size": 65536, "max_position_embeddings": 2048, "rope_scaling": LINEAR},
            "bilingual-gpt-neox-4b-8k",
            "raw",
            "base: not stated",
        ),
        ({"vocab_size": 65536, "max_position_embeddings": 8192}, "bilingual-gpt-neox-4b-8k", "raw", "not stated"),
    ],
)
def test_inspect_knows_the_family_by_config_and_tokenizer(model, batchgen, config, family, format, sampling):
    found = inspected(batchgen, model(**config))
    assert found["family"].startswith(family)
    assert found["prompt format"].startswith(f"{format}: ")
    assert sampling in found["card's sampling"]


def test_inspect_knows_the_japanese_models_by_their_tokenizer(model, batchgen, tmp_path):
    folder = model(vocab_size=32000)
    japanese = MODEL.parents[2] / "tests" / "tokenizer" / "japanese-3.6b"
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(japanese / name, folder)
    found = inspected(batchgen, folder)
    assert found["family"].startswith("japanese-gpt-neox-3.6b\n")
    assert "repetition_penalty 1.1" in found["card's sampling"]
    assert found["prompt format"].startswith("speaker-nl: ")


def test_inspect_names_the_release_by_its_md5(with_md5, batchgen):
    found = inspected(batchgen, with_md5(RELEASED_MD5))
    assert found["release"] == "bilingual-gpt-neox-4b-instruction-sft, release of 2023-08-02 (MIT)"
    assert found["weights"] == f"pytorch_model.bin  1 bytes  MD5 {RELEASED_MD5}"


def test_inspect_refuses_the_withdrawn_release_after_showing_it(with_md5, batchgen):
    folder = with_md5(WITHDRAWN_MD5)
    result = batchgen("inspect", folder)
    assert (result.exit_code, "WITHDRAWN" in result.stdout) == (2, True)
    assert batchgen("inspect", folder, "--allow-withdrawn").exit_code == 0


def test_a_revision_of_a_folder_makes_no_sense(batchgen):
    result = batchgen("inspect", MODEL, "--revision", "main")
    assert (result.exit_code, "is a folder; leave main out" in result.stderr) == (2, True)


# --- the card's sampling


def test_the_cards_sampling_is_the_default_and_the_job_wins(model, tmp_path, write_rows):
    folder = model(vocab_size=32000)
    japanese = MODEL.parents[2] / "tests" / "tokenizer" / "japanese-3.6b"
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(japanese / name, folder)

    def resolved(format="auto", **sampling):
        tables = {"input": {"path": [str(write_rows([{"text": "a"}]))]}, "output": {"path": str(tmp_path / "out")}}
        tables |= {"model": {"path": str(folder)}, "prompt": {"format": format}, "sampling": sampling}
        found = prepare(load(None, tables)).task.sampling
        return found.temperature, found.top_p, found.repetition_penalty, found.max_tokens

    assert resolved() == (0.7, 1.0, 1.1, 128)
    assert resolved("raw") == (0.8, 1.0, 1.0, 100)
    assert resolved(temperature=1.0, max_tokens=512) == (1.0, 1.0, 1.1, 512)


def test_without_a_card_the_bilingual_instruction_models_sampling_is_the_default(model, tmp_path, write_rows):
    tables = {"input": {"path": [str(write_rows([{"text": "a"}]))]}, "output": {"path": str(tmp_path / "out")}}
    found = prepare(load(None, {**tables, "model": {"path": str(model())}})).task.sampling
    assert (found.temperature, found.top_p, found.repetition_penalty, found.max_tokens) == (1.0, 0.85, 1.0, 512)
