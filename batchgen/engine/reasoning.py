"""Reasoning models: a parser of vLLM's tells what a model thought from what it answered.

The parser is the one that vLLM's server would use, and that the engine uses to let structured outputs begin behind the
reasoning. It is imported late, as vLLM is.
"""

from collections.abc import Sequence
from typing import Any

from ..errors import JobError, in_one_line
from ..model.hf_tokenizer import HfTokenizer
from ..model.tokenizer import Tokenizer
from ..task.task import WHOLE, Reasoned
from .types import Response


class ReasoningParser:
    """A parser by vLLM's name, for the responses of one engine."""

    def __init__(self, name: str, theirs: Any, ours: Tokenizer | HfTokenizer):
        """theirs, ours: the model's tokenizer, as vLLM has it and as we do. Raises JobError if vLLM has no such parser,
        or if it does not fit the model, or only works in vLLM's server."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.reasoning import ReasoningParserManager

        self._theirs, self._ours = theirs, ours
        try:
            self._parser = ReasoningParserManager.get_reasoning_parser(name)
            parser = self._parser(theirs)
            self._request = parser.adjust_request(ChatCompletionRequest(messages=[], model=""))
            parser.extract_reasoning("", self._request)
        except MemoryError:
            raise
        except Exception as error:  # each parser has its own way to say what it lacks
            said, kind = in_one_line(error), type(error).__name__
            why = f"{kind}: {said}" if isinstance(error, KeyError) else said or kind  # a key alone says nothing
            raise JobError(f"[model] reasoning_parser {name}: {why}") from None
        self._begin: str | None = parser.reasoning_start_str
        self._shows_special: bool = not self._request.skip_special_tokens

    def split(self, prompt: Sequence[int], response: Response) -> Reasoned:
        """The response's text, in two. Raises whatever the parser does."""
        text = self._ours.decode(response.token_ids)
        behind = 0 if response.text_end == WHOLE else len(text) - response.text_end
        text = text[: len(text) - behind]
        parser = self._parser(self._theirs)  # a new one, as they keep what they have read
        marked = self._marked(response, behind) if self._shows_special else text
        # A prompt may have closed the reasoning, as templates do that switch it off; or hold the mark in a user's text.
        if parser.is_reasoning_end(list(prompt)) and not (self._begin and self._begin in marked):
            return Reasoned(None, text)
        reasoning, answer = parser.extract_reasoning(marked, self._request)
        return Reasoned(reasoning or None, answer or "")

    def _marked(self, response: Response, behind: int) -> str:
        """The text with special tokens, some of which this parser goes by, but for the token that ended it. behind:
        characters of a stop text at its end."""
        ids = response.token_ids
        if response.finish_reason == "stop" and ids and ids[-1] in self._ours.eos_ids:
            ids = ids[:-1]
        text = self._ours.decode(ids, skip_special_tokens=False)
        return text[: len(text) - behind]
