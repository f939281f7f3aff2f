"""The commands. Parsing and printing only; what a command does stands in the file of its name."""

import os
import signal
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, get_args, get_origin, get_type_hints

import click
import msgspec

from . import __version__
from .errors import JobError, MachineError, Stopped, shown
from .host import console, safeopen, terminal
from .job.spec import TABLES, JobSpec, current_folder, load, model_path

EXIT_USAGE, EXIT_REJECTS, EXIT_STOPPED, EXIT_BROKEN = 2, 3, 75, 1
LONGEST_JOB_FILE = 1 << 20  # bytes
DEAD_SHOWN = 5  # workers that died last; those of a long job are many


class Commands(click.Group):
    """All commands. What streams cannot take ends none of them; what no command foresees ends in one line, too."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        console.set_up()
        try:
            return super().main(*arguments, **options)
        except OSError as error:  # of stdout: all else is caught where it happens
            fail(f"stdout: {error.strerror or error}", EXIT_BROKEN)
        finally:
            console.settle()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:  # click's own business, as the next are
            error.message = terminal.message(error.message)  # type: ignore[misc]
            raise
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except JobError as error:
            fail(error, EXIT_USAGE)
        except OSError as error:
            if error.filename is None:
                raise  # of stdout
            fail(_of_the_system(error), EXIT_BROKEN)
        except MemoryError:
            fail("this machine's memory does not suffice", EXIT_BROKEN)
        except Exception as error:
            if os.environ.get("BATCHGEN_TRACEBACK"):
                raise
            fail(_bug(error), EXIT_BROKEN)


def _of_the_system(error: OSError) -> str:
    return f"{error.filename or 'the disk'}: {error.strerror or error}"


def _bug(error: Exception) -> str:
    """The line about an error that nobody foresaw. Where it arose stands in a file."""
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="batchgen-bug-", suffix=".txt", encoding="utf-8", delete=False
        ) as file:
            file.write(terminal.hidden(f"batchgen {__version__}\n{''.join(traceback.format_exception(error))}"))
    except OSError:
        return f"this is a bug in batchgen: {what}; run it with BATCHGEN_TRACEBACK=1 to see where it arose"
    return f"this is a bug in batchgen: {what}; where it arose stands in {file.name}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="batchgen")
def cli() -> None:
    """Offline generation over whole datasets: conversations in, responses out, nothing lost on the way."""


def say(text: Any = "", **options: Any) -> None:
    """click.echo of what any terminal takes, whose error names what could not be written to."""
    try:
        click.echo(terminal.lines(str(text)), **options)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, "stdout") from None


def fail(why: str | JobError, code: int) -> NoReturn:
    lines = why.lines if isinstance(why, JobError) else [why]
    click.echo("batchgen: " + "\n".join(map(terminal.message, lines)), err=True)
    sys.exit(code)


# --- every key of the job file as a flag


def flag_name(table: str, key: str) -> str:
    """`path` goes by its table's name (--model), `format` by both (--prompt-format), columns of the input that other
    tables have a key for by --seed-column and so on, limits by --limit-turns and so on, all others by their own."""
    if table == "input" and key in ("seed", "sampling", "system"):
        return f"--{key}-column"
    if table == "limits":
        return f"--limit-{key}".replace("_", "-")
    names = {"path": table, "format": f"{table}-format", "columns": "column", "include": "include"}
    return "--" + names.get(key, key).replace("_", "-")


class Json(click.ParamType):
    """A flag whose value is JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return msgspec.json.decode(value) if isinstance(value, str) else value
        except msgspec.DecodeError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)


def job_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option per key of the job file, taken from the tables' own types and descriptions."""
    options = []
    for table, struct in TABLES.items():
        for key, hint in get_type_hints(struct, include_extras=True).items():
            if (table, key) == ("input", "path"):
                continue  # the command's arguments
            options.append(_option(table, key, hint))
    for option in reversed(options):
        command = option(command)
    return command


def _option(table: str, key: str, hint: Any) -> Callable[..., Any]:
    plain, description = _plain_type(hint)
    multiple = get_origin(plain) is list
    if get_origin(plain) is dict:
        plain = Json
    value_type = get_args(plain)[0] if multiple else plain
    if isinstance(value_type, type) and issubclass(value_type, msgspec.Struct):
        value_type, multiple = Json, False
    choices = [choice for choice in get_args(value_type) if isinstance(choice, str)]
    simple = next((t for t in (bool, int, float, Json) if t is value_type), str)
    kind: Any = click.Choice(choices) if choices else Json() if simple is Json else simple
    name = flag_name(table, key)
    return click.option(
        f"{name}/--no{name[1:]}" if kind is bool else name,
        f"{table}__{key}",
        type=None if kind is bool else kind,
        multiple=multiple,
        default=None,
        help=f"[{table}] {key}: {description}",
    )


def _plain_type(hint: Any) -> tuple[Any, str]:
    """A field's type without msgspec's wrapping and `| None`, and its description."""
    if type(None) in get_args(hint):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is not Annotated:
        return hint, ""
    plain, *metas = get_args(hint)
    return plain, next(meta.description for meta in metas if meta.description)


def _engine_value(setting: str) -> tuple[str, Any]:
    """KEY=VALUE of --engine; VALUE as in TOML, or plain text."""
    key, equals, value = setting.partition("=")
    if not equals:
        raise JobError(f"--engine {setting}: write KEY=VALUE, such as max_num_seqs=256")
    try:
        return key, tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key, value


def _flags(inputs: tuple[str, ...], engine: tuple[str, ...], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Only what was given, by table."""
    tables: dict[str, dict[str, Any]] = {"input": {"path": list(inputs)} if inputs else {}}
    for name, value in options.items():
        table, _, key = name.partition("__")
        if value is not None and value != ():
            tables.setdefault(table, {})[key] = list(value) if isinstance(value, tuple) else value
    if engine:
        tables["engine"] = dict(_engine_value(setting) for setting in engine)
    return {table: values for table, values in tables.items() if values}


def _spec_of_run(arguments: list[str]) -> JobSpec:
    """The job that `batchgen run` with these arguments would do."""
    given = dict(run_command.make_context("run", list(arguments)).params)
    del given["discard"]
    return _spec(given.pop("inputs"), given.pop("engine"), given)


def _spec(inputs: tuple[str, ...], engine: tuple[str, ...], options: dict[str, Any]) -> JobSpec:
    """The job that a command line names: a job file first, if there is one, then input."""
    job_file, files = (inputs[0], inputs[1:]) if inputs and inputs[0].endswith(".toml") else (None, inputs)
    if job_file is None and files and _is_other_job_file(Path(files[0])):
        raise JobError(f"{files[0]}: a job file is TOML, and its name ends in .toml; see README")
    return load(job_file, _flags(files, engine, options))


def _is_other_job_file(path: Path) -> bool:
    """Whether it is what people write where job files are YAML or JSON: no input looks like it."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return True
    if path.suffix.lower() != ".json":
        return False
    try:
        with safeopen.reading(path) as file:
            tables = msgspec.json.decode(file.read(LONGEST_JOB_FILE))
    except (OSError, ValueError, JobError):
        return False
    return (
        isinstance(tables, dict)
        and bool(tables)
        and all(isinstance(tables.get(table), dict) for table in ("input", "model"))
    )


# --- the commands


@contextmanager
def exit_codes() -> Iterator[None]:
    """What goes wrong becomes one line on stderr and the exit code that says who has to act."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        # Not an exception: whatever is being imported may catch it. Files appear whole or not at all, so this is safe.
        with suppress(OSError):
            os.write(2, b"batchgen: stopped as asked; run the same command again to go on\n")
        os._exit(EXIT_STOPPED)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except JobError as error:
        fail(error, EXIT_USAGE)
    except MachineError as error:
        fail(str(error), EXIT_BROKEN)
    except Stopped as why:
        fail(str(why), EXIT_STOPPED)
    except BrokenPipeError:
        raise  # `... | head`: click ends quietly
    except OSError as error:
        fail(_of_the_system(error), EXIT_BROKEN)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@cli.command("run", short_help="Generate a response for every conversation.")
@click.argument("inputs", nargs=-1, metavar="[JOB.toml] [IN]...")
@click.option("--engine", multiple=True, metavar="KEY=VALUE", help="[engine] any of vLLM's EngineArgs")
@click.option("--discard", is_flag=True, help="drop what a job that differs has left in the output folder")
@job_flags
def run_command(inputs: tuple[str, ...], engine: tuple[str, ...], discard: bool, **options: Any) -> None:
    """Generate a response for every conversation of the input, or go on where the last run stopped.

    A job file, flags, or both; a flag wins over the file.

    \b
    Examples:
      batchgen run job.toml
      batchgen run job.toml --temperature 0 --output out-greedy
      batchgen run talks.jsonl more/*.parquet --model models/sft --output out
    """
    with exit_codes():
        spec = _spec(inputs, engine, options)
        from .run.run import run

        outcome = run(spec, discard)
    _print_outcome(outcome)


def _print_outcome(outcome: Any) -> None:
    """The summary; exits 3 if more rows were rejected than the job allows."""
    _print_summary(outcome)
    max_rejects = outcome.max_rejects
    rejected = outcome.counts.rejected if outcome.counts else 0
    if max_rejects is not None and rejected > max_rejects:
        fail(f"{rejected} rows were rejected, max_rejects allows {max_rejects}; see batchgen rejects", EXIT_REJECTS)


def _print_summary(outcome: Any) -> None:
    totals = outcome.totals
    if outcome.counts is None:
        console.say(f"no work left here: other workers are at the last shards of {outcome.out}")
    else:
        state = "done" if totals.rows else "all done already"
        console.say(f"{state}: {outcome.counts} in {outcome.out}")
    if totals.rows:
        seconds = max(outcome.seconds - outcome.engine_start, 1e-9)
        kept = f" ({totals.kept:,} responses from the journal)" if totals.kept else ""
        console.say(
            f"this run: {totals.rows:,} rows{kept}, {totals.prompt_tokens:,} prompt and "
            f"{totals.response_tokens:,} response tokens in {outcome.seconds:,.1f} s, engine start "
            f"{outcome.engine_start:,.1f} s; then {totals.response_tokens / seconds:,.0f} response tokens/s"
        )


@cli.command("submit", short_help="Run a job on a Slurm cluster.")
@click.argument("job_file", metavar="JOB.toml", type=click.Path(path_type=Path))
@click.argument("run_flags", metavar="[-- RUN FLAGS]", nargs=-1)
@click.option("--array", metavar="N", help="so many tasks at the same job (or indices, as Slurm writes them)")
@click.option("--time", metavar="LIMIT", help="of each task, as Slurm writes it: 4:00:00")
@click.option("--partition", "-p", metavar="NAME", help="where to run")
@click.option("--job-name", metavar="NAME", help="in Slurm, and of the logs; by default that of the job file")
@click.option("--sbatch", multiple=True, metavar="KEY=VALUE", help="any other option of sbatch, without its dashes")
@click.option("--dry-run", is_flag=True, help="check the job and print the batch script")
def submit_command(
    job_file: Path,
    run_flags: tuple[str, ...],
    job_name: str | None,
    sbatch: tuple[str, ...],
    dry_run: bool,
    **given: str | None,
) -> None:
    """Submit runs of a job to Slurm, and a `batchgen verify` that starts when they have ended.

    All tasks of an array share the work, however many of them come to run, and when. A task whose time is up, or that
    is preempted, starts again and goes on. The job is checked before it is submitted. What follows `--` is for
    `batchgen run`.

    \b
    Examples:
      batchgen submit job.toml --array 8 --time 4:00:00
      batchgen submit job.toml -p gpu --sbatch mem=64G --sbatch account=nlp -- --temperature 0 --output out-greedy
    """
    from .commands import submit
    from .run.prepare import prepare

    with exit_codes():
        arguments = [str(current_folder() / job_file), "--requeue", *run_flags]
        spec = _spec_of_run(arguments)
        chosen = {key: value for key, value in given.items() if value is not None} | submit.settings(sbatch)
        if "array" in chosen:
            chosen["array"] = submit.array_of(chosen["array"])
        options = submit.run_options(spec, job_name or job_file.stem, chosen)
        job = prepare(spec)
        if dry_run:
            say(submit.script(options, ["run", *arguments]), nl=False)
            return
        done = submit.submit(job, options, arguments)
    console.say(f"submitted: job {done.job}; the script is {done.script}, logs come beside it")
    if done.verification:
        console.say(f"after it: job {done.verification}, batchgen verify")
    console.say(f"to see how it stands: batchgen status {job.out}")


@cli.command("plan", short_help="See what a job will be, without an engine.")
@click.argument("inputs", nargs=-1, metavar="[JOB.toml] [IN]...")
@click.option("--engine", multiple=True, metavar="KEY=VALUE", help="[engine] any of vLLM's EngineArgs")
@click.option("--show", type=click.IntRange(min=0), default=0, help="also print so many prompts with their token ids")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
@job_flags
def plan_command(inputs: tuple[str, ...], engine: tuple[str, ...], show: int, as_json: bool, **options: Any) -> None:
    """Read, render and tokenize the whole input of a job: rows, rejects to come, prompt lengths, shards.

    Takes what `run` takes, and writes nothing.

    \b
    Examples:
      batchgen plan job.toml
      batchgen plan job.toml --on-overlength clip --show 3
    """
    with exit_codes():
        spec = _spec(inputs, engine, options)
        from .commands import plan

        forecast = plan.plan(spec)
        if as_json:
            prompts = plan.show(forecast, show)
            say(terminal.document(msgspec.json.format(msgspec.json.encode(plan.document(forecast, prompts)), indent=2)))
            return
        _print_forecast(forecast)
        for made in plan.show(forecast, show):
            say(f"\nrow {made.row}, id {shown(made.id)}, {len(made.prompt_token_ids)} tokens\n{made.prompt}")
            say(f"{made.prompt_token_ids}")


def _print_forecast(forecast: Any) -> None:
    job, lengths, tokens = forecast.job, forecast.percentiles(), forecast.tokens
    from .output.counts import by_reason

    output = job.spec.output
    new = "" if forecast.new_rows is None else f", {forecast.new_rows:,} of them new"
    for name, value in {
        "rows": f"{job.plan.rows:,} in {len(job.plan.latest):,} files{new}",
        "rejects": f"{forecast.rejects.total():,}{by_reason(dict(sorted(forecast.rejects.items())))}",
        "shapes": ", ".join(f"{shape} {number:,}" for shape, number in forecast.shapes.most_common()) or "none",
        "prompt tokens": f"{tokens:,}; " + ", ".join(f"{name} {value:,}" for name, value in lengths.items()),
        "over-length": f"{forecast.over_length:,} rows, on_overlength = {job.spec.prompt.on_overlength}",
        **_forged_line(forecast),
        "shared": f"{forecast.shared / max(tokens, 1):.0%} of the prompt tokens are in common prefixes",
        "prompt format": f"{job.format}, context {job.context:,} tokens",
        "shards": f"{len(job.plan.shards):,} of {output.shard_rows:,} rows",
        "fingerprint": job.record.fingerprint,
    }.items():
        say(f"{name:14} {value}")
    bars = forecast.histogram()
    most = max((count for _, _, count in bars), default=1)
    for start, end, count in bars:
        say(f"{start:7,} -{end:6,} {'#' * round(40 * count / most):40} {count:,}")


def _forged_line(forecast: Any) -> dict[str, str]:
    if not forecast.forged:
        return {}
    row, what = forecast.first_forged
    return {"forged turns": f"in the text of {forecast.forged:,} rows; the first is row {row:,}, with {shown(what)}"}


@cli.command("status", short_help="Show how a job stands, while it runs or later.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="show it again every 2 seconds until the job is done")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document; with --watch one a line")
@click.option(
    "--prometheus",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="also write metrics, for node_exporter's textfile collector",
)
def status_command(out: Path, watch: bool, as_json: bool, prometheus: Path | None) -> None:
    """Show how the job of OUT stands: shards, rows, rejects, workers, tokens per second, time left.

    It only reads the files of OUT, so it runs on any host that sees them. Workers tell their numbers every 10 seconds
    (a sixth of the job's `stale`).

    \b
    Examples:
      batchgen status out
      batchgen status out --watch
      batchgen status out --prometheus /var/lib/node_exporter/out.prom
    """
    from .commands import status

    with exit_codes(), suppress(KeyboardInterrupt):
        if watch:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for seen in status.watch(out) if watch else [status.look(out)]:
            if prometheus:
                status.write_metrics(prometheus, seen)
            if as_json:
                document = msgspec.json.encode(seen)
                say(terminal.document(document if watch else msgspec.json.format(document, indent=2)))
            elif watch and not sys.stdout.isatty():
                say(_status_line(seen))
            else:
                if watch:
                    click.clear()
                _print_status(seen)


def _status_line(seen: Any) -> str:
    shards = seen.shards
    return (
        f"{seen.state}: {seen.rows_done:,} of {seen.rows:,} rows, {shards.done:,} of {shards.total:,} shards, "
        f"{len(seen.live):,} workers, {seen.response_tokens_per_second:,.0f} tokens/s, ETA {_duration(seen.eta)}"
    )


def _print_status(seen: Any) -> None:
    shards, finished = seen.shards, seen.finished
    from .output.counts import by_reason

    rejects = f"{finished.rejected:,} rejects{by_reason(finished.rejects)}"
    unreadable = f"; those of {finished.unreadable:,} shards cannot be read" if finished.unreadable else ""
    overall = seen.response_tokens_per_second_overall
    for name, value in {
        "job": f"{seen.state}, {shown(seen.out)}",
        "shards": f"{shards.done:,} done, {shards.running:,} running, {shards.left:,} left of {shards.total:,}",
        "rows": f"{seen.rows_done:,} of {seen.rows:,} ({seen.rows_done / max(seen.rows, 1):.1%})",
        "in finished": f"{finished.responses:,} responses, {rejects}, {finished.prompt_tokens:,} prompt and "
        f"{finished.response_tokens:,} response tokens{unreadable}",
        "tokens/s": f"prompt {seen.prompt_tokens_per_second:,.0f}, response {seen.response_tokens_per_second:,.0f}; "
        f"overall {'unknown' if overall is None else f'{overall:,.0f}'}, pauses included",
        "ETA": _duration(seen.eta),
    }.items():
        say(f"{name:12} {value}")
    _print_workers(seen)


def _print_workers(seen: Any) -> None:
    """A line a worker; those that died long ago are only counted."""
    dead = sorted((worker for worker in seen.workers if not worker.is_alive), key=lambda worker: worker.heartbeat_age)
    listed = [*seen.live, *dead[:DEAD_SHOWN]]
    titles = ("worker", "state", "Slurm", "beat", "shards", "running", "waiting", "rows", "tokens/s")
    lines = [
        (
            shown(worker.worker),
            shown(worker.state),
            shown(worker.slurm_task) or "-",
            f"{worker.heartbeat_age:,.0f} s ago",
            ",".join(map(str, worker.shards)) or "-",
            f"{worker.running:,}",
            f"{worker.waiting:,}",
            f"{worker.rows:,}",
            f"{worker.response_tokens_per_second:,.0f}",
        )
        for worker in listed
    ]
    if lines:
        widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
        for line in (titles, *lines):
            say("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    if len(dead) > DEAD_SHOWN:
        say(f"and {len(dead) - DEAD_SHOWN:,} more that are dead")
    if seen.clock == "this host":
        say(f"beats are timed by this host's own clock: {shown(seen.out)} cannot be written to")


def _duration(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))


@cli.command("verify", short_help="Prove that no row is missing, doubled or damaged.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--replay", type=click.IntRange(min=1), help="generate so many random items again and compare")
@click.option("--replay-seed", type=int, default=0, show_default=True, help="which items those are")
@click.option("--quarantine", is_flag=True, help="move damaged shards to OUT/_state/quarantine; a run makes them again")
@click.option("--close", is_flag=True, help="write OUT/_SUCCESS if only that is missing")
@click.option("--shared", is_flag=True, help="write so in a team's folder too, which others may write to")
@click.option("--engine", multiple=True, metavar="KEY=VALUE", help="[engine] of the replay, over that of the job")
def verify_command(
    out: Path,
    replay: int | None,
    replay_seed: int,
    quarantine: bool,
    close: bool,
    shared: bool,
    engine: tuple[str, ...],
) -> None:
    """Check every shard of OUT: checksums, counts and ids, against the job and its input.

    Exits with 0 only if every input row is answered or rejected exactly once. It changes nothing in OUT unless it is
    told to. The digest that it prints is that of all shards and rejects: kept elsewhere, it shows later that they are
    still the same.

    \b
    Examples:
      batchgen verify out
      batchgen verify out --replay 50
      batchgen verify out --quarantine --close
    """
    from .commands import verify

    with exit_codes():
        given = _flags((), engine, {}).get("engine", {})
        if replay:
            verify.check_engine(out, given)
        elif given:
            raise JobError("--engine: is for --replay, as no engine runs without it")
        verdict = verify.verify(out, verify.Writing(quarantine, close, shared))
        for line in verdict.problems:
            click.echo(terminal.message(f"batchgen: {line}"), err=True)
        if verdict.problems:
            fail(f"{out}: the accounting does not close", EXIT_BROKEN)
        console.say(f"verified: {verdict.counts.summary}")
        if verdict.closed:
            console.say(f"_SUCCESS was missing; wrote {out}/_SUCCESS")
        elif not verdict.is_closed:
            console.say(f"_SUCCESS is missing; `batchgen verify {out} --close` writes it")
        console.say(f"digest of all shards: {verdict.digest}")
        if replay:
            again = verify.replay(out, replay, replay_seed, given)
            console.say(f"replayed: {again.matches} of {again.items} responses are the same")
            if again.first:
                console.say(f"first difference: {again.first}")


@cli.command("retry", short_help="Generate again what went wrong, with other parameters.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--only", required=True, metavar="REASONS", help="finish reasons and reject reasons, with commas between")
@click.option("--engine", multiple=True, metavar="KEY=VALUE", help="[engine] any of vLLM's EngineArgs")
@job_flags
def retry_command(out: Path, only: str, engine: tuple[str, ...], **options: Any) -> None:
    """Make a new output folder with only those rows of OUT that ended for one of REASONS.

    All else is as in the job of OUT, but for the flags given. Rows keep their number and id. Run the same command
    again to go on with it.

    \b
    Example:
      batchgen retry out --only length,engine_error --max-tokens 1024 --output out-longer
    """
    with exit_codes():
        from .commands.retry import retry

        outcome = retry(out, only, _flags((), engine, options))
    _print_outcome(outcome)


@cli.command("rejects", short_help="Show the rows that got no response.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--only", default="", metavar="REASONS", help="only these reject reasons, with commas between")
def rejects_command(out: Path, only: str) -> None:
    """List the rejected rows of OUT: where each stands in the input, why it was rejected, and the row itself.

    \b
    Examples:
      batchgen rejects out
      batchgen rejects out --only too_long
    """
    with exit_codes():
        from .commands.retry import check_reasons, rejected

        count = 0
        for place, line in rejected(out, check_reasons(only) if only else []):
            count += 1
            detail, raw = _cut(line["detail"], 500), _cut(line["raw"], 200)
            say(f"{shown(place)}: {shown(line['reason'])}: {shown(detail)}\n    {shown(raw)}")
        say(f"{count:,} rejected rows")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "..."


@cli.command("export", short_help="Write the results as one file or dataset folder.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Path(path_type=Path), help="the file, or the folder of hf, to make")
@click.option(
    "--format",
    type=click.Choice(["parquet", "jsonl", "openai-batch", "hf"]),
    help="of the file; without it the ending tells: .parquet, .jsonl, .jsonl.gz, .jsonl.zst, a folder is hf",
)
@click.option("--columns", default="", metavar="NAMES", help="only these columns, in this order, with commas between")
@click.option("--partial", is_flag=True, help="export what is there of a job that is not finished")
@click.option("--overwrite", is_flag=True, help="replace what stands there, once the new one is whole")
def export_command(out: Path, to: Path, format: str | None, columns: str, partial: bool, overwrite: bool) -> None:
    """Write the results of the job in OUT as one Parquet file, as JSON lines, as lines of OpenAI's batch output
    files, or as a Hugging Face dataset folder with its card.

    It appears under its name whole or not at all, and is the same, byte for byte, whenever it is made.

    \b
    Examples:
      batchgen export out --to all.parquet
      batchgen export out --to pairs.jsonl.gz --columns id,response
      batchgen export out --to answers.jsonl --format openai-batch
      batchgen export out --to my-dataset --format hf
    """
    with exit_codes():
        from .commands.export import export

        done = export(out, to, format or "", columns, partial, overwrite)
    missing = f", {done.missing:,} shards missing" if done.missing else ""
    console.say(f"exported: {done.counts}{missing} to {to}")


@cli.group("bench", short_help="Measure how fast batchgen is here.")
def bench_group() -> None:
    """Measure how fast batchgen is here, against what its parts can do. Nothing of a job is touched.

    \b
    Examples:
      batchgen bench engine job.toml --rows 500
      batchgen bench host --rows 100000
      batchgen bench input --gigabytes 1
    """


json_file = click.option("--json", "json_file", type=click.Path(path_type=Path), help="also write the figures there")


@bench_group.command("engine", short_help="The bare vLLM engine, and all of batchgen around it.")
@click.argument("inputs", nargs=-1, metavar="[JOB.toml] [IN]...")
@click.option("--rows", type=click.IntRange(min=1), help="only the first so many rows of the input")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="of each of the two, by turns")
@click.option("--unseeded", is_flag=True, help="send requests without their seeds, to see what seeds cost")
@json_file
@click.option("--engine", multiple=True, metavar="KEY=VALUE", help="[engine] any of vLLM's EngineArgs")
@job_flags
def bench_engine_command(
    inputs: tuple[str, ...],
    rows: int | None,
    rounds: int,
    unseeded: bool,
    json_file: Path | None,
    engine: tuple[str, ...],
    **options: Any,
) -> None:
    """Compare, on one engine and by turns: vLLM's own loop over prompts that are tokenized beforehand, and everything
    from the input file to committed shards, in a temporary folder beside the job's output. Takes what `run` takes.

    On a GPU it also says which share of the time its memory bandwidth accounts for. The engine's log goes to stderr.

    \b
    Example:
      batchgen bench engine job.toml --rows 2000 --engine max_num_seqs=512 --json figures.json
    """
    with exit_codes():
        spec = _spec(inputs, engine, options)
        from .commands import bench

        _print_figures(bench.measure_engine(spec, rows, rounds, unseeded), json_file)


@bench_group.command("host", short_help="All but the engine.")
@click.option("--rows", type=click.IntRange(min=10), default=100_000, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=100, show_default=True, help="of every row, about")
@click.option("--response-tokens", type=click.IntRange(min=1), default=100, show_default=True, help="of every row")
@click.option("--model", default="", help="folder of the model whose tokenizer it takes; by default the demo model")
@json_file
def bench_host_command(rows: int, prompt_tokens: int, response_tokens: int, model: str, json_file: Path | None) -> None:
    """Run a job whose engine answers at once: parsing, rendering, tokenizing, journal, decoding, Parquet.

    \b
    Example:
      batchgen bench host --rows 1000000
    """
    with exit_codes():
        from .commands import bench

        _print_figures(bench.measure_host(rows, prompt_tokens, response_tokens, model), json_file)


@bench_group.command("input", short_help="Counting and planning a big file.")
@click.option("--gigabytes", type=click.FloatRange(min=0.001), default=1.0, show_default=True, help="size of the file")
@json_file
def bench_input_command(gigabytes: float, json_file: Path | None) -> None:
    """Plan a big JSONL file, by turns with plain reading of it, and start on its last shard.

    \b
    Example:
      batchgen bench input --gigabytes 10
    """
    with exit_codes():
        from .commands import bench

        _print_figures(bench.measure_input(gigabytes), json_file)


def _print_figures(figures: dict[str, Any], json_file: Path | None) -> None:
    for name, value in figures.items():
        say(f"{name:28} {_figure(value)}")
    if json_file:
        content = msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n"
        if json_file.is_file() or not json_file.exists():
            safeopen.replace(json_file, content)
        else:  # such as /dev/stdout
            json_file.write_bytes(content)


def _figure(value: Any) -> str:
    """A line of it; what has more in it than one line holds is in the JSON."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(part)}" for name, part in value.items() if not _is_table(part)) or "none"
    if isinstance(value, list):
        return " ".join(map(_figure, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 10 else f"{value:,.1f}"


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


@cli.command("inspect", short_help="Show which model of the series a folder or repository holds.")
@click.argument("model")
@click.option("--revision", default="", help="branch, tag or commit of a model on the hub")
@click.option("--allow-withdrawn", is_flag=True, help="exit with 0 for the withdrawn weights of 2023-07-31 too")
def inspect_command(model: str, revision: str, allow_withdrawn: bool) -> None:
    """Show what MODEL is, a folder or a name on the hub: family, prompt format, context, sampling, weights.

    It is judged by its config, its tokenizer and the MD5 of its weights, not by its name.

    \b
    Examples:
      batchgen inspect models/sft
      batchgen inspect rinna/bilingual-gpt-neox-4b-instruction-sft --revision main
    """
    with exit_codes():
        from .commands import inspect_model
        from .model import models

        found = models.load(model_path(model, current_folder()), revision)
        for name, value in inspect_model.describe(found):
            say(f"{name:15}  {shown(value)}")
        models.check_release(found, allow_withdrawn)


@cli.command("demo", short_help="Write the demo model, its data and a job file.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def demo_command(folder: Path) -> None:
    """Write the demo model, 2,000 conversations and a job file into FOLDER, ready for `batchgen run`.

    The model is small (2 CPU cores are enough); it translates dates, times, prices, quantities and short travel
    phrases between English and Japanese.

    \b
    Example:
      batchgen demo demo
      batchgen run demo/job.toml
    """
    from .demo import write

    with exit_codes():
        job = write(folder)
    console.say(f"wrote {folder}/model, {folder}/data and {job}; next: batchgen run {job}")
