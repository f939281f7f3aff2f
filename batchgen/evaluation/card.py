"""The tasks of the model card, and what was published of rinna/bilingual-gpt-neox-4b-instruction-sft.

The card has two averages. The values of each task are those that Stability AI's fork of lm-evaluation-harness
(branch jp-stable, prompt version 0.5) has of the same model.
"""

from typing import Literal, NamedTuple

MODEL = "rinna/bilingual-gpt-neox-4b-instruction-sft"
WITHIN = 1.0  # points that a value may be off: an estimate, from the fork's means and the card's, which are 0.94 apart

Metric = Literal["acc", "exact_match"]


class Task(NamedTuple):
    """shots: examples ahead of each question
    metric: accuracy by the sum of log probabilities, or exact match
    published: the fork's value, in percent
    """

    name: str
    shots: int
    metric: Metric
    published: float


TASKS = {
    task.name: task
    for task in (
        Task("jcommonsenseqa", 3, "acc", 49.51),
        Task("jnli", 3, "acc", 47.08),
        Task("marc_ja", 3, "acc", 95.28),
        Task("jsquad", 2, "exact_match", 55.99),
        Task("jaqket_v2", 1, "exact_match", 61.17),
        Task("xwinograd_ja", 0, "acc", 64.65),
    )
}


class Mean(NamedTuple):
    """fork, card: the mean of these tasks as each of them has it"""

    tasks: tuple[str, ...]
    fork: float
    card: float


MEANS = (
    Mean(("jcommonsenseqa", "jnli", "marc_ja", "jsquad"), 61.96, 61.02),
    Mean(tuple(TASKS), 62.28, 61.69),
)
