"""From output folders to a page."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import JobError
from ..job.spec import JobSpec
from .cases import Case, folded
from .choice import Choice, choose
from .outcome import Kind, Outcome, cases_of, open_outcome
from .page import Report, page
from .responses import Responses
from .scores import Scores
from .segments import Segments

DIFFERENT, SAME = "differs", "same"


def page_of(places: Sequence[Any]) -> bytes:
    """The page about one or more output folders: an HTML file that needs nothing else, the same for the same folders.

    places: paths, or stores. Raises JobError if one is no output folder, is damaged, or does not go with the others.
    """
    outs = [open_outcome(place, kind_of, len(places) > 1) for place in places]
    _check_alike(outs)
    _name_apart(outs)
    choice = choose(outs)
    return page(Report(outs, choice, _cases(outs, choice), [out.name for out in outs]))


def kind_of(spec: JobSpec) -> Kind:
    if spec.translate.fields:
        return Segments()
    return Scores() if spec.score.mode != "off" else Responses()


def _check_alike(outs: Sequence[Outcome]) -> None:
    for out in outs[1:]:
        if out.kind.noun != outs[0].kind.noun:
            raise JobError(
                f"{out.store}: has {out.kind.noun}, and {outs[0].store} has {outs[0].kind.noun}: make a page of each"
            )


def _name_apart(outs: Sequence[Outcome]) -> None:
    """Folders of one name are numbered."""
    seen: Counter[str] = Counter()
    names = Counter(out.name for out in outs)
    for out in outs:
        if names[out.name] > 1:
            seen[out.name] += 1
            out.name = f"{out.name} ({seen[out.name]})"


def _cases(outs: Sequence[Outcome], choice: Choice) -> list[Case]:
    """The chosen rows in the order of the choice, each with its answers in all outputs."""
    found = [cases_of(out, np.sort(places)) for out, places in zip(outs, choice.places, strict=True)]
    cases = []
    for at in range(len(choice.ranks)):
        parts = [some.get(int(places[at])) for some, places in zip(found, choice.places, strict=True)]
        case = parts[0]
        if case is None or None in parts:  # of a folder that changes while it is read
            continue
        if len(parts) > 1:
            answers = []
            for number, part in enumerate(parts):
                for answer in part.answers if part else ():
                    answer.groups = [number]
                    answers.append(answer)
            case.answers = folded(answers)
            case.length = max(part.length for part in parts if part)
            alike = all(len(answer.groups) == len(parts) for answer in case.answers)
            case.tags = [SAME if alike else DIFFERENT]
        case.tags = list(dict.fromkeys([*case.tags, *(tag for answer in case.answers for tag in answer.tags)]))
        case.rank, case.bad = int(choice.ranks[at]), int(choice.bad[at])
        cases.append(case)
    return cases
