"""What the rows of well-known datasets become: nothing that belongs to their format is dropped, and no column that is
just called like one of ours breaks a row."""

import json
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.errors import Reject
from batchgen.input.conversation import ASSISTANT, SYSTEM, USER, Row
from batchgen.input.plan import plan_input
from batchgen.input.rows import read_rows
from batchgen.input.shapes import COLUMNS, SHAPES, from_record, shape_of
from batchgen.job.spec import InputFormat

U, A, S = USER, ASSISTANT, SYSTEM
TALK = [(U, "One"), (A, "Two"), (U, "Three")]


def roles(*texts, who="role", what="content", names=("user", "assistant")):
    return [{who: names[number % 2], what: text} for number, text in enumerate(texts)]


ASKED = roles("Hi")
TURNS = roles("One", "Two", "Three")
PAIRS = roles("One", "Two", "Three", who="from", what="value", names=("human", "gpt"))
TREE = {
    "role": "prompter",
    "text": "One",
    "replies": [
        {"role": "assistant", "text": "Worse", "rank": 1, "replies": []},
        {
            "role": "assistant",
            "text": "Two",
            "rank": 0,
            "replies": [{"role": "prompter", "text": "Three", "rank": None, "replies": []}],
        },
    ],
}
CHATML = "<|im_start|>system\nBe curt.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"

# name of the dataset or form -> (shape, row, conversation)
READ = {
    "model card": ("speaker", {"conversation": [{"speaker": who, "text": text} for who, text in TALK]}, TALK),
    "LMSYS-Chat, WildChat": ("openai", {"conversation": TURNS, "model": "m", "turn": 2}, TALK),
    "conversations by role": ("openai", {"conversations": TURNS}, TALK),
    "conversation by from": ("sharegpt", {"conversation": PAIRS}, TALK),
    "ShareGPT's items": ("sharegpt", {"id": "x", "items": PAIRS}, TALK),
    "mixed keys": ("openai", {"messages": roles("One", "Two", "Three", what="value")}, TALK),
    "speaker and content": ("speaker", {"messages": [{"speaker": "Human", "content": "Hi"}]}, [(U, "Hi")]),
    "roles in any case": ("openai", {"messages": roles("One", "Two", "Three", names=("USER", "GPT-4"))}, TALK),
    "old models as speakers": (
        "sharegpt",
        {"conversations": roles("One", "Two", "Three", who="from", what="value", names=("prompter", "Claude-2.1"))},
        TALK,
    ),
    "top-level system": ("openai", {"system": "Be curt.", "messages": ASKED}, [(S, "Be curt."), (U, "Hi")]),
    "system_prompt": ("sharegpt", {"system_prompt": "Be curt.", "conversations": PAIRS}, [(S, "Be curt."), *TALK]),
    "one system twice": (
        "openai",
        {"system": "Be curt.", "messages": [{"role": "system", "content": "Be curt."}, *ASKED]},
        [(S, "Be curt."), (U, "Hi")],
    ),
    "system of another type": ("openai", {"system": 7, "messages": ASKED}, [(U, "Hi")]),
    "blank system turn": ("openai", {"messages": [{"role": "system", "content": " "}, *ASKED]}, [(U, "Hi")]),
    "null system turn": ("openai", {"messages": [{"role": "system", "content": None}, *ASKED]}, [(U, "Hi")]),
    "placeholder answer": ("openai", {"messages": roles("Hi", "")}, [(U, "Hi")]),
    "null placeholder answer": ("openai", {"messages": roles("Hi", None)}, [(U, "Hi")]),
    "answer without content": ("openai", {"messages": [*ASKED, {"role": "assistant"}]}, [(U, "Hi")]),
    "parts": (
        "openai",
        {"messages": roles([{"type": "text", "text": "One"}, {"type": "input_text", "text": "Two"}, "Three"])},
        [(U, "One\nTwo\nThree")],
    ),
    "refusal": (
        "openai",
        {"messages": [*roles("One"), {"role": "assistant", "content": None, "refusal": "Two"}, *roles("Three")]},
        TALK,
    ),
    "part of refusal": (
        "openai",
        {"messages": roles("One", [{"type": "refusal", "refusal": "Two"}], "Three")},
        TALK,
    ),
    "struct of lists": (
        "openai",
        {"messages": {"role": ["user", "assistant", "user"], "content": ["One", "Two", "Three"]}},
        TALK,
    ),
    "columns of lists": (
        "openai",
        {"role": ["user", "assistant", "user"], "content": ["One", "Two", "Three"]},
        TALK,
    ),
    "maps": ("openai", {"messages": [[("role", "user"), ("content", "Hi")]]}, [(U, "Hi")]),
    "JSON text": ("openai", {"messages": json.dumps(TURNS)}, TALK),
    "no tools": ("openai", {"messages": ASKED, "tools": [], "parallel_tool_calls": False}, [(U, "Hi")]),
    "batch file": ("openai-batch", {"custom_id": "a", "body": {"model": "m", "messages": TURNS}}, TALK),
    "completions": (
        "openai-batch",
        {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "Hi", "max_tokens": 5}},
        [(U, "Hi")],
    ),
    "responses": (
        "openai-batch",
        {"url": "/v1/responses", "body": {"input": "Hi", "instructions": "Be curt."}},
        [(S, "Be curt."), (U, "Hi")],
    ),
    "responses with a list": ("openai-batch", {"url": "/v1/responses", "body": {"input": TURNS}}, TALK),
    "Anthropic's batches": (
        "anthropic-batch",
        {"custom_id": "a", "params": {"max_tokens": 9, "system": "Be curt.", "messages": ASKED}},
        [(S, "Be curt."), (U, "Hi")],
    ),
    "OpenAI's preferences": (
        "openai-preference",
        {"input": {"messages": ASKED}, "preferred_output": roles("x"), "non_preferred_output": roles("y")},
        [(U, "Hi")],
    ),
    "OASST": ("oasst", {"message_tree_id": "t", "prompt": TREE}, TALK),
    "TRL, prompt": ("preference", {"prompt": TURNS}, TALK),
    "TRL, preferences": (
        "preference",
        {"prompt": ASKED, "chosen": [roles("", "Yo")[1]], "rejected": [roles("", "No")[1]]},
        [(U, "Hi")],
    ),
    "TRL, prompt in the answers": (
        "preference",
        {"chosen": roles("One", "Two", "Three", "Yes"), "rejected": roles("One", "Two", "Three", "No")},
        TALK,
    ),
    "TRL, prompt as text": (
        "prompt",
        {"prompt": "Hi", "chosen": roles("Hi", "Yo"), "rejected": roles("Hi", "No")},
        [(U, "Hi")],
    ),
    "TRL, texts": ("prompt", {"prompt": "Hi", "chosen": "Yo", "rejected": "No"}, [(U, "Hi")]),
    "HH-RLHF": ("hh", {"chosen": "\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three"}, TALK),
    "full-hh-rlhf, rm-static": (
        "hh",
        {"prompt": "\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:", "chosen": " x", "response": " x"},
        TALK,
    ),
    "HH, one newline": ("hh", {"chosen": "Human: One\nAssistant: Two\nHuman: Three"}, TALK),
    "HH, CRLF": ("hh", {"chosen": "\r\n\r\nHuman: One\r\n\r\nAssistant: Two\r\n\r\nHuman: Three"}, TALK),
    "HH, blank in the blank line": ("hh", {"text": "\n\nHuman: One\n \nAssistant: Two\n\nHuman: Three"}, TALK),
    "HH, cue without colon": ("hh", {"chosen": "\n\nHuman: Hi\n\nAssistant"}, [(U, "Hi")]),
    "HH, system": ("hh", {"chosen": "\n\nSystem: Be curt.\n\nHuman: Hi"}, [(S, "Be curt."), (U, "Hi")]),
    "User and Assistant": ("hh", {"text": "User: One\nAssistant: Two\nUser: Three"}, TALK),
    "guanaco": ("guanaco", {"text": "### Human: One### Assistant: Two### Human: Three"}, TALK),
    "ChatML": ("chatml", {"text": CHATML}, [(S, "Be curt."), (U, "Hi")]),
    "Llama 2": ("llama2", {"text": "<s>[INST] One [/INST] Two </s><s>[INST] Three [/INST]"}, TALK),
    "Llama 2, system": (
        "llama2",
        {"text": "[INST] <<SYS>>\nBe curt.\n<</SYS>>\n\nHi [/INST]"},
        [(S, "Be curt."), (U, "Hi")],
    ),
    "FLAN": ("flan", {"inputs": "Hi", "targets": "", "_template_idx": 3}, [(U, "Hi")]),
    "P3": ("flan", {"inputs": [3, 4], "inputs_pretokenized": "Hi", "targets": []}, [(U, "Hi")]),
    "Dolly": ("dolly", {"instruction": "Which?", "context": "The Arno."}, [(U, "Which?\nThe Arno.")]),
    "Dolly without context": ("dolly", {"instruction": "Which?", "context": "", "response": ""}, [(U, "Which?")]),
    "alpaca": ("alpaca", {"instruction": "Which?", "input": "The Arno.", "output": ""}, [(U, "Which?\nThe Arno.")]),
    "alpaca with preferences": (
        "alpaca",
        {"instruction": "Hi", "input": "", "chosen": "a", "rejected": "b"},
        [(U, "Hi")],
    ),
    "LLaMA-Factory": (
        "alpaca",
        {"instruction": "Three", "input": "", "system": "Be curt.", "history": [["One", "Two"]]},
        [(S, "Be curt."), *TALK],
    ),
    "OpenOrca": (
        "orca",
        {"id": "niv.1", "system_prompt": "Be curt.", "question": "Hi", "response": None},
        [(S, "Be curt."), (U, "Hi")],
    ),
    "orca_dpo_pairs": ("orca", {"system": "", "question": "Hi", "chosen": "Yo", "rejected": "No"}, [(U, "Hi")]),
    "prompt and system": ("prompt", {"prompt": "Hi", "system": "Be curt."}, [(S, "Be curt."), (U, "Hi")]),
    "prompt and history": ("prompt", {"prompt": "Three", "history": [["One", "Two"]]}, TALK),
    "LIMA": ("list", {"conversations": ["One", "Two", "Three"], "source": "x"}, TALK),
    "UltraChat": ("list", {"id": "0", "data": ["One", "Two", "Three"]}, TALK),
    "FastChat": ("fastchat", {"question_id": 81, "category": "x", "turns": ["Hi"]}, [(U, "Hi")]),
    "ichikara": ("text", {"ID": "i-1", "text": "Hi", "output": "Yo"}, [(U, "Hi")]),
    "binary text": ("text", {"text": "月曜日".encode()}, [(U, "月曜日")]),
    "binary roles": ("openai", {"messages": [{"role": b"user", "content": b"Hi"}]}, [(U, "Hi")]),
    # the user's own columns
    "conversation is a name": ("text", {"text": "Hi", "conversation": "hh"}, [(U, "Hi")]),
    "messages is a number": ("text", {"text": "Hi", "messages": 3}, [(U, "Hi")]),
    "messages is empty": ("text", {"text": "Hi", "messages": []}, [(U, "Hi")]),
    "chosen is a flag": ("text", {"text": "Hi", "chosen": True}, [(U, "Hi")]),
    "inputs is blank": ("text", {"text": "Hi", "inputs": ""}, [(U, "Hi")]),
    "inputs is an object": ("prompt", {"prompt": "Hi", "inputs": {"a": 1}}, [(U, "Hi")]),
    "prompt is blank": ("text", {"text": "Hi", "prompt": " "}, [(U, "Hi")]),
    "body is an object": ("text", {"text": "Hi", "body": {"a": 1}}, [(U, "Hi")]),
    "params is an object": ("text", {"text": "Hi", "params": {"lr": 0.1}}, [(U, "Hi")]),
    "turns is a number": ("text", {"text": "Hi", "turns": 3}, [(U, "Hi")]),
    "data is a list of numbers": ("text", {"text": "Hi", "data": [1, 2]}, [(U, "Hi")]),
    "system beside text": ("text", {"text": "Hi", "system": "Windows"}, [(U, "Hi")]),
    "history is a word": ("prompt", {"prompt": "Hi", "history": "1900-1950"}, [(U, "Hi")]),
    "question beside a prompt": ("prompt", {"prompt": "Hi", "question": "x"}, [(U, "Hi")]),
    "response beside a prompt": ("prompt", {"prompt": "Hi", "response": "Yo"}, [(U, "Hi")]),
    "Human: alone": ("text", {"text": "Human: a short history"}, [(U, "Human: a short history")]),
    "User: within a text": ("text", {"text": "Say\nUser: x\nAssistant: y"}, [(U, "Say\nUser: x\nAssistant: y")]),
}


@pytest.mark.parametrize("name", READ)
def test_rows_of_well_known_datasets(name):
    shape, record, conversation = READ[name]
    assert shape_of(record) == shape
    assert from_record(record) == conversation
    assert from_record(record, shape) == conversation


def test_every_shape_has_its_example_here():
    assert {shape for shape, _, _ in READ.values()} == set(SHAPES)


# What ends with an answer that is known: rejected with a hint, or answered anew if the job says so.
ANSWERED = {
    "openai": ({"messages": roles("Hi", "Yo")}, [(U, "Hi")]),
    "tool call": ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, [(U, "Hi")]),
    "Dolly": ({"instruction": "Hi", "context": "x", "response": "Yo"}, [(U, "Hi\nx")]),
    "OpenOrca": ({"system_prompt": "", "question": "Hi", "response": "Yo"}, [(U, "Hi")]),
    "FLAN": ({"inputs": "Hi", "targets": ["Yo", "Hey"]}, [(U, "Hi")]),
    "TRL, completion": ({"prompt": ASKED, "completion": [roles("", "Yo")[1]]}, [(U, "Hi")]),
    "TRL, chosen alone": ({"chosen": roles("Hi", "Yo")}, [(U, "Hi")]),
    "LIMA": ({"conversations": ["Hi", "Yo"]}, [(U, "Hi")]),
    "guanaco": ({"text": "### Human: Hi### Assistant: Yo"}, [(U, "Hi")]),
    "OASST": ({"prompt": TREE | {"replies": [TREE["replies"][0]]}}, [(U, "One")]),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_an_answer_at_the_end_is_left_out_only_if_asked_for(name):
    record, conversation = ANSWERED[name]
    with pytest.raises(Reject) as caught:
        from_record(record)
    assert caught.value.reason == "bad_shape"
    assert from_record(record, drop_last_response=True) == conversation


# What belongs to a format and cannot be used: row -> (reason, word of the detail)
REFUSED = {
    "tools": ({"messages": ASKED, "tools": [{"name": "f"}]}, "bad_shape", "tools"),
    "tools as JSON text": ({"conversations": PAIRS, "tools": '[{"name": "f"}]'}, "bad_shape", "tools"),
    "turn of a tool": ({"conversations": [{"from": "observation", "value": "x"}]}, "unknown_speaker", "tool turns"),
    "call of a tool": (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}, *ASKED]},
        "bad_shape",
        "tool calls are",
    ),
    "image": (
        {"messages": roles([{"type": "image_url", "image_url": {"url": "x"}}])},
        "bad_shape",
        "only text is supported",
    ),
    "image beside turns": (
        {"image": "x.jpg", "conversations": [{"from": "human", "value": "<image>\nHi"}]},
        "bad_shape",
        "image",
    ),
    "unknown speaker": ({"messages": [{"role": "alien", "content": "x"}]}, "unknown_speaker", "alien"),
    "embeddings": ({"url": "/v1/embeddings", "body": {"input": "Hi"}}, "bad_shape", "/v1/embeddings"),
    "several prompts": ({"url": "/v1/completions", "body": {"prompt": ["a", "b"]}}, "bad_shape", "several"),
    "earlier response": ({"body": {"input": "Hi", "previous_response_id": "r"}}, "bad_shape", "earlier response"),
    "context is a list": ({"instruction": "Hi", "context": ["a"]}, "bad_shape", "context"),
    "history is text": ({"instruction": "Hi", "history": "x"}, "bad_shape", "history"),
    "several questions": ({"turns": ["Hi", "Rewrite that"]}, "bad_shape", "turns"),
    "empty turn in a transcript": ({"chosen": "\n\nHuman: Hi\n\nAssistant: \n\nHuman: x"}, "empty", "turn 1"),
    "text that is not UTF-8": ({"text": b"R\xc9UNION"}, "invalid_utf8", "text"),
    "input beside an instruction": ({"instruction": "Hi", "input": 3}, "bad_shape", "input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_by_name(name):
    record, reason, word = REFUSED[name]
    with pytest.raises(Reject) as caught:
        from_record(record)
    assert caught.value.reason == reason
    assert word in caught.value.detail


def test_two_answers_at_the_end():
    with pytest.raises(Reject, match="ends with an answer even after dropping its last response"):
        from_record({"messages": [*roles("Hi", "A"), {"role": "assistant", "content": "B"}]}, drop_last_response=True)


def test_the_first_of_several_questions_if_the_format_is_given():
    assert from_record({"turns": ["Hi", "Rewrite that"]}, "fastchat") == [(U, "Hi")]


def test_a_given_format_takes_a_text_as_it_is():
    assert from_record({"text": "Human: One\nAssistant: Two"}, "text") == [(U, "Human: One\nAssistant: Two")]


def test_parquet_gives_what_json_gives(tmp_path):
    rows = {
        "struct of lists": pa.array([{"role": ["user"], "content": ["Hi"]}]),
        "map": pa.array([[[("role", "user"), ("content", "Hi")]]], pa.list_(pa.map_(pa.string(), pa.string()))),
        "parts": pa.array([[{"role": "user", "content": [{"type": "text", "text": "Hi", "image_url": None}]}]]),
        "binary": pa.array([[{"role": b"user", "content": b"Hi"}]]),
    }
    for name, column in rows.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"messages": column}), path)
        plan = plan_input([str(path)], 10)
        [row] = read_rows(plan, plan.shards[0], COLUMNS)
        assert from_record(row.record()) == [(U, "Hi")], name


# --- lines


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "Hi", "score": NaN}', "Hi"),
        (b'{"text": "Hi", "score": -Infinity}', "Hi"),
        (b'{"text": "Hi", "score": 1e999}', "Hi"),
        (b'{"text": "Hi", "meta": ["\\udc00"]}', "Hi"),
        (b'{"text": "Hi", "\\ud800": 1}', "Hi"),
        (b'{"text": "\\ud83d\\ude00"}', "\U0001f600"),
        (b'\xef\xbb\xbf{"text": "Hi"}', "Hi"),
        (b'{"text": "x", "text": "Hi"}', "Hi"),
    ],
)
def test_lines_that_other_readers_take(line, text):
    assert from_record(Row(0, line).record()) == [(U, text)]


@pytest.mark.parametrize(
    ("line", "reason", "word"),
    [
        (b'{"text": "Hi \\ud83d"}', "invalid_json", "surrogate"),
        (b'{"instruction": "Hi", "input": "\\udc00"}', "invalid_json", "input"),
        ('{"text": "Hi"}'.encode("utf-16"), "invalid_utf8", "UTF-16"),
        ('{"text": "Hi"}'.encode("utf-16-le"), "invalid_json", "UTF-16"),
        (b'{"text": "Hi", "n": ' + b"9" * 5000 + b", NaN}", "invalid_json", ""),
        (b'{"a": NaN, "b": ' + b"[" * 100_000, "invalid_json", ""),
    ],
)
def test_lines_that_nobody_can_read(line, reason, word):
    with pytest.raises(Reject) as caught:
        from_record(Row(0, line).record())
    assert caught.value.reason == reason
    assert word in caught.value.detail


_texts = st.text(max_size=12) | st.sampled_from(
    ["user", "assistant", "Human: a\n\nAssistant:", "### Human: a", CHATML, "[INST] a [/INST]", '[{"role": "user"}]']
)
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | _texts | st.binary(max_size=5)
_turns = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "speaker", "text", "replies"]), _texts, max_size=3
    )
)
_values = st.recursive(
    _scalars | _turns,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(COLUMNS) | _texts, inner, max_size=3)
        | st.lists(st.tuples(_texts, inner), max_size=2)
    ),
    max_leaves=10,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # of a busy machine
@given(st.dictionaries(st.sampled_from(COLUMNS), _values, max_size=4), st.booleans())
def test_any_record_in_any_format_is_a_conversation_or_a_reject(record, drop):
    for shape in ("auto", *SHAPES):
        try:
            turns = from_record(record, shape, drop)
        except Reject as why:
            assert why.reason in ("bad_shape", "unknown_speaker", "empty", "invalid_utf8")
        else:
            assert turns[-1].speaker == USER
            assert all(turn.text.strip() for turn in turns)


def test_every_shape_can_be_named_in_a_job_file_and_no_other():
    assert get_args(InputFormat) == ("auto", *SHAPES)
