"""One pass over the files of an input, several side by side: the same plan as a plain walk over their lines gives."""

import gzip
import hashlib
import os
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.errors import JobError
from batchgen.input import file_formats, scan
from batchgen.input.plan import Plan, changed_files, plan_input

LINE = st.one_of(
    st.sampled_from([b'{"text": "a"}', '{"text": "月曜日"}'.encode(), b"", b"x" * 40]), st.binary(max_size=9)
)
TEXT = st.lists(st.tuples(LINE, st.sampled_from([b"\n", b"\r\n"])), max_size=25).flatmap(
    lambda lines: st.sampled_from([b"".join(map(b"".join, lines)), b"".join(map(b"".join, lines)).rstrip(b"\r\n")])
)


HEAD = b'{"text": "0"}\n'  # so that every file is taken for JSONL


def plainly(texts: list[bytes], shard_rows: int) -> list[tuple[int, int]]:
    """(file, position) of every shard, found line by line."""
    begins = []
    for file, text in enumerate(texts):
        position = 0
        while position < len(text):
            begins.append((file, position))
            position = text.find(b"\n", position) + 1 or len(text)
    return begins[::shard_rows]


def starts(plan: Plan) -> list[tuple[int, int]]:
    return [(shard.file, shard.position) for shard in plan.shards]


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(TEXT, min_size=1, max_size=6),
    shard_rows=st.integers(1, 9),
    piece=st.integers(1, 60),
    block=st.integers(1, 30),
    kept=st.sampled_from([0, 200, 1 << 24]),
    packed=st.booleans(),
)
def test_shards_begin_where_a_plain_walk_finds_them(tmp_path_factory, texts, shard_rows, piece, block, kept, packed):
    """Of any text, read in pieces and blocks of any size, and of compressed files, whose newlines are kept."""
    root = tmp_path_factory.mktemp("scan")
    texts = [HEAD + text for text in texts]
    for number, text in enumerate(texts):
        (root / f"{number}.jsonl").write_bytes(gzip.compress(text) if packed else text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_formats, "CHUNK", piece)
        patch.setattr(scan, "_is_small", lambda path: False)  # all are read ahead
        patch.setattr(scan, "BLOCK", block)
        patch.setattr(scan, "MOST_KEPT", kept)
        plan = plan_input([str(root)], shard_rows)
    assert starts(plan) == plainly(texts, shard_rows)
    assert [file.digest for file in plan.files] == [hashlib.sha256(text).hexdigest() for text in texts]
    assert [file.end for file in plan.files] == list(map(len, texts))
    assert [file.rows for file in plan.files] == [len(plainly([text], 1)) for text in texts]
    assert changed_files(plan, trust_times=False, growing=False) == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_counted_before_those_before_it_begins_shards_at_the_same_rows(tmp_path, packed):
    text = b"".join(b'{"text": "%d"}\n' % number for number in range(50_000))
    path = tmp_path / "in.jsonl"
    path.write_bytes(gzip.compress(text) if packed else text)
    file = scan.InputFile(str(path), len(text), 0, "", 0, len(text), kind="jsonl", compression="gzip" if packed else "")
    first: Future[int] = Future()
    lines = scan.Lines(file, 7, first)
    for piece in file_formats.chunks(file.path, file.compression):
        lines.add(piece)
    assert lines.rows == 50_000
    for first_row in range(7):
        assert [(0, begin) for begin in lines.begins(first_row)] == plainly([text], 1)[first_row::7]


def write_big(path: Path, text: bytes = b"") -> None:
    """A sparse file of 40 GB: half a minute to read."""
    path.write_bytes(text)
    os.truncate(path, 40_000_000_000)


def test_the_first_bad_file_in_input_order_is_told_of_at_once_and_what_is_ahead_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "_is_small", lambda path: False)
    packed = gzip.compress(b'{"text": "a"}\n' * 3_000_000)
    (tmp_path / "a.jsonl").write_bytes(packed[:-9])  # is found to be bad at its end
    (tmp_path / "b.jsonl.zst").write_bytes(b"PAR1 not Parquet")  # at its beginning
    write_big(tmp_path / "c.jsonl", b'{"text": "a"}\n')
    begin = time.monotonic()
    with pytest.raises(JobError, match=r"a\.jsonl: cut off or damaged gzip"):
        plan_input([str(tmp_path)], 4)
    assert time.monotonic() - begin < 8


def test_warnings_of_unfinished_lines_come_in_input_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scan, "_is_small", lambda path: False)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 500_000 + b'{"text":')
    for name in "bcd":
        (tmp_path / f"{name}.jsonl").write_bytes(b'{"text": "a"}\n{"te')
    plan = plan_input([str(tmp_path)], 4, incremental=True)
    assert plan.rows == 500_003
    told = [Path(line.split(": ")[2]).name for line in capsys.readouterr().err.splitlines()]
    assert told == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]


def test_a_file_that_changes_while_it_is_counted_is_an_error(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 20)
    file = scan.InputFile(str(path), 280, 0, "", 0, 280, kind="jsonl")
    lines = scan.Lines(file, 3, Future())
    lines.add(path.read_bytes())
    path.write_bytes(b"x" * 280)
    with pytest.raises(JobError, match="changed while it was counted"):
        lines.begins(1)
