"""The commands: each parses its arguments, calls the function that does the work, and prints what comes back."""

import itertools
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec
from click.shell_completion import get_completion_class

from . import __version__, flags, manual, show, show_answers
from .errors import JobError, MachineError, Stopped, Stopping, shown, warn
from .flags import JobCommand, job_flags
from .host import bucket, console, events, safeopen, signals, terminal
from .host.credentials import redacted
from .job.spec import JobSpec, current_folder, model_path, nearest

if TYPE_CHECKING:
    from .runner.outcome import Outcome

MEANT = {"help": "--help", "generate": "run", "start": "run"}  # what people try first, and what they mean by it
EXIT_USAGE, EXIT_REJECTS, EXIT_STOPPED, EXIT_BROKEN = 2, 3, 75, 1


class Group(click.Group):
    """Commands that all have the flags for what they say on stderr, as people type them last."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        flags.log_flags(cmd)
        super().add_command(cmd, name)


class Commands(Group):
    """All commands. No stream that fails ends one of them, and an error that nobody foresaw is one line too."""

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> Any:
        console.set_up()
        events.set_style(events.Style(as_json=flags.log_format(sys.argv[1:] if args is None else args) == "json"))
        try:
            return super().main(args, *arguments, **options)
        except OSError as error:  # of stdout: all else is caught where it happens
            fail(f"stdout: {error.strerror or error}", EXIT_BROKEN)
        finally:
            console.settle()

    group_class = Group

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A word that people take for a command is answered with the one that they mean."""
        name, *behind = args
        is_unknown = name not in self.commands and not ctx.resilient_parsing  # not by a shell that completes
        if is_unknown and (meant := self._meant(name, behind)):
            raise JobError(f"{name}: is no command; did you mean batchgen {meant}?")
        return super().resolve_command(ctx, args)

    def _meant(self, name: str, behind: list[str]) -> str:
        """What a word that is no command stands for, most likely; empty if that cannot be told."""
        if Path(name).suffix in (".toml", ".jsonl", ".parquet", ".csv", ".json"):
            return f"run {name}"
        meant = MEANT.get(name.lower(), name.lower())
        if meant == "--help":
            return f"{behind[0]} --help" if behind and behind[0] in self.commands else meant
        return meant if meant in self.commands else ""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _told_our_way():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _told_our_way():
                return super().invoke(ctx)
        except click.ClickException:  # click's own business, as the next are
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
            fail("this machine ran out of memory", EXIT_BROKEN)
        except Exception as error:
            fail(_bug(error), EXIT_BROKEN)


@contextmanager
def _told_our_way() -> Iterator[None]:
    """Has click print a wrong command line as we print errors, where that is JSON, and in any case safely."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:  # the help, line by line
        raise
    except click.ClickException as error:
        error.message = terminal.message(error.message)  # type: ignore[misc]
        if events.style().as_json:
            message, code = error.format_message(), error.exit_code
            error.show = lambda file=None: _tell_error([message], code)  # type: ignore[method-assign, assignment, misc]
        raise


def _of_the_system(error: OSError) -> str:
    return f"{error.filename or 'the disk'}: {error.strerror or error}"


def _bug(error: Exception) -> str:
    """The line about an error that nobody foresaw. Its traceback goes into a file, or ahead of the line."""
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if os.environ.get("BATCHGEN_TRACEBACK") or events.style().verbose:
        events.tell(events.Level.error, "traceback", *"".join(traceback.format_exception(error)).splitlines())
        return f"this is a bug in batchgen: {what}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="batchgen-bug-", suffix=".txt", encoding="utf-8", delete=False
        ) as file:
            file.write(terminal.hidden(f"batchgen {__version__}\n{''.join(traceback.format_exception(error))}"))
    except OSError:
        return f"this is a bug in batchgen: {what}; -v shows the traceback"
    return f"this is a bug in batchgen: {what}; the traceback is in {file.name}"


def fail(why: str | JobError, code: int) -> NoReturn:
    lines = why.lines if isinstance(why, JobError) else [why]
    _tell_error(lines, code)
    sys.exit(code)


def _tell_error(lines: Sequence[str], code: int) -> None:
    events.tell(*_kind_of_end(code), *lines, exit_code=code)


def _kind_of_end(code: int) -> tuple[events.Level, str]:
    """Of what ends a command with this code: its level and event."""
    return (events.Level.warning, "stopped") if code == EXIT_STOPPED else (events.Level.error, "error")


@contextmanager
def exit_codes() -> Iterator[None]:
    """What goes wrong becomes one line on stderr and the exit code that says who has to act."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        # Not an exception: whatever is being imported may catch it. Files appear whole or not at all, so this is safe.
        with suppress(OSError):
            level, event = _kind_of_end(EXIT_STOPPED)
            said = events.as_said(
                level, event, [str(Stopped(why=Stopping.AS_ASKED))], {"exit_code": EXIT_STOPPED}, False
            )
            os.write(2, f"{said}\n".encode())
        os._exit(EXIT_STOPPED)

    with signals.caught(stop, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
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


def _say_versions(context: click.Context, param: click.Parameter, given: bool) -> None:
    if not given or context.resilient_parsing:
        return
    from .commands import versions

    show.say("\n".join(versions.lines()))
    context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_versions,
    help="show the versions of batchgen, Python and vLLM, and the device",
)
def cli() -> None:
    """Offline generation over whole datasets with vLLM: conversations in, responses out, resumable at any moment.

    `batchgen demo FOLDER` writes a first job to try; `batchgen manual` lists the pages of the manual.
    """


flags.log_flags(cli, flags.LOG_FORMAT_VARIABLE)


class PlaceOrUri(click.ParamType):
    """A folder, or a place in a bucket, whose two slashes a path would make one of."""

    name = "folder or URI"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:
        return value if bucket.is_uri(value) else Path(value)


class LocalPath(click.Path):
    """A file or folder of this machine. Of a URI a path would make a folder `s3:`."""

    def __init__(self, **options: Any):
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            name = param.opts[-1] if param and param.param_type_name == "option" else "FOLDER"
            fail(f"{name} {shown(redacted(str(value)))}: is a URI; this is written on this machine alone", EXIT_USAGE)
        return super().convert(value, param, ctx)


json_flag = click.option("--json", "as_json", is_flag=True, help="print one JSON document")
out_folder = click.argument("out", type=PlaceOrUri(), shell_complete=flags.files)
job_inputs = click.argument("inputs", nargs=-1, metavar="[JOB.toml] [IN]...", shell_complete=flags.files)


# --- beginning


@cli.command("completion", short_help="Have a shell complete commands, flags and files.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the lines by which a shell completes what is typed behind batchgen.

    \b
    Examples:
      batchgen completion bash >> ~/.bashrc
      batchgen completion zsh >> ~/.zshrc
      batchgen completion fish > ~/.config/fish/completions/batchgen.fish
    """
    kind = get_completion_class(shell)
    assert kind
    show.say(kind(cli, {}, "batchgen", "_BATCHGEN_COMPLETE").source())


@cli.command("init", short_help="Write a first job file, from a look at the data.")
@click.argument("inputs", nargs=-1, required=True, metavar="IN...", shell_complete=flags.files)
@click.option(
    "-m",
    "--model",
    required=True,
    shell_complete=flags.files,
    help="model folder, or name of a model on the hub (org/name)",
)
@click.option(
    "-o", "--output", default="out", show_default=True, shell_complete=flags.files, help="output folder of the job"
)
@click.option(
    "--task",
    type=click.Choice(["answer", "translate", "score", "sweep"]),
    default="answer",
    show_default=True,
    help="what the job does to each row",
)
@click.option("--from", "source", default="", metavar="LANGUAGE", help="of a translation: from, if it is not guessed")
@click.option("--into", default="", metavar="LANGUAGE", help="of a translation: into")
@click.option("--to", type=LocalPath(), default="job.toml", show_default=True, help="the file to write")
@click.option("--overwrite", is_flag=True, help="replace what is there")
def init_command(inputs: tuple[str, ...], to: Path, overwrite: bool, **asked: str) -> None:
    """Look at the first rows of the input, and write a job file for them that is ready to run: which shape they have,
    which column has ids, what is worth passing through.

    \b
    Examples:
      batchgen init talks/*.jsonl --model rinna/bilingual-gpt-neox-4b-instruction-sft
      batchgen init hh.parquet --model models/sft --task translate --into Japanese
      batchgen init talks.jsonl --model models/sft --task sweep
    """
    with exit_codes():
        from .commands import init

        if flags.STDIN in inputs:
            raise JobError("-: a job file names its input; look at a file")
        written = init.write(init.Asked(inputs=list(inputs), to=to, **asked), overwrite)
    show.first_job(written)


# --- running


@cli.command("run", cls=JobCommand, short_help="Generate a response for every conversation.")
@job_inputs
@click.option("--discard", is_flag=True, help="drop what a different job has left in the output folder")
@click.option(
    flags.RAY,
    type=flags.Address(),
    is_flag=False,
    flag_value="auto",
    metavar="[ADDRESS]",
    help="run the workers on a Ray cluster, --workers of them or as many as have room  [address: that of this node's]",
)
@json_flag
@job_flags()
def run_command(
    inputs: tuple[str, ...], engine: tuple[str, ...], discard: bool, ray: str | None, as_json: bool, **options: Any
) -> None:
    """Generate a response for every conversation of the input, or resume where the last run stopped.

    Takes a job file, flags, or both; a flag wins over the file. SIGTERM, SIGUSR1 or Ctrl-C stops it; nothing that has
    finished is lost, and the same command resumes.

    \b
    Examples:
      batchgen run job.toml
      batchgen run job.toml --temperature 0 --output out-greedy
      batchgen run talks.jsonl more/*.parquet --model models/sft --output out
      batchgen run s3://my-bucket/job.toml --ray

    \b
    Exit codes:
      0   all done
      1   the engine or the machine failed, or a bug
      2   wrong usage, or a different job in the output folder
      3   done, with more rejects than max_rejects
      75  stopped early: run the same command again
    """
    with exit_codes():
        spec = flags.spec_of(inputs, engine, options)
        if ray:
            from .runner.on_ray import run_on_ray

            outcome = run_on_ray(spec, flags.arguments_of_workers(), ray, discard)
        else:
            from .runner.run import run

            outcome = run(spec, discard)
    _end(outcome, as_json)


def _end(outcome: "Outcome", as_json: bool) -> None:
    """Prints the summary; exits 3 if more rows were rejected than the job allows."""
    with exit_codes():
        if as_json:
            show.document(outcome.figures)
        else:
            show.outcome(outcome)
    _check_rejects(outcome)


def _check_rejects(outcome: "Outcome") -> None:
    if outcome.has_too_many_rejects:
        rejected, most = outcome.rejected, outcome.max_rejects
        fail(f"{rejected} rows were rejected, max_rejects allows {most}; see batchgen rejects", EXIT_REJECTS)


@cli.command("sweep", cls=JobCommand, short_help="Compare settings on the same rows, in one run.")
@job_inputs
@click.option("--dry-run", is_flag=True, help="show the settings, requests and tokens, and generate nothing")
@click.option("--discard", is_flag=True, help="drop what a different job has left in the output folder")
@job_flags(of_sweeps=True)
def sweep_command(
    inputs: tuple[str, ...], engine: tuple[str, ...], dry_run: bool, discard: bool, **options: Any
) -> None:
    """Answer a sample of the input with every setting that [sweep] lists, all in one engine, and compare them.

    Takes a job file, flags, or both, as `run` does; without --output, results go beside those of `run`. Every response
    is the one that `run` gives with that setting. [metrics] says what is measured; the best setting is written as a
    table to paste. Stops and resumes as `run` does, and has its exit codes.

    \b
    Examples:
      batchgen sweep job.toml
      batchgen sweep job.toml --sweep temperature=0.3,0.7,1.0 --sweep top_p=0.85,1 --sweep-samples 4 --output sweep
      batchgen sweep job.toml --dry-run
    """
    with exit_codes():
        spec = flags.sweep_of(inputs, engine, options)
        from .commands import sweep

        if options["output__path"] is None:
            spec = sweep.beside(spec)
        if dry_run:
            for seen in sweep.forecast(spec):
                show.sweep_forecast(seen)
            return
        finished = []
        for done in sweep.sweep(spec, discard):
            show.outcome(done.outcome)
            finished.append(done)
        if all(done.outcome.counts for done in finished):
            show.comparison(sweep.compare(spec, finished), spec.output.path)
        else:
            console.say("other workers are still at it: run the same command again to compare the settings")
    for done in finished:
        _check_rejects(done.outcome)


@cli.command("retry", cls=JobCommand, short_help="Generate again what went wrong, with other parameters.")
@out_folder
@click.option(
    "--only",
    required=True,
    metavar="REASONS",
    shell_complete=flags.reasons,
    help="finish reasons and reject reasons, comma-separated",
)
@json_flag
@job_flags(defaults=False)
def retry_command(out: str | Path, only: str, as_json: bool, engine: tuple[str, ...], **options: Any) -> None:
    """Make a new output folder with only those rows of OUT that ended for one of REASONS.

    Everything else is as in the job of OUT, except for the flags given. Rows keep their number and id. The same
    command resumes it.

    \b
    Example:
      batchgen retry out --only length,engine_error --max-tokens 1024 --output out-longer
    """
    with exit_codes():
        from .commands.retry import retry

        outcome = retry(out, only, flags.by_table((), engine, options))
    _end(outcome, as_json)


@cli.command("submit", short_help="Run a job on a Slurm cluster.")
@click.argument("job_file", metavar="JOB.toml", type=PlaceOrUri())
@click.argument("run_flags", metavar="[-- RUN FLAGS]", nargs=-1)
@click.option("--array", metavar="N", help="how many tasks work on the job (or indices, as Slurm writes them)")
@click.option("--time", metavar="LIMIT", help="time limit of each task, as Slurm writes it: 4:00:00")
@click.option("--partition", "-p", metavar="NAME", help="Slurm partition to run in")
@click.option("--job-name", metavar="NAME", help="name in Slurm and of the logs  [default: the job file's]")
@click.option("--gres", metavar="GRES", help="generic resources, as Slurm writes them  [default: the GPUs it needs]")
@click.option("--constraint", metavar="FEATURES", help="features that a node must have, as Slurm writes them")
@click.option("--mail", metavar="ADDRESS", help="send mail there when all tasks have ended and the job is verified")
@click.option("--setup", multiple=True, metavar="LINE", help="a line of bash ahead of the command; may be repeated")
@click.option("--container", default="", metavar="IMAGE", help="run batchgen in this image, by Apptainer")
@click.option("--sbatch", multiple=True, metavar="KEY=VALUE", help="any other option of sbatch, without dashes")
@click.option("--dry-run", is_flag=True, help="check the job and print the batch script; submit nothing")
def submit_command(
    job_file: str | Path,
    run_flags: tuple[str, ...],
    job_name: str | None,
    mail: str | None,
    setup: tuple[str, ...],
    container: str,
    sbatch: tuple[str, ...],
    dry_run: bool,
    **given: str | None,
) -> None:
    """Submit a job to Slurm as an array of tasks, and a `batchgen verify` that starts when they have ended.

    The tasks share the work, however many of them start, and whenever they do. A task that runs out of time or is
    preempted is requeued and resumes. The job is checked before it is submitted. What follows `--` goes to
    `batchgen run`.

    \b
    Examples:
      batchgen submit job.toml --array 8 --time 4:00:00
      batchgen submit job.toml -p gpu --setup 'module load cuda' --mail me@example.org
      batchgen submit job.toml -p gpu --sbatch mem=64G --sbatch account=nlp -- --temperature 0 --output out-greedy
    """
    from .commands import submit
    from .engine.choice import check_engine
    from .runner.prepare import prepare

    with exit_codes():
        where = job_file if isinstance(job_file, str) else current_folder() / job_file
        arguments = [str(where), "--requeue", *run_flags]
        spec = _spec_of_run(arguments)
        chosen = {key: value for key, value in given.items() if value is not None} | submit.settings(sbatch)
        if "array" in chosen:
            chosen["array"] = submit.array_of(chosen["array"])
        around = submit.Around(submit.lines(setup), container)
        job = prepare(spec)
        options = submit.run_options(job, job_name or Path(job_file).stem, chosen)
        check_engine()
        if dry_run:
            show.say(submit.script(options, ["run", *arguments], around), nl=False)
            return
        if submit.is_done(job):
            console.say(f"all done already, nothing was submitted: {job.out}")
            return
        done = submit.submit(job, options, arguments, around, submit.mail_options(chosen, mail))
    console.say(f"submitted: job {done.job}; the script is {done.script}, and the logs will be next to it")
    if done.verification:
        console.say(f"after it: job {done.verification}, batchgen verify")
    console.say(f"to watch it: batchgen status {job.out}")


def _spec_of_run(arguments: list[str]) -> JobSpec:
    """The job that `batchgen run` with these arguments would do."""
    given = dict(run_command.make_context("run", list(arguments)).params)
    del given["discard"], given["ray"], given["as_json"]
    return flags.spec_of(given.pop("inputs"), given.pop("engine"), given)


# --- looking at a job


@cli.command("plan", cls=JobCommand, short_help="See what a job will be, without an engine.")
@job_inputs
@click.option(
    "--show", "prompts", type=click.IntRange(min=0), default=0, help="print this many prompts, with their ids"
)
@click.option(
    "--tokens-per-second",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="the pace of the run, to say how long it takes  [default: what its folder has measured]",
)
@json_flag
@job_flags()
def plan_command(
    inputs: tuple[str, ...],
    engine: tuple[str, ...],
    prompts: int,
    tokens_per_second: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Read, render and tokenize the whole input of a job: rows, rejects to come, prompt lengths, shards.

    Takes what `run` takes, and writes nothing; without a job file the output folder may be left out.

    \b
    Examples:
      batchgen plan job.toml
      batchgen plan job.toml --on-overlength clip --show 3
    """
    if not (inputs and inputs[0].endswith(".toml")):
        options["output__path"] = options["output__path"] or _free("out")
    with exit_codes():
        spec = flags.spec_of(inputs, engine, options)
        from .commands import plan

        forecast = plan.plan(spec, tokens_per_second)
        items = plan.show(forecast, prompts)
        if as_json:
            show.document(plan.document(forecast, items))
        else:
            show.forecast(forecast)
            show.prompts(items)


def _free(name: str) -> str:
    """The name, or the first of name-2, name-3, ... where something has it."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(each for each in names if not os.path.lexists(each))


@cli.command("status", short_help="Show how far a job is, while it runs or later.")
@out_folder
@click.option("--watch", is_flag=True, help="show it again every 2 seconds until the job is done")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document; with --watch, one per line")
@click.option(
    "--prometheus",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="also write metrics for node_exporter's textfile collector",
)
def status_command(out: str | Path, watch: bool, as_json: bool, prometheus: Path | None) -> None:
    """Show the state of the job in OUT: shards, rows, rejects, workers, throughput, time left.

    It only reads files, so it works on any host that sees OUT. Workers write their numbers every 10 seconds (a sixth
    of the job's `stale`).

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
                show.document(seen, on_a_line=watch)
            elif watch and not sys.stdout.isatty():
                show.status_line(seen)
            else:
                if watch:
                    click.clear()
                show.status(seen)


@cli.command("verify", short_help="Prove that no row is missing, duplicated or damaged.")
@out_folder
@click.option(
    "--replay", type=click.IntRange(min=1), help="generate this many random items (rows of a translation) again"
)
@click.option("--replay-seed", type=int, default=0, show_default=True, help="seed of the choice of those items")
@click.option("--quarantine", is_flag=True, help="move damaged shards to OUT/_state/quarantine; a run makes them again")
@click.option("--close", is_flag=True, help="write OUT/_SUCCESS if only that is missing")
@click.option("--shared", is_flag=True, help="write in a team's folder too, which others may write to")
@click.option("--engine", multiple=True, metavar="KEY=VALUE", help="[engine] of the replay, over that of the job")
@json_flag
@flags.any_version_flag
def verify_command(
    out: str | Path,
    replay: int | None,
    replay_seed: int,
    quarantine: bool,
    close: bool,
    shared: bool,
    engine: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check every shard of OUT against the job and its input: checksums, counts and ids.

    Exits with 0 only if every input row is answered or rejected exactly once. It changes nothing in OUT unless told
    to. The digest that it prints covers all shards and rejects: keep it elsewhere, and you can tell later whether they
    are still the same.

    \b
    Examples:
      batchgen verify out
      batchgen verify out --replay 50
      batchgen verify out --quarantine --close
    """
    from .commands import replay as replaying
    from .commands import verify

    with exit_codes():
        given = flags.engine_args(engine)
        if replay:
            replaying.check_engine(out, given)
        elif given:
            raise JobError("--engine: is for --replay, as no engine runs without it")
        verdict = verify.verify(out, verify.Writing(quarantine, close, shared))
        for line in verdict.problems:
            events.tell(events.Level.error, "problem", line)
        again = replaying.replay(out, replay, replay_seed, given) if replay and not verdict.problems else None
        if as_json:
            show.document(verify.document(verdict) | {"replay": again and replaying.document(again)})
        if verdict.problems:
            fail(f"{out}: verification failed", EXIT_BROKEN)
        if not as_json:
            show.verdict(verdict, out)
        if again and not as_json:
            show.replay(again)
        if again and not again.items:
            fail(f"{out}: nothing could be compared", EXIT_BROKEN)


@cli.command("show", short_help="Show some of the answers.")
@out_folder
@click.option("-n", "count", type=click.IntRange(min=1), help="how many rows; the first ones  [default: 5]")
@click.option("--random", "random_rows", type=click.IntRange(min=1), metavar="K", help="K rows, chosen at random")
@click.option("--seed", type=int, default=0, show_default=True, help="of that choice")
@click.option("--failed", is_flag=True, help="only answers that fail a check; of scores, rows that are wrong")
@click.option("--only", default="", metavar="REASON", help="only with this finish reason, or empty, or repetition")
@click.option("--id", help="only the row with this id")
@click.option("--row", type=click.IntRange(min=0), help="only the row with this number")
@click.option("--grep", default="", metavar="TEXT", help="only with this text, in the conversation or the answer")
@click.option("--diff", type=PlaceOrUri(), metavar="OUT2", help="what differs in another output")
@click.option("--full", is_flag=True, help="long texts as a whole")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object per row")
def show_command(
    out: str | Path,
    count: int | None,
    random_rows: int | None,
    seed: int,
    diff: str | Path | None,
    full: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Show rows of OUT with their answers, while the job runs or later.

    What is not in a finished shard yet is read from the journals. With --diff, rows are joined on their id, and what
    differs in the answers is marked.

    \b
    Examples:
      batchgen show out
      batchgen show out --only length -n 20
      batchgen show out --random 10 --json
      batchgen show out --diff out-greedy --grep Friday
    """
    with exit_codes():
        from .commands import answers as reading
        from .commands import differences

        looked_for = reading.wanted(**wanted)
        if random_rows and count:
            raise JobError("-n and --random: each says how many rows; leave one out")
        if not random_rows and wanted["id"] is None and wanted["row"] is None:
            count = count or 5
        found = reading.Answers(out, warn)
        found.check(looked_for)
        page = show_answers.Page(full)
        if diff:
            compared = differences.Compared(found, reading.Answers(diff, warn), looked_for)
            changed = compared.at_random(random_rows, seed) if random_rows else compared.first(count)
            show_answers.differences(page, changed, compared.counts, as_json)
        else:
            some = reading.at_random(found, looked_for, random_rows, seed) if random_rows else None
            show_answers.items(page, some or reading.first(found, looked_for, count), as_json)


@cli.command("rejects", short_help="Show the rows that got no response.")
@out_folder
@click.option("--only", default="", metavar="REASONS", help="only these reject reasons, comma-separated")
@click.option("--segments", is_flag=True, help="of a translation: the segments that no try got right")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object per row, or per segment")
def rejects_command(out: str | Path, only: str, segments: bool, as_json: bool) -> None:
    """List the rejected rows of OUT: where each one is in the input, why it was rejected, and the row itself.

    \b
    Examples:
      batchgen rejects out
      batchgen rejects out --only too_long
      batchgen rejects out --segments
      batchgen rejects out --json
    """
    with exit_codes():
        from .commands import rejects
        from .commands.retry import check_reasons

        if segments and only:
            raise JobError("--only: is for reasons of rejected rows; leave it out with --segments")
        only_these = check_reasons(only) if only else []
        if as_json:
            found = rejects.failed_segments(out) if segments else rejects.rejected(out, only_these)
            for place, line in found:
                show.document({"place": place} | msgspec.to_builtins(line), on_a_line=True)
        elif segments:
            show.segments(rejects.failed_segments(out), rejects.rejected(out, ["check_failed"]))
        else:
            show.rejects(rejects.rejected(out, only_these))


@cli.command("export", short_help="Write the results as one file or a dataset folder.")
@out_folder
@click.option(
    "--to",
    required=True,
    shell_complete=flags.files,
    help="the file to write, or the folder for hf; - is stdout; hf://datasets/ORG/NAME is the Hugging Face hub",
)
@click.option(
    "--format",
    type=click.Choice(["parquet", "jsonl", "csv", "tsv", "messages", "prompt-completion", "openai-batch", "hf"]),
    help="without it, by the name: .parquet, .jsonl, .csv, .tsv, also with .gz, .zst or .bz2; a folder is hf",
)
@click.option("--columns", default="", metavar="NAMES", help="only these columns, in this order, comma-separated")
@click.option("--partial", is_flag=True, help="export what there is of an unfinished job")
@click.option("--overwrite", is_flag=True, help="replace what is there, once the new one is complete")
@click.option("--public", is_flag=True, help="on the hub: let everybody see a dataset that is made there")
def export_command(
    out: str | Path, to: str, format: str | None, columns: str, partial: bool, overwrite: bool, public: bool
) -> None:
    """Write the results of the job in OUT as one Parquet file, as JSON lines, CSV or TSV, as chats that trainers read
    (messages, prompt-completion), as lines of OpenAI's batch output files, or as a Hugging Face dataset folder with its
    card.

    The export appears under its name complete or not at all, and is the same, byte for byte, whenever it is made.

    \b
    Examples:
      batchgen export out --to all.parquet
      batchgen export out --to pairs.jsonl.gz --columns id,response
      batchgen export out --to train.jsonl --format messages
      batchgen export out --to - --columns id,response | head
      batchgen export out --to my-dataset --format hf
      batchgen export s3://my-bucket/out --to s3://my-bucket/all.parquet
    """
    with exit_codes():
        from .commands import push
        from .commands.export import export, export_to_bucket, export_to_hub

        if public and not to.startswith(push.URI):
            raise JobError(f"--public: is for --to {push.URI}ORG/NAME")
        if to.startswith(push.URI):
            if format not in (None, "hf"):
                raise JobError(f"--format {format}: on the hub results are a dataset; leave it out")
            results = export_to_hub(out, to, columns, partial, overwrite, public)
        elif bucket.is_uri(to):
            results = export_to_bucket(out, to, format or "", columns, partial, overwrite)
        else:
            results = export(out, Path(to), format or "", columns, partial, overwrite)
    if to != "-":
        show.exported(results, to)


@cli.command("report", short_help="Make a page about results, to look at in a browser.")
@click.argument("outs", metavar="OUT [OUT2]...", nargs=-1, required=True, type=PlaceOrUri())
@click.option("--to", required=True, type=PlaceOrUri(), help="the HTML file to write, here or in a bucket")
@click.option("--overwrite", is_flag=True, help="replace what is there, even if it is no such page")
def report_command(outs: tuple[str | Path, ...], to: str | Path, overwrite: bool) -> None:
    """Make one HTML file about the results in OUT, or about several outputs side by side: what the job was, what became
    of its rows, lengths, failed checks, rejects, and samples to search, filter and sort.

    The file needs nothing else, and loads nothing. It holds texts of the data. Of an unfinished job it shows what is
    there. Rows of several outputs are joined on their ids.

    \b
    Examples:
      batchgen report out --to out.html
      batchgen report out-before out-after --to both.html
      batchgen report s3://my-bucket/out --to s3://my-bucket/out.html
    """
    with exit_codes():
        from .commands.report import report, report_to_bucket

        size = report(outs, to, overwrite) if isinstance(to, Path) else report_to_bucket(outs, to, overwrite)
    show.in_short(f"wrote {to} ({size / 1e6:,.1f} MB)")


# --- measuring


@cli.group("bench", short_help="Measure how fast batchgen is on this machine.")
def bench_group() -> None:
    """Measure how fast batchgen is on this machine, against what its parts can do. No job is touched.

    \b
    Examples:
      batchgen bench engine job.toml --rows 500
      batchgen bench host --rows 100000
      batchgen bench input --gigabytes 1
    """


json_file = click.option("--json", "json_file", type=LocalPath(), help="also write the figures to a file")


@bench_group.command("engine", cls=JobCommand, short_help="vLLM alone, and with all of batchgen around it.")
@job_inputs
@click.option("--rows", type=click.IntRange(min=1), help="only the first rows of the input")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="of each, in turn")
@click.option("--unseeded", is_flag=True, help="send requests without seeds, to see what seeds cost")
@click.option("--stock/--no-stock", default=True, show_default=True, help="compare with vLLM as it is installed")
@json_file
@job_flags()
def bench_engine_command(
    inputs: tuple[str, ...],
    rows: int | None,
    rounds: int,
    unseeded: bool,
    stock: bool,
    json_file: Path | None,
    engine: tuple[str, ...],
    **options: Any,
) -> None:
    """Compare, in turn: on batchgen's engine, vLLM's own loop over prompts that are already tokenized (bare), and
    everything from the input file to committed shards (pipeline), in a temporary folder next to the job's output; and
    vLLM as it is installed, LLM.generate on the same token ids in a process of its own (stock). Takes what `run` takes.

    On a GPU it also says what share of the time memory bandwidth accounts for. The engine's log goes to stderr.

    \b
    Example:
      batchgen bench engine job.toml --rows 2000 --engine max_num_seqs=512 --json figures.json
    """
    with exit_codes():
        spec = flags.spec_of(inputs, engine, options)
        from .commands import bench

        _report(bench.measure_engine(spec, rows, rounds, unseeded, stock), json_file)


@bench_group.command("peers", cls=JobCommand, short_help="batchgen run beside what else would do the job.")
@job_inputs
@click.option("--rows", type=click.IntRange(min=1), help="only the first rows of the input")
@click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True, help="of each way, in turn")
@click.option("--only", multiple=True, help="one of the ways; may be repeated  [default: all that are installed]")
@json_file
@job_flags()
def bench_peers_command(
    inputs: tuple[str, ...],
    rows: int | None,
    rounds: int,
    only: tuple[str, ...],
    json_file: Path | None,
    engine: tuple[str, ...],
    **options: Any,
) -> None:
    """Do a job with `batchgen run`, and with what is installed of LLM.generate, vllm run-batch, datatrove and Ray Data,
    each as a process of its own; and print a table: when the last result was on disk, when the process had ended,
    tokens per second, peak memory, and how many responses are equal to those of LLM.generate. The logs go to stderr.

    \b
    Example:
      batchgen bench peers demo/job.toml --rounds 3 --only run --only generate --json figures.json
    """
    with exit_codes():
        spec = flags.spec_of(inputs, engine, options)
        from .commands import bench_peers

        if unknown := sorted({*only} - {*bench_peers.WAYS}):
            raise JobError(f"--only {unknown[0]}: the ways are {', '.join(bench_peers.WAYS)}")
        ways = tuple(way for way in bench_peers.WAYS if not only or way in only)
        figures = bench_peers.measure_peers(spec, rows, rounds, ways, warn)
        for line in bench_peers.table(figures):
            show.say(line)
        _to_file(figures, json_file)


@bench_group.command("host", short_help="Everything but the engine.")
@click.option("--rows", type=click.IntRange(min=10), default=100_000, show_default=True, help="made up for it")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=100, show_default=True, help="of a row, about")
@click.option("--response-tokens", type=click.IntRange(min=1), default=100, show_default=True, help="of each row")
@click.option("--model", default="", help="folder of the model whose tokenizer it uses  [default: the demo model]")
@click.option("--output", default="", help="folder or URI in which the job gets its output  [default: in TMPDIR]")
@json_file
def bench_host_command(
    rows: int, prompt_tokens: int, response_tokens: int, model: str, output: str, json_file: Path | None
) -> None:
    """Run a job whose engine answers at once: parsing, rendering, tokenizing, journal, decoding, Parquet.

    \b
    Example:
      batchgen bench host --rows 1000000
      batchgen bench host --output s3://my-bucket/bench
    """
    with exit_codes():
        from .commands import bench

        _report(bench.measure_host(rows, prompt_tokens, response_tokens, model, output), json_file)


@bench_group.command("input", short_help="Counting and planning a big file.")
@click.option("--gigabytes", type=click.FloatRange(min=0.001), default=1.0, show_default=True, help="size of the file")
@json_file
def bench_input_command(gigabytes: float, json_file: Path | None) -> None:
    """Plan a big JSONL file, in turn with plain reading of it, and start on its last shard.

    \b
    Example:
      batchgen bench input --gigabytes 10
    """
    with exit_codes():
        from .commands import bench

        _report(bench.measure_input(gigabytes), json_file)


def _report(figures: dict[str, Any], json_file: Path | None) -> None:
    show.figures(figures)
    _to_file(figures, json_file)


def _to_file(figures: dict[str, Any], json_file: Path | None) -> None:
    if json_file:
        content = msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n"
        if json_file.is_file() or not json_file.exists():
            safeopen.replace(json_file, content)
        else:  # such as /dev/stdout
            json_file.write_bytes(content)


# --- evaluating


@cli.command("eval", short_help="Repeat the six tasks of the model card.")
@click.argument("model")
@click.option("--data", required=True, type=LocalPath(), help="folder with the files of the datasets")
@click.option("--tasks", default="", metavar="NAMES", help="only these of the six, comma-separated")
@click.option("--work", type=LocalPath(), help="folder of the jobs  [default: lm_eval-batchgen]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="only the first N documents of each task")
@click.option("--revision", default="", help="branch, tag or commit of a model on the hub")
@click.option("--engine", multiple=True, metavar="KEY=VALUE", help="[engine] of the jobs")
@json_file
def eval_command(
    model: str,
    data: Path,
    tasks: str,
    work: Path | None,
    limit: int | None,
    revision: str,
    engine: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Run the six tasks of the card of rinna/bilingual-gpt-neox-4b-instruction-sft on MODEL, by
    lm-evaluation-harness, and print the values beside those that were published. `batchgen manual scoring` says which
    files --data has to hold.

    The same command goes on where one was stopped, and one that has finished asks the engine nothing again.

    \b
    Examples:
      batchgen eval rinna/bilingual-gpt-neox-4b-instruction-sft --data JGLUE/datasets --tasks jnli,jsquad
      batchgen eval models/sft --data datasets --limit 100 --engine dtype=float16
    """
    with exit_codes():
        from .commands import evaluate

        names = evaluate.names_of(tasks)
        lm = evaluate.model(model, revision, work, flags.engine_args(engine))
        results = evaluate.evaluate(lm, data, names, limit)
        for line in evaluate.table(results, limit):
            show.say(line)
        _to_file(evaluate.document(results, limit), json_file)


# --- what there is to know


@cli.command("inspect", short_help="Show which model of the series a folder or repository holds.")
@click.argument("model")
@click.option("--revision", default="", help="branch, tag or commit of a model on the hub")
@click.option("--vision", default="", help="BLIP-2's weights, for a MiniGPT-4 model: a folder or a name on the hub")
@click.option("--allow-withdrawn", is_flag=True, help="exit with 0 for the withdrawn weights of 2023-07-31 too")
@json_flag
def inspect_command(model: str, revision: str, vision: str, allow_withdrawn: bool, as_json: bool) -> None:
    """Show what MODEL is, a folder or a name on the hub: family, prompt format, context, sampling, weights.

    It goes by the config, the tokenizer and the MD5 of the weights, not by the name.

    \b
    Examples:
      batchgen inspect models/sft
      batchgen inspect rinna/bilingual-gpt-neox-4b-instruction-sft --revision main
      batchgen inspect rinna/bilingual-gpt-neox-4b-minigpt4 --vision Salesforce/blip2-flan-t5-xxl
    """
    with exit_codes():
        from .commands import inspect_model
        from .model.model import check_release, load_model

        here = current_folder()
        found = load_model(model_path(model, here), revision, vision=model_path(vision, here) if vision else "")
        if as_json:
            show.document(inspect_model.document(found))
        else:
            for name, value in inspect_model.describe(found):
                show.say(f"{name:15}  {shown(value)}")
        check_release(found, allow_withdrawn)


@cli.command("doctor", short_help="Show what is installed here, and what is wrong with it.")
@click.option("--engine", "with_engine", is_flag=True, help="also start vLLM on the demo model and generate a row")
@json_flag
def doctor_command(with_engine: bool, as_json: bool) -> None:
    """Show versions, devices, caches and Slurm as a job would find them here, and what is wrong, each problem with what
    to do about it.

    It changes nothing, and does not load vLLM unless told to.

    \b
    Examples:
      batchgen doctor
      batchgen doctor --engine
      batchgen doctor --json

    \b
    Exit codes:
      0  a job can run here
      1  no job can run here; warnings alone do not count
    """
    with exit_codes():
        from .commands import doctor

        report = doctor.look(with_engine)
        if as_json:
            show.document(report)
        else:
            show.doctor(report)
        for problem in report.problems:
            if problem.stops_jobs:
                events.tell(events.Level.error, "problem", problem.what)
            else:
                warn(problem.what)
        if not report.can_run:
            fail("no job can run here", EXIT_BROKEN)


@cli.command("demo", short_help="Write the demo model, its data and a job file.")
@click.argument("folder", type=LocalPath(file_okay=False))
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


@cli.command("manual", short_help="Show the manual.")
@click.argument("page", default="", shell_complete=flags.pages)
def manual_command(page: str) -> None:
    """Show a PAGE of the manual; without one, list the pages.

    \b
    Examples:
      batchgen manual
      batchgen manual job-file
    """
    with exit_codes():
        if not page:
            show.facts(manual.PAGES, width=max(map(len, manual.PAGES)) + 1)
            return
        if page not in manual.PAGES:
            near = nearest(page, manual.PAGES) or f"; the pages are {', '.join(manual.PAGES)}"
            raise JobError(f"manual: no page {shown(page)}{near}")
        show.page(manual.text(page))
