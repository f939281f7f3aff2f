"""Mutated rows and Parquet files: each is answered, rejected or refused in one line, in little time and memory."""

import copy
import json
import random
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MODEL

from batchgen.commands.bench import resident_mb
from batchgen.errors import JobError, Reject, Stopped
from batchgen.job.sampling import Sampling, StructuredOutputs
from batchgen.job.spec import load
from batchgen.output import shard
from batchgen.runner.prepare import Job, prepare
from batchgen.task.flow import work_of

ROWS = [
    {"text": "Monday", "id": 7},
    {"prompt": "Friday", "completion": "x", "seed": 5, "more": {"a": [1, 2.5, None, "é月"]}},
    {"conversation": [{"speaker": "ユーザー", "text": "a"}, {"speaker": "システム", "text": "b"}] * 2},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "t"}]}]},
    {"conversations": [{"from": "human", "value": "x"}], "system": "be brief"},
    {"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "x"}], "n": 2}},
    {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant"},
    {"text": "<s>[INST] <<SYS>> s <</SYS>> a [/INST] b </s><s>[INST] c [/INST]"},
    {"text": "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"},
    {"text": "### Human: a### Assistant: b### Human: c"},
    {"instruction": "a", "input": "b", "history": [["c", "d"]]},
    {"prompt": {"role": "prompter", "text": "a", "replies": []}},
    {
        "text": "x",
        "sampling": {
            "temperature": 0.5,
            "top_k": 5,
            "stop": ["a"],
            "bad_words": ["b"],
            "logit_bias": {"5": 1.0},
            "stop_token_ids": [7],
            "structured_outputs": {"choice": ["a", "b"]},
            "n": 2,
        },
    },
]
VALUES = [
    *(None, True, 0, -1, 1 << 31, 1 << 63, 1 << 70, 1e308, "", " ", "\u0000", "x" * 3000, "\n" * 3000, "[" * 3000),
    *('{"a": 1}', "[INST]", "NaN", [], {}, [[]] * 300, [None], {"role": "user"}, ["a"] * 300, "\u202e", "7" * 5000),
]
SIGNS = [b"", b"\0", b"\xff", b"\\ud800", b'"', b"{", b"[", b",", b"}", b"NaN", b"1e999", b"\xef\xbb\xbf", b"\\u0000"]
LONGEST = 5  # seconds that one row or file may take
MOST_MB = 1000  # that all may take beside what was there before


@contextmanager
def in_time(what: object):
    """Fails if something does not end, wherever it is."""

    def late(number, frame):
        raise AssertionError(f"no end after {LONGEST} s: {what!r:.500}")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def resident_now() -> float:
    """MB; the peak begins here anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mb()


def mutated(generator: random.Random) -> bytes:
    row = copy.deepcopy(generator.choice(ROWS))
    for _ in range(generator.choice([0, 1, 1, 2, 3])):
        _mutate(row, generator)
    line = json.dumps(row, ensure_ascii=generator.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(generator.choice([0, 0, 1, 2])):
        begin = generator.randrange(len(line) + 1)
        line = line[:begin] + generator.choice(SIGNS) + line[begin + generator.choice([0, 0, 1, 5]) :]
    return line.replace(b"\n", b"")


def _mutate(node, generator: random.Random) -> None:
    """Something in a row, at any depth, becomes something else."""
    places = list(node) if isinstance(node, dict) else list(range(len(node)))
    if not places:
        return
    place = generator.choice(places)
    inner = node[place]
    if isinstance(inner, dict | list) and inner and generator.random() < 0.7:
        return _mutate(inner, generator)
    if generator.random() < 0.2 and isinstance(node, dict):
        node[generator.choice(["id", "seed", "sampling", "system", "messages", "x" * 2000])] = node.pop(place)
    elif isinstance(inner, str) and len(inner) < 5000 and generator.random() < 0.3:
        node[place] = inner * generator.choice([2, 500]) + generator.choice(["", "\ud800", "\n", "</s>"])
    else:
        node[place] = copy.deepcopy(generator.choice(VALUES))


def job_over(path: Path, out: Path, **tables) -> Job:
    tables = {"model": {"path": str(MODEL)}, "output": {"path": str(out)}, **tables}
    return prepare(load(None, {**tables, "input": {"path": [str(path)]}}))


def outcomes(job: Job) -> Counter[str]:
    """Of all rows of a job: answered or why not. What would be written of each is tried."""
    found: Counter[str] = Counter()
    for row, work in work_of(job.task, job.reader(), job.plan.shards):
        if isinstance(work, Reject):
            json.dumps(shard.reject_line(row, job.task.id_of(row), work)).encode()
        found[work.reason if isinstance(work, Reject) else "answered"] += 1
    return found


def rows_survive(tmp_path: Path, number: int, seed: int) -> Counter[str]:
    generator = random.Random(seed)
    path = tmp_path / "in.jsonl"
    lines = [mutated(generator) for _ in range(number)]
    path.write_bytes(b'{"text": "Monday"}\n' + b"".join(line + b"\n" for line in lines))
    job = job_over(path, tmp_path / "out", output={"path": str(tmp_path / "out"), "columns": ["more:json"]})
    job.task.checker.check(Sampling(structured_outputs=StructuredOutputs(choice=["a"])))  # starts what compiles them
    before = resident_now()
    reader = job.reader()
    found: Counter[str] = Counter()
    for planned in job.plan.shards:
        for row in reader.read(planned):
            with in_time(row.raw):
                [(_, work)] = job.task.prepare([row])
            if isinstance(work, Reject):
                json.dumps(shard.reject_line(row, job.task.id_of(row), work)).encode("utf-8", "surrogatepass")
            found[work.reason if isinstance(work, Reject) else "answered"] += 1
    assert found.total() == number + 1
    assert resident_mb(peak=True) - before < MOST_MB
    return found


def test_mutated_rows_are_answered_or_rejected(tmp_path):
    found = rows_survive(tmp_path, 500, seed=1)
    assert {"answered", "bad_shape", "invalid_json", "bad_sampling"} <= found.keys()


# --- Parquet


def tables() -> list[pa.Table]:
    texts = [f"text {number % 7}" for number in range(40)]
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": None}] for text in texts]
    maps = pa.array([[("a", text)] for text in texts], pa.map_(pa.string(), pa.string()))
    return [
        pa.table({"text": texts, "id": range(40), "more": [1.5, None] * 20}),
        pa.table({"messages": turns, "more": maps}),
        pa.table({"text": pa.array(texts).dictionary_encode(), "more": pa.array([b"x"] * 40)}),
    ]


WAYS = [
    {},
    {"compression": "none"},
    {"compression": "zstd", "use_dictionary": False},
    {"compression": "none", "data_page_version": "2.0", "row_group_size": 9},
    {"compression": "none", "use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
    {"compression": "none", "store_schema": False},
]


def originals(folder: Path) -> list[bytes]:
    found = []
    for table in tables():
        for way in WAYS:
            try:
                pq.write_table(table, folder / "original.parquet", **way)
            except (pa.ArrowException, OSError):  # an encoding that is not for these types
                continue
            found.append((folder / "original.parquet").read_bytes())
    return found


def mutated_file(whole: bytes, generator: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(generator.choice([1, 1, 2, 5, 20])):
        place = generator.randrange(4, len(data) - 8)
        data[place] = generator.choice([data[place] ^ 1 << generator.randrange(8), 0, 0x7F, 0xFF])
    if generator.random() < 0.1:
        begin = generator.randrange(4, len(data) - 8)
        del data[begin : begin + generator.randrange(1, 9)]
    return bytes(data)


def files_survive(tmp_path: Path, number: int, seed: int) -> Counter[str]:
    generator = random.Random(seed)
    whole = originals(tmp_path)
    path = tmp_path / "in.parquet"
    found: Counter[str] = Counter()
    before = resident_now()
    for _ in range(number):
        path.write_bytes(mutated_file(generator.choice(whole), generator))
        flags = {"columns": ["more"]} if generator.random() < 0.5 else {}
        with in_time(path):
            try:
                job = job_over(path, tmp_path / "out", output={"path": str(tmp_path / "out"), **flags})
                found["read"] += 1
                found += outcomes(job)
            except (JobError, Stopped) as error:
                assert "\n" not in str(error)
                found["refused"] += 1
        assert resident_mb(peak=True) - before < MOST_MB
    return found


def test_mutated_parquet_files_are_read_or_refused(tmp_path):
    found = files_survive(tmp_path, 150, seed=1)
    assert {"answered", "refused", "read"} <= found.keys()


@pytest.mark.slow
def test_50000_rows_and_10000_parquet_files(tmp_path):
    print(rows_survive(tmp_path, 50_000, seed=2))
    print(files_survive(tmp_path, 10_000, seed=2))
