"""The datasets of the tasks, from local files in the form in which they were published."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import JobError
from ..host import safeopen

TRAIN, VALID = "train", "valid"
JNLI = {"entailment": "含意", "contradiction": "矛盾", "neutral": "中立"}
MARC_JA = {"positive": "ポジティブ", "negative": "ネガティブ"}
CONTEXTS = 10  # of a question of JAQKET, in version 0.1 of the task


class Example(NamedTuple):
    """A question with its answers.

    question: what the user says
    answers: texts that are right; the first is shown in an example
    choices: what may be answered, where that is given
    """

    question: str
    answers: list[str]
    choices: list[str]

    @property
    def gold(self) -> int:
        return self.choices.index(self.answers[0])


class Files(NamedTuple):
    """Where the files of a dataset are below the user's folder, as patterns of `Path.rglob`."""

    train: tuple[str, ...]
    valid: tuple[str, ...]


def _jglue(name: str) -> Files:
    return Files((f"{name}*/train-v*.json",), (f"{name}*/valid-v*.json",))


FILES = {
    "jcommonsenseqa": _jglue("jcommonsenseqa"),
    "jnli": _jglue("jnli"),
    "marc_ja": _jglue("marc_ja"),
    "jsquad": _jglue("jsquad"),
    "jaqket_v2": Files(("train_jaqket*.json*",), ("dev_jaqket*.json*",)),
    "xwinograd_ja": Files((), ("jp.jsonl", "jp.tsv", "xwinograd*ja.jsonl", "xwinograd*ja.tsv")),
}
PREFERRED = "-v1.1"  # of JGLUE: the version of the published values


def find(folder: Path, name: str, split: str) -> Path:
    """The file of a dataset's split. Raises JobError if there is none, or if it is not clear which."""
    patterns = FILES[name].train if split == TRAIN else FILES[name].valid
    found = sorted({path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()})
    if not found:
        raise JobError(
            f"{folder}: {name} needs {' or '.join(patterns)}, and no such file is there or in a folder below"
        )
    preferred = [path for path in found if PREFERRED in path.name] if len(found) > 1 else found
    if len(preferred) != 1:
        raise JobError(f"{folder}: {name} needs one of {', '.join(map(str, found))}; leave only one there")
    return preferred[0]


def read(path: Path, name: str) -> list[Example]:
    """The examples of a file, in its order. Raises JobError that names file and row."""
    examples: list[Example] = []
    for number, record in enumerate(_records(path, name)):
        try:
            examples += _READERS[name](record)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
            raise JobError(f"{path}, row {number}: not of the form of {name}: {what}") from None
    if not examples:
        raise JobError(f"{path}: no examples of {name} in it")
    return examples


# --- files become records


def _records(path: Path, name: str) -> Iterator[Any]:
    """Raises JobError."""
    try:
        with safeopen.reading(path) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise JobError(f"{path}: {error.strerror or error}") from None
    if path.suffix == ".tsv":
        yield from csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    elif name == "jsquad":
        yield from _list(_json(text, str(path)), "data", path)
    elif text.lstrip().startswith("["):
        yield from _json(text, str(path))
    else:
        lines = (line for line in text.split("\n") if line.strip())
        yield from (_json(line, f"{path}, row {number}") for number, line in enumerate(lines))


def _json(text: str, where: str) -> Any:
    """Raises JobError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{where}: not JSON: {error}") from None


def _list(document: Any, name: str, path: Path) -> list[Any]:
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise JobError(f"{path}: not of SQuAD's form, an object with a list {name!r}")
    return found


# --- records become examples; each raises KeyError, TypeError or ValueError for one of another form


def _text(record: Any, name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {json.dumps(value, ensure_ascii=False)[:60]}, not a text")
    return value


def _jcommonsenseqa(record: Any) -> Iterator[Example]:
    choices = [_text(record, f"choice{number}") for number in range(5)]
    label = record["label"]
    if not isinstance(label, int) or not 0 <= label < 5:
        raise ValueError(f"'label' is {label!r}, not 0 to 4")
    listed = "".join(f"\n- {choice}" for choice in choices)
    yield Example(f"質問：{_text(record, 'question')}\n選択肢：{listed}", [choices[label]], choices)


def _jnli(record: Any) -> Iterator[Example]:
    question = f"前提：{_text(record, 'sentence1')}\n仮説：{_text(record, 'sentence2')}"
    yield Example(question, [_labelled(record, JNLI)], list(JNLI.values()))


def _marc_ja(record: Any) -> Iterator[Example]:
    yield Example(_text(record, "sentence"), [_labelled(record, MARC_JA)], list(MARC_JA.values()))


def _labelled(record: Any, labels: dict[str, str]) -> str:
    label = record["label"]
    if label not in labels:
        raise ValueError(f"'label' is {label!r}, not {' or '.join(labels)}")
    return labels[label]


def _jsquad(article: Any) -> Iterator[Example]:
    for paragraph in article["paragraphs"]:
        context = _text(paragraph, "context").split("[SEP]")[-1].strip()
        for asked in paragraph["qas"]:
            answers = [_text(answer, "text") for answer in asked["answers"]]
            yield _with_context(context, _text(asked, "question"), answers)


def _jaqket(record: Any) -> Iterator[Example]:
    contexts = [_text(context, "text") for context in record["ctxs"][:CONTEXTS]]
    answers = record["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("'answers' is not a list of texts")
    yield _with_context("\n".join(contexts), _text(record, "question"), answers)


def _with_context(context: str, question: str, answers: list[str]) -> Example:
    if not answers:
        raise ValueError("a question has no answers")
    return Example(f"文脈：{context}\n質問：{question}", answers, [])


def _xwinograd(record: Any) -> Iterator[Example]:
    if "sentence1" in record:
        sentences = [_text(record, "sentence1"), _text(record, "sentence2")]
    else:
        sentence = _text(record, "sentence")
        if "_" not in sentence:
            raise ValueError("'sentence' has no _ in the place of the options")
        sentences = [sentence.replace("_", _text(record, option)) for option in ("option1", "option2")]
    answer = str(record["answer"])
    if answer not in ("1", "2"):
        raise ValueError(f"'answer' is {answer!r}, not 1 or 2")
    yield Example("", [sentences[int(answer) - 1]], sentences)


_READERS: dict[str, Callable[[Any], Iterator[Example]]] = {
    "jcommonsenseqa": _jcommonsenseqa,
    "jnli": _jnli,
    "marc_ja": _marc_ja,
    "jsquad": _jsquad,
    "jaqket_v2": _jaqket,
    "xwinograd_ja": _xwinograd,
}
