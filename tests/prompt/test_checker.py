"""Checks in a process of their own: what takes too long or too much costs its row, and nothing else."""

import json
import os
import shutil
import signal
import time

import pytest
from conftest import MODEL, demo_records
from llama import TEMPLATE, llama  # noqa: F401
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from batchgen.errors import Reject
from batchgen.input.conversation import USER, Utterance
from batchgen.job.spec import load
from batchgen.model.hf_tokenizer import HfTokenizer
from batchgen.runner.prepare import Job, prepare
from batchgen.task.flow import work_of
from batchgen.task.generate import TOGETHER

# Of Qwen2: it tries a run of blanks from each of them on.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture
def model(llama, tmp_path):  # noqa: F811
    """A copy of the model, with a template of ours, and a tokenizer that is changed."""

    def make(template: str = TEMPLATE, change=lambda tokenizer: None):
        folder = shutil.copytree(llama, tmp_path / "model")
        (folder / "chat_template.jinja").write_text(template)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        change(tokenizer)
        tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return make


@pytest.fixture
def job_of(write_rows, tmp_path):
    def make(rows: list[dict], folder=MODEL, **tables) -> Job:
        tables = {"output": {"path": str(tmp_path / "out")}, "limits": {"check_seconds": 1.0}, **tables}
        tables |= {"input": {"path": [str(write_rows(rows))]}, "model": {"path": str(folder)}}
        return prepare(load(None, tables))

    return make


def made(job: Job) -> list[str]:
    works = work_of(job.task, job.reader(), job.plan.shards[:1])
    return [work.reason if isinstance(work, Reject) else work.prompt for _, work in works]


def costly(tokenizer: Tokenizer) -> None:
    """Z becomes 10^9 letters, and blanks are tried as with Qwen2."""
    steps = [normalizers.Replace("Z", "z" * 1000), *[normalizers.Replace("z", "z" * 1000)] * 2]
    tokenizer.normalizer = normalizers.Sequence(steps)
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
COSTLY = (
    "{% if 'LOOP' in messages[-1].content %}" + LOOPS + "{% endif %}"
    "{% if 'MEMORY' in messages[-1].content %}{{ 'x' * 3000000000 }}{% endif %}{{ messages[-1].content }}"
)


def test_a_prompt_that_costs_too_much_is_rejected_and_the_others_are_made(model, job_of):
    rows = [{"text": f"row {number}"} for number in range(2 * TOGETHER + 3)]
    bad = {5: "LOOP", 6: "MEMORY", TOGETHER + 1: "ZZZZ", 2 * TOGETHER: "a" + " " * 11_000_000 + "b"}
    for number, text in bad.items():
        rows[number] = {"text": text}
    prompts = made(job_of(rows, model(COSTLY, costly)))
    expected = ["too_costly" if number in bad else row["text"] for number, row in enumerate(rows)]
    assert prompts == expected


def test_a_kill_from_outside_costs_no_row(model, job_of):
    job = job_of([{"text": "a"}, {"text": "b"}], model())
    prompts = made(job)
    process = job.task.checker._prompts
    os.kill(children_of(process._end.peek()[2][0].pid)[0], signal.SIGKILL)  # the copy that answers
    assert made(job) == prompts
    os.kill(process._end.peek()[2][0].pid, signal.SIGKILL)  # and the one that lends it
    assert made(job) == made(job) == prompts


def test_answers_that_nobody_waited_for_do_not_go_to_the_next_row(model, job_of):
    job = job_of([{"text": f"row {number}"} for number in range(3 * TOGETHER)], model())
    rows = work_of(job.task, job.reader(), job.plan.shards[:1])
    next(rows)
    assert [f"row {number}" in prompt for number, prompt in enumerate(made(job))] == [True] * 3 * TOGETHER


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_signals_that_are_meant_for_the_run_do_not_end_its_checks(model, job_of):
    job = job_of([{"text": "a"}], model())
    made(job)
    process = job.task.checker._prompts._end.peek()[2][0]
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        os.kill(process.pid, number)
    time.sleep(0.2)
    assert process.poll() is None


def test_a_schema_that_takes_too_long_to_compile_is_rejected(job_of):
    schema: dict = {"type": "string"}
    for _ in range(400):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    wide = {"schema_depth": 10_000, "schema_bytes": 1 << 20, "check_seconds": 0.5}
    rows = [{"text": "x", "sampling": {"structured_outputs": {"json": json.dumps(schema)}}}, demo_records(1)[0]]
    job = job_of(rows, limits=wide)
    [(_, why), (_, good)] = work_of(job.task, job.reader(), job.plan.shards[:1])
    assert str(why) == "too_costly: structured_outputs takes more than 0.5 s to check ([limits] check_seconds)"
    assert not isinstance(good, Reject)


DATED = "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}{% else %}no day{% endif %}"


@pytest.mark.parametrize(("day", "prompt"), [("", "no day"), ("2024-07-26", "2024-07-26")])
def test_a_prompt_does_not_depend_on_the_day_on_which_it_is_made(model, day, prompt):
    tokenizer = HfTokenizer.load(model(DATED), {})
    tokenizer.date = day
    assert tokenizer.render([Utterance(USER, "a")]) == prompt


def test_a_template_that_must_have_a_day_says_so(model):
    tokenizer = HfTokenizer.load(model("{{ strftime_now('%Y') }}"), {})
    with pytest.raises(Reject, match="set a date with"):
        tokenizer.render([Utterance(USER, "a")])
