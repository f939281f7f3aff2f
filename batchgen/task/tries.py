"""Further tries of a response that fails a check, and which of the tries is the row's answer."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from ..check.checks import LOGPROB
from ..job.sampling import Sampling
from ..job.spec import CheckTable
from .task import Entry, Request

# For further tries of a greedy request, which would give the same response again: the first guess of most model cards.
UNLIKE_GREEDY = {"temperature": 0.7, "top_p": 0.9}


class Try(NamedTuple):
    """text: as people read it; failed: names of checks, in the job's order."""

    request: Request
    entry: Entry
    text: str
    failed: list[str]


def sampling_of(usual: Sampling, attempt: int, table: CheckTable) -> Sampling:
    """The parameters of a try. usual: those of the row, and of the first. Raises ValueError."""
    if attempt == 0:
        return usual
    changes = {**(UNLIKE_GREEDY if usual.temperature == 0 else {}), **table.retry}
    return msgspec.convert({**msgspec.to_builtins(usual), **changes}, Sampling, str_keys=True)


def are_ranked(table: CheckTable) -> bool:
    """Whether log probabilities are needed."""
    return bool(table.checks) and (table.tries > 1 or any(name.startswith(LOGPROB) for name in table.checks))


def ranked(sampling: Sampling) -> Sampling:
    """The same parameters, with the log probabilities by which tries are ranked."""
    return sampling if sampling.logprobs is not None else msgspec.structs.replace(sampling, logprobs=0)


def best(tries: Sequence[Try]) -> Try:
    """The one with the fewest failed checks, then the text that most tries agree on, then the highest mean log
    probability, then the earliest."""
    agree = Counter(each.text for each in tries)
    return min(tries, key=lambda each: (len(each.failed), -agree[each.text], -rank(each.entry)))


def mean_logprob(entry: Entry) -> float | None:
    """Per token, of the tokens that were sampled; None if that is not known."""
    steps = entry.logprobs
    return sum(step[0][1] for step in steps) / len(steps) if steps else None


def rank(entry: Entry) -> float:
    """The mean log probability; of one that is not known the least."""
    known = mean_logprob(entry)
    return float("-inf") if known is None else known
