"""JSON that holds a digest of itself, so that damage is noticed."""

from typing import Any, TypeVar

import msgspec

from ..job.drift import fingerprint

Facts = TypeVar("Facts", bound=msgspec.Struct)


def sealed(facts: msgspec.Struct) -> bytes:
    table = msgspec.to_builtins(facts)
    return msgspec.json.encode({**table, "digest": fingerprint(table)})


def unsealed(content: bytes, kind: type[Facts]) -> Facts:
    """What `sealed` made. Raises ValueError if any of it has changed since."""
    try:
        return msgspec.convert(opened(content), kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def opened(content: bytes) -> dict[str, Any]:
    """The same, whatever its fields are."""
    try:
        table = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if table.pop("digest", "") != fingerprint(table):
        raise ValueError("it does not fit its own digest")
    return table
