"""The metrics by their names in a job file: each gives a number for the responses to one row in one setting.

A number of a single response is averaged over them. What cannot be known is None, and left out of all means.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import combinations
from typing import Any, Literal, NamedTuple, Protocol

from ..check import languages, loops
from ..check.checks import PLAIN, Judged
from ..errors import JobError
from ..job.spec import CheckTable, MetricsTable, nearest
from . import chrf, texts
from .chrf import Chrf
from .scorer import Scorer
from .summary import Better

LONGEST = 50_000  # characters of a text that are looked at; a response of 8,192 tokens has fewer
MOST_PAIRED = 8  # responses to a row that are compared with each other: 28 pairs


class Encoder(Protocol):
    """What metrics need of a model's tokenizer."""

    def encode(self, text: str) -> list[int]: ...


class Tools(NamedTuple):
    """What metrics work with; where something is not at hand, those that need it cannot be had.

    reference: the column with right answers, "" if there is none
    language, source_language: codes, "" if not known
    """

    reference: str
    tokenizer: Encoder | None
    chrf: Chrf | None
    language: str
    source_language: str


class Answer:
    """A response, with what it is held against.

    output: its output row
    references: right answers; none where the row has none
    source: what it answers
    """

    def __init__(self, output: dict[str, Any], references: tuple[str, ...], source: str, tools: Tools):
        self.output = output
        self.whole: str = output.get("response") or ""  # one that is left out for its failed checks is empty
        self.text = self.whole[:LONGEST]
        self.references = references
        self.source = source[:LONGEST]
        self.tools = tools

    @cached_property
    def ids(self) -> list[int]:
        return self.encoded(self.text)

    def encoded(self, text: str) -> list[int]:
        assert self.tools.tokenizer
        return self.tools.tokenizer.encode(text[:LONGEST].encode("utf-8", "replace").decode())

    def best_of(self, score: Callable[[str], float]) -> float | None:
        """By the reference that fits best."""
        return max(map(score, self.references), default=None)

    def fails(self, check: str) -> float:
        return float(PLAIN[check](Judged(self.text, "", self.source, {})) is not None)


Measure = Callable[[Sequence[Answer]], float | None]
Needs = Literal["", "reference", "tokenizer", "chrf", "language", "identifier"]


class MetricKind(NamedTuple):
    """A metric that batchgen has.

    meaning: in words, without a full stop
    better: which end of it is the good one; "" is neither
    measure: of the responses to one row in one setting
    needs: what it cannot do without
    source: where it comes from, for the manual
    """

    meaning: str
    better: Better
    measure: Measure
    needs: tuple[Needs, ...] = ()
    source: str = ""


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _each(measure: Callable[[Answer], float | None]) -> Measure:
    return lambda answers: _mean(map(measure, answers))


# --- with a reference


def _exact(answer: Answer) -> float | None:
    return answer.best_of(lambda reference: float(answer.whole == reference))


def _exact_folded(answer: Answer) -> float | None:
    own = texts.folded(answer.text)
    return answer.best_of(lambda reference: float(own == texts.folded(reference[:LONGEST])))


def _chrf(answer: Answer) -> float | None:
    if not answer.references:
        return None
    assert answer.tools.chrf
    return answer.tools.chrf(answer.text, tuple(reference[:LONGEST] for reference in answer.references))


def _rouge_l(answer: Answer) -> float | None:
    return answer.best_of(lambda reference: texts.rouge_l(answer.ids, answer.encoded(reference)))


# --- without


def _failed_checks(answer: Answer) -> float | None:
    failed = answer.output.get("failed_checks")
    return None if failed is None else float(bool(failed))


def _ended_by(reason: str) -> Measure:
    return _each(lambda answer: float(answer.output.get("finish_reason") == reason))


def _response_tokens(answer: Answer) -> float | None:
    return answer.output.get("response_tokens")


def _longest_loop(answer: Answer) -> float:
    found = loops.find(answer.text)
    return float(found.length) if found else 0.0


def _distinct(n: int) -> Measure:
    return lambda answers: texts.distinct((answer.ids for answer in answers), n)


def _language(answer: Answer) -> float:
    known = answer.tools
    return float(languages.not_in(known.language, answer.text, answer.source, known.source_language) is None)


def _script(answer: Answer) -> float | None:
    return languages.script_share(answer.tools.language, answer.text)


def _agreement(answers: Sequence[Answer]) -> float | None:
    return texts.equal_pairs([answer.whole for answer in answers])


def _agreement_chrf(answers: Sequence[Answer]) -> float | None:
    return _mean(_alike(one, other) for one, other in combinations(answers[:MOST_PAIRED], 2))


def _alike(one: Answer, other: Answer) -> float:
    """chrF is not symmetric: the mean of both ways."""
    if one.text == other.text:
        return 100.0
    score = one.tools.chrf
    assert score
    return (score(one.text, (other.text,)) + score(other.text, (one.text,))) / 2


def _logprob(answer: Answer) -> float | None:
    if (mean := answer.output.get("mean_logprob")) is not None:
        return float(mean)
    steps = answer.output.get("logprobs")
    return _mean(step[0]["logprob"] for step in steps) if steps else None


# --- the table, in the order in which they are shown

METRICS: dict[str, MetricKind] = {
    "exact": MetricKind("share of responses that equal the reference", "higher", _each(_exact), ("reference",)),
    "exact_folded": MetricKind(
        "the same after NFKC, with white space as one space and none at the edges",
        "higher",
        _each(_exact_folded),
        ("reference",),
    ),
    "chrf": MetricKind(
        "chrF against the reference, 0 to 100: F2 of character 1- to 6-grams, by response",
        "higher",
        _each(_chrf),
        ("reference", "chrf"),
        "Popović 2015; computed by sacrebleu",
    ),
    "rouge_l": MetricKind(
        "ROUGE-L against the reference, 0 to 1: F1 by the longest common subsequence of the model's tokens",
        "higher",
        _each(_rouge_l),
        ("reference", "tokenizer"),
        "Lin 2004; tokens in place of words, which Japanese does not mark",
    ),
    "failed_checks": MetricKind("share of responses that fail one of `[check] checks`", "lower", _each(_failed_checks)),
    "finish_stop": MetricKind("share of responses that the model or a stop text ended", "higher", _ended_by("stop")),
    "finish_length": MetricKind(
        "share of responses that `max_tokens` or the context cut", "lower", _ended_by("length")
    ),
    "finish_repetition": MetricKind("share of responses that vLLM ended in a loop", "lower", _ended_by("repetition")),
    "response_tokens": MetricKind("tokens of a response, with that of its end", "", _each(_response_tokens)),
    "seq_rep_4": MetricKind(
        "share of a response's token 4-grams that it had before, 0 to 1",
        "lower",
        _each(lambda answer: texts.seq_rep(answer.ids, 4)),
        ("tokenizer",),
        "Welleck et al. 2019",
    ),
    "longest_loop": MetricKind(
        "characters of the longest loop in a response, as the check `repetition` finds them",
        "lower",
        _each(_longest_loop),
    ),
    "distinct_1": MetricKind(
        "different tokens among all of a row's responses in the setting, as a share of them; fewer with more samples",
        "",
        _distinct(1),
        ("tokenizer",),
        "Li et al. 2016",
    ),
    "distinct_2": MetricKind(
        "the same of pairs of neighbouring tokens", "", _distinct(2), ("tokenizer",), "Li et al. 2016"
    ),
    "language": MetricKind(
        "share of responses in `language`, as the check of that name sees it",
        "higher",
        _each(_language),
        ("language", "identifier"),
    ),
    "script": MetricKind(
        "share of a response's letters that are in the script of `language`", "higher", _each(_script), ("language",)
    ),
    "copy": MetricKind(
        "share of responses that copy what was asked, as the check of that name sees it",
        "lower",
        _each(lambda answer: answer.fails("copy")),
    ),
    "empty": MetricKind("share of responses without text", "lower", _each(lambda answer: answer.fails("empty"))),
    "agreement": MetricKind("share of pairs of a row's samples that are equal texts", "higher", _agreement),
    "agreement_chrf": MetricKind(
        f"mean chrF of pairs of a row's samples, both ways, 0 to 100; of its first {MOST_PAIRED}",
        "higher",
        _agreement_chrf,
        ("chrf",),
    ),
    "logprob": MetricKind(
        "mean log probability of a response's tokens, if `[output] include` has `mean_logprob`, as a sweep's has",
        "higher",
        _each(_logprob),
    ),
}

# Which of them chooses, if the job does not say: the first that is there. A scorer of the user's own comes before them.
MOST_TELLING = ("chrf", "rouge_l", "exact_folded", "failed_checks", "finish_stop")


class Chosen(NamedTuple):
    """kinds: by name, in order; notes: on those that would be there, and are not, a sentence each"""

    kinds: dict[str, MetricKind]
    notes: list[str]


def tools_of(table: MetricsTable, check: CheckTable, tokenizer: Encoder | None) -> Tools:
    """Raises JobError for a language that is none."""
    if table.language:
        language = languages.asked("[metrics] language", table.language)
    else:
        language = languages.asked("[check] language", check.language)
    source_language = languages.asked("[check] source_language", check.source_language)
    return Tools(table.reference, tokenizer, chrf.find(), language, source_language)


def choose(table: MetricsTable, tools: Tools, scorer: Scorer | None) -> Chosen:
    """The metrics of a job. Raises JobError for a name that is none, and for what is asked for but cannot be had."""
    if scorer and scorer.name in METRICS:
        raise JobError(f"[metrics] scorer: there is a metric {scorer.name} already; give your function another name")
    lacking = _lacking(tools)
    best = [table.best] if table.best else []
    for key, names in (("use", table.use), ("best", best)):
        for name in names:
            _require(f"[metrics] {key}", name, lacking, scorer)
    if table.best in METRICS and not METRICS[table.best].better:
        raise JobError(f"[metrics] best: neither more nor less of {table.best} is better")
    asked = dict.fromkeys([*table.use, *best] if table.use else METRICS)
    reasons = {name: _missing(name, lacking) for name in asked if name in METRICS}
    left_out: dict[str, list[str]] = {}
    for name, why in reasons.items():
        if why and why not in _NOT_ASKED:
            left_out.setdefault(why, []).append(name)
    notes = [f"left out: {', '.join(names)}: {why}" for why, names in left_out.items()]
    return Chosen({name: METRICS[name] for name, why in reasons.items() if not why}, notes)


def _require(key: str, name: str, lacking: dict[Needs, str], scorer: Scorer | None) -> None:
    if scorer and scorer.owns(name):
        return
    if name not in METRICS:
        raise JobError(f"{key}: {name!r} is none{nearest(name, [*METRICS, *([scorer.name] if scorer else [])])}")
    if why := _missing(name, lacking):
        raise JobError(f"{key}: {name}: {why}")


def _missing(name: str, lacking: dict[Needs, str]) -> str:
    """Why a metric cannot be had; "" if it can."""
    return next((lacking[need] for need in METRICS[name].needs if need in lacking), "")


_NO_REFERENCE = "set [metrics] reference to the column with the right answer"
_NO_LANGUAGE = "set [metrics] language, to ja or en for instance"
_NOT_ASKED = (_NO_REFERENCE, _NO_LANGUAGE)  # no surprise to a user who does not set them


def _lacking(tools: Tools) -> dict[Needs, str]:
    """What is not at hand, and what to do about it."""
    found: dict[Needs, str] = {}
    if not tools.reference:
        found["reference"] = _NO_REFERENCE
    if not tools.language:
        found["language"] = _NO_LANGUAGE
    elif tools.source_language:
        try:
            languages.require_identifier(tools.language, tools.source_language)
        except JobError as error:
            found["identifier"] = str(error)
    if not tools.chrf:
        found["chrf"] = "sacrebleu is not installed: pip install sacrebleu"
    if not tools.tokenizer:
        found["tokenizer"] = "the model's tokenizer is not at hand"
    return found


def best_of(table: MetricsTable, found: Sequence[str], scorer: Scorer | None) -> str:
    """The metric that chooses, of those that have values; "" if there is none."""
    if table.best:
        return table.best if table.best in found else ""
    own = [name for name in found if scorer and scorer.owns(name)]
    return next((name for name in [*own, *MOST_TELLING] if name in found), "")
