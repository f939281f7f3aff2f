"""From a spec with `[sweep]` to its task: settings, rows, and what of them decides results."""

from typing import Any

import msgspec

from ..errors import JobError
from ..input.plan import Plan, spread_rows
from ..job.sampling import item_seed
from ..job.settings import TEMPLATE, Setting, settings_of
from ..job.spec import JobSpec, OptionalColumn, SweepTable
from ..output.record import JobRecord
from ..task import tries

MEASURED: tuple[OptionalColumn, ...] = ("mean_logprob",)  # columns that metrics need, whatever the job includes
STRETCH = "stretch of a sweep"  # in the place of an id, for the seed that draws the row of one


def resolved(spec: JobSpec) -> JobSpec:
    """The spec of a sweep with what `[sweep]` decides. Raises JobError for what a sweep cannot have."""
    if spec.translate.fields:
        raise JobError("[sweep]: translations are not compared so; sweep over their texts as rows, with a template")
    if spec.score.mode != "off":
        raise JobError("[sweep]: scores draw nothing, so that no setting changes them; leave out [score]")
    number = spec.sweep.samples or spec.sampling.n
    sampling = msgspec.structs.replace(spec.sampling, n=number)
    include = list(dict.fromkeys([*spec.output.include, *MEASURED]))
    output = msgspec.structs.replace(spec.output, include=include)
    return msgspec.structs.replace(spec, sampling=sampling, output=output)


def settings(spec: JobSpec) -> list[Setting]:
    """The settings of a sweep whose sampling has the model card's values. Raises JobError."""
    again = spec.check.checks and spec.check.tries > 1
    tried = {**tries.UNLIKE_GREEDY, **spec.check.retry} if again else None
    try:
        return settings_of(spec.sweep, spec.sampling, spec.prompt.template, tried)
    except ValueError as error:
        raise JobError(f"[sweep] {error}") from None


def pick_rows(plan: Plan, spec: JobSpec) -> Plan:
    """The rows of a sweep, drawn with the job's seed."""
    if spec.sweep.rows == "all":
        return plan
    return spread_rows(plan, spec.sweep.rows, lambda number: item_seed(spec.sampling.seed, STRETCH, number))


def picks_same_rows(spec: JobSpec, old: JobRecord) -> bool:
    """Whether the plan of the job that is in a folder has the rows that this one wants of the same input."""
    before = msgspec.convert(old.spec.get("sweep", {}), SweepTable, str_keys=True)
    wanted, were = (table.rows if table.method else "all" for table in (spec.sweep, before))
    return wanted == were and (wanted == "all" or spec.sampling.seed == old.spec["sampling"]["seed"])


def templates(spec: JobSpec) -> list[str]:
    """Those of all settings, each once."""
    asked, own = spec.sweep, spec.prompt.template
    found = asked.vary.get(TEMPLATE, [own]) if asked.vary or not asked.also else []
    return list(dict.fromkeys([*found, *(setting.get(TEMPLATE, own) for setting in asked.also)]))


def results_of(spec: JobSpec, results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tables of a sweep's results that are not those of a plain job: what every setting changes is none of the
    job's own, and may be another there, but for the seed, which also draws rows and settings. The order of the lists
    is that of the settings."""
    asked = spec.sweep
    changed = [set(setting) for setting in asked.also] + ([set(asked.vary)] if asked.vary else [])
    by_all = set.intersection(*changed) - {"seed"} if changed else set()
    order = {"order": list(asked.vary)} if len(asked.vary) > 1 else {}
    return {
        "sampling": {key: value for key, value in results["sampling"].items() if key not in by_all},
        "prompt": {key: value for key, value in results["prompt"].items() if key not in by_all},
        "sweep": results["sweep"] | order,
    }
