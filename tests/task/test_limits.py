"""One row costs one row: whatever is in it, it is answered or rejected in little time and memory; all others go on."""

import csv
import gzip
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records
from processes import instant

from batchgen.engine.instant import InstantEngine
from batchgen.errors import Reject
from batchgen.host import arrow_sizes
from batchgen.input import file_formats
from batchgen.input.file_formats import Cut, lines
from batchgen.input.transcripts import kind_of_transcript, split
from batchgen.job.spec import load
from batchgen.output import opening, shard
from batchgen.output.claims import Claims
from batchgen.runner.prepare import Job, prepare
from batchgen.runner.run import close, missing_shards
from batchgen.runner.worker import Worker
from batchgen.task.flow import work_of
from batchgen.task.generate import Generate

GOOD = {"text": "Monday"}
# Seconds and megabytes that a command may take beyond those for a good row: a fault takes minutes and gigabytes.
SECONDS, MEGABYTES = 20, 700


@pytest.fixture
def job_of(tmp_path):
    """A job over files, with tables as in the job file."""

    def make(*paths, **tables) -> Job:
        tables["input"] = {"path": [str(path) for path in paths], **tables.get("input", {})}
        tables["output"] = {"path": str(tmp_path / "out"), **tables.get("output", {})}
        return prepare(load(None, {"model": {"path": str(MODEL)}, **tables}))

    return make


@pytest.fixture
def done(job_of):
    """The folder of a job that an engine which answers at once has brought to its end."""

    def run(*paths, **tables) -> Path:
        job = job_of(*paths, **tables)
        opening.open_job(job.out, job.record)
        engine = InstantEngine(job.model, {}, job.context)
        Worker(job, engine, Claims(job.out, stale=60)).run(missing_shards(job))
        close(job)
        return Path(job.out.location)

    return run


def made(job: Job) -> list[str]:
    """Of each row, why it is rejected, or that it is not."""
    works = work_of(job.task, job.reader(), job.plan.shards)
    return [work.reason if isinstance(work, Reject) else "answered" for _, work in works]


def rejected(job: Job) -> str:
    """Why the first row is rejected; the second is good."""
    [(_, why), (_, good)] = work_of(job.task, job.reader(), job.plan.shards[:1])
    assert isinstance(why, Reject) and not isinstance(good, Reject)
    return str(why)


# --- sizes


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


PROPERTIES = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1100)}}
TOO_MUCH = {
    "a nested schema": ({"structured_outputs": {"json": nested(240)}}, "[limits] schema_depth allows 64"),
    "a nested schema as text": (
        {"structured_outputs": {"json": json.dumps(nested(100))}},
        "[limits] schema_depth allows 64",
    ),
    "a large schema": ({"structured_outputs": {"json": {"const": "x" * 70_000}}}, "[limits] schema_bytes allows"),
    "a large regex": ({"structured_outputs": {"regex": "(a|b)" * 20_000}}, "[limits] schema_bytes allows 65,536"),
    "properties": ({"structured_outputs": {"json": PROPERTIES}}, "[limits] schema_properties allows 1,000"),
    "values of enum": (
        {"structured_outputs": {"json": {"enum": list(range(10_001))}}},
        "values of enum in the schema: 10,001, and [limits] choices allows 10,000",
    ),
    "choices": ({"structured_outputs": {"choice": ["a"] * 100_000}}, "choices: 100,000, and [limits] choices allows"),
    "stop texts": ({"stop": [f"s{n}" for n in range(129)]}, "stop texts: 129, and [limits] stop allows 128"),
    "a long stop text": ({"stop": ["s" * 5000]}, "bytes of a stop text: 5,000, and [limits] text_bytes allows 4,096"),
    "a long bad word": ({"bad_words": ["s" * 5000]}, "bytes of a bad word: 5,000"),
    "2,000 samples": ({"n": 2000}, "n 2000: expected int <= 1024"),
}


@pytest.mark.parametrize(("sampling", "says"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_a_row_that_asks_for_too_much_is_rejected_before_anything_looks_closer(job_of, write_rows, sampling, says):
    began = time.process_time()
    assert says in rejected(job_of(write_rows([{**GOOD, "sampling": sampling}, GOOD])))
    assert time.process_time() - began < 1


LOWER = {
    "n": ({"n": 4}, {"n": 3}),
    "max_tokens": ({"max_tokens": 40}, {"max_tokens": 39}),
    "stop": ({"stop": ["a", "b"]}, {"stop": 1}),
}


@pytest.mark.parametrize(("sampling", "limits"), LOWER.values(), ids=LOWER.keys())
def test_a_job_may_allow_rows_less(job_of, write_rows, sampling, limits):
    source = write_rows([{**GOOD, "sampling": sampling}, GOOD])
    assert made(job_of(source)) == ["answered", "answered"]
    assert made(job_of(source, limits=limits)) == ["bad_sampling", "answered"]


def test_what_the_job_says_itself_has_no_limit(job_of, write_rows):
    source = write_rows([{**GOOD, "sampling": {"temperature": 0.5}}])
    limits = {"stop": 0, "n": 1, "max_tokens": 1}
    assert made(job_of(source, limits=limits, sampling={"stop": ["a"], "n": 2, "max_tokens": 5})) == ["bad_sampling"]
    assert made(job_of(source, limits={**limits, "n": 2}, sampling={"stop": ["a"], "n": 2, "max_tokens": 5})) == [
        "answered"
    ]


def test_rows_may_be_refused_parameters_of_their_own(job_of, write_rows):
    rows = [{**GOOD, "sampling": {"n": 2}}, {**GOOD, "seed": 3}, {"body": {"prompt": "x", "max_tokens": 5}}, GOOD]
    job = job_of(write_rows(rows), input={"row_sampling": "off"})
    assert made(job) == ["bad_sampling"] * 3 + ["answered"]


def test_a_prompt_without_tokens_is_rejected(job_of, write_rows):
    job = job_of(write_rows([{"text": "\u0001"}, GOOD]), prompt={"format": "raw"})
    assert rejected(job) == "empty: the prompt has no tokens"


def test_a_conversation_of_too_many_turns_is_rejected(job_of, write_rows):
    talk = [{"role": "user", "content": "a"}] * 11
    assert "11 utterances, and [limits] turns allows 10" in rejected(
        job_of(write_rows([{"messages": talk}, GOOD]), limits={"turns": 10})
    )


def test_limits_are_results_unless_they_are_the_defaults(job_of, write_rows):
    source = write_rows([GOOD])
    plain = job_of(source).record.fingerprint
    assert job_of(source, limits={"turns": 10_000}).record.fingerprint == plain
    assert job_of(source, limits={"turns": 10}).record.fingerprint != plain
    assert job_of(source, limits={"check_seconds": 60.0}).record.fingerprint == plain


# --- bytes of a row

LARGE = "x" * 3000
FILES = {
    "in.jsonl": lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows),
    "in.json": lambda rows: json.dumps(rows).encode(),
    "spread.json": lambda rows: b"\n".join(json.dumps(row, indent=1).encode() for row in rows),
    "in.csv": lambda rows: b"text\n" + b"".join(row["text"].encode() + b"\n" for row in rows),
}


@pytest.mark.parametrize("name", FILES)
def test_a_row_of_too_many_bytes_is_rejected_and_shown_by_its_head(job_of, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name]([GOOD, {"text": LARGE}, GOOD]))
    job = job_of(tmp_path / name, limits={"row_bytes": 2000})
    assert made(job) == ["answered", "too_large", "answered"]


def test_a_table_too(job_of, tmp_path):
    pq.write_table(pa.table({"text": ["Monday", LARGE, "Friday"]}), tmp_path / "in.parquet")
    assert made(job_of(tmp_path / "in.parquet", limits={"row_bytes": 2000})) == ["answered", "too_large", "answered"]


def test_numbers_of_a_table_count_by_their_bytes_unless_they_are_looked_at(job_of, tmp_path):
    lists = pa.array([[1], [7] * 1000, [2]], pa.list_(pa.int8()))
    pq.write_table(pa.table({"text": ["a", "b", "c"], "more": lists, "turns": lists}), tmp_path / "in.parquet")
    limits = {"row_bytes": 2500, "row_values": 1100}
    assert made(job_of(tmp_path / "in.parquet", output={"columns": ["more"]}, limits=limits)) == ["answered"] * 3
    assert made(job_of(tmp_path / "in.parquet", limits={**limits, "row_values": 900}))[1] == "too_large"


def test_a_row_of_too_many_values_is_rejected_before_they_are_made(job_of, write_rows):
    many = b'{"text": "x", "more": [' + b"[]," * 100_000 + b"1]}"
    assert made(job_of(write_rows([many, GOOD]), limits={"row_values": 100_000})) == ["too_large", "answered"]


def test_rows_in_many_pieces_are_those_in_one(tmp_path):
    """However the pieces fall, lines keep their places."""
    generator = random.Random(1)
    text = b"".join(b"x" * generator.choice([0, 1, 5, 50]) + b"\n" for _ in range(300)) + b"last"
    for size in (1, 7, 64, 10_000):
        pieces = (text[begin : begin + size] for begin in range(0, len(text), size))
        found = [b"x" * line.size if isinstance(line, Cut) else line for line in lines(pieces, most=20)]
        assert [len(line) for line in found] == [len(line) for line in text.split(b"\n")]


# --- time and memory of what is read

_MEASURED = """
import resource, sys
from batchgen.cli import cli
try:
    cli()
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("took", usage.ru_utime + usage.ru_stime, int(peak) // 1024, file=sys.stderr)
"""


@pytest.fixture
def plan(tmp_path):
    """`batchgen plan`: the line on rejects; fails if it takes too long or too much."""

    def run(path: Path, *flags: object) -> str:
        command = [
            sys.executable,
            "-c",
            _MEASURED,
            "plan",
            path,
            "--model",
            MODEL,
            "--output",
            tmp_path / "out",
            *flags,
        ]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        seconds, megabytes = map(float, done.stderr.split()[-2:])
        assert seconds < SECONDS, done.stdout
        assert megabytes < MEGABYTES, done.stdout
        return next(line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("rejects"))

    return run


def test_a_line_of_200_mb_out_of_a_small_gz_is_rejected_unread(plan, tmp_path):
    with gzip.open(tmp_path / "in.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"text": "')
        for _ in range(200):
            file.write(b"ab cd " * 170_000)
        file.write(b'"}\n{"text": "Monday"}\n')
    assert plan(tmp_path / "in.jsonl.gz") == "1 (too_large 1)"


LONG = 1_000_000
SLOW_TEXTS = {
    "blanks behind an answer": "[INST] a [/INST] b" + " " * LONG + "x",
    "blanks ahead of a question": "[INST] a [/INST] b </s>" + " " * LONG + "x",
    "many turns without an end": "[INST]a[/INST]b" * (LONG // 10),
    "empty lines": "Human: a" + "\n" * LONG + "x",
    "many names": "Human: a\n" * (LONG // 10),
}


@pytest.mark.parametrize("text", SLOW_TEXTS.values(), ids=SLOW_TEXTS.keys())
def test_a_text_that_looks_like_a_transcript_takes_time_linear_in_its_length(job_of, write_rows, text):
    job = job_of(write_rows([{"text": text}, GOOD]))
    began = time.process_time()
    assert made(job)[1] == "answered"
    assert time.process_time() - began < 5


def test_a_transcript_of_llamas_is_read_as_before():
    text = "<s>[INST] <<SYS>> be brief <</SYS>> a [/INST] b </s><s> [INST] c [/INST] d [INST]e[/INST]"
    assert [turn.text for turn in split(text, "llama2", "text")] == ["be brief", "a", "b", "c", "d", "e"]
    assert kind_of_transcript("[INST] a") is None


MANY_NAMES = {
    "parameters": {**GOOD, "sampling": {f"temperatur{n}": 1 for n in range(100_000)}},
    "columns": {f"k{n}": 1 for n in range(300_000)},
    "a role": {"messages": [{"role": "u " * LONG, "content": "x"}]},
}


@pytest.mark.parametrize("row", MANY_NAMES.values(), ids=MANY_NAMES.keys())
def test_names_by_the_hundred_thousand_are_not_held_or_compared(job_of, write_rows, row):
    job = job_of(write_rows([row, GOOD]))
    began = time.process_time()
    assert len(rejected(job)) < 2100
    assert time.process_time() - began < 5


def test_a_quote_that_is_never_closed_ends_with_its_row(monkeypatch, job_of, tmp_path):
    monkeypatch.setattr(file_formats, "ROW_BYTES", 1000)
    before = csv.field_size_limit(1000)
    (tmp_path / "in.csv").write_bytes(b"text\nMonday\n" + b'"' + b"never closed " * 99 + b"\nFriday\n")
    try:
        assert made(job_of(tmp_path / "in.csv")) == ["answered", "too_large", "answered"]
    finally:
        csv.field_size_limit(before)


# --- Parquet: what a file holds once is held once

BIG = "ab " * 700_000


def tables() -> dict[str, tuple[pa.Table, dict]]:
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 250, pa.int32()), pa.array([BIG]))
    talk = [{"role": "user", "content": BIG}]
    return {
        "a dictionary": (pa.table({"text": once}), {}),
        "a text": (pa.table({"text": [BIG] * 200}), {}),
        "turns": (pa.table({"messages": pa.array([talk] * 200)}), {}),
        "texts by what they share": (
            pa.table({"text": [f"{BIG}{n}" for n in range(200)]}),
            {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        ),
    }


@pytest.mark.parametrize("name", ["a dictionary", "a text", "turns", "texts by what they share"])
def test_a_small_file_with_a_text_in_every_row_stays_small(plan, tmp_path, name):
    table, how = tables()[name]
    path = tmp_path / "in.parquet"
    pq.write_table(table, path, compression="zstd", **how)
    assert path.stat().st_size < 1 << 20
    assert plan(path) == f"{len(table):,} (too_long {len(table):,})"


def test_what_is_passed_through_too(done, tmp_path):
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), pa.array([BIG]))
    pq.write_table(pa.table({"text": ["a"] * 60, "big": once}), tmp_path / "in.parquet", compression="zstd")
    out = done(tmp_path / "in.parquet", output={"columns": ["big"]}, sampling={"max_tokens": 1})
    [part] = out.glob("part-*")
    assert part.stat().st_size < 1 << 20
    assert pq.read_table(part)["big"].combine_chunks().dictionary.to_pylist() == [BIG]


def test_answers_in_several_parts_are_one_shard(monkeypatch, done, tmp_path):
    monkeypatch.setattr(shard, "PART_BYTES", 20)
    texts = [f"text {n}" for n in range(12)]
    pq.write_table(pa.table({"text": ["a"] * 12, "more": texts}), tmp_path / "in.parquet")
    out = done(tmp_path / "in.parquet", output={"columns": ["more"]}, sampling={"max_tokens": 1})
    assert pq.read_table(out / "part-00000-of-00001.parquet")["more"].to_pylist() == texts


ARRAYS = {
    "texts": (pa.array(["ab", None, "cde", ""]), [2, 0, 3, 0]),
    "a dictionary": (pa.array(["ab", None, "cde", "ab"]).dictionary_encode(), [2, 0, 3, 2]),
    "lists": (pa.array([["a", "bb"], None, [], ["ccc"]]), [3 + 128, 0, 0, 3 + 64]),
    "objects": (pa.array([{"a": "x", "b": "yy"}, {"a": "", "b": "z"}]), [3 + 128, 1 + 128]),
    "maps": (pa.array([[("k", "vv")], []], pa.map_(pa.string(), pa.string())), [3 + 128, 0]),
}


@pytest.mark.parametrize(("array", "expected"), ARRAYS.values(), ids=ARRAYS.keys())
def test_the_bytes_of_a_row_are_its_own(array, expected):
    assert arrow_sizes.of_values(array).tolist() == expected
    assert arrow_sizes.of_values(array.slice(1)).tolist() == expected[1:]


# --- skip


def test_a_skipped_row_is_a_reject_that_verify_knows(done, batchgen, write_rows):
    source = write_rows(demo_records(6))
    out = done(source, input={"skip": [1, 4]}, output={"shard_rows": 3}, sampling={"max_tokens": 2})
    assert json.loads((out / "_SUCCESS").read_bytes())["rejects"] == {"skipped": 2}
    metadata = pq.read_metadata(out / "part-00001-of-00002.parquet").metadata
    assert metadata[b"batchgen.skipped"] == b"[4]"
    assert batchgen("verify", out).exit_code == 0


def test_a_row_is_taken_out_of_a_job_that_has_begun(start, batchgen, write_rows, tmp_path):
    source, out = write_rows(demo_records(6)), tmp_path / "out"
    env = instant(tmp_path / "instant")
    flags = ("--shard-rows", 3)
    assert start(source, out, *flags, env=env).wait() == 0
    kept = (out / "part-00000-of-00002.parquet").read_bytes()
    (out / "part-00001-of-00002.parquet").unlink()
    run = start(source, out, *flags, "--skip", 1, "--skip", 4, env=env)
    assert run.wait() == 0, run.stderr
    assert "row 1 is in a finished shard, which stays as it is" in run.stderr
    assert "5 responses, 1 rejects (skipped 1)" in run.stdout
    assert (out / "part-00000-of-00002.parquet").read_bytes() == kept
    assert batchgen("verify", out).exit_code == 0


# --- workers that end


_POISONED = """
    import os
    from batchgen.input.conversation import Row
    record = Row.record
    def poisoned(self):
        if not self.fault and isinstance(self.raw, bytes) and b"POISON" in self.raw:
            {code}
        return record(self)
    Row.record = poisoned
"""


def ending(folder: Path, code: str) -> dict[str, str]:
    """An environment with an engine that answers at once, in which rows with POISON in them run `code`."""
    environment = instant(folder)
    with (folder / "sitecustomize.py").open("a") as file:
        file.write(_POISONED.format(code=code))
    return environment


HANGS = pytest.param("import time; time.sleep(600)", marks=pytest.mark.slow, id="hangs")


@pytest.mark.parametrize("code", [pytest.param("os.kill(os.getpid(), 9)", id="kills"), HANGS])
def test_a_row_that_ends_workers_while_it_is_made_ready_is_rejected_after_three(start, write_rows, tmp_path, code):
    rows = [GOOD, {"text": "POISON"}, GOOD]
    run = start(write_rows(rows), tmp_path / "out", "--stall", 1.5, env=ending(tmp_path / "ending", code))
    assert run.wait() == 0, run.stderr
    assert "2 responses, 1 rejects (engine_error 1)" in run.stdout
    assert run.stderr.count("the worker that was preparing row 1 died") == 3
    assert "--skip 1 rejects it" in run.stderr
    assert "the engine died" not in run.stderr


def test_a_row_for_which_memory_does_not_suffice_is_rejected(start, write_rows, tmp_path):
    rows = [GOOD, {"text": "POISON"}, GOOD]
    run = start(write_rows(rows), tmp_path / "out", env=ending(tmp_path / "ending", "raise MemoryError"))
    assert run.wait() == 0, run.stderr
    assert "2 responses, 1 rejects (too_costly 1)" in run.stdout


def test_a_row_whose_answer_no_shard_can_hold_is_rejected(monkeypatch, done, write_rows):
    output = Generate.output

    def too_large(self, work, answers):
        return [row | ({"truncated": 1 << 40} if work.row == 1 else {}) for row in output(self, work, answers)]

    monkeypatch.setattr(Generate, "output", too_large)
    out = done(write_rows([GOOD] * 3), sampling={"max_tokens": 2})
    assert json.loads((out / "_SUCCESS").read_bytes())["rejects"] == {"engine_error": 1}
