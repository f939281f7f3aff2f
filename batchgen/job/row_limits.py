"""How large a row may be."""

import re
from typing import NamedTuple

ROW_BYTES = 64 << 20  # bytes of a row, by default: reading it takes up to 8 s and 0.7 GB of memory
ROW_VALUES = 4_000_000  # values of a row, by default: one of 2 bytes in JSON can take 100 bytes in Python


class RowLimits(NamedTuple):
    """How large a row may be.

    Attributes:
        row_bytes: in bytes, as read.
        row_values: in values, see `has_too_many_values`.
    """

    row_bytes: int = ROW_BYTES
    row_values: int = ROW_VALUES


USUAL = RowLimits()
WIDEST = 1_000_000  # characters that a template may have a value padded to


def too_large(size: int, most: int = ROW_BYTES) -> str:
    """The detail of a reject for a row of `size` bytes."""
    return f"the row has {size:,} bytes, and [limits] row_bytes allows {most:,}"


def too_many_values(most: int) -> str:
    """The detail of a reject for a row with too many values."""
    return f"the row has more values than the {most:,} that [limits] row_values allows"


def has_too_many_values(line: bytes, most: int) -> bool:
    """Whether a line of JSON may have so many values that parsing it takes too much memory. Commas and brackets inside
    texts count too, as a text may itself be parsed as JSON."""
    return len(line) > most and sum(map(line.count, (b",", b"[", b"{"))) > most


def check_width(format: str) -> None:
    """Raises ValueError for a format specification (such as `>20`) that would pad a value without limit, or that takes
    its width from the row."""
    if "{" in format:
        raise ValueError(f"the width in {{:{format}}} must be a number, not a column")
    if too_wide := next((digits for digits in re.findall(r"\d+", format) if int(digits[:20]) > WIDEST), ""):
        raise ValueError(f"{{:{format}}} is {too_wide} characters wide; the maximum is {WIDEST:,}")
