"""Responses for a few prompts, as they come, from an engine that stays: `batchgen.generate`."""

import atexit
import tempfile
import threading
from collections.abc import Iterator, Sized
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import JobError
from ..host.caller import Caller, called_by
from ..runner.kept_engine import KeptEngine, key_of
from ..runner.prepare import Job, prepare
from .jobs import load, warn

_lock = threading.Lock()
_kept: KeptEngine | None = None


class Answer(NamedTuple):
    """A response, or a row that has none.

    row: its number among the prompts, from 0
    id: of the row
    sample: which of the row's responses
    response: None if the row was rejected, or if it fails a check with on_failure = "null"
    finish_reason: stop, length or repetition; None if the row was rejected
    reject: why the row has no response; None if it has one
    record: the whole output row, as a job writes it
    """

    row: int
    id: str
    sample: int
    response: str | None
    finish_reason: str | None
    reject: str | None
    record: dict[str, Any]


def generate(prompts: Any, model: Any, **tables: Any) -> Iterator[Answer]:
    """The responses to some prompts, in their order, each as soon as it and those before it are there. Seeds and tokens
    are those of a run over the same rows.

    The engine is kept for further calls with the same model and `engine`; `close` ends it, and so does the end of this
    process. Nothing is written: for more rows than you would like to generate twice, `run` a job.

    prompts: texts or rows, as a list or as any data that is input of a job (see data.paths_of)
    model: its folder or its name on the hub, or the table [model] as a dict
    tables: of a job file by name, each a dict, and keys of [sampling] by themselves: temperature=0, engine={...}

    Raises JobError or MachineError.
    """
    if isinstance(prompts, Sized) and not isinstance(prompts, str) and not len(prompts):
        return
    named = {name: tables.pop(name) for name in ("prompt", "sampling", "engine", "check", "limits") if name in tables}
    named["sampling"] = {**named.get("sampling", {}), **tables}
    with tempfile.TemporaryDirectory(prefix="batchgen-generate-") as scratch:
        # Not around what is yielded: who has called may be somebody else between two answers.
        with called_by(Caller(warn, catches_signals=False)):
            job = prepare(load(input=prompts, model=model, output=str(Path(scratch) / "out"), **named))
            if job.spec.input.image:
                raise JobError("[input] image: images are for a job; see batchgen.run")
            engine = _engine(job)
        with closing(engine.generate(job)) as answers:
            for made in answers:
                if line := made.reject:
                    why = f"{line['reason']}: {line['detail']}"
                    yield Answer(made.row, line["id"], 0, None, None, why, line)
                for row in made.output:
                    yield Answer(row["row"], row["id"], row["sample"], row["response"], row["finish_reason"], None, row)


def close() -> None:
    """Ends the engine that is kept."""
    global _kept
    with _lock:
        if _kept:
            _kept.close()
        _kept = None


def _engine(job: Job) -> KeptEngine:
    """The engine that is kept, or a new one in its place if it cannot be used for this job."""
    global _kept
    with _lock:
        if _kept and (_kept.key != key_of(job) or not _kept.is_alive):
            _kept.close()
            _kept = None
        _kept = _kept or KeptEngine(job)
        return _kept


atexit.register(close)
