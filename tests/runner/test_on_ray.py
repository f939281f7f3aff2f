"""What `run --ray` decides for itself. Ray itself runs in tests/contract/test_clusters.py."""

import sys
from collections import deque

import pytest
from conftest import MODEL, demo_records

from batchgen import cli, flags
from batchgen.errors import JobError, MachineError, Stopped
from batchgen.runner import on_ray
from batchgen.runner.on_ray import bring_to_its_end, room_for_workers


def node(alive: bool = True, **resources: float) -> dict:
    return {"Alive": alive, "Resources": resources}


@pytest.fixture
def for_gpus(monkeypatch):
    monkeypatch.setattr(on_ray, "needs_gpu", lambda: True)


class Ended:
    """As much of Ray as hears what workers exit with, one after the other; `started` of them were begun."""

    def __init__(self, *codes: int):
        self._codes = deque(codes)
        self.started = 0
        self.cancelled: list[int] = []

    def start(self) -> int:
        self.started += 1
        return self.started

    def wait(self, running, num_returns=1, timeout=None):
        return running[:1], running[1:]

    def get(self, worker):
        return self._codes.popleft()

    def cancel(self, worker):
        self.cancelled.append(worker)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(on_ray, "PAUSE", 0.0)


# --- where there is room


def test_a_worker_has_the_gpus_of_one_engine_on_one_node(for_gpus):
    nodes = [node(CPU=32, GPU=8), node(CPU=8, GPU=3), node(CPU=64)]
    assert room_for_workers(nodes, 2) == ({"GPU": 2.0, "CPU": 1.0}, 4 + 1)


def test_a_node_that_is_gone_has_no_room(for_gpus):
    assert room_for_workers([node(CPU=8, GPU=2), node(alive=False, CPU=8, GPU=2)], 1)[1] == 2


def test_a_cluster_that_grows_when_asked_is_asked_for_one_worker(for_gpus):
    assert room_for_workers([node(CPU=4)], 8) == ({"GPU": 8.0, "CPU": 1.0}, 1)


def test_without_gpus_a_worker_has_eight_cpus_or_all_of_the_largest_node(monkeypatch):
    monkeypatch.setattr(on_ray, "needs_gpu", lambda: False)
    assert room_for_workers([node(CPU=32), node(CPU=9)], 1) == ({"CPU": 8.0}, 5)
    assert room_for_workers([node(CPU=2), node(CPU=4), node(CPU=4)], 1) == ({"CPU": 4.0}, 2)
    assert room_for_workers([], 1) == ({"CPU": 8.0}, 1)


# --- what workers are told


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["job.toml", "--ray"], ["job.toml"]),
        (["job.toml", "--ray", "10.0.0.1:6379", "--json"], ["job.toml"]),
        (["--ray=auto", "job.toml", "--discard", "-o", "out"], ["job.toml", "-o", "out"]),
        (["--ray", "--limit", "5", "job.toml"], ["--limit", "5", "job.toml"]),
        (["job.toml", "--ray", "--json"], ["job.toml"]),
    ],
)
def test_workers_get_all_flags_but_those_for_the_command_itself(given, kept):
    with cli.run_command.make_context("run", list(given)) as context:
        assert context.params["ray"]
        assert flags.arguments_of_workers() == kept


def test_a_worker_is_one_engine_and_ends_when_the_job_was_to_end():
    assert on_ray._of_worker(["job.toml", "--workers", "8"], "") == "job.toml --workers 8 --workers 1".split()
    assert on_ray._of_worker(["--", "-job.toml"], "1800000000")[:4] == ["--workers", "1", "--stop-at", "1800000000"]


# --- what becomes of them


def test_the_job_is_done_when_all_workers_are():
    ray = Ended(0, 0)
    assert bring_to_its_end(ray, ray.start, 2) == 0


def test_rejects_of_the_worker_that_closed_the_job_count():
    ray = Ended(0, 3, 0)
    assert bring_to_its_end(ray, ray.start, 3) == 3


@pytest.mark.parametrize("code", [1, 75, -9])
def test_a_worker_that_fails_or_stops_is_started_again(code):
    ray = Ended(code, code, 0)
    assert bring_to_its_end(ray, ray.start, 1) == 0
    assert ray.started == 3


def test_workers_that_all_fail_are_a_fault_of_the_machines():
    ray = Ended(*[1] * 6)
    with pytest.raises(MachineError, match="all workers failed"):
        bring_to_its_end(ray, ray.start, 2)


def test_one_worker_that_fails_every_time_does_no_harm_where_another_finishes():
    ray = Ended(1, 0, 1, 1)
    assert bring_to_its_end(ray, ray.start, 2) == 0


def test_workers_that_all_stop_by_themselves_are_a_stop():
    ray = Ended(75, 75, 75)
    with pytest.raises(Stopped):
        bring_to_its_end(ray, ray.start, 1)


def test_a_worker_that_is_refused_ends_the_others():
    ray = Ended(2)
    with pytest.raises(JobError, match="refused"):
        bring_to_its_end(ray, ray.start, 3)
    assert ray.cancelled == [2, 3]


# --- wrong usage


def test_a_machine_without_ray_is_told_what_to_install(batchgen, tmp_path, write_rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    rows = write_rows(demo_records(1))
    done = batchgen("run", rows, "--model", MODEL, "--output", tmp_path / "out", "--ray")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1) and "pip install ray" in done.stderr


def test_a_job_file_behind_ray_is_no_address(batchgen):
    done = batchgen("run", "--ray", "job.toml")
    assert done.exit_code == 2 and "'job.toml' is no address" in done.stderr


def test_what_is_piped_in_cannot_be_read_on_other_nodes(batchgen, tmp_path):
    done = batchgen("run", "-", "--model", tmp_path, "--output", tmp_path / "out", "--ray", "auto")
    assert done.exit_code == 2 and "cannot read what is piped in here" in done.stderr


def test_a_trial_needs_no_cluster(batchgen, tmp_path):
    done = batchgen("run", "in.jsonl", "--model", tmp_path, "--output", tmp_path / "out", "--limit", 5, "--ray")
    assert done.exit_code == 2 and "--limit tries the first rows" in done.stderr
