"""Jobs from Python: the same as on the command line, with typed results, errors as exceptions, and nothing printed."""

from typing import Any

from ..job import spec as specs
from ..job.spec import JobSpec
from . import data

_PATHS = ("input", "model", "output")  # tables of which a path alone may be given


def load(job_file: str | None = None, **tables: Any) -> JobSpec:
    """A job: of a TOML file, of tables, or of both, where a key that is given here wins.

    job_file: its path
    tables: those of a job file by name, each a dict: sampling={"temperature": 0}. `model` and `output` may be a path;
        `input` may be one or several, or data in memory (see data.paths_of)

    Raises JobError.
    """
    given = {name: _table(name, value) for name, value in tables.items()}
    source = given.get("input", {})
    if "path" in source:
        output = given.get("output", {}).get("path") or _output_of(job_file)
        source["path"] = data.paths_of(source["path"], output)
    return specs.without_sweep(specs.load(job_file, given))


def _table(name: str, value: Any) -> dict[str, Any]:
    is_table = isinstance(value, dict) and (name != "input" or value.keys() <= set(specs.keys_of("input")))
    if name in _PATHS and not is_table:
        return {"path": value if name == "input" else str(value)}
    return dict(value)


def _output_of(job_file: str | None) -> str:
    """Where the job of a file writes: data in memory is put beside it. Raises JobError."""
    return specs.load(job_file, {"input": {"path": []}}).output.path if job_file else "out"
