"""A sweep: each of its responses is the one of a plain job with that setting; what is the same is asked once."""

import json

import pyarrow.dataset as ds
import pytest
from conftest import MODEL, demo_records
from llama import llama  # noqa: F401

from batchgen.errors import Reject
from batchgen.job.spec import load
from batchgen.runner.prepare import prepare
from batchgen.task.flow import work_of
from batchgen.task.generate import Generate

WHOLE = {"include": ["prompt", "prompt_token_ids", "response_token_ids", "mean_logprob"], "columns": ["topic"]}
CHECK = {"checks": ["truncated", "regex:[aeiou]"], "tries": 3}


def responses(out) -> list[dict]:
    found = ds.dataset(out).to_table().to_pylist()
    return sorted(found, key=lambda row: (row["row"], row.get("setting", 0), row["sample"]))


@pytest.fixture
def texts(write_rows):
    """Some with sampling parameters, a number of samples or a seed of their own."""
    rows = [{"id": row["id"], "text": row["conversation"][-1]["text"], "topic": "x"} for row in demo_records(7)]
    rows[1] |= {"sampling": {"temperature": 0.9, "top_k": 20}}
    rows[2] |= {"sampling": {"n": 3}}
    rows[3] |= {"seed": 12345}
    rows[4] |= {"sampling": {"temperature": 0}, "seed": 7}
    return write_rows(rows)


@pytest.fixture
def job_of(texts, tmp_path):
    """The job of a sweep over all rows, as it would be made."""

    def make(path=texts, sampling=None, check=None, prompt=None, **sweep):
        tables = {
            "input": {"path": [str(path)]},
            "model": {"path": str(MODEL)},
            "output": {"path": str(tmp_path / "new")},
        }
        tables |= {"sampling": sampling or {}, "check": check or {}, "prompt": prompt or {}}
        return prepare(load(None, tables | {"sweep": {"method": "grid", "rows": "all", **sweep}}))

    return make


SWEEPS = {
    "sampled and greedy": {"temperature": [0, 1.5], "top_p": [0.6, 1.0], "repetition_penalty": [1.0, 1.3]},
    "templates": {"template": ["{text}", "{topic}: {text}"], "max_tokens": [8, 30]},
    "one after the other": {"method": "list", "temperature": [2.0, 1.7], "seed": [3, 4], "n": [1, 2]},
    "best of several": {"n": [1, 3], "also": [{"name": "likeliest", "n": 3, "rerank": "logprob"}]},
}
CASES = [
    ("sampled and greedy", {}, 6),
    ("sampled and greedy", CHECK, 6),
    ("templates", {}, 4),
    ("templates", CHECK, 4),
    ("one after the other", {}, 2),
    ("one after the other", CHECK, 2),
    ("best of several", {}, 3),
]


@pytest.mark.parametrize(("name", "check", "settings"), CASES)
def test_every_response_is_that_of_a_plain_job_with_its_setting(generate, texts, job_of, name, check, settings):
    base = {"n": 2, "max_tokens": 24, "temperature": 2.0, "top_p": 1.0}
    asked = {"method": "grid", "rows": "all", **SWEEPS[name]}
    found = responses(generate([texts], "sweep", sampling=base, sweep=asked, check=check, output=WHOLE))
    made = job_of(sampling=base, check=check, **SWEEPS[name]).task.settings
    assert len(made) == settings
    for setting in made:
        of_it = [
            {key: row[key] for key in row if key != "setting"} for row in found if row["setting"] == setting.number
        ]
        prompt, tables = {"template": setting.template}, {"sampling": setting.sampling, "check": check, "output": WHOLE}
        assert responses(generate([texts], f"plain-{setting.number}", prompt=prompt, **tables)) == of_it, setting.name
    assert len({row["response"] for row in found}) > len({row["id"] for row in found})


def works(job) -> list:
    return [work for _, work in work_of(job.task, job.reader(), job.plan.shards)]


def test_greedy_samples_and_settings_that_coincide_for_a_row_are_asked_once(job_of):
    own, *rest = works(job_of(sampling={"n": 4}, temperature=[0, 0.5, 0.9], top_p=[0.85, 0.5], top_k=[20]))[1:]
    assert len({request.key for request in rest[0].requests}) == 1 + 4 * 3  # n is 3 there: greedy, and four sampled
    assert len(rest[0].requests) == 5 * 3
    assert [request.name.part for request in own.requests] == [part for part in range(5) for _ in range(4)]
    assert len({request.key for request in own.requests}) == 2 * 4  # its own temperature is that of all settings
    greedy = rest[2]
    assert {request.sampling.temperature for request in greedy.requests} == {0}
    assert len({request.key for request in greedy.requests}) == 1
    assert {request.seed for request in rest[1].requests if request.name.sample == 0} == {12345}


def test_what_is_asked_once_is_generated_once(instant_engine, instantly, texts, monkeypatch):
    added = []
    add = instant_engine.add
    monkeypatch.setattr(instant_engine, "add", lambda name, *more: (added.append(name), add(name, *more)))
    out = instantly([texts], sampling={"n": 2}, sweep={"method": "grid", "rows": "all", "temperature": [0, 1]})
    found = responses(out)
    assert len(found) == 2 * (7 * 2 + 1)
    # Both settings have 2 samples, one row 3, and greedy ones count once; two rows have a temperature of their own.
    assert len(added) == len(set(added)) == 4 * (1 + 2) + (1 + 3) + 2 + 1
    counts = json.loads((out / "_SUCCESS").read_text())
    assert counts["response_tokens"] == 8 * len(added)


def test_prompts_that_are_the_same_are_made_once(job_of, monkeypatch):
    made = []
    fit = Generate.fit_here
    monkeypatch.setattr(Generate, "fit_here", lambda self, asked: (made.append(asked), fit(self, asked))[1])
    assert len(works(job_of(temperature=[0.5, 0.7, 1], template=["{text}", "{topic} {text}"]))) == 7
    assert len(made) == 7 * 2


@pytest.fixture
def rows_with_a_gap(write_rows):
    return write_rows([{"text": "Monday", "more": "Tuesday"}, {"text": "Monday"}, "no"], "gap.jsonl")


def test_a_row_that_one_setting_cannot_have_is_rejected_as_a_whole_and_says_which(job_of, rows_with_a_gap):
    first, second, third = works(job_of(rows_with_a_gap, template=["{text}", "{text} {more}"]))
    assert not isinstance(first, Reject)
    assert str(second).startswith('bad_shape: with template "{text} {more}": the template needs more')
    assert (third.reason, "with" in third.detail) == ("invalid_json", False)  # no setting can have it


def test_a_response_that_fails_in_one_setting_rejects_the_row(generate, write_rows):
    path = write_rows(demo_records(3))
    tables = {"sampling": {"temperature": 0}, "sweep": {"method": "grid", "rows": "all", "max_tokens": [2, 96]}}
    out = generate([path], check={"checks": ["truncated"], "tries": 1, "on_failure": "reject"}, **tables)
    lines = [json.loads(line) for line in (out / "_rejects" / "part-00000-of-00001.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == [(row, "check_failed") for row in range(3)]
    assert lines[0]["detail"] == "with max_tokens 2: sample 0: truncated: it failed"


def test_the_rows_are_spread_over_the_input(instantly, write_rows):
    path = write_rows([{"text": f"row {number}"} for number in range(500)])
    out = instantly([path], sweep={"method": "grid", "rows": 50, "temperature": [0.5, 1]}, output={"shard_rows": 40})
    found = responses(out)
    assert [row["row"] // 10 for row in found] == [stretch for stretch in range(50) for _ in range(2)]
    assert all(row["id"] == str(row["row"]) for row in found)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["reject", "clip"])
def test_prompts_of_a_tokenizer_that_is_not_ours_are_those_of_plain_jobs_too(llama, write_rows, tmp_path, policy):  # noqa: F811
    """They are made in another process, many rows at a time, and shortened to leave room for max_tokens."""
    path = write_rows([{"text": "word " * length} for length in (3, 40, 120, 5, 300, 9, 0, *range(20, 40))])
    tables = {"input": {"path": [str(path)]}, "model": {"path": str(llama)}, "output": {"path": str(tmp_path / "new")}}
    tables |= {"prompt": {"on_overlength": policy}}
    asked = {"method": "grid", "rows": "all", "max_tokens": [8, 200], "temperature": [0, 1]}
    swept = works(prepare(load(None, tables | {"sweep": asked})))
    for number, (most, temperature) in enumerate((m, t) for m in (8, 200) for t in (0, 1)):
        plain = works(prepare(load(None, tables | {"sampling": {"max_tokens": most, "temperature": temperature}})))
        assert [isinstance(work, Reject) for work in plain] == [isinstance(work, Reject) for work in swept]
        for one, other in zip(swept, plain, strict=True):
            if not isinstance(other, Reject):
                made = one.made[number]
                assert (made.prompt, made.truncated, made.sampling) == (other.prompt, other.truncated, other.sampling)
                [mine] = [request for request in one.requests if request.name.part == number]
                [theirs] = other.requests
                assert (mine.prompt_token_ids, mine.seed) == (theirs.prompt_token_ids, theirs.seed)
