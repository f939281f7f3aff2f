"""`batchgen eval`: values known by hand, the demo model from end to end, and what is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import card_data
import pyarrow.parquet as pq
import pytest
from conftest import MODEL

from batchgen.commands import evaluate
from batchgen.errors import JobError
from batchgen.evaluation.card import TASKS
from batchgen.evaluation.prompts import documents
from batchgen.model.model import load_model

PROJECT = Path(__file__).parent.parent.parent
# A model of the harness that takes the shortest choice and always writes the same.
BY_RULE = """
import json, sys
from pathlib import Path
from lm_eval.api.model import LM
from batchgen.commands import evaluate

class ByRule(LM):
    def loglikelihood(self, requests, disable_tqdm=False):
        return [(-float(len(request.args[1])), False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm=False):
        return ["トウキョウ" for request in requests]

results = evaluate.evaluate(ByRule(), Path(sys.argv[1]), evaluate.names_of(sys.argv[2]), json.loads(sys.argv[3]))
print(json.dumps(evaluate.document(results, None)))
"""


@pytest.fixture
def with_harness(lm_eval_packages, tmp_path):
    def run(*arguments) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(PROJECT), str(lm_eval_packages)])
        env = os.environ | {"PYTHONPATH": path, "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)

    return run


def values(done: subprocess.CompletedProcess) -> dict[str, float]:
    assert done.returncode == 0, done.stderr
    return {task["task"]: task["value"] for task in json.loads(done.stdout.splitlines()[-1])["tasks"]}


@pytest.mark.slow
def test_the_value_of_each_task_is_the_one_counted_by_hand(with_harness, tmp_path):
    done = with_harness("-c", BY_RULE, card_data.write(tmp_path / "data"), "", "null")
    assert values(done) == {
        "jcommonsenseqa": 75.0,
        "jnli": 50.0,
        "marc_ja": 75.0,
        "jsquad": 25.0,
        "jaqket_v2": 50.0,
        "xwinograd_ja": 50.0,
    }
    means = json.loads(done.stdout.splitlines()[-1])["means"]
    assert [(mean["tasks"], mean["value"]) for mean in means] == [(4, 56.25), (6, pytest.approx(325 / 6))]


@pytest.mark.slow
def test_a_limit_takes_the_first_documents_in_the_forks_order(with_harness, tmp_path):
    """Those are numbers 2 and 1, of which the model takes one right."""
    done = with_harness("-c", BY_RULE, card_data.write(tmp_path / "data"), "marc_ja", "2")
    assert values(done) == {"marc_ja": 50.0}


def jobs(work: Path) -> dict[str, Path]:
    return {folder.name.partition("-")[0]: folder for folder in work.iterdir()}


def rows_of(job: Path) -> list[dict]:
    return [row for part in sorted((job / "out").glob("part-*")) for row in pq.read_table(part).to_pylist()]


@pytest.mark.slow
def test_the_demo_model_is_asked_exactly_the_prompts_of_the_tasks_and_never_twice(with_harness, tmp_path):
    data = card_data.write(tmp_path / "data")
    command = [
        "-m",
        "batchgen",
        "eval",
        MODEL,
        "--data",
        data,
        "--work",
        tmp_path / "work",
        "--json",
        tmp_path / "r.json",
    ]
    done = with_harness(*command)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:7]] == list(TASKS)
    found = jobs(tmp_path / "work")
    asked = {task: documents(data, task) for task in TASKS}
    scored = [document for task in ("jcommonsenseqa", "jnli", "marc_ja") for document in asked[task]]
    rows = rows_of(found["loglikelihood"])
    assert {(row["conversation"][-1]["text"], row["scores"][0]["text"]) for row in rows} == {
        (document["prompt"], choice) for document in scored for choice in document["choices"]
    }
    tokenizer = load_model(str(MODEL)).tokenizer
    assert all(row["prompt_tokens"] == len(tokenizer.encode(row["conversation"][-1]["text"])) for row in rows)
    alone = {row["scores"][0]["text"] for row in rows_of(found["alone"])}
    assert alone == {choice for document in asked["xwinograd_ja"] for choice in document["choices"]}
    longest = {
        document["prompt"]: max(len(tokenizer.encode(answer)) for answer in document["answers"])
        for task in ("jsquad", "jaqket_v2")
        for document in asked[task]
    }
    rows = rows_of(found["generate"])
    assert {row["conversation"][-1]["text"]: row["sampling"]["max_tokens"] for row in rows} == longest
    assert all((row["sampling"]["ignore_eos"], row["sampling"]["stop"]) == (True, ["\n"]) for row in rows)
    value = json.loads((tmp_path / "r.json").read_text())["tasks"][0]["value"]
    assert value == 100 * sum(is_best(document, rows_of(found["loglikelihood"])) for document in scored[:4]) / 4
    before = {part: part.stat().st_mtime_ns for part in (tmp_path / "work").glob("*/out/part-*")}
    assert len(before) == 3
    assert with_harness(*command).stdout == done.stdout
    assert {part: part.stat().st_mtime_ns for part in (tmp_path / "work").glob("*/out/part-*")} == before


def is_best(document: dict, rows: list[dict]) -> bool:
    scores = {
        row["scores"][0]["text"]: row["scores"][0]["logprob"]
        for row in rows
        if row["conversation"][-1]["text"] == document["prompt"]
    }
    return max(scores, key=lambda choice: scores[choice]) == document["answers"][0]


@pytest.mark.slow
def test_a_prompt_that_is_too_long_keeps_its_end(with_harness, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    card_data.whole(data / "train_jaqket.json", [card_data.quiz(10, ["骨川"])])
    long = card_data.quiz(0, ["京都府"])
    for context in long["ctxs"]:
        context["text"] = "東京は日本の首都です。" * 20
    card_data.whole(data / "dev_jaqket.json", [long])
    done = with_harness(
        "-m", "batchgen", "eval", MODEL, "--data", data, "--work", tmp_path / "work", "--tasks", "jaqket_v2"
    )
    assert done.returncode == 0, done.stderr
    [row] = rows_of(jobs(tmp_path / "work")["generate"])
    assert row["truncated"] > 0
    assert row["conversation"][-1]["text"].endswith("質問：問0は？\nシステム: ")
    context = load_model(str(MODEL)).context
    assert context - 8 <= row["prompt_tokens"] + row["sampling"]["max_tokens"] <= context


@pytest.mark.slow
def test_a_file_of_another_form_ends_it_in_one_line_before_an_engine_starts(with_harness, tmp_path):
    data = card_data.write(tmp_path / "data")
    (data / "jnli-v1.1/train-v1.1.json").write_text('{"sentence1": "a"}\n')
    done = with_harness("-m", "batchgen", "eval", MODEL, "--data", data, "--work", tmp_path / "work")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("batchgen:")]
    assert said == [f"batchgen: {data}/jnli-v1.1/train-v1.1.json, row 0: not of the form of jnli: no 'sentence2'"]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "work").exists()


# --- without the harness


def test_a_harness_that_is_not_installed_is_one_line(batchgen, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "batchgen.commands.harness", raising=False)
    done = batchgen("eval", MODEL, "--data", tmp_path)
    assert (done.exit_code, done.stderr) == (2, "batchgen: lm-eval is not installed: pip install 'lm_eval==0.4.13'\n")


def test_a_task_that_is_none_of_the_six_is_named(batchgen, tmp_path):
    done = batchgen("eval", MODEL, "--data", tmp_path, "--tasks", "jnli,jsqad")
    assert done.exit_code == 2
    assert done.stderr.startswith("batchgen: --tasks jsqad: the tasks are jcommonsenseqa, jnli,")
    assert done.stderr.count("\n") == 1


def test_files_that_are_missing_are_named_before_any_is_read(tmp_path):
    data = card_data.write(tmp_path)
    (data / "jcommonsenseqa-v1.1/valid-v1.1.json").write_text("no JSON")
    (data / "jsquad-v1.1/train-v1.1.json").unlink()
    with pytest.raises(JobError, match=re.escape(f"{data}: jsquad needs jsquad*/train-v*.json")):
        evaluate.check_files(data, list(TASKS))


def test_the_published_values_have_the_published_means():
    results = [evaluate.Result(task, 1000, task.published) for task in TASKS.values()]
    for mean in evaluate.averages(results):
        assert mean.value == pytest.approx(mean.fork, abs=0.006)


def test_the_table_has_values_beside_the_published_ones_and_says_how_far_off_they_may_be():
    results = [evaluate.Result(task, 1234, task.published + 0.5) for task in TASKS.values()]
    lines = list(evaluate.table(results, None))
    assert lines[0].split() == list(evaluate.HEAD)
    assert lines[1].split() == ["jcommonsenseqa", "3", "1,234", "acc", "50.01", "49.51", "+0.50"]
    assert "mean of 4" in lines[7] and "mean of 6" in lines[8]
    assert lines[-1].startswith("that model on all documents should be within 1 point")


def test_with_a_limit_nothing_is_compared():
    results = [evaluate.Result(TASKS["jnli"], 10, 40.0)]
    lines = list(evaluate.table(results, 10))
    assert lines[-1] == "of the first 10 documents only: not to be compared with what was published"
    assert not any("mean" in line for line in lines)
