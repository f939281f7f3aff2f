"""From output folders to a page."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import JobError
from ..job.spec import JobSpec
from ..output import store
from .cases import Answer, Case, folded
from .cases import name as shown
from .choice import Choice, choose
from .compared import Compared, comparison_in
from .measured import measure_outputs
from .outcome import Kind, Outcome, cases_of, open_outcome
from .page import Report, page
from .responses import Responses
from .scores import Scores
from .translations import Translations

DIFFERENT, SAME = "differs", "same"


def page_of(places: Sequence[Any]) -> bytes:
    """The page about one or more output folders: an HTML file that needs nothing else, the same for the same folders.

    places: paths, or stores. One of a sweep gets the page about its settings. Raises JobError if one is no output
    folder, is damaged, or does not go with the others.
    """
    if len(places) == 1 and (found := comparison_in(store.at(places[0]))):
        return page(_of_sweep(found))
    outs = _opened(places)
    choice = choose(outs)
    groups = [out.name for out in outs]
    if len(outs) == 1:  # a sweep that is not compared yet has several settings all the same
        groups = [f"setting {number}" for number in range(outs[0].tally.settings)] if outs[0].tally.settings else groups
        return page(Report(outs, choice, _cases(outs, choice, None), groups))
    cases = _cases(outs, choice, {(at, 0): at for at in range(len(outs))})
    summary = measure_outputs(outs) if choice.common else None
    compared = Compared(summary, "outputs") if summary and summary.metrics else None
    return page(Report(outs, choice, cases, groups, compared))


def kind_of(spec: JobSpec) -> Kind:
    if spec.translate.fields:
        return Translations()
    return Scores() if spec.score.mode != "off" else Responses()


def _of_sweep(compared: Compared) -> Report:
    outs = _opened(compared.outs)
    choice = choose(outs)
    settings = compared.summary.settings
    numbers = {(each.out, each.setting): each.number for each in settings}
    cases = _cases(outs, choice, numbers)
    for case in cases:
        case.answers.sort(key=lambda answer: -answer.times)
        case.tags = [*case.tags, *([] if len(outs) > 1 else [SAME if len(case.answers) == 1 else DIFFERENT])]
    return Report(outs, choice, cases, [shown(each.name) for each in settings], compared)


def _opened(places: Sequence[Any]) -> list[Outcome]:
    outs = [open_outcome(place, kind_of, len(places) > 1) for place in places]
    for out in outs[1:]:
        if out.kind.noun != outs[0].kind.noun:
            raise JobError(
                f"{out.store}: has {out.kind.noun}, and {outs[0].store} has {outs[0].kind.noun}: make a page of each"
            )
    seen: Counter[str] = Counter()
    names = Counter(out.name for out in outs)
    for out in outs:
        if names[out.name] > 1:
            seen[out.name] += 1
            out.name = f"{out.name} ({seen[out.name]})"
    return outs


def _cases(outs: Sequence[Outcome], choice: Choice, numbers: dict[tuple[int, int], int] | None) -> list[Case]:
    """The chosen rows in the order of the choice, each with its answers in all outputs.

    numbers: of the groups of answers, by output and setting; None leaves them as they are
    """
    found = [cases_of(out, np.sort(places)) for out, places in zip(outs, choice.places, strict=True)]
    cases = []
    for at in range(len(choice.ranks)):
        parts = [some.get(int(places[at])) for some, places in zip(found, choice.places, strict=True)]
        known = [part for part in parts if part]
        if len(known) < len(parts):  # of a folder that changes while it is read
            continue
        case = _joined(known, numbers) if numbers else known[0]
        if len(known) > 1:
            alike = len({tuple(answer.text.pieces) for answer in case.answers}) == 1
            case.tags = [SAME if alike else DIFFERENT, *case.tags]
        case.tags = list(dict.fromkeys([*case.tags, *(tag for answer in case.answers for tag in answer.tags)]))
        case.rank, case.bad = int(choice.ranks[at]), int(choice.bad[at])
        cases.append(case)
    return cases


def _joined(parts: Sequence[Case], numbers: dict[tuple[int, int], int]) -> Case:
    """One case of those of several outputs, and of the settings in each; what is of no group is left out."""
    answers: list[Answer] = []
    for out, part in enumerate(parts):
        for answer in part.answers:
            answer.groups = sorted(numbers[out, group] for group in answer.groups if (out, group) in numbers)
            answers += [answer] if answer.groups else []
    case = parts[0]
    case.answers, case.length = folded(answers), max(part.length for part in parts)
    return case
