"""When a run has to be over: what is admitted last finishes in time, and the same command goes on."""

import time
from datetime import datetime, timedelta

import pytest
from conftest import MODEL, demo_records

from batchgen.errors import Stopped, Stopping
from batchgen.host import clock
from batchgen.job.spec import load
from batchgen.output import opening
from batchgen.output.claims import Claims
from batchgen.runner.prepare import prepare
from batchgen.runner.worker import Worker


def test_a_moment_is_a_clock_time_an_iso_time_or_seconds():
    soon = datetime.now().replace(second=0, microsecond=0) + timedelta(minutes=2)
    assert clock.moment(f"{soon:%H:%M}") == soon.timestamp()
    past = soon - timedelta(minutes=2)
    assert clock.moment(f"{past:%H:%M}") == (past + timedelta(days=1)).timestamp()
    assert clock.moment("2026-01-31T07:00+09:00") == 1769810400
    assert clock.moment("1769810400") == 1769810400
    for wrong in ("7", "25:00", "7:60", "noon"):
        with pytest.raises(ValueError):
            clock.moment(wrong)


def test_what_is_admitted_last_finishes_in_time(write_rows, engine, monkeypatch, tmp_path):
    source = write_rows(demo_records(400))
    output = {"path": str(tmp_path / "out"), "shard_rows": 10}
    job = prepare(load(None, {"input": {"path": [str(source)]}, "model": {"path": str(MODEL)}, "output": output}))
    opening.open_job(job.out, job.record)
    admitted = []
    add = engine.add
    monkeypatch.setattr(engine, "add", lambda *request: (admitted.append(request[0]), add(*request)))
    end = time.monotonic() + 3
    worker = Worker(job, engine, Claims(job.out, stale=60), window=4, until=end)
    with pytest.raises(
        Stopped, match="stopped, as the time is nearly up; run the same command again to resume"
    ) as ended:
        worker.run(job.plan.shards)
    assert ended.value.why is Stopping.TIME_UP
    assert time.monotonic() < end + 1
    assert 0 < worker.totals.rows + worker.totals.open_rows == len(admitted) < 400


def test_no_engine_starts_when_the_time_is_over(write_rows, batchgen_process, tmp_path):
    flags = ["--model", MODEL, "--output", tmp_path / "out", "--stop-at", int(time.time())]
    done = batchgen_process("run", write_rows(demo_records(3)), *flags)
    assert done.returncode == 75
    assert "the time is nearly up; run the same command again to resume (0 of 3 rows are done)" in done.stderr
    assert not (tmp_path / "out" / "_state" / "engine.log").exists()
