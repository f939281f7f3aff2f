"""How long a page about many rows takes, in how much memory, and how large it is.

    python report.py [ROWS] [FOLDER]

FOLDER, a temporary one if it is not given, keeps the output folder, which takes longer to make than the page.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from reported import answered, response

SHARD_ROWS = 10_000
WORDS = (
    "東京 大阪 駅 飛行機 は の に 着きます arrives at noon on June the bullet train from ticket please 円 ドル".split()
)


def shards(rows: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of 10 to 60 words, as any job has them."""
    chance = random.Random(1)
    for begin in range(0, rows, SHARD_ROWS):
        yield [_row(row, chance) for row in range(begin, min(begin + SHARD_ROWS, rows))]


def _row(row: int, chance: random.Random) -> dict[str, Any]:
    asked, said = (" ".join(chance.choices(WORDS, k=chance.randint(10, 60))) for _ in range(2))
    reason = "length" if chance.random() < 0.02 else "stop"
    turns = [{"speaker": "ユーザー", "text": asked}]
    return response(row, said, conversation=turns, finish_reason=reason, response_tokens=len(said) // 3)


def made(folder: Path, rows: int) -> Path:
    out = folder / f"out-{rows}"
    return out if out.exists() else answered(out, shards(rows), rows=rows, shard_rows=SHARD_ROWS)


def measured(outs: list[Path], page: Path) -> dict[str, float]:
    """seconds, peak memory in MB and size in MB of `batchgen report`, in a process of its own."""
    arguments = ["report", *map(str, outs), "--to", str(page), "--overwrite"]
    # Its own peak: what wait4 gives begins with that of the process that forked it.
    program = (
        f"from batchgen.cli import cli; cli({arguments!r}, standalone_mode=False)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    peak = int(process.stdout.read().splitlines()[-1])
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    assert status == 0
    return {
        "seconds": round(took, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(peak * 1024 / 1e6),
        "page_mb": round(page.stat().st_size / 1e6, 2),
    }


def main(rows: int, folder: Path) -> None:
    out = made(folder, rows)
    print("one output ", json.dumps(measured([out], folder / "page.html")), flush=True)
    print("two outputs", json.dumps(measured([out, out], folder / "both.html")), flush=True)


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    if len(sys.argv) > 2:
        main(number, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(number, Path(temporary))
