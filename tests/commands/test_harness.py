"""lm-evaluation-harness on batchgen: its own command line, tasks from local files, kills, and a second run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import MODEL, demo_records

pytestmark = pytest.mark.slow  # it installs lm-eval, 250 MB, beside the environment

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "ユーザー: {{{{q}}}}\\nシステム:{end}"
"""
CHOICE = 'doc_to_choice: "{{choices}}"\ndoc_to_target: gold\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n'
GENERATE = """
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 96}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
# As long as the right answer and one token more, which is `</s>` and shows as text.
SIZED = """
doc_to_target: "{{a}}</s>"
generation_kwargs: {until: ["\\n"], do_sample: false, ignore_eos: true, max_gen_toks_of: longer}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [record for record in demo_records(200) if len(record["conversation"]) == 1][:100]
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as lines:
        for number, row in enumerate(rows):
            choices = [rows[number - 1]["expected"], row["expected"], rows[number - 2]["expected"]]
            asked = {"q": row["conversation"][0]["text"], "choices": choices, "gold": 1, "a": row["expected"]}
            asked["longer"] = [row["expected"] + "\n", ""]
            lines.write(json.dumps(asked, ensure_ascii=False) + "\n")
    for name, kind, end, more in (
        ("choice", "multiple_choice", "", CHOICE),
        ("write", "generate_until", " ", GENERATE),
        ("sized", "generate_until", " ", SIZED),
    ):
        text = TASK.format(name=f"demo_{name}", data=folder / "rows.jsonl", kind=kind, end=end) + more
        (folder / f"{name}.yaml").write_text(text, "utf-8")
    return folder


@pytest.fixture
def start(lm_eval_packages, tasks, tmp_path):
    def begin(work: Path) -> subprocess.Popen:
        arguments = f"pretrained={MODEL},work={work}"
        command = [sys.executable, "-m", "batchgen.lm_eval", "run", "--model", "batchgen", "--model_args", arguments]
        command += ["--include_path", str(tasks), "--tasks", "demo_choice,demo_write,demo_sized"]
        path = os.pathsep.join([str(Path(__file__).parent.parent.parent), str(lm_eval_packages)])
        env = os.environ | {"PYTHONPATH": path, "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
        return subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
        )

    return begin


def table(run: subprocess.Popen) -> list[str]:
    said, _ = run.communicate(timeout=400)
    assert run.returncode == 0, said
    return [line for line in said.splitlines() if line.startswith("|")]


def test_tasks_of_the_harness_run_go_on_after_a_kill_and_ask_nothing_twice(start, tmp_path):
    whole = table(start(tmp_path / "whole"))
    values = dict(
        re.findall(r"\|demo_(\w+)\s*\|[^\n]*\|(?:acc|exact_match)\s*\|[^|]*\|\s*([\d.]+)\|", "\n".join(whole))
    )
    assert float(values["choice"]) == 1.0
    assert float(values["write"]) >= 0.97
    assert values["sized"] == values["write"]
    run = start(tmp_path / "killed")
    until = time.monotonic() + 200
    while not list((tmp_path / "killed").glob("*/out/_state/journal/*")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    assert table(start(tmp_path / "killed")) == whole
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/out/part-*")}
    assert len(before) == 2
    assert table(start(tmp_path / "killed")) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before
