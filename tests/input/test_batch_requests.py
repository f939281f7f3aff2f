"""Parameters of rows: batch files' own, those in a column, and columns that are only called like one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import JobError, Reject
from batchgen.input.batch_requests import request_of
from batchgen.input.row_sampling import of_row
from batchgen.job.sampling import JobSampling, Sampling
from batchgen.job.spec import load

JOB = Sampling(max_tokens=500, logprobs=5)
MESSAGES = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def chat(job=JOB, **body):
    record = {"body": {"model": "m", "messages": MESSAGES} | body}
    return of_row(job, 1, record, request_of(record, "body"))


def changed(params, job=JOB):
    """What differs from the job's, structured outputs without what they leave out."""
    before, after = msgspec.to_builtins(job), msgspec.to_builtins(params)
    return {name: value for name, value in after.items() if value != before[name]}


# parameters of a request -> what of the job's they change
TAKEN = [
    ({"max_tokens": 50, "max_completion_tokens": None}, {"max_tokens": 50}),
    ({"max_tokens": None, "max_completion_tokens": 50}, {"max_tokens": 50}),
    ({"max_tokens": 60, "max_completion_tokens": 50}, {"max_tokens": 50}),
    ({"max_tokens": None, "max_completion_tokens": None}, {}),
    ({"max_tokens": 64.0}, {"max_tokens": 64}),
    ({"temperature": 0, "top_p": 0.5}, {"temperature": 0.0, "top_p": 0.5}),
    ({"temperature": None}, {}),
    ({"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1}, {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1}),
    ({"top_k": -1}, {}),
    ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1.0, "frequency_penalty": -1.0}),
    ({"stop": "\n"}, {"stop": ["\n"]}),
    (
        {"stop": ["a", "b"], "include_stop_str_in_output": True},
        {"stop": ["a", "b"], "include_stop_str_in_output": True},
    ),
    ({"stop": []}, {}),
    ({"stop": None}, {}),
    (
        {"stop_token_ids": [5], "ignore_eos": True, "min_tokens": 3},
        {"stop_token_ids": [5], "ignore_eos": True, "min_tokens": 3},
    ),
    ({"logit_bias": {"5": -100, "7": 1.5}}, {"logit_bias": {5: -100.0, 7: 1.5}}),
    ({"bad_words": ["no"], "allowed_token_ids": [1, 2]}, {"bad_words": ["no"], "allowed_token_ids": [1, 2]}),
    ({"logprobs": True, "top_logprobs": 2}, {"logprobs": 2}),
    ({"logprobs": True}, {"logprobs": 0}),
    ({"logprobs": False, "top_logprobs": 0}, {}),
    ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}),
    ({"response_format": {"type": "text"}}, {}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}},
        {"structured_outputs": {"json": SCHEMA}},
    ),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "outlines"}, {"structured_outputs": {"json": SCHEMA}}),
    ({"guided_choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}),
    ({"guided_regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
    ({"guided_grammar": 'root ::= "a"'}, {"structured_outputs": {"grammar": 'root ::= "a"'}}),
    ({"structured_outputs": {"regex": "a+", "json": None}}, {"structured_outputs": {"regex": "a+"}}),
    ({"extra_body": {"top_k": 5, "guided_choice": ["a"]}}, {"top_k": 5, "structured_outputs": {"choice": ["a"]}}),
]
INERT = [
    {"tools": []},
    {"functions": []},
    {"tool_choice": "none"},
    {"tool_choice": "auto", "parallel_tool_calls": True},
    {"modalities": ["text"]},
    {"reasoning_effort": "low", "verbosity": "low", "reasoning": {"effort": "low"}},
    {"safety_identifier": "x", "prompt_cache_key": "k", "user": "u", "metadata": {"a": "b"}, "store": True},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"add_generation_prompt": True, "continue_final_message": False, "echo": False, "best_of": 1},
    {"skip_special_tokens": True, "spaces_between_special_tokens": True, "detokenize": True},
    {"length_penalty": 1.0, "use_beam_search": False, "priority": 0, "logits_processors": None, "prediction": None},
    {"return_token_ids": False, "request_id": "r", "service_tier": "auto", "stream": False, "stream_options": None},
    {"suffix": "", "prompt_logprobs": None, "web_search_options": None, "audio": None},
]
# parameters -> what the detail names
REFUSED = [
    ({"tools": [{"type": "function"}]}, "body.tools"),
    ({"tool_choice": "required"}, "body.tool_choice"),
    ({"modalities": ["text", "audio"]}, "body.modalities"),
    ({"best_of": 2}, "body.best_of"),
    ({"echo": True}, "body.echo"),
    ({"use_beam_search": True}, "body.use_beam_search"),
    ({"skip_special_tokens": False}, "body.skip_special_tokens"),
    ({"suffix": "x"}, "body.suffix"),
    ({"prompt_logprobs": 1}, "body.prompt_logprobs"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "has no schema"),
    ({"response_format": {"type": "structural_tag"}}, "structural_tag"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "needs one of"),
    ({"top_logprobs": 2}, "needs logprobs: true"),
    ({"top_p": 0}, "top_p 0"),
    ({"temperature": 2.5}, "temperature 2.5"),
    ({"temperature": 0.001}, "at least 0.01"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"seed": -1}, "seed -1"),
    ({"seed": "7"}, "seed '7'"),
    ({"n": 0}, "n 0"),
    ({"max_tokens": 0}, "max_tokens 0"),
    ({"max_tokens": 64.5}, "max_tokens 64.5"),
    ({"top_k": -2}, "top_k -2"),
    ({"top_k": 2**31}, "top_k"),
    ({"min_tokens": 2**31, "max_tokens": 2**31}, "tokens"),
    ({"logit_bias": {"abc": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    ({"bad_words": ["x"] * 129}, "bad_words"),
    ({"temprature": 1}, "temprature"),
]


@pytest.mark.parametrize(("body", "expected"), TAKEN)
def test_parameters_of_a_request_reach_the_row(body, expected):
    params, n, seed = chat(**body)
    assert (changed(params), n, seed) == (expected, 1, None)


def test_n_and_seed_of_a_request():
    assert chat(n=3, seed=7)[1:] == (3, 7)
    assert chat(n=None, seed=7.0)[1:] == (1, 7)


@pytest.mark.parametrize("body", INERT)
def test_what_changes_nothing_is_passed_over(body):
    assert chat(**body) == (JOB, 1, None)


@pytest.mark.parametrize(("body", "word"), REFUSED)
def test_what_would_change_the_result_and_cannot_be_done_is_named(body, word):
    with pytest.raises(Reject) as caught:
        chat(**body)
    assert caught.value.reason == "bad_sampling"
    assert word in caught.value.detail


def test_logprobs_that_the_job_does_not_write_say_what_to_set():
    with pytest.raises(Reject, match=r"set logprobs = 2 there \(--logprobs 2\)"):
        chat(Sampling(), logprobs=True, top_logprobs=2)


@pytest.mark.parametrize(
    ("record", "where", "expected"),
    [
        (
            {"url": "/v1/completions", "body": {"prompt": "Hi", "max_tokens": 5, "logprobs": 3}},
            "body",
            {"max_tokens": 5, "logprobs": 3},
        ),
        (
            {
                "url": "/v1/responses",
                "body": {
                    "input": "Hi",
                    "instructions": "x",
                    "max_output_tokens": 5,
                    "truncation": "disabled",
                    "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
                },
            },
            "body",
            {"max_tokens": 5, "structured_outputs": {"json": SCHEMA}},
        ),
        (
            {
                "params": {
                    "messages": MESSAGES,
                    "system": "x",
                    "max_tokens": 9,
                    "stop_sequences": ["a"],
                    "top_k": 4,
                    "thinking": {"type": "disabled"},
                }
            },
            "params",
            {"max_tokens": 9, "stop": ["a"], "top_k": 4},
        ),
    ],
)
def test_parameters_of_the_other_endpoints(record, where, expected):
    assert changed(of_row(JOB, 1, record, request_of(record, where))[0]) == expected


def test_a_rows_own_column_wins_over_its_request():
    record = {
        "body": {"messages": MESSAGES, "temperature": 0.2, "top_k": 3},
        "sampling": {"temperature": 0.7},
        "seed": 5,
    }
    params, _, seed = of_row(JOB, 1, record, request_of(record, "body"))
    assert (params.temperature, params.top_k, seed) == (0.7, 3, 5)


# --- columns that are only called seed or sampling


@pytest.mark.parametrize("seed", ["def f(x):", "42", 1.5, True, None, float("nan"), [1], {"a": 1}, b"x"])
def test_a_column_seed_that_holds_none_is_the_users_own(seed):
    assert of_row(JOB, 1, {"seed": seed}) == (JOB, 1, None)


@pytest.mark.parametrize("seed", [42, 42.0])
def test_a_column_seed_of_whole_numbers_counts(seed):
    assert of_row(JOB, 1, {"seed": seed}) == (JOB, 1, 42)
    assert of_row(JOB, 1, {"seed": 1, "s": seed}, seed="s") == (JOB, 1, 42)
    assert of_row(JOB, 1, {"seed": seed}, seed="") == (JOB, 1, None)


@pytest.mark.parametrize("seed", ["def f(x):", 1.5, True, -1, 2**53])
def test_a_column_that_the_user_named_binds(seed):
    with pytest.raises(Reject) as caught:
        of_row(JOB, 1, {"s": seed}, seed="s")
    assert caught.value.reason == "bad_sampling"


@pytest.mark.parametrize("sampling", ["stratified", 1, True, [1], {}, {"method": "stratified", "rate": 0.1}, "{", None])
def test_a_column_sampling_that_holds_none_is_the_users_own(sampling):
    assert of_row(JOB, 1, {"sampling": sampling}) == (JOB, 1, None)


@pytest.mark.parametrize("sampling", [{"temprature": 1}, {"top_k": "x"}, {"max_token": 5}])
def test_a_column_sampling_that_is_nearly_one_is_rejected(sampling):
    with pytest.raises(Reject) as caught:
        of_row(JOB, 1, {"sampling": sampling})
    assert caught.value.reason == "bad_sampling"


def test_a_column_sampling_by_another_name_as_json_text_and_as_a_map():
    for value in ({"top_k": 5}, '{"top_k": 5}', [("top_k", 5)]):
        assert changed(of_row(JOB, 1, {"params": value}, sampling="params")[0]) == {"top_k": 5}
    assert of_row(JOB, 1, {"sampling": {"top_k": 5}}, sampling="") == (JOB, 1, None)
    with pytest.raises(Reject):
        of_row(JOB, 1, {"params": 3}, sampling="params")


def test_biases_as_arrow_and_our_own_shards_have_them():
    for bias in ([(5, 1.0)], [[5, 1.0]], [{"token_id": 5, "bias": 1.0}], {"5": 1.0}):
        assert changed(of_row(JOB, 1, {"sampling": {"logit_bias": bias}})[0]) == {"logit_bias": {5: 1.0}}


# --- the job's own


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 2.1}, {"top_k": -2}, {"top_k": 2**31}, {"max_tokens": 2**31}, {"stop_token_ids": [1] * 121}],
)
def test_a_jobs_sampling_has_vllms_ranges(sampling, tmp_path):
    tables = {"input": {"path": ["x"]}, "model": {"path": "m"}, "output": {"path": "o"}, "sampling": sampling}
    with pytest.raises(JobError, match=next(iter(sampling))):
        load(None, tables)


def test_top_k_of_minus_one_is_none_for_a_job_too():
    assert msgspec.convert({"top_k": -1}, JobSampling).top_k == 0


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_names = st.sampled_from(
    [*Sampling.__struct_fields__, *(name for body, *_ in [*TAKEN, *REFUSED] for name in body), "text"]
)


@given(st.dictionaries(_names, _values, max_size=4), st.sampled_from(["body", "params", "sampling"]))
def test_any_parameters_are_taken_or_rejected(given, where):
    record = {where: given if where == "sampling" else {"messages": MESSAGES} | given}
    try:
        params, n, seed = of_row(JOB, 1, record, request_of(record, where) if where != "sampling" else None)
    except Reject as why:
        assert why.reason == "bad_sampling"
    else:
        assert msgspec.convert(msgspec.to_builtins(params), Sampling, str_keys=True) == params
        assert 1 <= n <= 1024
        assert seed is None or 0 <= seed < 2**53
