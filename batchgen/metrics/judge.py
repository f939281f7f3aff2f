"""From the responses to one row to the numbers of every metric."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from ..errors import JobError, Reject
from ..input.template import Template
from .metrics import Answer, Chosen, Tools
from .scorer import Scorer

Record = dict[str, Any]


class Judge:
    """The metrics of a job, for one row after the other.

    samples: most responses of a row in one setting so far
    references: rows that have one
    """

    def __init__(
        self,
        tools: Tools,
        chosen: Chosen,
        scorer: Scorer | None,
        source: str,
        templates: Sequence[str],
    ):
        """source: the column that responses are compared with, if the job names it; templates: of the settings"""
        self.tools, self.chosen, self.scorer = tools, chosen, scorer
        self._source = source
        self._templates = [Template(text) if text else None for text in templates]
        self.samples = self.references = 0

    def row(self, record: Record | None, outputs: Sequence[Record]) -> Iterator[tuple[int, dict[str, float]]]:
        """The values of a row by the number of their setting."""
        known = outputs[0] if record is None else record
        references = _texts(known.get(self.tools.reference)) if self.tools.reference else ()
        self.references += bool(references)
        by_setting: dict[int, list[Answer]] = {}
        for output in outputs:
            number = output.get("setting") or 0
            if not 0 <= number < len(self._templates):
                raise JobError(f"row {output['row']} is of setting {number}, and there are {len(self._templates)}")
            source = self._source_of(known, output, self._templates[number])
            by_setting.setdefault(number, []).append(Answer(output, references, source, self.tools))
        for number, answers in by_setting.items():
            self.samples = max(self.samples, len(answers))
            yield number, self._values(known, answers)

    def _values(self, record: Record, answers: Sequence[Answer]) -> dict[str, float]:
        found = {name: kind.measure(answers) for name, kind in self.chosen.kinds.items()}
        return {name: value for name, value in found.items() if value is not None} | self._scores(record, answers)

    def _scores(self, record: Record, answers: Sequence[Answer]) -> dict[str, float]:
        """Means of what the scorer says."""
        if not self.scorer:
            return {}
        said: dict[str, list[float]] = {}
        for answer in answers:
            for name, value in self.scorer(record, answer.whole).items():
                said.setdefault(name, []).append(value)
        return {name: fmean(values) for name, values in said.items()}

    def _source_of(self, record: Record, output: Record, template: Template | None) -> str:
        """What a response answers: the column that the job names, what its template was filled with, or the last
        utterance of the conversation."""
        if self._source:
            return next(iter(_texts(record.get(self._source))), "")
        try:
            if template:
                return template.values(record)
        except Reject:  # the record is not at hand, and the output has not all of its columns
            pass
        turns = output.get("conversation")
        return str(turns[-1].get("text") or "") if turns else ""


def _texts(value: Any) -> tuple[str, ...]:
    """The texts of a cell: one, or a list of several. Blank ones are none; a whole number is a text too."""
    values = value if isinstance(value, list) else [value]
    texts = [str(each) if isinstance(each, int) and not isinstance(each, bool) else each for each in values]
    return tuple(each for each in texts if isinstance(each, str) and each.strip())
