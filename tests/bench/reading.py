"""What reading a file shard by shard costs beside one plain pass, by format: python tests/bench/reading.py [ROWS]

Prints a line a format: MB on disk, seconds to plan, of one pass, of a pass over all shards, and their ratio, which is
to stay below 1.3. Medians of five rounds by turns.
"""

import csv
import gzip
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.input.plan import Plan, Shard, plan_input
from batchgen.input.rows import Reader

SHARD_ROWS = 512
ROUNDS = 5


def write(folder: Path, rows: list[dict]) -> list[Path]:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    (folder / "c.json").write_bytes(json.dumps(rows).encode())
    with (folder / "d.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["id", "text"])
        table.writeheader()
        table.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "e, one row group.parquet", row_group_size=len(rows))
    return sorted(folder.iterdir())


def read(plan: Plan, shards: list[Shard]) -> None:
    reader = Reader(plan, ["id", "text"])
    assert sum(1 for shard in shards for _ in reader.read(shard)) == plan.rows


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
    rows = [{"id": str(number), "text": f"{number}: " + "月曜日に hello world " * 20} for number in range(count)]
    print(f"{'':26}{'MB':>8}{'plan':>8}{'once':>8}{'shards':>8}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        for path in write(Path(scratch), rows):
            planned = seconds(lambda: plan_input([str(path)], SHARD_ROWS))  # noqa: B023
            plan = plan_input([str(path)], SHARD_ROWS)
            whole = [Shard(0, 1, 0, plan.rows, 0, plan.shards[0].position)]
            timed = [
                [seconds(lambda: read(plan, shards)) for shards in (whole, plan.shards)]  # noqa: B023
                for _ in range(ROUNDS)
            ]
            once, sharded = (statistics.median(column) for column in zip(*timed, strict=True))
            size = path.stat().st_size / 1e6
            print(f"{path.name:26}{size:8.1f}{planned:8.2f}{once:8.3f}{sharded:8.3f}{sharded / once:8.2f}")


if __name__ == "__main__":
    main()
