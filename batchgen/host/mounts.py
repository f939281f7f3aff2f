"""Buckets that are mounted as a folder."""

import os
import re
from pathlib import Path

# As /proc/mounts names them: by the type (`fuse.gcsfuse`), or by what is mounted (`mountpoint-s3 /data fuse ...`).
_KINDS = frozenset("gcsfuse s3fs goofys rclone mountpoint-s3 blobfuse blobfuse2 geesefs".split())


def bucket_at(path: Path, mounts: str | None = None) -> str:
    """The program that mounts a bucket where a path lies, whether it is there yet or not; empty if none does.

    mounts: as in /proc/mounts, if not of this machine
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(errors="surrogateescape")
        except OSError:
            return ""
    place, longest, found = Path(os.path.realpath(path)), -1, ""
    for line in mounts.splitlines():
        source, point, kind, *_ = map(_unescaped, f"{line} - - -".split())
        if len(point) > longest and place.is_relative_to(point):
            names = {kind.removeprefix("fuse."), source} if kind.startswith("fuse") else set()
            longest, found = len(point), next(iter(names & _KINDS), "")
    return found


def _unescaped(field: str) -> str:
    """Spaces and the like are octal there."""
    return re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), field)
