"""Data in memory is written once beside the output, and is input like any other."""

import datetime
import decimal
import gzip
import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import duckdb
import numpy as np
import pandas as pd
import pictured
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records
from PIL import Image
from processes import until

from batchgen.api.data import paths_of
from batchgen.errors import JobError
from batchgen.host.bucket import Bucket
from batchgen.input.images import Images
from batchgen.job.spec import InputTable, LimitsTable
from batchgen.prompt.pictures import looked_at

ROWS = [{"id": "a", "text": "Friday"}, {"id": "b", "text": "Monday"}]


TABLES = {
    "arrow": pa.Table.from_pylist(ROWS),
    "batch": pa.RecordBatch.from_pylist(ROWS),
    "pandas": pd.DataFrame(ROWS, index=[7, 3]),
    "datasets": datasets.Dataset.from_list(ROWS),
    "datasets, some": datasets.Dataset.from_list([ROWS[1], *ROWS]).select([1, 2]),
    "datasets, streaming": datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "pandas, index": pd.DataFrame(ROWS).set_index("id"),
    "arrow, streaming": pa.Table.from_pylist(ROWS).to_reader(),
    "duckdb": duckdb.sql("select unnest(['a', 'b']) as id, unnest(['Friday', 'Monday']) as text"),
}


@pytest.fixture
def out(tmp_path) -> str:
    return str(tmp_path / "out")


def test_paths_stay_paths(out, tmp_path):
    assert paths_of("in/*.jsonl", out) == ["in/*.jsonl"]
    assert paths_of(Path("in"), out) == ["in"]
    assert paths_of([tmp_path, str(tmp_path), "s3://b/k"], out) == [str(tmp_path), str(tmp_path), "s3://b/k"]


@pytest.mark.parametrize("data", TABLES.values(), ids=TABLES)
def test_a_table_becomes_parquet(data, out):
    [path] = paths_of(data, out)
    assert path.startswith(f"{out}.input-") and path.endswith(".parquet")
    assert pq.read_table(path).to_pylist() == ROWS


def test_dicts_and_texts_become_json_lines(out):
    [path] = paths_of([*ROWS, "Tuesday\n"], out)
    lines = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    assert lines == [*ROWS, {"text": "Tuesday\n"}]


def test_values_of_numpy_and_pandas_become_json(out):
    """As `DataFrame.to_dict("records")` and a loop over arrays have them."""
    when = pd.Timestamp("2026-01-02 03:04:05", tz="UTC")
    row = {"text": "a", "n": np.int64(3), "v": np.array([1.5, np.nan]), "when": when, "day": datetime.date(2026, 1, 2)}
    row |= {"none": [pd.NA, pd.NaT, float("nan"), None], "price": decimal.Decimal("1.50"), 7: {1: np.bool_(True)}}
    [path] = paths_of([row], out)
    assert json.loads(Path(path).read_text("utf-8")) == {
        "text": "a",
        "n": 3,
        "v": [1.5, None],
        "when": "2026-01-02T03:04:05+00:00",
        "day": "2026-01-02",
        "none": [None] * 4,
        "price": "1.50",
        "7": {"1": True},
    }


@pytest.mark.parametrize(
    "texts", [pd.Series(["a", "b"]), np.array(["a", "b"]), pa.array(["a", "b"]), ("a", "b")], ids=str
)
def test_a_column_of_texts_is_prompts(texts, out):
    [path] = paths_of(texts, out)
    assert Path(path).read_text("utf-8") == '{"text": "a"}\n{"text": "b"}\n'


def test_files_of_which_one_is_not_there_are_no_prompts(out, tmp_path):
    """They were: a file name with a typing error was answered."""
    (tmp_path / "a.jsonl").touch()
    names = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), str(tmp_path / "*.parquet")]
    assert paths_of(names, out) == names
    with pytest.raises(JobError, match=r"a\.jsonl is a path, and 'Friday' is none"):
        paths_of([*names, "Friday"], out)
    assert paths_of(["Friday", "What is in a.jsonl?", "Friday.\n"], out)[0].startswith(f"{out}.input-")


def test_what_comes_piece_by_piece_is_never_in_memory_as_a_whole(out, tmp_path):
    def rows():
        for number in range(30_000):
            if number == 29_000:
                [made] = tmp_path.glob(".out.input-*.tmp")
                seen.append(made.stat().st_size)
            yield {"text": f"Row {number}"}

    seen: list[int] = []
    [path] = paths_of(rows(), out)
    assert seen[0] > 0.9 * Path(path).stat().st_size


def test_an_error_leaves_nothing_behind(out, tmp_path):
    def rows():
        yield "Friday"
        raise KeyError("day")

    with pytest.raises(KeyError):
        paths_of(rows(), out)
    assert not list(tmp_path.iterdir())


def test_a_generator_of_rows_is_taken_too(out):
    [path] = paths_of((row for row in ROWS), out)
    assert paths_of(ROWS, out) == [path]


def test_the_same_data_is_the_same_file(out):
    [path] = paths_of(ROWS, out)
    before = Path(path).stat()
    assert paths_of(list(map(dict, ROWS)), out) == [path]
    assert Path(path).stat() == before
    assert paths_of(ROWS[:1], out) != [path]


def test_nested_rows_come_back_as_they_are(out):
    [path] = paths_of(demo_records(5), out)
    assert [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()] == demo_records(5)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([], "no rows"),
        (iter([]), "no rows"),
        (pd.DataFrame(), "no rows"),
        ([1], "row 0 is of type int; rows are dicts or texts"),
        ([[{"role": "user", "content": "Friday"}]], r'a chat is {"messages": \[...\]}'),
        ([{"text": "a"}, {"a": [0, {"b": b"x"}]}], r"row 1, a\[1\], b: is of type bytes, which JSON does not have"),
        ([{"a": float("inf")}], "row 0, a: is infinity"),
        ([{1: "a", "1": "b"}], "row 0: two names are the same"),
        (7, "a int is no data that can be read"),
        ({"text": ["a", "b"]}, "a dict with text is no list of rows"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), "a DatasetDict with train is no list of rows"),
        (b"Friday", "a bytes holds no rows"),
        ({"a", "b"}, "a set has no order"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "Duplicate column names found"),
        (pa.table([["a"], ["b"]], names=["text", "text"]), "two columns are called text"),
        (pd.DataFrame({"text": ["a", 1]}), "Conversion failed for column text"),
        (
            pd.DataFrame({"text": ["a"], "t": pd.period_range("2026", periods=1)}),
            "column t is of a type that Arrow does",
        ),
    ],
)
def test_what_is_no_data_is_told(data, error, out):
    with pytest.raises(JobError, match=error):
        paths_of(data, out)


def test_data_in_memory_lies_beside_an_output_in_a_bucket_too(bucket, out):
    [here], [there] = paths_of(ROWS, out), paths_of(ROWS, bucket.location)
    folder, _, name = there.rpartition("/")
    beside = Bucket(folder)
    content, found = beside.get(name)
    assert content == Path(here).read_bytes()
    assert name.removeprefix(bucket.location.rpartition("/")[2]) == Path(here).name.removeprefix(Path(out).name)
    assert paths_of(ROWS, bucket.location) == [there] and beside.head(name) == found  # not written again


@pytest.mark.parametrize(
    ("output", "why"),
    [("s3://bucket", "needs a name in the bucket"), ("hf://datasets/a/b", "results go to local files or to a bucket")],
)
def test_data_in_memory_needs_a_place_to_lie(output, why):
    with pytest.raises(JobError, match=why):
        paths_of(ROWS, output)


# --- Polars, which is no dependency of the tests: 45 MB

OF_POLARS = """
import re, sys
import polars as pl, pyarrow.parquet as pq
import batchgen
from batchgen import manual
from batchgen.api.data import paths_of

frame = pl.DataFrame([{"id": "a", "text": "Friday"}, {"id": "b", "text": "Monday"}])
for each in (frame, frame.lazy(), frame.with_columns(pl.col("text").cast(pl.Enum(["Friday", "Monday"])))):
    assert pq.read_table(paths_of(each, "beside/out")[0]).to_pylist() == frame.to_dicts()
assert paths_of(frame["text"], "beside/out")[0].endswith(".jsonl")
for column in (pl.Series("text", [object()], dtype=pl.Object), pl.Series("text", [2**100], dtype=pl.Int128)):
    try:
        paths_of(pl.DataFrame([column]), "beside/out")
    except batchgen.JobError as error:
        print(error)
assert batchgen.open("demo/out").to_polars(["id"]).equals(pl.read_parquet("demo/out/*.parquet", columns=["id"]))
lines = re.search("^    import polars.*?(?=^\\\\S)", manual.text("output"), re.M | re.S)[0]
exec(re.sub("^    ", "", lines, flags=re.M))
"""


@pytest.mark.slow
def test_polars_gives_and_takes(instantly, write_rows, tmp_path):
    """And the manual's lines for it."""
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "pip", "install", "-q", "--target", tmp_path / "site", "polars"], check=True)
    (tmp_path / "demo" / "data").mkdir(parents=True)
    instantly([write_rows(demo_records(30), "demo/data/conversations.jsonl")], out="demo/out")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    command = [sys.executable, "-c", OF_POLARS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    objects, integers, *table = done.stdout.splitlines()
    assert objects == "input: column text holds Python objects; convert it, or leave it out"
    assert integers.startswith("input: the data frame has no form as a table: ")
    assert "shape: (5, 3)" in table


def test_rows_may_hold_images_of_pillow_or_the_bytes_of_their_files(tmp_path):
    file = pictured.photo(1)
    seen = Image.open(io.BytesIO(file))
    values = [seen, file, [seen, file], {"bytes": file, "path": None}, seen.convert("CMYK").convert("RGB")]
    [path] = paths_of([{"text": "What?", "image": value} for value in values], str(tmp_path / "out"))
    records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    images = Images(InputTable(path=["x"], image="image"), [SimpleNamespace(path=path, rows=9)], LimitsTable())
    found = [[looked_at(each, None, 10**6).pixels for each in images.read(row, 0)[1]] for row in records]
    assert found[:4] == [[seen.tobytes()], [seen.tobytes()], [seen.tobytes()] * 2, [seen.tobytes()]]
    with pytest.raises(JobError, match="row 0, text: is of type bytes, which JSON does not have"):
        paths_of([{"text": b"no image"}], str(tmp_path / "other"))


# --- through a pipe

LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.fixture
def piped(batchgen_process, tmp_path, monkeypatch):
    """Runs the command with these bytes on its stdin, on the instant engine."""
    monkeypatch.setenv("BATCHGEN_ENGINE", "instant")

    def run(command, content: bytes, *flags):
        stdin = tmp_path / "stdin"
        stdin.write_bytes(content)
        pipe = subprocess.Popen(["cat", stdin], stdout=subprocess.PIPE)
        done = batchgen_process(command, "-", "--model", MODEL, *flags, stdin=pipe.stdout, cwd=tmp_path)
        pipe.stdout.close()
        pipe.wait()
        return done

    return run


def parquet_of(rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("content", [LINES, gzip.compress(LINES, mtime=0), json.dumps(ROWS).encode(), parquet_of(ROWS)])
def test_what_is_piped_in_is_kept_beside_the_output_and_is_input_like_any_other(piped, batchgen, tmp_path, content):
    assert piped("run", content, "--output", "out").returncode == 0
    [kept] = tmp_path.glob("*out.input-*")
    assert kept.read_bytes() == content
    assert ds.dataset(tmp_path / "out").to_table()["id"].to_pylist() == ["a", "b"]
    assert batchgen("verify", tmp_path / "out").exit_code == 0


def test_the_same_piped_in_again_is_the_same_job_and_anything_else_is_another_one(piped, tmp_path):
    assert piped("run", LINES, "--output", "out").returncode == 0
    assert "all done already" in piped("run", LINES, "--output", "out").stdout
    other = piped("run", LINES * 2, "--output", "out")
    assert (other.returncode, "holds results of a job that differs in" in other.stderr) == (2, True)


def test_a_plan_of_what_is_piped_in_leaves_nothing(piped, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    done = piped("plan", LINES)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "rows           2 in 1 files")
    assert not list((tmp_path / "scratch").iterdir()) and not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_comes_in_nothing_is_left_of_it(tmp_path, monkeypatch, command, number):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    program = Path(sys.executable).with_name("batchgen")
    call = [program, command, "-", "--model", MODEL, "--output", "out"]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as started:
        until(lambda: [*tmp_path.glob(".out.input-*"), *tmp_path.glob("scratch/*/.stdin.input-*")])
        started.send_signal(number)
        assert started.stderr.read() == b"batchgen: stopped while stdin was read; nothing was begun\n"
    assert started.returncode == 75
    assert list(tmp_path.iterdir()) == [tmp_path / "scratch"] and not list((tmp_path / "scratch").iterdir())


def test_what_no_job_begins_with_is_not_kept(piped, tmp_path):
    assert piped("run", b"a,b\n1,2\n", "--output", "out").returncode == 2
    assert not list(tmp_path.glob("*out*"))
    assert piped("run", LINES, "--output", "out").returncode == 0
    assert piped("run", LINES * 2, "--output", "out").returncode == 2
    assert len(list(tmp_path.glob("out.input-*"))) == 1


@pytest.mark.parametrize(
    "command, stdin, says",
    [
        ("run", subprocess.DEVNULL, "-: nothing came in through the pipe"),
        ("run", "terminal", "-: is for what is piped in (cat talks.jsonl | batchgen ...), and nothing is; name a file"),
        ("submit", subprocess.DEVNULL, "-: a job on the cluster cannot read what is piped in here; name a file"),
    ],
)
def test_without_a_pipe_one_line_says_what_to_do(batchgen_process, tmp_path, command, stdin, says):
    ours, theirs = pty.openpty()
    given = ["run", "-"] if command == "run" else [command, write_job(tmp_path), "--", "-"]
    flags = ["--model", MODEL, "--output", tmp_path / "out"]
    done = batchgen_process(*given, *flags, stdin=theirs if stdin == "terminal" else stdin)
    os.close(ours)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (2, f"batchgen: {says}\n")
    assert not list(tmp_path.glob("*out*"))


def write_job(folder: Path) -> Path:
    (folder / "job.toml").write_text("[sampling]\ntemperature = 0\n")
    return folder / "job.toml"
