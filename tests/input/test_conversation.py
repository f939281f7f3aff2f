"""Record shapes: each dialect becomes the same conversation; what does not is rejected with its reason."""

import json

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import MODEL
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import Reject
from batchgen.input.conversation import row_id, split_system, with_system_ahead
from batchgen.input.shapes import SHAPES, from_record, shape_of
from batchgen.input.template import Template
from batchgen.job.spec import InputFormat

TALK = [("ユーザー", "Monday"), ("システム", "月曜日"), ("ユーザー", "Friday")]

SAME = {
    "speaker": {"conversation": [{"speaker": speaker, "text": text} for speaker, text in TALK]},
    "openai": {
        "messages": [
            {"role": "user", "content": "Monday"},
            {"role": "assistant", "content": "月曜日"},
            {"role": "user", "content": [{"type": "text", "text": "Friday"}]},
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Monday"},
            {"from": "gpt", "value": "月曜日"},
            {"from": "human", "value": "Friday"},
        ]
    },
    "hh": {"chosen": "\n\nHuman: Monday\n\nAssistant: 月曜日\n\nHuman: Friday\n\nAssistant:"},
}
SAME["openai-batch"] = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": SAME["openai"]}

SINGLE = {
    "prompt": {"prompt": "Monday", "completion": None},
    "text": {"text": "Monday"},
    "flan": {"inputs": "Monday", "targets": ""},
    "alpaca": {"instruction": "Monday", "input": "", "output": ""},
}

ANSWERED = {
    "speaker": {"conversation": SAME["speaker"]["conversation"][:2]},
    "openai": {"messages": SAME["openai"]["messages"][:2]},
    "sharegpt": {"conversations": SAME["sharegpt"]["conversations"][:2]},
    "hh": {"chosen": "\n\nHuman: Monday\n\nAssistant: 月曜日", "rejected": "\n\nHuman: Monday\n\nAssistant: No"},
    "prompt": {"prompt": "Monday", "completion": "月曜日"},
    "flan": {"inputs": "Monday", "targets": "月曜日"},
    "alpaca": {"instruction": "Monday", "input": "", "output": "月曜日"},
}


@pytest.mark.parametrize("shape", SAME)
def test_every_dialect_gives_the_same_conversation(shape):
    assert from_record(SAME[shape]) == TALK
    assert from_record(SAME[shape], shape) == TALK


@pytest.mark.parametrize("shape", SINGLE)
def test_single_questions(shape):
    assert from_record(SINGLE[shape]) == [("ユーザー", "Monday")]
    assert from_record(SINGLE[shape], shape) == [("ユーザー", "Monday")]


@pytest.mark.parametrize("shape", SAME | SINGLE)
def test_the_shape_is_recognised_by_its_columns(shape):
    assert shape_of((SAME | SINGLE)[shape]) == shape


@pytest.mark.parametrize("shape", ANSWERED)
def test_a_final_answer_is_rejected_or_left_out_as_asked(shape):
    with pytest.raises(Reject) as caught:
        from_record(ANSWERED[shape])
    assert caught.value.reason == "bad_shape"
    assert "drop_last_response" in caught.value.detail
    assert from_record(ANSWERED[shape], drop_last_response=True) == [("ユーザー", "Monday")]


def test_alpacas_input_stands_below_the_instruction():
    record = {"instruction": "Translate", "input": "Monday", "output": None}
    assert from_record(record) == [("ユーザー", "Translate\nMonday")]


@pytest.mark.parametrize("column", ["prompt", "text", "chosen"])
def test_a_transcript_is_recognised_in_any_text_column(column):
    assert from_record({column: SAME["hh"]["chosen"]}) == TALK


def test_a_transcript_keeps_blank_lines_inside_a_turn():
    record = {"chosen": "\n\nHuman: one\n\ntwo\n\nAssistant: ok\n\nHuman: x"}
    assert from_record(record)[0].text == "one\n\ntwo"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_goes_ahead_of_the_first_user_utterance_and_never_into_the_assistant(role):
    messages = [{"role": role, "content": "Be brief."}, *SAME["openai"]["messages"]]
    system, said = split_system(from_record({"messages": messages}))
    assert with_system_ahead(system, said) == [("ユーザー", "Be brief.\nMonday"), *TALK[1:]]


def test_sharegpt_system_messages_too():
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Monday"}]
    assert with_system_ahead(*split_system(from_record({"conversations": turns}))) == [
        ("ユーザー", "Be brief.\nMonday")
    ]


REJECTS = {
    "tool message": ({"messages": [{"role": "tool", "content": "x"}]}, "unknown_speaker"),
    "image part": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "bad_shape"),
    "no content": ({"messages": [{"role": "user", "content": None}]}, "bad_shape"),
    "messages is text": ({"messages": "hi"}, "bad_shape"),
    "body without messages": ({"custom_id": "a", "body": {}}, "bad_shape"),
    "body is text": ({"custom_id": "a", "body": "x"}, "bad_shape"),
    "only a system message": ({"messages": [{"role": "system", "content": "x"}]}, "bad_shape"),
    "sharegpt with openai's role": ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown_speaker"),
    "transcript that begins with something else": ({"chosen": "Hello\n\nHuman: x"}, "bad_shape"),
    "transcript is a list": ({"chosen": ["x"]}, "bad_shape"),
    "empty turn in a transcript": ({"chosen": "\n\nHuman:\n\nAssistant: x\n\nHuman: y"}, "empty"),
    "blank instruction": ({"instruction": " ", "input": "x", "output": ""}, "empty"),
}


@pytest.mark.parametrize("name", REJECTS)
def test_what_is_wrong_is_said(name):
    record, reason = REJECTS[name]
    with pytest.raises(Reject) as caught:
        from_record(record)
    assert caught.value.reason == reason


def test_a_fixed_format_does_not_guess():
    with pytest.raises(Reject, match="a row of format alpaca needs instruction"):
        from_record({"text": "Monday"}, "alpaca")


def test_the_formats_of_the_job_file_are_these():
    assert set(InputFormat.__args__) == {"auto", *SHAPES}


def test_custom_id_of_a_batch_line_is_the_rows_id():
    assert row_id(SAME["openai-batch"], "id", 7) == "a"
    assert row_id({"custom_id": "a", "text": "x"}, "id", 7) == "7"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
_columns = sorted({column for shape in SHAPES.values() for column in (*shape.columns, *shape.optional)})


@given(st.dictionaries(st.sampled_from(_columns) | st.text(), _json))
def test_any_record_is_a_conversation_or_a_reject(record):
    try:
        turns = from_record(record)
    except Reject as why:
        assert why.reason in ("bad_shape", "unknown_speaker", "empty")
    else:
        assert turns[-1].speaker == "ユーザー"
        assert all(turn.text.strip() for turn in turns)


# --- templates


def test_a_template_fills_in_any_columns():
    template = Template("Translate to {language}: {text} ({price:.2f})")
    assert template.columns == ["language", "text", "price"]
    filled = template.fill({"language": "Japanese", "text": "Monday", "price": 3})
    assert filled == [("ユーザー", "Translate to Japanese: Monday (3.00)")]


def test_braces_can_be_doubled():
    assert Template("{{{text}}}").fill({"text": "x"})[0].text == "{x}"


@pytest.mark.parametrize("template", ["no columns", "{}", "{0.real}", "{text.__class__}", "{text[0]}", "{text"])
def test_templates_that_are_none(template):
    with pytest.raises(ValueError):
        Template(template)


@pytest.mark.parametrize("record", [{"other": 1}, {"text": None}, {"text": "not a number"}, {"text": [1]}])
def test_a_row_that_does_not_fit_the_template_is_rejected(record):
    with pytest.raises(Reject) as caught:
        Template("{text:.2f}").fill(record)
    assert caught.value.reason == "bad_shape"


def test_a_template_is_checked_before_the_run(batchgen, write_rows, tmp_path):
    rows = write_rows([{"title": "Monday"}])
    flags = ["--model", "batchgen/demo/model", "--output", tmp_path / "out"]
    result = batchgen("run", rows, *flags, "--template", "Translate: {titel}")
    assert result.exit_code == 2
    assert "[prompt] template names titel, which the file does not have; it has title" in result.stderr


@pytest.mark.parametrize("flags", [["--template", "T {title}"], ["--id", "title"]])
def test_a_named_column_may_come_late(batchgen, write_rows, tmp_path, flags):
    rows = write_rows([{"text": "Monday"}] * 1000 + [{"text": "Friday", "title": "x"}])
    result = batchgen("plan", rows, "--model", MODEL, "--output", tmp_path / "out", *flags)
    assert result.exit_code == 0, result.stderr
    rejected = "rejects        1,000 (bad_shape 1,000)" if "--template" in flags else "rejects        0"
    assert rejected in result.stdout


# --- the whole way


def test_a_job_of_mixed_shapes_with_a_template_less_prefix(generate, write_rows):
    rows = [*SAME.values(), *SINGLE.values(), *ANSWERED.values()]
    prefix = [{"speaker": "ユーザー", "text": "Sunday"}, {"speaker": "システム", "text": "日曜日"}]
    out = generate(
        [write_rows(rows)],
        sampling={"max_tokens": 4},
        input={"drop_last_response": True},
        prompt={"prefix": prefix},
        output={"include": ["prompt"]},
    )
    prompts = ds.dataset(out).to_table()["prompt"].to_pylist()
    long = "ユーザー: Sunday\nシステム: 日曜日\nユーザー: Monday\nシステム: 月曜日\nユーザー: Friday\nシステム: "
    short = "ユーザー: Sunday\nシステム: 日曜日\nユーザー: Monday\nシステム: "
    assert prompts == [long] * len(SAME) + [short] * (len(SINGLE) + len(ANSWERED))


def test_an_openai_batch_line_brings_its_own_parameters(generate, write_rows):
    body = {"model": "any", "messages": SAME["openai"]["messages"], "temperature": 0, "max_tokens": 3, "seed": 8}
    out = generate(
        [write_rows([{"custom_id": "task-1", "method": "POST", "url": "/v1/chat/completions", "body": body}])]
    )
    [row] = ds.dataset(out).to_table().to_pylist()
    assert (row["id"], row["seed"], row["response_tokens"]) == ("task-1", 8, 3)
    assert row["sampling"]["temperature"] == 0


def test_an_openai_batch_line_with_what_cannot_be_done_is_rejected(generate, write_rows):
    body = {"messages": SAME["openai"]["messages"], "tools": [{"type": "function"}]}
    out = generate([write_rows([{"custom_id": "a", "body": body}, {"text": "x"}])], sampling={"max_tokens": 2})
    [line] = [json.loads(line) for line in (out / "_rejects" / "part-00000-of-00001.jsonl").read_text().splitlines()]
    assert (line["reason"], "tools" in line["detail"]) == ("bad_sampling", True)


def test_shapes_in_parquet(generate, tmp_path):
    import pyarrow as pa

    table = pa.table({"messages": [SAME["openai"]["messages"][:1]], "system": ["Be brief."]})
    pq.write_table(table, tmp_path / "in.parquet")
    out = generate([tmp_path / "in.parquet"], sampling={"max_tokens": 2}, output={"include": ["prompt"]})
    assert ds.dataset(out).to_table()["prompt"].to_pylist() == ["ユーザー: Be brief.\nMonday\nシステム: "]
