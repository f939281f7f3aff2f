"""Where a text may be cut without splitting a character that people see as one: between extended grapheme clusters."""

from collections.abc import Iterator

import regex

_CLUSTER = regex.compile(r"\X")
# Between two of these there always is a boundary, whatever stands around them (Unicode's UAX #29, GB999).
_SURE = regex.compile(r"(?r)(?<=\p{GCB=Other})\p{GCB=Other}")
_AT_ONCE = 64  # characters


def boundaries(text: str, start: int) -> Iterator[int]:
    """The positions from `start` on at which a cluster begins; the end of the text is the last."""
    before = _SURE.search(text, 0, start + 1)
    position = before.start() if before else 0
    while position < len(text):
        if position >= start:
            yield position
        position += _cluster_length(text, position)
    yield len(text)


def _cluster_length(text: str, start: int) -> int:
    """Of the cluster that begins at `start`. It is looked for in a slice: `regex` would look back over all flags ahead
    of this one."""
    size = _AT_ONCE
    while True:
        part = text[start : start + size]
        end: int = _CLUSTER.match(part).end()
        if end < len(part) or start + size >= len(text):
            return end
        size *= 2
