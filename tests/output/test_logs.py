"""Logs: one for each worker, and of users who share a folder one for each of them."""

import os

import pytest

from batchgen.errors import JobError, Stopped
from batchgen.output import logs


def test_each_worker_and_each_user_of_a_shared_folder_has_its_own(folder, tmp_path):
    user = os.geteuid()
    found = [logs.of_worker(folder, worker, shared) for shared in (False, True) for worker in (1, 2)]
    expected = ["engine.log", "engine-2.log", f"engine.{user}.log", f"engine.{user}-2.log"]
    assert found == [tmp_path / "out" / "_state" / name for name in expected]


def test_a_log_goes_on_where_it_was(folder):
    log = logs.of_worker(folder, 1, shared=False)
    for line in (b"one\n", b"two\n"):
        with logs.appending(log) as stream:
            stream.write(line)
    assert log.read_bytes() == b"one\ntwo\n"


def test_a_log_that_leads_elsewhere_is_not_written(folder, tmp_path):
    log = logs.of_worker(folder, 1, shared=False)
    (tmp_path / "precious").touch()
    log.symlink_to(tmp_path / "precious")
    with pytest.raises(JobError, match="is a link"), logs.appending(log):
        pass


def test_what_the_machine_refuses_meanwhile_stops_the_run(folder):
    log = logs.of_worker(folder, 1, shared=False)
    with pytest.raises(Stopped, match="Resource temporarily unavailable"), logs.appending(log):
        raise BlockingIOError(11, os.strerror(11))
