"""What earlier translations have: a segment that is there need not be generated again.

Each segment takes 20 bytes here, its key and where it lies; the segments themselves stay in their files, of which a few
row groups are kept. Nights have their rows mostly in the same order, so most look-ups find theirs there.
"""

import bisect
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import JobError
from ..host import bucket
from ..input.plan import Shard
from ..job.drift import fingerprint
from ..task.segment_rows import SegmentRow
from . import layout, owners, record, shard, store
from .record import JobRecord
from .segments import KEY, Group, SegmentFile
from .store import Store

TABLE = "translate"  # of the job file, which makes a job one that leaves segments
# What decides how an answer came to fail: where all of it is the same, another try gives the same again.
SAME = ("model", "sampling", "prompt", "engine", "check", TABLE)
WHICH_TEXTS = frozenset({"fields", "memory"})  # keys of TABLE that decide which segments there are, not their answers

FILES = 16  # whose footers are kept
GROUPS = 32  # row groups that are kept, of 4 MB of text at most


@dataclass(frozen=True)
class Source:
    """An output folder whose finished shards are remembered.

    settings: of its job (JobRecord.settings)
    parts: its files of segments, in order, each with the digest that its checksums have
    """

    out: Store
    settings: Mapping[str, Mapping[str, Any]]
    parts: Mapping[str, str]


class _Entries(NamedTuple):
    """NumPy arrays: keys; places, counted over all files; whether each fails a check."""

    keys: Any
    places: Any
    fails: Any


def sources_of(paths: Iterable[str]) -> list[Source]:
    """The outputs of earlier translations, finished or not, by their folders. Only checksums are read. Raises JobError
    if one is none."""
    return [_source_at(path) for path in paths]


def _source_at(path: str) -> Source:
    if not bucket.is_uri(path):
        owners.check_link(path, Path(path))
    out = store.at(path)
    job = record.job_of(out)
    if TABLE not in job.results:
        raise JobError(
            f"{path}: is no translation, which alone has segments to remember; name outputs of [{TABLE}] jobs"
        )
    return source_of(out, job, job.plan.shards)


def source_of(out: Store, job: JobRecord, shards: Sequence[Shard]) -> Source:
    """Those of these shards of a job that are finished. Raises JobError."""
    made_by = record.fingerprints(job)
    survey, parts = shard.Survey(out, shards), {}
    for planned in shards:
        if survey.is_there(planned):
            sums = _checksums(survey, out, planned)
            if sums.fingerprint != made_by[job.plan.files[planned.file].growth]:
                raise JobError(f"{shard.where(out, planned)}: is a shard of another job; run batchgen verify {out}")
            if sums.segments:
                parts[layout.segments(planned)] = sums.segments
    return Source(out, job.settings, parts)


def _checksums(survey: shard.Survey, out: Store, planned: Shard) -> shard.Checksums:
    try:
        return survey.checksums(planned)
    except (FileNotFoundError, ValueError) as error:
        what = f"its checksums are gone or damaged ({error})"
        raise JobError(f"{shard.where(out, planned)}: {what}; run batchgen verify {out}") from None


def digest(sources: Sequence[Source]) -> str:
    """Of all that they hold, in 32 hex digits, wherever their folders are."""
    return fingerprint({"memory": [dict(source.parts) for source in sources]})


class Memory:
    """The segments of some sources, by key.

    One that passed its checks is used whatever made it; one that failed only where its job would make it the same way
    as this one. Of several with one key a passing one comes first, then that of the first source, then of its first
    shard.

    It reads every file once as it is made; a look-up reads at most one row group, 5 to 10 ms if it is not among those
    that are kept. Raises JobError, in every method, if one is not as its checksums say, or not what batchgen writes.
    """

    def __init__(self, sources: Sequence[Source], settings: Mapping[str, Mapping[str, Any]]):
        """settings: of the job that remembers"""
        self._files: list[tuple[Store, str]] = []
        self._groups: list[tuple[int, int]] = []  # file and number in it
        self._begins: list[int] = []  # of each group, counted over all
        self._opened = functools.lru_cache(FILES)(self._open)
        self._read = functools.lru_cache(GROUPS)(self._group)
        self._keys, self._places = _index(self._entries(sources, settings))

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return self._place(key) is not None

    def get(self, key: str) -> SegmentRow | None:
        """key: in 32 hex digits"""
        place = self._place(key)
        if place is None:
            return None
        number = bisect.bisect_right(self._begins, place) - 1
        group, within = self._read(number), place - self._begins[number]
        if within < len(group) and (found := group[within]).key == key:
            return found
        raise _changed(*self._files[self._groups[number][0]])

    def find(self, keys: Iterable[str]) -> dict[str, SegmentRow]:
        """Those of many that are there. Each row group is read once, whatever the order of the keys."""
        places = {key: place for key in keys if (place := self._place(key)) is not None}
        return {key: found for key in sorted(places, key=places.__getitem__) if (found := self.get(key))}

    def _place(self, key: str) -> int | None:
        wanted = bytes.fromhex(key)
        at = int(self._keys.searchsorted(wanted))
        return int(self._places[at]) if at < len(self._keys) and self._keys[at] == wanted.rstrip(b"\0") else None

    def _entries(self, sources: Iterable[Source], settings: Mapping[str, Mapping[str, Any]]) -> Iterator[_Entries]:
        """Of each row group: keys, places, and whether each fails; only of those that may be used."""
        end = 0
        for source in sources:
            is_same = _is_same(source.settings, settings)
            for name, recorded in source.parts.items():
                if _digest(source.out, name) != recorded:
                    raise _changed(source.out, name)
                self._files.append((source.out, name))
                for group, (keys, fails) in enumerate(self._opened(len(self._files) - 1).keys()):
                    self._groups.append((len(self._files) - 1, group))
                    self._begins.append(end)
                    places = np.arange(end, end + len(keys), dtype=np.uint32 if end < 1 << 31 else np.int64)
                    end += len(keys)
                    fit = ~fails | is_same
                    yield _Entries(keys[fit], places[fit], fails[fit])

    def _open(self, number: int) -> SegmentFile:
        return SegmentFile(*self._files[number])

    def _group(self, number: int) -> Group:
        file, group = self._groups[number]
        return self._opened(file).group(group)


def _index(entries: Iterable[_Entries]) -> tuple[Any, Any]:
    """Keys in order, each once, and the place of the best entry of each: the first that passes, or else the first."""
    passing, failing = [(np.zeros(0, KEY), np.zeros(0, np.uint32))], []
    for keys, places, fails in entries:
        passing.append((keys[~fails], places[~fails]))
        if fails.any():
            failing.append((keys[fails], places[fails]))
    keys, places = map(np.concatenate, zip(*passing, *failing, strict=True))
    del passing, failing
    order = keys.argsort(kind="stable")
    keys, places = keys[order], places[order]
    is_first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    return (keys, places) if is_first.all() else (keys[is_first], places[is_first])


def _is_same(one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]) -> bool:
    return fingerprint(_deciding(one)) == fingerprint(_deciding(other))


def _deciding(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    tables = {name: dict(settings.get(name, {})) for name in SAME}
    return tables | {TABLE: {key: value for key, value in tables[TABLE].items() if key not in WHICH_TEXTS}}


def _digest(out: Store, name: str) -> str:
    """Empty if it is not there."""
    try:
        return shard.digest_in(out, name)
    except FileNotFoundError:
        return ""


def _changed(out: Store, name: str) -> JobError:
    return JobError(f"{out.where(name)}: is not what the checksums of its shard say; run batchgen verify {out}")
