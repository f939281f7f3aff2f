"""`_SUCCESS`: a job is closed once all its shards are there and their counts add up."""

from typing import Any

import msgspec

from ..errors import on_disk
from . import hugging_face, layout
from .store import Store


def is_there(out: Store) -> bool:
    return out.exists(layout.SUCCESS)


def says(out: Store, totals: dict[str, Any]) -> bool:
    """Whether it is there and says just this."""
    return is_there(out) and _read(out) == _written(totals)


def is_of(out: Store, fingerprint: str) -> bool:
    """Whether it is there, and not that of a time before the job grew."""
    return is_there(out) and fingerprint.encode() in _read(out)


def write(out: Store, totals: dict[str, Any]) -> bool:
    """False if another run has just written the same."""
    content = _written(totals)
    hugging_face.write_again(out, content)
    try:
        out.create(layout.SUCCESS, content)
    except FileExistsError:
        if _read(out) == content:
            return False
        out.write(layout.SUCCESS, content)
    return True


def remove(out: Store) -> None:
    out.remove(layout.SUCCESS)


def _read(out: Store) -> bytes:
    with on_disk(out):
        return out.read(layout.SUCCESS)


def _written(totals: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(totals), indent=1) + b"\n"
