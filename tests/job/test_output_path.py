"""Where results may go is known before anything is read: one line and exit 2, and nothing is made anywhere."""

import os

import pytest
from conftest import MODEL, demo_records

from batchgen.errors import JobError
from batchgen.job.output_path import check_output_path

BAD = {
    "s3://bucket/out?region=x": "has a `?` or `#` in it; endpoint and region come from the environment",
    "gs:///out": "names no bucket; write gs://BUCKET/FOLDER",
    "az://box/../out": "has a name of other signs than letters, digits",
    "file:///tmp/nowhere": "results go to local files or to a bucket (s3://, gs://, az://), not to this URI",
    "hf://datasets/a/b": "results go to local files or to a bucket (s3://, gs://, az://), not to this URI",
    "~nobody-of-that-name/out": "no user of that name has a home folder",
    "o\x1b[31mut": "has a control character in its name",
    "o\nut": "has a control character in its name",
    "o\x85ut": "has a control character in its name",
    os.fsdecode(b"o\xffut"): "its name is not UTF-8",
    "x" * 300: "has a name of more than 240 bytes",
    "in.jsonl": "is a file; name a folder for the output",
    "in.jsonl/out": "is a file; name a folder for the output",
    "/dev/null/out": "is a file; name a folder for the output",
    "loop": "is a broken link, or one to itself",
    "loop/out": "is a broken link, or one to itself",
    "dangling": "is a broken link, or one to itself",
    ".": "holds something else (",
}


@pytest.fixture
def place(tmp_path, write_rows, monkeypatch):
    write_rows(demo_records(4))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("gone")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("way", "path"),
    [("flag", path) for path in BAD] + [("job file", path) for path in BAD if path.isprintable()],
    ids=ascii,
)
def test_an_output_folder_that_cannot_be_is_one_line(place, batchgen, command, path, way):
    if way == "flag":
        where = ["in.jsonl", "--output", path]
    else:
        (place / "job.toml").write_text(f'[output]\npath = "{path}"\n')
        where = ["job.toml", "in.jsonl"]
    before = sorted(os.listdir())
    result = batchgen(command, *where, "--model", MODEL)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
    assert BAD[path] in result.stderr
    assert result.stderr.rstrip("\n").isprintable()
    assert sorted(os.listdir()) == before


def test_a_job_file_with_a_nul_in_its_output(place, batchgen):
    (place / "job.toml").write_text('[output]\npath = "o\\u0000ut"\n')
    result = batchgen("run", "job.toml", "in.jsonl", "--model", MODEL)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "has a control character in its name" in result.stderr


@pytest.mark.parametrize("path", ["out", "a/b/out", "日本語", "with space", "a:b", "~", "linked/out", "x" * 240])
def test_a_name_that_people_use_is_taken(place, path):
    (place / "real").mkdir()
    (place / "linked").symlink_to("real")
    check_output_path("--output", str(place / path))


@pytest.mark.parametrize("command", ["export", "retry"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("file:///tmp/x.jsonl", "results go to local files"),
        ("https://host/a/b.jsonl", "results go to local files"),
        ("o\x1b[31mut.jsonl", "has a control character in its name"),
        ("loop/x.jsonl", "is a broken link, or one to itself"),
    ],
)
def test_export_and_retry_refuse_the_same_places(place, generate, batchgen, command, path, reason):
    out = generate([place / "in.jsonl"], sampling={"temperature": 0, "max_tokens": 4})
    arguments = ["--to", path] if command == "export" else ["--only", "length", "--output", path]
    before = sorted(os.listdir())
    result = batchgen(command, out, *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert reason in result.stderr
    assert sorted(os.listdir()) == before


def test_output_inside_the_input_folder_goes_on_and_is_never_read(place, generate, batchgen):
    (place / "in").mkdir()
    (place / "in.jsonl").rename(place / "in" / "a.jsonl")
    for _ in range(2):
        out = generate([place / "in"], out="in/out", sampling={"temperature": 0, "max_tokens": 4})
    result = batchgen("run", "in", "--output", out, "--model", MODEL, "--temperature", 0, "--max-tokens", 4)
    assert result.stdout.startswith("all done already: 4 rows, 4 responses")


def test_an_input_folder_itself_is_no_output(place, batchgen):
    (place / "in").mkdir()
    (place / "in.jsonl").rename(place / "in" / "a.jsonl")
    result = batchgen("run", "in", "--output", "in", "--model", MODEL)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "holds something else (a.jsonl)" in result.stderr


def test_the_line_begins_with_the_key_or_flag():
    with pytest.raises(JobError, match=r"^--to: s3:/b/x: "):
        check_output_path("--to", "s3:/b/x")
