"""Whatever the disk does and whenever the process ends: the same command goes on, and the result is the same."""

import base64
import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import MODEL
from faulty import (
    CHANGES,
    Disk,
    DiskThatLosesPower,
    DiskWithOneFault,
    dataset,
    in_child,
    killed_at_commit,
    run_here,
    spec_of,
)
from processes import said

from batchgen.output import layout

WORDS = ["Monday", "Friday", "May 7", "3 pm", "10 pm", "Sunday"]
ROWS = [{"text": word, "sampling": {"ignore_eos": True, "max_tokens": 1 + i % 4}} for i, word in enumerate(WORDS)]
ROWS[2:2] = [{"text": ""}]
ROWS[6:6] = ["no"]


class SmallJob:
    """Eight rows in three shards, two of them bad; run in this process or, where it shall fail, in a child."""

    def __init__(self, engine, folder: Path, source: Path):
        self.folder = folder
        self._engine = engine
        self._source = source
        self._found = folder / "found"  # what a run that is to be disturbed finds
        self._incremental = False
        self.good = self.finish(folder / "undisturbed")

    def run(self, out: Path, disk: Disk | None = None, **options) -> None:
        if disk:
            disk.watch()
        run_here(self._engine, spec_of(self._source, out, incremental=self._incremental, **options))

    def finish(self, out: Path) -> dict[str, bytes]:
        """Runs it to its end. A claim whose maker left it without a name is waited for only shortly."""
        self.run(out, stale=0.3)
        return dataset(out)

    def calls(self) -> list[str]:
        """Every file-system call of a run."""
        out, counted = self._begin(self.folder / "counted"), self.folder / "calls"

        def work():
            disk = Disk(out)
            self.run(out, disk)
            counted.write_text("\n".join(disk.calls))

        assert in_child(work) == "done"
        shutil.rmtree(out)
        return counted.read_text().split("\n")

    def disturb(self, out: Path, at: int, fault, part=0.0) -> str:
        """A run with a fault at one of its calls; gives how it ended."""
        disk = DiskWithOneFault(self._begin(out), at, fault, part)
        return in_child(lambda: self.run(out, disk))

    def leave_behind(self) -> None:
        """From now on a run finds what a killed one left: a shard, cut off meanwhile, and a journal cut off."""
        commit = next(
            at for at, call in enumerate(self.calls()) if call.startswith("create _state/part-00001-of-00003")
        )
        assert self.disturb(self.folder / "killed", commit, kill) == "killed"
        cut_in_half(self.folder / "killed" / "part-00000-of-00003.parquet")
        cut_in_half(*self.folder.glob("killed/_state/journal/part-00001.*"))
        (self.folder / "killed").rename(self._found)

    def let_grow(self) -> None:
        """From now on a run finds the finished job of the input's first five rows."""
        self._incremental = True
        whole = self._source.read_bytes()
        self._source.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
        self.finish(self._found)
        self._source.write_bytes(whole)
        self.good = self.finish(self._begin(self.folder / "grown"))

    def _begin(self, out: Path) -> Path:
        if self._found.exists():
            shutil.copytree(self._found, out)
        return out


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def fail(error: int) -> None:
    raise OSError(error, os.strerror(error))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def job(instant_engine, tmp_path, write_rows):
    return SmallJob(instant_engine, tmp_path, write_rows(ROWS))


@pytest.fixture(params=["new", *(pytest.param(name, marks=pytest.mark.slow) for name in ("left behind", "grown"))])
def job_in_a_folder(request, job):
    if request.param == "left behind":
        job.leave_behind()
    if request.param == "grown":
        job.let_grow()
    return job


# --- every single call


@pytest.mark.small_process
@pytest.mark.parametrize(
    "error, every",
    [(errno.ENOSPC, False), *(pytest.param(each, True, marks=pytest.mark.slow) for each in (errno.ENOSPC, errno.EIO))],
)
def test_a_call_that_fails_stops_the_run_with_one_line_and_the_next_run_completes_it(job_in_a_folder, error, every):
    """every: not only the last of the calls that are alike"""
    job, calls = job_in_a_folder, job_in_a_folder.calls()
    moments = range(len(calls)) if every else {call: at for at, call in enumerate(calls)}.values()
    for at in moments:
        out, call = job.folder / f"{at}", calls[at]
        ended = job.disturb(out, at, partial(fail, error), part=0.5 if error == errno.ENOSPC else 0)
        if call.endswith(layout.RUN_LOG):  # by then all is done
            assert ended == "done"
            assert dataset(out) == job.good
            continue
        assert ended.startswith("stopped: "), f"{call}: {ended}"
        assert os.strerror(error) in ended
        assert "\n" not in ended
        assert not list(out.glob("_state/*.tmp")), f"{call}: takes room for nothing"
        assert job.finish(out) == job.good, call
    print(f"{len(moments)} faults injected, {len(set(calls))} places")


@pytest.mark.small_process
def test_a_kill_before_or_after_any_call_that_changes_the_disk_loses_nothing(job_in_a_folder):
    """After one is before the next; a call that changes nothing leaves what the one before it left."""
    job, calls = job_in_a_folder, job_in_a_folder.calls()
    changes = [at for at, call in enumerate(calls) if call.startswith(CHANGES)]
    for at in changes:
        out = job.folder / f"{at}"
        assert job.disturb(out, at, kill) == "killed"
        assert job.finish(out) == job.good, calls[at]
    print(f"{len(changes)} kills survived")


def test_a_kill_half_way_through_any_write_loses_nothing_that_vllm_made(engine, tmp_path, write_rows):
    job = SmallJob(engine, tmp_path, write_rows(ROWS))
    calls = job.calls()
    writes = [at for at, call in enumerate(calls) if call.startswith(("write", "pwrite"))]
    for at in writes:
        out = job.folder / f"{at}"
        assert job.disturb(out, at, kill, part=0.5) == "killed"
        assert job.finish(out) == job.good, calls[at]
    print(f"{len(writes)} kills survived")


@pytest.mark.small_process
def test_a_folder_that_vanishes_before_any_call_stops_the_run_and_goes_on_when_it_is_back(job):
    calls = job.calls()
    made = next(at for at, call in enumerate(calls) if call.startswith("fsync"))
    moments = range(made, len(calls), 8)
    for at in moments:
        out, away = job.folder / f"{at}", job.folder / f"{at}-away"
        ended = job.disturb(out, at, partial(os.rename, out, away))
        is_over = calls[at].endswith(layout.RUN_LOG) or at == moments[-1]
        assert ended.startswith("stopped: ") or is_over, f"{calls[at]}: {ended}"
        assert not out.exists(), f"{calls[at]}: a part of it was made again"
        away.rename(out)
        assert job.finish(out) == job.good, calls[at]
    print(f"vanished {len(moments)} times")


# --- loss of power: what was not synced is gone


@pytest.mark.small_process
def test_a_power_loss_at_any_sync_loses_nothing_that_cannot_be_made_again(job):
    top, lost = job.folder / "top", job.folder / "lost"
    top.mkdir()
    lost.mkdir()

    def work():
        disk = DiskThatLosesPower(top, lost)
        job.run(top / "out", disk)
        disk.lose_power()

    assert in_child(work) == "done"
    folders = sorted(lost.iterdir())
    assert all(dataset(folder / "out") == job.good for folder in folders[-2:]), "a finished job is on the disk"
    for folder in folders:
        assert job.finish(folder / "out") == job.good, folder.name
    print(f"{len(folders)} power losses survived")


@pytest.mark.small_process
def test_a_journal_cut_at_any_byte_is_resumed_from_its_whole_entries(instant_engine, tmp_path, write_rows, capfd):
    source = write_rows([row for row in ROWS if "sampling" in row])
    spec = partial(spec_of, source, shard_rows=10)
    run_here(instant_engine, spec(tmp_path / "undisturbed"))
    out = tmp_path / "out"
    whole = killed_at_commit(instant_engine, spec(out))
    size, kept = whole.stat().st_size, []
    for cut in range(size + 1):
        resumed = tmp_path / f"{cut}"
        shutil.copytree(out, resumed)
        os.truncate(resumed / whole.relative_to(out), cut)
        capfd.readouterr()
        kept.append(run_here(instant_engine, spec(resumed)).totals.kept)
        assert dataset(resumed) == dataset(tmp_path / "undisturbed"), cut
        aside = list(resumed.glob("_state/quarantine/*"))
        assert capfd.readouterr().err.count("; moved to ") == len(aside)
        shutil.rmtree(resumed)
    assert kept == sorted(kept)
    assert set(kept) == set(range(kept[-1] + 1))
    assert kept[-1] >= 3
    print(f"{size + 1} cuts resumed, {kept[-1]} entries in the journal")


def test_shards_that_are_gone_are_made_again(job):
    out = job.folder / "undisturbed"
    parts = sorted(out.glob("part-*"))
    for count in range(1, len(parts) + 1):
        for gone in itertools.combinations(parts, count):
            for path in gone:
                path.unlink()
            assert job.finish(out) == job.good


# --- the real command on real disks


NOISE = random.Random(3)
MANY = [
    {"text": "Monday", "noise": base64.b64encode(NOISE.randbytes(750)).decode(), "sampling": {"max_tokens": 2}}
    for _ in range(2000)
]


@pytest.fixture
def small_disk(tmp_path):
    """An empty tmpfs of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a disk can only be mounted by root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def undisturbed(generate, write_rows):
    """The flags of a job of 1.5 MB, and its dataset."""
    source = write_rows(MANY)
    output = {"shard_rows": 100, "columns": ["noise"]}
    good = dataset(generate([source], "undisturbed", sampling={"temperature": 0}, output=output))
    return [source, "--model", MODEL, "--temperature", "0", "--shard-rows", "100", "--column", "noise"], good


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def stopped_with_one_line(result, folder: Path, reason: str) -> None:
    assert result.returncode == 75, result.stderr
    assert len(said(result.stderr)) == 1, result.stderr
    assert str(folder) in result.stderr
    assert reason in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all.jsonl", "all.parquet", "all.csv", "dataset"])
def test_an_export_to_a_bucket_without_room_to_be_made_in_says_where(
    small_disk, instantly, bucket, batchgen_process, write_rows, name
):
    out = instantly([write_rows(MANY)], "out", output={"columns": ["noise"]})
    uri = f"{bucket.location}/{name}"
    done = batchgen_process("export", out, "--to", uri, env=os.environ | {"TMPDIR": str(small_disk)})
    stopped_with_one_line(done, small_disk, "No space left on device")
    assert "set TMPDIR" in done.stderr
    assert list(small_disk.iterdir()) == []
    assert not bucket.names()


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_with_more_room_the_same_command_completes_it(
    undisturbed, small_disk, batchgen_process
):
    flags, good = undisturbed
    out = small_disk / "out"
    stopped_with_one_line(batchgen_process("run", *flags, "--output", out), out, "No space left on device")
    assert list(out.glob("part-*")), "it filled in the middle of the run"
    stopped_with_one_line(batchgen_process("run", *flags, "--output", out), out, "No space left on device")
    remount(small_disk, "size=8m")
    assert batchgen_process("run", *flags, "--output", out).returncode == 0
    assert dataset(out) == good


@pytest.mark.slow
def test_a_read_only_folder_stops_the_run_and_writable_again_the_same_command_completes_it(
    undisturbed, small_disk, batchgen_process
):
    flags, good = undisturbed
    out = small_disk / "out"
    remount(small_disk, "ro")
    stopped_with_one_line(batchgen_process("run", *flags, "--output", out), out, "Read-only file system")
    remount(small_disk, "rw")
    assert batchgen_process("run", *flags, "--output", out).returncode == 75  # full: there is something to go on with
    remount(small_disk, "ro,size=8m")
    stopped_with_one_line(batchgen_process("run", *flags, "--output", out), out, "Read-only file system")
    remount(small_disk, "rw")
    assert batchgen_process("run", *flags, "--output", out).returncode == 0
    assert dataset(out) == good
    remount(small_disk, "ro")
    assert "all done already: 2,000 rows" in batchgen_process("run", *flags, "--output", out).stdout
    remount(small_disk, "rw")
    moved = out.rename(small_disk / "moved")
    remount(small_disk, "ro")
    assert "all done already: 2,000 rows" in batchgen_process("run", *flags, "--output", moved).stdout


@pytest.mark.slow
def test_a_folder_moved_away_stops_the_run_and_moved_back_the_same_command_completes_it(
    tmp_path, undisturbed, batchgen_process
):
    flags, good = undisturbed
    out, away = tmp_path / "out", tmp_path / "away"
    command = [Path(sys.executable).with_name("batchgen"), "run", *flags, "--output", out]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    while not list(out.glob("part-*")):
        assert process.poll() is None
        time.sleep(0.01)
    out.rename(away)
    _, errors = process.communicate(timeout=60)
    stopped_with_one_line(subprocess.CompletedProcess([], process.returncode, "", errors), out, "No such file")
    assert not out.exists()
    away.rename(out)
    assert batchgen_process(*command[1:]).returncode == 0
    assert dataset(out) == good
