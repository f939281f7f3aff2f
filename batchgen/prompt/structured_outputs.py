"""Structured outputs: whether a schema, regex or grammar can be followed, checked before an engine sees it."""

import json
from typing import Any

import msgspec

from ..job.sampling import StructuredOutputs


def as_json(wanted: StructuredOutputs) -> str:
    return msgspec.json.encode(wanted, order="deterministic").decode()


def problem(wanted_json: str, compiler: Any, any_whitespace: bool) -> str:
    """What xgrammar, vLLM's own backend for structured outputs, says against them; empty if nothing. It may take any
    time and memory to say so (checker.py).

    compiler: xgrammar's, for the model's tokenizer.
    """
    wanted = msgspec.json.decode(wanted_json, type=StructuredOutputs)
    try:
        if wanted.json is not None:
            schema = wanted.json if isinstance(wanted.json, str) else msgspec.json.encode(wanted.json).decode()
            compiler.compile_json_schema(schema, any_whitespace=any_whitespace)
        elif wanted.regex is not None:
            compiler.compile_regex(wanted.regex)
        elif wanted.grammar is not None:
            compiler.compile_grammar(wanted.grammar)
        elif wanted.choice is not None:
            compiler.compile_grammar("root ::= " + " | ".join(map(json.dumps, wanted.choice)))
    except RuntimeError as error:
        return str(error).partition(": ")[2].strip() or str(error)  # behind time and place in its source
    return ""
