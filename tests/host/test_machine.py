"""Cores and memory that a process may use, by what the system, a container, Slurm or the user says."""

import os
from pathlib import Path

import pytest

from batchgen.host import machine

GIB = 1 << 30


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """16 cores, 32 GiB that are free, no containers and no settings of this machine."""
    for name in ("OMP_NUM_THREADS", *machine.OF_SLURM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    for name, content in (("MEMORY", f"MemTotal: 99 kB\nMemAvailable: {32 << 20} kB\n"), ("OWN_CGROUPS", "0::/\n")):
        (tmp_path / name).write_text(content)
        monkeypatch.setattr(machine, name, tmp_path / name)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(content + "\n")


def test_all_that_the_system_gives(tmp_path):
    assert (machine.cores(), machine.available_memory()) == (16, 32 * GIB)


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({"OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "64"}, 16),
        ({"OMP_NUM_THREADS": ""}, 16),
        ({"OMP_NUM_THREADS": "all"}, 16),
        ({"SLURM_CPUS_ON_NODE": "8"}, 8),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2"}, 2),
        ({"SLURM_CPUS_ON_NODE": "8", "OMP_NUM_THREADS": "3"}, 3),
    ],
)
def test_fewer_cores_by_the_environment(monkeypatch, variables, cores):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert machine.cores() == cores


@pytest.mark.parametrize(
    ("outer", "inner", "cores"),
    [
        ("max 100000", "200000 100000", 2),
        ("400000 100000", "max 100000", 4),
        ("100000 50000", "800000 100000", 2),
        ("50000 100000", "max 100000", 1),  # half a core
        ("max 100000", "max 100000", 16),
    ],
)
def test_a_container_s_quota(tmp_path, outer, inner, cores):
    machine.OWN_CGROUPS.write_text("0::/pod/box\n")
    group(machine.CGROUPS / "pod", cpu_max=outer)
    group(machine.CGROUPS / "pod/box", cpu_max=inner)
    assert machine.cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 16)])
def test_a_container_s_quota_in_cgroups_of_version_1(quota, cores):
    """Its path is the host's, and the container sees its own group as the root."""
    machine.OWN_CGROUPS.write_text("9:name=systemd:/\n3:cpu,cpuacct:/docker/0f3a\n2:memory:/docker/0f3a\n")
    group(machine.CGROUPS / "cpu", cpu_cfs_quota_us=quota, cpu_cfs_period_us="100000")
    assert machine.cores() == cores


def test_the_memory_that_is_left_in_a_container():
    machine.OWN_CGROUPS.write_text("0::/box\n")
    stat = f"anon 1\ninactive_file {GIB}\nactive_file {GIB}"
    group(machine.CGROUPS / "box", memory_max=f"{8 * GIB}", memory_current=f"{5 * GIB}", memory_stat=stat)
    assert machine.available_memory() == 5 * GIB  # 3 that nobody uses, and 2 of files that are only cached
    (machine.CGROUPS / "box/memory.max").write_text("max\n")
    assert machine.available_memory() == 32 * GIB


def test_the_memory_that_is_left_in_a_container_of_version_1():
    machine.OWN_CGROUPS.write_text("4:memory:/box\n")
    stat = f"inactive_file 7\ntotal_inactive_file {GIB}"
    files = {"limit_in_bytes": f"{4 * GIB}", "usage_in_bytes": f"{2 * GIB}", "stat": stat}
    group(machine.CGROUPS / "memory/box", **{f"memory_{name}": content for name, content in files.items()})
    assert machine.available_memory() == 3 * GIB
