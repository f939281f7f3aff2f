"""The flags of `batchgen run` and the commands like it: one for each key of the job file, made from its tables."""

import glob
import os
import re
import signal
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

import click
import msgspec
from click.shell_completion import CompletionItem

from . import manual
from .engine.installed import ANY_VERSION, ANY_VERSION_FLAG, RANGE
from .errors import REJECT_REASONS, JobError, Stopped, Stopping
from .host import events, safeopen, signals
from .job.sampling import FINISH_REASONS, Sampling
from .job.spec import OF_SWEEPS, TABLES, VARIED, JobSpec, load, nearest, without_sweep
from .output import layout

LONGEST_JOB_FILE = 1 << 20  # bytes
COLUMN_KEYS = ("seed", "sampling", "system", "adapter", "image")  # of [input], where other tables have the value itself
PREFIXES = {"limits": "limit"} | {
    table: table for table in ("translate", "score", "metrics", "sweep", "notify")
}  # of flags whose keys say little
VARY = ("sweep", "vary")  # the key whose flag is --sweep
SHORT = {"--model": "-m", "--output": "-o"}
RAY = "--ray"
GIVEN = "batchgen.given"  # all arguments of a command, in its context
STDIN = "-"  # in place of an input file
LOG_FORMAT, LOG_FORMAT_VARIABLE = "--log-format", "BATCHGEN_LOG_FORMAT"
OF_FILES = ("path", "image_folder", "vision", "glossary", "memory", "scorer")  # keys that a shell completes with names
LONGEST_CHOICE = 60  # characters of a flag's choices: longer ones go into its description


class Key(NamedTuple):
    """One key of the job file.

    table, name: as in the file
    type: without msgspec's wrapping and without None
    bounds: what msgspec checks besides the type (ge, le, min_length ...)
    default: NODEFAULT where there is none; None where the key may be left out
    description: one line, without a full stop
    """

    table: str
    name: str
    type: Any
    bounds: msgspec.Meta
    default: Any
    description: str

    @property
    def choices(self) -> list[str]:
        """The values that it may have, or that the elements of its list may have; empty if any will do."""
        kind = get_args(self.type)[0] if get_origin(self.type) is list else self.type
        return list(get_args(kind)) if get_origin(kind) is Literal else []

    @property
    def is_of_the_model(self) -> bool:
        """Whether its default is what the model's card says."""
        return self.table == "sampling" and self.default is None and getattr(Sampling(), self.name, None) is not None


def keys() -> Iterator[Key]:
    """All keys of the job file, but for those of [engine], which are vLLM's own."""
    for table, struct in TABLES.items():
        hints = get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            plain, bounds = _unwrapped(hints[field.name])
            made = field.default_factory is not msgspec.NODEFAULT
            default = field.default_factory() if made else field.default  # type: ignore[misc, operator]
            yield Key(table, field.encode_name, plain, bounds, default, bounds.description or "")


def _unwrapped(hint: Any) -> tuple[Any, msgspec.Meta]:
    if type(None) in get_args(hint):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is not Annotated:
        return hint, msgspec.Meta()
    plain, *metas = get_args(hint)
    return plain, next(meta for meta in metas if meta.description)


def flag_name(table: str, key: str) -> str:
    """A key's flag: the key itself with dashes, unless another key or another meaning is in the way."""
    if table == "input" and key in COLUMN_KEYS:
        return f"--{key}-column"
    if (table, key) == VARY:
        return "--sweep"
    if table in PREFIXES:
        return f"--{PREFIXES[table]}-{key}".replace("_", "-")
    names = {"path": table, "format": f"{table}-format", "columns": "column"}
    return "--" + names.get(key, key).replace("_", "-")


class Json(click.ParamType):
    """A flag whose value is JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return msgspec.json.decode(value) if isinstance(value, str) else value
        except msgspec.DecodeError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)


class Varied(click.ParamType):
    """KEY=VALUE,VALUE of --sweep: the key and its list."""

    name = "varied"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        key, equals, text = value.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not text:
            self.fail(f"{value!r}: write KEY=VALUE,VALUE such as temperature=0.3,0.7", param, ctx)
        if key not in VARIED:
            self.fail(f"{key}: is no key of [sampling], nor template{nearest(key, VARIED)}", param, ctx)
        try:
            return key, tomllib.loads(f"v = [{text}]")["v"]
        except tomllib.TOMLDecodeError:
            return key, [text]  # a text without quotes may have commas of its own


def _whole_or_text(value: str) -> int | str:
    return int(value) if value.isdecimal() else value


def files(context: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """What a shell completes with the names of files and folders."""
    return [CompletionItem(begun, type="file")]


def pages(context: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """What a shell completes with the pages of the manual."""
    return [CompletionItem(page, help=about) for page, about in manual.PAGES.items() if page.startswith(begun)]


def reasons(context: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """What a shell completes with reasons; behind a comma with one more."""
    before, comma, last = begun.rpartition(",")
    known = (*FINISH_REASONS, *REJECT_REASONS)
    return [CompletionItem(f"{before}{comma}{reason}") for reason in known if reason.startswith(last)]


class Address(click.ParamType):
    """Of a Ray cluster."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not re.fullmatch(r"auto|(ray://)?[^/\s]+:\d+", value):
            self.fail(f"{value!r} is no address (HOST:PORT, or auto); write --ray behind all else", param, ctx)
        return value


def arguments_of_workers() -> list[str]:
    """The arguments of the command at work, without those that are for itself and not for workers elsewhere."""
    given = click.get_current_context().meta[GIVEN]
    kept = []
    for before, each in zip(["", *given], given, strict=False):
        is_address = each.startswith(f"{RAY}=") or (before == RAY and not each.startswith("-"))
        if not is_address and each not in (RAY, "--json", "--discard"):
            kept.append(each)
    return kept


class JobCommand(click.Command):
    """A command that takes the keys of the job file: its help has a heading for each table."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises JobError that shows how to begin, where nothing is given, or what does what was tried."""
        ctx.meta[GIVEN] = list(args)
        is_of_inputs = any(param.name == "inputs" for param in self.params)
        if is_of_inputs and not args and not ctx.resilient_parsing:
            raise JobError(*_beginnings(ctx.info_name or ""))
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if (ctx.info_name, error.option_name) != ("run", "--dry-run"):
                raise
            raise JobError("--dry-run: `batchgen plan` shows what a run will do, and generates nothing") from None
        except click.BadParameter as error:
            table, _, key = ((error.param and error.param.name) or "").partition("__")
            if ctx.info_name != "sweep" or table != "sampling" or key not in VARIED:
                raise
            why, flag = error.message.rstrip("."), flag_name(table, key)
            raise JobError(f"{flag}: {why}; for several values write --sweep {key}=VALUE,VALUE") from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                headings.setdefault(_heading(param.name or ""), []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _beginnings(command: str) -> list[str]:
    """What to type where nothing is there yet."""
    task, asks = (" --task sweep", " --sweep temperature=0.3,0.7,1.0") if command == "sweep" else ("", "")
    return [
        f"{command}: of which job? There are three ways to begin",
        f"to try it:        batchgen demo demo, then batchgen {command} demo/job.toml{asks}",
        f"with a job file:  batchgen init IN --model MODEL{task}, then batchgen {command} job.toml",
        f"with flags alone: batchgen {command} IN --model MODEL --output out{asks}",
        "IN: files or folders of JSONL, Parquet, CSV ..., or - for a pipe",
        "MODEL: a folder, or a name on the hub such as rinna/bilingual-gpt-neox-4b-instruction-sft",
        f"batchgen {command} --help shows all flags, batchgen manual the pages of the manual",
    ]


def _heading(option: str) -> str:
    table = "engine" if option.startswith("engine") else option.partition("__")[0]
    return f"[{table}]" if table in TABLES or table == "engine" else "Options"


engine_flag = click.option(
    "--engine",
    multiple=True,
    metavar="KEY=VALUE",
    help="any of vLLM's EngineArgs, with the value written as in TOML; may be repeated",
)


def _go_on_with_any_version(context: click.Context, param: click.Parameter, given: bool) -> None:
    if given:
        os.environ[ANY_VERSION] = "1"  # which workers inherit


# No key of the job file: it says nothing about the job, and with a later batchgen it is not needed.
any_version_flag = click.option(
    ANY_VERSION_FLAG,
    is_flag=True,
    expose_value=False,
    callback=_go_on_with_any_version,
    help=f"go on with a vLLM that batchgen is not made for ({RANGE} it is)",
)


# --- what a command says on stderr: no keys of the job file, as they change nothing that it makes


def log_format(arguments: Sequence[str]) -> str:
    """The --log-format of a command line, known before click reads it, since that may fail."""
    for given, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, _, value = given.partition("=")
        if name == LOG_FORMAT:
            return value or following
    return os.environ.get(LOG_FORMAT_VARIABLE, "")


def _say_less(context: click.Context, param: click.Parameter, given: bool) -> None:
    _set_style(context, param, "quiet", given)


def _say_more(context: click.Context, param: click.Parameter, given: bool) -> None:
    _set_style(context, param, "verbose", given)


def _say_as(context: click.Context, param: click.Parameter, given: str | None) -> None:
    if given:  # of a group and its command the command has the last word
        events.set_style(events.style()._replace(as_json=given == "json"))


def _set_style(context: click.Context, param: click.Parameter, name: str, given: bool) -> None:
    if not given:
        return
    style = events.style()._replace(**{name: True})
    if style.quiet and style.verbose:
        raise click.UsageError("-q and -v: give one of them", context)
    events.set_style(style)


def _log_options(variable: str | None) -> list[click.Option]:
    """variable: of the environment, that stands for --log-format"""
    unsaid: dict[str, Any] = {"is_flag": True, "expose_value": False}
    return [
        click.Option(
            ["-q", "--quiet"],
            callback=_say_less,
            help="no bar, header or summary: only results, warnings and errors",
            **unsaid,
        ),
        click.Option(
            ["-v", "--verbose"],
            callback=_say_more,
            help="also tell of shards and engines, show vLLM's log, and the traceback of a bug",
            **unsaid,
        ),
        click.Option(
            [LOG_FORMAT],
            type=click.Choice(["text", "json"]),
            envvar=variable,
            expose_value=False,
            callback=_say_as,
            help="of what is said on stderr; json is an object on each line",
        ),
    ]


def log_flags(command: click.Command, variable: str | None = None) -> None:
    """Gives a command -q, -v and --log-format. variable: see _log_options; one command of a line reads it."""
    command.params += _log_options(variable)


def job_flags(defaults: bool = True, of_sweeps: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """One option for each key of the job file, --engine and --engine-any-version.

    of_sweeps: with the keys of tables that only a sweep reads
    defaults: whether the help shows them; where a key that is not given comes from an existing job, they are not true
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        wanted = [key for key in keys() if of_sweeps or key.table not in OF_SWEEPS]
        options = [_option(key, defaults) for key in wanted if (key.table, key.name) != ("input", "path")]
        for option in reversed([*options, engine_flag, any_version_flag]):
            command = option(command)
        return command

    return add


def _option(key: Key, show_default: bool) -> Callable[..., Any]:
    name = flag_name(key.table, key.name)
    kind = get_args(key.type)[0] if get_origin(key.type) is list else key.type
    multiple = get_origin(key.type) is list
    if (key.table, key.name) == VARY:
        kind, multiple = Varied(), True
    elif get_origin(kind) in (Union, UnionType):
        kind = _whole_or_text
    elif kind == dict[str, str]:
        kind, multiple = str, True
    elif get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        kind, multiple = Json(), False
    elif key.choices:
        kind = click.Choice(key.choices)
    elif kind not in (bool, int, float):
        kind = str
    is_long = len("|".join(key.choices)) > LONGEST_CHOICE
    return click.option(
        *([SHORT[name]] if name in SHORT else []),
        f"{name}/--no{name[1:]}" if kind is bool else name,
        f"{key.table}__{key.name}",
        type=None if kind is bool else kind,
        multiple=multiple,
        default=None,
        metavar="KEY=VALUES" if name == "--sweep" else "NAME" if is_long else None,
        help=_help(key, name, multiple, is_long) + (_default(key) if show_default else ""),
        shell_complete=files if key.name in OF_FILES else None,
    )


def _help(key: Key, flag: str, multiple: bool, is_long: bool) -> str:
    key_name = "" if flag == f"--{key.name}".replace("_", "-") else f"{key.name}: "
    choices = f": {', '.join(key.choices)}" if is_long else ""
    return f"{key_name}{key.description}{choices}{'; may be repeated' if multiple else ''}"


def _default(key: Key) -> str:
    if key.default is msgspec.NODEFAULT:
        return "  [required, here or in the job file]"
    if key.is_of_the_model:
        return "  [default: the model card's]"
    if key.default in (None, "", [], {}):
        return ""
    if isinstance(key.default, bool):
        return f"  [default: {'on' if key.default else 'off'}]"
    return f"  [default: {key.default:g}]" if isinstance(key.default, float) else f"  [default: {key.default}]"


def by_table(inputs: tuple[str, ...], engine: tuple[str, ...], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was given on the command line, and nothing else, as the tables of a job file."""
    tables: dict[str, dict[str, Any]] = {"input": {"path": list(inputs)} if inputs else {}}
    for name, value in options.items():
        table, _, key = name.partition("__")
        if value is not None and value != ():
            tables.setdefault(table, {})[key] = list(value) if isinstance(value, tuple) else value
    if "vary" in (given := tables.get("sweep", {})):
        tables["sweep"] = {key: value for key, value in given.items() if key != "vary"} | _lists(given["vary"])
    tables |= {"engine": engine_args(engine)}
    return {table: values for table, values in tables.items() if values}


def _lists(varied: list[tuple[str, list[Any]]]) -> dict[str, list[Any]]:
    """The values of --sweep, by key. One that comes twice has the values of both."""
    lists: dict[str, list[Any]] = {}
    for key, values in varied:
        lists.setdefault(key, []).extend(values)
    return lists


def engine_args(settings: tuple[str, ...]) -> dict[str, Any]:
    """The values of --engine, by name. Raises JobError."""
    return dict(_engine_arg(setting) for setting in settings)


def _engine_arg(setting: str) -> tuple[str, Any]:
    """KEY=VALUE of --engine; VALUE as in TOML, or plain text."""
    key, equals, value = setting.partition("=")
    if not equals:
        raise JobError(f"--engine {setting}: write KEY=VALUE, such as max_num_seqs=256")
    try:
        return key, tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key, value


def spec_of(inputs: tuple[str, ...], engine: tuple[str, ...], options: dict[str, Any]) -> JobSpec:
    """The job that a command line names: a job file first, if there is one, then input. What the file says of a sweep
    is passed over. Raises JobError."""
    return without_sweep(sweep_of(inputs, engine, options))


def sweep_of(inputs: tuple[str, ...], engine: tuple[str, ...], options: dict[str, Any]) -> JobSpec:
    """The same with what it says of a sweep."""
    job_file, files = (inputs[0], inputs[1:]) if inputs and inputs[0].endswith(".toml") else (None, inputs)
    if job_file is None and files and _is_other_job_file(Path(files[0])):
        raise JobError(
            f"{files[0]}: a job file is TOML, and its name ends in .toml; `batchgen init` writes one, and "
            "`batchgen manual job-file` shows one"
        )
    _check_no_job_file(files, "one job file a run; run each by itself" if job_file else "a job file goes first")
    tables = by_table(files, engine, options)
    if STDIN in files:
        tables["input"]["path"] = [_spooled(load(job_file, tables)) if each == STDIN else each for each in files]
    return load(job_file, tables)


def _check_no_job_file(files: Sequence[str], why: str) -> None:
    if others := [each for each in files if each.endswith(".toml") and not Path(each).is_dir()]:
        raise JobError(f"{others[0]}: {why}")


def _spooled(spec: JobSpec) -> str:
    """What comes in through stdin as a file: beside the output, so that the job can be resumed, verified and shared;
    of a command that only looks, for as long as that takes. Raises JobError."""
    from .api.data import spooled

    context = click.get_current_context()
    if context.info_name == "submit" or context.params.get("ray"):
        raise JobError(f"{STDIN}: a job on the cluster cannot read what is piped in here; name a file")
    if context.info_name not in ("run", "sweep"):
        scratch = context.with_resource(tempfile.TemporaryDirectory(prefix="batchgen-stdin-"))
        with _stopping_by_an_exception():
            return spooled(sys.stdin, f"{scratch}/stdin")
    out = Path(spec.output.path)
    before = set(out.parent.glob(f"{glob.escape(out.name)}.input-*"))
    with _stopping_by_an_exception():
        kept = spooled(sys.stdin, spec.output.path)
    if context.info_name == "run" and Path(kept) not in before:  # a sweep may have several folders
        context.call_on_close(lambda: _forget(Path(kept), out / layout.JOB))
    return kept


@contextmanager
def _stopping_by_an_exception() -> Iterator[None]:
    """A signal ends what reads stdin in such a way that what was read so far is removed. Raises Stopped."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped("stopped while stdin was read; nothing was begun", Stopping.AS_ASKED)

    with signals.caught(stop, signal.SIGINT, signal.SIGTERM):
        yield


def _forget(kept: Path, record: Path) -> None:
    """Removes what was piped in if no job began with it: with a wrong flag, or as another job is in the folder."""
    with suppress(OSError):  # it is in a bucket
        if not (record.exists() and kept.name.encode() in record.read_bytes()):
            kept.unlink()


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
