"""What engines leave behind goes with the run, and nothing of anybody else's."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from batchgen.engine.scratch import MARK, PREFIX, SHARED, Scratch

MAKES_SHARED_MEMORY = """
import multiprocessing, os, tempfile
from multiprocessing import resource_tracker, shared_memory
from batchgen.engine import scratch
scratch.adopt()
block = shared_memory.SharedMemory(create=True, size=100)
lock = multiprocessing.get_context("spawn").Lock()
open(tempfile.gettempdir() + "/vllm_dist_1", "w").close()
print(block.name, flush=True)
os.kill(resource_tracker._resource_tracker._pid, 9)  # as the supervisor ends it with all others
os._exit(0)
"""


@pytest.fixture
def parent(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_shared_memory_semaphores_and_temporary_files_of_an_engine_go_with_its_run(parent):
    scratch, other = Scratch(), Scratch()
    environment = {**os.environ, **scratch.environment()}
    command = [sys.executable, "-c", MAKES_SHARED_MEMORY]
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    name = made.stdout.strip().lstrip("/")
    folder = Path(environment["TMPDIR"])
    assert (folder / "vllm_dist_1").exists(), made.stderr
    assert name.startswith(folder.name)
    assert len(list(SHARED.glob(f"*{folder.name}*"))) == 2
    other.close()
    assert folder.exists()
    scratch.close()
    assert not folder.exists()
    assert not list(SHARED.glob(f"*{folder.name}*"))


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_is_in_use_or_no_scratch_is_not(parent):
    working, killed = Scratch(), Scratch()
    in_use, left = (Path(each.environment()["TMPDIR"]) for each in (working, killed))
    os.close(killed._locks[0])  # as the kernel does it for a killed process
    users_own = parent / f"{PREFIX}notes"
    users_own.mkdir()
    (users_own / "thesis.txt").write_text("mine")
    old = time.time() - 1000
    for path in (in_use, left, users_own):
        os.utime(path, (old, old))
    Scratch().close()
    assert in_use.exists() and (users_own / "thesis.txt").exists()
    assert not left.exists()
    working.close()


def test_sockets_get_a_short_path_where_the_temporary_folder_has_a_long_one(parent, monkeypatch):
    long = parent / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    scratch = Scratch()
    environment = scratch.environment()
    sockets = Path(environment["VLLM_RPC_BASE_PATH"])
    assert len(str(sockets)) <= 60 and (sockets / MARK).exists()
    assert environment["TMPDIR"].startswith(str(long))
    scratch.close()
    assert not sockets.exists() and list(long.iterdir()) == []
