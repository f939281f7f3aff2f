"""Versions of packages, as far as what they can do goes."""

import re


def release(version: str) -> tuple[int, ...]:
    """Major and minor, as patch releases go together: (0, 31) of "0.31.1rc1+cpu"; () of a version without numbers, as
    of vLLM's source."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
