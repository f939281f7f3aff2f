"""Finding, counting and reading input; row numbers run over all files, whatever the shards."""

import gzip
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from subprocess import DEVNULL, PIPE

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyarrow import fs

from batchgen.errors import JobError, Reject
from batchgen.input import checks, passthrough
from batchgen.input import plan as planning
from batchgen.input.file_formats import CHUNK, detect
from batchgen.input.files import find
from batchgen.input.plan import COMPRESSION_BY_ENDING, Plan, grow, locator, plan_input
from batchgen.input.rows import read_rows
from batchgen.output import shard


def jsonl(path: Path, first: int, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(first, first + count)))
    return path


def is_lines(path: Path) -> bool:
    try:
        return detect(str(path)) == ("jsonl", "")
    except JobError:
        return False


def read_all(plan, columns=("text",)) -> list[tuple[int, str]]:
    rows = [row for shard in plan.shards for row in read_rows(plan, shard, columns)]
    return [(row.number, row.record()["text"]) for row in rows]


@pytest.mark.parametrize("shard_rows", [1, 2, 3, 7, 10, 100])
def test_rows_are_numbered_over_jsonl_and_parquet_and_shards_cross_files(tmp_path, shard_rows):
    files = [jsonl(tmp_path / "a.jsonl", 0, 5), jsonl(tmp_path / "b.jsonl", 5, 0), jsonl(tmp_path / "c.jsonl", 5, 1)]
    pq.write_table(pa.table({"text": [str(i) for i in range(6, 17)]}), tmp_path / "d.parquet", row_group_size=4)
    plan = plan_input([str(tmp_path)], shard_rows)
    assert [file.path for file in plan.files] == [*map(str, files), str(tmp_path / "d.parquet")]
    assert plan.rows == 17
    assert [shard.rows for shard in plan.shards] == [min(shard_rows, 17 - i) for i in range(0, 17, shard_rows)]
    assert read_all(plan) == [(i, str(i)) for i in range(17)]


@pytest.mark.parametrize("ending", COMPRESSION_BY_ENDING)
def test_compressed_files_are_read_from_any_shard(tmp_path, ending):
    text = "".join(f'{{"text": "{i}"}}\n' for i in range(200_000)).encode()
    path = tmp_path / f"in.jsonl{ending}"
    with pa.OSFile(str(path), "wb") as raw, pa.CompressedOutputStream(raw, COMPRESSION_BY_ENDING[ending]) as stream:
        stream.write(text)
    plan = plan_input([str(path)], 60_000)
    assert len(text) > 2 * CHUNK
    assert [row.number for row in read_rows(plan, plan.shards[3], ())] == list(range(180_000, 200_000))
    last = next(read_rows(plan, plan.shards[3], ()))
    assert last.record() == {"text": "180000"}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), max_size=30),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_bytes_are_as_many_rows_as_lines(tmp_path_factory, lines, shard_rows, final_newline):
    path = tmp_path_factory.mktemp("source") / "in.jsonl"
    content = b"\n".join(lines) + (b"\n" if final_newline and lines else b"")
    path.write_bytes(content)
    assume(is_lines(path))  # and no bytes that begin another kind of file
    expected = content.split(b"\n")
    expected = expected[:-1] if expected[-1] == b"" else expected
    if not expected:
        with pytest.raises(JobError):
            plan_input([str(path)], shard_rows)
        return
    plan = plan_input([str(path)], shard_rows)
    rows = [row for shard in plan.shards for row in read_rows(plan, shard, ())]
    assert [row.number for row in rows] == list(range(len(expected)))
    assert [row.raw for row in rows] == [line.removeprefix(b"\xef\xbb\xbf") for line in expected]


def test_lines_longer_than_a_read_are_whole(tmp_path):
    texts = ["x" * (3 * CHUNK), "y", "z" * CHUNK]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert read_all(plan_input([str(tmp_path / "in.jsonl")], 2)) == list(enumerate(texts))


def test_windows_line_ends_and_a_byte_order_mark_are_read_over(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
    assert read_all(plan_input([str(tmp_path / "in.jsonl")], 1)) == [(0, "a"), (1, "b")]


def test_a_folder_gives_its_data_files_by_name_without_hidden_ones(tmp_path):
    for name in ["b.jsonl", "a/x.ndjson", "a/y.json", "_state/z.jsonl", ".cache/q.jsonl", "notes.txt", "a/.h.jsonl"]:
        jsonl(tmp_path / name, 0, 1)
    found = find([str(tmp_path)])
    assert [str(Path(path).relative_to(tmp_path)) for path in found] == ["a/x.ndjson", "a/y.json", "b.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a.jsonl"]),
        ("d*/*.jsonl", ["d1/b.jsonl", "d2/c.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "d1/b.jsonl", "d1/deep/e.jsonl", "d2/c.jsonl"]),
        ("d[2-9]/?.jsonl", ["d2/c.jsonl"]),
        ("d1/**", ["d1/b.jsonl", "d1/deep/e.jsonl"]),
    ],
)
def test_globs(tmp_path, pattern, expected):
    for name in ["a.jsonl", "d1/b.jsonl", "d1/deep/e.jsonl", "d2/c.jsonl"]:
        jsonl(tmp_path / name, 0, 1)
    found = find([f"{tmp_path}/{pattern}"])
    assert [str(Path(path).relative_to(tmp_path)) for path in found] == expected


def test_a_file_uri_is_the_same_as_its_path(tmp_path):
    path = jsonl(tmp_path / "in.jsonl", 0, 3)
    assert plan_input([path.as_uri()], 2) == plan_input([str(path)], 2)


MOTO = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), sep=":", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def s3():
    """The address of an S3 server on loopback. In a process of its own: vLLM, as it starts an engine, looks at all
    modules of its process, and trips over the server's."""
    with subprocess.Popen([sys.executable, "-c", MOTO], stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True) as server:
        yield server.stdout.readline().strip()
        server.stdin.close()


@pytest.fixture
def bucket(s3, monkeypatch):
    """A bucket with three objects; gives URI makers for paths in it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    urllib.request.urlopen(urllib.request.Request(f"http://{s3}/moto-api/reset", method="POST")).close()

    def uri(path):
        return f"s3://talks/{path}?endpoint_override={s3}&scheme=http&region=us-east-1"

    system, _ = fs.FileSystem.from_uri(uri("") + "&allow_bucket_creation=true")
    system.create_dir("talks")
    table = pa.table({"text": ["0", "1"]})
    pq.write_table(table, "talks/in/a.parquet", filesystem=system)
    for name, text in [("in/b.jsonl", "2"), ("in/more/c d.jsonl", "3")]:
        with system.open_output_stream(f"talks/{name}") as stream:
            stream.write(f'{{"text": "{text}"}}\n'.encode())
    return uri


@pytest.mark.parametrize(
    ("path", "rows"), [("in", 4), ("in/", 4), ("in/a.parquet", 2), ("in/*.jsonl", 1), ("in/**/*", 4)]
)
def test_input_in_an_s3_bucket(bucket, path, rows):
    plan = plan_input([bucket(path)], 3)
    assert [number for number, _ in read_all(plan)] == list(range(rows))
    assert all(file.path.startswith("s3://talks/in/") for file in plan.files)
    assert plan_input([bucket(path)], 3, known=plan) is plan


def test_input_in_an_s3_bucket_may_grow(bucket):
    def put(path, *texts):
        system, _ = fs.FileSystem.from_uri(bucket(""))
        with system.open_output_stream(f"talks/{path}") as stream:
            stream.write("".join(f'{{"text": "{text}"}}\n' for text in texts).encode())

    plan = plan_input([bucket("in")], 3, incremental=True)
    put("in/b.jsonl", "2", "4")
    put("in/a.jsonl", "5")
    grown, changed = grow([bucket("in")], 3, plan)
    assert changed == []
    assert sorted(text for _, text in read_all(grown)) == ["0", "1", "2", "3", "4", "5"]
    assert read_all(grown)[:4] == read_all(plan)
    put("in/b.jsonl", "2", "x", "6")
    assert len(grow([bucket("in")], 3, grown)[1]) == 1


def test_a_file_with_a_glob_sign_in_its_name_is_itself(tmp_path):
    path = jsonl(tmp_path / "what[1].jsonl", 0, 1)
    assert find([str(path)]) == [str(path)]


def test_an_unchanged_input_is_not_read_again(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "in.jsonl", 0, 9)
    plan = plan_input([str(path)], 4)
    monkeypatch.setattr(planning, "scans", lambda *_: pytest.fail("read again"))
    assert plan_input([str(path)], 4, known=plan) is plan


def test_a_changed_input_is_read_again(tmp_path):
    path = jsonl(tmp_path / "in.jsonl", 0, 9)
    plan = plan_input([str(path)], 4)
    jsonl(path, 1, 9)
    assert plan_input([str(path)], 4, known=plan).files[0].digest != plan.files[0].digest


def test_the_digest_is_that_of_the_text_compressed_or_not(tmp_path):
    path = jsonl(tmp_path / "in.jsonl", 0, 9)
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    plain, packed = (plan_input([str(tmp_path / name)], 4) for name in ("in.jsonl", "in.jsonl.gz"))
    assert plain.files[0].digest == packed.files[0].digest


def test_input_that_shrinks_while_the_job_runs_is_an_error(tmp_path):
    path = jsonl(tmp_path / "in.jsonl", 0, 9)
    plan = plan_input([str(path)], 4)
    jsonl(path, 0, 5)
    with pytest.raises(JobError, match="ends before row 5; the input changed"):
        list(read_rows(plan, plan.shards[1], ()))


def test_parquet_reads_only_the_asked_columns(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "picture": [b"x" * 1000]}), tmp_path / "in.parquet")
    plan = plan_input([str(tmp_path / "in.parquet")], 4)
    [row] = read_rows(plan, plan.shards[0], ["text", "id"])
    assert row.raw == {"text": "a"}


def test_json_and_parquet_that_disagree_on_a_columns_type(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "x": "1"}\n')
    pq.write_table(pa.table({"text": ["a"], "x": [1]}), tmp_path / "b.parquet")
    plan = plan_input([str(tmp_path)], 4)
    with pytest.raises(JobError, match=r"column x: string in .*a\.jsonl, int64 in .*b\.parquet"):
        passthrough.resolve(plan.files, ["x"])


def test_what_is_rejected_shows_4_kib_of_its_row_and_how_long_it_is(tmp_path):
    long = '{"text": 7, "more": "' + "月" * 100_000 + '"}'
    (tmp_path / "in.jsonl").write_text(long + "\n{}\n", encoding="utf-8")
    plan = plan_input([str(tmp_path)], 4)
    first, second = (
        shard.reject_line(row, "x", Reject("bad_shape", "so"))["raw"] for row in read_rows(plan, plan.shards[0], [])
    )
    assert second == "{}"
    kept, _, cut = first.partition("...")
    assert cut == f" ({len(long.encode()):,} bytes in all)"
    assert long.startswith(kept)
    assert 4090 < len(kept.encode()) <= 4096


def test_where_rows_stand_in_files_of_any_kind_that_grew(tmp_path):
    jsonl(tmp_path / "a.jsonl", 0, 3)
    pq.write_table(pa.table({"text": ["x", "y"]}), tmp_path / "b.parquet")
    plan = plan_input([str(tmp_path)], 2, incremental=True)
    jsonl(tmp_path / "a.jsonl", 0, 5)
    grown, changed = grow([str(tmp_path)], 2, plan)
    place = locator(grown)
    names = [place(row).removeprefix(f"{tmp_path}/") for row in range(8)]
    assert changed == []
    assert names[:5] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.parquet row 0", "b.parquet row 1"]
    assert names[5:] == ["a.jsonl:4", "a.jsonl:5", "beyond the end of the input"]


def test_heads_of_files_are_not_parsed_where_no_template_asks(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "in.jsonl", 0, 5)
    plan = plan_input([str(path)], 4)
    monkeypatch.setattr(passthrough, "_raws", lambda file: pytest.fail("read"))
    checks.check_columns(plan.files, "auto", None)
    assert passthrough.resolve(plan.files, []) == []


def test_a_job_of_the_first_version_keeps_the_input_that_it_had(tmp_path):
    """It went by endings: a CSV beside its files was none of them, and the hub's metadata were rows."""
    for name in ("a.jsonl", "dataset_infos.json"):
        jsonl(tmp_path / name, 0, 3)
    (tmp_path / "glossary.csv").write_text("text\nMonday\n")
    named = [str(tmp_path / name) for name in ("a.jsonl", "dataset_infos.json")]
    plan = plan_input(named, 4)
    old = Plan([msgspec.structs.replace(file, kind="", compression="") for file in plan.files], plan.shards)
    assert plan_input([str(tmp_path)], 4, known=old) is old
    assert grow([str(tmp_path)], 4, old) == (old, [])
    os.utime(named[0])  # read again, and still the same
    again = plan_input([str(tmp_path)], 4, known=old)
    assert [(file.digest, file.rows, file.kind) for file in again.files] == [
        (file.digest, file.rows, "") for file in old.files
    ]
    assert len(plan_input([str(tmp_path)], 4).files) == 2  # a new job: a.jsonl and the CSV
    assert len(plan_input([str(tmp_path), str(tmp_path / "glossary.csv")][1:], 4, known=old).files) == 1
