"""Paths that choose texts in a record, such as `inputs`, `messages[*].content`, `attrs.*` or `meta["any.key"][0]`.

A step of a path is a key of an object or map (`.key`, or `["key"]` for any key at all), the number of an element
(`[0]`, from 0), every value of an object or map (`.*`), or every element of a list (`[*]`).
"""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

MOST_STEPS = 64


class Every(Enum):
    """A step to all that a value holds."""

    VALUE = ".*"
    ELEMENT = "[*]"


Step = str | int | Every


@dataclass(frozen=True, slots=True)
class FieldPath:
    """A path. As text it is in its shortest form, whichever way it was written.

    Attributes:
        steps: a str for a key, an int for the number of an element. The first is a key.
    """

    steps: tuple[Step, ...]

    @property
    def column(self) -> str:
        """The column, or the key of the whole record, that the path begins with."""
        assert isinstance(self.steps[0], str)
        return self.steps[0]

    def __str__(self) -> str:
        return functools.reduce(below, self.steps, "")


_NAME = r"""[^\s.*"\[\]](?:[^.*"\[\]]*[^\s.*"\[\]])?"""
_STEP = re.compile(
    rf'(?P<dot>\.?)(?P<name>{_NAME})|\.\*|\[\*\]|\[(?P<number>[0-9]{{1,9}})\]|\[(?P<key>"(?:[^"\\]|\\.)*")\]'
)


def below(where: str, step: Step) -> str:
    """The text of the path that leads a step further than `where`, which is "" for the whole record."""
    if isinstance(step, Every):
        return where + step.value
    if isinstance(step, int):
        return f"{where}[{step}]"
    if not (step.isidentifier() or re.fullmatch(_NAME, step)):
        return f"{where}[{json.dumps(step, ensure_ascii=False)}]"
    return f"{where}.{step}" if where else step


def parse(text: str) -> FieldPath:
    """Raises ValueError, with a sentence for the user."""
    steps: list[Step] = []
    at = 0
    while at < len(text) or not steps:
        step = _STEP.match(text, at)
        if not step or (step["name"] is not None and bool(step["dot"]) == (at == 0)):
            raise _wrong(text, f"{text[at : at + 20]!r} cannot stand at its " + ("end" if at else "beginning"))
        steps.append(_read(step, text))
        at = step.end()
    if not isinstance(steps[0], str):
        raise _wrong(text, "it has to begin with the name of a column")
    if len(steps) > MOST_STEPS:
        raise _wrong(text, f"it has {len(steps)} steps, more than {MOST_STEPS}")
    return FieldPath(tuple(steps))


def _read(step: re.Match[str], text: str) -> Step:
    if step["number"]:
        return int(step["number"])
    if step["key"]:
        try:
            key: str = json.loads(step["key"])
            key.encode()
            return key
        except ValueError:
            raise _wrong(text, f"{step['key']} is not a JSON string") from None
    return step["name"] or Every(step[0])


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(
        f"{text[:80]!r} is not a path to texts: {why}; write inputs, messages[*].content, turns[0].text or attrs.*, "
        'and meta["a.b"] for a key with signs in it'
    )


def may_meet(first: FieldPath, second: FieldPath) -> bool:
    """Whether some record has a text that both paths choose."""
    return len(first.steps) == len(second.steps) and all(map(_may_agree, first.steps, second.steps))


def _may_agree(first: Step, second: Step) -> bool:
    return first == second or (_every(first) is _every(second) and _every(first) in (first, second))


def _every(step: Step) -> Every:
    """The step to everything that this one may choose from."""
    if isinstance(step, Every):
        return step
    return Every.VALUE if isinstance(step, str) else Every.ELEMENT


# --- following several paths at once


class Choice:
    """What some paths choose from a value and inside it. Each value is met once, however many paths lead to it.

    Attributes:
        ends: numbers of the paths that choose the value itself.
        takes_values, takes_elements: whether some path leads into an object or a map; into a list.
    """

    def __init__(self, paths: Sequence[tuple[int, tuple[Step, ...]]]):
        self.ends = tuple(number for number, steps in paths if not steps)
        self._paths = [(number, steps) for number, steps in paths if steps]
        self._named = {steps[0] for _, steps in self._paths}
        self.takes_values = any(_every(step) is Every.VALUE for step in self._named)
        self.takes_elements = any(_every(step) is Every.ELEMENT for step in self._named)
        self._inside: dict[Step, Choice | None] = {}

    def inside(self, step: str | int) -> "Choice | None":
        """What they choose from the value at a key, or from the element of this number; None if nothing."""
        known = step if step in self._named else _every(step)
        if known not in self._inside:
            wanted = (known, _every(step))
            left = [(number, steps[1:]) for number, steps in self._paths if steps[0] in wanted]
            self._inside[known] = Choice(left) if left else None
        return self._inside[known]


@functools.lru_cache(maxsize=256)
def choice_of(paths: tuple[FieldPath, ...]) -> Choice:
    """What these paths choose from a record."""
    return Choice([(number, path.steps) for number, path in enumerate(paths)])


class Leaf(Protocol):
    """A text that paths choose.

    Attributes:
        path: the path to this text alone, such as `messages[1].content`.
        text: the text.
        chosen_by: numbers of the paths that choose it, as they were given.
    """

    @property
    def path(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def chosen_by(self) -> tuple[int, ...]: ...


L = TypeVar("L", bound=Leaf)


class Found(NamedTuple, Generic[L]):
    """What paths choose in a record.

    Attributes:
        leaves: the texts, in the order of the record, each once.
        missing: the paths that lead nowhere, or to nothing but null.
        mistyped: the paths that choose something else than a text or null, perhaps beside texts.
    """

    leaves: list[L]
    missing: list[FieldPath]
    mistyped: list[FieldPath]


def found(paths: Sequence[FieldPath], leaves: list[L], others: Iterable[tuple[int, ...]]) -> Found[L]:
    """others: for each chosen value that is neither text nor null, the numbers of the paths that choose it."""
    mistyped = {number for chosen_by in others for number in chosen_by}
    there = mistyped.union(*(leaf.chosen_by for leaf in leaves))
    return Found(
        leaves,
        [path for number, path in enumerate(paths) if number not in there],
        [path for number, path in enumerate(paths) if number in mistyped],
    )
