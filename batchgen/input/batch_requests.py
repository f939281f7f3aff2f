"""Requests in batch files: their conversation, and their parameters under vLLM's names.

Supported are OpenAI's chat completions, completions and responses, and Anthropic's messages.
"""

from typing import Any, NamedTuple

from ..errors import Reject
from ..job.sampling import NAMES
from .conversation import SYSTEM, USER, Conversation, Utterance, is_blank, kind_of, text_of
from .turns import conversation_of, joined


class Request(NamedTuple):
    """The request in a line of a batch file.

    Attributes:
        kind: chat, completions, responses or anthropic.
        where: the column that holds the body.
        body: the request's body.
    """

    kind: str
    where: str
    body: dict[str, Any]


_KINDS = {"chat/completions": "chat", "completions": "completions", "responses": "responses", "messages": "anthropic"}
_ASKED_IN = {"messages": "chat", "prompt": "completions", "input": "responses"}


def request_of(record: dict[str, Any], where: str) -> Request:
    """The request in a record's `body` or `params`. Raises Reject(bad_shape)."""
    body = record.get(where)
    if not isinstance(body, dict):
        raise Reject("bad_shape", f"{where} is {kind_of(body)}, not an object")
    body = {name: value for name, value in body.items() if value is not None}  # null is as good as absent
    if isinstance(more := body.pop("extra_body", None), dict):  # OpenAI's client would have merged it into the body
        body |= {name: value for name, value in more.items() if value is not None}
    if where == "params":
        return Request("anthropic", where, body)
    url = record.get("url")
    if isinstance(url, str) and "/v1/" in url:
        endpoint = url.partition("/v1/")[2].strip("/")
        if endpoint not in _KINDS:
            raise Reject("bad_shape", f"url {url:.80}: endpoint not supported; valid are {', '.join(_KINDS)}")
        return Request(_KINDS[endpoint], where, body)
    return Request(next((kind for name, kind in _ASKED_IN.items() if name in body), "chat"), where, body)


def conversation_of_request(request: Request, drop_last_response: bool = False) -> Conversation:
    """A request's conversation, system messages first. Raises Reject(bad_shape | unknown_speaker | empty)."""
    kind, where, body = request
    if kind == "completions":
        return [Utterance(USER, _only_text(body.get("prompt"), f"{where}.prompt"))]
    if kind == "responses":
        asked = body.get("input")
        if body.get("previous_response_id") or body.get("conversation"):
            raise Reject("bad_shape", f"{where} continues an earlier response, which is not available here")
        system = _system(body.get("instructions"), f"{where}.instructions")
        if isinstance(asked, str):
            return [*system, Utterance(USER, text_of(asked, f"{where}.input"))]
        return [*system, *conversation_of(asked, f"{where}.input", drop_last_response)]
    system = _system(body.get("system"), f"{where}.system") if kind == "anthropic" else []
    return [*system, *conversation_of(body.get("messages"), f"{where}.messages", drop_last_response)]


def _system(value: Any, where: str) -> Conversation:
    text = joined(value, where) if isinstance(value, list) else value
    return [] if is_blank(text) else [Utterance(SYSTEM, text_of(text, where))]


def _only_text(prompt: Any, where: str) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list):
        raise Reject("bad_shape", f"{where} has several prompts or token ids; a row must have one text")
    return text_of(prompt, where)


# --- parameters

# Parameters that do not affect the text of the response, or only say how to send it.
_IGNORED = frozenset(
    """
    add_special_tokens background cache_salt chat_template_kwargs container include include_reasoning kv_transfer_params
    max_tool_calls media_io_kwargs messages metadata mm_processor_kwargs model moderation parallel_tool_calls prediction
    priority prompt_cache_key prompt_cache_options prompt_cache_retention reasoning reasoning_effort request_id
    return_prompt_text return_token_ids return_token_offsets return_tokens_as_token_ids safety_identifier service_tier
    session_id spaces_between_special_tokens store stream stream_interval stream_options truncation user verbosity
    detokenize
    """.split()
)
# Parameters of which only the values that change nothing are accepted; also null and empty values.
_ONLY: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "best_of": (1,),
    "continue_final_message": (False,),
    "early_stopping": (False,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "skip_special_tokens": (True,),
    "tool_choice": ("none", "auto", {"type": "none"}, {"type": "auto"}),
    "thinking": ({"type": "disabled"},),
    "use_beam_search": (False,),
    "watermarking": (True,),
}
_NOT_SUPPORTED = frozenset(
    """
    audio chat_template documents functions guided_whitespace_pattern logit_processors logits_processors
    logprob_token_ids mcp_servers prompt_logprobs structural_tag suffix tools
    truncate_prompt_tokens vllm_xargs web_search_options
    """.split()
)
_ASKED = {
    "chat": (),
    "completions": ("prompt",),
    "responses": ("input", "instructions", "previous_response_id", "conversation"),
    "anthropic": ("system",),
}
_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
}


def parameters(request: Request, known: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """The sampling parameters of a request by vLLM's names. Raises Reject(bad_sampling) for one that would change the
    response and is not supported. known: the parameters that the output folder's format has."""
    kind, where, body = request
    refused = {*_ONLY, *_NOT_SUPPORTED, *NAMES} - {*known}
    values = {name: value for name, value in body.items() if name not in _IGNORED and name not in _ASKED[kind]}
    for name in [name for name in values if name in refused]:
        value = values.pop(name)
        if value not in _ONLY.get(name, ()) and value not in ([], {}, ""):
            raise Reject("bad_sampling", f"{where}.{name} {value!r:.80} is not supported")
    for name, ours in (("max_completion_tokens", "max_tokens"), ("max_output_tokens", "max_tokens")):
        if name in values:
            values[ours] = values.pop(name)
    if kind == "anthropic" and "stop_sequences" in values:
        values["stop"] = values.pop("stop_sequences")
    values.pop("guided_decoding_backend", None)
    if wanted := _structured(values, where):
        values["structured_outputs"] = wanted
    return _with_logprobs(values, where)


def _with_logprobs(values: dict[str, Any], where: str) -> dict[str, Any]:
    """logprobs as a number: the chat API has `logprobs: true` and top_logprobs, the completions API a number."""
    most, wanted = values.pop("top_logprobs", 0), values.pop("logprobs", False)
    if isinstance(wanted, bool):
        if most and not wanted:
            raise Reject("bad_sampling", f"{where}.top_logprobs {most!r:.20} needs logprobs: true")
        return values | ({"logprobs": most} if wanted else {})
    return values | {"logprobs": wanted}


def _structured(values: dict[str, Any], where: str) -> dict[str, Any]:
    """structured_outputs for the request. Takes every parameter that it comes from out of `values`."""
    wanted = values.pop("structured_outputs", None)
    if wanted is not None and not isinstance(wanted, dict):
        raise Reject("bad_sampling", f"{where}.structured_outputs is {kind_of(wanted)}, not an object")
    found = {name: value for name, value in (wanted or {}).items() if value is not None}
    for name, ours in _GUIDED.items():
        if (value := values.pop(name, None)) not in (None, False):
            found[ours] = value
    asked = values.pop("response_format", None)
    text = values.pop("text", None)
    if asked is None and isinstance(text, dict):  # the responses API
        asked = text.get("format")
    match asked:
        case None | {"type": "text"}:
            pass
        case {"type": "json_object"}:
            found["json_object"] = True
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            found["json"] = schema
        case {"type": "json_schema", "schema": dict() as schema}:
            found["json"] = schema
        case {"type": "json_schema"}:
            raise Reject("bad_sampling", f"{where}: response_format of type json_schema has no schema")
        case other:
            what = f"{where}: response_format {other!r:.80}"
            raise Reject("bad_sampling", f"{what}: the type must be text, json_object or json_schema")
    return found
