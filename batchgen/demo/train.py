"""Train the demo model from nothing: `python -m batchgen.demo.train OUT_FOLDER`.

Writes OUT_FOLDER/model, laid out like a rinna checkpoint, and OUT_FOLDER/data, then measures the written
weights on that data. It takes about ten minutes on two CPU cores that compute in bfloat16.
"""

import io
import json
import math
import re
import sys
import time
from collections import Counter, defaultdict
from itertools import groupby
from pathlib import Path
from random import Random
from tempfile import NamedTemporaryFile
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from batchgen.demo.grammar import conversations, held_out_conversations, held_out_sentences

SEED = 1
THREADS = 2
TRAINING_CONVERSATIONS = 300_000
SPIECE_CONVERSATIONS = 30_000
TOKENS_PER_BATCH = 2048
PEAK_LEARNING_RATE = 2e-3
WARM_UP_STEPS = 200
BOS_ID, EOS_ID = 2, 3
SPACE_RUNS = ["▁" * run for run in range(1, 25)]

CONFIG: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "hidden_act": "gelu",
    "hidden_size": 128,
    "initializer_range": 0.06,
    "intermediate_size": 512,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 512,
    "model_type": "gpt_neox",
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": False,
    "vocab_size": 1024,
}
TOKENIZER_CONFIG = {
    "eos_token": "</s>",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "extra_ids": 0,
    "additional_special_tokens": [],
    "sp_model_kwargs": {},
    "bos_token": "<s>",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "do_lower_case": False,
    "tokenizer_class": "T5Tokenizer",
}

Sample = tuple[list[int], list[int]]  # prompt ids, answer ids


def spiece_seeds(words: list[str]) -> Counter[str]:
    """Candidate pieces and their counts: whole English words, and any two to four Japanese letters."""
    seeds: Counter[str] = Counter()
    for word, count in Counter(words).items():
        for run in re.findall(r"[A-Za-z]{2,}", word):
            seeds[run] += count
        for run in re.findall(r"[^\W\d_a-zA-Z]{2,}", word):
            for size in (2, 3, 4):
                for start in range(len(run) - size + 1):
                    seeds[run[start : start + size]] += count
    return seeds


def train_spiece(vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """A unigram model with the special pieces, ids and normalisation of rinna's bilingual models.

    The trainer gets words, as spaces in its text confuse it where "▁" is a piece of its own, and seeds, as it
    finds none that always stand between the same neighbours ("ユーザー").
    """
    words = [
        word
        for record in conversations(SPIECE_CONVERSATIONS, SEED)
        for word in (prompt(record) + record["expected"]).split()
    ]
    model = io.BytesIO()
    with NamedTemporaryFile("w", encoding="utf-8", suffix=".tsv") as seeds:
        seeds.writelines(f"{seed}\t{count}\n" for seed, count in spiece_seeds(words).most_common())
        seeds.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words),
            model_writer=model,
            seed_sentencepieces_file=seeds.name,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc",
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=["[CLS]", "[SEP]", "[MASK]", "\n", "\t", *SPACE_RUNS],
            pad_id=0,
            unk_id=1,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_piece="[PAD]",
            unk_piece="[UNK]",
            bos_piece="<s>",
            eos_piece="</s>",
            num_threads=1,
            minloglevel=1,
        )
    proto = ModelProto.FromString(model.getvalue())
    proto.trainer_spec.ClearField("seed_sentencepieces_file")
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def prompt(record: dict[str, Any]) -> str:
    """The text after which the model writes its response."""
    return "".join(f"{turn['speaker']}: {turn['text']}\n" for turn in record["conversation"]) + "システム: "


def encode(records: list[dict[str, Any]], spiece: sentencepiece.SentencePieceProcessor) -> list[Sample]:
    """Prompt and answer ids of each record, encoded apart as they are when the model generates."""
    prompts = spiece.encode([prompt(record) for record in records])
    answers = spiece.encode([record["expected"] for record in records])
    return [(prompt_ids, [*answer, EOS_ID]) for prompt_ids, answer in zip(prompts, answers, strict=True)]


def batches(samples: list[Sample], rng: Random) -> list[list[Sample]]:
    """Batches of samples of about equal length, in random order; what fills no batch is left out.

    Lengths are rounded up to a multiple of 8, as the CPU kernels are compiled anew for every new shape.
    """
    by_length: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_length[padded_length(sample)].append(sample)
    made = []
    for length, group in by_length.items():
        size = TOKENS_PER_BATCH // length
        made += [group[start : start + size] for start in range(0, len(group) - size + 1, size)]
    rng.shuffle(made)
    return made


def padded_length(sample: Sample) -> int:
    return -(-(len(sample[0]) + len(sample[1])) // 8) * 8


def tensors(batch: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids [samples, length] and, for each, the id that comes next, or -100 outside the answer."""
    inputs = torch.zeros(len(batch), padded_length(batch[0]), dtype=torch.long)
    labels = torch.full_like(inputs, -100)
    for row, (prompt_ids, answer_ids) in enumerate(batch):
        end = len(prompt_ids) + len(answer_ids)
        inputs[row, :end] = torch.tensor(prompt_ids + answer_ids)
        labels[row, len(prompt_ids) - 1 : end - 1] = torch.tensor(answer_ids)
    return inputs, labels


def train(samples: list[Sample]) -> GPTNeoXForCausalLM:
    """A new model after one pass over the samples."""
    torch.manual_seed(SEED)
    # With sequences this short, plain attention is faster on a CPU than the fused one.
    config = GPTNeoXConfig.from_dict(CONFIG, attn_implementation="eager")
    model = GPTNeoXForCausalLM(config)
    schedule = batches(samples, Random(SEED))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    started = time.monotonic()
    for step, batch in enumerate(schedule):
        warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * step / len(schedule)))
        optimizer.param_groups[0]["lr"] = PEAK_LEARNING_RATE * warm_up * cosine
        loss = answer_loss(model, *tensors(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0:
            seconds = time.monotonic() - started
            print(f"step {step:5} of {len(schedule)}  loss {loss.item():.4f}  {seconds:4.0f} s", flush=True)
    return model


def answer_loss(model: GPTNeoXForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss of the answer ids, for what `tensors` returns."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Causal attention never looks right, so the padding there needs no mask.
        logits = model(inputs, use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def rinna_state(model: GPTNeoXForCausalLM) -> dict[str, torch.Tensor]:
    """The weights in float16 under their old names, and the buffers each layer of such a checkpoint has."""
    context = CONFIG["max_position_embeddings"]
    head_size = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    inv_freq = CONFIG["rotary_emb_base"] ** -(torch.arange(0, head_size, 2) / head_size)
    state = {
        name.replace("lm_head.", "embed_out."): weight.half().contiguous()
        for name, weight in model.state_dict().items()
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        attention = f"gpt_neox.layers.{layer}.attention"
        state[f"{attention}.bias"] = torch.ones(1, 1, context, context, dtype=torch.bool).tril()
        state[f"{attention}.masked_bias"] = torch.tensor(-1e9).half()
        state[f"{attention}.rotary_emb.inv_freq"] = inv_freq.half()
    return state


def write_model(folder: Path, model: GPTNeoXForCausalLM, spiece: sentencepiece.SentencePieceProcessor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(rinna_state(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "spiece.model").write_bytes(spiece.serialized_model_proto())
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")


def write_data(folder: Path, records: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "conversations.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def responses(
    model: GPTNeoXForCausalLM, spiece: sentencepiece.SentencePieceProcessor, records: list[dict[str, Any]]
) -> dict[str, str]:
    """The greedy response to each record, by id."""
    prompts = [(record["id"], spiece.encode(prompt(record))) for record in records]
    prompts.sort(key=lambda item: len(item[1]))
    found = {}
    # Prompts of one length form a batch without padding.
    for _, group in groupby(prompts, key=lambda item: len(item[1])):
        ids, rows = zip(*group, strict=True)
        inputs = torch.tensor(rows)
        outputs = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=128,
            pad_token_id=0,
        )
        for id, output in zip(ids, outputs[:, inputs.shape[1] :].tolist(), strict=True):
            found[id] = spiece.decode(output[: output.index(EOS_ID)] if EOS_ID in output else output)
    return found


def measure(folder: Path, records: list[dict[str, Any]], dtype: torch.dtype) -> None:
    """Print how many responses of the written model are exactly right in each direction."""
    spiece = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    found = responses(model, spiece, records)
    for direction, to_english in (("en-ja", False), ("ja-en", True)):
        chosen = [record for record in records if record["expected"].isascii() == to_english]
        wrong = [record for record in chosen if found[record["id"]] != record["expected"]]
        for record in wrong[:5]:
            print(f"  expected {record['expected']}\n  got      {found[record['id']]}")
        share = 1 - len(wrong) / len(chosen)
        print(f"{dtype}  {direction}  {share:.2%} of {len(chosen)} exactly right", flush=True)


def main(folder: Path) -> None:
    torch.set_num_threads(THREADS)
    held_out = list(held_out_conversations())
    spiece = train_spiece(CONFIG["vocab_size"])
    samples = encode(list(conversations(TRAINING_CONVERSATIONS, SEED, held_out_sentences())), spiece)
    model = train(samples)
    write_model(folder / "model", model, spiece)
    write_data(folder / "data", held_out)
    for dtype in (torch.float32, torch.bfloat16):
        measure(folder / "model", held_out, dtype)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
