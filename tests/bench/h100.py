"""All figures of a GPU box by one command, a line of the table each; what is done already is not done again.

    python tests/bench/h100.py OUT                  all lines, the important ones first
    python tests/bench/h100.py OUT --minutes 9      no line that may not end by then
    python tests/bench/h100.py OUT --only base,demo
    python tests/bench/h100.py OUT --tiny           on a CPU, with few rows and a small model: does it all run?

OUT gets figures.json (all lines, and all the state there is), table.md and log.txt. batchgen need not be installed;
vllm, torch, transformers, pyarrow, msgspec, sentencepiece, click and tqdm have to be importable. Data lie in --work.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NEEDED = ("vllm", "torch", "transformers", "pyarrow", "msgspec", "sentencepiece", "click", "tqdm")


@dataclass(frozen=True)
class Line:
    """One process. minutes: that it takes, about (after twice as many it is killed); gpu: not for a CPU; before: what
    is done ahead of it."""

    name: str
    what: str
    command: list[object]
    minutes: float = 2
    environment: dict[str, str] = field(default_factory=dict)
    gpu: bool = False
    before: Callable[[], None] = lambda: None


def lines(work: Path, result: Path, tiny: bool) -> Iterator[Line]:
    """In the order of their importance. All engine lines but the first are on the same first rows."""
    rows, rounds = (16, 1) if tiny else (2048, 1)
    # A CPU has no half precision worth the name, and vLLM's defaults there take most of the memory.
    on_cpu = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8, "kv_cache_memory_bytes": 1 << 28}
    on_cpu |= {"enable_chunked_prefill": False, "max_num_batched_tokens": 2048}
    job = work / "job.toml"

    def engine(*flags: object, rows: int | None = rows, rounds: int = rounds) -> list[object]:
        first = ["--rows", rows] if rows else []
        return [
            "-m",
            "batchgen",
            "bench",
            "engine",
            job,
            *first,
            "--rounds",
            rounds,
            "--no-stock",
            *flags,
            "--json",
            result,
        ]

    def change(name: str, what: str, *flags: object, **options) -> Line:
        return Line(name, what, engine(*flags), **options)

    def with_engine(name: str, what: str, *settings: str, **options) -> Line:
        return change(name, what, *(part for setting in settings for part in ("--engine", setting)), **options)

    def other(name: str, what: str, *arguments: object, minutes: float = 2) -> Line:
        return Line(name, what, [HERE / "others.py", job, result, *arguments], minutes)

    def check(name: str, what: str, *arguments: object, **options) -> Line:
        return Line(name, what, [HERE / "checks.py", work, result, *arguments], **options)

    def llm(*arguments: object) -> list[object]:
        return ["generate", "--rows", rows, *arguments, *(["--engine", json.dumps(on_cpu)] if tiny else [])]

    prefix = (work / "prefix.json").read_text(encoding="utf-8")
    invariant = {"VLLM_BATCH_INVARIANT": "1"}
    yield Line("base", "all rows, all defaults", engine(rows=None, rounds=2), 8)
    yield check("demo", "the demo job: tokens of a CPU, kill -9 and resume, replay", "demo", minutes=6)
    yield change("some", "the first rows, which all lines below have in common")
    yield change("unseeded", "without seeds", "--unseeded")
    yield change("runner-v2", "V2 model runner", environment={"VLLM_USE_V2_MODEL_RUNNER": "1"}, gpu=True)
    yield change("runner-v1", "V1 model runner", environment={"VLLM_USE_V2_MODEL_RUNNER": "0"}, gpu=True)
    yield other("llm-generate", "LLM.generate on the whole list", *llm())
    yield other("llm-generate-256", "LLM.generate in chunks of 256", *llm("--chunk", 4 if tiny else 256))
    yield other("transformers-1", "transformers, the card's loop", "transformers", "--rows", 4 if tiny else 64)
    sizes = (2, 4) if tiny else (16, 64, 256)
    yield other(
        "transformers-batched",
        "transformers, padded batches",
        *("transformers", "--rows", rows, *(part for size in sizes for part in ("--batch", size))),
        minutes=3,
    )
    for number in (512, 1024, 256, 128):
        yield with_engine(f"seqs-{number}", f"max_num_seqs {number}", f"max_num_seqs={number}")
    yield change("batch-invariant", "VLLM_BATCH_INVARIANT=1", environment=invariant, gpu=True)
    yield check(
        "replay-invariant", "replay, VLLM_BATCH_INVARIANT=1", "replay", environment=invariant, minutes=4, gpu=True
    )
    yield check("replay", "replay", "replay", minutes=4)
    yield check("demo-float32", "the demo job in float32", "demo", "--engine", "dtype=float32", minutes=4, gpu=True)
    yield with_engine("transformers-backend", "model_impl transformers", "model_impl=transformers", minutes=3)
    yield with_engine("fp8-kv", "KV cache in fp8", "kv_cache_dtype=fp8", gpu=True)
    yield change("no-top-p", "top_p 1.0", "--top-p", 1.0)
    yield with_engine("bf16", "bfloat16", "dtype=bfloat16", gpu=True)
    yield change("prefix", "500 tokens ahead of every prompt", "--prefix", prefix)
    yield change(
        "prefix-no-cache", "the same, no prefix caching", "--prefix", prefix, "--engine", "enable_prefix_caching=false"
    )
    yield change(
        "prefix-cascade", "the same, cascade attention", "--prefix", prefix, "--engine", "disable_cascade_attn=false"
    )
    for number in (2048, 4096, 8192, 16384):
        yield with_engine(f"batched-{number}", f"max_num_batched_tokens {number}", f"max_num_batched_tokens={number}")
    # All rows: it is the end of a job that the order changes.
    longest = engine(work / "longest-first.jsonl", rows=None)
    yield Line("longest-first", "all rows, longest responses first", longest, 4)
    yield with_engine("eager", "no CUDA graphs, no compiling", "enforce_eager=true")
    cold = work / "cold"
    caches = {
        "VLLM_CACHE_ROOT": str(cold / "vllm"),
        "TRITON_CACHE_DIR": str(cold / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cold / "inductor"),
    }
    start = engine(rows=8)
    yield Line(
        "start-cold",
        "start with empty caches",
        start,
        4,
        caches,
        before=lambda: shutil.rmtree(cold, ignore_errors=True),
    )
    yield Line("start-warm", "start with the caches of that", start, environment=caches)


def run(line: Line, result: Path, log: Path, seconds: float) -> dict:
    """The line's figures, or how it failed."""
    line.before()
    result.unlink(missing_ok=True)
    environment = {**os.environ, **line.environment, "PYTHONPATH": _python_path()}
    begin = time.monotonic()
    with log.open("ab") as stream:
        stream.write(f"\n=== {line.name}: {' '.join(map(str, line.command))[:500]}\n".encode())
        stream.flush()
        process = subprocess.Popen(
            [sys.executable, *map(str, line.command)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = f"not done after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    about = {"what": line.what, "wall_seconds": round(time.monotonic() - begin, 1)}
    if code != 0:
        return about | {"failed": f"exit code {code}" if isinstance(code, int) else code}
    return about | json.loads(result.read_bytes())


def _python_path() -> str:
    return os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", default="", help="names of lines, with commas between")
    parser.add_argument("--minutes", type=float, default=1e6, help="to be over by then")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "batchgen-bench")
    given = parser.parse_args()
    begin = time.monotonic()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        sys.exit(f"not importable here: {', '.join(missing)}")
    sys.path.insert(0, str(ROOT))
    from workload import FULL, TINY, write

    given.out.mkdir(parents=True, exist_ok=True)
    work = (given.work / ("tiny" if given.tiny else "full")).absolute()
    work.mkdir(parents=True, exist_ok=True)
    write(work, TINY if given.tiny else FULL)
    store = given.out / "figures.json"
    figures = json.loads(store.read_text("utf-8")) if store.exists() else {}
    result = work / "result.json"
    chosen = list(lines(work, result, given.tiny))
    only = {name for name in given.only.split(",") if name}
    if unknown := only - {line.name for line in chosen}:
        sys.exit(f"no such line: {', '.join(sorted(unknown))}; there are {', '.join(line.name for line in chosen)}")
    for line in chosen:
        left = given.minutes * 60 - (time.monotonic() - begin)
        done = "failed" not in figures.get(line.name, {"failed": ""})
        if done or (only and line.name not in only) or (line.gpu and given.tiny):
            continue
        if left < line.minutes * 60:
            print(f"{line.name}: left for later, as it may take {line.minutes:g} minutes", flush=True)
            continue
        figures[line.name] = run(line, result, given.out / "log.txt", min(left, 2 * line.minutes * 60))
        store.write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
        print(
            f"{line.name}: {figures[line.name].get('failed') or 'done'}, {figures[line.name]['wall_seconds']} s",
            flush=True,
        )
        (given.out / "table.md").write_text(table(figures), encoding="utf-8")
    print(table(figures))


# --- the table


def table(figures: dict[str, dict]) -> str:
    """Of figures.json, as Markdown."""
    some = _rate(figures.get("some", {}))
    head = [
        "line",
        "what is changed",
        "batchgen tok/s",
        "to `some`",
        "bare engine tok/s",
        "ratio",
        "of bandwidth",
        "start s",
        "",
    ]
    rows = [[name, one["what"], *_cells(one, some), _rest(one)] for name, one in figures.items()]
    lines = [head, ["---"] * len(head), *rows]
    circumstances = next((one for one in figures.values() if "date" in one), {})
    about = {name: circumstances[name] for name in ("date", "device", "versions", "rows") if name in circumstances}
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{json.dumps(about)}\n"


def _rate(one: dict) -> float | None:
    """Response tokens per second of whatever the line measured."""
    return one.get("pipeline", one).get("response_tokens_per_second")


def _cells(one: dict, some: float | None) -> list[str]:
    rate, bare = _rate(one), one.get("bare", {}).get("response_tokens_per_second")
    share = one.get("share_of_bandwidth", {})
    return [
        f"{rate:,.0f}" if rate else "",
        f"{rate / some:.2f}" if rate and some else "",
        f"{bare:,.0f}" if bare else "",
        f"{one['ratio']:.3f}" if "ratio" in one else "",
        f"{share['pipeline']:.0%}" if share else "",
        f"{one['engine_start']:.0f}" if "engine_start" in one else "",
    ]


def _rest(one: dict) -> str:
    names = (
        "failed max_num_seqs batch of_batches same_tokens_as_cpu exactly_right killed_before_its_end "
        "same_after_kill_and_resume replayed"
    )
    return ", ".join(f"{name} {one[name]}" for name in names.split() if name in one)


if __name__ == "__main__":
    main()
