"""`.huggingface.yaml`: tells Hugging Face `datasets` which files are the data.

It passes over no names with `_`, so without this it may take `_rejects/` for the data. And what it has once read of a
folder it keeps by what this file says alone: whoever had loaded an unfinished job, or another one in its place, would
get those rows for ever. So the file says something else of another job, and of a finished one.
"""

import contextlib
import hashlib
import re

from . import layout
from .store import Store

_TEXT = "configs:\n- config_name: default\n  data_files: '*.parquet'\n  description: {}\n"
_BEGUN = re.compile(rb"begun (\d{1,12}\.\d{3})")


def write(out: Store, fingerprint: str) -> None:
    """Of a job that begins."""
    out.write(layout.HUGGING_FACE, _TEXT.format(f"job {fingerprint}").encode())


def write_again(out: Store, success: bytes) -> None:
    """Of a job that is finished; a folder of batchgen 0.1 has none, and needs none. success: what `_SUCCESS` says"""
    with contextlib.suppress(FileNotFoundError):
        digest = hashlib.blake2b(success, digest_size=16).hexdigest()
        out.write(layout.HUGGING_FACE, _TEXT.format(f"begun {begun(out):.3f}, finished with {digest}").encode())


def begun(out: Store) -> float:
    """When the file was first written, by the store's clock. Raises FileNotFoundError."""
    written = out.stat(layout.HUGGING_FACE).modified  # first: whoever else closes the job may write in between
    found = _BEGUN.search(out.read(layout.HUGGING_FACE))
    return float(found[1]) if found else written
