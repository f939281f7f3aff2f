"""What a sweep costs beside the same requests as one plain run: 24 settings x 200 rows of the demo.

    python tests/bench/sweep.py WORK [--turns N] [FLAG]...

The plain run has a row for each row and setting, with its own `sampling`. Both are whole commands, in turn; engine time
is that of the command without its engine's start. FLAGs go to both.
"""

import argparse
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset

AXES = {"temperature": [0.3, 0.6, 0.9, 1.2], "top_p": [0.7, 0.85, 1.0], "repetition_penalty": [1.0, 1.1]}
SETTINGS = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
SECONDS = re.compile(r"response tokens in ([\d.,]+) s, engine start ([\d.,]+) s")


def batchgen(*arguments: object) -> str:
    command = [sys.executable, "-m", "batchgen", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def engine_seconds(said: str) -> float:
    found = SECONDS.search(said)
    assert found, said
    whole, start = (float(text.replace(",", "")) for text in found.groups())
    return whole - start


def responses(out: Path, *names: str) -> dict[tuple, tuple]:
    rows = pyarrow.dataset.dataset(out, format="parquet").to_table().to_pylist()
    return {tuple(row[name] for name in names): row["response"] for row in rows}


def plain_rows(swept: Path, demo: Path) -> list[dict]:
    """The rows of the sweep, once for each setting; ids differ, so the seed that each had is the row's own."""
    by_id = {record["id"]: record for record in map(json.loads, (demo / "data" / "conversations.jsonl").open())}
    found = pyarrow.dataset.dataset(swept, format="parquet").to_table(["id", "setting", "seed"]).to_pylist()
    return [
        {
            **by_id[row["id"]],
            "id": f"{row['id']}/{row['setting']}",
            "seed": row["seed"],
            "sampling": SETTINGS[row["setting"]],
        }
        for row in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    given, flags = parser.parse_known_args()
    demo = given.work / "demo"
    batchgen("demo", demo)
    table = "\n".join(f"{key} = {values}" for key, values in AXES.items())
    job = demo / "sweep.toml"
    job.write_text(
        '[input]\npath = "data/conversations.jsonl"\n[model]\npath = "model"\n[output]\npath = "none"\n'
        f"[sampling]\nmax_tokens = 96\n[sweep]\nrows = 200\n{table}\n"
    )
    seconds: dict[str, list[float]] = {"sweep": [], "plain": []}
    for _ in range(given.turns):
        for name in ("swept", "plain"):
            shutil.rmtree(given.work / name, ignore_errors=True)
        seconds["sweep"].append(engine_seconds(batchgen("sweep", job, "--output", given.work / "swept", *flags)))
        rows = plain_rows(given.work / "swept", demo)
        source = given.work / "rows.jsonl"
        source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        arguments = ["--model", demo / "model", "--output", given.work / "plain", "--max-tokens", 96]
        seconds["plain"].append(engine_seconds(batchgen("run", source, *arguments, *flags)))
        swept = {
            f"{id}/{setting}": text for (id, setting), text in responses(given.work / "swept", "id", "setting").items()
        }
        plain = {id: text for (id,), text in responses(given.work / "plain", "id").items()}
        assert swept == plain and len(plain) == 24 * 200, "the responses differ"
    ratios = [one / other for one, other in zip(seconds["sweep"], seconds["plain"], strict=True)]
    print(json.dumps({**seconds, "ratios": ratios, "median": statistics.median(ratios)}, indent=1))


if __name__ == "__main__":
    main()
