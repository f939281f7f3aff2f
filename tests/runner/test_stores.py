"""A whole job in a store that is no folder: nothing of a run but its logs needs a disk."""

import dataclasses

import pytest
from conftest import demo_records
from faulty import dataset, run_here, spec_of
from memory import MemoryStore
from neighbours import instant_engine

from batchgen.errors import EngineDied
from batchgen.output import layout, opening
from batchgen.output.claims import Claims
from batchgen.runner.prepare import Job, prepare
from batchgen.runner.run import close
from batchgen.runner.worker import Worker


@pytest.fixture
def spec(tmp_path, write_rows):
    return spec_of(write_rows([*demo_records(7), "no"]), tmp_path / "out")


@pytest.fixture
def expected(spec, tmp_path) -> dict[str, bytes]:
    run_here(instant_engine(), spec)
    return dataset(tmp_path / "out")


@pytest.fixture
def job(spec, expected, tmp_path) -> Job:
    """Opened in a store of its own."""
    job = dataclasses.replace(prepare(spec), out=MemoryStore(tmp_path))
    job.record.after = None
    assert opening.open_job(job.out, job.record)
    return job


def brought_to_its_end(job: Job, expected: dict[str, bytes]) -> Worker:
    worker = Worker(job, instant_engine(), Claims(job.out, stale=60))
    worker.run(job.plan.shards)
    close(job)
    left = [name for name in job.out.objects if name.startswith((layout.CLAIMS, layout.JOURNALS, layout.WORKERS))]
    assert left == []
    made = [name for name in job.out.objects if name.startswith(("part-", "_rejects/", "_SUCCESS"))]
    assert {name: job.out.read(name) for name in made} == expected
    return worker


def test_the_dataset_is_that_of_a_folder(job, expected):
    brought_to_its_end(job, expected)


def test_what_a_worker_that_was_killed_left_is_taken_over(job, expected):
    claims, engine = Claims(job.out, stale=60), instant_engine()
    steps = iter([lambda responses: responses[:2]])

    def dying(step=engine.step):
        try:
            return next(steps)(step())
        except StopIteration:
            raise EngineDied("it died") from None

    engine.step = dying
    with pytest.raises(EngineDied):
        Worker(job, engine, claims).run(job.plan.shards)
    claims._stop_beating()
    job.out.remove(claims.beat_name)
    assert job.out.names(layout.CLAIMS)
    assert job.out.names(layout.JOURNALS)
    worker = brought_to_its_end(job, expected)
    assert worker.totals.kept == 2
