"""Whether results on this machine are what they should be, with whole `batchgen` commands.

    python checks.py WORK RESULT.json demo [FLAG]...      the demo job: greedy tokens against those of a CPU, a kill -9
                                                          and resume, verify --replay
    python checks.py WORK RESULT.json replay [FLAG]...    a sampled run of WORK/job.toml, and verify --replay
    python checks.py WORK demo-cpu.json.gz record         writes the greedy tokens of this machine

FLAGs go to `batchgen run`.
"""

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset

RECORDED = Path(__file__).parent / "demo-cpu.json.gz"
ITEMS = 50


def batchgen(*arguments: object) -> str:
    done = subprocess.run([sys.executable, "-m", "batchgen", *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"batchgen {' '.join(map(str, arguments))}: exit code {done.returncode}")
    return done.stdout


def table(out: Path, *columns: str) -> list[dict]:
    return pyarrow.dataset.dataset(out, format="parquet").to_table(columns=list(columns)).to_pylist()


def tokens(out: Path) -> dict[str, list[int]]:
    return {row["id"]: row["response_token_ids"] for row in table(out, "id", "response_token_ids")}


def demo(work: Path, flags: list[str]) -> dict:
    batchgen("demo", work / "demo")
    out, killed = work / "demo-out", work / "demo-killed"
    for folder in (out, killed):
        shutil.rmtree(folder, ignore_errors=True)
    command = ["run", work / "demo" / "job.toml", "--include", "response_token_ids", *flags, "--output"]
    summary = batchgen(*command, out)
    ours, theirs = tokens(out), json.loads(gzip.decompress(RECORDED.read_bytes()))
    right = sum(row["response"] == row["expected"] for row in table(out, "response", "expected"))
    in_time = kill_while_it_runs([*command, killed], killed)
    batchgen(*command, killed)
    batchgen("verify", killed)
    again = tokens(killed)
    return {
        "rows": len(ours),
        "same_tokens_as_cpu": sum(ours[id] == theirs[id] for id in ours),
        "exactly_right": right,
        "summary": summary.splitlines()[-1],
        "killed_before_its_end": in_time,
        "same_after_kill_and_resume": sum(again[id] == ours[id] for id in ours),
        "replayed": replayed(out),
    }


def kill_while_it_runs(command: list[object], out: Path) -> bool:
    """kill -9 of the supervisor once the first responses are journaled; its workers go with it. Whether in time."""
    process = subprocess.Popen([sys.executable, "-m", "batchgen", *map(str, command)])
    while process.poll() is None:
        if any(path.stat().st_size > 100 for path in (out / "_state" / "journal").glob("*.journal")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()
    time.sleep(2)  # for the workers to be gone
    return not (out / "_SUCCESS").exists()


def replay(work: Path, flags: list[str]) -> dict:
    out = work / "replay-out"
    shutil.rmtree(out, ignore_errors=True)
    batchgen("run", work / "job.toml", work / "few.jsonl", "--output", out, *flags)
    return {"rows": len(table(out, "id")), "replayed": replayed(out)}


def replayed(out: Path) -> str:
    said = batchgen("verify", out, "--replay", ITEMS)
    match = re.search(r"replayed: (.*) responses are the same", said)
    return match[1] if match else said


def record(work: Path, file: Path) -> None:
    out = work / "demo-out"
    batchgen("demo", work / "demo")
    shutil.rmtree(out, ignore_errors=True)
    batchgen("run", work / "demo" / "job.toml", "--include", "response_token_ids", "--output", out)
    content = json.dumps(tokens(out), separators=(",", ":")).encode()
    file.write_bytes(gzip.compress(content, mtime=0))


def main() -> None:
    work, result, what, *flags = sys.argv[1:]
    if what == "record":
        record(Path(work), Path(result))
        return
    figures = {"demo": demo, "replay": replay}[what](Path(work), flags)
    Path(result).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
