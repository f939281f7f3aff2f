"""What of [engine] a job file or a folder's record may ask for: how fast and how exact, nothing that runs or opens."""

import ast
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from conftest import MODEL, demo_records
from processes import instant

from batchgen.engine.installed import versions
from batchgen.host import environment
from batchgen.job import trust
from batchgen.output import record as records
from batchgen.output.store import at
from batchgen.runner.worker_process import _offline

PLUGIN = {"backend": "xgrammar", "reasoning_parser_plugin": "plugin.py"}

# Arguments that run code, open connections, read or write files, or load another model than the one that was checked.
RISKY = {
    "trust_remote_code": True,
    "worker_cls": "evil.Worker",
    "worker_extension_cls": "evil.Extension",
    "logits_processors": ["evil.Processor"],
    "scheduler_cls": "evil.Scheduler",
    "distributed_executor_backend": "evil.Executor",
    "io_processor_plugin": "evil",
    "reasoning_parser_plugin": "plugin.py",
    "log_config_file": "log.json",
    "otlp_traces_endpoint": "http://there:4317",
    "kv_transfer_config": {"kv_connector": "P2pNcclConnector"},
    "kv_events_config": {"endpoint": "tcp://*:5557"},
    "ec_transfer_config": {"ec_connector": "x"},
    "weight_transfer_config": {"backend": "x"},
    "profiler_config": {"torch_profiler_dir": "/tmp"},
    "additional_config": {"x": 1},
    "data_parallel_address": "0.0.0.0",
    "model_loader_extra_config": {"x": 1},
    "load_format": "a_plugins",
    "download_dir": "/tmp",
    "quantization": "../x",
    "quantization_config": {"x": 1},
    "allowed_local_media_path": "/",
    "default_mm_loras": {"image": "somebody/else"},
    "structured_outputs_config": PLUGIN,
    "compilation_config": {"backend": "evil.compile"},
    "speculative_config": {"model": "somebody/else", "num_speculative_tokens": 2},
    "hf_overrides": {"auto_map": {"AutoConfig": "evil.Config"}},
    "attention_config": {"backend": "a.b"},
    "a_name_of_the_future": 1,
}
HARMLESS = {
    "max_num_seqs": 8,
    "gpu_memory_utilization": 0.5,
    "dtype": "float32",
    "kv_cache_dtype": "fp8_e4m3",
    "quantization": "fp8",
    "seed": 3,
    "cudagraph_capture_sizes": [1, 2, 4],
    "attention_backend": "FLASH_ATTN",
    "distributed_executor_backend": "mp",
    "load_format": "dummy",
    "max_loras": 4,
    "max_lora_rank": 64,
    "structured_outputs_config": {"backend": "xgrammar"},
    "compilation_config": {"mode": 3, "custom_ops": ["none", "+rms_norm"], "pass_config": {"fuse_norm_quant": True}},
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4},
    "hf_overrides": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "limit_mm_per_prompt": {"image": 0},
}
OF_OTHER_VLLMS = {
    *("calculate_kv_scales", "cuda_graph_sizes", "max_long_partial_prefills", "max_num_partial_prefills", "swap_space")
}


@pytest.fixture
def job(write_rows, tmp_path):
    """A job file with this [engine]."""

    def write(**args) -> Path:
        source = write_rows(demo_records(3))
        tables = {"input": {"path": str(source)}, "model": {"path": str(MODEL)}, "output": {"path": "out"}}
        tables |= {"sampling": {"max_tokens": 3}, "engine": args}
        lines = [
            [f"[{table}]", *(f"{key} = {toml(v)}" for key, v in values.items())] for table, values in tables.items()
        ]
        (tmp_path / "job.toml").write_text("\n".join(line for table in lines for line in table))
        return tmp_path / "job.toml"

    return write


def toml(value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize("name", RISKY)
def test_an_argument_that_does_more_is_refused_in_a_job_file(batchgen, job, name):
    result = batchgen("plan", job(**{name: RISKY[name]}))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert f"[engine] {name}" in result.stderr
    assert f"if you trust it, give it as --engine {name}=... on the command line" in result.stderr


def test_arguments_of_speed_and_precision_are_taken_from_a_job_file(batchgen, job):
    result = batchgen("plan", job(**HARMLESS))
    assert (result.exit_code, result.stderr) == (0, "")


def test_every_such_argument_is_one_of_vllms():
    source = Path(importlib.util.find_spec("vllm").origin).parent / "engine" / "arg_utils.py"
    [args] = [
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"
    ]
    names = {node.target.id for node in args.body if isinstance(node, ast.AnnAssign)}
    if versions()["vllm"] >= "0.31":  # older ones lack others
        assert {*trust._PLAIN, *trust._VALUES, *trust._KEYS} - names == OF_OTHER_VLLMS


def test_a_slip_is_told_with_the_nearest_name(batchgen, job):
    assert batchgen("plan", job(max_num_seq=8)).stderr.endswith("; or did you mean max_num_seqs?\n")


def test_the_command_line_may_have_any_argument(batchgen, job):
    path = job(worker_cls="evil.Worker", max_num_seqs=8)
    assert batchgen("plan", path, "--engine", "worker_cls=mine.Worker").exit_code == 0


@pytest.mark.parametrize("name", ["hf_config_path", "model_weights", "revision", "config_format"])
def test_nobody_may_have_another_model_loaded_than_the_one_that_was_checked(batchgen, job, name):
    result = batchgen("plan", job(), "--engine", f"{name}=x")
    assert (result.exit_code, "batchgen sets this itself" in result.stderr) == (2, True)


def test_nobody_may_have_weights_loaded_that_were_not_digested(batchgen, job):
    result = batchgen("plan", job(), "--engine", "load_format=pt")
    assert (result.exit_code, "loads files that batchgen does not check" in result.stderr) == (2, True)


# --- folders


def given(args: dict) -> list[str]:
    return [part for name, value in args.items() for part in ("--engine", f"{name}={toml(value)}")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of a job that was run with such an argument, and what was made with it."""
    place = tmp_path_factory.mktemp("made")
    source = place / "in.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in demo_records(3)))
    return place, ["run", source, "--model", MODEL, "--max-tokens", 3, *given({"structured_outputs_config": PLUGIN})]


@pytest.fixture
def out(made, batchgen_process, tmp_path):
    place, command = made
    if not (place / "out").exists():
        done = batchgen_process(*command, "--output", place / "out", env=instant(place / "instant"))
        assert done.returncode == 0, done.stderr
    return shutil.copytree(place / "out", tmp_path / "out")


@pytest.mark.parametrize(
    "command",
    [
        lambda out: ["verify", out, "--replay", 1],
        lambda out: ["retry", out, "--only", "length", "--output", out.with_name("new")],
    ],
    ids=["verify --replay", "retry"],
)
def test_a_folders_record_has_nothing_run_that_its_receiver_does_not_ask_for(
    out, batchgen, batchgen_process, tmp_path, command
):
    refused = batchgen(*command(out))
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.stderr
    risk = "[engine] structured_outputs_config.reasoning_parser_plugin"
    assert refused.stderr.startswith(f"batchgen: {out}/_job.json: {risk} may load code")
    asked = given({"structured_outputs_config": {"backend": "xgrammar"}})
    done = batchgen_process(*command(out), *asked, env=instant(tmp_path / "instant"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("replayed: 1 of 1 responses are the same\n") or "done: 3 rows" in done.stdout


def test_a_check_that_runs_no_engine_needs_no_trust(out, batchgen):
    assert batchgen("verify", out).exit_code == 0
    assert batchgen("verify", out, *given({"seed": 1})).stderr.startswith("batchgen: --engine: is for --replay")


def test_a_run_without_the_argument_of_the_first_is_told_of_the_difference(out, made, batchgen):
    command = [*made[1][:-2], "--output", out]
    result = batchgen(*command)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[1].startswith("  engine.structured_outputs_config.backend: ")


@pytest.fixture
def telling(tmp_path):
    """An environment in which workers write down with what arguments and environment they make their engine."""
    environment = instant(tmp_path / "instant")
    with (tmp_path / "instant" / "sitecustomize.py").open("a") as hook:
        hook.write(f"""
    import json, os
    make = Instant.__init__
    def tell(self, model, args, context):
        open({str(tmp_path / "told")!r}, "w").write(json.dumps([args, dict(os.environ)]))
        make(self, model, args, context)
    Instant.__init__ = tell
""")
    return environment


def test_workers_have_their_arguments_from_the_command_line_whatever_the_record_says(
    out, made, telling, batchgen_process, tmp_path
):
    table = json.loads((out / "_job.json").read_text())
    del table["digest"]
    table["spec"]["engine"] = {"worker_cls": "evil.Worker"}
    (out / "_job.json").write_text(json.dumps({**table, "digest": records.fingerprint(table)}))
    next(out.glob("part-*")).unlink()
    done = batchgen_process(*made[1], "--output", out, env=telling)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "told").read_text())[0] == {"structured_outputs_config": PLUGIN}


# --- no hub


def test_workers_have_no_hub_and_tell_nobody(made, telling, batchgen_process, tmp_path):
    loud = {"VLLM_NO_USAGE_STATS": "0", "VLLM_DO_NOT_TRACK": "0", "HF_HUB_OFFLINE": "0"}
    done = batchgen_process(*made[1], "--output", tmp_path / "out", env=telling | loud)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "told").read_text())[1]
    expected = environment.of_engine() | environment.OFFLINE
    assert {name: found[name] for name in expected} == expected


def test_workers_keep_the_hub_that_their_input_is_on(out):
    plan = records.read_job(at(out)).plan
    assert _offline(SimpleNamespace(plan=plan)) == environment.OFFLINE
    plan.files[0] = msgspec.structs.replace(plan.files[0], path="hf://datasets/a/b/c.jsonl")
    assert _offline(SimpleNamespace(plan=plan)) == {}
