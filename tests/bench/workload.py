"""What the GPU is measured with: a model of the real shape without its weights, and long-tailed conversations."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import batchgen.demo
from batchgen.commands.bench import texts
from batchgen.model.tokenizer import Tokenizer

DEMO_MODEL = Path(batchgen.demo.__file__).parent / "model"

# rinna/bilingual-gpt-neox-4b, as its config.json has it
REAL = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "num_hidden_layers": 36,
    "hidden_size": 2816,
    "num_attention_heads": 22,
    "intermediate_size": 11264,
    "vocab_size": 65536,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_pct": 1.0,
    "rotary_emb_base": 10000,
    "use_parallel_residual": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "torch_dtype": "float16",
}

FEW_SHOT_TOKENS = 500


@dataclass(frozen=True)
class Workload:
    """Conversations of log-normal lengths: their medians and limits in tokens."""

    shape: dict
    rows: int
    median: int
    prompts: tuple[int, int]
    responses: tuple[int, int]


FULL = Workload(REAL, 8192, 120, (20, 1200), (8, 512))
TINY = Workload(json.loads((DEMO_MODEL / "config.json").read_text()), 24, 40, (20, 120), (4, 24))


def write(folder: Path, workload: Workload) -> None:
    """model/, rows.jsonl, longest-first.jsonl, prefix.json and job.toml; the same whenever it is made."""
    _write_model(folder / "model", workload.shape)
    tokenizer = Tokenizer.load(folder / "model")
    dice = random.Random(0)
    prompts = [_length(dice, workload.median, workload.prompts) for _ in range(workload.rows)]
    responses = [_length(dice, workload.median, workload.responses) for _ in range(workload.rows)]
    rows = [
        {"id": f"row-{number}", "text": text, "sampling": {"max_tokens": response}}
        for number, (text, response) in enumerate(zip(texts(tokenizer, prompts), responses, strict=True))
    ]
    _write_rows(folder / "rows.jsonl", rows)
    _write_rows(folder / "longest-first.jsonl", sorted(rows, key=lambda row: -row["sampling"]["max_tokens"]))
    _write_rows(folder / "few.jsonl", rows[: max(workload.rows // 16, 16)])
    shots = min(FEW_SHOT_TOKENS, workload.shape["max_position_embeddings"] // 4)
    speakers = ["ユーザー", "システム"] * 5
    turns = zip(speakers, texts(tokenizer, [shots // len(speakers)] * len(speakers)), strict=True)
    prefix = [{"speaker": speaker, "text": text} for speaker, text in turns]
    (folder / "prefix.json").write_text(json.dumps(prefix, ensure_ascii=False), encoding="utf-8")
    (folder / "job.toml").write_text(
        '[input]\npath = "rows.jsonl"\n'
        '[model]\npath = "model"\n'
        "[sampling]\ntemperature = 1.0\ntop_p = 0.85\nmax_tokens = 512\nignore_eos = true\n"
        '[engine]\nload_format = "dummy"\n'
        '[output]\npath = "out"\n'
    )


def _write_model(folder: Path, shape: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape, indent=1))
    for name in ("spiece.model", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO_MODEL / name).read_bytes())
    # Weights without a tensor: batchgen wants a file to take the digest of, and with load_format = "dummy" vLLM reads
    # none. (Not zeros: on them a GPU draws less power and runs faster.)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


def _length(dice: random.Random, median: int, limits: tuple[int, int]) -> int:
    low, high = limits
    return round(min(max(median * dice.lognormvariate(0, 0.9), low), high))


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
