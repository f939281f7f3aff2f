"""Which GPUs there are, and how workers share them."""

import pytest

from batchgen.errors import JobError
from batchgen.runner import gpus

TWO = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-7f57f032-34ab-a064-c37c-7a4f75601cc5)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-8c7c9c30-f12f-20bf-e14e-d3c4c965af32)
"""
MIG = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.5gb      Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-9a1c7f10-0f6e-4a43-8f0e-2f6f4f1b7c55)
"""
OLD_MIG = """\
GPU 0: A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb Device 0: (UUID: MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/1/0)
"""


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No GPUs of this machine."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def nvidia_smi(tmp_path):
    def put(lines: str, code: int = 0) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 2\nprintf %s "{lines}"\nexit {code}\n')
        tool.chmod(0o755)

    return put


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("0,1,3", ["0", "1", "3"]),
        ("3, 1", ["3", "1"]),
        ("GPU-7f57f032,GPU-8c7c9c30", ["GPU-7f57f032", "GPU-8c7c9c30"]),
        ("MIG-GPU-5d5ba0d6-d33d/1/0", ["MIG-GPU-5d5ba0d6-d33d/1/0"]),
        ("", []),
        ("-1", []),
        ("2,-1,0", ["2"]),
        ("NoDevFiles", []),  # Slurm, for a job without GPUs
    ],
)
def test_cuda_visible_devices_is_taken_as_it_is(monkeypatch, nvidia_smi, names, expected):
    nvidia_smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert gpus.visible() == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (TWO, ["0", "1"]),
        (MIG, ["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb", "1"]),
        (OLD_MIG, ["MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/1/0"]),
        ("No devices found.\n", []),
    ],
)
def test_otherwise_nvidia_smi_is_asked_and_mig_devices_stand_for_their_gpu(nvidia_smi, lines, expected):
    nvidia_smi(lines)
    assert gpus.visible() == expected


def test_a_nvidia_smi_that_fails_or_is_not_there_means_no_gpus(nvidia_smi):
    assert gpus.visible() == []
    nvidia_smi(TWO, code=9)
    assert gpus.visible() == []


@pytest.mark.parametrize(
    ("workers", "each", "line"),
    [
        (3, 1, "[output] workers: 3 workers need 3 GPUs, and 2 can be seen; ask for 2 or fewer"),
        (2, 2, "[output] workers: 2 workers need 4 GPUs, and 2 can be seen; ask for 1 or fewer"),
        (
            None,
            4,
            "[engine] tensor_parallel_size times pipeline_parallel_size: a worker needs 4 GPUs, and 2 can be seen",
        ),
    ],
)
def test_too_few_gpus_are_one_clear_line(workers, each, line):
    with pytest.raises(JobError) as caught:
        gpus.shares(["0", "1"], workers, each)
    assert str(caught.value) == line
