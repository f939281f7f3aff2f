"""Whatever a file of a job has turned into is noticed when it is read, and the accounting closes whatever the input is."""

import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records
from faulty import dataset, run_here, spec_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen import conversation, folder, item, shard, source
from batchgen.conversation import Row
from batchgen.errors import JobError
from batchgen.folder import checksum_path, rejects_path, sealed, shard_path, unsealed
from batchgen.prepare import prepare
from batchgen.sampling import Sampling

ROWS = [*demo_records(2), {"text": ""}, *demo_records(3), "no", *demo_records(1)]
SHARDS = 3


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def zero_filled(content: bytes) -> bytes:
    return bytes(len(content))


def one_bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def damage(path: Path, how) -> None:
    path.write_bytes(how(path.read_bytes()))


any_damage = pytest.mark.parametrize("how", [cut_off, emptied, zero_filled, one_bit_flipped])


class Done:
    """A finished job of three shards, two of them with a reject, and the command in this process."""

    def __init__(self, engine, out: Path, source: Path, batchgen, capfd):
        self.out = out
        self.source = source
        self._engine, self._batchgen, self._capfd = engine, batchgen, capfd
        self.run_again()
        self.good = dataset(out)

    def run_again(self) -> list[str]:
        """Gives what it says on stderr."""
        self._capfd.readouterr()
        run_here(self._engine, spec_of(self.source, self.out))
        return self._capfd.readouterr().err.splitlines()

    def command(self, name: str):
        """`batchgen run` or `batchgen verify`, where no engine is to start."""
        flags = [self.source, "--model", MODEL, "--output", self.out, "--shard-rows", "3", "--max-tokens", "4"]
        return self._batchgen("run", *flags) if name == "run" else self._batchgen("verify", self.out)

    def is_set_aside_by_verify_and_made_again(self, path: Path) -> None:
        result = self.command("verify")
        assert (result.exit_code, result.stderr.count("\n")) == (1, 2)
        assert result.stderr.startswith(f"batchgen: {path}: ")
        assert "run the job again to make it again" in result.stderr
        self.is_in_quarantine(path)
        self.run_again()
        self.is_as_it_was()

    def is_set_aside_by_the_next_run_and_made_again(self, path: Path) -> None:
        [warning] = self.run_again()
        assert warning.startswith(f"batchgen: warning: {path}: ")
        assert "; moved to " in warning
        self.is_in_quarantine(path)
        self.is_as_it_was()

    def is_in_quarantine(self, path: Path) -> None:
        [aside] = (self.out / "_state" / "quarantine").iterdir()
        assert aside.name.startswith(path.name)

    def is_as_it_was(self) -> None:
        assert dataset(self.out) == self.good
        assert self.command("verify").exit_code == 0


@pytest.fixture
def done(engine, tmp_path, write_rows, batchgen, capfd):
    return Done(engine, tmp_path / "out", write_rows(ROWS), batchgen, capfd)


# --- damaged files


@pytest.mark.parametrize("how", [cut_off, emptied])
def test_a_shard_of_another_size_is_set_aside_by_the_next_run_and_made_again(done, how):
    damage(shard_path(done.out, 0, SHARDS), how)
    done.is_set_aside_by_the_next_run_and_made_again(shard_path(done.out, 0, SHARDS))


@any_damage
def test_a_shard_of_another_content_is_set_aside_by_verify_and_made_again(done, how):
    damage(shard_path(done.out, 0, SHARDS), how)
    done.is_set_aside_by_verify_and_made_again(shard_path(done.out, 0, SHARDS))


@any_damage
def test_a_shard_whose_rejects_are_damaged_is_set_aside_by_verify_and_made_again(done, how):
    damage(rejects_path(done.out, 2, SHARDS), how)
    done.is_set_aside_by_verify_and_made_again(shard_path(done.out, 2, SHARDS))


def test_a_shard_whose_rejects_are_gone_is_set_aside_by_the_next_run_and_made_again(done):
    rejects_path(done.out, 2, SHARDS).unlink()
    done.is_set_aside_by_the_next_run_and_made_again(shard_path(done.out, 2, SHARDS))


@any_damage
def test_a_shard_whose_checksums_are_damaged_is_set_aside_by_the_next_run_and_made_again(done, how):
    damage(checksum_path(done.out, 1, SHARDS), how)
    done.is_set_aside_by_the_next_run_and_made_again(shard_path(done.out, 1, SHARDS))


def test_a_shard_whose_checksums_are_gone_is_set_aside_by_the_next_run_and_made_again(done):
    checksum_path(done.out, 1, SHARDS).unlink()
    done.is_set_aside_by_the_next_run_and_made_again(shard_path(done.out, 1, SHARDS))


@any_damage
@pytest.mark.parametrize("command", ["run", "verify"])
def test_a_damaged_job_record_is_one_line_and_exit_2(done, how, command):
    damage(done.out / "_job.json", how)
    result = done.command(command)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"batchgen: {done.out}/_job.json: damaged")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("_job.json", folder.JobRecord), ("_state/checksums/part-00000-of-00003.json", shard.Checksums)],
)
def test_a_flipped_bit_anywhere_in_a_record_is_noticed(done, name, kind):
    content = (done.out / name).read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            unsealed(bytes(flipped), kind)


@any_damage
def test_a_damaged_success_file_is_made_again_without_an_engine(done, how):
    damage(done.out / "_SUCCESS", how)
    result = done.command("run")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("all done already: 8 rows, 6 responses, 2 rejects")
    done.is_as_it_was()


@pytest.mark.parametrize("how", [cut_off, zero_filled, one_bit_flipped])
def test_a_damaged_journal_is_set_aside_and_what_it_lost_is_made_again(done, how):
    shard_path(done.out, 1, SHARDS).unlink()
    journal = done.out / "_state" / "journal" / "part-00001.host.1.ab.journal"
    fingerprint = folder.read_job(done.out).fingerprint
    ours = folder_journal(journal, fingerprint)
    damage(ours, how)
    done.is_set_aside_by_the_next_run_and_made_again(journal)


def folder_journal(path: Path, fingerprint: str) -> Path:
    """A journal with two entries that nobody would take for generated ones."""
    from batchgen.journal import Entry, Journal

    journal = Journal(path, fingerprint)
    journal.append(Entry(4, 0, [5] * 9, "length"))
    journal.append(Entry(5, 0, [5] * 9, "length"))
    journal.flush()
    journal.close()
    return path
