"""`_segments/`: written with their shard, read back as they were, and nothing that other programs stumble over."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import duckdb
import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from translated import segment, translated

from batchgen.errors import JobError
from batchgen.input.plan import Shard
from batchgen.job.drift import fingerprint
from batchgen.job.sampling import Sampling
from batchgen.output import layout, opening, record, segments, shard
from batchgen.output.counts import Counts
from batchgen.output.store import at
from batchgen.task.segment_rows import SCHEMA

FIRST, SECOND = Shard(0, 2, 0, 1, 0, 0), Shard(1, 2, 1, 1, 0, 0)
SEGMENTS = [
    segment("Good morning.", "おはよう。", uses=3, mean_logprob=-0.25),
    segment("12 apples", "りんご\n", ["numbers", "length"], tries=4, sampling=Sampling(temperature=0.7, max_tokens=9)),
    segment("Never mind.", None, ["empty"], finish_reason="length", seed=2**53 - 1),
    segment(
        "JSON",
        "{}",
        sampling=Sampling(logit_bias={5: 1.5}, stop=["。"]),
    ),
]


@pytest.fixture
def out(tmp_path) -> Path:
    translated(tmp_path / "out", [SEGMENTS, []])
    return tmp_path / "out"


def path_of(out: Path) -> Path:
    return out / layout.segments(FIRST)


def commit(out: Path, planned: Shard, found) -> None:
    shard.commit(at(out), planned, [], [], pa.schema([("row", pa.int64())]), Counts(), {}, found)


def rewritten(out: Path, table: pa.Table, **options) -> None:
    pq.write_table(table, path_of(out), **options)


def read(out: Path) -> list:
    return [each for group in segments.read(at(out), FIRST) for each in group]


# --- written


def test_segments_come_back_as_they_were(out):
    assert read(out) == SEGMENTS


def test_a_shard_without_segments_has_no_file_of_them(out):
    assert not (out / layout.segments(SECOND)).exists()
    assert list(segments.read(at(out), SECOND)) == []


def test_the_same_segments_are_the_same_bytes_whoever_made_them(out):
    again = msgspec.json.decode(msgspec.json.encode(SEGMENTS), type=list[type(SEGMENTS[0])])
    assert segments.as_parquet(again, {"a": "b"}) == segments.as_parquet(SEGMENTS, {"a": "b"})


def test_metadata_says_what_that_of_the_shard_says(out):
    [own, of_shard] = (shard.facts(pq.read_metadata(path)) for path in (path_of(out), out / layout.part(FIRST)))
    assert own == of_shard
    assert json.loads(own["counts"])["rows"] == 1


def test_a_row_group_ends_after_so_many_rows_or_so_much_text(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "GROUP_ROWS", 3)
    monkeypatch.setattr(segments, "GROUP_BYTES", 100)
    texts = ["a", "b", "c", "d", "e" * 99, "f" * 500, "g"]
    content = segments.as_parquet([segment(text, "") for text in texts], {})
    footer = pq.read_metadata(pa.BufferReader(content))
    assert [footer.row_group(number).num_rows for number in range(footer.num_row_groups)] == [3, 2, 1, 1]


def test_segments_that_an_earlier_spec_left_are_replaced_or_removed(out):
    commit(out, FIRST, SEGMENTS[:1])
    assert read(out) == SEGMENTS[:1]
    commit(out, FIRST, [])
    assert not path_of(out).exists()


def test_checksums_of_a_shard_without_segments_are_as_they_always_were(out):
    of_first, of_second = (json.loads(at(out).read(layout.checksums(planned))) for planned in (FIRST, SECOND))
    assert of_first.keys() - of_second.keys() == {"segments"}


def test_an_answer_that_cannot_be_written_leaves_nothing_of_the_shard(tmp_path):
    at(tmp_path).prepare(shared=False)
    with pytest.raises(shard.DOES_NOT_FIT):
        commit(tmp_path, FIRST, [segment("a", "\ud800")])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_another_job_in_the_folder_begins_without_them(out):
    old = record.read_job(at(out))
    results = {**old.results, "sampling": {"seed": 1}}
    new = msgspec.structs.replace(old, results=results, fingerprint=fingerprint(results), after=old.fingerprint)
    assert opening.open_job(at(out), new, discard=True)
    assert not path_of(out).exists()


# --- noticed


def test_segments_that_are_gone_are_damage(out):
    assert shard.Survey(at(out), [FIRST]).damage(FIRST) == ""
    path_of(out).unlink()
    assert shard.Survey(at(out), [FIRST]).damage(FIRST) == "its segments are gone"


def test_segments_that_changed_are_wrong_content(out):
    made_by = shard.read_checksums(at(out), FIRST).fingerprint
    assert shard.wrong_content(at(out), FIRST, made_by, pa.schema([])) == ""
    path_of(out).write_bytes(path_of(out).read_bytes()[:-1] + b"x")
    assert shard.wrong_content(at(out), FIRST, made_by, pa.schema([])) == "its segments do not fit their checksum"


def test_the_digest_of_all_is_what_sha256sum_says(out):
    command = "sha256sum part-*.parquet _segments/*.parquet | sha256sum"
    said = subprocess.run(command, shell=True, cwd=out, capture_output=True, text=True).stdout.split()[0]
    assert shard.digest_of_all(at(out), [FIRST, SECOND]) == said


# --- other programs


def test_pyarrow_opens_the_folder_without_them_and_them_alone(out):
    assert ds.dataset(out).to_table()["row"].to_pylist() == [0, 1]
    assert ds.dataset(out / "_segments").to_table().schema.names == SCHEMA.names


def test_pandas_opens_the_folder_without_them_and_them_alone(out):
    assert list(pd.read_parquet(out)["row"]) == [0, 1]
    assert list(pd.read_parquet(out / "_segments")["tries"]) == [1, 4, 1, 1]


def test_duckdb_opens_the_folder_without_them_and_them_alone(out):
    assert duckdb.sql(f"select row from '{out}/*.parquet' order by row").fetchall() == [(0,), (1,)]
    query = f"select source, sampling.max_tokens from '{out}/_segments/*.parquet' where len(failed_checks) > 1"
    assert duckdb.sql(query).fetchall() == [("12 apples", 9)]


def test_hugging_face_datasets_opens_the_folder_without_them_and_them_alone(out, tmp_path):
    cache = str(tmp_path / "cache")
    assert datasets.load_dataset(str(out), split="train", cache_dir=cache)["row"][:] == [0, 1]
    found = datasets.load_dataset("parquet", data_files=f"{out}/_segments/*.parquet", split="train", cache_dir=cache)
    assert found["answer"][:] == [each.answer for each in SEGMENTS]


# --- what somebody else may have put there


def table_of(out: Path) -> pa.Table:
    return pq.read_table(path_of(out))


def with_column(out: Path, name: str, values: list) -> pa.Table:
    table = table_of(out)
    field = table.schema.field(name).with_nullable(True)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


OTHERS = {
    "no Parquet": lambda out: path_of(out).write_bytes(b"PAR1 and more"),
    "a cut file": lambda out: path_of(out).write_bytes(path_of(out).read_bytes()[:-9]),
    "a column too few": lambda out: rewritten(out, table_of(out).drop_columns(["answer"])),
    "a column twice": lambda out: rewritten(out, table_of(out).append_column("key", [["x"] * 4])),
    "another type": lambda out: rewritten(out, table_of(out).cast(another_type(table_of(out).schema))),
    "a null key": lambda out: rewritten(out, with_column(out, "key", [None] * 4)),
    "a huge row": lambda out: rewritten(out, with_column(out, "row", [-(2**63)] * 4)),
    "a huge seed": lambda out: rewritten(out, with_column(out, "seed", [2**63 - 1] * 4)),
    "no uses": lambda out: rewritten(out, with_column(out, "uses", [0] * 4)),
    "no answer and no failed check": lambda out: rewritten(out, with_column(out, "answer", [None] * 4)),
    "text that is not UTF-8": lambda out: rewritten(
        out, table_of(out).set_column(3, SCHEMA.field("source"), [pa.array([b"\xff"] * 4).view(pa.string())])
    ),
    "parameters that cannot be": lambda out: rewritten(out, with_column(out, "sampling", [{"temperature": -1.0}] * 4)),
    "a row group without end": lambda out: rewritten(out, pa.concat_tables([table_of(out)] * 20_000)),
}


def another_type(schema: pa.Schema) -> pa.Schema:
    return schema.set(schema.get_field_index("seed"), pa.field("seed", pa.float64()))


@pytest.mark.parametrize("how", OTHERS)
def test_a_file_of_anything_else_is_one_line(out, how):
    OTHERS[how](out)
    with pytest.raises(JobError) as told:
        read(out)
    [line] = told.value.lines
    assert line.startswith(f"{path_of(out)}: damaged, or not batchgen's (")
    assert "\n" not in line


@pytest.mark.parametrize("where", ["_segments", "_segments/part-00000-of-00002.parquet"])
def test_a_link_is_not_followed(out, tmp_path, where):
    (out / where).rename(tmp_path / "beside")
    (out / where).symlink_to(tmp_path / "beside")
    with pytest.raises(JobError, match="is a link"):
        read(out)


def test_a_text_that_all_rows_share_is_kept_once(out):
    """2 GB of text, if it were not."""
    places = pa.array([0] * 2000, pa.int32())
    table, long = table_of(out).combine_chunks(), "x" * (1 << 20)
    columns = {name: table[name].take(places) for name in SCHEMA.names}
    columns["source"] = pa.DictionaryArray.from_arrays(places, [long])
    rewritten(out, pa.table(columns), store_schema=False)
    before = pa.default_memory_pool().max_memory()
    assert [each.source is not None for each in read(out)] == [True] * 2000
    assert pa.default_memory_pool().max_memory() < before + (100 << 20)


FLIPS = """
import random, sys
from pathlib import Path
from batchgen.errors import JobError
from batchgen.input.plan import Shard
from batchgen.output import segments
from batchgen.output.store import at
path, whole, chance = Path(sys.argv[2]), Path(sys.argv[2]).read_bytes(), random.Random(0)
for _ in range(400):
    flipped = bytearray(whole)
    for _ in range(chance.choice([1, 1, 3])):
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    path.write_bytes(flipped)
    try:
        list(segments.read(at(sys.argv[1]), Shard(0, 2, 0, 1, 0, 0)))
        file = segments.SegmentFile(at(sys.argv[1]), sys.argv[3])
        list(file.keys())
    except JobError:
        pass
"""


def test_flipped_bits_are_an_error_or_nothing_and_never_the_end_of_the_process(out):
    command = [sys.executable, "-c", FLIPS, out, path_of(out), layout.segments(FIRST)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
