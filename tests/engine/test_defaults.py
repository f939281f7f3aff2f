"""What an engine gets that a job says nothing about: as much at a time as vLLM's own offline class."""

from unittest import mock

import pytest
from conftest import MODEL
from vllm import LLM
from vllm.engine.arg_utils import current_platform
from vllm.v1.engine.llm_engine import LLMEngine

from batchgen.engine.vllm import VllmEngine
from batchgen.model.model import load_model

H100, A100, L4 = ("NVIDIA H100 80GB HBM3", 79), ("NVIDIA A100-SXM4-80GB", 79), ("NVIDIA L4", 22)  # memory in GiB


class Made(BaseException):
    """Ends the making of an engine whose config is ready."""


def scheduler(make) -> tuple[int, int]:
    """How many sequences and tokens at a time the engine gets that `make` makes."""
    configs = []

    def init(self, vllm_config, *_, **__):
        configs.append(vllm_config.scheduler_config)
        raise Made

    with mock.patch.object(LLMEngine, "__init__", init), pytest.raises(Made):
        make()
    return configs[0].max_num_seqs, configs[0].max_num_batched_tokens


@pytest.fixture
def device(monkeypatch):
    """Has vLLM see a GPU of this name and memory; the rest is what it does with one."""

    def put(name: str, memory: int) -> None:
        platform = type(current_platform)
        monkeypatch.setattr(platform, "get_device_name", lambda *_: name)
        monkeypatch.setattr(platform, "get_device_total_memory", lambda *_: memory << 30)
        monkeypatch.setattr(platform, "is_cpu", lambda *_: False)

    return put


def ours_and_theirs() -> tuple[tuple[int, int], tuple[int, int]]:
    model = load_model(str(MODEL))
    theirs = scheduler(lambda: LLM(str(MODEL), skip_tokenizer_init=True, max_model_len=model.context))
    return scheduler(lambda: VllmEngine(model, {}, model.context)), theirs


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [(H100, (1024, 16384)), (A100, (256, 8192)), (L4, (256, 8192))],
    ids=lambda value: value[0].split()[1] if isinstance(value[0], str) else "",
)
def test_a_gpu_s_engine_runs_as_much_at_a_time_as_vllm_s_offline_class(device, gpu, expected):
    device(*gpu)
    ours, theirs = ours_and_theirs()
    assert ours == theirs == expected


def test_a_cpu_s_engine_runs_as_much_at_a_time_as_vllm_s_offline_class():
    ours, theirs = ours_and_theirs()
    assert ours == theirs
