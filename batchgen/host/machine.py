"""How much of this machine a process may use: cores and memory, within what its container, Slurm or its user allows."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS, MEMORY = Path("/proc/self/cgroup"), Path("/proc/meminfo")

# Set in a job of Slurm, the first one only where it was asked for. Without its plugin task/affinity a job may run on
# all cores of its node, whatever it was given.
OF_SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")


def cores() -> int:
    """The cores that this process may keep busy: those that it may run on, fewer if its container has a smaller quota,
    Slurm gave it fewer, or OMP_NUM_THREADS is less."""
    given = [_number("OMP_NUM_THREADS"), next(filter(None, map(_number, OF_SLURM)), 0)]
    return max(1, min([len(os.sched_getaffinity(0)), *_quotas(), *filter(None, given)]))


def cpu() -> str:
    """What the CPU is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def available_memory() -> int:
    """Bytes that new processes may fill, in this machine or its container."""
    free = _table(MEMORY)["MemAvailable:"] << 10
    return max(0, min([free, *_left_in_cgroups()]))


def _number(variable: str) -> int:
    """Of the environment; 0 if there is none. OpenMP's may have several levels: "4,2"."""
    text = os.environ.get(variable, "").partition(",")[0].strip()
    return int(text) if text.isdecimal() else 0


def _quotas() -> Iterator[int]:
    """The CPU time that each cgroup around this process may use, in cores."""
    for folder in _cgroups("cpu"):
        quota, period = (
            _words(folder / "cpu.max")
            or [
                *_words(folder / "cpu.cfs_quota_us"),
                *_words(folder / "cpu.cfs_period_us"),
            ]
            or ["", ""]
        )
        if quota.isdecimal():  # not "max" (version 2) or "-1" (version 1): no limit
            yield int(quota) // int(period)


def _left_in_cgroups() -> Iterator[int]:
    """Bytes that are left in each cgroup around this process. What lies in its page cache gives way."""
    for folder in _cgroups("memory"):
        for limit, used, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            if (most := "".join(_words(folder / limit))).isdecimal():
                cache = _table(folder / "memory.stat")
                files = sum(cache.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
                yield int(most) - int(_words(folder / used)[0]) + files


def _cgroups(controller: str) -> Iterator[Path]:
    """The folder of this process's cgroup, and those above it: every one may have a limit. Of version 1, which has a
    tree for each controller, or 2; within a container the path may be that of the host, and is not there."""
    for line in OWN_CGROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        tree = CGROUPS / controller if controllers else CGROUPS
        own = tree / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(tree))


def _words(path: Path) -> list[str]:
    """Empty if there is no such file."""
    try:
        return path.read_text().split()
    except OSError:
        return []


def _table(path: Path) -> dict[str, int]:
    """A number by name, from lines of both; a unit after them is left out."""
    try:
        return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines()) if len(words) > 1}
    except OSError:
        return {}
