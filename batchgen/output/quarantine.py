"""Damaged files are not removed but moved out of the way, for people to look at."""

import uuid

from . import layout
from .store import Store


def quarantine(out: Store, name: str) -> str:
    """Gives the new name. Raises FileNotFoundError if another process has moved it already."""
    aside = f"{layout.QUARANTINE}/{name.rpartition('/')[2]}.{uuid.uuid4().hex[:8]}"
    out.move(name, aside)
    return aside


def set_aside_by(out: Store) -> str:
    return f"`batchgen verify {out} --quarantine` sets it aside, and the next run makes it again"
