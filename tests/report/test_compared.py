"""A page about a comparison of settings, of a summary that is written by hand."""

import itertools
import math

import msgspec
import pytest
from reported import Parsed, answered, response

from batchgen.errors import JobError
from batchgen.metrics.summary import MeasuredSetting, Metric, Summary, ToBest, Value
from batchgen.report.make import page_of

AXES = {"temperature": [0.3, 0.7, 1.5], "top_p": [0.85, 1.0]}


def value(mean, best):
    told = None if mean == best else ToBest(mean - best, mean - best - 2, mean - best + 2)
    return Value(mean, mean - 1.5, mean + 1.5, 8, best_share=0.5, to_best=told)


def summary(**changes):
    combinations = list(itertools.product(*AXES.values()))
    means = [61.0, 60.0, 62.0, 58.0, 55.0, 50.0]
    settings = [
        MeasuredSetting(
            number,
            f"temperature {temperature:g}, top_p {top_p:g}",
            setting=number,
            changes={"temperature": temperature, "top_p": top_p},
            values={"chrf": value(means[number], 62.0), "length": Value(20.5, 20, 21, 8)},
        )
        for number, (temperature, top_p) in enumerate(combinations)
    ]
    metrics = [Metric("length", "tokens"), Metric("chrf", "likeness to the reference", "higher", "sig|v:1")]
    made = Summary(8, 2, 1000, "chrf", ["."], metrics, AXES, settings, best_setting=2, notes=["one note"])
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def swept(tmp_path):
    """A folder of eight rows in six settings with two samples each, and its summary."""

    def make(made: Summary):
        rows = [
            response(row, f"row {row}" if setting < 4 else f"row {row}, {setting}", sample=sample, setting=setting)
            for row in range(8)
            for setting in range(6)
            for sample in range(2)
        ]
        table = {"method": "grid", "rows": "all", "samples": 2, **AXES}
        out = answered(tmp_path / "out", [rows[:48], rows[48:]], sweep=table)
        (out / "_sweep").mkdir()
        (out / "_sweep" / "summary.json").write_bytes(msgspec.json.encode(made))
        (out / "_sweep" / "best.toml").write_text("[sampling]\ntemperature = 0.7\n")
        return out

    return make


def test_the_table_has_the_best_first_and_marks_what_cannot_be_told_from_it(swept):
    page = Parsed(page_of([swept(summary())]))
    names = [f"temperature {t}, top_p {p}" for t, p in [(0.7, 0.85), (0.3, 0.85), (0.3, 1)]]
    places = [
        page.texts.index(f"{name} {mark}") for name, mark in zip(names, ["best", "≈ best", "≈ best"], strict=True)
    ]
    assert places == sorted(places)
    assert page.texts.count("≈ best") == 2 and "2 others cannot be told from it" in page.texts
    assert "-4 (-6 to -2)" in page.texts and "one note" in page.texts and "temperature = 0.7" in page.texts


def test_there_is_a_curve_for_each_parameter_and_a_map_for_each_pair(swept):
    page = Parsed(page_of([swept(summary())]))
    labels = [said for name, said in page.attributes if name == "aria-label"]
    for said in ("chrf by temperature", "chrf by top_p", "chrf by temperature and top_p", "length by temperature"):
        assert said in labels


def test_equal_answers_of_all_settings_are_folded(swept):
    data = Parsed(page_of([swept(summary())])).data
    assert len(data["groups"]) == 6
    for case in data["cases"]:
        assert [(answer["n"], answer["g"]) for answer in case["a"]] == [(8, [0, 1, 2, 3]), (2, [4]), (2, [5])]


def test_a_key_that_some_settings_do_not_have_is_no_obstacle(swept):
    made = summary()
    one = msgspec.structs.replace(made.settings[5], changes={"temperature": 1.5}, name="careful", values={})
    page = Parsed(page_of([swept(msgspec.structs.replace(made, settings=[*made.settings[:5], one]))]))
    assert "careful" in page.texts


def test_several_models_are_told_by_their_names_and_not_by_where_they_lie(swept):
    settings = [
        msgspec.structs.replace(each, model=f"/secret/place/{'ab'[each.number % 2]}") for each in summary().settings
    ]
    axes = {"model": ["/secret/place/a", "/secret/place/b"], "temperature": AXES["temperature"]}
    out = swept(summary(settings=settings, axes=axes))
    (out / "_sweep" / "best.toml").write_text('# why\n[model]\npath = "/secret/place/a"\n\n[sampling]\nseed = 3\n')
    page = Parsed(page_of([out]))
    labels = [said for name, said in page.attributes if name == "aria-label"]
    assert "chrf by model" in labels and "chrf by model and temperature" in labels
    assert "seed = 3" in page.texts and "/secret" not in page.texts


def test_a_summary_without_a_best_setting_has_a_page(swept):
    page = Parsed(page_of([swept(summary(best="", best_setting=None))]))
    assert "No metric chooses a best one" in page.texts


@pytest.mark.parametrize(
    "made",
    [
        {"outs": ["../elsewhere"]},
        {"outs": [".."]},
        {"settings": []},
        {"settings": [MeasuredSetting(3, "a")]},
        {"settings": [MeasuredSetting(0, "a", out=5)]},
        {"metrics": []},
        {"axes": {"temperature": [0.5, 1e300]}},
    ],
    ids=str,
)
def test_a_summary_that_cannot_be_is_refused(made, swept):
    with pytest.raises(JobError, match=r"summary\.json: damaged"):
        page_of([swept(summary(**made))])


def test_settings_named_by_an_enemy_are_text(swept):
    evil = "</script><img src=x onerror=alert(1)>"
    made = summary()
    settings = [
        msgspec.structs.replace(each, name=evil, changes={evil: evil, "top_p": each.number % 2})
        for each in made.settings
    ]
    page = Parsed(page_of([swept(summary(settings=settings, axes={evil: [evil, 1], "top_p": [0, 1]}, notes=[evil]))]))
    assert page.tags["img"] == 0 and page.tags["script"] == 2
    assert evil in page.texts
    assert all(math.isfinite(float(v)) for name, v in page.attributes if name == "data-value")
