"""The vLLM engine: the only module that imports vLLM. In this room, and nowhere else, torch is imported too.

Written for vLLM 0.26 to 0.33; what depends on the version or the device is here and in installed.py.
"""

import atexit
import copy
import functools
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..errors import JobError, Reject, in_one_line
from ..host import environment, garbage
from ..job.sampling import PARAMETERS, Sampling
from ..model.adapters import Adapter
from ..model.model import Model
from ..model.tokenizer import Tokenizer
from ..prompt.pictures import Picture
from ..prompt.structured_outputs import compile_compact
from . import cpu, lora, noise, scratch
from .installed import ONLY_GREEDY, SPACED_JSON, STRUCTURED_OUTPUTS, V2_RUNNER, has
from .reasoning import ReasoningParser
from .scored import Asked, needs_again, params_of, response_of
from .stop import StopSearch
from .types import Logprobs, Response

if TYPE_CHECKING:
    from .vision import Eyes

GPT_NEOX = "GPTNeoXForCausalLM"  # the architecture, in a config.json

# The part of a GPU's memory that vLLM takes beside BLIP-2's vision, which needs 3 GB: by itself it takes 0.92.
BESIDE_VISION = 0.8

TOKENIZER_MODE = "batchgen"  # the name under which vLLM knows our tokenizer
TRIAL = "trial"  # a request that is not run

# Raised while vLLM reads arguments and a model's config, these are the machine's fault; anything else is the fault of
# what it reads.
MACHINE_FAULTS = (OSError, MemoryError, RuntimeError, ImportError)

# Errors after which the engine takes no request any more, by name: vLLM's and torch's own are imported late.
FATAL_ERRORS = {"EngineDeadError", "AcceleratorError", "OutOfMemoryError", "MemoryError", "OSError", "ZMQError"}


@dataclass(slots=True)
class Searched:
    """A running request with stop texts. logprobs: of its tokens so far."""

    search: StopSearch
    logprobs: Logprobs | None = None


class Unseen(NamedTuple):
    """A request whose images are encoded at the next step, with those of others."""

    request_id: str
    prompt: list[int]
    sampling: Sampling
    seed: int
    adapter: str | None
    images: Sequence[Picture]


class BareRequest(NamedTuple):
    """A request of `bench engine`, ready for vLLM. params: vLLM's SamplingParams."""

    request_id: str
    prompt: list[int]
    params: Any


def install_into_vllm() -> None:
    """Gives vLLM our tokenizer and our seeded sampling, in this process. A process that vLLM spawns needs them too, so
    the main modules of our own processes call this when they are imported there (`__mp_main__`)."""
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers import TokenizerRegistry
    from vllm.v1.sample.ops import topk_topp_sampler

    from . import seeded

    topk_topp_sampler.random_sample = seeded.random_sample
    whole = topk_topp_sampler.apply_top_k_top_p_pytorch
    topk_topp_sampler.apply_top_k_top_p_pytorch = seeded.by_values(getattr(whole, "__wrapped__", whole))
    topk_topp_sampler.TopKTopPSampler.forward_cpu = topk_topp_sampler.TopKTopPSampler.forward_native  # which calls it
    _verify_drafts()
    _compact_json()
    _meet_in_a_file()
    add_gpt_neox()
    if TOKENIZER_MODE not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(TOKENIZER_MODE, "batchgen.model.vllm_tokenizer", "VllmTokenizer")
        RENDERER_REGISTRY.register(TOKENIZER_MODE, "vllm.renderers.hf", "HfRenderer")


@functools.cache
def add_gpt_neox() -> str:
    """Gives vLLM our GPT-NeoX where it has none of its own. Why it cannot, in one line, or nothing: without it vLLM
    takes its Transformers backend."""
    if has("gpt_neox"):
        return ""
    try:
        from .gpt_neox import GPTNeoXForCausalLM
    except Exception as error:  # of whatever a later vLLM has changed
        return f"{type(error).__name__}: {in_one_line(error)}"
    from vllm import ModelRegistry

    # The class itself: of a name alone vLLM would import the module in a process of its own first, in 8 s.
    ModelRegistry.register_model(GPT_NEOX, GPTNeoXForCausalLM)
    return ""


def _compact_json() -> None:
    """With `disable_any_whitespace` vLLM asks xgrammar for JSON with one space after commas and colons up to 0.31, for
    none from 0.32 on, and gets some all the same. Here it is none, but in folders that were begun before."""
    from xgrammar import GrammarCompiler

    original = GrammarCompiler.compile_json_schema
    if os.environ.get(SPACED_JSON) or original.__module__ == __name__:  # was done before
        return

    def compile_json_schema(self: Any, schema: Any, *, any_whitespace: bool = True, **settings: Any) -> Any:
        if any_whitespace:
            return original(self, schema, **settings)
        return compile_compact(self, schema)

    GrammarCompiler.compile_json_schema = compile_json_schema  # type: ignore[method-assign]


def _verify_drafts() -> None:
    """With speculative decoding too, tokens are our draw's."""
    from vllm.v1.sample import rejection_sampler

    from . import seeded

    if rejection_sampler.rejection_sample is not seeded.verified:
        sampler = rejection_sampler.RejectionSampler
        sampler.forward = seeded.behind_drafts(sampler.forward)
        rejection_sampler.rejection_sample = seeded.verified
        rejection_sampler.expand_batch_to_tokens = seeded.of_tokens


def _meet_in_a_file() -> None:
    """Up to 0.27 an engine's processes find each other by torch's TCPStore, which listens on all interfaces whatever
    address it is given (vLLM's issue 52638). From 0.28 on they use a file, after which their shared memory is named on
    a CPU."""
    from vllm.v1.executor import multiproc_executor, uniproc_executor

    for executor in (multiproc_executor, uniproc_executor):
        name = "get_file_store_init_method" if has("file_meeting") else "get_distributed_init_method"
        setattr(executor, name, meeting_place)


def meeting_place(*address: object) -> str:
    """Where an engine's processes meet, for torch. Older vLLMs name shared memory after what follows the last colon."""
    name = os.environ.get(scratch.VARIABLE)
    place = Path(tempfile.gettempdir(), f"dist:{name or 'vllm'}.{uuid.uuid4().hex}")
    if not name:  # or else it goes with the scratch folder
        atexit.register(place.unlink, missing_ok=True)
    return f"file://{place}"


class VllmEngine:
    """A vLLM LLMEngine; an Engine of types.py. On a GPU it runs in a process of its own, on a CPU in this one."""

    def __init__(self, model: Model, args: dict[str, Any], context: int):
        """Raises JobError if vLLM refuses the arguments; anything else is the machine's fault."""
        os.environ.update(environment.of_engine())
        with garbage.not_collected():
            from vllm import SamplingParams
            from vllm.platforms import current_platform
            from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

            install_into_vllm()
        self._sampling_params = SamplingParams
        self._structured_outputs = StructuredOutputsParams
        self._final_only = RequestOutputKind.FINAL_ONLY
        self._every_token = RequestOutputKind.DELTA
        self._searched: dict[str, Searched] = {}
        self._scored: dict[str, Asked] = {}
        self._unseen: list[Unseen] = []
        self._latest: tuple[Sampling | None, Any] = None, None
        self._tokenizer = model.tokenizer
        self._guesses_ahead = bool(args.get("speculative_config"))
        self.warnings: list[str] = []
        with _offline():
            self._engine = self._start(model, args, context, current_platform.is_cpu())
            self._adapters = {adapter.name: self.load_adapter(adapter) for adapter in model.adapters}
        config = self._engine.vllm_config
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        self.device: str = current_platform.get_device_name()
        self.model_impl = _model_impl(config.model_config.architecture)
        self._check_draw(model)
        self._eyes = self._eyes_of(model)

    def _eyes_of(self, model: Model) -> "Eyes | None":
        if not (model.vision or model.takes_images):
            return None
        from vllm.platforms import current_platform

        from .vision import MiniGpt4, OfVllm

        if not model.vision:
            return OfVllm(self._engine)

        assert isinstance(model.tokenizer, Tokenizer)
        config = self._engine.vllm_config.model_config
        device = "cuda" if current_platform.is_cuda_alike() else "cpu"
        return MiniGpt4(model.vision, model.tokenizer.pad_id, config.get_hidden_size(), config.dtype, device)

    def _start(self, model: Model, args: dict[str, Any], context: int, on_cpu: bool) -> Any:
        """vLLM's LLMEngine, with ours in it."""
        self._reasoning = _reasoning_parser(model, args)
        return _started(_config(model, args, context, on_cpu))

    def _check_draw(self, model: Model) -> None:
        """Finds out which sampler draws, and what the user should know of this engine."""
        config, prompt = self._engine.vllm_config, model.tokenizer.eos_ids[0]
        self.sampler, warnings = noise.checked(
            self._engine, noise.of_engine(config), self.params, prompt, model.vocab_size
        )
        self.warnings = _warnings(model, config.model_config) + warnings

    def check(self, sampling: Sampling) -> None:
        """Raises JobError for what vLLM, having read the model, would refuse of every request of the job."""
        if sampling.thinking_token_budget is None:
            return
        try:
            self.add(TRIAL, [0], Sampling(thinking_token_budget=sampling.thinking_token_budget, max_tokens=1), 0)
        except Reject as why:
            raise JobError(f"[sampling] vLLM refuses: {why.detail}") from None
        self._engine.abort_request([TRIAL])

    def add(
        self,
        request_id: str,
        prompt: list[int],
        sampling: Sampling,
        seed: int,
        adapter: str | None = None,
        scored: int = 0,
        images: Sequence[Picture] = (),
    ) -> None:
        """Queues one request. Raises Reject(engine_error) if vLLM refuses it, for whatever reason; any other exception
        is the engine's end."""
        if scored:
            self._scored[request_id] = Asked(prompt, scored, adapter)
        if self._guesses_ahead and sampling.temperature > 0 and self.sampler.runner == "V2":
            raise Reject("engine_error", f"speculative_config: {ONLY_GREEDY}")
        if images:
            self._unseen.append(Unseen(request_id, prompt, sampling, seed, adapter, images))
            return
        with self._refusals(request_id):
            self._engine.add_request(
                request_id,
                {"type": "token", "prompt_token_ids": prompt},
                self._scoring(may_read_cache=True) if scored else self.params(sampling, seed),
                lora_request=self._adapters[adapter] if adapter else None,
            )
        if sampling.stop:
            self._searched[request_id] = Searched(StopSearch(sampling, self._tokenizer.decode))

    @contextmanager
    def _refusals(self, request_id: str) -> Iterator[None]:
        """Wraps what gives vLLM a request. Raises Reject(engine_error) for what is the request's own fault."""
        try:
            yield
        except BaseException as error:  # of vLLM and its parts; VLLMValidationError is no ValueError
            is_panic = type(error).__name__ == "PanicException"  # of Rust's tokenizers, not derived from Exception
            if not is_panic and (not isinstance(error, Exception) or self._is_broken(error)):
                raise
            with suppress(Exception):
                self._engine.abort_request([request_id])  # the front end may hold it already
            self._scored.pop(request_id, None)
            raise Reject("engine_error", _one_line(error)) from None

    def _see(self) -> list[Response]:
        """Queues the requests with images that came since the last step; the responses of those that vLLM refuses."""
        unseen, self._unseen = self._unseen, []
        assert self._eyes
        self._eyes.look_at(picture for each in unseen for picture in each.images)
        refused = []
        for request_id, prompt, sampling, seed, adapter, images in unseen:
            try:
                with self._refusals(request_id):
                    self._engine.add_request(
                        request_id,
                        self._eyes.prompt(prompt, images),
                        self.params(sampling, seed),
                        lora_request=self._adapters[adapter] if adapter else None,
                    )
            except Reject as why:
                refused.append(Response(request_id, [], why.detail))
                continue
            if sampling.stop:
                self._searched[request_id] = Searched(StopSearch(sampling, self._tokenizer.decode))
        return refused

    def load_adapter(self, adapter: Adapter) -> Any:
        """vLLM's LoRARequest of an adapter, which is loaded now, so that one that vLLM refuses costs no request. Raises
        JobError."""
        try:
            return lora.load(self._engine, adapter)
        except Exception as error:
            if self._is_broken(error):
                raise
            what = f"vLLM refuses {adapter.folder}: {_one_line(error)}"
            raise JobError(f"[model] adapter {adapter.name}: {what}") from None

    def _is_broken(self, error: Exception) -> bool:
        """Whether an error is the engine's, not one request's."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        ended = any(not process.is_alive() for process in multiprocessing.active_children())
        return ended or bool(kinds & FATAL_ERRORS)

    def params(self, sampling: Sampling, seed: int | None) -> Any:
        """vLLM's SamplingParams of one request. Raises ValueError if vLLM refuses them."""
        # Most rows share one Sampling, and vLLM takes 30 us to check one.
        if sampling is not self._latest[0]:
            self._latest = sampling, self._params(sampling)
        params = copy.copy(self._latest[1])
        params.seed = None if sampling.temperature == 0 else seed
        if wanted := sampling.structured_outputs:  # a copy for each request, as vLLM changes it while it checks it
            params.structured_outputs = self._structured_outputs(**msgspec.structs.asdict(wanted))
        return params

    def _params(self, sampling: Sampling) -> Any:
        """What requests with the same parameters share: all but the seed and the structured outputs."""
        values = {each.name: getattr(sampling, each.name) for each in PARAMETERS if each.goes_to_vllm}
        # Empty lists vLLM would refuse, and names that are not used a vLLM may lack.
        values = {name: value for name, value in values.items() if value not in (None, [], {})}
        if wanted := sampling.repetition_detection:
            from vllm.sampling_params import RepetitionDetectionParams

            values["repetition_detection"] = RepetitionDetectionParams(**msgspec.structs.asdict(wanted))
        # Which ids end a response is ours to say, whatever this vLLM takes from the model's files.
        values["stop_token_ids"] = [*sampling.stop_token_ids, *([] if sampling.ignore_eos else self._tokenizer.eos_ids)]
        values["structured_outputs"] = None  # each request gets its own
        output_kind = self._every_token if sampling.stop else self._final_only
        return self._sampling_params(**values, detokenize=False, output_kind=output_kind)

    def step(self) -> list[Response]:
        """One step of all running requests; the responses that it finished."""
        responses = self._see() if self._unseen else []
        if responses and not self._engine.has_unfinished_requests():
            return responses  # vLLM would wait for ever
        for output in self._engine.step():
            completion = output.outputs[0]
            if asked := self._scored.get(output.request_id):
                responses += self._score(output.request_id, asked, output)
                continue
            searched = self._searched.get(output.request_id)
            if searched is not None:
                response = self._search(output.request_id, searched, completion)
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
                responses.append(self._reasoned(response, output) if self._reasoning else response)
        return responses

    def _score(self, request_id: str, asked: Asked, output: Any) -> list[Response]:
        """The response of a scored request, or nothing if it has to be made again."""
        if not output.finished:
            return []
        if needs_again(asked, output):
            adapter = self._adapters[asked.adapter] if asked.adapter else None
            prompt = {"type": "token", "prompt_token_ids": asked.prompt}
            params = self._scoring(may_read_cache=False)
            self._engine.add_request(request_id, prompt, params, lora_request=adapter)
            return []
        del self._scored[request_id]
        return [response_of(request_id, asked, output)]

    def _scoring(self, may_read_cache: bool) -> Any:
        """vLLM's SamplingParams of a scored request."""
        return params_of(self._sampling_params, self._final_only, may_read_cache)

    def _reasoned(self, response: Response, output: Any) -> Response:
        """The response with its text split by the job's reasoning parser. A text at which that fails fails the
        request."""
        assert self._reasoning
        try:
            return replace(response, reasoned=self._reasoning.split(output.prompt_token_ids, response))
        except MemoryError:
            raise
        except Exception as error:
            return replace(response, finish_reason=f"reasoning_parser: {_one_line(error)}")

    def _search(self, request_id: str, searched: Searched, new: Any) -> Response | None:
        """Looks for stop texts in a request's new tokens; the response, if they end it."""
        search, logprobs = searched.search, _logprobs(new.logprobs, new.token_ids)
        for position, token in enumerate(new.token_ids):
            if logprobs is not None:
                searched.logprobs = [*(searched.logprobs or []), logprobs[position]]
            text_end = search.take(token)
            last = position == len(new.token_ids) - 1
            if text_end is not None and not (last and new.finish_reason == "stop"):  # a stop token has no text
                del self._searched[request_id]
                if not new.finish_reason:
                    self._engine.abort_request([request_id])
                return Response(request_id, search.token_ids, "stop", searched.logprobs, text_end)
        if not new.finish_reason:
            return None
        del self._searched[request_id]
        return Response(request_id, search.token_ids, str(new.finish_reason), searched.logprobs)

    def when_process_dies(self, tell: Callable[[str], None]) -> None:
        """Calls `tell` with the reason once a process of the engine has died, in which case `step` may never return."""
        processes = multiprocessing.active_children()
        if processes:
            threading.Thread(target=_wait_for_death, args=(processes, tell), daemon=True).start()

    # --- for `bench engine`

    def bare_request(self, request_id: str, prompt: list[int], sampling: Sampling, seed: int) -> BareRequest:
        """A request for `run_bare`."""
        return BareRequest(request_id, prompt, self.params(sampling, seed))

    def run_bare(self, requests: Sequence[BareRequest], window: int) -> tuple[dict[str, int], int]:
        """vLLM's own loop, with none of our work in it: all requests, at most `window` of them in the engine at a time.
        Tokens of each response by request id, and the number of steps. Stop texts are not looked for."""
        tokens: dict[str, int] = {}
        added = steps = 0
        while len(tokens) < len(requests):
            while added < len(requests) and added - len(tokens) < window:
                request_id, prompt, params = requests[added]
                self._engine.add_request(request_id, {"type": "token", "prompt_token_ids": prompt}, params)
                added += 1
            steps += 1
            for output in self._engine.step():
                tokens[output.request_id] = len(output.outputs[0].token_ids)
        return tokens, steps

    def forget_prompts(self) -> None:
        """Empties the prefix cache, which would answer for the prompts of the round before."""
        end = time.monotonic() + 10
        while self._engine.reset_prefix_cache() is False:  # blocks are freed one step after the last token
            if time.monotonic() > end:
                raise RuntimeError("the prefix cache cannot be emptied")
            time.sleep(0.01)


def _wait_for_death(processes: list[multiprocessing.Process], tell: Callable[[str], None]) -> None:
    ended = multiprocessing.connection.wait([process.sentinel for process in processes])
    process = next(process for process in processes if process.sentinel in ended)
    process.join()
    tell(f"its process {process.name} ended with exit code {process.exitcode}")


def _reasoning_parser(model: Model, args: dict[str, Any]) -> ReasoningParser | None:
    """The one that the job names, if it does. Raises JobError."""
    if not (name := args.get("reasoning_parser")):
        return None
    from vllm.tokenizers import get_tokenizer

    mode = TOKENIZER_MODE if isinstance(model.tokenizer, Tokenizer) else "auto"
    return ReasoningParser(name, get_tokenizer(str(model.folder), tokenizer_mode=mode), model.tokenizer)


def _config(model: Model, args: dict[str, Any], context: int, on_cpu: bool) -> Any:
    """vLLM's VllmConfig. Raises JobError if vLLM refuses the arguments."""
    from vllm import EngineArgs
    from vllm.config import StructuredOutputsConfig

    if on_cpu:
        # V2 has a noise of its own, and would take over wherever Triton has a backend for CPUs.
        os.environ[V2_RUNNER] = "0"
        # Within this process the engine starts in 2 to 10 s, in one of its own in 24 to 33 s (0.31, 2 cores). On a GPU
        # the separate process stays: there it overlaps our work with the GPU's.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    settings: dict[str, Any] = {"structured_outputs_config": STRUCTURED_OUTPUTS, "max_model_len": context}
    settings |= cpu.settings(model, context, args) if on_cpu else args
    settings |= lora.settings(model, args, on_cpu) if model.adapters else {}
    settings |= {"model": str(model.folder), "config_format": "hf", "generation_config": "vllm"}
    settings |= {"disable_log_stats": True}
    if model.vision:
        settings |= (
            {"enable_prompt_embeds": True} | ({} if on_cpu else {"gpu_memory_utilization": BESIDE_VISION}) | args
        )
    if isinstance(model.tokenizer, Tokenizer):
        settings["tokenizer_mode"] = TOKENIZER_MODE
    try:
        structured = StructuredOutputsConfig(**settings.pop("structured_outputs_config"))
        checked = EngineArgs(**settings, structured_outputs_config=structured)
        config = checked.create_engine_config(_offline_use())
    except MACHINE_FAULTS:
        raise
    except Exception as error:  # pydantic, transformers and others raise errors of their own kinds
        raise JobError(f"[engine] vLLM refuses: {_one_line(error)}") from None
    _check_model(config.model_config, model.folder)
    if model.adapters:
        lora.check_takes_adapters(config.model_config)
    return config


def _model_impl(architecture: str) -> str:
    """Whose implementation runs a model that vLLM has resolved to this architecture."""
    if architecture.startswith("Transformers"):
        return "transformers"
    return "batchgen" if architecture == GPT_NEOX and not has("gpt_neox") else "vllm"


def _warnings(model: Model, config: Any) -> list[str]:
    """What a user should know of the engine that vLLM made of this ModelConfig."""
    why = add_gpt_neox()
    if not why or model.model_type != "gpt_neox" or config.model_impl == "transformers":
        return []
    return [
        f"batchgen's GPT-NeoX does not go with this vLLM ({why}); its Transformers backend, which is slower, runs it"
    ]


def _started(config: Any) -> Any:
    """vLLM's LLMEngine. Raises JobError if this machine cannot run weights that are quantized as the model's are."""
    from vllm import LLMEngine

    try:
        return LLMEngine.from_vllm_config(config, _offline_use(), disable_log_stats=True)
    except Exception as error:
        method = config.model_config.quantization
        if not method or config.device_config.device_type != "cpu" or type(error).__name__ in FATAL_ERRORS:
            raise
        raise JobError(f"vLLM cannot run the model's {method} weights on this CPU: {_one_line(error)}") from None


def _offline_use() -> Any:
    """vLLM's UsageContext of its LLM class. Without one it takes its smallest defaults: on an H100 128 sequences and
    2,048 tokens at a time instead of 1,024 and 16,384 (0.26 to 0.32)."""
    from vllm.usage.usage_lib import UsageContext

    return UsageContext.LLM_CLASS


@contextmanager
def _offline() -> Iterator[None]:
    """An engine that is made here sees no hub, in whatever process it runs. The worker itself may read its input from
    one."""
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
    """Raises JobError if vLLM, having read the model's config, would load other files than those that were checked."""
    for what in ("model", "tokenizer", "model_weights", "hf_config_path"):
        path = getattr(config, what, None)
        if path and str(path) != str(folder):
            raise JobError(f"{folder}: by its config vLLM would take the {what} from {path}, which was not checked")


def _logprobs(steps: Any, token_ids: Sequence[int]) -> Logprobs | None:
    """From vLLM's dicts, one per token: the sampled token first, the others by falling probability."""
    if not steps:
        return None
    pairs = []
    for token, step in zip(token_ids, steps, strict=True):
        others = sorted((-value.logprob, other) for other, value in step.items() if other != token)
        pairs.append([(token, step[token].logprob), *((other, -negative) for negative, other in others)])
    return pairs


def _one_line(error: BaseException) -> str:
    """An error's text in one line; of a pydantic report the first error with its field."""
    if callable(listed := getattr(error, "errors", None)):
        first = listed()[0]
        return f"{first['loc'][0] if first['loc'] else 'arguments'}: {first['msg']}"
    return in_one_line(error)
