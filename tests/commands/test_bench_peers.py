"""`batchgen bench peers` asks everybody the same, and looks at each from outside."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import MODEL, demo_records
from processes import until
from tokenizers import Tokenizer as HfTokenizer

from batchgen.commands import bench_peers
from batchgen.model.model import load_model

FLAGS = ["--model", MODEL, "--temperature", 0, "--max-tokens", 24]


def test_peers_get_a_model_whose_tokenizer_gives_our_ids(tmp_path):
    model = load_model(str(MODEL))
    folder = bench_peers._model_for_peers(model, tmp_path / "model")
    theirs = HfTokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [turn["text"] for record in demo_records(200) for turn in record["conversation"]]
    texts += ["ユーザー: ９時\nシステム: ", "a  b   c", "☃ é", "１２３ ﾃｽﾄ"]
    for text in texts:
        ids = model.tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        assert theirs.decode(ids) == model.tokenizer.decode(ids)


def test_a_table_has_a_line_for_each_way():
    each = {"on_disk": 17.96, "ended": 18.1, "cpu_seconds": 17.5, "responses": 2000, "memory_mb": 1463, "equal": 1990}
    ways = {
        "run": each | {"generation": 10.1, "tokens_per_second": 4390.4},
        "ray": each | {"generation": None, "tokens_per_second": None},
    }
    assert bench_peers.table({"ways": ways})[2:] == [
        "| run | 2,000 | 18.0 s | 18.1 s | 17.5 s | 10.1 s | 4,390 | 1.5 GB | 1,990 |",
        "| ray | 2,000 | 18.0 s | 18.1 s | 17.5 s | - | - | 1.5 GB | 1,990 |",
    ]


def test_a_way_that_is_not_known_and_a_job_that_peers_cannot_do_are_one_line(batchgen, write_rows, tmp_path):
    rows = write_rows(demo_records(1))
    flags = [rows, *FLAGS, "--output", tmp_path / "out"]
    unknown = batchgen("bench", "peers", *flags, "--only", "sglang")
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (2, 1) and "the ways are run, generate" in unknown.stderr
    stop = batchgen("bench", "peers", *flags, "--stop", "x")
    assert (stop.exit_code, "[sampling] stop: peers cannot" in stop.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_what_a_process_has_started_is_seen_in_a_session_of_its_own_too():
    """As Ray's workers are."""
    busy = "import time\nwhile time.process_time() < 60: pass"
    with subprocess.Popen(
        ["sh", "-c", f"setsid {sys.executable} -c '{busy}' & wait"], start_new_session=True
    ) as leader:
        try:
            until(lambda: sum(map(bench_peers._cpu_of, bench_peers._processes_of(leader.pid))) > 0.3)
            assert sum(map(bench_peers._memory_of, bench_peers._processes_of(leader.pid))) > 4e6
        finally:
            for folder in list(bench_peers._processes_of(leader.pid)):
                os.kill(int(folder.name), signal.SIGKILL)


@pytest.mark.slow
def test_run_and_what_vllm_brings_give_the_same_greedy_responses(batchgen_process, write_rows, tmp_path):
    rows = write_rows(demo_records(24))
    only = [f"--only={way}" for way in ("run", "generate", "run-batch", "datatrove")]
    flags = [*FLAGS, "--output", tmp_path / "out", "--json", tmp_path / "figures.json"]
    done = batchgen_process("bench", "peers", rows, *flags, *only)
    assert done.returncode == 0, done.stderr
    assert "batchgen: warning: datatrove: datatrove is not installed\n" in done.stderr
    figures = json.loads((tmp_path / "figures.json").read_bytes())
    assert list(figures["ways"]) == ["run", "generate", "run-batch"]
    for each in figures["ways"].values():
        assert (each["responses"], each["equal"]) == (24, 24)
        assert 0 < each["on_disk"] <= each["ended"] and each["memory_mb"] > 300 and each["cpu_seconds"] > 1
    assert len({each["response_tokens"] for each in figures["ways"].values()}) == 1
    assert 0 < figures["ways"]["run"]["generation"] < figures["ways"]["run"]["on_disk"]
    assert done.stdout.count("\n| ") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "in.jsonl"]
