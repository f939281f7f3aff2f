"""Finding input: what a folder, a glob, a link, a pipe or a URI gives, and what their errors mean."""

import errno
import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, untimed
from processes import hook, instant

from batchgen.errors import JobError, Stopped
from batchgen.input import files
from batchgen.input.file_formats import chunks
from batchgen.input.plan import locate, plan_input
from batchgen.input.rows import Reader, read_rows
from batchgen.job.spec import load
from batchgen.output import opening
from batchgen.output import record as records
from batchgen.runner.prepare import prepare

LINE = b'{"text": "Monday"}\n'


def put(path: Path, content: bytes = LINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(root: Path, *paths: str, **how) -> list[str]:
    return [os.path.relpath(found, root) for found in files.find([str(root / path) for path in paths], **how)]


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["Monday", "Friday"]}), sink)
    return sink.getvalue().to_pybytes()


# --- what is data


def test_a_folder_and_a_glob_take_the_same_kinds_of_files(tmp_path, capsys):
    data = ["A.JSONL.GZ", "b.csv", "b.tsv", "c.pq", "d.feather", "e.jl", "part-00000", "q.parquet.snappy", "x.jsonl.1"]
    for name in data:
        put(tmp_path / name)
    for name in ["README.md", "LICENSE", "state.json", "dataset_infos.json", "_SUCCESS", ".hidden.jsonl", "_no.jsonl"]:
        put(tmp_path / name, b"no data\n")
    put(tmp_path / "notes.txt"), put(tmp_path / "book.xlsx")
    assert names(tmp_path, ".") == sorted(data)
    assert untimed(capsys.readouterr().err) == (
        f"batchgen: warning: {tmp_path}: book.xlsx, notes.txt: batchgen does not read such files; skipped\n"
    )
    assert names(tmp_path, "*") == sorted(data)
    assert names(tmp_path, "_*") == ["_no.jsonl"]
    assert names(tmp_path, ".h*") == [".hidden.jsonl"]
    assert names(tmp_path, "notes.txt") == ["notes.txt"]  # what is named is read, or refused by its content


def test_a_folder_saved_by_datasets_gives_its_own_data_files_of_all_splits(tmp_path):
    for split in ("train", "test"):
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        put(tmp_path / split / "state.json", json.dumps(state).encode())
        for name in ("data-00000-of-00001.arrow", "cache-17.arrow", "dataset_info.json"):
            put(tmp_path / split / name)
    put(tmp_path / "dataset_dict.json", b'{"splits": ["train", "test"]}')
    assert names(tmp_path, ".") == [f"{split}/data-00000-of-00001.arrow" for split in ("test", "train")]


def test_results_of_batchgen_are_no_input(tmp_path, capsys):
    put(tmp_path / "in" / "a.jsonl")
    for out in ("out", "other"):
        put(tmp_path / "in" / out / "_job.json"), put(tmp_path / "in" / out / "part-00000-of-00001.parquet")
        (tmp_path / "in" / out / "_state").mkdir()
    found = files.find([str(tmp_path / "in")], out=str(tmp_path / "in" / "out"))
    assert found == [str(tmp_path / "in" / "a.jsonl")]
    assert capsys.readouterr().err.count("other: an output folder of batchgen in the input; skipped\n") == 1
    assert names(tmp_path / "in", "other") == ["other/part-00000-of-00001.parquet"]  # unless it is what was named


def test_a_job_whose_output_lies_in_its_input_goes_on(tmp_path):
    put(tmp_path / "a.jsonl")
    tables = {"input": {"path": [str(tmp_path)], "incremental": True}, "model": {"path": str(MODEL)}}
    job = prepare(load(None, {**tables, "output": {"path": str(tmp_path / "out")}}))
    opening.open_job(job.out, job.record)
    put(tmp_path / "out" / "part-00000-of-00001.parquet", parquet())
    again = prepare(load(None, {**tables, "output": {"path": str(tmp_path / "out")}}))
    assert again.record.fingerprint == job.record.fingerprint


# --- paths


def test_names_that_are_not_utf8(tmp_path, batchgen):
    strange = os.path.join(os.fsencode(tmp_path), b"\x93\xfa\x96{")
    os.mkdir(strange)
    with open(strange + b"/\xff 1.jsonl", "wb") as stream:
        stream.write(LINE)
    for given in (os.fsdecode(strange), os.fsdecode(strange + b"/\xff 1.jsonl"), f"{tmp_path}/*/*.jsonl"):
        job = prepare(load(None, {
            "input": {"path": [given]}, "model": {"path": str(MODEL)}, "output": {"path": str(tmp_path / "out")}
        }))  # fmt: skip
        opening.open_job(job.out, job.record)
        plan = records.read_job(job.out).plan
        assert [row.record() for row in read_rows(plan, plan.shards[0], [])] == [{"text": "Monday"}]
        assert locate(plan, 0).isascii()
        assert batchgen("plan", given, "--model", MODEL, "--output", tmp_path / "none").exit_code == 0


@pytest.mark.parametrize(
    "name", ["a b.jsonl", "日本.jsonl", "100%.jsonl", "a#b.jsonl", "a%20b.jsonl", "line\nbreak.jsonl"]
)
def test_file_uris(tmp_path, name):
    path = put(tmp_path / name)
    assert files.find([path.as_uri()]) == [str(path)]
    if "%" not in name:
        assert files.find([f"file://{path}"]) == [str(path)]


def test_links_and_second_names(tmp_path, capsys):
    put(tmp_path / "data" / "a.jsonl"), put(tmp_path / "data" / "b.jsonl", LINE * 2), put(tmp_path / "far" / "c.jsonl")
    (tmp_path / "data" / "loop").symlink_to("..")
    (tmp_path / "data" / "self").symlink_to(".")
    (tmp_path / "data" / "elsewhere").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "gone.jsonl").symlink_to("nowhere")
    assert names(tmp_path, "data") == ["data/a.jsonl", "data/b.jsonl"]
    assert "/data: 4 links skipped (" in capsys.readouterr().err
    assert names(tmp_path, "data", follow_links=True) == ["data/a.jsonl", "data/b.jsonl", "data/elsewhere/c.jsonl"]
    assert "gone.jsonl: a broken link; skipped" in capsys.readouterr().err
    (tmp_path / "alias").symlink_to("data")
    assert names(tmp_path, ".") == ["data/a.jsonl", "data/b.jsonl", "far/c.jsonl"]
    os.link(tmp_path / "far" / "c.jsonl", tmp_path / "far" / "hard.jsonl")
    capsys.readouterr()
    assert names(tmp_path, "far") == ["far/c.jsonl"]
    assert "hard.jsonl: the same file as" in capsys.readouterr().err
    with pytest.raises(JobError, match=r"hard\.jsonl: the same file as .*c\.jsonl; name each file once"):
        names(tmp_path, "far/c.jsonl", "far/hard.jsonl")
    with pytest.raises(JobError, match=r"gone\.jsonl: a link to nowhere, which is not there"):
        names(tmp_path, "data/gone.jsonl")


def test_what_is_no_regular_file_is_told_what_to_do(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("pipe", "-", "/dev/stdin", "/dev/null"):
        with pytest.raises(JobError, match=r"needs a regular file, .*zcat x\.gz > x\.jsonl"):
            names(tmp_path, path)


def test_braces_and_home(tmp_path, monkeypatch):
    put(tmp_path / "a.jsonl"), put(tmp_path / "b.jsonl"), put(tmp_path / "{x,y}.jsonl")
    assert names(tmp_path, "{b,a}.jsonl") == ["b.jsonl", "a.jsonl"]
    assert names(tmp_path, "{x,y}.jsonl") == ["{x,y}.jsonl"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.find(["~/a.jsonl"]) == [str(tmp_path / "a.jsonl")]
    with pytest.raises(JobError, match="no such file"):
        files.find(["~nobody-of-this-name/a.jsonl"])


def test_a_glob_looks_only_where_it_can_match(tmp_path, monkeypatch):
    put(tmp_path / "a" / "x.jsonl"), put(tmp_path / "b" / "deep" / "x.jsonl")
    looked = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(os.path.relpath(path, tmp_path)) or scan(path))
    assert names(tmp_path, "*/x.jsonl") == ["a/x.jsonl"]
    assert sorted(looked) == [".", "a", "b"]


# --- errors


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET])
def test_input_that_cannot_be_read_for_a_moment_is_no_mistake_of_the_user(tmp_path, monkeypatch, number):
    path = put(tmp_path / "a.jsonl")

    stat = os.stat

    def broken(given, **how):
        if given == str(path):
            raise OSError(number, os.strerror(number))
        return stat(given, **how)

    monkeypatch.setattr("batchgen.input.file_formats.open_raw", lambda path, running=False: Broken(number))
    with pytest.raises(Stopped, match=r"a\.jsonl: cannot be read now"):
        plan_input([str(path)], 4)
    with pytest.raises(Stopped, match=r"a\.jsonl: cannot be read now"):
        list(chunks(str(path)))
    monkeypatch.setattr(os, "stat", broken)
    with pytest.raises(Stopped, match=r"a\.jsonl: cannot be read now"):
        files.facts(str(path))


class Broken:
    """An open file of a disk that fails."""

    def __init__(self, number):
        self._number = number

    def read(self, size):
        raise OSError(self._number, os.strerror(self._number))

    def close(self):
        pass


def test_input_that_goes_away_while_the_job_runs_stops_it_resumable_but_is_wrong_usage_before(tmp_path):
    path = put(tmp_path / "a.jsonl", LINE * 9)
    plan = plan_input([str(path)], 3)
    reader = Reader(plan, [], running=True)
    path.rename(tmp_path / "b")
    with pytest.raises(Stopped, match=r"a\.jsonl: cannot be read now \(No such file or directory\)"):
        list(reader.read(plan.shards[1]))
    with pytest.raises(JobError, match="no such file or folder"):
        plan_input([str(path)], 3)
    put(tmp_path / "a.jsonl", LINE * 4)
    with pytest.raises(JobError, match="the input changed"):
        list(reader.read(plan.shards[1]))


def test_a_run_whose_input_goes_away_exits_75_and_goes_on_when_it_is_back(start, write_rows, tmp_path):
    path = write_rows([{"text": "Monday"}] * 9)
    rename = f"def patch(engine): os.rename({str(path)!r}, {str(path) + '.away'!r})"
    gone = hook(tmp_path / "hook", rename, step=0)
    run = start(path, tmp_path / "out", "--max-tokens", 4, env=gone)
    assert run.wait() == 75, run.stderr
    assert "in.jsonl: cannot be read now (No such file or directory)" in run.stderr
    assert "Traceback" not in run.stderr
    Path(f"{path}.away").rename(path)
    run = start(path, tmp_path / "out", "--max-tokens", 4, env=instant(tmp_path / "instant"))
    assert run.wait() == 0, run.stderr


# --- the web


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path.startswith("/busy"):
            self.send_error(503)
        else:
            super().do_GET()

    do_HEAD = do_GET


@pytest.fixture
def web(tmp_path):
    """A web server on loopback that has the files of tmp_path, and gives no ranges."""
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_input_from_the_web(tmp_path, web):
    put(tmp_path / "a.jsonl", b"".join(b'{"text": "%d"}\n' % number for number in range(9)))
    put(tmp_path / "b.parquet", parquet())
    plan = plan_input([f"{web}/a.jsonl", f"{web}/b.parquet"], 4)
    rows = [row.record()["text"] for shard in plan.shards for row in read_rows(plan, shard, ["text"])]
    assert rows == [*map(str, range(9)), "Monday", "Friday"]
    with pytest.raises(JobError, match=r"none\.jsonl: no such file or folder"):
        plan_input([f"{web}/none.jsonl"], 4)
    with pytest.raises(Stopped, match=r"busy\.jsonl: cannot be read now"):
        plan_input([f"{web}/busy.jsonl"], 4)
    with pytest.raises(JobError, match="http:// works for this machine only"):
        plan_input(["http://example.org/a.jsonl"], 4)


def test_a_web_server_that_does_not_answer(web):
    with pytest.raises(Stopped, match="cannot be read now"):
        plan_input(["http://127.0.0.1:1/a.jsonl"], 4)


class Hub(Handler):
    """As much of the hub's API as reading a dataset needs; `where` holds the dataset's files."""

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/api/datasets/org/talks/tree/"):
            below = path.split("/", 7)[7] if path.count("/") > 6 else "."
            deep = "recursive=true" in self.path.lower()
            above = {name: [str(parent) for parent in Path(name).parents] for name in self._names()}
            inside = [name for name in above if below in (above[name] if deep else above[name][:1])]
            self._answer([self._about(name) for name in inside])
        elif path.startswith("/api/datasets/org/talks"):
            self._answer({"id": "org/talks", "sha": "0" * 40, "siblings": []})
        elif path.startswith("/datasets/org/talks/resolve/"):
            content = (Path(self.directory) / path.split("/", 6)[6]).read_bytes()
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            self._answer(content[int(first) : int(last) + 1 if last else None], status=206)
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = json.loads(body)["paths"] if body[0] == "{" else parse_qs(body)["paths"]
        self._answer([self._about(name) for name in self._names() if name in asked])

    def _names(self):
        return [str(path.relative_to(self.directory)) for path in Path(self.directory).rglob("*")]

    def _about(self, name):
        path = Path(self.directory) / name
        of = {"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size}
        return {**of, "path": name, "oid": name}

    def _answer(self, body, status=200):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ("hf://datasets/org/talks", 5),
        ("hf://datasets/org/talks/data/*.parquet", 2),
        ("hf://datasets/org/talks@main/a.jsonl", 3),
        ("hf://datasets/org/talks/none.jsonl", "none.jsonl: no such file or folder"),
    ],
)
def test_datasets_of_the_hub(tmp_path, given, rows):
    """In a process of its own, as the hub's address is read once."""
    put(tmp_path / "hub" / "a.jsonl", LINE * 3), put(tmp_path / "hub" / "data" / "b.parquet", parquet())
    handler = functools.partial(Hub, directory=str(tmp_path / "hub"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
        code = "import sys\nfrom batchgen import errors\n"
        code += "from batchgen.input.plan import plan_input\nfrom batchgen.input.rows import read_rows\n"
        code += "try: plan = plan_input([sys.argv[1]], 2)\n"
        code += "except errors.JobError as error: print(error); sys.exit()\n"
        code += "print(sum(1 for shard in plan.shards for _ in read_rows(plan, shard, ['text'])))"
        done = subprocess.run([sys.executable, "-c", code, given], env=environment, capture_output=True, text=True)
        server.shutdown()
    assert str(rows) in done.stdout, done.stderr
