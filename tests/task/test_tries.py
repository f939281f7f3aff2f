"""Checked responses: what fails is tried again, and the best of the tries is the row's answer."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import MODEL

from batchgen.commands.verify import verify
from batchgen.engine.types import Response
from batchgen.errors import JobError, Stopped
from batchgen.job.sampler import NONE
from batchgen.job.sampling import item_seed
from batchgen.job.spec import load
from batchgen.model.model import load_model
from batchgen.output import opening
from batchgen.output.claims import Claims
from batchgen.runner.prepare import Job, prepare
from batchgen.runner.run import close, missing_shards
from batchgen.runner.worker import Worker

SOURCE = "Ken bought 12 boxes of cookies for 30 dollars at the station."
RIGHT = "ケンさんは駅でクッキーを12箱、30ドルで買いました。"
LOOP = "ケンさんは、" * 20
WRONG = {
    "empty": (" ", "stop"),
    "truncated": (RIGHT, "length"),
    "repetition": (f"12箱、30ドル。{LOOP}", "stop"),
    "copy": (SOURCE, "stop"),
    "language": ("Ken san wa eki de kukkii wo 12 hako, 30 doru de kaimashita.", "stop"),
    "length": (f"{RIGHT}12と30。" + "それはとても良い日で、みんなが駅の前で楽しそうに話していました。" * 3, "stop"),
    "numbers": (RIGHT.replace("12", "13"), "stop"),
}


class Says:
    """An engine that says what it is told to: answers[row][attempt] is a text, or a text and how it ended; the last one
    of a row is repeated."""

    dtype, device, model_impl, sampler, max_num_seqs = "none", "says what it is told to", "none", NONE, 4

    def __init__(self, answers):
        self._answers = answers
        self._tokenizer = load_model(str(MODEL)).tokenizer
        self._left: list[Response] = []
        self.asked: list[tuple] = []
        self.answered: list[str] = []

    def add(self, name, prompt, sampling, seed, adapter=None, scored=0):
        row, attempt = int(name.split("-")[0]), int(name.split("-")[3]) if name.count("-") == 3 else 0
        self.asked.append((name, sampling, seed))
        told = self._answers[row]
        answer = told[min(attempt, len(told) - 1)]
        text, reason = answer if isinstance(answer, tuple) else (answer, "stop")
        ids = self._tokenizer.encode(text)
        self._left.append(Response(name, ids, reason, [[(token, -1.0 - attempt)] for token in ids]))

    def step(self):
        if not self._left:
            return []
        response = self._left.pop(0)
        self.answered.append(response.request_id)
        return [response]

    def when_process_dies(self, tell):
        pass


@pytest.fixture
def job_of(write_rows, tmp_path):
    def make(answers, out="out", check=None, **tables) -> Job:
        """With one row for each list of answers."""
        rows = write_rows([{"id": f"r{number}", "text": SOURCE} for number in range(len(answers))])
        check = {"language": "ja", "source_language": "en", "checks": list(WRONG), **(check or {})}
        tables |= {"input": {"path": [str(rows)]}, "output": {"path": str(tmp_path / out)}, "check": check}
        job = prepare(load(None, {"model": {"path": str(MODEL)}, **tables}))
        opening.open_job(job.out, job.record)
        return job

    return make


def work(job: Job, engine: Says, stop_after: int = 0) -> None:
    """stop_after: answers; 0 to work to the end"""
    worker = Worker(job, engine, Claims(job.out, stale=60), window=1 if stop_after else None)
    step = engine.step

    def stopping():
        responses = step()
        if len(engine.answered) == stop_after:
            worker.stop()
        return responses

    engine.step = stopping if stop_after else step
    worker.run(missing_shards(job))


def read(job: Job) -> list[dict]:
    return pq.read_table(sorted(Path(job.out.location).glob("part-*.parquet"))).to_pylist()


@pytest.fixture
def run(job_of):
    """Answers one row per list of answers, in their order of tries. Gives engine, output rows and output folder."""

    def answer(*answers, **tables):
        job, engine = job_of(answers, **tables), Says(answers)
        work(job, engine)
        close(job)
        return engine, read(job), Path(job.out.location)

    return answer


@pytest.mark.parametrize("check", WRONG)
def test_each_check_catches_what_it_is_named_after(run, check):
    _, [row], _ = run([WRONG[check]], check={"checks": list(WRONG), "tries": 1})
    assert check in row["failed_checks"]


def test_a_right_answer_fails_none_and_is_tried_once(run):
    _, [row], _ = run([RIGHT], check={"checks": list(WRONG)})
    assert (row["response"], row["tries"], row["failed_checks"]) == (RIGHT, 1, [])


def test_an_answer_that_fails_is_tried_again_until_one_passes(run):
    engine, [row], _ = run([" ", SOURCE, RIGHT, " "], check={"checks": list(WRONG), "tries": 5})
    assert (row["response"], row["tries"], row["failed_checks"]) == (RIGHT, 3, [])
    assert [name for name, _, _ in engine.asked] == ["0-0", "0-0-0-1", "0-0-0-2"]


def test_every_try_has_a_seed_of_its_own_which_the_row_records(run):
    engine, [row], _ = run([" ", RIGHT], check={"checks": ["empty"]})
    assert [seed for _, _, seed in engine.asked] == [item_seed(0, "r0", 0), item_seed(0, "r0", 0, 0, 1)]
    assert row["seed"] == item_seed(0, "r0", 0, 0, 1)


def test_further_tries_have_the_sampling_of_retry_which_the_row_records(run):
    check = {"checks": ["empty"], "retry": {"temperature": 0.3, "top_k": 5}}
    engine, rows, _ = run([" ", RIGHT], [RIGHT], check=check, sampling={"temperature": 1.2})
    asked = {name: (sampling.temperature, sampling.top_k) for name, sampling, _ in engine.asked}
    assert asked == {"0-0": (1.2, 0), "1-0": (1.2, 0), "0-0-0-1": (0.3, 5)}
    assert [row["sampling"]["temperature"] for row in rows] == [0.3, 1.2]


@pytest.mark.parametrize(("least", "tries"), [("logprob:-1.5", 1), ("logprob:-0.5", 3)])
def test_an_answer_that_the_model_is_unsure_of_is_tried_again(run, least, tries):
    _, [row], _ = run([RIGHT], check={"checks": [least]})  # the first has a log probability of -1 a token
    assert (row["tries"], row["failed_checks"]) == (tries, [least] if tries > 1 else [])


def test_log_probabilities_are_asked_for_where_a_check_needs_them(run):
    engine, [row], _ = run([RIGHT], check={"checks": ["logprob:-0.5"], "tries": 1})
    assert [sampling.logprobs for _, sampling, _ in engine.asked] == [0]
    assert row["failed_checks"] == ["logprob:-0.5"]


@pytest.mark.parametrize("check", ["logprob:", "logprob:0.5", "logprob:nan", "logprob:few"])
def test_a_log_probability_that_none_can_be_is_told(job_of, check):
    with pytest.raises(JobError, match=r"write a number below 0, as in logprob:-0\.2"):
        job_of([[RIGHT]], check={"checks": [check]})


def test_a_greedy_request_is_not_tried_again_greedily(run):
    engine, _, _ = run([" ", RIGHT], check={"checks": ["empty"]}, sampling={"temperature": 0})
    assert [sampling.temperature for _, sampling, _ in engine.asked] == [0, 0.7]


def test_every_sample_of_a_row_has_its_own_tries(run):
    engine, rows, _ = run([" ", RIGHT], check={"checks": ["empty"]}, sampling={"n": 2})
    assert [(row["sample"], row["tries"], row["response"]) for row in rows] == [(0, 2, RIGHT), (1, 2, RIGHT)]
    assert [name for name, _, _ in engine.asked] == ["0-0", "0-1", "0-0-0-1", "0-1-0-1"]


@pytest.mark.parametrize("answered", range(1, 7))
def test_a_job_that_was_stopped_makes_no_try_again_and_comes_out_the_same(job_of, answered):
    told = [" ", SOURCE, RIGHT], [RIGHT], [" ", " ", " "]
    whole, stopped = job_of(told, "whole"), job_of(told, "stopped")
    work(whole, Says(told))
    first, second = Says(told), Says(told)
    with pytest.raises(Stopped):
        work(stopped, first, stop_after=answered)
    work(stopped, second)
    assert sorted([*first.answered, *second.answered]) == sorted({name for name, _, _ in [*first.asked, *second.asked]})
    assert [each["tries"] for each in read(whole)] == [3, 1, 3]
    assert read(stopped) == read(whole)


def test_the_try_that_fails_fewest_checks_wins(run):
    _, [row], _ = run([" ", WRONG["numbers"], SOURCE], check={"checks": list(WRONG)})
    assert (row["response"], row["tries"], row["failed_checks"]) == (WRONG["numbers"][0], 3, ["numbers"])


def test_of_equal_tries_the_text_that_most_agree_on_wins_then_the_likelier(run):
    other = RIGHT.replace("12", "14")
    agreed = WRONG["numbers"][0]
    _, rows, _ = run([other, agreed, agreed], [other, agreed, RIGHT.replace("12", "99")], check={"checks": ["numbers"]})
    assert [row["response"] for row in rows] == [agreed, other]  # the engine finds earlier tries likelier


@pytest.mark.parametrize("policy, response", [("keep", " "), ("null", None)])
def test_a_response_that_fails_every_try_is_kept_or_left_out(run, policy, response):
    _, rows, _ = run([" "], [RIGHT], check={"checks": ["empty"], "on_failure": policy})
    assert [(row["response"], row["tries"]) for row in rows] == [(response, 3), (RIGHT, 1)]


def test_or_its_row_is_rejected(run):
    _, [row], out = run([" "], [RIGHT], check={"checks": ["empty"], "on_failure": "reject"})
    [line] = [json.loads(line) for path in (out / "_rejects").glob("*") for line in path.read_text().splitlines()]
    assert row["row"] == 1
    assert (line["row"], line["reason"]) == (0, "check_failed")
    assert "empty" in line["detail"] and "3 tries" in line["detail"]


def test_a_loop_ends_while_it_is_generated(run):
    engine, _, _ = run([RIGHT], check={"checks": ["repetition"]})
    assert engine.asked[0][1].repetition_detection.min_count == 8


@pytest.mark.parametrize("policy", ["keep", "null", "reject"])
def test_verify_closes_the_accounting_of_checked_rows(run, policy):
    _, _, out = run([" "], [" ", RIGHT], [RIGHT], check={"checks": ["empty"], "on_failure": policy})
    verdict = verify(out)
    assert verdict.problems == []


def test_a_pattern_must_or_must_not_be_there(run):
    check = {"checks": ["regex:^[ァ-ヴ]", "forbidden:ドル"], "tries": 1}
    _, rows, _ = run([RIGHT], ["クッキー"], ["cookies"], check=check)
    assert [row["failed_checks"] for row in rows] == [["forbidden:ドル"], [], ["regex:^[ァ-ヴ]"]]


def test_json_must_be_json(run):
    _, rows, _ = run(['{"a": 1}'], ['{"a": '], check={"checks": ["json"], "tries": 1})
    assert [row["failed_checks"] for row in rows] == [[], ["json"]]


@pytest.fixture
def own(tmp_path):
    """A file of the user's own checks; its check's name."""

    def write(body: str, name="my.py") -> str:
        path = tmp_path / name
        path.write_text(f"def check(row, response):\n{body}\n")
        return f"{path}:check"

    return write


def test_a_users_own_check_sees_the_row_and_the_response(run, own):
    check = own("    return None if row['id'] == 'r0' and 'ケン' in response else 'no'")
    _, rows, _ = run([RIGHT], [RIGHT], check={"checks": [check], "tries": 1})
    assert [row["failed_checks"] for row in rows] == [[], [check]]


def test_it_is_asked_once_for_every_try(run, own):
    """So one that answers by chance, or by asking a program, has one word on each."""
    check = own("    open(__file__ + '.log', 'a').write(f'{response} ')\n    return 'no'")
    _, [row], _ = run(["一", "二", "三"], check={"checks": [check], "tries": 3})
    seen = Path(f"{check.rpartition(':')[0]}.log").read_text().split()
    assert (seen, row["response"]) == (["一", "二", "三"], "一")


def test_an_exception_in_it_rejects_the_row_with_its_line(run, own):
    check = own("    x = 1\n    return 1 / (len(row['id']) - len(row['id'])) if row['id'] == 'r0' else None")
    _, [row], out = run([RIGHT], [RIGHT], check={"checks": [check]})
    [line] = [json.loads(line) for path in (out / "_rejects").glob("*") for line in path.read_text().splitlines()]
    assert row["row"] == 1
    assert (line["row"], line["reason"]) == (0, "check_error")
    assert line["detail"].startswith("my.py:3: ZeroDivisionError")


def test_another_content_of_its_file_is_drift(run, own):
    run([RIGHT], check={"checks": [own("    return None")], "tries": 1})
    with pytest.raises(JobError, match=r"my[.]py"):
        run([RIGHT], check={"checks": [own("    return 'no'")], "tries": 1})


@pytest.mark.parametrize(
    "table, said",
    [
        ({"checks": ["emtpy"]}, "did you mean empty"),
        ({"checks": ["regex:("]}, "regex:"),
        ({"checks": ["missing.py:check"]}, "missing.py"),
        ({"checks": ["language"], "language": ""}, "which one is not said"),
        ({"checks": ["empty"], "retry": {"temprature": 1}}, "temprature"),
        ({"checks": ["empty"], "retry": {"temperature": 9}}, "retry"),
    ],
)
def test_what_cannot_be_checked_is_said_before_the_engine_starts(run, table, said):
    with pytest.raises(JobError, match=re.escape(said)):
        run([RIGHT], check=table)


def test_reranked_the_likeliest_of_n_responses_is_kept_and_proven(generate, write_rows):
    rows = write_rows([{"id": f"r{number}", "text": SOURCE} for number in range(6)])
    sampling = {"temperature": 1.5, "n": 4, "logprobs": 0}
    every = read_folder(generate([rows], "every", sampling=sampling))
    out = generate([rows], "best", sampling=sampling | {"rerank": "logprob"})

    def mean(row):
        return sum(step[0]["logprob"] for step in row["logprobs"]) / len(row["logprobs"])

    best = [max((row for row in every if row["row"] == number), key=mean) for number in range(6)]
    assert read_folder(out) == best
    assert len({row["sample"] for row in best}) > 1
    assert verify(out).problems == []


def read_folder(out: Path) -> list[dict]:
    return pq.read_table(sorted(out.glob("part-*.parquet"))).to_pylist()
