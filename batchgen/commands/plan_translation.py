"""What a translation will do: its texts, their segments, and what the memory has of them."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..input.paths import FieldPath
from ..segment.pieces import Segment
from ..task.generate import Prompted
from ..task.translate import Translation

MOST_PROMPTS = 2_000_000  # that are told apart; some 130 MB


@dataclass
class Texts:
    """What `plan` found of the texts of a translation.

    fields: texts by the path that chooses them
    missing: rows by the path that leads nowhere in them
    mistyped: rows by the path that leads to something else than a text in them
    segments: of all texts, equal ones each time
    cut: segments that are a part of a sentence, as it is too long
    protected: segments with something that is protected
    """

    fields: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    mistyped: Counter[str] = field(default_factory=Counter)
    segments: int = 0
    cut: int = 0
    protected: int = 0
    _texts: "array[int]" = field(default_factory=lambda: array("q"))
    _keys: "array[int]" = field(default_factory=lambda: array("q"))
    _known: "array[int]" = field(default_factory=lambda: array("q"))
    _prompts: set[int] = field(default_factory=set)

    def add(self, work: Translation, paths: list[FieldPath]) -> list[Prompted]:
        """Counts a row. Returns its prompts, as far as no earlier row is known to have them."""
        for path in paths:
            self.fields[str(path)] += 0
        for leaf in work.record.leaves:
            self.fields[str(paths[leaf.chosen_by[0]])] += 1
            self._texts.append(hash(leaf.text))
        self.missing.update(map(str, work.record.missing))
        self.mistyped.update(map(str, work.record.mistyped))
        for text in work.texts:
            segments = [piece for piece in text.pieces if isinstance(piece, Segment)]
            self.segments += len(segments)
            self.cut += sum(piece.cut for piece in segments)
        asked = []
        for number in work.used:
            part = work.parts[number]
            digest = int(part.key[:16], 16) - (1 << 63)
            self._keys.append(digest)
            self.protected += part.masked is not None
            if part.known:
                self._known.append(digest)
            elif part.prompted and digest not in self._prompts:
                asked.append(part.prompted)
                if len(self._prompts) < MOST_PROMPTS:
                    self._prompts.add(digest)
        return asked

    @property
    def texts(self) -> int:
        return self.fields.total()

    @property
    def distinct_texts(self) -> int:
        return _distinct(self._texts)

    @property
    def distinct_segments(self) -> int:
        return _distinct(self._keys)

    @property
    def remembered(self) -> int:
        """Distinct segments that the memory has."""
        return _distinct(self._known)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "texts": self.texts,
            "fields": dict(self.fields),
            "missing": dict(self.missing),
            "mistyped": dict(self.mistyped),
            "distinct_texts": self.distinct_texts,
            "segments": self.segments,
            "distinct_segments": self.distinct_segments,
            "remembered": self.remembered,
            "cut": self.cut,
            "protected": self.protected,
        }


def _distinct(digests: "array[int]") -> int:
    return len(np.unique(np.asarray(digests))) if digests else 0
