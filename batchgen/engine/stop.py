"""Stop texts: a response ends with the token that completes one of them, by the rules of vLLM's own search.

vLLM's search needs a tokenizer of its own kind; this one decodes with ours. The rules are those of vLLM's
v1/engine/detokenizer.py: a stop text that is complete within the first `min_tokens` tokens does not count, of several
that one token completes the earliest does, and the bytes of an incomplete character wait for the rest of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..job.sampling import Sampling

INCOMPLETE = "\ufffd"  # what a character decodes to while some of its bytes are missing
MOST_HELD = 16  # tokens that wait for the rest of a character, which may never come; each new one decodes all again


@dataclass(slots=True)
class StopSearch:
    """Looks for the stop texts of one request, token by token.

    sampling: with its stop texts as the model writes them
    decode: token ids to text
    token_ids: all tokens so far
    """

    sampling: Sampling
    decode: Callable[[Sequence[int]], str]
    token_ids: list[int] = field(default_factory=list)
    _tail: str = ""  # the end of the text so far, in which a stop text may have begun
    _context: int = 0  # tokens that need not be decoded again
    _settled: int = 0  # tokens whose text has been searched

    def take(self, token: int) -> int | None:
        """Takes the next token. If it completes a stop text, returns how many characters of all the tokens' text are
        the response, else None."""
        self.token_ids.append(token)
        before, new = self._tail, self._new_text()
        text = before + new
        longest = max(map(len, self.sampling.stop))
        self._tail = text[max(0, len(text) - longest + 1) :]
        if not new or len(self.token_ids) <= self.sampling.min_tokens:
            return None
        ends = [
            (start + len(stop), start)
            for stop in self.sampling.stop
            if (start := text.find(stop, max(0, len(before) - len(stop) + 1))) >= 0
        ]
        if not ends:
            return None
        end, start = min(ends, key=lambda found: found[0])  # of two with the same end the first of the list
        behind = len(text) - (end if self.sampling.include_stop_str_in_output else start)
        return len(self.decode(self.token_ids)) - behind

    def _new_text(self) -> str:
        """What the last tokens add to the text; nothing while a character is incomplete. Decoding begins a few tokens
        earlier, as many tokenizers write a token's leading space only after another token."""
        before = self.decode(self.token_ids[self._context : self._settled])
        text = self.decode(self.token_ids[self._context :])
        held = len(self.token_ids) - self._settled
        if len(text) <= len(before) or (text.endswith(INCOMPLETE) and held < MOST_HELD):
            return ""
        self._context, self._settled = self._settled, len(self.token_ids)
        return text[len(before) :]
