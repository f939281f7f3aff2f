"""How large a row may be."""

import re
from typing import NamedTuple

ROW_BYTES = 64 << 20  # of a row, unless the job says otherwise: 8 s of reading at most, and 0.7 GB
ROW_VALUES = 4_000_000  # of a row: each is up to 100 bytes in Python for the two that `[]` and a comma have in JSON


class RowLimits(NamedTuple):
    """How large a row may be, in bytes and in values."""

    row_bytes: int = ROW_BYTES
    row_values: int = ROW_VALUES


USUAL = RowLimits()
WIDEST = 1_000_000  # characters that a template may have a value padded to


def too_large(size: int, most: int = ROW_BYTES) -> str:
    return f"the row has {size:,} bytes, and [limits] row_bytes allows {most:,}"


def too_many_values(most: int) -> str:
    return f"the row has more values than the {most:,} that [limits] row_values allows"


def has_too_many_values(line: bytes, most: int) -> bool:
    """Whether a row may have so many values as JSON that they take the machine's memory. Those in texts count too: a
    text may be read as JSON again."""
    return len(line) > most and sum(map(line.count, (b",", b"[", b"{"))) > most


def check_width(format: str) -> None:
    """Raises ValueError for a format specification (`>20`, `.2f`) that pads a value beyond all use, or whose width
    would come from the row."""
    if "{" in format:
        raise ValueError(f"the width in {{:{format}}} must be a number, not a column")
    if too_wide := next((digits for digits in re.findall(r"\d+", format) if int(digits[:20]) > WIDEST), ""):
        raise ValueError(f"{{:{format}}} is {too_wide} characters wide; {WIDEST:,} is the most")
