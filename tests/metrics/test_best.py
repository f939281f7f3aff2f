"""best.toml: tables to paste, with the evidence."""

import tomllib

import msgspec
import pytest

from batchgen.job.sampling import JobSampling
from batchgen.metrics.best import MOST_NAMED, best_toml
from batchgen.metrics.summary import MeasuredSetting, Metric, Summary, ToBest, Value

BEST = Value(61.234, 59.9, 62.6, 198, best_share=0.62, held_out=60.8)
ALIKE = Value(60.9, 59.5, 62.3, 198, best_share=0.38, to_best=ToBest(-0.3, -1.1, 0.4))
WORSE = Value(50.0, 48.5, 51.3, 198, best_share=0.0, to_best=ToBest(-11.2, -12.0, -10.1))


def setting(number, value, **more):
    return MeasuredSetting(number, f"temperature 0.{number}", values={"chrf": value}, **more)


def summary(*settings, best=0, **more):
    return Summary(
        rows=200,
        samples=4,
        resamples=1000,
        best="chrf",
        outs=["."],
        metrics=[Metric("chrf", "chrF", "higher")],
        axes={},
        settings=list(settings),
        best_setting=best,
        **more,
    )


def test_a_table_with_its_evidence():
    sampling = {"temperature": 0.3, "top_p": 0.85, "stop": ["。\n"], "seed": None}
    made = best_toml(summary(setting(0, BEST, sampling=sampling), setting(1, ALIKE), setting(2, WORSE)))
    assert made == (
        "# temperature 0.0: the best of 3 settings by chrf, of which higher is better\n"
        "# chrf 61.23 (95 % interval 59.9 to 62.6), over 198 rows, 4 responses each\n"
        "# on rows that did not choose it: 60.8\n"
        "# the best in 62% of 1,000 resamples of the rows\n"
        "# cannot be told from:\n"
        "#   temperature 0.1: -0.3 (-1.1 to +0.4)\n"
        "\n"
        "[sampling]\n"
        "temperature = 0.3\n"
        "top_p = 0.85\n"
        'stop = ["。\\n"]\n'
    )


def test_where_every_other_setting_is_worse():
    made = best_toml(summary(setting(0, BEST), setting(1, WORSE)))
    assert "# no other setting is as good, as far as these rows tell\n" in made


def test_many_that_cannot_be_told_apart_are_counted():
    made = best_toml(summary(setting(0, BEST), *(setting(at, ALIKE) for at in range(1, 15))))
    assert f"#   and {14 - MOST_NAMED} more\n" in made
    assert made.count("-0.3 (") == MOST_NAMED


def test_the_template_and_the_model_where_they_differ():
    made = best_toml(
        summary(setting(0, BEST, template="Say: {t}", model="/m/a"), setting(1, WORSE, template="{t}", model="/m/b"))
    )
    assert tomllib.loads(made) == {"prompt": {"template": "Say: {t}"}, "model": {"path": "/m/a"}}
    assert "[prompt]" not in best_toml(summary(setting(0, BEST, template="{t}"), setting(1, WORSE, template="{t}")))


def test_sampling_comes_back_from_it_as_it_was():
    given = msgspec.convert(
        {
            "min_p": 1e-05,
            "logit_bias": {"3": -1.5, "12": 2},
            "stop": ['quote " and \\', "\x7f\x00\u2028😀\ud7ff"],
            "bad_words": [],
            "structured_outputs": {"choice": ["a", "b"]},
            "n": 3,
        },
        JobSampling,
        str_keys=True,
        strict=False,
    )
    values = msgspec.to_builtins(given, str_keys=True)
    made = tomllib.loads(best_toml(summary(setting(0, BEST, sampling=values))))
    assert msgspec.convert(made["sampling"], JobSampling, str_keys=True) == given


def test_what_a_job_has_anyway_is_not_written_unless_the_settings_differ_in_it():
    sampling = {"temperature": 0.7, "top_k": 0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "stop": [], "n": 1}
    chosen = setting(0, BEST, sampling=sampling, changes={"frequency_penalty": 0.0})
    made = tomllib.loads(best_toml(summary(chosen, setting(1, WORSE))))
    # 0 is not what every model card has for top_k
    assert made["sampling"] == {"temperature": 0.7, "top_k": 0, "frequency_penalty": 0.0}


def test_hostile_names_stay_in_their_comment():
    hostile = msgspec.structs.replace(setting(0, BEST), name="x\n[engine]\ntrust_remote_code = true\x1b[2J\r")
    made = best_toml(summary(hostile, setting(1, ALIKE)))
    assert tomllib.loads(made) == {}
    assert "\x1b" not in made


def test_without_a_best_setting_it_says_why():
    made = best_toml(summary(setting(0, BEST), best=None, notes=["200 of 200 rows have no reference in the column r"]))
    assert made == (
        "# no setting was chosen, as no metric that could choose has a value\n"
        "# 200 of 200 rows have no reference in the column r\n"
    )


@pytest.mark.parametrize("value", [Value(1.0, None, None, 1), BEST])
def test_a_single_setting(value):
    made = best_toml(summary(setting(0, value, sampling={"temperature": 0.0})))
    assert tomllib.loads(made) == {"sampling": {"temperature": 0.0}}
    assert "resamples" not in made and "no other" not in made
