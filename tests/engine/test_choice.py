"""BATCHGEN_ENGINE: which engine workers run, and that what another engine than vLLM made never passes for vLLM's."""

import ast
import json
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records
from processes import instant

import batchgen
from batchgen.engine.choice import VARIABLE
from batchgen.engine.instant import LENGTH, InstantEngine
from batchgen.engine.types import WHOLE
from batchgen.job.sampling import Sampling
from batchgen.model.model import load_model

PACKAGE = Path(batchgen.__file__).parent
WARNING = f"batchgen: warning: {VARIABLE}=instant: vLLM is not used, and no response is the model's"


@pytest.fixture
def run(batchgen_process, batchgen, write_rows, tmp_path, monkeypatch):
    """`batchgen run` with an engine of that name."""
    source = write_rows(demo_records(10))

    def invoke(engine: str, *flags, out: str = "out"):
        monkeypatch.setenv(VARIABLE, engine)
        return batchgen_process("run", source, "--model", MODEL, "--output", tmp_path / out, *flags)

    return invoke


def test_what_another_engine_made_says_so_in_its_folder(run, batchgen, tmp_path):
    done = run("instant")
    assert (done.returncode, done.stderr.splitlines()) == (0, [WARNING])
    assert json.loads((tmp_path / "out" / "_job.json").read_bytes())["results"]["engine"][VARIABLE] == "instant"
    [part] = (tmp_path / "out").glob("part-*")
    metadata = pq.read_metadata(part).metadata
    assert (metadata[b"batchgen.dtype"], metadata[b"batchgen.device"]) == (b"none", b"no model: answers at once")
    card = batchgen("export", tmp_path / "out", "--to", tmp_path / "published", "--format", "hf")
    assert card.exit_code == 0, card.stderr
    assert f'"{VARIABLE}": "instant"' in (tmp_path / "published" / "README.md").read_text()


def test_a_folder_goes_on_with_the_engine_that_it_was_begun_with(run, batchgen, tmp_path):
    assert run("instant", "--shard-rows", 5).returncode == 0
    next((tmp_path / "out").glob("part-*")).unlink()
    refused = run("vllm", "--shard-rows", 5)
    assert (refused.returncode, refused.stderr.splitlines()[1]) == (2, f'  engine.{VARIABLE}: "instant" -> (none)')
    assert run("instant", "--shard-rows", 5).returncode == 0
    assert batchgen("verify", tmp_path / "out").exit_code == 0  # whatever the variable is


def test_a_folder_of_vllms_is_not_finished_by_another_engine(run, generate, write_rows, tmp_path):
    out = generate([write_rows(demo_records(10))], output={"shard_rows": 5}, sampling={"max_tokens": 4})
    next(out.glob("part-*")).unlink()
    refused = run("instant", "--shard-rows", 5, "--max-tokens", 4)
    assert (refused.returncode, refused.stderr.splitlines()[1]) == (2, f'  engine.{VARIABLE}: (none) -> "instant"')


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("instnat", f"{VARIABLE}=instnat: must be vllm, instant or module:Class"),
        ("nowhere:Engine", f"{VARIABLE}=nowhere:Engine: No module named 'nowhere'"),
        ("json:Engine", f"{VARIABLE}=json:Engine: module 'json' has no attribute 'Engine'"),
    ],
)
def test_an_engine_that_is_not_there_is_one_line(run, tmp_path, name, line):
    refused = run(name)
    assert (refused.returncode, refused.stderr) == (2, f"batchgen: {line}\n")
    assert not (tmp_path / "out").exists()


def test_an_engine_of_ones_own_is_found_by_pythonpath(batchgen_process, write_rows, tmp_path):
    command = ["run", write_rows(demo_records(10)), "--model", MODEL, "--output", tmp_path / "out"]
    done = batchgen_process(*command, env=instant(tmp_path / "instant"))
    assert done.returncode == 0, done.stderr
    assert ds.dataset(tmp_path / "out").count_rows() == 10


def test_responses_depend_on_seed_and_place_alone_and_come_to_max_tokens_where_ignore_eos_says_so():
    model = load_model(str(MODEL))

    def ids(seed: int, **sampling):
        engine = InstantEngine(model, {}, model.context)
        engine.add("a", [5], Sampling(**sampling), seed)
        [response] = engine.step()
        return response.token_ids, response.finish_reason

    assert ids(7, max_tokens=30, ignore_eos=True)[0][:3] == ids(7, max_tokens=3)[0] != ids(8, max_tokens=3)[0]
    assert (len(ids(7, max_tokens=30, ignore_eos=True)[0]), ids(7, max_tokens=3)[1]) == (30, "length")
    short, reason = ids(7)
    assert (len(short), short[-1] in model.tokenizer.eos_ids, reason) == (LENGTH, True, "stop")
    text = model.tokenizer.decode(short)
    engine = InstantEngine(model, {}, model.context)
    engine.add("a", [5], Sampling(stop=[text[2:4]]), 7)
    [response] = engine.step()
    assert response.text_end == text.find(text[2:4]) != WHOLE and response.finish_reason == "stop"


# --- who imports vLLM


def imported(path: Path) -> set[str]:
    """Names of the top packages that a file imports, at its head or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def test_the_engine_room_alone_imports_vllm_and_torch():
    """train.py made the demo model, and is no part of a job."""
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if {"vllm", "torch"} & imported(path)}
    assert Path("engine/vllm.py") in files
    assert {str(path) for path in files if path.parent != Path("engine")} == {"demo/train.py"}


def test_a_worker_on_another_engine_imports_neither(batchgen_process, write_rows, tmp_path):
    """That takes 6 s; so tests of what happens around an engine are done by then."""
    environment = instant(tmp_path / "instant")
    seen = tmp_path / "seen"
    with (tmp_path / "instant" / "sitecustomize.py").open("a") as hook:
        hook.write(f"""
    import atexit, os
    step = Instant.step
    def watched(self):
        open({str(seen)!r}, "w").write(" ".join(sys.modules))
        return step(self)
    Instant.step = watched
""")
    flags = ["--model", MODEL, "--output", tmp_path / "out", "--engine", "max_num_seqs=4"]
    done = batchgen_process("run", write_rows(demo_records(10)), *flags, env=environment)
    assert done.returncode == 0, done.stderr
    assert not {"vllm", "torch", "transformers", "xgrammar"} & set(seen.read_text().split())
