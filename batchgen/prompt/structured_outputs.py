"""Structured outputs: checking that a schema, regex or grammar can be used, before an engine gets it; and JSON without
white space, whichever vLLM compiles its schema."""

import json
from typing import Any

import msgspec

from ..job.sampling import StructuredOutputs

# xgrammar's own rules for what a schema leaves open have ", " whatever the separators are (0.2.7, 0.2.8).
_LEFT_OPEN = ("basic_array_items ::= ((", "basic_object_properties ::= ((")


def as_json(wanted: StructuredOutputs) -> str:
    """The same as JSON, with sorted keys."""
    return msgspec.json.encode(wanted, order="deterministic").decode()


def compile_compact(compiler: Any, schema: Any) -> Any:
    """What xgrammar's `compile_json_schema` makes of a schema, for JSON without any white space between its parts."""
    from xgrammar import Grammar

    grammar = str(Grammar.from_json_schema(schema, any_whitespace=False, separators=(",", ":")))
    for rule in _LEFT_OPEN:
        grammar = grammar.replace(f'{rule}", "', f'{rule}","')
    return compiler.compile_grammar(grammar)


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
            if any_whitespace:
                compiler.compile_json_schema(schema)
            else:
                compile_compact(compiler, schema)
        elif wanted.regex is not None:
            compiler.compile_regex(wanted.regex)
        elif wanted.grammar is not None:
            compiler.compile_grammar(wanted.grammar)
        elif wanted.choice is not None:
            compiler.compile_grammar("root ::= " + " | ".join(map(json.dumps, wanted.choice)))
    except RuntimeError as error:
        return str(error).partition(": ")[2].strip() or str(error)  # without xgrammar's time and source location
    return ""
