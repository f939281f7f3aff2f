"""How files get into the output folder: whole, whatever the file system and whoever writes beside."""

import errno
import os
import stat
from pathlib import Path

import pytest

from batchgen.errors import JobError
from batchgen.output import folder


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.EIO], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_sync_folders_is_taken_as_it_is(tmp_path, monkeypatch, error):
    (tmp_path / "_state").mkdir()
    real = os.fsync

    def fsync(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(error, os.strerror(error))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    if error == errno.EIO:  # which is no matter of what the file system can do
        with pytest.raises(OSError, match="Input/output error"):
            folder.publish(tmp_path, tmp_path / "x", b"1")
    else:
        folder.publish(tmp_path, tmp_path / "x", b"1")
        assert (tmp_path / "x").read_bytes() == b"1"


def test_two_that_write_one_file_under_one_process_id_do_not_meet(tmp_path, monkeypatch):
    """As in containers of one host: a file's name while it is written is nobody else's."""
    (tmp_path / "_state").mkdir()
    seen = []
    real = Path.replace

    def replace(self, target):
        seen.append(self.name)
        if len(seen) == 1:  # the other comes in between
            folder.publish(tmp_path, tmp_path / "x", b"2")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    folder.publish(tmp_path, tmp_path / "x", b"1")
    assert len(set(seen)) == 2
    assert (tmp_path / "x").read_bytes() == b"1"


def test_a_job_that_is_made_while_the_folder_is_looked_at_is_not_something_else(tmp_path, monkeypatch):
    real = os.listdir

    def listdir(path):
        (tmp_path / "_job.json").write_bytes(b"{}")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(JobError, match="damaged"):  # it was read, not taken for a stranger's file
        folder.read_job(tmp_path)
