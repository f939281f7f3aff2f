"""Translations: what became of the segments of their texts."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..check import languages
from ..errors import JobError, Reject
from ..input.plan import Shard
from ..output import layout
from ..output.segments import KEY, SegmentFile
from ..segment.protect import Protect
from ..task.segment_rows import SegmentRow
from . import svg
from .cases import Answer, Case, Pieces, Turn, digests, marked, name
from .outcome import Outcome
from .responses import badness, ended_and_failed, whole
from .tally import Array

SHARD = 1 << 32  # a segment's place is this times its shard, and its number there


class Translations:
    """A Kind."""

    noun, case, answer, done = "segments", "segment", "translation", "translated"

    def look(self, out: Outcome, planned: Shard) -> None:
        columns = ["key", "row", "source", "answer", "tries", "failed_checks", "finish_reason"]
        for file, number, begin in _groups(out, planned):
            found, tally = file.columns(number, columns), out.tally
            rows, tries, failed = whole(found["row"]), whole(found["tries"]), found["failed_checks"]
            ended, number_failed = ended_and_failed(tally, found["finish_reason"], failed)
            tally.spread("characters of a segment", _lengths(found["source"]))
            tally.spread("characters of its translation", _lengths(found["answer"]))
            tally.spread("tries", tries)
            tally.go_along("segments that fail a check", rows, number_failed > 0)
            places = planned.index * SHARD + begin + np.arange(found.num_rows)
            keys = file.keys_of(found["key"]).astype(KEY).view("<u8").reshape(-1, 2)[:, 0].astype(np.uint64)
            answers = (
                digests(_plain(found["answer"]).to_pylist()) if tally.is_joined else np.zeros(len(rows), np.uint64)
            )
            if tally.is_joined:  # other jobs may ask for it with other prompts
                keys = digests(_plain(found["source"]).to_pylist())
            tally.choose(keys, places, badness(ended, tries, number_failed), answers)

    def cases(self, out: Outcome, planned: Shard, places: Array) -> Iterator[tuple[int, Case]]:
        """places: numbers of segments, by shard"""
        here = places[(places >= planned.index * SHARD) & (places < (planned.index + 1) * SHARD)] % SHARD
        shows = _Shows(out)
        for file, number, begin in _groups(out, planned):
            wanted = here[(here >= begin) & (here < begin + file.groups[number])].tolist()
            if wanted:
                group = file.group(number)
                for place in wanted:
                    yield planned.index * SHARD + place, shows.case(group[place - begin])


class _Shows:
    """How segments of a job are shown: with what is protected marked, in the languages that the job says."""

    def __init__(self, out: Outcome):
        asked = out.spec.translate
        self._from, self._into = (_chinese(language) for language in (asked.source, asked.into))
        self._protect: Protect | None = Protect(asked.protect)

    def case(self, row: SegmentRow) -> Case:
        source, translation = self._marked(row.source, row.answer or "")
        tags = [name(row.finish_reason), *(f"fails {name(each)}" for each in row.failed_checks)]
        said = ["no try" if row.tries == 0 else "1 try" if row.tries == 1 else f"{row.tries:,} tries"]
        said += ["in pieces around what is protected"] if row.split else []
        said += [] if row.mean_logprob is None else [f"mean log probability {svg.number(round(row.mean_logprob, 4))}"]
        answer = Answer(marked(translation, self._into), [0], tags=tags, note=", ".join(said))
        uses = f"used {row.uses:,} times" if row.uses > 1 else ""
        turns = [Turn("source", marked(source, self._from))]
        return Case(name(row.path), row.row, turns, [answer], uses, length=len(row.answer or ""))

    def _marked(self, source: str, translation: str) -> tuple[Pieces, Pieces]:
        """Protected spans are kept if the other side has them too, else lost."""
        try:
            if self._protect:
                sides = source, translation
                spans = [[side[span.begin : span.end] for span in self._protect.spans(side)] for side in sides]
                return _pieces(source, spans[0], spans[1]), _pieces(translation, spans[1], spans[0])
        except Reject:  # a pattern that takes too long, as it will for the others
            self._protect = None
        return [(source, "")], [(translation, "")]


def _pieces(text: str, spans: list[str], others: list[str]) -> Pieces:
    pieces: Pieces = []
    begin = 0
    for span in spans:
        at = text.index(span, begin)
        pieces += [(text[begin:at], ""), (span, "kept" if span in others else "lost")]
        begin = at + len(span)
    return [*pieces, (text[begin:], "")]


def _chinese(language: str) -> str:
    """What Chinese characters alone are in texts of a language."""
    try:
        return "zh" if language and languages.code(language) == "zh" else ""
    except JobError:
        return ""


def _groups(out: Outcome, planned: Shard) -> Iterator[tuple[SegmentFile, int, int]]:
    """The row groups of a shard's segments: (file, number of the group, segments ahead of it)."""
    part = layout.segments(planned)
    if not out.store.exists(part):
        return
    file, begin = SegmentFile(out.store, part), 0
    for number, rows in enumerate(file.groups):
        yield file, number, begin
        begin += rows


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())


def _lengths(column: pa.ChunkedArray) -> Array:
    return whole(pc.utf8_length(_plain(column)))
