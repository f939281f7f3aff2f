"""Score a batchgen output folder of the demo data: `python -m batchgen.demo.score OUT`."""

import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset

from ..host import terminal

SHOWN = 6


def rows(folder: Path) -> list[dict[str, Any]]:
    """The generated rows. Names that begin with "_" are no part of a pyarrow dataset."""
    dataset = pyarrow.dataset.dataset(folder, format="parquet")
    return dataset.to_table(columns=["conversation", "response", "expected"]).to_pylist()


def score(folder: Path) -> tuple[int, int]:
    """How many responses are exactly as expected, and how many responses there are."""
    results = rows(folder)
    return sum(row["response"] == row["expected"] for row in results), len(results)


def main(folder: Path) -> None:
    for row in rows(folder)[:SHOWN]:
        print(f"{terminal.line(row['conversation'][-1]['text'])}\n  -> {terminal.line(row['response'])}")
    right, total = score(folder)
    print(f"{right} of {total} translations are exactly right ({right / max(total, 1):.1%})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
