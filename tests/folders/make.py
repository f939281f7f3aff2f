"""Makes the folders of the version that is installed: python tests/folders/make.py [VERSION]

Run it before a release, on a machine without GPU, and commit what it makes; a folder once released is never made again.
Inputs are those of 0.1.0, so that what versions make can be compared.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from batchgen import __version__
from batchgen.output.record import fingerprint

HERE = Path(__file__).parent
INPUTS = HERE / "0.1.0"
LATER = HERE / "later"
MODEL = HERE.parent.parent / "batchgen" / "demo" / "model"
PLACES = ("/FOLDERS", "/MODEL")  # what stands for them in the files

# name -> its input and flags
JOBS = {
    "finished": (
        "finished.jsonl",
        "--temperature .8 --max-tokens 32 --shard-rows 8 --seed 7 --n 2 --logprobs 1 "
        "--column topic --column score --column tags --include prompt",
    ),
    "parquet": (
        "parquet.parquet",
        "--temperature 0 --max-tokens 16 --shard-rows 4 --column when --column kind --column count",
    ),
    "grown": ("night.jsonl", "--incremental --temperature 1 --max-tokens 24 --shard-rows 4"),
    "interrupted": (
        "interrupted.jsonl",
        "--temperature 1.0 --max-tokens 200 --ignore-eos --shard-rows 20 --engine max_num_seqs=4",
    ),
}
# The same for what came later; their inputs are in `later/`.
LATER_JOBS = {  # since 0.3.0
    "translated": (
        "translated.jsonl",
        "--template {text} --translate-fields messages[*].content --translate-from English --translate-into Japanese "
        "--translate-protect url --temperature 1.5 --shard-rows 4 --seed 3",
    ),
    "scored": (
        "scored.jsonl",
        "--score-mode choices --score-column choices --score-reference answer --score-tokens --shard-rows 4",
    ),
}
FIRST_NIGHT = 5  # lines


def command(place: Path, name: str, model: Path = MODEL) -> list[str]:
    """The arguments of `batchgen run` that made a folder in `place`."""
    source, flags = (JOBS | LATER_JOBS)[name]
    return [str(place / source), "--model", str(model), "--output", str(place / name), *flags.split()]


def put_places(place: Path, old: str, new: str) -> None:
    """Replaces paths in the files that have some, and seals these again."""
    for path in [*place.glob("*/_job.json"), *place.glob("*/_state/grown/*.json")]:
        table = json.loads(path.read_text("utf-8").replace(f'"{old}', f'"{new}'))
        table.pop("digest")
        table["digest"] = fingerprint(table)
        path.write_text(json.dumps(table, ensure_ascii=False, indent=1), "utf-8")


def make(to: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        sources = [
            *(INPUTS / source for source, _ in JOBS.values()),
            *(LATER / source for source, _ in LATER_JOBS.values()),
        ]
        for source in sources:
            shutil.copy(source, place)
        whole = (place / "night.jsonl").read_bytes()
        (place / "night.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:FIRST_NIGHT]))
        for name in ("finished", "parquet", "grown", *LATER_JOBS):
            _run(place, name).wait()
        (place / "night.jsonl").write_bytes(whole)
        _run(place, "grown").wait()
        _interrupt(place)
        for source in sources:
            shutil.copy(source, to)
        put_places(place, str(place), PLACES[0])
        put_places(place, str(MODEL), PLACES[1])
        for name in (*JOBS, *LATER_JOBS, "interrupted.expected"):
            shutil.copytree(place / name, to / name, ignore=shutil.ignore_patterns("*.log", "quarantine"))


def _run(place: Path, name: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "batchgen", "run", *command(place, name)])


def _interrupt(place: Path) -> None:
    """A job that is killed in its second shard, with responses in the journal, and what it makes of it later."""
    out, aside = place / "interrupted", place / "aside"
    run = _run(place, "interrupted")
    while not any(path.stat().st_size > 2000 for path in _journals(out)):
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    time.sleep(1)  # its worker dies with it
    shutil.copytree(out, aside)
    _run(place, "interrupted").wait()
    (place / "interrupted.expected").mkdir()
    for path in out.glob("part-*"):
        shutil.copy(path, place / "interrupted.expected")
    shutil.rmtree(out)
    aside.rename(out)


def _journals(out: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from (out / "_state" / "journal").glob("part-00001.*")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    target = HERE / (sys.argv[1] if len(sys.argv) > 1 else __version__)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    make(target)
    print(f"made {target}")
