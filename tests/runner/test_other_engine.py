"""A job that goes on under another noise, or on another device, than its finished shards have."""

from collections import Counter

import pyarrow.parquet as pq
import pytest
from conftest import demo_records
from drawn import say
from processes import instant, said

from batchgen.engine.instant import InstantEngine
from batchgen.job.sampler import NONE, Sampler
from batchgen.runner.other_engine import OtherEngine
from batchgen.runner.prepare import prepare

V2 = Sampler("V2", "Philox")


@pytest.fixture
def half_done(instantly, write_rows):
    """A job of four shards, the first two of which are said to be a GPU's; its input, and the folder."""
    source = write_rows(demo_records(8))
    out = instantly([source], output={"shard_rows": 2})
    for number, part in enumerate(sorted(out.glob("part-*"))):
        if number < 2:
            say(part, runner="V2", noise="Philox")
        elif number == 3:
            part.unlink()
    (out / "_SUCCESS").unlink()
    return source, out


def warning(finished: str, now: Sampler) -> str:
    return (
        f"batchgen: warning: {finished}; those to come will be with {now}: a seed gives other tokens under each, so a "
        "sampled response can be made again only under the noise that its shard records"
    )


def test_it_is_told_once_by_name_and_each_shard_keeps_its_own(start, half_done, tmp_path):
    source, out = half_done
    run = start(source, out, "--shard-rows", 2, "--workers", 2, env=instant(tmp_path / "instant"))
    assert run.wait() == 0, run.stderr
    assert [line for line in said(run.stderr) if "noise" in line] == [
        warning(f"2 finished shards were sampled with {V2}", NONE)
    ]
    runners = [pq.read_metadata(part).metadata[b"batchgen.runner"] for part in sorted(out.glob("part-*"))]
    assert runners == [b"V2", b"V2", b"none", b"none"]


@pytest.fixture
def job(half_done):
    from faulty import spec_of

    source, out = half_done
    return prepare(spec_of(source, out, shard_rows=2, max_tokens=512))


def test_another_device_is_told_of_once_by_name_and_each_shard_keeps_its_own(start, half_done, tmp_path):
    source, out = half_done
    first, *others = sorted(out.glob("part-*"))
    say(first, device="NVIDIA L4")
    for part in others:
        say(part, device=InstantEngine.device)
    run = start(source, out, "--shard-rows", 2, "--workers", 2, env=instant(tmp_path / "instant"))
    assert run.wait() == 0, run.stderr
    now = InstantEngine.device
    assert [line for line in said(run.stderr) if "device" in line] == [
        f"batchgen: warning: 1 finished shards were made on NVIDIA L4; those to come will be on {now}: "
        "their sums round differently, so some responses come out the same only on the device that their shard records"
    ]
    devices = [pq.read_metadata(part).metadata[b"batchgen.device"].decode() for part in sorted(out.glob("part-*"))]
    assert devices == ["NVIDIA L4", *3 * [now]]


def test_nothing_is_told_where_all_are_drawn_alike(job):
    finished = OtherEngine(job)
    finished._samplers, finished._devices = Counter({V2: 3}), Counter({"NVIDIA L4": 3})
    assert (finished.of_noise(V2), finished.of_device("NVIDIA L4")) == ("", "")


def test_shards_that_do_not_say_what_drew_them_are_told_of_as_such(job, half_done):
    _, out = half_done
    older = {"dtype": "float16", "device": "NVIDIA L4", "versions": '{"vllm":"0.31.0"}'}
    for part in sorted(out.glob("part-*")):
        say(part, runner=None, noise=None, **older)
    murmur3 = f"{Sampler('V2', 'murmur3')} (by their vLLM's version; they do not say)"
    assert OtherEngine(job).of_noise(V2).startswith(f"3 finished shards were sampled with {murmur3}; those to come")
