"""What a job will do: its rows, rejects and prompt lengths, by tokenizing everything but without an engine."""

import itertools
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..engine.installed import versions
from ..errors import JobError, Reject
from ..input import checks
from ..job.spec import JobSpec
from ..output import record
from ..prompt import formats
from ..prompt.pictures import Picture
from ..runner.division import divide
from ..runner.prepare import Job, prepare
from ..runner.translation import field_paths, warn_of_no_text
from ..task.flow import work_of
from ..task.generate import Prompted
from ..task.score import Scored
from ..task.translate import Translation
from . import outlook
from .outlook import Outlook
from .plan_translation import Texts

# vLLM's prefix cache keeps prompts in blocks of 16 tokens; a block counts as shared with all that stands before it.
BLOCK = 16
MOST_BLOCKS = 2_000_000  # remembered; some 200 MB


@dataclass
class Pictured:
    """The images of a job's prompts.

    images: how many; rows: that have some; distinct: their files, by hash; animated: those of several images, of which
    the first is taken; tokens: of prompts, in whose place they stand; 0 where vLLM decides that
    """

    images: int = 0
    rows: int = 0
    distinct: set[int] = field(default_factory=set)
    animated: int = 0
    tokens: int = 0

    def add(self, pictures: Sequence[Picture], tokens: int) -> None:
        """tokens: in place of each of them"""
        self.images += len(pictures)
        self.rows += bool(pictures)
        self.animated += sum(each.is_animated for each in pictures)
        self.tokens += tokens * len(pictures)
        self.distinct |= {hash(each.digest) for each in pictures}


@dataclass
class Forecast:
    """What `plan` found.

    new_rows: of an incremental job since its last run; None if there was none
    shapes: of the rows that have a prompt
    adapters: by name, of the same rows; "" is the model alone
    lengths: tokens of every prompt
    over_length: rows whose prompt is too long, rejected or shortened
    shared: tokens in leading blocks that an earlier prompt has too, which a prefix cache would keep
    forged: rows whose text holds what begins a turn, or a control token
    first_forged: the first of them, and what it holds
    texts: of a translation
    requests, most_tokens, asked_tokens: of all rows, with the most tokens that their responses may have, and those of
        all their prompts
    outlook: what the job will still take
    images: of a job that has some
    workers: that a run would start on this machine, and what they would share; empty if it has no vLLM
    """

    job: Job
    new_rows: int | None = None
    rejects: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    adapters: Counter[str] = field(default_factory=Counter)
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    over_length: int = 0
    shared: int = 0
    forged: int = 0
    first_forged: tuple[int, str] | None = None
    workers: str = ""
    requests: int = 0
    most_tokens: int = 0
    asked_tokens: int = 0
    texts: Texts | None = None
    outlook: Outlook | None = None
    images: Pictured | None = None

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def quantization(self) -> str:
        """Of the weights, as [engine] or the model's files have it, and of the KV cache; empty if there is none."""
        asked = self.job.spec.engine
        weights, cache = asked.get("quantization") or self.job.model.quantization, asked.get("kv_cache_dtype", "auto")
        said = [f"weights {weights}"] if weights else []
        return ", ".join(said + ([f"KV cache {cache}"] if cache != "auto" else []))

    def percentiles(self) -> dict[str, int]:
        """Shortest, median, 99th percentile and longest prompt, in tokens."""
        ordered = sorted(self.lengths) or [0]
        last = len(ordered) - 1
        return {"min": ordered[0], "median": ordered[last // 2], "p99": ordered[last * 99 // 100], "max": ordered[-1]}

    def histogram(self, bins: int = 10) -> list[tuple[int, int, int]]:
        """(from, to, number of prompts) of equally wide ranges of tokens."""
        if not self.lengths:
            return []
        low, high = min(self.lengths), max(self.lengths)
        width = (high - low) // bins + 1
        counted = Counter((length - low) // width for length in self.lengths)
        starts = range(low, high + 1, width)
        return [(start, start + width - 1, counted[number]) for number, start in enumerate(starts)]


def plan(spec: JobSpec, tokens_per_second: float | None = None) -> Forecast:
    """Renders and tokenizes every row. tokens_per_second: that the job is going to have. Raises JobError."""
    job = prepare(spec)
    old = record.read_job(job.out)
    if old and old.plan == job.plan:  # of a new plan `prepare` has told
        checks.tell(job.plan, spec.input, bool(spec.prompt.template))
    forecast = Forecast(job, job.plan.rows - old.plan.rows if old and spec.input.incremental else None)
    forecast.workers = _workers(job)
    forecast.images = Pictured() if spec.input.image else None
    blocks: set[int] = set()
    for made in _prompts(forecast):
        if isinstance(made, Reject):
            forecast.rejects[made.reason] += 1
            forecast.over_length += made.reason == "too_long"
        else:
            forecast.shapes[made.shape] += 1
            forecast.adapters[made.adapter or ""] += 1
            forecast.lengths.append(len(made.prompt_token_ids))
            forecast.over_length += made.truncated > 0
            forecast.shared += _shared(made.prompt_token_ids, blocks)
            _look_for_forged(forecast, made)
            if forecast.images:
                forecast.images.add(made.images, len(job.generate.sight.tokens) if job.generate.sight else 0)
    asked = forecast.requests, forecast.most_tokens, forecast.asked_tokens
    forecast.outlook = outlook.of(job, *asked, tokens_per_second)
    if found := forecast.texts:
        for path in field_paths(spec):
            if not found.fields[str(path)]:
                warn_of_no_text(path)
    return forecast


def _workers(job: Job) -> str:
    if "vllm" not in versions():
        return ""
    try:
        return divide(job, len(job.plan.shards)).text
    except JobError as error:  # too few GPUs here; the job may be meant for another machine
        return f"not on this machine: {error}"


def _look_for_forged(forecast: Forecast, made: Prompted) -> None:
    job = forecast.job
    ours = {turn.text for turn in job.spec.prompt.prefix} | {job.spec.prompt.system}
    turns = [turn for turn in made.conversation if turn.text not in ours]
    if what := formats.forged(turns, job.generate.format, job.model.tokenizer):
        forecast.forged += 1
        forecast.first_forged = forecast.first_forged or (made.row, what)


def show(forecast: Forecast, prompts: int) -> list[Prompted]:
    """The first rendered prompts."""
    made = (made for made in _prompts(Forecast(forecast.job)) if isinstance(made, Prompted))
    return list(itertools.islice(made, prompts))


def document(forecast: Forecast, prompts: list[Prompted]) -> dict[str, Any]:
    """The whole forecast, for JSON."""
    job, lengths = forecast.job, forecast.percentiles()
    first = forecast.first_forged
    return {
        "rows": job.plan.rows,
        "new_rows": forecast.new_rows,
        "files": len(job.plan.latest),
        "rejects": dict(sorted(forecast.rejects.items())),
        "shapes": dict(forecast.shapes.most_common()),
        "adapters": {name: forecast.adapters[name] for name in ["", *(each.name for each in job.model.adapters)]},
        "quantization": forecast.quantization,
        "prompt_tokens": {"total": forecast.tokens, **lengths},
        "over_length": forecast.over_length,
        "shared_tokens": forecast.shared,
        "forged": {"rows": forecast.forged, "first": {"row": first[0], "text": first[1]} if first else None},
        "format": job.generate.format,
        "context": job.context,
        "shards": len(job.plan.shards),
        "shard_rows": job.spec.output.shard_rows,
        "workers": forecast.workers,
        "fingerprint": job.record.fingerprint,
        "images": _images(forecast.images) if forecast.images else None,
        "translation": forecast.texts.document() if forecast.texts else None,
        "outlook": forecast.outlook._asdict() if forecast.outlook else None,
        "histogram": [{"from": start, "to": end, "rows": rows} for start, end, rows in forecast.histogram()],
        "prompts": [
            {"row": made.row, "id": made.id, "text": made.prompt, "ids": made.prompt_token_ids} for made in prompts
        ],
    }


def _images(found: Pictured) -> dict[str, int]:
    return {
        "total": found.images,
        "rows": found.rows,
        "distinct": len(found.distinct),
        "animated": found.animated,
        "tokens": found.tokens,
    }


def _prompts(forecast: Forecast) -> Iterator[Prompted | Reject]:
    """Every row's prompt, or why it has none; of a translation the prompts of its segments, whose texts are counted."""
    job = forecast.job
    paths = field_paths(job.spec)
    for _, work in itertools.islice(work_of(job.task, job.reader(), job.plan.shards), job.rows):
        for request in () if isinstance(work, Reject) else work.requests:
            forecast.requests += 1
            forecast.most_tokens += request.sampling.max_tokens
            forecast.asked_tokens += len(request.prompt_token_ids)
        if isinstance(work, Translation):
            forecast.texts = forecast.texts or Texts()
            yield from forecast.texts.add(work, paths)
        elif isinstance(work, Scored):
            longest = max((request.prompt_token_ids for request in work.requests), key=len)
            yield msgspec.structs.replace(work.prompted, prompt_token_ids=longest)
        else:
            yield work


def _shared(token_ids: list[int], blocks: set[int]) -> int:
    """How many tokens of a prompt are in leading blocks of an earlier one; remembers its own blocks."""
    shared, chain = 0, 0
    for start in range(0, len(token_ids) - BLOCK + 1, BLOCK):
        chain = hash((chain, *token_ids[start : start + BLOCK]))
        if chain in blocks:
            shared += BLOCK
        elif len(blocks) < MOST_BLOCKS:
            blocks.add(chain)
    return shared
