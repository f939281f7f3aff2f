"""JSON by a schema: no white space between its parts, whatever the schema says or leaves open."""

import json
from types import SimpleNamespace

import pytest
from xgrammar import GrammarCompiler, GrammarMatcher, TokenizerInfo, VocabType

from batchgen.engine.installed import SPACED_JSON
from batchgen.engine.vllm import _compact_json
from batchgen.prompt.structured_outputs import compile_compact, problem
from batchgen.runner.worker_process import _of_its_format

INTEGER = {"type": "integer"}
TWO = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}}
CLOSED = {**TWO, "additionalProperties": False}
NAMED = {"type": "object", "properties": {"a": {"enum": ["x, y: z"]}, "b": {}}, "required": ["a", "b"]}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    signs = [*(chr(code) for code in range(128)), "</s>"]
    tokens = TokenizerInfo(signs, vocab_type=VocabType.RAW, stop_token_ids=[128])
    return GrammarCompiler(tokens, max_threads=1, cache_enabled=False)


def takes(grammar, text: str) -> bool:
    matcher = GrammarMatcher(grammar)
    return matcher.accept_string(text) and matcher.is_completed()


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (CLOSED, {"a": 1, "b": 2}),
        ({**CLOSED, "required": ["b"]}, {"a": 1, "b": 2}),
        ({"type": "object", "additionalProperties": INTEGER, "minProperties": 2}, {"q": 1, "r": 2}),
        ({"type": "object", "patternProperties": {"^[ab]$": INTEGER}, "additionalProperties": False}, {"a": 1, "b": 2}),
        ({"type": "array", "items": INTEGER}, [1, 2, 3]),
        ({"type": "array", "prefixItems": [INTEGER, INTEGER], "items": False}, [1, 2]),
        ({"type": "object"}, {"q": [1, {"r": [], "s": None}], "t": {"u": 1.5, "v": "a, b: c"}}),
        ({"type": "array"}, [1, [2, {"a": 1, "b": True}]]),
        (NAMED, {"a": "x, y: z", "b": [1, {"c": 2, "d": 3}]}),
    ],
)
def test_only_json_without_white_space_is_taken(compiler, schema, value):
    grammar = compile_compact(compiler, json.dumps(schema))
    assert takes(grammar, json.dumps(value, separators=(",", ":")))
    for separators in ((", ", ":"), (",", ": "), (", ", ": ")):
        spaced = json.dumps(value, separators=separators)
        assert takes(grammar, spaced) is (spaced == json.dumps(value, separators=(",", ":")))
    assert not takes(grammar, json.dumps({"a": "x"}))


def test_a_schema_that_xgrammar_refuses_is_refused_for_its_reason(compiler):
    wanted = json.dumps({"json": {"type": "nope"}})
    assert "nope" in problem(wanted, compiler, False)
    assert problem(wanted, compiler, False) == problem(wanted, compiler, True)


def test_an_engine_of_an_older_folder_leaves_json_to_vllm(monkeypatch):
    def theirs(self, schema, **settings):
        return settings

    monkeypatch.setattr(GrammarCompiler, "compile_json_schema", theirs)
    for folder_format, is_ours in ((3, False), (4, True)):
        monkeypatch.delenv(SPACED_JSON, raising=False)
        for name, value in _of_its_format(SimpleNamespace(record=SimpleNamespace(format=folder_format))).items():
            monkeypatch.setenv(name, value)
        _compact_json()
        assert (GrammarCompiler.compile_json_schema is not theirs) is is_ours
