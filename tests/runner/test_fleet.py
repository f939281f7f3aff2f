"""The simulation of a fleet (tests/bench/fleet.py), in small: what holds for a dozen workers and a hundred shards."""

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "bench" / "fleet.py"
spec = importlib.util.spec_from_file_location("fleet", SOURCE)
fleet = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fleet)


@pytest.fixture(scope="module", params=fleet.SITES)
def result(request):
    return fleet.simulate(12, 240, 4096, fleet.SITES[request.param], preempted=2.0)


def test_whatever_is_taken_all_shards_are_made_and_nearly_nothing_is_made_twice(result):
    assert result.kills > 5
    assert 0 < result.redone < 0.02


def test_nobody_waits_long_for_the_dead(result):
    slowest = result.shard_hours + (fleet.STALE + fleet.REPLACED * 1.5 + fleet.ENGINE_START) / 3600
    assert result.ideal < result.hours < result.left < 1.2 * result.ideal + 2 * slowest


def test_a_free_shard_is_found_in_a_few_looks_however_many_are_at_work():
    few, many = (fleet.simulate(workers, 8 * workers, 1024, preempted=0) for workers in (4, 64))
    looks = [result.requests["GET"] + result.requests["HEAD"] for result in (few, many)]
    assert looks[1] / many.shards < 2 * looks[0] / few.shards
