"""Ids of rows, and what the user is told of them: a wrong name, two rows of one id, a column that names nothing."""

import json
import tracemalloc
from datetime import date
from decimal import Decimal
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MODEL

from batchgen.errors import Reject
from batchgen.input import ids, passthrough
from batchgen.input.conversation import row_id
from batchgen.input.ids import Survey, survey
from batchgen.input.plan import plan_input
from batchgen.job.spec import load
from batchgen.runner.prepare import prepare

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def flags(tmp_path):
    return ["--model", MODEL, "--output", tmp_path / "out"]


@pytest.mark.parametrize(
    ("value", "id"),
    [
        ("a", "a"),
        (7, "7"),
        (2**70, str(2**70)),
        (17.0, "17"),
        (17.5, "17.5"),
        (1e300, "1e+300"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(1970, 1, 2), "1970-01-02"),
        (b"a\0b", "a\0b"),
        ({"$oid": "65a"}, "65a"),
        ("", "3"),
        (None, "3"),
        (float("nan"), "3"),
    ],
)
def test_values_that_name_a_row_do_so_under_any_name(value, id):
    assert row_id({"id": value}, "id", 3) == id
    assert row_id({"uid": value}, "uid", 3) == id


@pytest.mark.parametrize("value", [True, [1], {"a": 1}, float("inf"), b"\xff"])
def test_values_that_name_nothing_bind_only_in_a_column_that_the_user_named(value):
    assert row_id({"id": value}, "id", 3) == "3"
    with pytest.raises(Reject, match="uid is"):
        row_id({"uid": value}, "uid", 3)


@pytest.mark.parametrize(
    ("record", "id"),
    [
        ({"custom_id": "a", "id": "b", "body": CHAT}, "a"),
        ({"custom_id": 7, "body": CHAT}, "7"),
        ({"custom_id": "", "id": "b", "body": CHAT}, "b"),
        ({"custom_id": None, "body": CHAT}, "3"),
        ({"custom_id": "a", "params": CHAT}, "a"),
        ({"custom_id": "a", "id": "b", "body": {"x": 1}}, "b"),
        ({"custom_id": "a", **CHAT}, "3"),
    ],
)
def test_custom_id_names_a_line_of_a_batch_file(record, id):
    assert row_id(record, "id", 3) == id


def test_without_a_column_rows_go_by_their_number():
    assert row_id({"id": "a"}, "", 3) == "3"
    assert row_id({"custom_id": "a", "body": CHAT}, "", 3) == "3"


# --- the whole input


@pytest.mark.parametrize("flag", ["--id", "--seed-column", "--sampling-column", "--system-column"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_that_no_row_has_is_an_error_with_the_nearest_name(batchgen, write_rows, flags, tmp_path, flag, kind):
    path = write_rows([{"uid": "a", "text": "Monday"}])
    if kind == "parquet":
        path = tmp_path / "in.parquet"
        pq.write_table(pa.table({"uid": ["a"], "text": ["Monday"]}), path)
    result = batchgen("plan", path, *flags, flag, "uidd")
    assert result.exit_code == 2
    assert f"({flag}): no row has a column uidd; found uid, text; did you mean uid?" in result.stderr
    assert batchgen("plan", path, *flags, flag, "").exit_code == 0


def test_a_column_of_one_file_is_enough(batchgen, write_rows, flags):
    paths = [write_rows([{"text": "a"}], "a.jsonl"), write_rows([{"text": "b", "uid": "x"}], "b.jsonl")]
    assert batchgen("plan", *paths, *flags, "--id", "uid").exit_code == 0


def test_a_system_column_that_is_not_used_is_told_of(batchgen, write_rows, flags):
    path = write_rows([{"text": "Sunday"}, {"text": "Monday", "system": "Answer in French."}])
    told = batchgen("plan", path, *flags).stderr
    assert f"{path}:2: column system is not used because rows of shape text have no system column; name the col" in told
    parts = write_rows([{"prompt": "Monday", "system": [{"type": "text", "text": "In French."}]}], "parts.jsonl")
    assert ":1: column system is not used because it is a list, not text; " in batchgen("plan", parts, *flags).stderr
    for more in (["--system-column", "system"], ["--system-column", ""], ["--template", "{text}"]):
        assert batchgen("plan", path, *flags, *more).stderr == ""
    used = write_rows([{"prompt": "Monday", "system": "Answer in French."}], "used.jsonl")
    assert batchgen("plan", used, *flags).stderr == ""


def survey_of(*paths, column="id"):
    return survey(plan_input([str(path) for path in paths], 2), column)


def test_rows_of_one_id_are_counted_over_files_of_both_kinds(write_rows, tmp_path):
    pq.write_table(pa.table({"id": [5, 6], "text": ["a", "b"]}), tmp_path / "a.parquet")
    lines = write_rows([{"text": "c"}, {"id": "5", "text": "d"}, "no", {"id": 6.0, "text": "e"}, {"text": "f"}])
    found = survey_of(tmp_path / "a.parquet", lines)
    assert found.repeated == 3
    assert found.twice in [(0, 3, "5"), (1, 5, "6")]


def test_lines_are_read_as_their_rows_are(write_rows):
    rows = [
        {"id": "x", "text": "a"},
        {"custom_id": "x", "body": CHAT},
        {"id": None, "text": "b"},
        '{"id": "x", "n": NaN}',
    ]
    assert survey_of(write_rows(rows)) == Survey(2, (0, 1, "x"))
    assert survey_of(write_rows([{"uid": "x"}, b'\xef\xbb\xbf{"uid": "x"}']), column="uid") == Survey(1, (0, 1, "x"))


def test_an_id_that_is_no_text_beside_one_of_a_batch_line_is_passed_over(tmp_path):
    line = b'{"custom_id": "c", "id": "\\ud800", "body": {"messages": [{"role": "user", "content": "a"}]}}\n'
    (tmp_path / "in.jsonl").write_bytes(line * 2)
    assert survey_of(tmp_path / "in.jsonl").repeated == 0


def test_no_two_of_one_id_nothing_to_tell(write_rows):
    assert survey_of(write_rows([{"id": f"{number}"} for number in range(5000)])) == Survey()
    assert survey_of(write_rows([{"text": "a"}, {"text": "a"}])) == Survey()


def test_ids_that_name_nothing_are_counted(write_rows):
    assert survey_of(write_rows([{"id": "a"}, {"id": [1]}, {"id": True}])) == Survey(nameless=2, first_nameless=1)


def test_a_survey_takes_some_bytes_a_row(write_rows):
    path = write_rows([json.dumps({"id": f"row-{number}", "text": "x" * 50}) for number in range(50_000)])
    plan = plan_input([str(path)], 4096)
    tracemalloc.start()
    survey(plan, "id")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50_000 * 16 + (8 << 20)


def test_plan_and_the_first_run_tell_of_them(batchgen, write_rows, flags):
    rows = write_rows([{"id": "a", "text": "Monday"}, {"id": ["x"], "text": "b"}, {"id": "a", "text": "Friday"}])
    for _ in range(2):
        told = batchgen("plan", rows, *flags).stderr
        assert f"1 row(s) have the id of an earlier row, such as 'a' at {rows}:1 and {rows}:3" in told
        assert f"the id of 1 row(s) cannot be used, the first at {rows}:2" in told
        assert told.count("\n") == 2


def test_a_run_tells_once_for_an_input_and_export_tells_too(generate, batchgen, write_rows, tmp_path, capsys):
    rows = write_rows([{"id": "a", "text": "Monday"}, {"id": "a", "text": "Friday"}])
    out = generate([rows], sampling={"max_tokens": 2})
    assert "have the id of an earlier row" in capsys.readouterr().err
    generate([rows], sampling={"max_tokens": 2})
    assert capsys.readouterr().err == ""
    told = batchgen("export", out, "--to", tmp_path / "out.jsonl", "--format", "openai-batch").stderr
    assert "1 line(s) have the custom_id of an earlier line" in told
    assert [json.loads(line)["custom_id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["a", "a"]


def test_names_of_columns_are_part_of_the_job_only_where_they_differ(batchgen, write_rows, flags):
    rows = write_rows([{"text": "Monday", "s": 1}])
    plain = batchgen("plan", rows, *flags).stdout
    assert batchgen("plan", rows, *flags, "--seed-column", "seed", "--sampling-column", "sampling").stdout == plain
    assert batchgen("plan", rows, *flags, "--seed-column", "s").stdout != plain


def test_repeats_sorts_in_place():
    from array import array

    assert ids.repeats(array("q", [3, 1, 3, 3])).tolist() == [3, 3]
    assert ids.repeats(array("q")).tolist() == []


def test_a_worker_does_not_look_again_for_columns_that_its_run_has_found(write_rows, tmp_path, monkeypatch):
    rows = write_rows([{"text": "Monday"}] * 1000 + [{"text": "Friday", "title": "x"}])
    tables = {
        "model": {"path": str(MODEL)},
        "prompt": {"template": "T {title}"},
        "output": {"path": str(tmp_path / "o")},
    }
    spec = load(None, {**tables, "input": {"path": [str(rows)], "id": "title"}})
    record = prepare(spec).record
    monkeypatch.setattr(passthrough, "column_names", lambda *_: pytest.fail("read again"))
    assert prepare(spec, begun=record).record is record
