"""The prompts of the tasks, version 0.5 of the fork, and which examples stand ahead of a question.

The published values hang on both, so the order of the documents and the choice of their examples are the fork's: one
generator, seeded with 42, shuffles the documents and then draws the examples of each in turn.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import data
from .card import TASKS
from .data import Example

SEED = 42
TURN = "ユーザー: {}\nシステム: "
READING = "与えられた文脈から、質問に対する答えを抜き出してください。"
DESCRIPTIONS = {
    "jcommonsenseqa": "与えられた選択肢の中から、最適な答えを選んでください。",
    "jnli": "与えられた前提と仮説の関係を回答してください。出力は以下から選択してください：\n含意\n矛盾\n中立",
    "marc_ja": "与えられた製品レビューを、ポジティブまたはネガティブの感情クラスのいずれかに分類してください。",
    "jsquad": READING,
    "jaqket_v2": READING,
}
UNDERSTOOD = "分かりました。"


def documents(folder: Path, name: str) -> list[dict[str, Any]]:
    """The documents of a task, in the order in which the fork asks them. Raises JobError.

    Each has `prompt`, `answers`, `choices` and `gold`, the number of the right choice (-1 where there are none).
    """
    tested = data.read(data.find(folder, name, data.VALID), name)
    shots = TASKS[name].shots
    shown = data.read(data.find(folder, name, data.TRAIN), name) if shots else []
    return [
        {
            "prompt": prompt(name, examples, example),
            "answers": example.answers,
            "choices": example.choices,
            "gold": example.gold if example.choices else -1,
        }
        for example, examples in drawn(tested, shown, shots)
    ]


def drawn(tested: Sequence[Example], shown: Sequence[Example], shots: int) -> Iterator[tuple[Example, list[Example]]]:
    """Each document with its examples."""
    draw = random.Random(SEED)
    shuffled = list(tested)
    draw.shuffle(shuffled)
    for example in shuffled:
        yield example, draw.sample(shown, shots) if shots else []


def prompt(name: str, examples: Sequence[Example], example: Example) -> str:
    """All that stands ahead of an answer, its last space included. A sentence of Winograd has nothing ahead of it."""
    if name not in DESCRIPTIONS:
        return ""
    turns = [TURN.format(DESCRIPTIONS[name]) + UNDERSTOOD]
    turns += [TURN.format(shown.question) + shown.answers[0] for shown in examples]
    return "\n".join([*turns, TURN.format(example.question)])
