"""Jobs from Python: the same as on the command line, with typed results, errors as exceptions, and nothing printed."""

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from ..commands import export as exporting
from ..commands import plan as planning
from ..commands import retry as retrying
from ..commands import status as looking
from ..commands import sweep as sweeping
from ..commands import verify as verifying
from ..errors import JobError, Stopped
from ..host import bucket
from ..host.caller import Caller, Seen, called_by
from ..job import spec as specs
from ..job.spec import JobSpec
from ..metrics.summary import Summary
from ..output.store import Place
from ..runner import run as running
from ..runner.outcome import Outcome
from . import data
from .results import Scores

P = ParamSpec("P")
R = TypeVar("R")
_PATHS = ("input", "model", "output")  # tables of which a path alone may be given


class BatchgenWarning(UserWarning):
    """What the command line prints as a warning: something to know that stops nothing."""


def warn(text: str) -> None:
    warnings.warn(text, BatchgenWarning, stacklevel=2)


def _of_python(function: Callable[P, R]) -> Callable[P, R]:
    """Has warnings come as Python's, and signals left alone."""

    @functools.wraps(function)
    def called(*arguments: P.args, **options: P.kwargs) -> R:
        with called_by(Caller(warn, catches_signals=False)):
            return function(*arguments, **options)

    return called


# --- jobs


def load(job_file: str | Path | None = None, **tables: Any) -> JobSpec:
    """A job: of a TOML file, of tables, or of both, where a key that is given here wins.

    job_file: its path
    tables: those of a job file by name, each a dict: sampling={"temperature": 0}. `model` and `output` may be a path;
        `input` may be one or several, or data in memory (see data.paths_of)

    Raises JobError.
    """
    file = str(job_file) if job_file else None
    given = {name: _table(name, value) for name, value in tables.items()}
    source = given.get("input", {})
    if "path" in source:
        output = given.get("output", {}).get("path") or _output_of(file)
        source["path"] = data.paths_of(source["path"], output)
    return specs.load(file, given)


def _table(name: str, value: Any) -> dict[str, Any]:
    is_table = isinstance(value, dict) and (name != "input" or value.keys() <= set(specs.keys_of("input")))
    if name in _PATHS and not is_table:
        return {"path": value if name == "input" else str(value)}
    if not isinstance(value, dict):
        raise JobError(f"[{name}]: is a table: give a dict, such as {name}={{...}}")
    return dict(value)


def _output_of(job_file: str | None) -> str:
    """Where the job of a file writes: data in memory is put beside it. Raises JobError."""
    if not job_file:
        raise JobError("[output] path is missing: give output=...")
    return specs.load(job_file, {"input": {"path": []}}).output.path


def _job(given: JobSpec) -> JobSpec:
    """Raises JobError for what is not one, such as the path of a job file."""
    if not isinstance(given, JobSpec):
        raise JobError(f"{given!r:.80} is no job: batchgen.load(...) makes one of a job file or of tables")
    return given


class Progress(NamedTuple):
    """How far a run has come.

    rows: of the job; done: of these, finished by this run or before
    rejected: rows of this run without a response; by_length: share of its responses that max_tokens ended
    prompt_tokens, response_tokens: of this run
    running, waiting: requests in the engines
    """

    rows: int
    done: int
    rejected: int
    by_length: float
    prompt_tokens: int
    response_tokens: int
    running: int
    waiting: int


class _Watch:
    """Tells a function of the progress of a run."""

    def __init__(self, tell: Callable[[Progress], None], rows: int, done: int):
        self._tell, self._rows, self._done = tell, rows, done
        self._last = Progress(rows, done, 0, 0.0, 0, 0, 0, 0)

    def starting(self) -> None:
        self._tell(self._last)

    def show(self, seen: Seen) -> None:
        tokens = seen.prompt_tokens, seen.response_tokens
        done = self._done + seen.rows
        self._last = Progress(self._rows, done, seen.rejected, seen.by_length, *tokens, seen.running, seen.waiting)
        self._tell(self._last)

    def close(self, rows: int) -> None:
        self._tell(self._last._replace(done=self._done + rows, running=0, waiting=0))


class _Bar:
    """A bar of tqdm's, of the notebook's kind in a notebook."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, now: Progress) -> None:
        from tqdm.auto import tqdm

        self._bar = self._bar if self._bar is not None else tqdm(total=now.rows, initial=now.done, unit="row")
        self._bar.update(now.done - self._bar.n)
        if now.done == now.rows:
            self._bar.close()


def _listening(on_progress: "Callable[[Progress], None] | bool", stop: threading.Event | None, signals: bool) -> Caller:
    tell: Callable[[Progress], None] = on_progress if callable(on_progress) else _Bar() if on_progress else _nothing
    return Caller(warn, functools.partial(_Watch, tell), signals, stop)


def _nothing(now: Progress) -> None:
    pass


def run(
    job: JobSpec,
    *,
    on_progress: Callable[[Progress], None] | bool = False,
    discard: bool = False,
    stop: threading.Event | None = None,
    signals: bool = False,
) -> Outcome:
    """Brings a job to its end, or resumes it. Works in any thread.

    on_progress: gets the progress some times a second; True shows a bar
    discard: drop what a different job has left in the output folder
    stop: once it is set, the run ends with Stopped: what has finished is kept, and the next call goes on from there
    signals: whether SIGTERM does the same, as on the command line; in the main thread alone. Ctrl-C does in any case

    Raises JobError, MachineError or Stopped.
    """
    with called_by(_listening(on_progress, stop, signals)):
        return running.run(specs.without_sweep(_job(job)), discard)


def translate(
    job: JobSpec,
    *,
    on_progress: Callable[[Progress], None] | bool = False,
    discard: bool = False,
    stop: threading.Event | None = None,
) -> Outcome:
    """`run` for a job that has `[translate]`: what is counted are records and segments.

    Raises what `run` raises; JobError, too, for another job.
    """
    if not _job(job).translate.fields:
        raise JobError("[translate] fields: the job translates nothing; give translate={'fields': [...], 'into': ...}")
    return run(job, on_progress=on_progress, discard=discard, stop=stop)


def score(
    job: JobSpec,
    *,
    on_progress: Callable[[Progress], None] | bool = False,
    discard: bool = False,
    stop: threading.Event | None = None,
) -> Scores:
    """`run` for a job that has `[score]`. Returns its outcome with the scores.

    Raises what `run` raises; JobError, too, for another job.
    """
    if _job(job).score.mode == "off":
        raise JobError("[score] mode: the job scores nothing; give score={'mode': 'text'}, or another mode")
    return Scores(run(job, on_progress=on_progress, discard=discard, stop=stop))


def sweep(
    job: JobSpec,
    *,
    on_progress: Callable[[Progress], None] | bool = False,
    discard: bool = False,
    stop: threading.Event | None = None,
) -> Summary:
    """Answers a sample of the input with every setting that `[sweep]` lists, and compares them by `[metrics]`. What
    comes out is in the output folder as well, with the best setting and a page to look at.

    Raises what `run` raises; Stopped, too, while other workers hold the last shards.
    """
    with called_by(_listening(on_progress, stop, signals=False)):
        finished = list(sweeping.sweep(_job(job), discard))
        if not all(done.outcome.counts for done in finished):
            raise Stopped(f"{job.output.path}: other workers hold the last shards")
        return sweeping.compare(job, finished)


def retry(
    out: Place,
    only: str | Sequence[str],
    *,
    on_progress: Callable[[Progress], None] | bool = False,
    stop: threading.Event | None = None,
    **tables: Any,
) -> Outcome:
    """Generates again, in a new output folder, those rows that ended for one of these reasons.

    only: finish reasons and reject reasons
    tables: what is to differ from the job, by table; `output` has to name another folder

    Raises what `run` raises.
    """
    reasons = only if isinstance(only, str) else ",".join(only)
    with called_by(_listening(on_progress, stop, signals=False)):
        return retrying.retry(out, reasons, {name: _table(name, value) for name, value in tables.items()})


# --- looking at them


@_of_python
def plan(job: JobSpec) -> planning.Forecast:
    """Reads, renders and tokenizes the whole input: rows, rejects to come, prompt lengths, shards. Raises JobError."""
    return planning.plan(specs.without_sweep(_job(job)))


@_of_python
def status(out: Place) -> looking.Status:
    """How far the job in a folder is: shards, rows, workers, throughput, time left. Raises JobError."""
    return looking.look(out)


@_of_python
def verify(out: Place, *, quarantine: bool = False, close: bool = False) -> verifying.Verdict:
    """Checks every shard against the job and its input; `problems` is empty if no row is missing, doubled or damaged.

    quarantine: move damaged shards aside, so that a run makes them again; close: write `_SUCCESS` if only that is
    missing. Raises JobError.
    """
    return verifying.verify(out, verifying.Writing(quarantine, close))


@_of_python
def export(
    out: Place,
    to: str | Path,
    *,
    format: str = "",
    columns: Sequence[str] = (),
    partial: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes the results as one file, a dataset folder, or a dataset on the hub; see the manual for the formats.

    to: path, URI in a bucket, or hf://datasets/ORG/NAME; columns: some of them, in this order; partial: what there is
    of an unfinished job. Raises JobError.
    """
    names = ",".join(columns)
    if str(to).startswith("hf://"):
        exporting.export_to_hub(out, str(to), names, partial, overwrite, public=False)
    elif bucket.is_uri(to):
        exporting.export_to_bucket(out, str(to), format, names, partial, overwrite)
    else:
        exporting.export(out, Path(to), format, names, partial, overwrite)
