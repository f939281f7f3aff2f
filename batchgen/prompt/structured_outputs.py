"""Structured outputs: checking that a schema, regex or grammar can be used, before an engine gets it."""

import json
from typing import Any

import msgspec

from ..job.sampling import StructuredOutputs


def as_json(wanted: StructuredOutputs) -> str:
    """The same as JSON, with sorted keys."""
    return msgspec.json.encode(wanted, order="deterministic").decode()


def problem(wanted_json: str, compiler: Any, any_whitespace: bool) -> str:
    """Why xgrammar, vLLM's backend for structured outputs, refuses them; "" if it accepts. That may take any amount of
    time and memory: see checker.py.

    Args:
        wanted_json: structured outputs, from `as_json`.
        compiler: xgrammar's, for the model's tokenizer.
        any_whitespace: whether JSON may have white space between its parts.
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
        return str(error).partition(": ")[2].strip() or str(error)  # without xgrammar's time and source location
    return ""
