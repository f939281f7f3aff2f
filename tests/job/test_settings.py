"""What `[sweep]` asks for becomes settings, those that mean the same only once."""

import pytest

from batchgen.errors import JobError
from batchgen.job.sampling import JobSampling, Sampling
from batchgen.job.settings import MOST, meaning, settings_of
from batchgen.job.spec import SweepTable, load

BASE = JobSampling(n=2).with_defaults({})
FIRST_DRAWN = [{"temperature": 0.9, "top_k": 1}, {"temperature": 0.9, "top_k": 2}]
TRIED = {"temperature": 0.7, "top_p": 0.9}


def sweep(**asked) -> SweepTable:
    tables = {"input": {"path": ["in.jsonl"]}, "model": {"path": "m"}, "output": {"path": "out"}, "sweep": asked}
    return load(None, tables).sweep


def changes(tried=None, base=BASE, **asked) -> list[dict]:
    return [setting.changes for setting in settings_of(sweep(**asked), base, "", tried)]


def test_a_grid_has_every_combination_in_the_order_of_the_lists():
    found = changes(top_p=[0.5, 1], temperature=[0.7, 1])
    assert found == [{"top_p": p, "temperature": t} for p in (0.5, 1.0) for t in (0.7, 1.0)]


def test_lists_are_taken_side_by_side():
    found = changes(method="list", temperature=[0.3, 0.7], template=["a {x}", "b {x}"])
    assert found == [{"temperature": 0.3, "template": "a {x}"}, {"temperature": 0.7, "template": "b {x}"}]


def test_random_ones_are_different_and_the_same_again_with_the_same_seed():
    asked = {"method": "random", "trials": 9, "temperature": [0.1, 0.5, 0.9], "top_k": [1, 2, 3, 4]}
    found = changes(**asked)
    assert len({tuple(each.values()) for each in found}) == 9
    assert found == changes(**asked)
    assert found != changes(base=JobSampling(seed=1).with_defaults({}), **asked)
    assert len(changes(**{**asked, "trials": 100})) == 12  # all that there are
    assert found[:2] == FIRST_DRAWN  # for good


def test_a_setting_has_all_of_the_sampling_and_the_values_of_every_key_that_varies():
    [grid, own] = settings_of(
        sweep(temperature=[0.3], also=[{"name": "long", "max_tokens": 900}]), BASE, "{text}", None
    )
    assert grid.changes == {"temperature": 0.3, "max_tokens": 512}
    assert own.changes == {"temperature": 1.0, "max_tokens": 900}
    assert (grid.name, own.name) == ("temperature 0.3", "long")
    assert (own.number, own.sampling["n"], own.sampling["top_p"], own.template) == (1, 2, 0.85, "{text}")


def test_greedy_ones_are_the_same_whatever_else_there_is_to_sample():
    [kept] = settings_of(sweep(temperature=[0], top_p=[0.5, 1], min_p=[0, 0.2], top_k=[5, 0]), BASE, "", None)
    assert len(kept.same) == 7
    assert kept.changes == {"temperature": 0.0, "top_p": 0.5, "min_p": 0.0, "top_k": 5}
    assert len(changes(temperature=[0], repetition_penalty=[1, 1.2])) == 2


def test_a_further_try_of_a_greedy_response_is_sampled_and_so_tells_settings_apart():
    assert len(changes(TRIED, temperature=[0], top_k=[5, 0], top_p=[0.5, 1])) == 2  # top_p is that of the try
    assert len(changes(temperature=[0], seed=[1, 2])) == 1
    assert len(changes(TRIED, temperature=[0], seed=[1, 2])) == 2


def test_what_is_written_in_two_ways_is_the_same():
    assert changes(top_k=[-1, 0]) == [{"top_k": 0}]
    assert changes(temperature=[1, 1.0]) == [{"temperature": 1.0}]
    assert len(changes(include_stop_str_in_output=[True, False])) == 1
    assert len(changes(include_stop_str_in_output=[True, False], stop=[["。"]])) == 2


def test_a_named_setting_that_the_grid_has_gives_it_its_name():
    [other, kept] = settings_of(sweep(temperature=[0.3, 1], also=[{"name": "card", "top_p": 0.85}]), BASE, "", None)
    assert kept.name == "temperature 1 (card)"
    assert kept.same == [{"temperature": 1.0, "top_p": 0.85}]
    assert other.same == []


def test_no_two_settings_have_one_name():
    long = "Translate the following text into Japanese: "
    names = [each.name for each in settings_of(sweep(template=[long + "{a}", long + "{b}"]), BASE, "", None)]
    assert len(set(names)) == 2
    assert names[1].endswith(" #1")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"min_tokens": [600]}, r"min_tokens 600: min_tokens 600 is above max_tokens 512"),
        ({"temperature": [0.001]}, r"temperature 0.001: temperature 0.001: use 0 \(greedy\) or at least 0.01"),
        (
            {"top_k": list(range(200)), "seed": list(range(200))},
            f"40,000 combinations, of which a sweep takes {MOST:,}",
        ),
    ],
)
def test_a_setting_that_is_none_is_named(asked, message):
    with pytest.raises(ValueError, match=message):
        changes(**asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"temperature": [0.5, 3]}, r"\[sweep\] temperature: expected float <= 2.0: 3"),
        ({"temperature": 0.7}, r"\[sweep\] temperature: is not a list of values: write temperature = \[...\]"),
        ({"temprature": [1]}, r"\[sweep\] temprature: unknown key; did you mean temperature\?"),
        ({"top_k": ["a"]}, r"\[sweep\] top_k: expected int, got str: 'a'"),
        ({"stop": ["a"]}, r"\[sweep\] stop: expected array, got str: 'a'"),
        ({"template": [1]}, r"\[sweep\] template: expected str: 1"),
        ({"temperature": []}, r"\[sweep\] temperature: has no values"),
        ({"logprobs": [1]}, r"\[sweep\] logprobs: changes no response"),
        ({"rows": 0}, r"\[sweep\] rows: expected int >= 1"),
        (
            {"method": "list", "temperature": [1, 1], "top_p": [1]},
            "all lists have to be as long: temperature 2, top_p 1",
        ),
        ({"also": [{"name": "x", "tempo": 1}]}, r"\[sweep\] tempo: unknown key"),
    ],
)
def test_a_list_is_checked_as_its_key_is(asked, message):
    with pytest.raises(JobError, match=message):
        sweep(**asked)


def test_the_meaning_of_parameters_is_all_that_an_engine_goes_by():
    greedy = Sampling(temperature=0, top_p=0.3, top_k=7, min_p=0.1, repetition_penalty=1.2)
    assert meaning(greedy) == meaning(Sampling(temperature=0, repetition_penalty=1.2))
    assert meaning(Sampling(top_k=7)) != meaning(Sampling())
