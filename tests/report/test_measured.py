"""Outputs measured beside each other: joined on id, without running anything that a folder names."""

import msgspec
import pytest
from reported import answered, response

from batchgen.errors import JobError
from batchgen.job.spec import MetricsTable
from batchgen.report.make import kind_of
from batchgen.report.measured import measure_outputs
from batchgen.report.outcome import open_outcome


def opened(*places):
    return [open_outcome(place, kind_of, len(places) > 1) for place in places]


def shards(rows, text, size=4, **columns):
    made = [response(row, text(row), **columns) for row in range(rows)]
    return [made[at : at + size] for at in range(0, rows, size)]


def test_an_output_is_a_setting_and_rows_are_joined_on_id(tmp_path):
    first = answered(tmp_path / "before", shards(12, lambda row: "はい" if row % 3 else ""))
    # In another order, with rows that the first one has not.
    others = [response(row, "はい", id=f"r{14 - row}") for row in range(16)]
    second = answered(tmp_path / "after", [others[at : at + 4] for at in range(0, 16, 4)])
    found = measure_outputs(opened(first, second))
    assert [setting.name for setting in found.settings] == ["before", "after"]
    before, after = (setting.values["empty"] for setting in found.settings)
    assert (before.mean, before.rows, after.mean, after.rows) == (pytest.approx(4 / 12), 12, 0, 12)
    assert before.to_best.mean == pytest.approx(4 / 12)


def test_samples_of_a_row_stay_together(tmp_path):
    rows = [[response(row, text, sample=at) for row in range(4) for at, text in enumerate(("a", "a", "b"))]]
    found = measure_outputs(opened(answered(tmp_path / "out", rows)))
    assert (found.samples, found.rows) == (3, 4)
    assert found.settings[0].values["agreement"].mean == pytest.approx(1 / 3)


def naming(out, **metrics):
    """An output whose job names these metrics."""
    [found] = opened(out)
    found.spec = msgspec.structs.replace(found.spec, metrics=MetricsTable(**metrics))
    return found


def test_the_reference_that_the_job_names_is_a_column_of_the_output(tmp_path):
    out = answered(tmp_path / "out", shards(8, lambda row: f"r{row}" if row % 4 else "はい"))
    assert measure_outputs([naming(out, reference="id")]).settings[0].values["exact"].mean == 0.75
    other = measure_outputs([naming(out, reference="gold")])
    assert "8 of 8 rows have no reference in the column gold" in other.notes


def test_no_scorer_that_a_folder_names_is_run(tmp_path):
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef score(row, response): return 1\n")
    out = answered(tmp_path / "out", shards(4, lambda row: "はい"))
    told = naming(out, scorer=f"{trap}:score", use=["no such"], best="score")
    assert "score" not in measure_outputs([told]).settings[0].values
    assert not (tmp_path / "ran").exists()
    own = MetricsTable(scorer=f"{trap}:score")  # which the caller trusts
    assert measure_outputs([told], own).settings[0].values["score"].mean == 1


def test_a_table_that_names_what_is_not_there_is_told(tmp_path):
    outs = opened(answered(tmp_path / "out", shards(4, lambda row: "はい")))
    with pytest.raises(JobError, match="did you mean empty"):
        measure_outputs(outs, MetricsTable(use=["emty"]))


def test_outputs_without_a_row_in_common(tmp_path):
    first = answered(tmp_path / "a", shards(4, lambda row: "はい"))
    second = answered(tmp_path / "b", [[response(row, id=f"other {row}") for row in range(4)]])
    found = measure_outputs(opened(first, second))
    assert (found.rows, found.metrics) == (0, [])


def test_the_same_folders_give_the_same_summary(tmp_path):
    places = [answered(tmp_path / name, shards(40, lambda row: "はい" * (row % 3))) for name in ("a", "b")]
    assert measure_outputs(opened(*places)) == measure_outputs(opened(*places))
