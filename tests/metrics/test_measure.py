"""From rows with their responses to a table per row and setting, and a summary of the settings."""

import random
import subprocess
import sys

import msgspec
import pyarrow as pa
import pytest

from batchgen.errors import JobError
from batchgen.job.spec import CheckTable, MetricsTable
from batchgen.metrics.measure import axes_of, measure, require
from batchgen.metrics.summary import MeasuredSetting, Summary, ToBest

RIGHT = "今日は晴れです。"


class Letters:
    def encode(self, text):
        return [ord(sign) for sign in text]


SETTINGS = [
    MeasuredSetting(at, f"temperature {value}", setting=at, changes={"temperature": value})
    for at, value in enumerate((0.3, 1.5, 1.5))
]


def rows(number=120, samples=4, wrong=(0.05, 0.4, 0.4), seed=3):
    """Responses of which a share is wrong, by setting; the third setting has the very ones of the second."""
    for row in range(number):
        drawn = random.Random(seed * 1000 + row)
        chances = [drawn.random() for _ in range(samples)]
        outputs = [
            {"row": row * 10, "setting": at, "response": "雨です" if chance < share else RIGHT, "response_tokens": 9}
            for at, share in enumerate(wrong)
            for chance in chances
        ]
        yield {"right": RIGHT}, outputs


def measured(rows=rows, **table):
    return measure(rows(), SETTINGS, MetricsTable(**{"reference": "right"} | table), Letters())


def test_a_table_per_row_and_setting():
    table = measured(use=["exact", "agreement"]).table
    assert table.schema == pa.schema(
        {"row": pa.int64(), "setting": pa.int32(), "exact": pa.float64(), "agreement": pa.float64()}
    )
    assert table["row"].to_pylist()[:6] == [0, 0, 0, 10, 10, 10]
    assert table["setting"].to_pylist()[:6] == [0, 1, 2, 0, 1, 2]
    [_, outputs], *_ = rows()
    shares = [sum(each["response"] == RIGHT for each in outputs if each["setting"] == at) / 4 for at in range(3)]
    assert table["exact"].to_pylist()[:3] == shares


def test_the_better_setting_is_told_apart_and_equal_ones_are_not():
    summary = measured(best="exact").summary
    assert (summary.best, summary.best_setting, summary.rows, summary.samples) == ("exact", 0, 120, 4)
    best, other, again = (setting.values["exact"] for setting in summary.settings)
    assert best.low < best.mean < best.high and best.best_share == 1 and best.to_best is None
    assert best.low < best.held_out < best.high
    assert other == again and other.held_out is None
    assert other.to_best.is_told_apart and other.to_best.high < -0.2


def test_settings_that_are_equal_cannot_be_told_apart():
    found = measured(lambda: rows(wrong=(0.2, 0.2, 0.2)), best="exact").summary
    assert [setting.values["exact"].to_best for setting in found.settings] == [None, ToBest(0, 0, 0), ToBest(0, 0, 0)]
    assert [setting.values["exact"].best_share for setting in found.settings] == pytest.approx([1 / 3] * 3)


def test_the_same_rows_give_the_same_bytes():
    first, again = measured(), measured()
    assert msgspec.json.encode(first.summary) == msgspec.json.encode(again.summary)
    assert first.table.equals(again.table)


def test_a_summary_comes_back_from_its_json():
    summary = measured().summary
    assert msgspec.json.decode(msgspec.json.encode(summary), type=Summary) == summary


def test_metrics_without_a_value_are_not_there_unless_they_are_asked_for():
    names = [metric.name for metric in measured().summary.metrics]
    assert "logprob" not in names and "failed_checks" not in names
    found = measured(use=["logprob", "exact"]).summary
    assert found.notes == ["logprob has no value for any row"]
    assert [metric.name for metric in found.metrics] == ["exact"]


def test_a_best_metric_without_values_chooses_nothing():
    summary = measured(best="logprob").summary
    assert (summary.best, summary.best_setting) == ("", None)
    assert "logprob has no value for any row, so that no setting is chosen" in summary.notes


def test_rows_without_a_reference_are_counted_and_left_out():
    def some():
        for at, (record, outputs) in enumerate(rows()):
            yield (record if at % 4 else {}), outputs

    summary = measured(some).summary
    assert "30 of 120 rows have no reference in the column right" in summary.notes
    assert {setting.values["exact"].rows for setting in summary.settings} == {90}
    assert {setting.values["empty"].rows for setting in summary.settings} == {120}


def test_a_setting_without_responses_has_no_value():
    def some():
        for record, outputs in rows():
            yield record, [output for output in outputs if output["setting"] != 2]

    found = measured(some).summary.settings[2].values["exact"]
    assert (found.mean, found.low, found.rows, found.to_best, found.best_share) == (None, None, 0, None, 0)


def test_no_rows_at_all():
    found = measured(lambda: [({}, [])])
    assert found.table.num_rows == 0
    assert (found.summary.rows, found.summary.metrics, found.summary.best_setting) == (0, [], None)


def test_the_faults_of_a_scorer_are_told_once_and_end_nothing(tmp_path):
    file = tmp_path / "my.py"
    file.write_text("def score(row, response):\n    return len(response) if len(response) > 4 else 1 / 0\n")
    summary = measured(scorer=f"{file}:score").summary
    assert summary.best == "score"  # a scorer of one's own is the most telling
    assert (summary.metrics[0].name, summary.metrics[0].meaning) == ("score", "as my.py says")
    faults = sum(output["response"] == "雨です" for _, outputs in rows() for output in outputs)
    [note] = summary.notes
    assert note == (
        f"score has no value for {faults:,} responses; the first: my.py:2: ZeroDivisionError: division by zero"
    )


def test_a_scorer_that_is_asked_for_by_its_function_has_its_metrics(tmp_path):
    file = tmp_path / "my.py"
    file.write_text("def score(row, response): return {'length': len(response)}\n")
    summary = measured(scorer=f"{file}:score", use=["score", "empty"]).summary
    assert [metric.name for metric in summary.metrics] == ["score.length", "empty"]
    assert summary.notes == []


def test_what_settings_differ_in():
    def setting(number, model, **changes):
        return MeasuredSetting(number, "", model=model, changes=changes)

    settings = [
        setting(0, "a", temperature=1.0, top_k=None, template="B", stop=["x"], n=2),
        setting(1, "a", temperature=0.3, top_k=5, template="A", stop=["y"], n=2),
        setting(2, "b", temperature=0.3, top_k=5, template="A", stop=["y"], n=2),
    ]
    assert axes_of(settings) == {
        "model": ["a", "b"],
        "temperature": [0.3, 1.0],
        "top_k": [None, 5],
        "template": ["B", "A"],
        "stop": [["x"], ["y"]],
    }
    assert list(axes_of(settings[:1])) == []


def test_what_is_wrong_is_told_ahead_of_a_run(tmp_path):
    require(MetricsTable(reference="r"), CheckTable())
    with pytest.raises(JobError, match="did you mean chrf"):
        require(MetricsTable(use=["chrff"]), CheckTable())
    with pytest.raises(JobError, match="No such file"):
        require(MetricsTable(scorer=f"{tmp_path}/none.py:score"), CheckTable())
    with pytest.raises(JobError, match=r"\[check\] language: 'jp' is no language"):
        require(MetricsTable(), CheckTable(language="jp"))


MILLION = """
import resource, sys
from batchgen.job.spec import MetricsTable
from batchgen.metrics.measure import measure
from batchgen.metrics.summary import MeasuredSetting

def rows():
    for row in range(1_000_000):
        texts = ["right" if (row * 7 + at) % 3 else "x" for at in range(3)]
        yield {"r": "right"}, [{"row": row, "setting": at, "response": text} for at, text in enumerate(texts)]

settings = [MeasuredSetting(at, str(at)) for at in range(3)]
found = measure(rows(), settings, MetricsTable(reference="r", use=["exact"], scorer=sys.argv[1] + ":score"), None)
print(found.table.num_rows, found.table.num_columns, found.summary.rows)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_a_million_rows_in_three_settings_with_twenty_metrics_take_less_than_a_gigabyte(tmp_path):
    file = tmp_path / "my.py"
    file.write_text("VALUES = {f'm{at}': at / 3 for at in range(19)}\ndef score(row, response): return VALUES\n")
    asked = subprocess.run([sys.executable, "-c", MILLION, file], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    size, megabytes = asked.stdout.splitlines()
    assert size == "3000000 22 1000000"
    assert int(megabytes) < 1000
