"""Passed-through columns: what does not fit is its row's reject, before generation; all else comes out equal."""

import json
import math

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arrow_values import TYPES, arrays
from conftest import MODEL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.errors import JobError, Reject
from batchgen.input import columns
from batchgen.input.columns import alone
from batchgen.job.spec import load
from batchgen.output import opening, shard
from batchgen.output.counts import Counts
from batchgen.output.journal import Entry
from batchgen.runner.prepare import Job, prepare
from batchgen.task.task import Answer


def job_of(tmp_path, inputs, columns, out="out", **output) -> Job:
    tables = {
        "input": {"path": [str(path) for path in inputs]},
        "model": {"path": str(MODEL)},
        "output": {"path": str(tmp_path / out), "columns": columns, **output},
    }
    return prepare(load(None, tables))


def committed(job: Job) -> tuple[pa.Table, dict[int, str]]:
    """All of a job but the engine, whose answers are empty: its rows, and the rejects by row and reason."""
    assert opening.open_job(job.out, job.record)
    reader = job.reader()
    tables, rejected = [], {}
    for planned in job.plan.shards:
        answers, lines = [], []
        for row in reader.read(planned):
            try:
                work = job.task.prepare_row(row)
                nothing = [Answer(request, Entry(row.number, 0, [], "length")) for request in work.requests]
                answers += job.task.output(work, nothing)
            except Reject as why:
                lines.append(shard.reject_line(row, job.task.id_of(row), why))
        facts = {"fingerprint": job.fingerprint_of(planned)}
        shard.commit(job.out, planned, answers, lines, job.task.schema, Counts(planned.rows), facts)
        tables.append(pq.read_table(shard.where(job.out, planned)))
        rejected |= {line["row"]: line["reason"] for line in shard.read_rejects(job.out, planned)}
        assert len(answers) + len(lines) == planned.rows
    return pa.concat_tables(tables), rejected


def passed(tmp_path, rows, *columns, **output):
    """The passed-through columns of JSON rows, without a prompt of their own, and the rejects."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": "Monday", **row}) + "\n" for row in rows))
    job = job_of(tmp_path, [path], list(columns), **output)
    table, rejected = committed(job)
    return table.select([column.name for column in job.task.columns]), rejected


# --- types of JSON, over all rows


@pytest.mark.parametrize(
    ("values", "kind", "out"),
    [
        ([1, 2], "int64", [1, 2]),
        ([1] * 1500 + [4.5], "double", [1.0] * 1500 + [4.5]),
        ([None] * 1500 + [7], "int64", [None] * 1500 + [7]),
        ([0.5, 2**53 + 1], "double", [0.5, 2.0**53]),
        ([0.5, 12345678901234567890], "double", [0.5, 1.2345678901234567e19]),
        ([1, 12345678901234567890], "string", ["1", "12345678901234567890"]),
        ([1] * 1500 + ["n/a"], "string", ["1"] * 1500 + ['"n/a"']),
        ([True, 1], "string", ["true", "1"]),
        ([True, None], "bool", [True, None]),
        ([{"a": [1]}, None], "string", ['{"a":[1]}', None]),
        ([None, None], "string", [None, None]),
        (["a\ud800"], "string", None),
    ],
)
def test_the_type_of_a_column_of_json_is_the_widest_of_all_its_rows(tmp_path, values, kind, out):
    table, rejected = passed(tmp_path, [{"x": value} for value in values], "x")
    assert str(table.schema.field("x").type) == kind
    if out is None:
        assert list(rejected) == [0]
    else:
        assert (table["x"].to_pylist(), rejected) == (out, {})


@pytest.mark.parametrize(
    ("declared", "values", "out"),
    [
        ("double", [1, 2**53 + 1, 10**400, "1", True, None], [1.0, 2.0**53, Reject, Reject, Reject, None]),
        ("float", [0.5, 1e39, None], [0.5, Reject, None]),
        ("int64", [4.0, 4.5, 2**63 - 1, 2**63, -(2**63), True], [4, Reject, 2**63 - 1, Reject, -(2**63), Reject]),
        ("int32", [2**31 - 1, 2**31, -(2**31)], [2**31 - 1, Reject, -(2**31)]),
        ("string", ["月", 1, None, "\ud800"], ["月", Reject, None, Reject]),
        ("bool", [True, 1], [True, Reject]),
        ("json", [1, "a", [None], None, {"b": 10**30}], ["1", '"a"', "[null]", None, '{"b":' + "1" + "0" * 30 + "}"]),
    ],
)
def test_a_value_that_does_not_fit_rejects_its_row_alone(tmp_path, declared, values, out):
    table, rejected = passed(tmp_path, [{"x": value} for value in values], f"x:{declared}")
    assert table["x"].to_pylist() == [value for value in out if value is not Reject]
    assert list(rejected) == [row for row, value in enumerate(out) if value is Reject]


def test_a_real_run_answers_all_rows_whose_values_fit(generate, tmp_path):
    """Of a JSON file, a CSV and a Parquet file with a type that Python cannot hold."""
    (tmp_path / "a.json").write_text(json.dumps([{"text": "Monday", "x": 2**53 + 1}, {"text": "Friday", "x": 0.5}]))
    (tmp_path / "b.csv").write_text('text,x\nMonday,7\n"Fri\nday",seven\n')
    pq.write_table(pa.table({"text": invalid(b"\xff"), "x": [1, 2]}), tmp_path / "c.parquet")
    names = [tmp_path / name for name in ("a.json", "b.csv", "c.parquet")]
    out = generate(names, sampling={"max_tokens": 4, "temperature": 0}, output={"columns": ["x:double", "x=text:json"]})
    table = pq.read_table(out / "part-00000-of-00001.parquet")
    assert table.select(["row", "x", "text"]).to_pylist() == [
        {"row": 0, "x": 2.0**53, "text": f"{2**53 + 1}"},
        {"row": 1, "x": 0.5, "text": "0.5"},
        {"row": 2, "x": 7.0, "text": '"7"'},
        {"row": 5, "x": 2.0, "text": "2"},
    ]
    lines = [json.loads(line) for line in (out / "_rejects" / "part-00000-of-00001.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == [(3, "bad_shape"), (4, "invalid_utf8")]


def test_a_plan_counts_the_rows_that_do_not_fit(tmp_path, batchgen, write_rows):
    rows = write_rows([{"text": "Monday", "x": value} for value in (1, 2**63, 1.5)])
    done = batchgen("plan", rows, "--model", MODEL, "--output", tmp_path / "out", "--column", "x:int64")
    assert "rejects        2 (bad_shape 2)\n" in done.stdout


# --- types of several files


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (pa.array([None, None]), pa.array(["a"]), "string"),
        (pa.array([1], pa.int32()), pa.array([2**40]), "int64"),
        (pa.array([1], pa.uint8()), pa.array([300], pa.uint16()), "uint16"),
        (pa.array([1], pa.float32()), pa.array([1.5]), "double"),
        (pa.array([2**53 + 1]), pa.array([1.5]), "double"),
        (pa.array(["a"], pa.large_string()), pa.array(["b"]).dictionary_encode(), "string"),
        (pa.array(["a"], pa.string_view()), pa.array(["b"]), "string"),
        (pa.array([b"a"], pa.large_binary()), pa.array([b"b"]), "binary"),
        (pa.array([5], pa.timestamp("s")), pa.array([7], pa.timestamp("ns")), "timestamp[ns]"),
        (pa.array([[None]]), pa.array([["a"]]), "list<element: string>"),
        (pa.array([], pa.int8()), pa.array(["a"]), "string"),
        (pa.array([{"a": 1}]), pa.array([{"a": None}]), "struct<a: int64>"),
    ],
)
def test_types_of_parquet_parts_are_widened(tmp_path, first, second, kind):
    for name, array in (("a", first), ("b", second)):
        table = pa.table({"text": pa.array(["Monday"] * len(array), pa.string()), "x": array})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    table, rejected = committed(job_of(tmp_path, sorted(tmp_path.glob("*.parquet")), ["x"]))
    assert str(table.schema.field("x").type) == kind
    assert rejected == {}
    if kind == "timestamp[ns]":
        assert table["x"].cast(pa.int64()).to_pylist() == [5 * 10**9, 7]
    else:
        made = float if kind == "double" else lambda value: value
        assert table["x"].to_pylist() == [made(value.as_py()) for value in (*first, *second)]


def test_an_empty_part_with_other_columns_does_not_matter(tmp_path):
    pq.write_table(pa.table({"y": pa.array([], pa.int8())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["Monday"], "x": ["a"]}), tmp_path / "b.parquet")
    table, _ = committed(job_of(tmp_path, [tmp_path / "a.parquet", tmp_path / "b.parquet"], ["x"]))
    assert table["x"].to_pylist() == ["a"]


@pytest.mark.parametrize(
    ("parquet", "values", "kind", "out"),
    [
        (pa.array([7]), [1, 2.5], "double", [7.0, 1.0, 2.5]),
        (pa.array([7], pa.int32()), [1, None], "int64", [7, 1, None]),
        (pa.array(["a"], pa.large_string()), ["b"], "string", ["a", "b"]),
        (pa.array([7]), [1] * 1500 + ["n/a"], "string", ["7"] + ["1"] * 1500 + ['"n/a"']),
        (pa.nulls(1), ["b"], "string", [None, "b"]),
    ],
)
def test_types_of_parquet_beside_json(tmp_path, parquet, values, kind, out):
    pq.write_table(pa.table({"text": ["Monday"], "x": parquet}), tmp_path / "a.parquet")
    lines = "".join(json.dumps({"text": "Monday", "x": value}) + "\n" for value in values)
    (tmp_path / "b.jsonl").write_text(lines)
    table, rejected = committed(job_of(tmp_path, [tmp_path / "a.parquet", tmp_path / "b.jsonl"], ["x"]))
    assert (str(table.schema.field("x").type), table["x"].to_pylist(), rejected) == (kind, out, {})


@pytest.mark.parametrize(
    ("first", "second", "advice"),
    [
        (pa.array([1]), pa.array(["a"]), "x:string or x:json"),
        (pa.array([[1]]), pa.array([1]), "x:string or x:json"),
        (pa.array([True]), pa.array([1]), "x:string or x:json"),
    ],
)
def test_types_that_have_nothing_in_common_are_one_line(tmp_path, first, second, advice):
    for name, array in (("a", first), ("b", second)):
        pq.write_table(pa.table({"text": ["Monday"], "x": array}), tmp_path / f"{name}.parquet")
    with pytest.raises(JobError, match=rf"column x: .* in .*a\.parquet, .* in .*b\.parquet; .*{advice}"):
        job_of(tmp_path, [tmp_path / "a.parquet", tmp_path / "b.parquet"], ["x"])


def test_the_types_of_the_first_run_stay_and_are_not_looked_for_again(tmp_path, monkeypatch):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "Monday", "x": 1}\n')
    first = job_of(tmp_path, [path], ["x"])
    committed(first)
    monkeypatch.setattr(
        "batchgen.input.passthrough._seen", lambda files, names: {name: {} for name in names} and pytest.fail("read")
    )
    monkeypatch.setattr("batchgen.input.passthrough._widest", lambda *_: pytest.fail("looked for"))
    again = prepare(first.spec, first.plan)
    assert again.task.columns == first.task.columns


# --- names


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("response=reference", "reference", '"r"'),
        ("response=reference:json", "reference", '"\\"r\\""'),
        ("prompt", "prompt", '"p"'),
        ("meta:src", "meta:src", '"m"'),
        ("meta:src=src", "src", '"m"'),
        ("x:int64", "x:int64", '"odd"'),
        ("a=b", "a=b", '"eq"'),
        ("", "", '"empty"'),
        ("日本 語\n'\"", "日本 語\n'\"", '"odd"'),
        ("a.b", "a.b", '"dot"'),
    ],
)
def test_columns_pass_under_any_name(tmp_path, text, name, value):
    row = {"response": "r", "prompt": "p", "meta:src": "m", "x:int64": "odd", "a=b": "eq", "": "empty"}
    row |= {"日本 語\n'\"": "odd", "a.b": "dot", "a": {"b": 1}}
    table, rejected = passed(tmp_path, [row], text)
    assert rejected == {}
    assert {name: msgspec.json.encode(table[name][0].as_py()).decode()} == {name: value}


def test_a_column_named_twice_is_taken_once_or_refused_in_one_line(tmp_path):
    table, _ = passed(tmp_path, [{"x": 1, "y": 2}], "x", "x")
    assert table.column_names == ["x"]
    with pytest.raises(JobError, match=r"\[output\] columns: x is named twice; .*y=x=other"):
        job_of(tmp_path, [tmp_path / "in.jsonl"], ["x", "y=x"])


def test_names_that_batchgen_writes_in_this_job_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "Monday", "response": "r", "prompt": "p"}\n')
    for column, output in (("response", {}), ("prompt", {"include": ["prompt"]})):
        with pytest.raises(JobError, match=rf"{column} is one of batchgen's own columns.*--column {column}=other"):
            job_of(tmp_path, [tmp_path / "in.jsonl"], [column], **output)


# --- any Arrow table


def invalid(text: bytes) -> pa.Array:
    return pa.array([text, b"good"]).view(pa.string())


def test_text_that_is_not_utf8_rejects_its_row_only_where_it_is_used(tmp_path):
    bad = invalid(b"caf\xe9")
    table = pa.table({"text": pa.array(["Monday", "Friday"]), "x": bad, "unused": bad, "raw": bad.view(pa.binary())})
    pq.write_table(table, tmp_path / "in.parquet")
    out, rejected = committed(job_of(tmp_path, [tmp_path / "in.parquet"], ["x"]))
    assert (out["x"].to_pylist(), rejected) == (["good"], {0: "invalid_utf8"})
    out, rejected = committed(job_of(tmp_path, [tmp_path / "in.parquet"], ["raw"], out="out2"))
    assert (out["raw"].to_pylist(), rejected) == ([b"caf\xe9", b"good"], {})
    pq.write_table(pa.table({"text": bad}), tmp_path / "text.parquet")
    assert committed(job_of(tmp_path, [tmp_path / "text.parquet"], [], out="out3"))[1] == {0: "invalid_utf8"}


ODD = {
    "nanoseconds": pa.array([123456789, None], pa.timestamp("ns", "Asia/Tokyo")),
    "far": pa.array([2**62, -(2**62)], pa.timestamp("us")),
    "time": pa.array([1, 86399999999999], pa.time64("ns")),
    "duration": pa.array([1, None], pa.duration("ns")),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8())),
    "uuid": pa.array([b"0" * 16, None], pa.uuid()),
    "json": pa.array(['{"a":1}', None], pa.json_()),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int8(), [2]), pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2))
    ),
    "doubled keys": pa.array([[("a", 1), ("a", 2)], None], pa.map_(pa.string(), pa.int32())),
    "dictionary": pa.array(["b", None]).dictionary_encode(),
    "numbers by dictionary": pa.array([7, 7]).dictionary_encode(),
    "list of dictionary": pa.array([["b"], None], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    "struct of nanoseconds": pa.array([{"t": 123}, None], pa.struct([("t", pa.timestamp("ns"))])),
    "views": pa.array(["longer than twelve letters", None], pa.string_view()),
    "decimal": pa.array([None, "1.5"], pa.string()).cast(pa.decimal256(50, 3)),
    "half": pa.array([1.5, None]).cast(pa.float16()),
    "nothing": pa.nulls(2),
    "NaN": pa.array([math.nan, -0.0]),
}


@pytest.mark.parametrize("name", ODD)
def test_what_python_cannot_hold_passes_as_it_is(tmp_path, name):
    table = pa.table({"text": ["Monday", "Friday"], "x": ODD[name]})
    pq.write_table(table, tmp_path / "in.parquet")
    before = pq.read_table(tmp_path / "in.parquet")["x"]
    out, rejected = committed(job_of(tmp_path, [tmp_path / "in.parquet"], ["x"]))
    assert rejected == {}
    assert out["x"].type == before.type
    assert bytes_of(out["x"]) == bytes_of(before)


def test_views_inside_of_other_types_become_plain_text(tmp_path):
    values = [{"t": "longer than twelve letters"}, None]
    table = pa.table({"text": ["Monday"] * 2, "x": pa.array(values, pa.struct([("t", pa.string_view())]))})
    pq.write_table(table, tmp_path / "in.parquet")
    out, _ = committed(job_of(tmp_path, [tmp_path / "in.parquet"], ["x"]))
    assert (out["x"].to_pylist(), str(out["x"].type)) == (values, "struct<t: string>")


def bytes_of(column: pa.ChunkedArray) -> list[bytes]:
    """Each value as Parquet's bytes, in which even NaN is equal to itself."""
    array = column.combine_chunks()
    return [written(alone(array, row)) for row in range(len(array))]


def written(array: pa.Array) -> bytes:
    array = array.cast(columns.dense(array.type)) if "dictionary" in str(array.type) else array  # whatever is in it
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": array}), sink, compression="none", store_schema=False, write_statistics=False)
    return sink.getvalue().to_pybytes()


def is_utf8(array: pa.Array) -> bool:
    """Of what can be seen: what lies under a null, or in a dictionary and nowhere else, may be anything."""
    try:
        array.to_pylist()
        return True
    except UnicodeDecodeError:
        return False
    except (ValueError, OverflowError):  # another value is beyond Python's
        return is_utf8_throughout(array)


def is_utf8_throughout(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
        return True
    except pa.ArrowInvalid:
        return False


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_tables_of_any_type_come_out_equal_or_are_rejected_by_row_and_never_end_a_job(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("any")
    rows = data.draw(st.integers(1, 5))
    kind = data.draw(TYPES)
    column = data.draw(arrays(kind, rows))
    texts = data.draw(st.sampled_from([pa.array(["Monday"] * rows), column]))
    table = pa.table({"text": texts, "id": column if data.draw(st.booleans()) else pa.nulls(rows), "x": column})
    is_parquet = data.draw(st.booleans())
    try:
        if is_parquet:
            pq.write_table(table, tmp_path / "in", row_group_size=2)
        else:
            with pa.ipc.new_file(tmp_path / "in", table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
    except pa.ArrowException:
        return  # no such file can be
    declared = data.draw(st.sampled_from(["x", "x:string", "x:json", "x:double"]))
    try:
        job = job_of(tmp_path, [tmp_path / "in"], [declared], shard_rows=3)
    except JobError as error:
        assert "\n" not in str(error)
        assert "column x" in str(error)
        assert declared != "x" or "cannot be passed through" in str(error)
        return
    out, rejected = committed(job)
    assert set(rejected.values()) <= {"bad_shape", "invalid_utf8", "empty", "too_long"}
    assert sorted([*out["row"].to_pylist(), *rejected]) == list(range(rows))
    if declared != "x":
        return
    before = pq.read_table(tmp_path / "in")["x"].combine_chunks() if is_parquet else column
    kept = out["row"].to_pylist()
    assert all(is_utf8(alone(before, row)) for row in kept)
    if is_parquet and texts is not column:
        assert all(not is_utf8_throughout(alone(before, row)) for row, why in rejected.items() if why == "invalid_utf8")
    if is_parquet:
        assert bytes_of(out["x"]) == [written(alone(before, row)) for row in kept]


# --- all of them


def test_a_star_passes_all_columns_through(tmp_path):
    rows = [{"id": "a", "lang": "en", "score": 1}, {"id": "b", "lang": "de", "more": [1]}]
    table, _ = passed(tmp_path, rows, "*")
    assert table.to_pylist() == [
        {"text": "Monday", "lang": "en", "score": 1, "more": None},
        {"text": "Monday", "lang": "de", "score": None, "more": "[1]"},
    ]


def test_a_star_is_the_same_job_as_all_the_names(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "Monday", "lang": "en", "seed": 7}\n')
    by_star = job_of(tmp_path, [path], ["lang=language", "*"])
    by_name = job_of(tmp_path, [path], ["lang=language", "text", "seed=input_seed"])
    assert by_star.record.fingerprint == by_name.record.fingerprint


def test_a_star_means_what_it_meant_when_the_job_began(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "Monday", "lang": "en"}\n')
    tables = {
        "input": {"path": [str(path)], "incremental": True},
        "model": {"path": str(MODEL)},
        "output": {"path": str(tmp_path / "out"), "columns": ["*"]},
    }
    first = prepare(load(None, tables))
    assert opening.open_job(first.out, first.record)
    with path.open("a") as lines:
        lines.write('{"text": "Tuesday", "lang": "en", "later": 1}\n')
    assert [column.name for column in prepare(load(None, tables)).task.columns] == ["text", "lang"]


def test_a_column_with_the_name_of_a_star_is_that_column(tmp_path):
    assert passed(tmp_path, [{"*": 1, "lang": "en"}], "*")[0].to_pylist() == [{"*": 1}]
