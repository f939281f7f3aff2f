"""Where a text may be cut without splitting what people see as one character: between extended grapheme clusters."""

from collections.abc import Iterator

import regex

_CLUSTER = regex.compile(r"\X")
# There is always a boundary between two of these, whatever precedes or follows them (Unicode's UAX #29, GB999).
_SURE = regex.compile(r"(?r)(?<=\p{GCB=Other})\p{GCB=Other}")
_AT_ONCE = 64  # characters


def boundaries(text: str, start: int) -> Iterator[int]:
    """The positions from `start` on at which a cluster begins, and finally the end of the text."""
    before = _SURE.search(text, 0, start + 1)
    position = before.start() if before else 0
    while position < len(text):
        if position >= start:
            yield position
        position += _cluster_length(text, position)
    yield len(text)


def _cluster_length(text: str, start: int) -> int:
    """Length of the cluster that begins at `start`. It is searched for in a slice, because `regex` would look back over
    all flags (🇯🇵) before this one."""
    size = _AT_ONCE
    while True:
        part = text[start : start + size]
        end: int = _CLUSTER.match(part).end()
        if end < len(part) or start + size >= len(text):
            return end
        size *= 2
