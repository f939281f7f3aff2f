"""The numbers of one row: which reference and which source its responses are held against."""

import pytest

from batchgen.errors import JobError
from batchgen.job.spec import CheckTable, MetricsTable
from batchgen.metrics.judge import Judge
from batchgen.metrics.metrics import choose, tools_of
from batchgen.metrics.scorer import Scorer

ASKED = "Translate: The sun is shining all day."


def judged(record, *outputs, use, reference="r", source="", templates=("", ""), scorer=""):
    table = MetricsTable(reference=reference, use=use, scorer=scorer)
    own = Scorer(scorer) if scorer else None
    tools = tools_of(table, CheckTable(), None)
    judge = Judge(tools, choose(table, tools, own), own, source, templates)
    return dict(judge.row(record, outputs))


def output(response, setting=0, **more):
    conversation = [{"speaker": "ユーザー", "text": ASKED}]
    return {"row": 5, "setting": setting, "response": response, "conversation": conversation, **more}


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("a", {"exact": 1}),
        (["b", "a"], {"exact": 1}),
        ("b", {"exact": 0}),
        ("", {}),
        ("  ", {}),
        (None, {}),
        ([], {}),
        ([None, "", {"x": 1}], {}),
        ({"text": "a"}, {}),
        (True, {}),
    ],
)
def test_a_reference_is_a_text_or_a_list_of_them(reference, found):
    assert judged({"r": reference}, output("a"), use=["exact"]) == {0: found}


def test_a_whole_number_is_a_text_too():
    assert judged({"r": 42}, output("42"), use=["exact"]) == {0: {"exact": 1}}


def test_without_its_record_a_row_has_the_reference_that_was_passed_through():
    assert judged(None, output("a", r="a"), use=["exact"]) == {0: {"exact": 1}}
    assert judged(None, output("a"), use=["exact"]) == {0: {}}


def test_samples_by_setting():
    outputs = [output("a"), output("b"), output("a", setting=1), output("a", setting=1)]
    assert judged({"r": "a"}, *outputs, use=["exact"]) == {0: {"exact": 0.5}, 1: {"exact": 1}}


def test_outputs_of_an_ordinary_run_are_of_the_first_setting():
    plain = {key: value for key, value in output("a").items() if key != "setting"}
    assert judged({"r": "a"}, plain, use=["exact"]) == {0: {"exact": 1}}


@pytest.mark.parametrize("number", [2, -1])
def test_a_setting_that_there_is_not(number):
    with pytest.raises(JobError, match=f"row 5 is of setting {number}, and there are 2"):
        judged({"r": "a"}, output("a", setting=number), use=["exact"])


# What a copy is a copy of.


def test_the_source_is_the_last_utterance():
    assert judged({}, output(ASKED), use=["copy"]) == {0: {"copy": 1}}
    assert judged({}, output("Translate: nothing of the sort, no."), use=["copy"]) == {0: {"copy": 0}}


def test_of_a_template_it_is_what_fills_it_by_setting():
    record = {"text": "The sun is shining all day."}
    templates = ["Translate: {text}", ""]
    outputs = [output(record["text"]), output(record["text"], setting=1)]
    assert judged(record, *outputs, use=["copy"], templates=templates) == {0: {"copy": 1}, 1: {"copy": 0}}


def test_of_a_template_whose_columns_are_not_at_hand_it_is_the_last_utterance():
    assert judged(None, output(ASKED), use=["copy"], templates=["Translate: {text}", ""]) == {0: {"copy": 1}}


def test_the_column_that_the_job_names_comes_first():
    record = {"original": "Nothing but rain until tomorrow."}
    assert judged(record, output(record["original"]), use=["copy"], source="original") == {0: {"copy": 1}}
    assert judged(record, output(ASKED), use=["copy"], source="original") == {0: {"copy": 0}}


def test_a_scorer_gets_the_row_and_its_values_are_averaged_over_those_that_there_are(tmp_path):
    file = tmp_path / "my.py"
    file.write_text("def score(row, response): return {'length': row['weights'][response]}\n")
    record = {"weights": {"a": 2, "b": 4}}
    outputs = [output("a"), output("b"), output("no such")]
    found = judged(record, *outputs, use=["score.length"], scorer=f"{file}:score")
    assert found == {0: {"score.length": 3}}
