"""Structured outputs: whether a schema, regex or grammar can be followed, checked before an engine sees it."""

from functools import lru_cache

import msgspec

from .sampling import Sampling, StructuredOutputs


def as_json(wanted: StructuredOutputs) -> str:
    return msgspec.json.encode(wanted, order="deterministic").decode()


def check(params: Sampling, vocab_size: int) -> None:
    """What parameters must fit beside their ranges: the model's ids, and xgrammar, vLLM's own backend for structured
    outputs. Raises ValueError."""
    params.check_ids(vocab_size)
    if params.structured_outputs and (problem := _problem(as_json(params.structured_outputs))):
        raise ValueError(f"structured_outputs: {problem}")


@lru_cache(maxsize=1024)  # rows mostly share a few of them
def _problem(wanted_json: str) -> str:
    from xgrammar import Grammar  # brings torch, 2 s: only jobs with structured outputs pay for it

    wanted = msgspec.json.decode(wanted_json, type=StructuredOutputs)
    try:
        if wanted.json is not None:
            schema = wanted.json if isinstance(wanted.json, str) else msgspec.json.encode(wanted.json).decode()
            Grammar.from_json_schema(schema)
        elif wanted.regex is not None:
            Grammar.from_regex(wanted.regex)
        elif wanted.grammar is not None:
            Grammar.from_ebnf(wanted.grammar)
    except RuntimeError as error:
        return str(error).partition(": ")[2].strip() or str(error)  # behind time and place in its source
    return ""
