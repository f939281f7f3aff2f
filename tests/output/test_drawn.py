"""What drew a shard's tokens: what a shard says, what an older one lets be known, and what several drew together."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from drawn import say

from batchgen.job.sampler import NONE, ON_CPU, UNKNOWN, Sampler, joined, of_older
from batchgen.output import journal, layout, shard
from batchgen.output.journal import Journal
from batchgen.output.record import read_job
from batchgen.output.store import at
from batchgen.task.task import Entry

FOLDERS = Path(__file__).parent.parent / "folders"
V2 = Sampler("V2", "Philox")
ENTRY = Entry(7, 0, [5, 300, 3], "stop")


@pytest.mark.parametrize(
    "part", sorted(FOLDERS.glob("*/[fgi]*/part-*")), ids=lambda part: str(part.relative_to(FOLDERS))
)
def test_shards_of_every_released_version_were_drawn_on_a_cpu(part):
    found = shard.sampler(pq.read_metadata(part))
    assert found == ON_CPU
    assert found.is_recorded == (part.relative_to(FOLDERS).parts[0] not in ("0.1.0", "0.2.0"))


@pytest.mark.parametrize(
    ("dtype", "device", "vllm", "found"),
    [
        ("float32", "cpu", "0.31.0", ON_CPU),
        ("float32", "cpu", None, ON_CPU),
        ("float16", "NVIDIA H100 80GB HBM3", "0.26.0", V2),
        ("float16", "NVIDIA H100 80GB HBM3", "0.30.1", V2),
        ("float16", "NVIDIA L4", "0.31.0", Sampler("V2", "murmur3")),
        ("float16", "NVIDIA L4", None, UNKNOWN),
        ("none", "no model: answers at once", "0.31.0", NONE),
    ],
)
def test_what_drew_an_older_shard_follows_from_its_device_and_its_vllm(dtype, device, vllm, found):
    assert of_older(dtype, device, vllm) == found


def test_samplers_of_all_finished_shards_are_counted_whether_checksums_or_the_shard_itself_say_it(
    instantly, write_rows
):
    out = instantly([write_rows([{"text": "Monday"}] * 5)], output={"shard_rows": 1})
    parts = sorted(out.glob("part-*"))
    say(parts[0], runner="V2", noise="Philox")
    say(parts[1], runner=None, noise=None, dtype="float32", device="cpu")
    parts[2].write_bytes(b"")
    (out / layout.checksums(read_job(at(out)).plan.shards[3])).unlink()
    assert shard.engines(at(out), read_job(at(out)).plan.shards)[0] == {V2: 1, ON_CPU: 1, NONE: 2}


# --- a shard that several drew


def begun(out, worker: str, sampler: Sampler = UNKNOWN) -> Journal:
    ours = Journal(out, 0, worker, "f" * 32, sampler)
    ours.append(ENTRY)
    ours.flush()
    ours.close()
    return ours


def gone_on(out, sampler: Sampler) -> tuple[Journal, list[str]]:
    ours = Journal(out, 0, "second", "f" * 32, sampler)
    kept, warnings = ours.resume()
    assert kept == [ENTRY]
    return ours, warnings


def test_a_shard_that_is_all_in_an_earlier_journal_was_drawn_by_that_ones_engine(folder):
    begun(folder, "first", V2)
    ours, _ = gone_on(folder, ON_CPU)
    assert ours.sampler == V2


def test_a_shard_that_two_samplers_drew_says_so_and_so_does_whoever_goes_on_after_them(folder):
    begun(folder, "first", V2)
    ours, [warning] = gone_on(folder, ON_CPU)
    assert warning.endswith(f": shard 0 was begun with {V2}, and goes on with {ON_CPU}")
    ours.append(ENTRY)
    ours.flush()
    both = Sampler("V1 and V2", "Philox and SplitMix64")
    assert ours.sampler == both
    ours.close()
    assert journal.read(folder, layout.journal(0, "second"), "f" * 32).drew == both
    third = Journal(folder, 0, "third", "f" * 32, V2)
    third.resume()
    assert third.sampler == both


def test_a_journal_of_the_same_sampler_is_gone_on_with_without_a_word(folder):
    begun(folder, "first", ON_CPU)
    ours, warnings = gone_on(folder, ON_CPU)
    assert (ours.sampler, warnings) == (ON_CPU, [])


def test_a_journal_of_an_older_version_counts_as_drawn_by_the_engine_that_goes_on(folder):
    begun(folder, "first")
    assert journal.read(folder, layout.journal(0, "first"), "f" * 32).drew is None
    ours, warnings = gone_on(folder, ON_CPU)
    assert (ours.sampler, warnings) == (ON_CPU, [])


def test_what_was_drawn_together_is_the_same_in_whatever_order():
    murmur3 = Sampler("V2", "murmur3")
    assert joined([V2, murmur3]) == joined([murmur3, V2]) == joined([joined([V2, murmur3]), V2]) != V2
    assert joined([ON_CPU, ON_CPU]) == ON_CPU
