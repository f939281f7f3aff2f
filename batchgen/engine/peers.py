"""What a user would run instead of batchgen, as `bench peers` runs it: every way a process of its own, which reads the
same rows and leaves its results in a folder. Nothing of ours is put into vLLM here.

    python -m batchgen.engine.peers WAY ORDER.json
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..host.lifeline import die_with_parent

# What a peer runs besides vLLM, by the package that has to be installed.
PACKAGES = {
    "generate": "vllm",
    "generate-as-it-comes": "vllm",
    "run-batch": "vllm",
    "datatrove": "datatrove",
    "ray": "ray",
}


class Order(msgspec.Struct):
    """What a peer is asked for.

    model: a folder, in the form of Hugging Face
    rows: a JSON file of lists: row number, prompt, token ids of it, sampling parameters by vLLM's names, seed
    out: the folder for results
    context: most tokens of prompt and response together
    settings: vLLM's EngineArgs
    """

    model: str
    rows: str
    out: str
    context: int
    settings: dict[str, Any]

    def read(self) -> list[tuple[int, str, list[int], dict[str, Any], int]]:
        return [tuple(row) for row in json.loads(Path(self.rows).read_bytes())]

    def flags(self) -> dict[str, Any]:
        """Names of vLLM's flags."""
        return {name.replace("_", "-"): value for name, value in self.settings.items()}

    def ready(self) -> None:
        """Marks the moment in which the engine is up."""
        Path(f"{self.out}.ready").touch()


def body(prompt: str, sampling: dict[str, Any], seed: int) -> dict[str, Any]:
    """Of a request to an OpenAI server: the model's template passes the prompt on as it is."""
    return {"messages": [{"role": "user", "content": prompt}], **sampling, "seed": seed}


def generate(order: Order) -> None:
    """`LLM.generate` on the whole list, token ids in and out."""
    from vllm import LLM, SamplingParams

    rows = order.read()
    llm = LLM(order.model, skip_tokenizer_init=True, max_model_len=order.context, **order.settings)
    order.ready()
    prompts: Any = [{"prompt_token_ids": ids} for _, _, ids, _, _ in rows]
    params = [SamplingParams(**sampling, seed=seed, detokenize=False) for _, _, _, sampling, seed in rows]
    done = llm.generate(prompts, params, use_tqdm=False)
    lines = ({"row": row[0], "ids": list(each.outputs[0].token_ids)} for row, each in zip(rows, done, strict=True))
    Path(order.out, "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def run_batch(order: Order) -> None:
    """vLLM's own batch command, in place of this process."""
    source = Path(f"{order.out}.requests.jsonl")
    with source.open("w") as lines:
        for row, prompt, _, sampling, seed in order.read():
            asked = {"model": order.model, **body(prompt, sampling, seed)}
            line = {"custom_id": str(row), "method": "POST", "url": "/v1/chat/completions", "body": asked}
            lines.write(json.dumps(line) + "\n")
    flags = ["-i", str(source), "-o", f"{order.out}/results.jsonl", "--model", order.model]
    for name, value in {"max-model-len": order.context, **order.flags()}.items():
        flags += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "vllm.entrypoints.openai.run_batch", *flags])


def datatrove(order: Order) -> None:
    """datatrove's InferenceRunner with checkpoints, before a vLLM server that it starts."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter

    asked = {str(row): body(prompt, sampling, seed) for row, prompt, _, sampling, seed in order.read()}

    def documents(*_: Any) -> Iterator[Any]:
        yield from (Document(text=" ", id=row) for row in asked)

    async def rollout(document: Any, send: Any) -> Any:
        return await send(asked[document.id])

    config = InferenceConfig(
        server_type="vllm",
        model_name_or_path=order.model,
        model_max_context=order.context,
        model_kwargs={"host": "127.0.0.1", **order.flags()},
        server_log_folder=f"{order.out}.server",
    )
    runner = InferenceRunner(
        rollout_fn=rollout,
        config=config,
        output_writer=JsonlWriter(order.out, output_filename="results-${rank}-${chunk_index}.jsonl", compression=None),
        checkpoints_local_dir=f"{order.out}.checkpoints",
        records_per_chunk=250,
    )
    LocalPipelineExecutor([documents, runner], tasks=1, logging_dir=f"{order.out}.logs").run()


def ray(order: Order) -> None:
    """Ray Data LLM on tokenized prompts, in 8 blocks."""
    import ray as of_ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    of_ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    rows = [
        {"row": row, "ids": ids, "sampling": {**sampling, "seed": seed}} for row, _, ids, sampling, seed in order.read()
    ]
    # Without this it waits for a GPU for ever.
    on_a_cpu = "kv_cache_memory_bytes" in order.settings
    place = {"placement_group_config": {"bundles": [{"CPU": 1}]}} if on_a_cpu else {}
    config = vLLMEngineProcessorConfig(
        model_source=order.model,
        engine_kwargs={"max_model_len": order.context, **order.settings},
        batch_size=256,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        **place,
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "row": row["row"],
            "prompt": "",
            "tokenized_prompt": row["ids"],
            "sampling_params": row["sampling"],
        },
        postprocess=lambda row: {"row": row["row"], "ids": row["generated_tokens"]},
    )
    processor(of_ray.data.from_items(rows, override_num_blocks=8)).write_json(order.out)


def main() -> None:
    die_with_parent()  # which a program that takes the place of this one keeps
    way, path = sys.argv[1:]
    order = msgspec.json.decode(Path(path).read_bytes(), type=Order)
    Path(order.out).mkdir()
    run = {"run-batch": run_batch, "datatrove": datatrove, "ray": ray}.get(way, generate)
    run(order)


if __name__ == "__main__":
    main()
