"""The settings of a sweep: what `[sweep]` asks for, one by one, and those that mean the same only once."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from .sampling import JobSampling, Sampling, item_seed
from .spec import JobSpec, SweepTable

TEMPLATE = "template"
MOST = 10_000  # settings of a grid
LONGEST = 32  # characters of a value in a setting's name


class Setting(msgspec.Struct, frozen=True):
    """One of the settings that a sweep compares.

    number: from 0, in the order of the sweep
    name: for people
    changes: of every key that varies, the value that it has here; the template of the prompt is one of them
    sampling: all of `[sampling]` that a plain run with this setting has
    template: `[prompt] template` of such a run
    same: the changes of further settings that mean the same, and are not made
    """

    number: int
    name: str
    changes: dict[str, Any]
    sampling: dict[str, Any]
    template: str = ""
    same: list[dict[str, Any]] = []

    @property
    def as_sampling(self) -> JobSampling:
        return msgspec.convert(self.sampling, JobSampling, str_keys=True)

    def of(self, spec: JobSpec) -> JobSpec:
        """The job of a sweep as a plain run with this setting has it."""
        prompt = msgspec.structs.replace(spec.prompt, template=self.template)
        return msgspec.structs.replace(spec, prompt=prompt, sampling=self.as_sampling)


class _Asked(NamedTuple):
    """name: as `[[sweep.also]]` gives it, if it does; own: what is asked for"""

    name: str
    own: dict[str, Any]


def settings_of(table: SweepTable, base: JobSampling, template: str, tried: dict[str, Any] | None) -> list[Setting]:
    """The settings of a sweep, in its order: those of its lists, then `[[sweep.also]]`.

    base, template: of the job, with the model card's values; what a setting does not change is as there
    tried: what a further try of a greedy response changes, if the job may make any: then more of a setting counts

    Raises ValueError if a setting is none, with its name.
    """
    asked = [_Asked("", own) for own in _combined(table, base.seed)]
    asked += [_Asked(own.get("name", ""), {key: own[key] for key in own if key != "name"}) for own in table.also]
    asked = asked or [_Asked("", {})]  # of several models, each as the job has it
    keys = list(dict.fromkeys(key for each in asked for key in each.own))
    found: dict[bytes, Setting] = {}
    for name, own in asked:
        title = name or named(own)
        sampling = _applied(base, own, title)
        values = msgspec.to_builtins(sampling, str_keys=True)
        text = own.get(TEMPLATE, template)
        changes = {key: text if key == TEMPLATE else values[key] for key in keys}
        key = _meaning(sampling, text, tried)
        if known := found.get(key):
            title = f"{known.name} ({name})" if name else known.name
            found[key] = msgspec.structs.replace(known, name=title, same=[*known.same, changes])
        else:
            found[key] = Setting(len(found), title, changes, values, text)
    return _told_apart(list(found.values()))


def _told_apart(settings: list[Setting]) -> list[Setting]:
    """With names that no two of them have: long values are cut in names."""
    often = Counter(setting.name for setting in settings)
    twice = {setting.number for setting in settings if often[setting.name] > 1}
    names = [f"{each.name} #{each.number}" if each.number in twice else each.name for each in settings]
    return [msgspec.structs.replace(each, name=name) for each, name in zip(settings, names, strict=True)]


def _combined(table: SweepTable, seed: int) -> Iterator[dict[str, Any]]:
    """What the lists of a sweep ask for."""
    keys, lists = list(table.vary), list(table.vary.values())
    if not lists:
        return
    if table.method == "list":
        combined: Any = zip(*lists, strict=True)
    elif table.method == "random":
        combined = _drawn(lists, table.trials, seed)
    elif (number := math.prod(map(len, lists))) > MOST:
        raise ValueError(f"{number:,} combinations, of which a sweep takes {MOST:,}; set method to random, and trials")
    else:
        combined = itertools.product(*lists)
    for values in combined:
        yield dict(zip(keys, values, strict=True))


def _drawn(lists: list[list[Any]], trials: int, seed: int) -> Iterator[list[Any]]:
    """Different combinations, in the order in which they are drawn. Not by Python's own random: a later version of that
    might draw others, and a sweep goes on for years."""
    sizes = [len(values) for values in lists]
    total = math.prod(sizes)
    taken: set[int] = set()
    for trial in itertools.count():
        if len(taken) == min(trials, total):
            return
        number = item_seed(seed, "setting of a sweep", trial) % total
        if number not in taken:
            taken.add(number)
            yield [values[place] for values, place in zip(lists, _places(number, sizes), strict=True)]


def _places(number: int, sizes: list[int]) -> list[int]:
    """A combination by its number: the place in each list, the last one counting fastest."""
    places = []
    for size in reversed(sizes):
        number, place = divmod(number, size)
        places.append(place)
    return places[::-1]


def _applied(base: JobSampling, own: dict[str, Any], name: str) -> JobSampling:
    changes = {key: value for key, value in own.items() if key != TEMPLATE}
    try:
        return msgspec.convert({**msgspec.to_builtins(base), **changes}, JobSampling, str_keys=True)
    except ValueError as error:  # msgspec's own is one
        raise ValueError(f"{name}: {error}") from None


# --- what means the same


def meaning(params: Sampling) -> Sampling:
    """The parameters without what does nothing beside the others, so that those are equal which give the same tokens to
    the same seed. vLLM takes no notice of top_p, top_k and min_p at temperature 0 (its sampling_params.py)."""
    plain: dict[str, Any] = {}
    if params.temperature == 0:
        plain |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    if not params.stop:
        plain |= {"include_stop_str_in_output": False}
    if (loops := params.repetition_detection) and not loops.max_pattern_size:
        plain |= {"repetition_detection": None}
    return msgspec.structs.replace(params, **plain) if plain else params


def _meaning(sampling: JobSampling, template: str, tried: dict[str, Any] | None) -> bytes:
    """Equal for settings that mean the same for a row that has no parameters of its own."""
    params = sampling.for_rows()
    told: list[Any] = [meaning(params), template, sampling.n, sampling.rerank if sampling.n > 1 else None]
    if params.temperature or tried is not None:
        told.append(sampling.seed)
    if tried is not None:
        told.append(msgspec.to_builtins(params, str_keys=True) | tried)
    return msgspec.json.encode(told)


# --- for people


def named(changes: dict[str, Any]) -> str:
    """The name of a setting by what it changes."""
    return ", ".join(f"{key} {_shown(value)}" for key, value in changes.items()) or "as in the job"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
