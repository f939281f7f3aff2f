"""What our GPT-NeoX gains on vLLM's Transformers backend, which a vLLM from 0.32 on has in its place.

    python tests/bench/gpt_neox.py [--turns N] [--rows N] [FLAG]...

Either runs the demo job by `batchgen bench engine` with FLAGs, by turns, each time in a process of its own. Prints a
line for each turn: response tokens per second of vLLM's bare loop and of the whole pipeline, ours and theirs, and the
ratios; then the medians of the ratios. `cpu` is the ratio of the bare loop's tokens per CPU second, which other
programs on the machine disturb less.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from batchgen import demo
from batchgen.engine.installed import has, versions

IMPLEMENTATIONS = ("vllm", "transformers")  # vLLM's names; from 0.32 on the first is ours


class Figures(NamedTuple):
    """Response tokens per second, and per CPU second."""

    bare: float
    pipeline: float
    cpu: float


def measure(implementation: str, rows: int, flags: list[str]) -> Figures:
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch) / "figures.json"
        job = Path(demo.__file__).parent / "job.toml"
        command = [sys.executable, "-m", "batchgen", "bench", "engine", job, "--temperature", 0, "--rows", rows]
        command += ["--rounds", 1, "--output", f"{scratch}/out", "--json", figures]
        command += ["--engine", f"model_impl={implementation}", *flags]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(figures.read_text())
    [bare], [pipeline] = found["bare"]["rounds"], found["pipeline"]["rounds"]
    rate = "response_tokens_per_second"
    return Figures(bare[rate], pipeline[rate], bare["response_tokens"] / bare["cpu_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000)
    given, flags = parser.parse_known_args()
    if has("gpt_neox"):
        sys.exit(f"vLLM {versions()['vllm']} has a GPT-NeoX of its own; ours is not used")
    ratios = []
    for _ in range(given.turns):
        ours, theirs = (measure(implementation, given.rows, flags) for implementation in IMPLEMENTATIONS)
        ratios.append(Figures(*(mine / other for mine, other in zip(ours, theirs, strict=True))))
        print(*(row("ours", ours, 0), row("Transformers backend", theirs, 0), row("ratio", ratios[-1], 3)), sep="; ")
    print(
        row("medians of the ratios", Figures(*(statistics.median(column) for column in zip(*ratios, strict=True))), 3)
    )


def row(name: str, figures: Figures, digits: int) -> str:
    return " ".join([f"{name}:", *(f"{key} {value:,.{digits}f}" for key, value in figures._asdict().items())])


if __name__ == "__main__":
    main()
