"""chrF by sacrebleu, whose values are those that papers report. It is an extra: without it there is no chrF."""

from functools import lru_cache

REMEMBERED = 64  # pairs of texts: at a low temperature most responses to a row are the same


class Chrf:
    """chrF of texts, which remembers the last ones."""

    def __init__(self) -> None:
        """Raises ImportError if sacrebleu is not installed."""
        from sacrebleu.metrics.chrf import CHRF

        self._metric = CHRF()
        self._score = lru_cache(REMEMBERED)(self._metric.sentence_score)
        self("a", ("a",))  # sacrebleu has signatures of metrics that were used

    def __call__(self, text: str, references: tuple[str, ...]) -> float:
        """0 to 100, by the reference that fits best."""
        return float(self._score(text, references).score)

    @property
    def signature(self) -> str:
        """As sacrebleu has it, with its version: values of different ones are not to be compared."""
        return str(self._metric.get_signature())


def find() -> Chrf | None:
    """None if sacrebleu is not installed."""
    try:
        return Chrf()
    except ImportError:
        return None
