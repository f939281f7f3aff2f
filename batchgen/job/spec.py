"""The job: its TOML file and flags as one typed spec, and the differences between two specs."""

import difflib
import os
import posixpath
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

from ..errors import JobError, on_disk, plain, shown
from ..host import bucket, clock, credentials
from ..host.bucket import Bucket
from . import own_check
from .output_path import check_output_path
from .row_limits import ROW_BYTES, ROW_VALUES
from .sampling import INT32, NAMES, GivenSampling, JobSampling
from .trust import refuse_risks

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9_])?/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_LONGEST_NAME = 96
ROOT = 0  # the user
LONGEST = 1 << 20  # bytes of a job file in a bucket
_ADAPTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# The keys that name files, folders or buckets, by table.
_PLACES = {
    "input": ("path", "image_folder"),
    "model": ("path", "vision", "adapter"),
    "output": ("path",),
    "translate": ("glossary", "memory"),
    "sweep": ("model",),
}
DEFAULT_ADAPTER = "default"  # the name of an adapter that is given without one: rows that name none are answered by it

# "auto", and the shapes of records, in the order in which they are tried. input/shapes.py reads them.
InputFormat = Literal[
    "auto",
    "speaker",
    "openai",
    "openai-batch",
    "anthropic-batch",
    "sharegpt",
    "openai-preference",
    "oasst",
    "preference",
    "hh",
    "guanaco",
    "chatml",
    "llama2",
    "flan",
    "dolly",
    "alpaca",
    "orca",
    "prompt",
    "list",
    "fastchat",
    "text",
]
PromptFormat = Literal["auto", "speaker", "speaker-nl", "raw", "chat-template"]
OptionalColumn = Literal["prompt", "prompt_token_ids", "response_token_ids", "source", "mean_logprob"]


class _Table(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    pass


class InputTable(_Table, frozen=True):
    """`[input]`: which rows, and what their columns mean."""

    path: Annotated[
        list[str], Meta(description="JSONL, JSON, Parquet, Arrow, CSV or TSV: files, folders, globs or URIs")
    ]
    id: Annotated[str, Meta(description="column with the row's id; rows without one use their number; '' for none")] = (
        "id"
    )
    seed: Annotated[str, Meta(description="column with the row's own seed; '' for none")] = "seed"
    sampling: Annotated[str, Meta(description="column with the row's own sampling parameters; '' for none")] = (
        "sampling"
    )
    system: (
        Annotated[str, Meta(description="column of system messages; '' for none; default: system, system_prompt, ...")]
        | None
    ) = None
    adapter: Annotated[str, Meta(description="column that names the row's adapter; '' for none")] = ""
    image: Annotated[
        str, Meta(description="column with the row's image or images, or with messages that have some; '' for none")
    ] = ""
    image_folder: Annotated[
        str, Meta(description="folder that images are named from; default: that of the input file")
    ] = ""
    format: Annotated[InputFormat, Meta(description="shape of the records; auto decides for each row")] = "auto"
    drop_last_response: Annotated[bool, Meta(description="drop an answer at the end of a conversation")] = False
    limit: (
        Annotated[
            int, Meta(ge=1, description="only the first rows, as a trial; without it the run goes on with the rest")
        ]
        | None
    ) = None
    incremental: Annotated[bool, Meta(description="continue with new files and with lines appended to old ones")] = (
        False
    )
    keep: Annotated[
        bool,
        Meta(description="false: files that an incremental job is done with may be archived or deleted"),
    ] = True
    follow_links: Annotated[bool, Meta(description="follow links in folders and globs")] = False
    row_sampling: Annotated[
        Literal["on", "off"], Meta(description="off: reject rows that have sampling parameters of their own")
    ] = "on"
    skip: Annotated[
        list[int], Meta(description="number of a row to reject; may be added while the job is unfinished")
    ] = []

    def __post_init__(self) -> None:
        if wrong := [number for number in self.skip if number < 0]:
            raise ValueError(f"skip: {wrong[0]} is not a row number; rows are numbered from 0")


class ModelTable(_Table, frozen=True):
    """`[model]`: which model."""

    path: Annotated[str, Meta(description="model folder, or name of a model on the hub (org/name)")]
    revision: Annotated[str, Meta(description="branch, tag or commit of a model on the hub")] = ""
    allow_withdrawn: Annotated[bool, Meta(description="allow the withdrawn weights of 2023-07-31")] = False
    adapter: Annotated[
        dict[str, str],
        Meta(description="LoRA adapter in PEFT's format: a folder, or several by name (NAME=FOLDER as a flag)"),
    ] = {}
    vision: Annotated[
        str, Meta(description="for a MiniGPT-4 model, BLIP-2's weights: a folder, or a name on the hub")
    ] = ""
    reasoning_parser: Annotated[
        str, Meta(description="for a model that reasons, vLLM's parser of it: its thoughts get a column of their own")
    ] = ""

    def __post_init__(self) -> None:
        if wrong := next((name for name in self.adapter if not _ADAPTER.fullmatch(name)), None):
            raise ValueError(f"adapter: {wrong!r:.80} cannot be a name: use letters, digits, '_', '-' and '.'")


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One utterance of `[prompt] prefix`."""

    speaker: Literal["ユーザー", "システム"]
    text: str


class PromptTable(_Table, frozen=True):
    """`[prompt]`: how a conversation becomes a prompt."""

    format: Annotated[
        PromptFormat, Meta(description="how a conversation becomes a prompt; auto: as the model needs")
    ] = "auto"
    template: Annotated[str, Meta(description="the user's utterance, made from columns: 'Translate: {title}'")] = ""
    system: Annotated[str, Meta(description="system message for rows that have none")] = ""
    prefix: Annotated[list[Turn], Meta(description="fixed turns before every conversation (as JSON in a flag)")] = []
    on_overlength: Annotated[
        Literal["reject", "drop-turns", "clip"], Meta(description="what to do with a prompt that is too long")
    ] = "reject"
    control_tokens: Annotated[
        Literal["text", "reject", "token"],
        Meta(description="how to treat a Hugging Face tokenizer's control tokens in a row's text"),
    ] = "text"
    date: Annotated[str, Meta(description="current date for chat templates that ask for it: 2026-01-31")] = ""

    def __post_init__(self) -> None:
        try:
            date.fromisoformat(self.date or "2026-01-31")
        except ValueError:
            raise ValueError(f"date: {self.date!r} is not a date: write 2026-01-31") from None


class OutputTable(_Table, frozen=True):
    """`[output]`: where results go, and how the run behaves."""

    path: Annotated[str, Meta(description="output folder, or s3://, gs://, az:// in a bucket")]
    shard_rows: Annotated[int, Meta(ge=1, le=1_000_000, description="input rows per shard")] = 4096
    columns: Annotated[
        list[str],
        Meta(
            description="input columns to pass through: `name`, or `name=other` to rename it; optionally with `:type`, "
            "one of string, int64, double, bool, json, int32, float; `*` for all of them"
        ),
    ] = []
    include: Annotated[list[OptionalColumn], Meta(description="optional columns to write")] = []
    max_rejects: Annotated[int, Meta(ge=0, description="exit with 3 if more rows than this are rejected")] | None = None
    abort_if_rejected: (
        Annotated[
            float,
            Meta(ge=0, le=1, description="stop with 2 if more than this share of the rows is rejected, from 1,000 on"),
        ]
        | None
    ) = None
    workers: (
        Annotated[
            int, Meta(ge=1, description="worker processes; default: one per GPU; without GPUs as suits the model")
        ]
        | None
    ) = None
    drain: Annotated[float, Meta(ge=0, description="seconds that running requests get to finish after a stop")] = 30.0
    stall: Annotated[float, Meta(gt=0, description="seconds without a token before the engine is restarted")] = 300.0
    max_restarts: Annotated[int, Meta(ge=0, description="engine restarts in a row without a response in between")] = 10
    stale: Annotated[float, Meta(gt=0, description="seconds without a heartbeat before a worker counts as dead")] = 60.0
    journal_every: (
        Annotated[
            float,
            Meta(gt=0, description="seconds until a response is safe; default: 1, in a bucket 10"),
        ]
        | None
    ) = None
    stop_at: Annotated[str, Meta(description="when to stop, with exit 75: HH:MM, an ISO time or epoch seconds")] = ""
    shared: Annotated[bool, Meta(description="a team's folder: other users may own it and write to it")] = False
    requeue: Annotated[bool, Meta(description="under Slurm: requeue the job when its time is up")] = False

    def __post_init__(self) -> None:
        try:
            clock.moment(self.stop_at or "0:00")
        except ValueError:
            text = repr(self.stop_at)
            raise ValueError(f"stop_at: {text} is not a time: write 7:00, 2026-01-31T07:00 or epoch seconds") from None
        if self.stop_at and self.requeue:
            raise ValueError("stop_at and requeue exclude each other: Slurm would restart the job immediately")


class LimitsTable(_Table, frozen=True):
    """`[limits]`: how much one row may cost and ask for. The defaults are wider than any real row needs, and narrow
    enough that no row can take down the machine."""

    row_bytes: Annotated[int, Meta(ge=1, description="bytes of a row")] = ROW_BYTES
    row_values: Annotated[int, Meta(ge=1, description="values of a row, counted by commas and brackets")] = ROW_VALUES
    turns: Annotated[int, Meta(ge=1, description="utterances of a conversation")] = 10_000
    segments: Annotated[int, Meta(ge=1, description="segments of a row's texts to translate")] = 200_000
    n: Annotated[int, Meta(ge=1, description="responses that a row may ask for")] = 1024
    max_tokens: Annotated[int, Meta(ge=1, description="max_tokens that a row may ask for")] = INT32
    stop: Annotated[int, Meta(ge=0, description="stop texts that a row may have")] = 128
    text_bytes: Annotated[int, Meta(ge=1, description="bytes of a row's stop text or bad word")] = 4096
    schema_bytes: Annotated[int, Meta(ge=1, description="bytes of a row's structured_outputs, as JSON")] = 1 << 16
    schema_depth: Annotated[int, Meta(ge=1, description="nesting depth of a row's schema")] = 64
    schema_properties: Annotated[int, Meta(ge=0, description="properties in a row's schema, in total")] = 1000
    images: Annotated[int, Meta(ge=0, description="images of a row")] = 64
    image_pixels: Annotated[int, Meta(ge=1, description="pixels of an image")] = 50_000_000
    choices: Annotated[int, Meta(ge=0, description="choices of a row, or enum values in its schema")] = 10_000
    check_seconds: Annotated[float, Meta(gt=0, description="CPU seconds to check one schema or prompt")] = 4.0
    check_mb: Annotated[int, Meta(ge=16, description="megabytes of memory to check one schema or prompt")] = 1024


class CheckTable(_Table, frozen=True):
    """`[check]`: what a response must be, and what becomes of one that is not. check/checks.py has the checks."""

    checks: Annotated[
        list[str],
        Meta(
            description="empty, truncated, repetition, copy, language, length, numbers, json, regex:PATTERN, "
            "forbidden:PATTERN, logprob:NUMBER, FILE.py:FUNCTION"
        ),
    ] = []
    tries: Annotated[int, Meta(ge=1, le=100, description="most tries for a response, the first one included")] = 3
    on_failure: Annotated[
        Literal["keep", "null", "reject"],
        Meta(description="if no try passes: keep the best one, leave the response out, or reject the row"),
    ] = "keep"
    retry: Annotated[
        dict[str, Any],
        Meta(description="sampling of further tries, over the row's own (as JSON in a flag)"),
    ] = {}
    source: Annotated[
        str, Meta(description="column that responses are compared with; default: the template's, or the last utterance")
    ] = ""
    source_language: Annotated[str, Meta(description="language of that: en, ja, ...")] = ""
    language: Annotated[str, Meta(description="language of the responses: en, ja, ...")] = ""

    def __post_init__(self) -> None:
        try:
            msgspec.convert(self.retry, GivenSampling, str_keys=True)
        except msgspec.ValidationError as error:
            raise ValueError(f"retry: {_readable(str(error))}") from None


class TranslateTable(_Table, frozen=True, rename={"source": "from"}):
    """`[translate]`: texts inside of the records are translated, and everything else stays as it is."""

    fields: Annotated[
        list[str],
        Meta(description="paths of the texts: inputs, messages[*].content, meta.title, turns[*].parts[*].text"),
    ] = []
    source: Annotated[str, Meta(description="language of the texts, by its name or code: English, en")] = ""
    into: Annotated[str, Meta(description="language to translate into: Japanese, ja")] = ""
    segment: Annotated[
        Literal["whole", "paragraph", "sentence"], Meta(description="how much of a text is translated at a time")
    ] = "paragraph"
    max_segment: Annotated[int, Meta(ge=8, description="most tokens of a segment; what is longer is cut")] = 384
    context: Annotated[
        int, Meta(ge=0, description="how many segments ahead of one the template's {before} shows the model")
    ] = 0
    protect: Annotated[
        list[str], Meta(description="what comes back as it is: code, url, placeholder, markup, regex:PATTERN")
    ] = []
    protect_by: Annotated[
        Literal["mask", "split"],
        Meta(description="mask: the model gets marks in its place, and splits are for what loses them; split: at once"),
    ] = "mask"
    glossary: Annotated[
        str, Meta(description="TSV file of terms and their translations, for the template's {glossary}")
    ] = ""
    memory: Annotated[list[str], Meta(description="output folders whose segments are not generated again")] = []
    on_failure: Annotated[
        Literal["source", "null", "best", "reject"],
        Meta(
            description="a segment whose tries all fail: keep its source, make the text null, take the best try, or "
            "reject the row"
        ),
    ] = "source"
    report: Annotated[str, Meta(min_length=1, description="column that says how it went")] = "translation"

    def __post_init__(self) -> None:
        given = [name for name in ("source", "into", "glossary", "memory", "context") if getattr(self, name)]
        if given and not self.fields:
            raise ValueError("fields: name the texts to translate, such as messages[*].content")
        if self.fields and not self.into:
            raise ValueError("into: name the language to translate into, such as Japanese")


class ScoreTable(_Table, frozen=True):
    """`[score]`: how likely the model finds given texts, instead of what it writes itself."""

    mode: Annotated[
        Literal["off", "continuation", "choices", "text"],
        Meta(description="continuation: of a prompt; choices: several of them; text: a text by itself, its perplexity"),
    ] = "off"
    column: Annotated[
        str,
        Meta(
            description="column with the text to score, or the list of choices; default: the answer at the end of the "
            "conversation; for text: text"
        ),
    ] = ""
    reference: Annotated[str, Meta(description="column with the right choice: its number from 0, or its text")] = ""
    also_without_prompt: Annotated[bool, Meta(description="score each continuation without its prompt too")] = False
    tokens: Annotated[bool, Meta(description="write the log probability of every token too")] = False

    def __post_init__(self) -> None:
        given = [key for key in ("column", "reference", "also_without_prompt", "tokens") if getattr(self, key)]
        if given and self.mode == "off":
            raise ValueError("mode: say what is scored: continuation, choices or text")
        if self.mode == "choices" and not self.column:
            raise ValueError("column: name the column with the list of choices")
        if self.reference and self.mode != "choices":
            raise ValueError("reference: only one of several choices can be the right one; set mode to choices")
        if self.also_without_prompt and self.mode == "text":
            raise ValueError("also_without_prompt: a text by itself has no prompt")


class MetricsTable(_Table, frozen=True):
    """`[metrics]`: what `sweep` and `report` measure of responses. metrics/metrics.py has the metrics."""

    reference: Annotated[str, Meta(description="column with the right answer, or a list of several; '' for none")] = ""
    use: Annotated[list[str], Meta(description="metrics to show; default: every one that can be had")] = []
    scorer: Annotated[
        str, Meta(description="FILE.py:FUNCTION of your own: of the row and the response a number, or several by name")
    ] = ""
    best: Annotated[str, Meta(description="metric that chooses the best setting; default: the most telling one")] = ""
    language: Annotated[str, Meta(description="language of good responses: en, ja, ...; default: that of [check]")] = ""
    resamples: Annotated[int, Meta(ge=100, le=100_000, description="of the rows, which intervals come from")] = 1000

    def __post_init__(self) -> None:
        if self.scorer and not own_check.parse(self.scorer):
            raise ValueError(f"scorer: {self.scorer!r:.80} is no function of a file: write FILE.py:FUNCTION")


VARIED = (*NAMES, "n", "seed", "rerank", "template")  # what [sweep] takes lists of: all of [sampling], and the template


class SweepTable(_Table, frozen=True):
    """`[sweep]`: the same rows with several settings. job/settings.py makes these of it.

    method: None if the job is no sweep
    vary: in the order of the settings
    """

    method: (
        Annotated[
            Literal["grid", "list", "random"],
            Meta(
                description="grid, the default: every combination of the values; list: the first of each list "
                "together, then the second of each; random: [sweep] trials combinations, drawn"
            ),
        ]
        | None
    ) = None
    trials: Annotated[int, Meta(ge=1, le=10_000, description="combinations that method random draws")] = 20
    rows: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["all"],
        Meta(description="how many rows, one from each of as many equal stretches of the input; or all"),
    ] = 200
    samples: (
        Annotated[int, Meta(ge=1, le=1024, description="responses of a row in each setting; default: [sampling] n")]
        | None
    ) = None
    vary: Annotated[
        dict[str, list[Any]],
        Meta(description="values of a key of [sampling], or of template; in the file KEY = [...] in [sweep] itself"),
    ] = {}
    also: Annotated[
        list[dict[str, Any]],
        Meta(description="further settings, each with a name and what it changes (as JSON in a flag)"),
    ] = []
    model: Annotated[list[str], Meta(description="several models, one after the other, each with all settings")] = []

    def __post_init__(self) -> None:
        if empty := next((key for key, values in self.vary.items() if not values), None):
            raise ValueError(f"{empty}: has no values; leave it out, or list some")
        vary = {key: [_varied(key, value) for value in values] for key, values in self.vary.items()}
        if self.method == "list" and len({len(values) for values in vary.values()}) > 1:
            counted = ", ".join(f"{key} {len(values)}" for key, values in vary.items())
            raise ValueError(f"method: list takes the values one by one, so all lists have to be as long: {counted}")
        also = [{key: _varied(key, value) for key, value in setting.items()} for setting in self.also]
        msgspec.structs.force_setattr(self, "vary", vary)
        msgspec.structs.force_setattr(self, "also", also)


def _varied(key: str, value: Any) -> Any:
    """A value that a key has in a setting, in the type of that key. Raises ValueError unless it may vary so."""
    if key in ("template", "name"):
        if not isinstance(value, str):
            raise ValueError(f"{key}: expected str: {value!r:.80}")
        return value
    if key == "logprobs":
        raise ValueError("logprobs: changes no response; set it in [sampling]")
    if key not in VARIED:
        raise ValueError(f"{key}: unknown key{nearest(key, VARIED)}")
    kind = GivenSampling if key in NAMES else JobSampling  # which also looks at what keys are to each other
    try:
        return msgspec.to_builtins(getattr(msgspec.convert({key: value}, kind, str_keys=True), key), str_keys=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"{key}: {plain(str(error).partition(' - at ')[0])}: {value!r:.80}") from None


class NotifyTable(_Table, frozen=True):
    """`[notify]`: who is told how a run ended."""

    command: Annotated[
        str,
        Meta(description="program that is given what became of a run, as JSON on stdin; no shell runs it"),
    ] = ""

    def __post_init__(self) -> None:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"command: cannot be cut into words: {str(error).lower()}") from None
        if self.command and not words:
            raise ValueError("command: names no program")


class JobSpec(_Table, frozen=True):
    """A whole job, by table. `engine` holds vLLM's EngineArgs by name; engine/vllm.py checks them."""

    input: InputTable
    model: ModelTable
    output: OutputTable
    prompt: PromptTable = PromptTable()
    sampling: JobSampling = JobSampling()
    engine: dict[str, Any] = {}
    check: CheckTable = CheckTable()
    translate: TranslateTable = TranslateTable()
    score: ScoreTable = ScoreTable()
    metrics: MetricsTable = MetricsTable()
    sweep: SweepTable = SweepTable()
    limits: LimitsTable = LimitsTable()
    notify: NotifyTable = NotifyTable()

    @property
    def engine_args(self) -> dict[str, Any]:
        """What the job's engine is made with: [engine], and what of other tables vLLM has among its EngineArgs."""
        parser = self.model.reasoning_parser
        return self.engine | ({"reasoning_parser": parser} if parser else {})


TABLES: dict[str, type[msgspec.Struct]] = {
    "input": InputTable,
    "model": ModelTable,
    "prompt": PromptTable,
    "sampling": JobSampling,
    "output": OutputTable,
    "check": CheckTable,
    "translate": TranslateTable,
    "score": ScoreTable,
    "metrics": MetricsTable,
    "sweep": SweepTable,
    "limits": LimitsTable,
    "notify": NotifyTable,
}
# Tables of a run and not of its job: no record has them, so no folder says what runs.
OF_RUNS = ("notify",)


OF_SWEEPS = ("sweep",)  # tables that `batchgen sweep` reads, and every other command passes over


def keys_of(table: str) -> list[str]:
    """The keys of a table, as the job file has them."""
    return [field.encode_name for field in msgspec.structs.fields(TABLES[table])]


def load(job_file: str | None, flags: dict[str, dict[str, Any]]) -> JobSpec:
    """The spec of a job file and flags; a flag overrides the file.

    Args:
        job_file: path or URI of the TOML file, if there is one. Paths in it are relative to its folder.
        flags: table -> key -> value, for the flags that were given. Paths are relative to the current folder.

    Raises:
        JobError: it names the file, the key and the nearest valid key.
    """
    data = _read(job_file) if job_file else {}
    where = f"{job_file}: " if job_file else ""  # ahead of what is wrong
    _gather_lists(data, where)
    _check_keys(data, where)
    in_file = data.get("engine", {})
    _refuse_secrets(flags, "")
    _make_absolute(flags, current_folder())
    _gather_lists(flags, "")
    for table, values in flags.items():
        data[table] = _merged(data.get(table, {}), values)
    _check_keys(data, where)
    refuse_risks(in_file, job_file or "", flags.get("engine", {}))
    if job_file and "command" in data.get("notify", {}) and "command" not in flags.get("notify", {}):
        _refuse_program_of_others(job_file)
    _check_paths(data, job_file)
    try:
        spec = msgspec.convert(data, JobSpec, str_keys=True)
    except msgspec.ValidationError as error:
        raise JobError(f"{where}{_readable(str(error))}") from None
    with on_disk(Path(spec.output.path)):
        check_output_path(f"{where}[output] path", spec.output.path)
    return spec


def _check_paths(data: dict[str, Any], job_file: str | None) -> None:
    """Raises JobError that says all that is missing, and what to type."""
    typed = {"input": "IN", "model": "--model MODEL", "output": "--output OUT"}
    missing = [table for table in typed if "path" not in data.get(table, {})]
    add = " ".join(typed[table] for table in missing)
    if missing and job_file:
        keys = _listed([f"[{table}] path" for table in missing])
        are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise JobError(f"{job_file}: {keys} {are} missing: set {them} there or add {add}")
    if missing:
        raise JobError(f"{_listed([f'no {table}' for table in missing])}: add {add}")


def _listed(words: list[str]) -> str:
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def _refuse_program_of_others(job_file: str) -> None:
    """Raises JobError for a job file in a bucket, or one that another user made: it may not say what runs here."""
    whose = "is in a bucket"
    if not bucket.is_uri(job_file):
        owner = os.stat(job_file).st_uid
        if owner in (os.geteuid(), ROOT):
            return
        whose = f"belongs to user {owner}"
    raise JobError(
        f"{job_file}: {whose}, and [notify] command runs a program; if you trust it, give --notify-command on the "
        "command line"
    )


def _gather_lists(tables: dict[str, Any], where: str) -> None:
    """Puts the lists of `[sweep]` where its struct has them, in their order. Raises JobError."""
    given = tables.get("sweep")
    if not isinstance(given, dict):
        return
    lists = {key: value for key, value in given.items() if key in VARIED}
    if wrong := next((key for key, value in lists.items() if not isinstance(value, list)), None):
        raise JobError(f"{where}[sweep] {wrong}: is not a list of values: write {wrong} = [...]")
    if lists:
        rest = {key: value for key, value in given.items() if key not in VARIED}
        tables["sweep"] = {**rest, "vary": {**rest.get("vary", {}), **lists}}


def _merged(in_file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A table with the flags on top. A list to vary is a key of its own."""
    vary = {"vary": {**in_file["vary"], **given["vary"]}} if "vary" in in_file and "vary" in given else {}
    return {**in_file, **given, **vary}


def without(spec: JobSpec, tables: Iterable[str]) -> JobSpec:
    return msgspec.structs.replace(spec, **{table: TABLES[table]() for table in tables})


def without_sweep(spec: JobSpec) -> JobSpec:
    """The job that a job file means to whoever makes no sweep of it."""
    return without(spec, OF_SWEEPS)


def _read(path: str) -> dict[str, Any]:
    in_bucket = bucket.is_uri(path)
    try:
        content = bucket.read(path, LONGEST) if in_bucket else Path(path).read_bytes()
        data = tomllib.loads(content.decode("utf-8-sig"))  # some editors write a BOM
    except FileNotFoundError:
        raise JobError(f"{path}: no such job file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not valid TOML: {error}; the README has an example of a job file") from None
    _refuse_secrets(data, f"{path}: ")
    folder = path.rpartition("/")[0] if in_bucket else as_opened(current_folder(), str(Path(path).parent))
    _make_absolute(data, folder)
    return data


def _refuse_secrets(tables: dict[str, Any], where: str) -> None:
    for table, keys in _PLACES.items():
        values = tables.get(table)
        for key, given in values.items() if isinstance(values, dict) else ():
            if key not in keys:
                continue
            if uri := credentials.in_uris([*given.values()] if isinstance(given, dict) else given):
                raise JobError(f"{where}[{table}] {key} {shown(uri)}: contains a key or token; {credentials.WAY_OUT}")
    if key := credentials.in_settings(tables.get("engine")):
        raise JobError(f"{where}[engine] {shown(key)}: is a key or token; {credentials.WAY_OUT}")


def _make_absolute(tables: dict[str, Any], folder: Path | str) -> None:
    """Makes paths absolute, relative to `folder`, which is in a bucket if it is no Path. URIs stay; so do values that
    are not paths, which msgspec refuses. Raises JobError for what was to be a URI."""

    def absolute(path: Any) -> Any:
        if isinstance(path, list):
            return [absolute(part) for part in path]
        if not isinstance(path, str) or "://" in path:
            return path
        bucket.check_slashes(path)
        return recordable_path(_in_folder(folder, path))

    checks = tables.get("check")
    if isinstance(checks, dict) and isinstance(checks.get("checks"), list):
        checks["checks"] = [_with_absolute_file(name, absolute) for name in checks["checks"]]
    of_metrics = tables.get("metrics")
    if isinstance(of_metrics, dict) and "scorer" in of_metrics:
        of_metrics["scorer"] = _with_absolute_file(of_metrics["scorer"], absolute)
    for table in ("input", "model", "output"):
        values = tables.get(table)
        if isinstance(values, dict) and "path" in values:
            if table == "model" and isinstance(values["path"], str):
                values["path"] = model_path(values["path"], folder)
                continue
            path = absolute(values["path"])
            values["path"] = [path] if table == "input" and isinstance(path, str) else path
    of_sweep = tables.get("sweep")
    if isinstance(of_sweep, dict) and isinstance(of_sweep.get("model"), list):
        of_sweep["model"] = [model_path(each, folder) if isinstance(each, str) else each for each in of_sweep["model"]]
    of_texts = tables.get("translate")
    if isinstance(of_texts, dict):
        of_texts |= {key: absolute(of_texts[key]) for key in ("glossary", "memory") if of_texts.get(key)}
    of_input = tables.get("input")
    if isinstance(of_input, dict) and of_input.get("image_folder"):
        of_input["image_folder"] = absolute(of_input["image_folder"])
    of_model = tables.get("model")
    if isinstance(of_model, dict) and isinstance(of_model.get("vision"), str) and of_model["vision"]:
        of_model["vision"] = model_path(of_model["vision"], folder)
    if isinstance(of_model, dict) and "adapter" in of_model:
        named = _adapters(of_model["adapter"])
        of_model["adapter"] = (
            {name: absolute(path) for name, path in named.items()} if isinstance(named, dict) else named
        )


def _adapters(given: Any) -> Any:
    """Folders of adapters by name, from texts, each a folder or NAME=FOLDER; a table, and what msgspec will refuse,
    stay as they are. Raises JobError."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return given
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        name, folder = (name, folder) if equals and _ADAPTER.fullmatch(name) else (DEFAULT_ADAPTER, text)
        if name in found:
            raise JobError(f"[model] adapter: two are named {name}; give each a name of its own: NAME=FOLDER")
        found[name] = folder
    return found


def _with_absolute_file(check: Any, absolute: Callable[[Any], Any]) -> Any:
    """FILE.py:FUNCTION of `[check] checks` or `[metrics] scorer`; other values as they are."""
    own = own_check.parse(check) if isinstance(check, str) else None
    if own is None:
        return check
    file = check if "://" in check else absolute(str(own.file))
    if "://" in check or bucket.is_uri(file):
        raise JobError(f"{shown(credentials.redacted(file))}: code is run from files of this machine alone; name one")
    return f"{file}:{own.function}"


def recordable_path(path: str) -> str:
    """A path in a form that JSON can hold: as a file:// URI if its bytes are not UTF-8."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path), safe="/*")


def _in_folder(folder: Path | str, path: str) -> str:
    """A path in a folder, or in one in a bucket: those that begin at the root or at home are of this machine."""
    if isinstance(folder, Path) or path.startswith(("/", "~")):
        return str(as_opened(Path(folder), path))
    scheme, _, place = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(f'{place}/{path}')}"


def model_path(path: str, folder: Path | str) -> str:
    """The absolute path or URI of a model folder, or the name of a model on the hub if `path` looks like one and there
    is no such folder. folder: in which it may be, which is one in a bucket if it is no Path."""
    if "://" in path:
        return path
    absolute = _in_folder(folder, path)
    if bucket.is_uri(absolute):
        is_there = not is_hub_name(path) or any(Bucket(absolute).names())
    else:
        is_there = os.path.isdir(absolute)
    return path if is_hub_name(path) and not is_there else absolute


def is_hub_name(path: str) -> bool:
    """Whether it looks like a model name on the hub: `org/name`, without `--` and `..`, which the hub forbids."""
    return len(path) <= _LONGEST_NAME and bool(_NAME.fullmatch(path)) and "--" not in path and ".." not in path


def current_folder() -> Path:
    """The current folder. Raises JobError if it has been deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise JobError("the current folder has been deleted; change to another one and run this again") from None


def as_opened(folder: Path, path: str) -> Path:
    """An absolute path without `..` to what the system would open by `path` in `folder`. Behind a link `..` is not the
    folder that the link is in. Raises JobError if it begins in a home folder that is not known."""
    if path.startswith("~") and os.path.expanduser(path) == path and not os.path.lexists(folder / path):
        raise JobError(f"{shown(path)}: no user of that name has a home folder; if it is a file name, put ./ before it")
    absolute = Path(folder.anchor)
    for part in (folder / os.path.expanduser(path)).parts[1:]:
        if part == "..":
            absolute = Path(os.path.realpath(absolute) if absolute.is_symlink() else absolute).parent
        else:
            absolute /= part
    return absolute


def _check_keys(data: dict[str, Any], where: str) -> None:
    known = (*TABLES, "engine")
    for table, values in data.items():
        if table not in known:
            raise JobError(f"{where}unknown table [{table}]{nearest(table, known)}")
        if not isinstance(values, dict):
            raise JobError(f"{where}{table} must be a table: [{table}]")
        if table == "engine":
            continue
        keys = [*keys_of(table), *(VARIED if table == "sweep" else ())]
        for key in values:
            if key not in keys:
                raise JobError(f"{where}[{table}] {key}: unknown key{nearest(key, keys)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the closest valid name, or all of them if there are few."""
    known = list(known)
    if close := difflib.get_close_matches(word, known, n=3):
        alike = [name for name in close if name.startswith(word[:5])]  # for `shards`: shard_rows rather than shared
        return f"; did you mean {(alike or close)[0]}?"
    return f"; valid are {', '.join(known)}" if len(known) <= 20 else ""


def _readable(error: str) -> str:
    """msgspec's "Expected `float`, got `str` - at `$.sampling.top_p`", with the key in front."""
    message, _, path = error.partition(" - at `$.")
    table, _, key = path.rstrip("`").partition(".")
    message = plain(message)
    if not table:
        return message
    return f"[{table}] {key}: {message}" if key else f"[{table}] {message}"
