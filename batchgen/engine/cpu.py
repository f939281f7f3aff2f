"""How engines share a machine without a GPU: how many there are, on how many threads, and how much runs in each.

A small model gains by processes, as most of a step is work that one thread does (Python, scheduling, sampling); a big
one by threads, as its weights are then in memory once and read once a step. Measured on 2 cores (AMD EPYC, vLLM 0.32,
response tokens per second at 256 sequences):

    parameters   float32    1 process, 1 thread   1 process, 2 threads   2 processes, 1 thread each
    1.0 million  4 MB                     8,017                 10,338                       14,403
    6.8 million  27 MB                    3,207                  4,744                        4,875
    26 million   105 MB                     939                  1,368                        1,561
    87 million   346 MB                     246                    362                          418
    304 million  1.2 GB                                             97                           94

So a worker gets a core for each started half a gigabyte of weights, and there are as many as the cores suffice for. All
weights together are then below half a gigabyte per core; workers that do not fit into the memory are left out.
"""

from typing import Any

from ..model import model_files
from ..model.model import Model

WEIGHTS_PER_CORE = 1 << 29  # bytes
PROCESS = 1 << 30  # bytes of a worker without its weights and KV cache
SPARE = 0.8  # the part of the memory that is available which workers may take

# float16 weights would otherwise run in half precision or bfloat16, slower and less exact on most CPUs.
DTYPE = "float32"
# As many as vLLM's LLM class runs on a CPU: the demo job was generated in 10.1 s, with 64 in 13.1 s (2 cores).
SEQUENCES = 256
# Small, so that the model's weights and the user's other programs fit beside it.
KV_CACHE = 4 << 30  # bytes


def workers(weights: int, cache: int, cores: int, memory: int) -> int:
    """How many workers pay. weights, cache: bytes of each of them; memory: bytes that they may fill."""
    each = PROCESS + weights + cache
    by_cores = cores // (1 + weights // WEIGHTS_PER_CORE)
    by_memory = int(SPARE * memory / each)
    return max(1, min(by_cores, by_memory))


def cache_bytes(model: Model, context: int, args: dict[str, Any]) -> int:
    """Bytes of an engine's KV cache. args: [engine] of the job."""
    return _number(settings(model, context, args), "kv_cache_memory_bytes", KV_CACHE)


def settings(model: Model, context: int, args: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an engine without a GPU: those of the job, and our defaults for vLLM's CPU build."""
    longest = 4 * model.kv_width * context  # bytes of one sequence, in float32
    sequences = _number(args, "max_num_seqs", SEQUENCES)
    return {
        "dtype": DTYPE,
        "max_num_seqs": SEQUENCES,
        # A seeded request that is prefilled in chunks kills the engine ("CPU Generator does not use offset").
        "enable_chunked_prefill": False,
        # Compiling needs a C++ compiler and a minute, and gains little on a CPU.
        "enforce_eager": True,
        # By default vLLM takes 92 % of the machine's memory, and fails if others use some of it.
        "kv_cache_memory_bytes": min(max(KV_CACHE, longest), longest * sequences),
    } | args


def _number(args: dict[str, Any], name: str, default: int) -> int:
    """The default for what is no number too: vLLM will refuse it."""
    value = args.get(name)
    return value if isinstance(value, int) and value > 0 else default


def weight_bytes(model: Model, args: dict[str, Any]) -> int:
    """Bytes of the weights in an engine's memory, of which a file in 16 bits has half if they are float32 there."""
    files = sum((model.folder / name).stat().st_size for name in model.weights if name in model.digests)
    config = model_files.read_table(model.folder / "config.json")
    kept = config.get("dtype", config.get("torch_dtype"))
    widened = kept in ("float16", "bfloat16") and args.get("dtype", DTYPE) == "float32" and not model.quantization
    seen_by = sum(path.stat().st_size for path in model.vision.weights) if model.vision else 0
    return (2 * files if widened else files) + 2 * seen_by
