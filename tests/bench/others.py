"""What a user would run instead of batchgen, on the same prompts, lengths and sampling.

    python others.py WORK/job.toml RESULT.json generate [--chunk N] [--rows N] [--engine JSON]
    python others.py WORK/job.toml RESULT.json transformers [--batch N]... [--rows N] [--seconds S]

`generate` is vllm.LLM.generate with token ids in and out: on the whole list at once, or chunk by chunk, as a loop that
saves its results now and then does. `transformers` is the loop of the model's card, one prompt at a time; with
`--batch`, prompts are padded on the left, and the best of the sizes counts. Tokens that a batch makes for a row beyond
its own max_tokens are not counted. Weights are made up, so they differ between the two, and speed does not.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

from batchgen.input.rows import read_rows
from batchgen.job.spec import load
from batchgen.model.model import Model
from batchgen.runner.prepare import prepare
from batchgen.task.generate import Prompted


def read(job_file: str, rows: int | None) -> tuple[Model, int, list[Prompted]]:
    job = prepare(load(job_file, {}))
    read = (row for planned in job.plan.shards for row in read_rows(job.plan, planned, job.task.columns_read))
    return job.model, job.context, [job.task.prepare_row(row) for row in itertools.islice(read, rows)]


def generate(model: Model, context: int, items: list[Prompted], chunk: int | None, engine: dict) -> dict:
    from vllm import LLM, SamplingParams

    begin = time.perf_counter()
    llm = LLM(str(model.folder), load_format="dummy", skip_tokenizer_init=True, max_model_len=context, seed=0, **engine)
    start = time.perf_counter() - begin
    prompts = [{"prompt_token_ids": each.prompt_token_ids} for each in items]
    params = [
        SamplingParams(
            temperature=each.sampling.temperature,
            top_p=each.sampling.top_p,
            max_tokens=each.sampling.max_tokens,
            ignore_eos=True,
            seed=each.requests[0].seed,
            detokenize=False,
        )
        for each in items
    ]
    llm.generate(prompts[:256], params[:256], use_tqdm=False)  # warm up, as batchgen's own bench
    llm.reset_prefix_cache()
    size = chunk or len(items)
    tokens = 0
    begin = time.perf_counter()
    for first in range(0, len(items), size):
        done = llm.generate(prompts[first : first + size], params[first : first + size], use_tqdm=False)
        tokens += sum(len(each.outputs[0].token_ids) for each in done)
    seconds = time.perf_counter() - begin
    return {
        "response_tokens_per_second": round(tokens / seconds, 1),
        "rows": len(items),
        "engine_start": round(start, 2),
    }


def transformers(model: Model, items: list[Prompted], batches: list[int], seconds: float) -> dict:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model.folder)).eval()
    torch.set_default_dtype(torch.float32)
    rates = {}
    for batch in batches:
        _respond(network, items[:batch], device, 4)  # warm up
        rates[batch] = round(_rate(network, items, batch, device, seconds), 1)
    best = max(rates, key=lambda batch: rates[batch])
    return {
        "response_tokens_per_second": rates[best],
        "batch": best,
        "of_batches": {str(batch): rate for batch, rate in rates.items()},
    }


def _rate(network, items: list[Prompted], batch: int, device: str, seconds: float) -> float:
    """Tokens per second over whole batches, for about so long."""
    tokens = 0
    begin = time.perf_counter()
    for first in range(0, len(items), batch):
        tokens += _respond(network, items[first : first + batch], device)
        if time.perf_counter() - begin > seconds:
            break
    return tokens / (time.perf_counter() - begin)


def _respond(network, items: list[Prompted], device: str, most: int = 10**9) -> int:
    """Generates for a batch until its longest response is there; the tokens that its rows asked for."""
    import torch

    width = max(len(each.prompt_token_ids) for each in items)
    padding = [width - len(each.prompt_token_ids) for each in items]
    ids = torch.tensor([[0] * pad + each.prompt_token_ids for pad, each in zip(padding, items, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding])
    length = min(most, max(each.sampling.max_tokens for each in items))
    with torch.inference_mode():
        network.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            do_sample=True,
            temperature=items[0].sampling.temperature,
            top_p=items[0].sampling.top_p,
            max_new_tokens=length,
            min_new_tokens=length,
            pad_token_id=0,
        )
    if device == "cuda":
        torch.cuda.synchronize()
    return sum(min(each.sampling.max_tokens, length) for each in items)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job_file")
    parser.add_argument("result", type=Path)
    parser.add_argument("way", choices=["generate", "transformers"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--engine", type=json.loads, default={})
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    model, context, items = read(given.job_file, given.rows)
    if given.way == "generate":
        figures = generate(model, context, items, given.chunk, given.engine)
    else:
        figures = transformers(model, items, given.batch or [1], given.seconds)
    given.result.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
