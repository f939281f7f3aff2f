"""`batchgen eval`: the six tasks of the model card by lm-evaluation-harness, beside what was published of them."""

import logging
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

from .. import evaluation
from ..errors import JobError
from ..evaluation import data as datasets
from ..evaluation.card import MEANS, MODEL, TASKS, WITHIN, Task
from ..job.spec import nearest

HEAD = ("task", "shots", "documents", "metric", "value", "published", "difference")


class Result(NamedTuple):
    """value: in percent"""

    task: Task
    documents: int
    value: float


class Average(NamedTuple):
    """Of several tasks, in percent. fork, card: what was published."""

    tasks: int
    value: float
    fork: float
    card: float


def names_of(tasks: str) -> list[str]:
    """The names in a comma-separated list, all if it is empty. Raises JobError."""
    names = [name.strip() for name in tasks.split(",") if name.strip()] or list(TASKS)
    for name in names:
        if name not in TASKS:
            raise JobError(f"--tasks {name}: the tasks are {', '.join(TASKS)}{nearest(name, list(TASKS))}")
    return list(dict.fromkeys(names))


def model(path: str, revision: str, work: Path | None, engine: dict[str, Any]) -> Any:
    """The harness's model. Raises JobError if the harness is not installed."""
    try:
        from . import harness
    except ImportError as error:
        if not (error.name or "").startswith("lm_eval"):
            raise
        raise JobError("lm-eval is not installed: pip install 'lm_eval==0.4.13'") from None
    return harness.Batchgen(path, str(work or harness.WORK), revision, keep_space=True, **engine)


def evaluate(lm: Any, folder: Path, names: Sequence[str], limit: int | None = None) -> list[Result]:
    """The value of each task.

    Args:
        lm: a model of the harness.
        folder: where the files of the datasets are.
        limit: only so many documents of each task.

    Raises:
        JobError: a file is missing or of another form.
    """
    check_files(folder, names)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what these tasks mean
    with as_file(files(evaluation) / "tasks") as tasks:
        manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata={"data": str(folder)})
        found = simple_evaluate(
            lm,
            tasks=[f"card_{name}" for name in names],
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
        )
    return [_result(found, TASKS[name]) for name in names]


def check_files(folder: Path, names: Sequence[str]) -> None:
    """Raises JobError for the first file that is missing, before the first one is read."""
    for name in names:
        for split in [datasets.VALID, *([datasets.TRAIN] if TASKS[name].shots else [])]:
            datasets.find(folder, name, split)


def _result(found: dict[str, Any], task: Task) -> Result:
    name = f"card_{task.name}"
    return Result(task, found["n-samples"][name]["effective"], 100 * found["results"][name][f"{task.metric},none"])


def averages(results: Sequence[Result]) -> list[Average]:
    """Those whose tasks have all been run."""
    values = {result.task.name: result.value for result in results}
    return [
        Average(len(mean.tasks), sum(values[name] for name in mean.tasks) / len(mean.tasks), mean.fork, mean.card)
        for mean in MEANS
        if values.keys() >= set(mean.tasks)
    ]


def table(results: Sequence[Result], limit: int | None) -> Iterator[str]:
    """The lines to print."""
    rows: list[tuple[str, ...]] = [
        (task.name, f"{task.shots}", f"{documents:,}", task.metric, *_beside(value, task.published))
        for task, documents, value in results
    ]
    means = averages(results)
    rows += [(f"mean of {mean.tasks}", "", "", "", *_beside(mean.value, mean.fork)) for mean in means]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    for row in (HEAD, *rows):
        cells = (
            cell.ljust(width) if at in (0, 3) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
    yield from _notes(means, limit)


def _beside(value: float, published: float) -> tuple[str, str, str]:
    return f"{value:.2f}", f"{published:.2f}", f"{value - published:+.2f}"


def _notes(means: Sequence[Average], limit: int | None) -> Iterator[str]:
    yield f"published: of {MODEL} by Stability AI's fork of the harness, prompt version 0.5, float16"
    for mean in means:
        yield f"mean of {mean.tasks} on the model card: {mean.card:.2f}, {mean.value - mean.card:+.2f}"
    if limit:
        yield f"of the first {limit:,} documents only: not to be compared with what was published"
    else:
        yield f"that model on all documents should be within {WITHIN:.0f} point of every value (an estimate)"


def document(results: Sequence[Result], limit: int | None) -> dict[str, Any]:
    """What the table says, for a program."""
    tasks = [
        {"task": task.name, "shots": task.shots, "documents": documents, "metric": task.metric, "value": value}
        | {"published": task.published}
        for task, documents, value in results
    ]
    return {"tasks": tasks, "means": [mean._asdict() for mean in averages(results)], "limit": limit}
