"""Which program mounts a bucket where a folder lies."""

from pathlib import Path

import pytest
from conftest import untimed

from batchgen.host.mounts import bucket_at

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
talks /mnt/gcs fuse.gcsfuse rw 0 0
s3fs /mnt/my\\040bucket fuse.s3fs rw 0 0
mountpoint-s3 /mnt/s3 fuse rw 0 0
blobfuse2 /mnt/az fuse rw 0 0
server:/x /mnt/s3/nfs nfs4 rw 0 0
host: /mnt/sshfs fuse.sshfs rw 0 0
s3fs /mnt/named ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "program"),
    [
        ("/mnt/gcs/a/out", "gcsfuse"),
        ("/mnt/my bucket", "s3fs"),
        ("/mnt/s3/out", "mountpoint-s3"),
        ("/mnt/az/out", "blobfuse2"),
        ("/mnt/s3/nfs/out", ""),  # mounted in it, and no bucket
        ("/mnt/s3x/out", ""),
        ("/mnt/sshfs/out", ""),
        ("/mnt/named/out", ""),  # a disk of that name
        ("/home/out", ""),
    ],
)
def test_the_mount_that_a_path_lies_in_tells(path, program):
    assert bucket_at(Path(path), MOUNTS) == program


def test_this_machine_tells_its_own(tmp_path):
    assert bucket_at(tmp_path) == ""


def test_a_run_into_a_mounted_bucket_is_warned_once_and_goes_on(folder, monkeypatch, capsys):
    monkeypatch.setattr("batchgen.host.mounts.bucket_at", lambda path: "gcsfuse")
    folder.prepare(shared=False)
    said = untimed(capsys.readouterr().err)
    assert said.startswith(f"batchgen: warning: {folder}: lies in a bucket that gcsfuse mounts, ")
    assert "name it by its URI (s3://, gs://, az://)" in said
