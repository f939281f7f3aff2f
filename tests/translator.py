"""An engine that translates as it is told to: for tests of what is made of its answers."""

import functools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from conftest import CONVERSATIONS, MODEL

from batchgen.engine.types import Response
from batchgen.input.plan import Shard
from batchgen.job.sampler import NONE
from batchgen.job.spec import load
from batchgen.model.model import load_model
from batchgen.output import opening
from batchgen.output.claims import Claims
from batchgen.runner.prepare import Job, prepare
from batchgen.runner.run import close, missing_shards
from batchgen.runner.worker import Worker

BEGIN, END = "ユーザー: ", "\nシステム: "


@functools.cache
def gold() -> dict[str, str]:
    """The demo's sentences, each with its translation."""
    found = {}
    for line in CONVERSATIONS.read_text("utf-8").splitlines():
        row = json.loads(line)
        texts = [*(turn["text"] for turn in row["conversation"]), row["expected"]]
        found |= dict(zip(texts[::2], texts[1::2], strict=True))
    return found


class Translator:
    """says(text, attempt) is the answer, or the answer and how it ended."""

    dtype, device, model_impl, sampler, max_num_seqs = "none", "translates as it is told to", "none", NONE, 16

    def __init__(
        self,
        says: Callable[[str, int], str | tuple[str, str]] = lambda text, attempt: text,
        model: Path = MODEL,
        order: random.Random | None = None,
    ):
        """order: in which requests are answered; by default as they came"""
        self._says, self._order = says, order
        self._tokenizer = load_model(str(model)).tokenizer
        self._left: list[Response] = []
        self.asked: list[tuple[str, int]] = []
        self.requests: list[tuple] = []
        self.answered = 0

    def add(self, name, prompt, sampling, seed, adapter=None, scored=0):
        text = self._tokenizer.decode(prompt).removeprefix(BEGIN).removesuffix(END)
        attempt = int(name.split("-")[3]) if name.count("-") == 3 else 0
        self.asked.append((text, attempt))
        self.requests.append((name, text, sampling, seed))
        answer = self._says(text, attempt)
        answer, reason = answer if isinstance(answer, tuple) else (answer, "stop")
        ids = self._tokenizer.encode(answer)
        self._left.append(Response(name, ids, reason, [[(token, -1.0)] for token in ids]))

    def step(self):
        if not self._left:
            return []
        self.answered += 1
        return [self._left.pop(self._order.randrange(len(self._left)) if self._order else 0)]

    def when_process_dies(self, tell):
        pass


def job_of(paths, out: Path, fields, check=None, template="{text}", **tables) -> Job:
    translate = {"fields": fields, "from": "English", "into": "Japanese", **tables.pop("translate", {})}
    output = {"path": str(out), **tables.pop("output", {})}
    tables = {"sampling": {"temperature": 1}, **tables}
    given = {
        "input": {"path": [str(path) for path in paths], **tables.pop("input", {})},
        "model": {"path": str(MODEL)},
        "prompt": {"template": template},
        "output": output,
        "translate": translate,
        "check": {"checks": ["empty"], **(check or {})},
    }
    job = prepare(load(None, {**given, **tables}))
    opening.open_job(job.out, job.record)
    return job


def work(job: Job, engine: Translator, stop_after: int = 0, shards: Sequence[Shard] | None = None) -> None:
    """stop_after: answers; 0 to work to the end; shards: all that are missing, if it does not say"""
    worker = Worker(job, engine, Claims(job.out, stale=60), window=2 if stop_after else None)
    step = engine.step

    def stopping():
        responses = step()
        if engine.answered == stop_after:
            worker.stop()
        return responses

    engine.step = stopping if stop_after else step
    worker.run(missing_shards(job) if shards is None else shards)
    if not missing_shards(job):
        close(job)
