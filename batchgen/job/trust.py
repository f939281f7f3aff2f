"""Which of vLLM's EngineArgs are accepted from a job file or a folder's record, which strangers may have written.

Some of the arguments load Python (worker_cls, logits_processors), open endpoints (kv_transfer_config,
otlp_traces_endpoint) or read arbitrary files (log_config_file). So a file may only use those that affect speed and
precision, with plain values. All others, including those of later vLLM versions, must be given on the command line.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from typing import Any

from ..errors import JobError, shown

_PLAIN = frozenset(
    """
    all2all_backend allow_deprecated_quantization async_scheduling attention_backend block_size calculate_kv_scales
    cp_kv_cache_interleave_size cpu_distributed_timeout_seconds cpu_offload_gb cpu_offload_params cuda_graph_sizes
    cudagraph_capture_sizes dbo_decode_token_threshold dbo_prefill_token_threshold dcp_comm_backend
    dcp_kv_cache_interleave_size dcp_q_replicate decode_context_parallel_size disable_cascade_attn
    disable_chunked_mm_input disable_custom_all_reduce disable_hybrid_kv_cache_manager disable_sliding_window
    distributed_timeout_seconds dtype enable_batch_sharded_sampling enable_chunked_prefill enable_dbo
    enable_ep_weight_filter enable_eplb enable_expert_parallel enable_flashinfer_autotune
    enable_mamba_cache_stochastic_rounding enable_prefix_caching enforce_eager expert_placement_strategy
    gdn_prefill_backend gpu_memory_utilization kda_decode_backend kda_prefill_backend kv_cache_dtype
    kv_cache_dtype_skip_layers kv_cache_memory_bytes kv_offloading_size kv_sharing_fast_prefill language_model_only
    linear_backend logprobs_mode long_prefill_token_threshold long_prefill_token_threshold_adaptive mamba_backend
    mamba_block_size mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds mamba_ssm_cache_dtype
    fully_sharded_loras lora_dtype max_cpu_loras max_lora_rank max_loras specialize_active_lora
    max_cudagraph_capture_size max_logprobs max_long_partial_prefills max_model_len max_num_active_seqs
    max_num_batched_tokens max_num_partial_prefills max_num_scheduled_tokens max_num_seqs max_parallel_loading_workers
    mm_processor_cache_gb model_impl moe_backend num_gpu_blocks_override numa_bind numa_bind_cpus numa_bind_nodes
    offload_backend offload_group_size offload_num_in_group offload_params offload_prefetch_step optimization_level
    performance_mode pipeline_parallel_size prefill_context_parallel_size prefill_schedule_interval
    prefix_cache_retention_interval prefix_caching_hash_algo quantization safetensors_load_strategy
    safetensors_prefetch_block_size safetensors_prefetch_num_threads scheduler_reserve_full_isl scheduling_policy seed
    skip_mm_profiling stream_interval swap_space tensor_parallel_size ubatch_size use_fp64_gumbel use_tqdm_on_load
    watermark
    """.split()
)
# Arguments whose value may name a class or a plugin: the values that do not.
_VALUES = {
    "distributed_executor_backend": frozenset({"mp", "uni"}),
    "load_format": frozenset({"auto", "hf", "safetensors", "fastsafetensors", "bitsandbytes", "dummy"}),
}
# Arguments that are tables: the keys that are safe. Any other key may be a path, a class or another model.
_KEYS = {
    "attention_config": frozenset({"backend", "flash_attn_version", "use_trtllm_attention"}),
    "compilation_config": frozenset(
        """
        compile_sizes cudagraph_capture_sizes cudagraph_copy_inputs cudagraph_mode cudagraph_num_of_warmups custom_ops
        full_cuda_graph level max_cudagraph_capture_size mode pass_config use_cudagraph use_inductor
        use_inductor_graph_partition
        """.split()
    ),
    "hf_overrides": frozenset({"max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta"}),
    "limit_mm_per_prompt": frozenset({"audio", "image", "video"}),
    "speculative_config": frozenset({"method", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"}),
    "structured_outputs_config": frozenset(
        {"backend", "disable_additional_properties", "disable_any_whitespace", "disable_fallback"}
    ),
}
_WORD = re.compile(r"[\w+,-]{0,64}", re.ASCII)  # without dot, slash and colon: not a path, class or address


def risks(args: dict[str, Any]) -> list[str]:
    """The arguments that may do more than change speed and precision; `name.key` if a key of a table is the reason."""
    return [risk for name, value in args.items() for risk in _risks(name, value)]


def refuse_risks(args: dict[str, Any], where: str, given: Collection[str] = ()) -> None:
    """Raises JobError if a file uses such an argument. given: names that are on the command line as well."""
    for risk in risks({name: value for name, value in args.items() if name not in given}):
        name = shown(risk.partition(".")[0])
        close = difflib.get_close_matches(name, [*_PLAIN, *_VALUES, *_KEYS], n=1, cutoff=0.85)
        slip = f"; or did you mean {close[0]}?" if close and close[0] != name else ""
        raise JobError(
            f"{where}: [engine] {shown(risk)} may load code, open connections or read other files; "
            f"if you trust it, give it as --engine {name}=... on the command line{slip}"
        )


def _risks(name: str, value: Any) -> Iterable[str]:
    if name in _VALUES:
        return [] if value is None or (isinstance(value, str) and value in _VALUES[name]) else [name]
    if name in _PLAIN:
        return [] if _is_plain(value) else [name]
    if name not in _KEYS:
        return [name]
    if not isinstance(value, dict):
        return [] if _is_plain(value) else [name]  # compilation_config may be a level
    return [f"{name}.{key}" for key, part in value.items() if key not in _KEYS[name] or not _is_plain(part)]


def _is_plain(value: Any, depth: int = 3) -> bool:
    """Whether a value consists of numbers, booleans and words only."""
    if isinstance(value, str):
        return bool(_WORD.fullmatch(value))
    if isinstance(value, list) and depth:
        return all(_is_plain(part, depth - 1) for part in value)
    if isinstance(value, dict) and depth:
        return all(_is_plain(part, depth - 1) for pair in value.items() for part in pair)
    return value is None or isinstance(value, bool | int | float)
