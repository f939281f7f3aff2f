"""What the tasks beside this file call. The harness loads it by its path, so it imports by the package's name."""

from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from batchgen.evaluation.answers import is_right
from batchgen.evaluation.prompts import documents


def load(name: str, data: str = ".", **_: Any) -> dict[str, Dataset]:
    """data: the folder with the files of the datasets, from the harness's `metadata`"""
    return {"test": Dataset.from_list(documents(Path(data), name))}


jcommonsenseqa = partial(load, "jcommonsenseqa")
jnli = partial(load, "jnli")
marc_ja = partial(load, "marc_ja")
jsquad = partial(load, "jsquad")
jaqket_v2 = partial(load, "jaqket_v2")
xwinograd_ja = partial(load, "xwinograd_ja")


def exact_match(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"exact_match": float(is_right(results[0], doc["answers"]))}
