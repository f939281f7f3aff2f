"""`batchgen verify`: exit 0 only if every input row is answered or rejected exactly once."""

import random

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import demo_records
from drawn import say

from batchgen.input.plan import Shard
from batchgen.output import layout, shard
from batchgen.output import record as records_of
from batchgen.output.sealed import sealed
from batchgen.output.store import at

ROWS = [*demo_records(20), {"text": ""}, *demo_records(4), "no"]


@pytest.fixture
def source(write_rows):
    return write_rows(ROWS)


@pytest.fixture
def out(generate, source):
    """Three shards, two of them with a reject."""
    return generate([source], sampling={"max_tokens": 12, "n": 2}, output={"shard_rows": 10})


def refused(batchgen, out, *flags) -> str:
    """The first problem that `verify` finds."""
    result = batchgen("verify", out, *flags)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"batchgen: {out}: verification failed"
    return result.stderr.splitlines()[0]


def rewrite(out, index, change) -> None:
    """Replaces a shard by a changed one, with checksums that fit it."""
    path = out / f"part-{index:05}-of-00003.parquet"
    about, table = pq.read_metadata(path).metadata, change(pq.read_table(path))
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({key: about[key] for key in about if key.startswith(b"batchgen.")})
    planned = Shard(index, 3, 0, 0, 0, 0)
    sums = shard.read_checksums(at(out), planned)
    sums.parquet, sums.size = shard._digest(path.read_bytes()), path.stat().st_size
    (out / layout.checksums(planned)).write_bytes(sealed(sums))


def test_a_whole_job_is_verified(batchgen, out):
    result = batchgen("verify", out)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "verified: 26 rows, 48 responses, 2 rejects")


def test_it_works_from_any_folder(batchgen, out, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert batchgen("verify", out).exit_code == 0


def test_no_output_folder(batchgen, tmp_path):
    result = batchgen("verify", tmp_path / "none")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "no batchgen output folder" in result.stderr


def test_a_missing_shard(batchgen, out):
    (out / "part-00001-of-00003.parquet").unlink()
    assert "part-00001-of-00003.parquet: missing; run the job again" in refused(batchgen, out)


def test_a_success_that_alone_is_missing_is_written_if_asked_for(batchgen, out):
    before = (out / "_SUCCESS").read_bytes()
    (out / "_SUCCESS").unlink()
    done = batchgen("verify", out, "--close")
    assert (done.exit_code, done.stdout.splitlines()[1]) == (0, f"_SUCCESS was missing; wrote {out}/_SUCCESS")
    assert (out / "_SUCCESS").read_bytes() == before


def test_no_success_is_written_while_a_shard_is_missing(batchgen, out):
    (out / "part-00001-of-00003.parquet").unlink()
    (out / "_SUCCESS").unlink()
    refused(batchgen, out, "--close")
    assert not (out / "_SUCCESS").exists()


def test_a_dropped_response(batchgen, out):
    rewrite(out, 0, lambda table: table.slice(1))
    assert "part-00000-of-00003.parquet: has (0, 1," in refused(batchgen, out)


def test_a_doubled_response(batchgen, out):
    rewrite(out, 0, lambda table: pa.concat_tables([table, table.slice(table.num_rows - 1)]))
    assert "responses and rejects, the input says" in refused(batchgen, out)


def test_a_response_doubled_in_the_place_of_another(batchgen, out):
    rewrite(out, 0, lambda table: pa.concat_tables([table.slice(0, 1), table.slice(0, table.num_rows - 1)]))
    assert "part-00000-of-00003.parquet: has (0, 0," in refused(batchgen, out)


def test_a_wrong_id(batchgen, out):
    def change(table):
        return table.set_column(0, "id", pa.array(["x"] * table.num_rows))

    rewrite(out, 1, change)
    assert "has (10, 0, 'x'" in refused(batchgen, out)


def test_a_lost_reject(batchgen, out):
    (out / "_rejects" / "part-00002-of-00003.jsonl").unlink()
    assert "its rejects are gone" in refused(batchgen, out)


def test_changed_input(batchgen, out, source):
    source.write_bytes(source.read_bytes().replace(b"demo-00003", b"demo-x0003"))
    assert "in.jsonl: the input is not what the job read" in refused(batchgen, out)


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_is_found_quarantined_and_made_again_the_same(batchgen, generate, out, source, seed):
    path = out / "part-00001-of-00003.parquet"
    whole = path.read_bytes()
    place = random.Random(seed).randrange(len(whole))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert "its content does not fit its checksum; moved to" in refused(batchgen, out, "--quarantine")
    assert not path.exists()
    assert len(list((out / "_state" / "quarantine").iterdir())) == 1
    generate([source], sampling={"max_tokens": 12, "n": 2}, output={"shard_rows": 10})
    assert path.read_bytes() == whole
    assert batchgen("verify", out).exit_code == 0


def test_replay_generates_items_again_and_counts_the_same(batchgen_here, out):
    result = batchgen_here("verify", out, "--replay", 15)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "replayed: 15 of 15 responses are the same"


def test_replay_shows_the_first_difference(batchgen_here, out):
    def change(table):
        column = table.schema.get_field_index("response")
        return table.set_column(column, "response", pa.array(["forged"] * table.num_rows))

    for index in range(3):
        rewrite(out, index, change)
    result = batchgen_here("verify", out, "--replay", 3)
    assert "replayed: 0 of 3 responses are the same" in result.stdout
    assert "'forged' then, " in result.stdout


def test_replay_compares_only_what_the_same_noise_has_drawn_and_says_what_it_left_out(batchgen_here, out):
    part = out / "part-00001-of-00003.parquet"
    say(part, runner="V2", noise="murmur3")
    result = batchgen_here("verify", out, "--replay", 48)
    assert result.exit_code == 0, result.stderr
    elsewhere = pq.read_metadata(part).num_rows
    assert result.stdout.splitlines()[-2:] == [
        f"replayed: {48 - elsewhere} of {48 - elsewhere} responses are the same",
        f"left out: {elsewhere} responses: they were sampled with murmur3 noise on vLLM's V2 runner, here it is "
        "SplitMix64 noise on vLLM's V1 runner, so their seeds mean other tokens",
    ]


def test_a_replay_that_could_compare_nothing_fails(batchgen, out):
    for part in out.glob("part-*"):
        say(part, runner="V2", noise="Philox")
    result = batchgen("verify", out, "--replay", 5)
    assert (result.exit_code, result.stderr) == (1, f"batchgen: {out}: nothing could be compared\n")
    assert "left out: 5 responses: they were sampled with Philox noise" in result.stdout


def test_json_of_a_folder_whose_white_space_was_vllms_is_left_out(batchgen_here, generate, write_rows):
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    records = demo_records(6)
    for record in records[:2]:
        record["sampling"] = {"structured_outputs": {"json": schema}}
    source = write_rows(records, "some of them JSON.jsonl")
    out = generate([source], sampling={"max_tokens": 12, "temperature": 0})
    assert "replayed: 6 of 6 " in batchgen_here("verify", out, "--replay", 6).stdout
    job = records_of.read_job(at(out))
    records_of.write(at(out), msgspec.structs.replace(job, format=3))
    result = batchgen_here("verify", out, "--replay", 6)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == [
        "replayed: 4 of 4 responses are the same",
        "left out: 2 responses: they are JSON with the white space that vLLM gave it then, today batchgen gives it "
        "none",
    ]


def test_greedy_responses_are_compared_whatever_noise_their_shard_has(batchgen_here, generate, source):
    out = generate([source], sampling={"max_tokens": 12, "temperature": 0}, output={"shard_rows": 10})
    for part in out.glob("part-*"):
        say(part, runner="V2", noise="Philox")
    result = batchgen_here("verify", out, "--replay", 10)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "replayed: 10 of 10 responses are the same")
