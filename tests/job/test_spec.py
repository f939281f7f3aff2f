"""The job file and its flags: typed, with the nearest valid key in every error."""

import pytest

from batchgen.cli import cli
from batchgen.engine.installed import check_args, versions
from batchgen.errors import JobError
from batchgen.flags import flag_name
from batchgen.job import drift
from batchgen.job.drift import differences
from batchgen.job.spec import OF_SWEEPS, TABLES, keys_of, load

JOB = """
[input]
path = ["a.jsonl", "s3://bucket/b.parquet"]
[model]
path = "/models/sft"
[sampling]
temperature = 0.7
[engine]
max_num_seqs = 128
[output]
path = "out"
"""


@pytest.fixture
def job_file(tmp_path):
    def write(text):
        (tmp_path / "job.toml").write_text(text)
        return str(tmp_path / "job.toml")

    return write


def test_paths_in_a_job_file_start_at_its_folder(job_file, tmp_path):
    spec = load(job_file(JOB), {})
    assert spec.input.path == [str(tmp_path / "a.jsonl"), "s3://bucket/b.parquet"]
    assert spec.model.path == "/models/sft"
    assert spec.output.path == str(tmp_path / "out")


@pytest.mark.parametrize("table", ["input", "output"])
@pytest.mark.parametrize("uri", ["s3:/talks/x", "GS:/talks/x", "az:/talks"])
def test_a_uri_that_lost_a_slash_makes_no_folder_of_that_name(table, uri):
    tables = {"input": {"path": "in.jsonl"}, "model": {"path": "m"}, "output": {"path": "out"}}
    tables[table] = {"path": uri}
    with pytest.raises(JobError, match=f"{uri}: a URI has two slashes; write {uri[:2].lower()}://BUCKET/NAME"):
        load(None, tables)


def test_a_flag_beats_the_file_and_the_rest_stays(job_file):
    spec = load(job_file(JOB), {"sampling": {"temperature": 0.0}, "engine": {"dtype": "float32"}})
    assert spec.sampling.temperature == 0
    assert spec.engine == {"max_num_seqs": 128, "dtype": "float32"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[smapling]\n", "unknown table [smapling]; did you mean sampling?"),
        ("[sampling]\ntemprature = 1\n", "[sampling] temprature: unknown key; did you mean temperature?"),
        ("[output]\nshards = 1\n", "[output] shards: unknown key; did you mean shard_rows?"),
        ("[prompt]\nx = 1\n", "[prompt] x: unknown key; valid are format"),
        ("input = 1\n", "input must be a table: [input]"),
        ("[sampling\n", "not valid TOML"),
        (JOB.replace("0.7", '"hot"'), "[sampling] temperature: expected float, got str"),
        (JOB.replace("0.7", "-1.0"), "[sampling] temperature: expected float >= 0.0"),
        (JOB.replace("0.7", "nan"), "[sampling]"),
        (JOB.replace('path = "out"', ""), "[output] path is missing: set it there or add --output OUT"),
        (JOB.replace('"out"', "7"), "[output] path: expected str, got int"),
        (JOB + "shard_rows = 0\n", "[output] shard_rows: expected int >= 1"),
        (JOB + 'include = ["logits"]\n', "[output] include[0]: invalid enum value 'logits'"),
    ],
)
def test_a_wrong_job_file_is_named_with_the_key(job_file, text, message):
    with pytest.raises(JobError) as caught:
        load(job_file(text), {})
    assert "job.toml: " in str(caught.value)
    assert message in str(caught.value)


def test_no_such_job_file(tmp_path):
    with pytest.raises(JobError, match="no such job file"):
        load(str(tmp_path / "none.toml"), {})


def test_every_key_of_the_job_file_has_a_flag():
    flags = {
        command: {name for option in cli.commands[command].params for name in option.opts}
        for command in ("run", "sweep")
    }
    for table in TABLES:
        for key in keys_of(table):
            assert (table, key) == ("input", "path") or flag_name(table, key) in flags["sweep"]
            assert (flag_name(table, key) in flags["run"]) == (
                flag_name(table, key) in flags["sweep"] and table not in OF_SWEEPS
            )


def test_no_two_keys_share_a_flag():
    names = [flag_name(table, key) for table in TABLES for key in keys_of(table)]
    assert len(names) == len(set(names))


def test_flags_reach_the_spec(batchgen, tmp_path):
    result = batchgen("run", "x.jsonl", "--model", "m", "--output", tmp_path / "o", "--engine", "max_num_seqs")
    assert (result.exit_code, "write KEY=VALUE" in result.stderr) == (2, True)


def test_differences_name_every_field_old_and_new():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 1}, {"e": 2}], "gone": True}
    new = {"a": {"b": 2, "c": [1, 2]}, "d": [{"e": 1}], "new": {}}
    assert differences(old, new) == [
        "a.b: 1 -> 2",
        "d[1].e: 2 -> (none)",
        "gone: true -> (none)",
        "new: (none) -> {}",
    ]


# --- what decides results

# Why a job may go on with another value of it. What another layout or order of the same sums does to the last bits is
# that of another GPU: allowed, as "Another vllm, torch, GPU or noise" is.
MEANS = {
    "async_scheduling": "when the next step is planned, not what is in it",
    "block_size": "how the KV cache is cut into pages",
    "compilation_config": "kernels of the same operations",
    "cpu_offload_gb": "where weights lie",
    "disable_custom_all_reduce": "how GPUs add up their parts",
    "distributed_executor_backend": "what starts the processes of several GPUs",
    "download_dir": "where files of the hub are kept",
    "enable_chunked_prefill": "in how many steps a prompt is read",
    "enable_prefix_caching": "keys and values that are the same are not computed again",
    "enforce_eager": "whether CUDA graphs replay the same kernels",
    "gpu_memory_utilization": "how much room there is for the KV cache",
    "kv_cache_memory_bytes": "how much room there is for the KV cache",
    "load_format": "from which files weights are read; one value makes them up, and is a result",
    "max_cpu_loras": "how many adapters are kept beside the GPU",
    "max_lora_rank": "to how many rows of zeros an adapter's matrices are padded",
    "max_loras": "how many adapters are in one step",
    "max_num_batched_tokens": "how much is done in one step",
    "max_num_seqs": "how many requests run at once",
    "max_parallel_loading_workers": "how weights are loaded",
    "num_gpu_blocks_override": "how much room there is for the KV cache",
    "pipeline_parallel_size": "on how many GPUs the layers lie",
    "scheduling_policy": "whose turn it is",
    "stream_interval": "how often tokens are handed out",
    "tensor_parallel_size": "on how many GPUs each layer lies",
}
OF_OTHER_VLLMS = {
    "max_num_partial_prefills": "how many prompts are read in parts at once",
    "swap_space": "room for KV caches that are moved to the host",
}


def test_every_engine_argument_that_may_change_is_there_for_a_reason():
    assert {*MEANS, *OF_OTHER_VLLMS} == drift.ENGINE_MEANS


def test_every_such_argument_is_one_of_vllms():
    for name in MEANS:
        check_args({name: None})
    if versions()["vllm"] >= "0.31":  # older ones lack others
        for name in OF_OTHER_VLLMS:
            with pytest.raises(JobError, match=f"{name}: vLLM .* has no such argument"):
                check_args({name: None})


@pytest.mark.parametrize(
    ("name", "value", "means"),
    [
        *[("load_format", "auto", True), ("load_format", "safetensors", True), ("load_format", "dummy", False)],
        *[("dtype", "float32", False), ("quantization", "fp8", False), ("kv_cache_dtype", "fp8", False)],
        *[("seed", 1, False), ("hf_overrides", {}, False), ("a_name_of_the_future", 1, False)],
    ],
)
def test_what_engine_arguments_are_results(name, value, means):
    assert drift.is_means(name, value) == means


def spec(**tables):
    given = {"input": {"path": ["in.jsonl"]}, "model": {"path": "m"}, "output": {"path": "out"}}
    return load(None, {name: {**given.get(name, {}), **tables.get(name, {})} for name in {**given, **tables}})


# A value of every key that is not its default.
OTHERS = {
    "input": {"id": "name", "format": "alpaca", "drop_last_response": True},
    "prompt": {
        "format": "raw",
        "template": "{text}",
        "system": "Be short.",
        "prefix": [{"speaker": "ユーザー", "text": "x"}],
        "on_overlength": "clip",
    },
    "output": {"shard_rows": 7, "columns": ["topic"], "include": ["prompt"]},
}


@pytest.mark.parametrize("table", OTHERS)
def test_every_key_of_a_table_is_a_result_or_a_means(table):
    plain = drift.fingerprint(drift.without_defaults(drift.results_of(spec())))
    for key in keys_of(table):
        if key in drift.MEANS[table]:
            assert key not in drift.results_of(spec())[table]
        elif key in OTHERS[table]:
            changed = spec(**{table: {key: OTHERS[table][key]}})
            assert drift.fingerprint(drift.without_defaults(drift.results_of(changed))) != plain
        else:  # a key that is new here is a result by itself
            assert key in drift.results_of(spec())[table]


def test_a_key_that_is_new_changes_nothing_where_it_has_its_default():
    old = {
        "input": {"files": [], "id": "id"},
        "prompt": {"format": "raw"},
        "sampling": {"temperature": 0.5, "top_k": 0},
    }
    new = {"input": {"files": [], "drop_last_response": False}, "prompt": {"format": "raw", "prefix": []}}
    new |= {"sampling": {"temperature": 0.5, "n": 1, "seed": 0, "logprobs": None}}
    assert drift.without_defaults(old) == drift.without_defaults(new)
    asked = {**new, "sampling": {"temperature": 0.5, "logprobs": 0}}
    assert drift.differences(drift.with_defaults(new), drift.with_defaults(asked)) == ["sampling.logprobs: null -> 0"]
    assert drift.without_defaults(asked) != drift.without_defaults(new)


def test_defaults_stay_as_they_were_released():
    """A fingerprint leaves defaults out: one that changes would make old results pass for new ones."""
    kept = {
        "sampling": {
            **{"temperature": 1.0, "top_p": 0.85, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
            **{"presence_penalty": 0.0, "frequency_penalty": 0.0, "max_tokens": 512, "min_tokens": 0},
            **{"ignore_eos": False, "stop": [], "stop_token_ids": [], "include_stop_str_in_output": False},
            **{"bad_words": [], "allowed_token_ids": [], "logit_bias": {}, "structured_outputs": None},
            **{"logprobs": None, "n": 1, "seed": 0},
        },
        "input": {"id": "id", "format": "auto", "drop_last_response": False},
        "prompt": {"format": "auto", "template": "", "system": "", "prefix": [], "on_overlength": "reject"},
        "output": {"shard_rows": 4096, "columns": {}, "include": []},
    }
    for table, values in kept.items():
        assert {key: drift._DEFAULTS[table][key] for key in values} == values
