"""The loop and its tasks: requests of several parts and tries, those that are the same, and what a resume makes again.

A task of the tests' own stands for all that are to come: it knows the loop by `task.Task` alone.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MODEL

from batchgen.engine.vllm import Response
from batchgen.errors import Reject, Stopped
from batchgen.job.sampler import NONE
from batchgen.job.sampling import item_seed
from batchgen.job.spec import load
from batchgen.output import opening
from batchgen.output.claims import Claims
from batchgen.output.journal import Journal
from batchgen.runner.open_shard import OpenShard
from batchgen.runner.prepare import Job, prepare
from batchgen.runner.run import missing_shards
from batchgen.runner.worker import Worker
from batchgen.task.flow import work_of
from batchgen.task.task import Answer, Entry, Name, Request


@dataclasses.dataclass(frozen=True)
class Lines:
    """Every line of a text is a part; equal lines are the same request; an answer that ends with an odd token id is
    tried again, twice at most. An output row has the first token id of each line's last try."""

    job: Job
    refuses: str = ""
    too_large: str = ""  # a line with whose row no shard can be written

    schema = pa.schema([("row", pa.int64()), ("sample", pa.int32()), ("prompt_tokens", pa.int32())]).append(
        pa.field("response_tokens", pa.int32())
    )
    schema = schema.append(pa.field("firsts", pa.list_(pa.int32()))).append(pa.field("tries", pa.list_(pa.int32())))
    columns_read = ("text",)
    columns = ()

    def prepare(self, rows):
        for row in rows:
            lines = row.record()["text"].splitlines()
            requests = [self._request(row.number, part, line, 0) for part, line in enumerate(lines)]
            yield row, Read(row.number, str(row.number), lines, requests)

    def _request(self, row: int, part: int, line: str, attempt: int) -> Request:
        ids = self.job.model.tokenizer.encode(line)
        name, key = Name(row, part, 0, attempt), (line, attempt)
        return Request(name, ids, self.job.task.sampling, item_seed(0, line, 0, 0, attempt), key)

    def id_of(self, row) -> str:
        return str(row.number)

    def next_tries(self, work: "Read", request: Request, entry: Entry) -> list[Request]:
        row, part, _, attempt = request.name
        if entry.token_ids[-1] % 2 == 0 or attempt == 2:
            return []
        return [self._request(row, part, work.lines[part], attempt + 1)]

    def has_failed(self, row: dict) -> bool:
        return False

    def audit(self, finished) -> None:
        return None

    def output(self, work: "Read", answers: Sequence[Answer]) -> list[dict]:
        if self.refuses in work.lines:
            raise Reject("bad_shape", f"{self.refuses} is refused")
        last = {answer.request.name.part: answer for answer in answers}
        tries = Counter(answer.request.name.part for answer in answers)
        row = {"row": work.row, "sample": 0, "prompt_tokens": 0, "response_tokens": 0}
        row |= {"prompt_tokens": 1 << 40} if self.too_large in work.lines else {}
        firsts = [last[part].entry.token_ids[0] for part in range(len(work.lines))]
        return [{**row, "firsts": firsts, "tries": [tries[part] for part in range(len(work.lines))]}]


@dataclasses.dataclass
class Read:
    row: int
    id: str
    lines: list[str]
    requests: list[Request]


class Seeded:
    """Answers one request a step, from its seed alone; remembers all that it was asked."""

    dtype, device, model_impl, sampler, max_num_seqs = "none", "answers at once", "none", NONE, 4

    def __init__(self, fails: str = ""):
        self.asked: list[str] = []
        self._fails = fails
        self._left: list[Response] = []

    def add(self, name, prompt, sampling, seed, adapter=None, scored=0):
        self.asked.append(name)
        if name == self._fails:
            raise Reject("engine_error", "refused")
        self._left.append(Response(name, [seed % 1000, seed % 7], "stop"))

    def step(self):
        return [self._left.pop(0)] if self._left else []

    def when_process_dies(self, tell):
        pass


def tries_of(line: str) -> int:
    return next((attempt + 1 for attempt in range(3) if item_seed(0, line, 0, 0, attempt) % 7 % 2 == 0), 3)


TEXTS = ["one\ntwo", "two\nthree\none", "four", "four\ntwo", "five\nsix\nseven\neight"]


@pytest.fixture
def job_of(write_rows, tmp_path):
    def make(out="out", texts=TEXTS, shard_rows=100, **task) -> Job:
        path = write_rows([{"text": text} for text in texts], "lines.jsonl")
        tables = {"input": {"path": [str(path)]}, "output": {"path": str(tmp_path / out), "shard_rows": shard_rows}}
        job = prepare(load(None, {"model": {"path": str(MODEL)}, **tables}))
        opening.open_job(job.out, job.record)
        return dataclasses.replace(job, task=Lines(job, **task))

    return make


def work(job: Job, engine: Seeded) -> Worker:
    worker = Worker(job, engine, Claims(job.out, stale=60))
    worker.run(missing_shards(job))
    return worker


def rows(job: Job) -> list[dict]:
    return pq.read_table(sorted(Path(job.out.location).glob("part-*.parquet"))).to_pylist()


def test_a_row_is_done_when_its_task_asks_for_no_further_try(job_of):
    job = job_of()
    work(job, Seeded())
    expected = [[tries_of(line) for line in text.splitlines()] for text in TEXTS]
    assert [row["tries"] for row in rows(job)] == expected
    assert max(tries for each in expected for tries in each) > 1  # or else nothing was tried again


def test_requests_of_a_shard_with_the_same_key_are_generated_once(job_of):
    job, engine = job_of(), Seeded()
    work(job, engine)
    assert len(engine.asked) == sum(map(tries_of, {line for text in TEXTS for line in text.splitlines()}))
    firsts = {}
    for text, row in zip(TEXTS, rows(job), strict=True):
        for line, first in zip(text.splitlines(), row["firsts"], strict=True):
            assert firsts.setdefault(line, first) == first


def test_each_shard_generates_its_own(job_of):
    job, engine = job_of(shard_rows=1), Seeded()
    work(job, engine)
    assert len(engine.asked) == sum(tries_of(line) for text in TEXTS for line in text.splitlines())


@pytest.mark.parametrize("steps", range(1, 12))
def test_a_resume_generates_only_what_is_missing_whatever_was_done(job_of, steps):
    whole, all_at_once = job_of("whole"), Seeded()
    work(whole, all_at_once)
    job, engine = job_of(), Seeded()
    worker = Worker(job, engine, Claims(job.out, stale=60), window=2)
    step = engine.step

    def stopping():
        if len(engine.asked) >= steps:
            worker.stop()
        return step()

    engine.step = stopping
    with pytest.raises(Stopped):
        worker.run(missing_shards(job))
    second = Seeded()
    work(job, second)
    assert sorted(engine.asked + second.asked) == sorted(all_at_once.asked)
    assert rows(job) == rows(whole)


def test_one_of_several_parts_that_fails_rejects_its_row_and_others_still_get_the_same_answer(job_of):
    job, engine = job_of(), Seeded(fails="0-0-1-0")  # "two" of row 0, for which rows 1 and 3 wait
    work(job, engine)
    assert [row["row"] for row in rows(job)] == [1, 2, 3, 4]
    assert (Path(job.out.location) / "_rejects").is_dir()
    assert sum(name.split("-")[-2:] == ["1", "0"] for name in engine.asked) >= 2  # another one asked in its place


def test_a_task_may_reject_a_row_by_its_answers(job_of):
    job = job_of(refuses="four")
    work(job, Seeded())
    assert [row["row"] for row in rows(job)] == [0, 1, 4]


def test_a_row_that_no_shard_can_hold_costs_itself_alone_beside_one_that_its_task_rejects(job_of):
    job = job_of(refuses="four", too_large="five")
    work(job, Seeded())
    assert [row["row"] for row in rows(job)] == [0, 1]


def test_of_two_answers_to_the_same_request_the_first_counts_for_all_rows(job_of):
    job = job_of(texts=["one", "one"])
    left = {Name(1, 0, 0, 0): Entry(1, 0, [6, 6], "stop")}  # by a worker that did not ask it for row 0
    opened = OpenShard(job.plan.shards[0], job.task, Journal(job.out, 0, "w", job.record.fingerprint), left)
    [request] = [
        each for row, work in work_of(job.task, job.reader(), job.plan.shards) for each in opened.take(row, work)
    ]
    opened.answer(request, Entry(0, 0, [8, 8], "stop"))
    assert [job.task.output(*each)[0]["firsts"] for each in sorted(opened.finished, key=lambda done: done[0].row)] == [
        [6],
        [6],
    ]
