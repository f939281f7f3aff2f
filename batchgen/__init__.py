"""batchgen: offline generation over whole datasets with vLLM.

    job = batchgen.load("job.toml", sampling={"temperature": 0})
    batchgen.run(job)
    table = batchgen.open("out").to_pandas()

What is here is loaded when it is first used: `import batchgen` takes milliseconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.4.0"

if TYPE_CHECKING:
    from .api.generate import Answer, close, generate
    from .api.jobs import (
        BatchgenWarning,
        Progress,
        export,
        load,
        plan,
        retry,
        run,
        score,
        status,
        sweep,
        translate,
        verify,
    )
    from .api.results import Rejected, Results, Score, ScoredRow, Scores, open
    from .errors import JobError, MachineError, Stopped
    from .job.spec import JobSpec

_PLACES = {
    "api.generate": ("Answer", "close", "generate"),
    "api.jobs": tuple(
        "BatchgenWarning Progress export load plan retry run score status sweep translate verify".split()
    ),
    "api.results": ("Rejected", "Results", "Score", "ScoredRow", "Scores", "open"),
    "errors": ("JobError", "MachineError", "Stopped"),
    "job.spec": ("JobSpec",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "Answer",
    "BatchgenWarning",
    "JobError",
    "JobSpec",
    "MachineError",
    "Progress",
    "Rejected",
    "Results",
    "Score",
    "ScoredRow",
    "Scores",
    "Stopped",
    "close",
    "export",
    "generate",
    "load",
    "open",
    "plan",
    "retry",
    "run",
    "score",
    "status",
    "sweep",
    "translate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
