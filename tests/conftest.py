import importlib.util
import json
import os
import re
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE
from types import SimpleNamespace
from unittest import mock

import buckets
import memory
import pytest
from click.testing import CliRunner
from hypothesis import settings
from paced import Instant

from batchgen.cli import cli
from batchgen.engine.vllm import VllmEngine
from batchgen.input.rows import read_rows
from batchgen.job.spec import load
from batchgen.model.model import load_model
from batchgen.output import opening
from batchgen.output.bucket import BucketStore
from batchgen.output.claims import Claims
from batchgen.output.store import FolderStore, Store, at
from batchgen.runner.prepare import Job, prepare
from batchgen.runner.run import close, missing_shards
from batchgen.runner.worker import Worker
from batchgen.task.generate import Prompted

DEMO = Path(__file__).parent.parent / "batchgen" / "demo"
MODEL = DEMO / "model"
CONVERSATIONS = DEMO / "data" / "conversations.jsonl"

settings.register_profile("ours", deadline=None)  # a busy machine is no fault
settings.load_profile("ours")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test with the mark `small_process` forks by the hundred: that takes three times as long, and twice the cores,
    in a process that has loaded torch. So there it runs in one that has not."""
    if not pyfuncitem.get_closest_marker("small_process") or "torch" not in sys.modules:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", pyfuncitem.nodeid]
    done = subprocess.run(command, cwd=pyfuncitem.config.rootpath, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return True


def demo_records(count: int) -> list[dict]:
    with CONVERSATIONS.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def unsynced():
    """Of what this process and its forks have written a kill loses nothing, synced or not, and to sync takes up to ten
    milliseconds. What a power loss would do faulty.py knows."""
    with mock.patch.object(os, "fsync", lambda file: None):
        yield


@pytest.fixture(scope="session")
def lm_eval_packages(tmp_path_factory) -> Path:
    """A folder with lm-eval 0.4.13 and what it needs beside this environment, for a PYTHONPATH."""
    if found := importlib.util.find_spec("lm_eval"):
        return Path(found.origin).parent.parent
    folder = tmp_path_factory.mktemp("lm-eval")
    uv = Path(sys.executable).with_name("uv")
    constraint = folder / "constraint.txt"
    freeze = subprocess.run(
        [uv, "pip", "freeze", "--python", sys.executable], capture_output=True, text=True, check=True
    )
    lines = [line for line in freeze.stdout.splitlines() if re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    constraint.write_text("\n".join(lines))
    needed = subprocess.run(
        [uv, "pip", "install", "--dry-run", "--python", sys.executable, "-c", constraint, "lm_eval==0.4.13"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = re.findall(r"^ \+ (\S+)", needed.stderr, re.MULTILINE)
    command = [uv, "pip", "install", "--no-deps", "--python", sys.executable, "--target", folder / "packages", *names]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "packages"


@pytest.fixture
def write_rows(tmp_path):
    """Writes records, one JSON object per line; text and bytes are lines as they are."""

    def write(rows, name="in.jsonl") -> Path:
        path = tmp_path / name
        lines = [
            row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else _json(row) for row in rows
        ]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


def _json(row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


@pytest.fixture(scope="session")
def engine():
    """One real engine on the demo model, float32, for all tests that can share it."""
    model = load_model(str(MODEL))
    few = 64  # sequences, so that requests wait
    made = VllmEngine(model, {"dtype": "float32", "max_num_seqs": few}, model.context)
    _let_it_outlive_others()
    return made


def _let_it_outlive_others() -> None:
    """An engine in this process that is not needed any more ends, from vLLM 0.32 on, what all have in common."""
    from vllm.v1.engine import core

    core.cleanup_dist_env_and_memory = lambda: None


@pytest.fixture
def generate(engine, tmp_path):
    """Runs a job to its end on the shared engine; flags as in the job file, by table. Returns the output folder."""
    return generating(engine, tmp_path)


@pytest.fixture
def instant_engine(monkeypatch) -> Instant:
    """The engine of processes.instant in this process, for what is not the model's doing."""
    from processes import pace  # which takes MODEL from here

    for name, value in pace().items():
        monkeypatch.setenv(name, value)
    model = load_model(str(MODEL))
    return Instant(model, {}, model.context)


@pytest.fixture
def instantly(instant_engine, tmp_path):
    """`generate` on that engine: gives what runs in processes of their own are to give."""
    return generating(instant_engine, tmp_path)


def generating(engine, folder: Path) -> Callable[..., Path]:
    def run(inputs, out="out", window=None, order=None, **tables) -> Path:
        tables["input"] = {"path": [str(path) for path in inputs], **tables.get("input", {})}
        tables["output"] = {"path": str(folder / out), **tables.get("output", {})}
        tables.setdefault("model", {"path": str(MODEL)})
        job = prepare(load(None, tables))
        opening.open_job(job.out, job.record)
        missing = missing_shards(job)
        worker = Worker(job, engine, Claims(job.out, stale=60), window=window)
        worker.run(order(missing) if order else missing)
        close(job)
        return folder / out

    return run


@pytest.fixture
def item_of(write_rows, tmp_path):
    """One record with its prompt, by a job with these tables, and the job."""

    def make(record: dict, **tables) -> tuple[Prompted, Job]:
        tables = {"model": {"path": str(MODEL)}, "output": {"path": str(tmp_path / "of one")}, **tables}
        tables["input"] = {"path": [str(write_rows([record], "one.jsonl"))]}
        job = prepare(load(None, tables))
        [row] = read_rows(job.plan, job.plan.shards[0], job.task.columns_read)
        return job.task.prepare_row(row), job

    return make


def untimed(stderr: str) -> str:
    """Without the times that lines have where stderr is no terminal, but for those of progress."""
    return re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?=batchgen: )", "", stderr, flags=re.MULTILINE)


@pytest.fixture
def batchgen():
    """The command in this process: for what ends before an engine starts. Gives exit_code, stdout, and stderr without
    times."""

    def invoke(*arguments) -> SimpleNamespace:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return SimpleNamespace(exit_code=result.exit_code, stdout=result.stdout, stderr=untimed(result.stderr))

    return invoke


@pytest.fixture
def batchgen_here(engine, batchgen):
    """The same for what generates: its worker is in this process too, on the shared engine, and prepares the job as
    one of its own process does."""
    from faulty import worker_here  # which takes MODEL from here

    def invoke(*arguments) -> SimpleNamespace:
        with worker_here(engine):
            return batchgen(*arguments)

    return invoke


@pytest.fixture
def start():
    """Starts `batchgen run` in processes of its own (processes.Run), none of which outlasts the test."""
    from processes import starting  # which takes MODEL from here

    with starting() as begin:
        yield begin


@pytest.fixture
def batchgen_process():
    """The installed command in a process of its own, engine and all; its stderr without times."""

    def invoke(*arguments, **options) -> subprocess.CompletedProcess:
        command = [Path(sys.executable).with_name("batchgen"), *arguments]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
        done.stderr = untimed(done.stderr)
        return done

    return invoke


@pytest.fixture
def folder(tmp_path) -> FolderStore:
    """An output folder that a run may write to."""
    folder = at(tmp_path / "out")
    folder.prepare(shared=False)
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URI of a bucket on an S3 server on loopback, to which the environment has the keys; or that which
    BATCHGEN_TEST_BUCKET names. In a process of its own: vLLM, as it starts an engine, looks at all modules of its
    process, and trips over the server's."""
    if given := os.environ.get("BATCHGEN_TEST_BUCKET"):
        yield given
        return
    with subprocess.Popen(
        [sys.executable, "-c", buckets.MOTO], stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True
    ) as moto:
        endpoint = f"http://{moto.stdout.readline().strip()}"
        with mock.patch.dict(os.environ, buckets.environment(endpoint)):
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/talks", method="PUT")).close()
            yield "s3://talks"
        moto.stdin.close()


@pytest.fixture
def bucket(s3) -> BucketStore:
    """A place in a bucket that nothing is in."""
    return at(f"{s3}/{uuid.uuid4().hex}/out")


@pytest.fixture(params=["folder", "memory", "bucket"])
def store(request, tmp_path) -> Store:
    """A store of each kind."""
    return memory.MemoryStore(tmp_path) if request.param == "memory" else request.getfixturevalue(request.param)
