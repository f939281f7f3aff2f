"""How many workers a run has, and what of the machine each of them gets."""

import dataclasses
import os

import pytest
from conftest import MODEL, demo_records

from batchgen.engine import choice, cpu
from batchgen.host import machine
from batchgen.job.spec import load
from batchgen.runner import division, gpus
from batchgen.runner.prepare import prepare

SIZE = "6 MB model"  # the demo model's weights in float32
GB = 10**9


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Eight cores, 64 GB of memory, no GPUs, vLLM's CPU build, and no settings of this machine."""
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", *machine.OF_SLURM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(machine, "_quotas", lambda: [])
    monkeypatch.setattr(machine, "available_memory", lambda: 64 * GB)
    monkeypatch.setattr(gpus, "visible", lambda: gpus.named(os.environ.get("CUDA_VISIBLE_DEVICES", "")))
    monkeypatch.setattr(division, "needs_gpu", lambda: False)


@pytest.fixture
def job(write_rows, tmp_path):
    def make(workers: int | None = None, **engine):
        output = {"path": str(tmp_path / "out"), **({"workers": workers} if workers else {})}
        tables = {"input": {"path": [str(write_rows(demo_records(1)))]}, "model": {"path": str(MODEL)}}
        return prepare(load(None, {**tables, "output": output, "engine": engine}))

    return make


def threads(number: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(number), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def of_size(job, gigabytes: float, monkeypatch):
    monkeypatch.setattr(cpu, "weight_bytes", lambda *_: int(gigabytes * GB))
    return job


def test_a_small_model_gets_a_worker_for_every_core(job):
    assert division.divide(job(), 100) == ([threads(1)] * 8, f"8 workers (8 cores, {SIZE})")


@pytest.mark.parametrize(("gigabytes", "workers"), [(0.4, 8), (0.6, 4), (1.2, 2), (2.5, 1), (15.2, 1)])
def test_the_larger_the_model_the_more_cores_has_a_worker(job, monkeypatch, gigabytes, workers):
    environments, text = division.divide(of_size(job(), gigabytes, monkeypatch), 100)
    assert environments == ([threads(8 // workers)] * workers if workers > 1 else [{}])
    assert text == f"{workers} worker{'s' * (workers > 1)} (8 cores, {gigabytes} GB model)"


def test_workers_that_do_not_fit_into_the_memory_are_left_out(job, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 6 * GB)
    assert len(division.divide(job(), 100).environments) == 2  # of 1.6 GB each, in 80 % of it
    assert len(division.divide(job(max_num_seqs=1), 100).environments) == 4  # a smaller cache
    assert len(division.divide(job(kv_cache_memory_bytes=GB * 8), 100).environments) == 1


def test_there_are_no_more_workers_than_shards_and_they_have_all_cores(job):
    assert division.divide(job(), 3) == ([threads(2)] * 3, f"3 workers (8 cores, {SIZE})")
    assert division.divide(job(), 1).environments == [{}]


def test_the_number_that_the_user_asks_for_stands(job, monkeypatch):
    assert division.divide(job(3), 100) == ([threads(2)] * 3, f"3 workers (8 cores, {SIZE})")
    assert division.divide(job(20), 100).environments == [threads(1)] * 20
    assert division.divide(of_size(job(2), 15.2, monkeypatch), 100).environments == [threads(4)] * 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"])
def test_what_the_user_says_of_the_threads_of_so_many_workers_stands(job, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    assert division.divide(job(3), 100).environments == [{}, {}, {}]


def test_fewer_threads_than_cores_are_divided_among_the_workers(job, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert division.divide(job(), 100) == ([threads(1)] * 4, f"4 workers (4 cores, {SIZE})")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert division.divide(job(), 100) == ([{}], f"1 worker (1 core, {SIZE})")


def test_whoever_binds_threads_or_splits_the_model_has_one_worker(job, monkeypatch):
    assert division.divide(job(tensor_parallel_size=2), 100).environments == [{}]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-3")
    assert division.divide(job(), 100).environments == [{}]


def test_an_engine_that_is_not_vllm_is_one_worker_of_which_nothing_is_said(job, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, choice.INSTANT)
    assert division.divide(job(), 100) == ([{}], "")
    assert division.divide(job(2), 100) == ([threads(4)] * 2, "")


def test_arguments_that_vllm_will_refuse_are_left_to_it(job):
    assert len(division.divide(job(max_num_seqs="many", kv_cache_memory_bytes=[]), 100).environments) == 8


def test_every_worker_gets_gpus_of_its_own(job, monkeypatch):
    monkeypatch.setattr(division, "needs_gpu", lambda: True)
    monkeypatch.setattr(gpus, "visible", lambda: ["0", "1"])
    bus = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    each = [bus | {"CUDA_VISIBLE_DEVICES": name} for name in "01"]
    assert division.divide(job(), 100) == (each, "2 workers (GPUs 0, 1)")
    assert division.divide(job(1), 100) == (each[:1], "1 worker (GPU 0)")
    assert division.divide(job(), 1) == (each[:1], "1 worker (GPU 0)")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b,c,d,e")
    monkeypatch.setattr(gpus, "visible", lambda: list("abcde"))
    pairs = [{"CUDA_VISIBLE_DEVICES": "a,b"}, {"CUDA_VISIBLE_DEVICES": "c,d"}]
    assert division.divide(job(tensor_parallel_size=2), 100).environments == pairs
    four = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    assert division.divide(job(**four), 100).environments == [{"CUDA_VISIBLE_DEVICES": "a,b,c,d"}]


def test_a_vllm_for_gpus_that_sees_none_is_not_started_more_than_once(job, monkeypatch):
    monkeypatch.setattr(division, "needs_gpu", lambda: True)
    assert division.divide(job(), 100).environments == [{}]


def test_gpus_in_the_environment_do_not_count_for_a_vllm_that_was_built_for_cpus(job, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert division.divide(job(), 100).environments == [threads(1)] * 8
    assert [each["OMP_NUM_THREADS"] for each in division.divide(job(2), 100).environments] == ["4", "4"]
    assert len(division.divide(job(4), 100).environments) == 4


def test_the_cache_on_a_cpu_has_room_for_one_sequence_of_any_context(job):
    """The model with 8,192 tokens of context needs more than the usual limit."""
    large = dataclasses.replace(job().model, kv_width=2 * 36 * 2816)
    assert cpu.settings(large, 8192, {})["kv_cache_memory_bytes"] == 4 * 2 * 36 * 2816 * 8192 > cpu.KV_CACHE
    assert cpu.settings(large, 2048, {})["kv_cache_memory_bytes"] == cpu.KV_CACHE
