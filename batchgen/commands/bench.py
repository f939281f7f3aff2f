"""How fast batchgen is, measured against what its parts can do: the bare engine, the host's own work, plain reading.

The engine's figures come from a process of their own, as a worker's engine has one. Production code holds no timers:
they are put around its functions here, for the length of a measurement.
"""

import contextlib
import hashlib
import inspect
import itertools
import math
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .. import __version__, demo
from ..engine.bandwidth import copy_bandwidth
from ..engine.installed import check_device, needs_gpu, require_vllm, versions
from ..engine.instant import MAX_NUM_SEQS, InstantEngine
from ..engine.scratch import Scratch, adopt
from ..engine.torch_fit import require_fit
from ..engine.types import Engine
from ..engine.vllm import BareRequest, VllmEngine, install_into_vllm
from ..errors import JobError, MachineError, Reject, warn
from ..host import bucket, environment, garbage, machine
from ..host.lifeline import die_with_parent
from ..input.plan import plan_input
from ..input.rows import Reader, read_rows
from ..job.sampling import Sampling
from ..job.spec import JobSpec, load
from ..model.model import Model, load_model
from ..model.tokenizer import Tokenizer
from ..output import journal, opening, shard
from ..output.claims import Claims
from ..output.counts import Counts
from ..runner import gpus
from ..runner.admission import WINDOW_PER_SEQUENCE
from ..runner.messages import Report, Work
from ..runner.prepare import Job, prepare
from ..runner.run import close
from ..runner.worker import Worker
from ..task.flow import work_of
from ..task.generate import Generate

WARM_UP = 256  # requests ahead of the first round: kernels are compiled and tuned when they are first met
CHUNK = 1 << 20
DEMO = Path(demo.__file__).parent
MB = 1_000_000

Figures = dict[str, Any]


# --- what every measurement says


def circumstances() -> Figures:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": machine.cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),  # of others too: on a busy machine the figures are worth little
        "python": platform.python_version(),
        "versions": {"batchgen": __version__, **versions()},
    }


def spread(values: Iterable[int]) -> Figures:
    ordered = sorted(values) or [0]
    last = len(ordered) - 1
    return {
        "total": sum(ordered),
        "min": ordered[0],
        "median": ordered[last // 2],
        "p90": ordered[last * 9 // 10],
        "max": ordered[-1],
    }


def resident_mb(peak: bool = False, pid: int | str = "self") -> float:
    """Resident memory of a process, now or at its most. MB."""
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / MB, 1)


def _memory() -> Figures:
    """Of this process, of vLLM's own ones, and of the GPU, at their most; vLLM takes its GPU memory at the start."""
    children = [process.pid for process in multiprocessing.active_children() if process.pid]
    figures = {
        "process_mb": resident_mb(peak=True),
        "engine_processes_mb": [resident_mb(True, pid) for pid in children],
    }
    return figures | ({"gpu_mb": _gpu_memory_mb()} if children and gpus.visible() else {})


def _gpu_memory_mb() -> float | None:
    """As nvidia-smi says, which has no figure for a part of a GPU (MIG)."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([*command, f"--id={','.join(gpus.visible())}"], capture_output=True, text=True)
        return round(sum(int(line) for line in done.stdout.splitlines()) * 1.048576, 1)
    except (OSError, ValueError):
        return None


# --- timers


@contextlib.contextmanager
def stages(engine_class: type) -> Iterator[dict[str, float]]:
    """Seconds by stage of what happens inside the block, in the order of the flow.

    Those of several threads add up, so that they may be more than the time that went by.
    """
    seconds: dict[str, float] = {}
    places: list[tuple[Any, str, str]] = [
        (Reader, "read", "read"),
        (Generate, "draft", "render, encode"),
        (Generate, "fit_here", "render, encode"),
        (Generate, "finish", "render, encode"),
        (engine_class, "add", "admit"),
        (engine_class, "step", "engine"),
        (Generate, "output", "decode"),
        (journal.Journal, "append", "journal"),
        (journal.Journal, "flush", "journal"),
        (journal.Journal, "keep", "journal's sync"),
        (shard, "commit", "shard"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, stage in places:
            seconds[stage] = 0.0
            original = getattr(owner, name)
            stack.callback(setattr, owner, name, original)
            setattr(owner, name, _timed(original, stage, seconds))
        yield seconds


def _timed(function: Callable[..., Any], stage: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[stage] += time.perf_counter() - begin

    def timed_rows(*arguments: Any, **options: Any) -> Iterator[Any]:
        rows = function(*arguments, **options)
        advance = _timed(lambda: next(rows, None), stage, seconds)
        while (row := advance()) is not None:
            yield row

    return timed_rows if inspect.isgeneratorfunction(function) else timed


# --- the whole pipeline, on whatever engine


class Round(NamedTuple):
    """One pass over all rows. cpu_seconds: of this process, which on a CPU is the engine's too. Of the bare loop: the
    engine's steps, and every request's tokens of prompt and response; of the pipeline: seconds by stage."""

    seconds: float
    cpu_seconds: float
    prompt_tokens: int
    response_tokens: int
    steps: int = 0
    lengths: Sequence[tuple[int, int]] = ()
    stages: dict[str, float] | None = None

    @property
    def rate(self) -> float:
        return self.response_tokens / self.seconds

    def figures(self) -> Figures:
        return {
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "response_tokens_per_second": round(self.rate, 1),
            "prompt_tokens_per_second": round(self.prompt_tokens / self.seconds, 1),
            "response_tokens": self.response_tokens,
            "prompt_tokens": self.prompt_tokens,
        }


def pipeline(
    spec: JobSpec, runner: Engine, scratch: str | Path, heard: Callable[[Report], None] = lambda report: None
) -> tuple[Round, Counts]:
    """From the input file to committed shards, in a folder of its own that is gone afterwards; and its accounting.

    Reports are written as a worker writes them, but to nobody.
    """
    with _emptied(scratch) as out, open(os.devnull, "wb", buffering=0) as nobody:

        def report(what: Report) -> None:
            nobody.write(msgspec.json.encode(what) + b"\n")
            heard(what)

        with stages(type(runner)) as seconds:
            seconds["reports"] = 0.0
            cpu, begin = time.process_time(), time.perf_counter()
            output = msgspec.structs.replace(spec.output, path=f"{out}/out")
            job = prepare(msgspec.structs.replace(spec, output=output))
            prepared = time.perf_counter() - begin
            opening.open_job(job.out, job.record)
            worker = Worker(job, runner, Claims(job.out, spec.output.stale), _timed(report, "reports", seconds))
            worker.run(job.plan.shards)
            counts = close(job)
            elapsed, cpu = time.perf_counter() - begin, time.process_time() - cpu
    named = {"plan": prepared, **seconds}
    named["all else"] = max(0.0, elapsed - sum(named.values()))
    parts = {stage: round(value, 3) for stage, value in named.items()}
    return Round(elapsed, cpu, counts.prompt_tokens, counts.response_tokens, stages=parts), counts


@contextlib.contextmanager
def _emptied(scratch: str | Path) -> Iterator[str]:
    """A place in a folder or bucket that is empty before and gone afterwards."""
    if not bucket.is_uri(scratch):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            yield folder
        return
    place = f"{str(scratch).rstrip('/')}/{uuid.uuid4().hex}"
    try:
        yield place
    finally:
        used = bucket.Bucket(place)
        used.delete([found.name for found in used.below()])


# --- the engine: bare, and with all of batchgen around it


class Orders(msgspec.Struct):
    """What the engine's process is asked for. stock: whether vLLM as it is installed has its rounds too; result: the
    file for its figures, or for those of bench_stock.py an open one."""

    spec: JobSpec
    rows: int | None
    rounds: int
    unseeded: bool
    stock: bool
    result: str


class Unseeded(VllmEngine):
    """Drops the seeds of all requests. Put before the class of an engine."""

    def params(self, sampling: Sampling, seed: int | None) -> Any:
        return super().params(sampling, None)


class Stock:
    """The process of bench_stock.py: vLLM as it is installed."""

    def __init__(self, spec: JobSpec, unseeded: bool):
        """Returns when its engine is up. Raises MachineError."""
        read, write = os.pipe()
        command = [sys.executable, "-P", "-m", "batchgen.commands.bench_stock"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=2, stderr=2, pass_fds=[write], start_new_session=True
        )
        os.close(write)
        self._results = os.fdopen(read, "rb")
        self._ask(msgspec.json.encode(Orders(spec, None, 0, unseeded, True, str(write))))

    def round(self) -> Round:
        """Raises MachineError."""
        return msgspec.json.decode(self._ask(b""), type=Round)

    def _ask(self, line: bytes) -> bytes:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        if not (answer := self._results.readline()):
            raise MachineError("vLLM as it is installed failed; the log above says why, and --no-stock leaves it out")
        return answer

    def close(self) -> None:
        """With all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._results.close()


def measure_engine(spec: JobSpec, rows: int | None, rounds: int, unseeded: bool = False, stock: bool = True) -> Figures:
    """The tokens per second of vLLM's own loop on our engine, of the whole pipeline on it, and of vLLM as it is
    installed; and their ratios.

    rows: how many of the first ones
    rounds: of each, in turn, so that what disturbs one disturbs the other
    unseeded: requests go without their seeds
    stock: vLLM as it is installed has its rounds too

    The log goes to stderr. Raises JobError, or MachineError if the engine fails.
    """
    refuse_translation(spec)
    job = prepare(spec)  # what is wrong with the job shows here, in one line
    require_vllm()
    require_fit()
    check_device(spec.engine)
    with tempfile.NamedTemporaryFile() as result, contextlib.closing(Scratch()) as scratch:
        orders = msgspec.json.encode(Orders(spec, rows, rounds, unseeded, stock, result.name))
        # A process whose main module vLLM's own process can run again, as worker.py: so it gets our tokenizer too.
        command = [sys.executable, "-P", "-m", "batchgen.commands.bench"]
        variables = {**environment.of_worker(file.path for file in job.plan.files), **scratch.environment()}
        done = subprocess.run(command, input=orders, stdout=2, stderr=2, env=variables)
        content = Path(result.name).read_bytes()
    if done.returncode or not content:
        raise MachineError(f"the engine failed (exit code {done.returncode}); the log above says why")
    figures = msgspec.json.decode(content)
    if "refused" in figures:
        raise JobError(figures["refused"])
    if "failed" in figures:
        raise MachineError(figures["failed"])
    return figures


def main() -> None:
    die_with_parent()
    adopt()
    os.register_at_fork(after_in_child=die_with_parent)
    orders = msgspec.json.decode(sys.stdin.buffer.read(), type=Orders)
    try:
        figures = _compare(orders)
    except (JobError, MachineError) as error:
        figures = {"refused" if isinstance(error, JobError) else "failed": str(error)}
    Path(orders.result).write_bytes(msgspec.json.encode(figures))
    sys.stdout.flush()
    os._exit(0)  # an engine's atexit handlers may wait


def _compare(orders: Orders) -> Figures:
    on_gpu = needs_gpu() and bool(gpus.visible())
    bandwidth = copy_bandwidth() if on_gpu else None  # before the engine takes the memory
    with (
        tempfile.TemporaryDirectory(
            prefix=".batchgen-bench-", dir=nearest_folder(Path(orders.spec.output.path))
        ) as scratch,
        contextlib.ExitStack() as stack,
    ):
        spec = orders.spec if orders.rows is None else first_rows(orders.spec, orders.rows, Path(scratch))
        job = prepare(spec)
        alone: list[Round] = []
        whole: list[Round] = []
        stock: list[Round] = []
        # Before our engine changes the environment.
        theirs = stack.enter_context(contextlib.closing(Stock(spec, orders.unseeded))) if orders.stock else None
        if theirs and on_gpu:  # whose memory has room for one of the two
            stock = [theirs.round() for _ in range(orders.rounds)]
            theirs.close()
            theirs = None
        begin = time.perf_counter()
        runner = (Unseeded if orders.unseeded else VllmEngine)(job.model, job.spec.engine_args, job.context)
        runner.check(job.generate.sampling)
        engine_start = time.perf_counter() - begin
        for text in runner.warnings:
            warn(text)
        requests = requests_of(job, runner)
        garbage.collect_rarely()  # as a worker does
        bare(runner, requests[:WARM_UP])
        for _ in range(orders.rounds):
            alone.append(bare(runner, requests))
            runner.forget_prompts()
            whole.append(pipeline(spec, runner, Path(scratch))[0])
            stock += [theirs.round()] if theirs else []
    ratios, to_stock = _ratios(whole, alone), _ratios(whole, stock)
    figures: Figures = {
        "ratio": round(statistics.median(ratios), 4),
        **({"ratio_to_stock": round(statistics.median(to_stock), 4)} if stock else {}),
        "bare": _of_rounds(alone),
        "pipeline": _of_rounds(whole),
        **({"stock": _of_rounds(stock)} if stock else {}),
        "ratios": ratios,
        **({"ratios_to_stock": to_stock} if stock else {}),
        "stages": whole[-1].stages,
        "engine_start": round(engine_start, 2),
        "memory": _memory(),
        "rows": job.plan.rows,
        "requests": len(requests),
        "prompt_tokens": spread(prompt for prompt, _ in alone[0].lengths),
        "response_tokens": spread(response for _, response in alone[0].lengths),
        "dtype": runner.dtype,
        "max_num_seqs": runner.max_num_seqs,
        "engine": job.spec.engine,
        "device": runner.device,
        "noise": str(runner.sampler),
        **circumstances(),
    }
    return figures | (_share_of_bandwidth(job, runner, alone, whole, bandwidth) if bandwidth else {})


def _ratios(ours: list[Round], theirs: list[Round]) -> list[float]:
    return [round(one.rate / other.rate, 4) for one, other in zip(ours, theirs, strict=False)]


def refuse_translation(spec: JobSpec) -> None:
    """Raises JobError: a translation asks once for equal segments, and again for those that fail, which nothing that it
    would be compared with does."""
    if spec.translate.fields:
        raise JobError(
            "[translate]: equal segments are sent once and failed ones again, which nothing that it is compared with "
            "does; measure a job whose [prompt] template asks for the same texts"
        )


def nearest_folder(path: Path) -> Path:
    """The folder of a path that is there: what is measured lies on the disk of the job's output."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def first_rows(spec: JobSpec, rows: int, scratch: Path) -> JobSpec:
    """The job on its first rows, as JSONL."""
    job = prepare(spec)
    reader = job.reader()
    read = (row for planned in job.plan.shards for row in reader.read(planned))
    path = scratch / "rows.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(row.raw_text().rstrip("\r\n") + "\n" for row in itertools.islice(read, rows))
    return msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, path=[str(path)]))


def requests_of(job: Job, runner: VllmEngine) -> list[BareRequest]:
    """All requests of a job, as vLLM takes them."""
    requests = []
    for _, work in work_of(job.task, job.reader(), job.plan.shards):
        for made in () if isinstance(work, Reject) else work.requests:
            if made.sampling.stop:
                what = "stop texts are batchgen's own work; the bare engine cannot be compared with it"
                raise JobError(f"[sampling] stop: {what}")
            requests.append(runner.bare_request(str(made.name), made.prompt_token_ids, made.sampling, made.seed))
    if not requests:
        raise JobError("no row of the input can be answered; batchgen plan says more")
    return requests


def bare(runner: VllmEngine, requests: list[BareRequest]) -> Round:
    """vLLM's own loop with everything known beforehand: nothing of ours runs in it, and nothing is decoded.

    As many requests wait as run. All at once is no faster: the same steps, and 4.2 against 3.9 s of CPU time for 1,000
    rows of the demo (medians of 5 rounds by turns, 2 busy cores).
    """
    runner.forget_prompts()
    cpu, begin = time.process_time(), time.perf_counter()
    responses, steps = runner.run_bare(requests, WINDOW_PER_SEQUENCE * runner.max_num_seqs)
    elapsed, cpu = time.perf_counter() - begin, time.process_time() - cpu
    lengths = [(len(request.prompt), responses[request.request_id]) for request in requests]
    return Round(elapsed, cpu, sum(prompt for prompt, _ in lengths), sum(responses.values()), steps, lengths)


def _of_rounds(rounds: list[Round]) -> Figures:
    return {
        "response_tokens_per_second": round(statistics.median(each.rate for each in rounds), 1),
        "rounds": [each.figures() for each in rounds],
    }


# --- the GPU's memory bandwidth, which bounds the decoding of any engine


def _share_of_bandwidth(
    job: Job, runner: VllmEngine, bare: list[Round], whole: list[Round], bandwidth: float
) -> Figures:
    """Which part of the time the memory alone would need: every step reads the weights, every token of a response the
    keys and values of all tokens before it."""
    weights = weight_bytes(job.model, 4 if runner.dtype == "float32" else 2)
    if weights is None:
        return {"bandwidth": round(bandwidth)}
    cached = kv_bytes(job.model, runner.dtype, str(job.spec.engine.get("kv_cache_dtype", "auto")))
    reads = sum(tokens_read(*lengths) for lengths in bare[0].lengths)
    devices = int(job.spec.engine.get("tensor_parallel_size", 1))
    total = statistics.median(each.steps for each in bare) * weights + reads * cached
    return {
        "bandwidth": round(bandwidth),
        "bytes": {"weights_per_step": weights, "kv_cache_per_token": cached, "read": round(total)},
        "steps": [each.steps for each in bare],
        "share_of_bandwidth": {
            name: round(total / (bandwidth * devices * statistics.median(each.seconds for each in rounds)), 4)
            for name, rounds in (("bare", bare), ("pipeline", whole))
        },
    }


def tokens_read(prompt: int, response: int) -> int:
    """Entries of the KV cache that the making of a response reads: prompt + i for its token i."""
    return response * prompt + response * (response - 1) // 2


def kv_bytes(model: Model, dtype: str, cache_dtype: str) -> int:
    """Bytes of a token's keys and values, in all layers."""
    size = 1 if cache_dtype.startswith("fp8") else 4 if dtype == "float32" and cache_dtype == "auto" else 2
    return size * model.kv_width


def weight_bytes(model: Model, size: int) -> int | None:
    """Bytes of weights that a step reads, of `size` bytes each: all but the input embeddings, of which it reads a few
    rows. None for what is no GPT-NeoX."""
    if model.model_type != "gpt_neox":
        return None
    config = msgspec.json.decode((model.folder / "config.json").read_bytes())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    attention = 4 * hidden * hidden + 4 * hidden
    mlp = 2 * hidden * inner + inner + hidden
    norms = 4 * hidden
    last = 2 * hidden + hidden * config["vocab_size"]
    return size * (config["num_hidden_layers"] * (attention + mlp + norms) + last)


# --- the host's own work


def measure_host(rows: int, prompt_tokens: int, response_tokens: int, model: str = "", output: str = "") -> Figures:
    """Rows per second of all that is not the engine, on a JSONL file made for it in TMPDIR; output: where the results
    go meanwhile, if not there too. Raises JobError."""
    with tempfile.TemporaryDirectory(prefix="batchgen-bench-") as scratch:
        path = Path(scratch) / "rows.jsonl"
        spec = load(
            None,
            {
                "input": {"path": [str(path)]},
                "model": {"path": model or str(DEMO / "model")},
                "sampling": {"temperature": 1.0, "max_tokens": response_tokens, "ignore_eos": True},
                "output": {"path": str(Path(scratch) / "out")},
            },
        )
        loaded = load_model(spec.model.path)
        tokenizer = _tokenizer_of(loaded)
        around = len(tokenizer.encode("ユーザー: \nシステム: "))
        prompts = list(texts(tokenizer, [max(1, prompt_tokens - around)] * min(rows, 5000)))
        write_rows(path, prompts, rows)
        growth: list[float] = []

        def look(what: Report) -> None:
            if isinstance(what, Work) and what.totals.rows + what.totals.open_rows >= (len(growth) + 1) * rows / 10:
                growth.append(resident_mb())

        # Of the running requests as many end with each step as if every response grew by one token a step.
        per_step = math.ceil(MAX_NUM_SEQS / response_tokens)
        runner = InstantEngine(loaded, {}, loaded.context, per_step)
        garbage.collect_rarely()  # as a worker does
        done, counts = pipeline(spec, runner, output or scratch, look)
        peak = max(resident_mb(peak=True), *growth)  # the kernel's own may lag behind by some pages
        return {
            "rows_per_second": round(counts.responses / done.seconds, 1),
            "rows_per_cpu_second": round(counts.responses / done.cpu_seconds, 1),
            "rows": counts.rows,
            "rejects": counts.rejects,
            "prompt_tokens_per_row": round(done.prompt_tokens / max(1, counts.responses), 1),
            "response_tokens_per_row": response_tokens,
            "seconds": round(done.seconds, 3),
            "stages": done.stages,
            "memory": {"peak_mb": peak, "after_each_tenth_mb": growth},
            **circumstances(),
        }


def _tokenizer_of(model: Model) -> Tokenizer:
    if not isinstance(model.tokenizer, Tokenizer):
        raise JobError(f"{model.name}: has no spiece.model")
    return model.tokenizer


def texts(tokenizer: Tokenizer, lengths: Iterable[int]) -> Iterator[str]:
    """Texts of these lengths in tokens (one or two more where a letter would be cut), from the demo conversations."""
    with (DEMO / "data" / "conversations.jsonl").open("rb") as lines:
        spoken = [utterance["text"] for line in lines for utterance in msgspec.json.decode(line)["conversation"]]
    ids = tokenizer.encode(" ".join(spoken))
    position = 0
    for length in lengths:
        position = (position + length + 7) % len(ids)
        yield tokenizer.decode((ids[position:] + ids * (length // len(ids) + 1))[:length])


def write_rows(path: Path, prompts: list[str], rows: int) -> None:
    lines = (
        b"%b\n" % msgspec.json.encode({"id": f"row-{row}", "text": prompts[row % len(prompts)]}) for row in range(rows)
    )
    with path.open("wb") as stream:
        stream.writelines(lines)


# --- counting and planning a big input


def measure_input(gigabytes: float, rounds: int = 3) -> Figures:
    """GB/s of the plan of one JSONL file, of plain reading of it, and of its bare digest; and how soon its last shard
    starts. In TMPDIR."""
    with tempfile.TemporaryDirectory(prefix="batchgen-bench-") as scratch:
        path = Path(scratch) / "rows.jsonl"
        data = (DEMO / "data" / "conversations.jsonl").read_bytes()
        with path.open("wb") as stream:
            stream.writelines(itertools.repeat(data, math.ceil(gigabytes * 1e9 / len(data))))
        size = path.stat().st_size
        plain, digest, planned = [], [], []
        for _ in range(rounds):  # by turns; all but the very first reading finds the file in the page cache
            plain.append(_seconds(lambda: _read_plainly(path, lambda chunk: None)))
            digest.append(_seconds(lambda: _read_plainly(path, hashlib.sha256().update)))
            planned.append(_seconds(lambda: plan_input([str(path)], 4096)))
        plan = plan_input([str(path)], 4096)
        last = _seconds(lambda: next(read_rows(plan, plan.shards[-1], [])))
    return {
        "bytes": size,
        "rows": plan.rows,
        "shards": len(plan.shards),
        "plan_gb_per_second": round(size / 1e9 / statistics.median(planned), 3),
        "digest_gb_per_second": round(size / 1e9 / statistics.median(digest), 3),
        "plain_gb_per_second": round(size / 1e9 / statistics.median(plain), 3),
        "first_row_of_last_shard_ms": round(last * 1000, 2),
        **circumstances(),
    }


def _read_plainly(path: Path, take: Callable[[bytes], None]) -> None:
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK):
            take(chunk)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # a process that vLLM spawned from ours
    die_with_parent()
    adopt()
    install_into_vllm()
