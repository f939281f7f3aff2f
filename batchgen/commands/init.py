"""A first job file, from a look at the data: only the keys that matter, each with the reason why it is there."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..check import languages
from ..errors import JobError, on_disk, shown
from ..host import bucket, credentials, safeopen
from ..input import shapes
from ..input.look import ColumnLook, Look, look
from ..job.output_path import check_output_path
from ..job.spec import as_opened, current_folder, model_path

ANSWER, TRANSLATE, SCORE, SWEEP = TASKS = ("answer", "translate", "score", "sweep")
IDS = ("id", "uuid", "_id", "key", "custom_id", "conversation_id", "question_id", "prompt_id", "doc_id", "idx")
REFERENCES = ("expected", "reference", "references", "target", "targets", "gold", "answer", "label")
CHOICES = ("choices", "options", "endings", "candidates")
SHORT = 200  # characters up to which a column is worth passing through


# --- the job file


class Key(NamedTuple):
    """A line of the job file: a key with its value, and why it is there."""

    name: str
    value: Any
    why: str = ""

    def __str__(self) -> str:
        line = f"{self.name} = {_toml(self.value)}"
        return f"{line}{' ' * max(2, 32 - len(line))}# {self.why}" if self.why else line


def _toml(value: Any) -> str:
    """A value as TOML has it, which is as JSON has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return msgspec.json.encode(value).decode()


@dataclass(frozen=True)
class Written:
    """A job file that was written.

    guesses: what it says that the user should look at
    is_sweep: whether it is for `batchgen sweep`
    """

    path: Path
    look: Look
    guesses: list[str]
    is_sweep: bool


class Asked(NamedTuple):
    """What the user says on the command line. source, into: languages, of a translation."""

    inputs: list[str]
    model: str
    output: str
    task: str
    source: str
    into: str
    to: Path


def write(asked: Asked, overwrite: bool) -> Written:
    """Writes the job file. Raises JobError."""
    if asked.into and asked.task not in (ANSWER, TRANSLATE):
        raise JobError(f"--into: is for --task {TRANSLATE}")
    if asked.to.suffix != ".toml":
        raise JobError(f"--to {asked.to}: the name of a job file ends in .toml")
    if asked.task == TRANSLATE or asked.into:
        if not asked.into:
            raise JobError("--into: name the language to translate into, such as Japanese")
        asked = asked._replace(task=TRANSLATE)
        for flag, language in (("--from", asked.source), ("--into", asked.into)):
            _check_language(flag, language)
    if uri := credentials.in_uris([*asked.inputs, asked.model, asked.output]):
        raise JobError(f"{shown(uri)}: contains a key or token; {credentials.WAY_OUT}")
    check_output_path("--output", _opened(asked.output))
    found = look([*map(_opened, asked.inputs)])
    tables, guesses = TABLES[asked.task](found, asked)
    text = "\n".join([_title(found, asked), *(_table(*each) for each in _around(tables, found, asked).items())])
    with on_disk(asked.to):
        try:
            safeopen.replace(asked.to, text.encode(), new=not overwrite)
        except FileExistsError:
            raise JobError(f"{asked.to}: is there already; give --overwrite, or another name with --to") from None
    return Written(asked.to, found, guesses, asked.task == SWEEP)


def _opened(path: str) -> str:
    bucket.check_slashes(path)
    return path if "://" in path else str(as_opened(current_folder(), path))


def _check_language(flag: str, language: str) -> None:
    try:
        if language:
            languages.code(language)
    except ValueError as error:
        raise JobError(f"{flag} {language}: {error}") from None


Tables = dict[str, list[Key]]


def _title(found: Look, asked: Asked) -> str:
    does = {ANSWER: "A response to each conversation", SCORE: "How likely the model finds the answers"}
    does |= {
        TRANSLATE: f"The texts in {asked.into}, all else as it is",
        SWEEP: "Which sampling parameters fit the task",
    }
    files = "1 file" if found.files == 1 else f"{found.files:,} files"
    return (
        f"# {does[asked.task]}. Made from the first {found.rows:,} rows of {files}; paths are relative to this file.\n"
    )


def _table(name: str, keys: list[Key]) -> str:
    return "\n".join([f"[{name}]", *map(str, keys)]) + "\n"


def _around(tables: Tables, found: Look, asked: Asked) -> Tables:
    """The tables of the task, with those that every job has, in the usual order."""
    folder = as_opened(current_folder(), str(asked.to)).parent
    inputs = [_relative(path, folder) for path in asked.inputs]
    model = model_path(asked.model, current_folder())
    path = Key("path", inputs[0] if len(inputs) == 1 else inputs)
    every: Tables = {
        "input": [path, *tables.pop("input", []), *_id(found)],
        "model": [Key("path", model if model == asked.model else _relative(asked.model, folder))],
        **{name: tables.pop(name) for name in ("prompt", "translate", "score") if name in tables},
        "sampling": tables.pop("sampling", []),
        "output": [Key("path", _relative(asked.output, folder)), *tables.pop("output", [])],
    }
    return {name: keys for name, keys in (every | tables).items() if keys}


def _relative(path: str, folder: Path) -> str:
    """A path that was given on the command line as the job file has it."""
    if "://" in path:
        return path
    absolute = as_opened(current_folder(), path)
    return str(absolute.relative_to(folder)) if absolute.is_relative_to(folder) else str(absolute)


def _id(found: Look) -> list[Key]:
    """The column with ids, if it is another one than `id`."""
    usable = [name for name in IDS if (column := found.columns.get(name)) and _is_id(column, found.rows)]
    if not usable or usable[0] == "id":
        return []
    return [Key("id", usable[0], "names the rows; without it they have their numbers")]


def _is_id(column: ColumnLook, rows: int) -> bool:
    return column.is_flat and column.rows == rows == len(column.values)


def _sampling(found: Look) -> list[Key]:
    return [Key("max_tokens", 512, "of a response; all else is the model card's, see `batchgen inspect`")]


def _passed(found: Look, used: set[str]) -> list[Key]:
    """Short columns that the conversation is not made of: labels, sources, references."""
    flat = [
        name
        for name, column in found.columns.items()
        if name not in used and column.is_flat and 0 < column.length <= SHORT and re.fullmatch(r"\w+", name)
    ]
    return [Key("columns", flat[:10], "copied to the output")] if flat else []


def _answer(found: Look, asked: Asked) -> tuple[Tables, list[str]]:
    tables: Tables = {"sampling": _sampling(found)}
    guesses = []
    used = {*IDS, "seed", "sampling", *shapes.SYSTEMS}
    if shape := found.shape:
        fits = found.shapes.total()
        used |= {*shapes.SHAPES[shape].columns, *shapes.SHAPES[shape].optional}
        guesses.append(f"conversations of shape {', '.join(name for name, _ in found.shapes.most_common())}")
        if found.answered:
            tables["input"] = [
                Key(
                    "drop_last_response",
                    True,
                    f"{found.answered:,} of {found.rows:,} end with an answer: it is made anew",
                )
            ]
            guesses.append("the answer at the end of a conversation is left out, and generated")
        if fits < found.rows:
            [(reason, number)] = found.rejects.most_common(1)
            guesses.append(
                f"{found.rows - fits:,} of {found.rows:,} rows will be rejected, {number:,} of them: {reason}"
            )
    else:
        column = _prompt_column(found)
        used.add(column)
        why = "the rows have no conversation of a known shape: this column is what the user says"
        tables["prompt"] = [Key("template", f"{{{column}}}", why)]
        guesses.append(
            f"column {shown(column)} is the user's text; write what the model is to do around it in [prompt] template"
        )
        guesses += _left_out(found, column)
    tables["output"] = _passed(found, used)
    return tables, guesses


def _prompt_column(found: Look) -> str:
    """The column with the longest texts. Raises JobError."""
    texts = {name: column for name, column in found.columns.items() if column.texts and _can_be_named(name)}
    if not texts:
        reasons = "; ".join(f"{why} ({number:,} rows)" for why, number in found.rejects.most_common(3))
        raise JobError(f"no column of the first {found.rows:,} rows holds text: {reasons}")
    return max(texts, key=lambda name: (texts[name].texts > found.rows / 2, texts[name].is_prose, texts[name].length))


def _left_out(found: Look, name: str) -> list[str]:
    """Says how many rows lack the column that the task is about, and how many files, if any do."""
    column = found.columns[name]
    rows, files = found.rows - column.rows, found.opened - len(column.files)
    if not rows:
        return []
    where = (
        f"; {files:,} of the {found.opened:,} files looked at {'has' if files == 1 else 'have'} none" if files else ""
    )
    return [f"{rows:,} of {found.rows:,} rows have no {shown(name)} and will be rejected{where}"]


def _can_be_named(name: str) -> bool:
    return name.isprintable() and not set("{}") & set(name)


def _translate(found: Look, asked: Asked) -> tuple[Tables, list[str]]:
    fields = [path for path, column in found.texts.items() if column.is_prose]
    if not fields:
        fields = [path for path, column in found.texts.items() if column.texts > column.others and column.prose]
    if not fields:
        raise JobError(
            f"no text of the first {found.rows:,} rows has more than one word: name what to translate yourself"
        )
    keys = [Key("fields", fields, "whatever has sentences in it; take out what is to stay")]
    guesses = [f"texts to translate: {', '.join(fields)}"]
    if source := asked.source or _language(found, fields):
        keys.append(Key("from", source, "" if asked.source else "guessed"))
        guesses += [] if asked.source else [f"they are in {source}"]
    keys += [Key("into", asked.into), Key("protect", ["code", "url"], "comes back as it is")]
    keys.append(Key("protect_by", "split", "small models lose the marks of the other way, mask"))
    prompt = [Key("template", "Translate into {into}: {text}", "what the model is told of each segment")]
    sampling = [Key("temperature", 0, "the first try; further ones are for what fails a check")]
    return {"translate": keys, "prompt": prompt, "sampling": sampling}, guesses


def _language(found: Look, fields: list[str]) -> str:
    """English or Japanese, if it is plainly one of them: the two that these models know."""
    some = " ".join(itertools.chain.from_iterable(sorted(found.texts[path].values)[:50] for path in fields))
    kana = sum("぀" <= letter <= "ヿ" for letter in some)
    latin = sum("a" <= letter.lower() <= "z" for letter in some)
    if kana > latin:
        return "Japanese"
    return "English" if latin > 0.95 * sum(map(str.isalpha, some)) else ""


def _score(found: Look, asked: Asked) -> tuple[Tables, list[str]]:
    choices = next((name for name in CHOICES if name in found.columns and not found.columns[name].is_flat), None)
    if choices:
        keys = [Key("mode", "choices"), Key("column", choices, "a list of texts, each scored behind the prompt")]
        if reference := _reference(found):
            keys.append(Key("reference", reference, "the right one: its number from 0, or its text"))
        asked_column = _prompt_column_beside(found, choices)
        tables: Tables = {"score": keys}
        if not found.shape:
            tables["prompt"] = [Key("template", f"{{{asked_column}}}")]
        return tables, [f"column {choices} holds the choices", *_left_out(found, choices)]
    if found.shape and found.answered:
        return {"score": [Key("mode", "continuation", "the answer at the end of each conversation")]}, [
            "what is scored is the answer at the end of each conversation"
        ]
    column = _prompt_column(found)
    keys = [Key("mode", "text", "a text by itself: its perplexity"), Key("column", column)]
    return {"score": keys}, [f"what is scored is column {shown(column)} by itself", *_left_out(found, column)]


def _prompt_column_beside(found: Look, choices: str) -> str:
    others = {name: column for name, column in found.columns.items() if name != choices}
    return _prompt_column(Look(found.files, found.rows, others, rejects=found.rejects))


def _reference(found: Look) -> str | None:
    return next((name for name in REFERENCES if name in found.columns), None)


def _sweep(found: Look, asked: Asked) -> tuple[Tables, list[str]]:
    tables, guesses = _answer(found, asked)
    tables["sweep"] = [
        Key("rows", 200, "spread over the input"),
        Key("samples", 2, "for each row and setting"),
        Key("temperature", [0.3, 0.7, 1.0], "every combination of the lists is tried"),
        Key("top_p", [0.85, 1.0], "1.0 keeps all tokens"),
        Key("repetition_penalty", [1.0, 1.1], "1.0 is none"),
    ]
    reference = _reference(found)
    if reference and found.columns[reference].texts and not found.columns.keys() & set(CHOICES):  # or a choice's number
        tables["metrics"] = [Key("reference", reference, "what a response should be")]
        guesses.append(f"column {reference} holds what a response should be")
    return tables, guesses


TABLES = {ANSWER: _answer, TRANSLATE: _translate, SCORE: _score, SWEEP: _sweep}
