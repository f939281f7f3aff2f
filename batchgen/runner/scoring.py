"""From a spec with `[score]` to its task."""

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from ..errors import JobError
from ..input import checks
from ..input.columns import Column
from ..input.scan import InputFile
from ..job.spec import JobSpec
from ..task.generate import Generate
from ..task.score import TEXT, Score


def check(spec: JobSpec) -> None:
    """Raises JobError for settings that a score cannot have."""
    asked = spec.score
    if spec.translate.fields:
        raise JobError("[score] mode: a job either scores or translates; make two jobs")
    if spec.check.checks:
        raise JobError("[check] checks: scores are no responses that could fail; leave them out")
    if spec.sampling.n != 1:
        raise JobError("[sampling] n: a text is scored once; leave it out")
    if spec.output.include:
        raise JobError("[output] include: scores have no such columns; [score] tokens writes those of every token")
    if spec.model.reasoning_parser:
        raise JobError("[model] reasoning_parser: a text that is there is scored as it is; leave it out")
    if asked.mode == "continuation" and not asked.column and spec.prompt.template:
        raise JobError("[score] column: name the column with the text to score, as the template makes the prompt")
    if asked.mode == "text" and spec.prompt.template:
        raise JobError("[prompt] template: with [score] mode = text a column is scored as it is; leave it out")


def check_columns(spec: JobSpec, files: Iterable[InputFile]) -> None:
    """Raises JobError if no row has what is to be scored."""
    asked = spec.score
    column = asked.column or (TEXT if asked.mode == "text" else "")
    named = {"[score] column": column, "[score] reference": asked.reference}
    checks.require(files, {where: name for where, name in named.items() if name})


def for_prompts(spec: JobSpec) -> JobSpec:
    """The spec by which prompts are made: of a conversation that ends with the answer to score, without it."""
    if spec.score.column:
        return spec
    return msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, drop_last_response=True))


def task_of(spec: JobSpec, generate: Generate, context: int, columns: list[Column]) -> Score:
    made = Score(spec, generate, context, columns, frozenset(spec.input.skip))
    return replace(made, generate=replace(generate, room=made.room))
