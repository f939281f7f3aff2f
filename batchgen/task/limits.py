"""What a row may ask for: how large its own parameters may be, before anything looks at them that may take long."""

from collections.abc import Iterator
from typing import Any

import msgspec

from ..job.sampling import Sampling, StructuredOutputs
from ..job.spec import LimitsTable
from ..prompt.structured_outputs import as_json


def check(asked: Sampling, n: int, usual: Sampling, limits: LimitsTable) -> None:
    """Raises ValueError for the first size that is beyond its limit. usual: the job's own parameters, which have
    none."""
    for key, what, size in _sizes(asked, n, usual):
        if size > (most := getattr(limits, key)):
            raise ValueError(f"{what}: {size:,}, and [limits] {key} allows {most:,}")


def _sizes(asked: Sampling, n: int, usual: Sampling) -> Iterator[tuple[str, str, int]]:
    yield "n", "n", n
    if asked.max_tokens != usual.max_tokens:
        yield "max_tokens", "max_tokens", asked.max_tokens
    if asked.stop != usual.stop:
        yield "stop", "stop texts", len(asked.stop)
        yield "text_bytes", "bytes of a stop text", _longest(asked.stop)
    if asked.bad_words != usual.bad_words:
        yield "text_bytes", "bytes of a bad word", _longest(asked.bad_words)
    if asked.structured_outputs and asked.structured_outputs != usual.structured_outputs:
        yield from _sizes_of_structure(asked.structured_outputs)


def _longest(texts: list[str]) -> int:
    return max((len(text.encode()) for text in texts), default=0)


def _sizes_of_structure(wanted: StructuredOutputs) -> Iterator[tuple[str, str, int]]:
    yield "choices", "choices", len(wanted.choice or ())
    yield "schema_bytes", "bytes of structured_outputs", len(as_json(wanted).encode())
    if wanted.json is None:
        return
    try:
        schema = msgspec.json.decode(wanted.json) if isinstance(wanted.json, str) else wanted.json
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"structured_outputs: json: {error}") from None
    depth, properties, values = _measured(schema)
    yield "schema_depth", "depth of the schema", depth
    yield "schema_properties", "properties in the schema", properties
    yield "choices", "values of enum in the schema", values


def _measured(schema: Any) -> tuple[int, int, int]:
    """Depth, properties and values of enum of a JSON schema: what the time to compile it grows with, the depth by its
    third power."""
    deepest = properties = values = 0
    left = [(schema, 1)]
    while left:
        node, depth = left.pop()
        if isinstance(node, dict):
            inner = list(node.values())
            properties += sum(len(node[key]) for key in ("properties", "patternProperties") if _has_parts(node, key))
            values += len(node["enum"]) if _has_parts(node, "enum") else 0
        elif isinstance(node, list):
            inner = node
        else:
            continue
        deepest = max(deepest, depth)
        left += [(part, depth + 1) for part in inner]
    return deepest, properties, values


def _has_parts(node: dict[str, Any], key: str) -> bool:
    return isinstance(node.get(key), dict | list)
