"""A value of every sampling parameter that is not its default, as a row or a job file gives it."""

GIVEN = {
    "temperature": 0.7,
    "top_p": 0.5,
    "top_k": 7,
    "min_p": 0.2,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.4,
    "frequency_penalty": -0.6,
    "max_tokens": 33,
    "min_tokens": 4,
    "ignore_eos": True,
    "stop": ["\n\n", "円"],
    "stop_token_ids": [300],
    "include_stop_str_in_output": True,
    "bad_words": ["no"],
    "allowed_token_ids": [300, 301],
    "logit_bias": {300: 2.5, 301: -1.0},
    "structured_outputs": {"json": {"type": "object", "properties": {"a": {"enum": ["月", None]}}}},
    "logprobs": 3,
    "thinking_token_budget": 5,
    "repetition_detection": {"max_pattern_size": 8, "min_count": 3},
}
