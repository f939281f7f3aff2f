"""Which engine a worker runs: vLLM, unless the environment variable BATCHGEN_ENGINE names another one.

    vllm            the default
    instant         answers at once, with made-up responses (instant.py)
    module:Class    called as an EngineClass of types.py; workers find the module by PYTHONPATH

A job that was not made by vLLM says so in its results: it cannot be resumed with vLLM, nor the reverse.
"""

import importlib
import os
from typing import Any, cast

from ..errors import JobError, in_one_line, warn
from ..job.sampler import NONE, ON_CPU, Sampler
from .installed import check_device, check_release, needs_gpu, require_vllm, versions, warn_of_runner
from .torch_fit import require_fit
from .types import EngineClass

VARIABLE = "BATCHGEN_ENGINE"
VLLM, INSTANT = "vllm", "instant"


def chosen() -> str:
    """The name of the engine of this process and its workers. Raises JobError if no engine has such a name."""
    name = os.environ.get(VARIABLE) or VLLM
    module, _, attribute = name.partition(":")
    if name not in (VLLM, INSTANT) and not (module and attribute.isidentifier()):
        raise JobError(f"{VARIABLE}={name}: must be {VLLM}, {INSTANT} or module:Class")
    return name


def as_result(name: str) -> dict[str, str]:
    """What a job's results, and so its fingerprint, say of its engine, in their table of the engine."""
    return {} if name == VLLM else {VARIABLE: name}


def of_results(results: dict[str, Any]) -> str:
    """The engine that a job was begun with."""
    return results.get("engine", {}).get(VARIABLE, VLLM)


def require_engine(args: dict[str, Any]) -> None:
    """Raises JobError if the chosen engine is not installed, cannot be imported beside what is, or cannot run here with
    these arguments."""
    if chosen() == VLLM:
        require_vllm()
        require_fit()
        check_device(args)
    else:
        engine_class()


def check_engine() -> None:
    """Raises JobError if the chosen engine is installed here and cannot be used. Where jobs are submitted from, none
    need be."""
    if chosen() == VLLM:
        check_release(versions().get("vllm", ""))


def warn_of_choice() -> None:
    """What the user should know of it before it starts."""
    if (name := chosen()) == VLLM:
        warn_of_runner()
    else:
        warn(f"{VARIABLE}={name}: vLLM is not used, and no response is the model's")


def known_sampler() -> Sampler | None:
    """What is going to draw tokens, if that is known before an engine is up."""
    name = chosen()
    if name == VLLM:
        return None if needs_gpu() else ON_CPU
    return NONE if name == INSTANT else None


def engine_class() -> EngineClass:
    """Imports the chosen engine. Raises JobError if there is none."""
    name = chosen()
    if name == VLLM:
        from .vllm import VllmEngine

        return VllmEngine
    if name == INSTANT:
        from .instant import InstantEngine

        return InstantEngine
    module, _, attribute = name.partition(":")
    try:
        return cast(EngineClass, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise JobError(f"{VARIABLE}={name}: {in_one_line(error)}") from None
