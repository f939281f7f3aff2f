"""How a job names a check or a scorer of the user's own: FILE.py:FUNCTION. check/user.py runs it."""

from pathlib import Path
from typing import NamedTuple


class OwnCheck(NamedTuple):
    file: Path
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.function}"


def parse(name: str) -> OwnCheck | None:
    """None if it is the name of another check."""
    file, _, function = name.rpartition(":")
    return OwnCheck(Path(file), function) if file.endswith(".py") and function.isidentifier() else None
