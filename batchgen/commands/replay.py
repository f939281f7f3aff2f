"""Generates a part of a finished job again, and compares: a job of responses row by row, a translation by segments."""

import bisect
import dataclasses
import hashlib
import itertools
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..engine import choice
from ..errors import JobError, shown
from ..input.plan import Plan, Shard, gone, locator, only_rows, shards_from
from ..job.sampler import Sampler
from ..job.spec import JobSpec
from ..job.trust import refuse_risks
from ..output import record, segments, shard, store
from ..output.memory import Memory, sources_of
from ..output.record import JobRecord
from ..output.store import Place, Store
from ..runner.prepare import Job, prepare
from ..runner.run import run, run_job
from ..task.output_columns import SETTING, from_column
from ..task.segment_rows import SegmentRow
from .verify import open_finished


@dataclass(frozen=True)
class Replay:
    """items: that were compared; matches: those whose response came out the same; first: what differs in the first that
    did not; left_out: items that were not compared, by what drew them; here: what draws here, None if unknown; spaced:
    items of JSON that were not compared, as the white space of their folder was vLLM's; remembered: segments of other
    jobs, which are not compared; what: the items are."""

    items: int
    matches: int
    first: str
    left_out: Counter[Sampler]
    here: Sampler | None
    spaced: int = 0
    remembered: int = 0
    what: str = "responses"


def document(again: Replay) -> dict[str, Any]:
    """For programs. What drew items is told in words."""
    left_out = {str(drew): count for drew, count in again.left_out.items()}
    return vars(again) | {"left_out": left_out, "here": again.here and str(again.here)}


def check_engine(out: Place, given: dict[str, Any]) -> None:
    """Whether a replay may and can run here: whoever made a folder must not say what code does. given: [engine] of the
    command line. Raises JobError."""
    place = store.at(out)
    spec = open_finished(place)[1]
    recorded = spec.engine
    choice.require_engine(recorded | given)
    refuse_risks(recorded, record.where(place), given)


def replay(out: Place, items: int, seed: int, given: dict[str, Any]) -> Replay:
    """Generates random items of a finished job again and compares the responses; of a translation, the segments of
    random rows, and of scores these. Raises what `run` raises.

    Like is compared with like: items that were sampled are left out where their shard has another runner or noise than
    the engine here. Greedy ones are compared wherever they come from.

    items, seed: how many, and what chooses them
    given: [engine] of the command line, which wins over the record's
    """
    check_engine(out, given)
    place = store.at(out)
    old, spec = open_finished(place)
    if spec.translate.fields:
        return _replay_translation(place, old, spec, items, seed, given)
    if spec.score.mode != "off":
        return _replay_scores(place, old, spec, items, seed, given)
    return _replay_responses(place, old, spec, items, seed, given)


def _with_input(out: Store, old: JobRecord, spec: JobSpec) -> list[Shard]:
    """The finished shards whose input is there still. Raises JobError if there are none."""
    finished = shard.finished(out, old.plan)
    lost = set() if spec.input.keep else gone(old.plan)
    without = shards_from(old.plan, lost)
    found = [planned for planned in finished if planned.index not in without]
    if finished and not found:
        path = shown(old.plan.files[min(lost)].path)
        raise JobError(f"{path}: is gone, as all other input is; put some of it back, which is then generated again")
    return found


# --- of responses


def _replay_responses(
    out: Store, old: JobRecord, spec: JobSpec, items: int, seed: int, given: dict[str, Any]
) -> Replay:
    columns = _columns(spec)
    before, drew = _choose(out, old, columns, items, seed)
    here = choice.known_sampler()
    spaced = [old.format < record.COMPACT_JSON and _is_json(row) for row in before]
    kept = [not each for each in spaced]
    before, drew = list(itertools.compress(before, kept)), list(itertools.compress(drew, kept))
    if not before or (here and not _alike(before, drew, here)):
        return Replay(0, 0, "", Counter(drew), here, sum(spaced))
    with tempfile.TemporaryDirectory(prefix="batchgen-replay-") as scratch:
        done = run(_again(spec, old, before, Path(scratch), given)).out
        planned = record.job_of(done).plan.shards
        told = [name for name in columns if name != SETTING]
        after = [row for each in planned for row in shard.read(done, each, told).to_pylist()]
        here = shard.sampler(shard.metadata(done, planned[0]))
    return dataclasses.replace(_compare(before, after, drew, here), spaced=sum(spaced))


def _columns(spec: JobSpec) -> list[str]:
    """What is read of an item, to make it again and to compare it."""
    names = ["id", "row", "sample", "conversation", "response", "finish_reason", "response_tokens", "seed", "sampling"]
    names += [SETTING] if spec.sweep.method else []
    names += ["reasoning"] if spec.model.reasoning_parser else []
    names += ["adapter"] if spec.model.adapter else []
    return names + (["images"] if spec.input.image else [])


def _choose(
    out: Store, old: JobRecord, columns: list[str], items: int, seed: int
) -> tuple[list[dict[str, Any]], list[Sampler]]:
    """Random items, and what drew them."""
    finished = shard.finished(out, old.plan)
    footers = [shard.metadata(out, planned) for planned in finished]
    sizes = [footer.num_rows for footer in footers]
    chosen = sorted(random.Random(seed).sample(range(sum(sizes)), min(items, sum(sizes))))
    return list(_rows_at(out, zip(finished, sizes, strict=True), chosen, columns)), _samplers_at(footers, chosen)


def _again(
    spec: JobSpec, old: JobRecord, before: list[dict[str, Any]], scratch: Path, given: dict[str, Any]
) -> JobSpec:
    """A job that makes these items again. scratch: a folder for its input and output"""
    rows = scratch / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as lines:
        for row in before:
            keep: dict[str, Any] = {
                name: row[name] for name in ("id", "conversation", "seed", "adapter") if name in row
            }
            keep["sampling"] = from_column(row["sampling"])
            if spec.input.image:
                keep["image"] = [image["sha256"] for image in row["images"]]
            lines.write(json.dumps(keep, ensure_ascii=False) + "\n")
    tables = msgspec.to_builtins(spec)
    tables["input"] = {"path": [str(rows)], "id": "id"} | ({"adapter": "adapter"} if spec.model.adapter else {})
    if spec.input.image:
        tables["input"]["image"] = "image"
        _copy_images(prepare(spec, begun=old), {row["row"] for row in before}, scratch)
    tables["output"] = {"path": str(scratch / "out"), "shard_rows": max(1, len(before))}
    # Shards hold conversations as rendered.
    tables["prompt"] = {"format": old.settings["prompt"]["format"], "control_tokens": old.control_tokens}
    tables["sampling"] |= {"n": 1}
    tables["check"] = tables["sweep"] = {}
    tables["engine"] |= given
    return msgspec.convert(tables, JobSpec)


def _copy_images(job: Job, rows: set[int], folder: Path) -> None:
    """Puts the images of some rows into a folder, by their digests."""
    sight, plan = job.generate.sight, only_rows(job.plan, rows)
    assert sight
    for planned in plan.shards:
        for row in job.reader().read(planned):
            for content in sight.files_of(row.record(), row.number)[1]:
                (folder / hashlib.sha256(content).hexdigest()).write_bytes(content)


def _is_json(row: dict[str, Any]) -> bool:
    """Whether a response had to be JSON."""
    asked = from_column(row["sampling"])["structured_outputs"] or {}
    return not asked.keys().isdisjoint({"json", "json_object"})


def _rows_at(
    out: Store, shards: Iterable[tuple[Shard, int]], chosen: list[int], columns: list[str]
) -> Iterator[dict[str, Any]]:
    """Rows by their places in all shards together. shards: each with its number of rows."""
    begin = 0
    for planned, size in shards:
        places = [place - begin for place in chosen if begin <= place < begin + size]
        if places:
            yield from shard.read(out, planned, columns).take(pa.array(places, pa.int64())).to_pylist()
        begin += size


def _samplers_at(footers: list[pq.FileMetaData], chosen: list[int]) -> list[Sampler]:
    """What drew the rows that have these places in all shards together."""
    ends = list(itertools.accumulate(footer.num_rows for footer in footers))
    of_shard = [shard.sampler(footer) for footer in footers]
    return [of_shard[bisect.bisect_right(ends, place)] for place in chosen]


def _alike(before: list[dict[str, Any]], drew: list[Sampler], here: Sampler) -> list[int]:
    """Which of some rows an engine with this sampler has to make the same again."""
    return [
        place
        for place, (row, sampler) in enumerate(zip(before, drew, strict=True))
        if sampler == here or row["sampling"]["temperature"] == 0
    ]


def _compare(before: list[dict[str, Any]], after: list[dict[str, Any]], drew: list[Sampler], here: Sampler) -> Replay:
    alike = _alike(before, drew, here)
    left_out = Counter(drew) - Counter(drew[place] for place in alike)
    pairs = list(zip(before, after, strict=True))
    different = [
        (was, now)
        for was, now in (pairs[place] for place in alike)
        if any(was.get(name) != now.get(name) for name in ("reasoning", "finish_reason", "response_tokens"))
        or was["response"] not in (None, now["response"])  # null where it failed a check
    ]
    first = ""
    if different:
        was, now = different[0]
        setting = f" setting {was[SETTING]}" if SETTING in was else ""
        first = f"row {was['row']}{setting} sample {was['sample']}: {was['response']!r} then, {now['response']!r} now"
    return Replay(len(alike), len(alike) - len(different), first, left_out, here)


# --- of a translation


def _replay_translation(
    out: Store, old: JobRecord, spec: JobSpec, rows: int, seed: int, given: dict[str, Any]
) -> Replay:
    """That the segments make the records `verify` proves without an engine, so segments are compared. Those that were
    tried again are taken for sampled, as further tries are."""
    finished = _with_input(out, old, spec)
    numbers = [number for planned in finished for number in _answered(out, planned)]
    plan = only_rows(old.plan, random.Random(seed).sample(numbers, min(rows, len(numbers))))
    before = {planned.first_row: planned for planned in finished}
    drew = {first: shard.sampler(shard.metadata(out, planned)) for first, planned in before.items()}
    here = choice.known_sampler()
    has_like = spec.sampling.temperature == 0 or here is None or here in drew.values()
    if not plan.shards or not has_like:
        left_out = Counter(drew[planned.first_row] for planned in plan.shards for _ in planned.row_numbers)
        return Replay(0, 0, "", left_out, here, what="rows")
    known = Memory(sources_of(spec.translate.memory), old.settings)
    pairs: list[tuple[Sampler, SegmentRow, SegmentRow]] = []
    with tempfile.TemporaryDirectory(prefix="batchgen-replay-") as scratch:
        again = _elsewhere(spec, str(Path(scratch) / "out"), given)
        done = run_job(again, lambda: _prepared(again, plan, old)).out
        now = record.job_of(done)
        for planned in now.plan.shards:
            made = {row.key: row for row in _segments(done, planned)}
            pairs += [
                (drew[planned.first_row], row, made[row.key])
                for row in _segments(out, before[planned.first_row])
                if row.key in made
            ]
        here = shard.sampler(shard.metadata(done, now.plan.shards[0]))
    own = [pair for pair in pairs if pair[1].key not in known]
    return _compare_segments(own, len(pairs) - len(own), here, locator(old.plan))


def _answered(out: Store, planned: Shard) -> list[int]:
    """The numbers of a finished shard's rows that are not rejected."""
    rejected = {line["row"] for line in shard.read_rejects(out, planned)}
    return [number for number in planned.row_numbers if number not in rejected]


def _elsewhere(spec: JobSpec, out: str, given: dict[str, Any]) -> JobSpec:
    """A job's spec with another output folder and further arguments of the engine."""
    output = msgspec.structs.replace(spec.output, path=out, shared=False, stop_at="", max_rejects=None)
    return msgspec.structs.replace(spec, output=output, engine=spec.engine | given)


def _prepared(spec: JobSpec, plan: Plan, old: JobRecord) -> Job:
    """Raises JobError, also if the job's memory is not what it was: other segments would be generated."""
    job = prepare(spec, plan)
    memory_then, memory_now = (each.settings["translate"]["memory"] for each in (old, job.record))
    if memory_then != memory_now:
        raise JobError(f"[translate] memory: {', '.join(spec.translate.memory)}: has changed since the job began")
    return job


def _segments(out: Store, planned: Shard) -> Iterator[SegmentRow]:
    return (row for some in segments.read(out, planned) for row in some)


def _compare_segments(
    pairs: list[tuple[Sampler, SegmentRow, SegmentRow]], remembered: int, here: Sampler, place: Callable[[int], str]
) -> Replay:
    """pairs: what drew a segment, what it was, and what it is now"""
    alike = [
        (drew, was, now)
        for drew, was, now in pairs
        if drew == here or (was.sampling.temperature == 0 and was.tries == now.tries == 1)
    ]
    left_out = Counter(drew for drew, _, _ in pairs) - Counter(drew for drew, _, _ in alike)
    different = [
        (was, now)
        for _, was, now in alike
        if (was.answer, was.failed_checks, was.finish_reason) != (now.answer, now.failed_checks, now.finish_reason)
    ]
    first = ""
    if different:
        was, now = different[0]
        first = f"{place(was.row)}: {was.path}: {was.answer!r} then, {now.answer!r} now"
    return Replay(
        len(alike), len(alike) - len(different), first, left_out, here, remembered=remembered, what="segments"
    )


# --- of scores

CLOSE = 1e-3  # of a token's log probability: another batch may round otherwise on a GPU


def _replay_scores(out: Store, old: JobRecord, spec: JobSpec, rows: int, seed: int, given: dict[str, Any]) -> Replay:
    """Scores draw nothing, so all are compared, wherever they come from."""
    finished = _with_input(out, old, spec)
    numbers = [number for planned in finished for number in _answered(out, planned)]
    plan = only_rows(old.plan, random.Random(seed).sample(numbers, min(rows, len(numbers))))
    if not plan.shards:
        return Replay(0, 0, "", Counter(), None, what="scores")
    wanted = {number for planned in plan.shards for number in planned.row_numbers}
    then = {row: scores for row, scores in _scores(out, finished) if row in wanted}
    with tempfile.TemporaryDirectory(prefix="batchgen-replay-") as scratch:
        again = _elsewhere(spec, str(Path(scratch) / "out"), given)
        done = run_job(again, lambda: prepare(again, plan)).out
        now = dict(_scores(done, record.job_of(done).plan.shards))
        here = shard.sampler(shard.metadata(done, record.job_of(done).plan.shards[0]))
    pairs = [
        (row, was, is_now)
        for row, scores in then.items()
        for was, is_now in zip(scores, now.get(row, []), strict=False)
    ]
    different = [pair for pair in pairs if abs(pair[1]["logprob"] - pair[2]["logprob"]) > CLOSE * pair[1]["tokens"]]
    first = ""
    if different:
        row, was, is_now = different[0]
        text = f"{was['text']!r:.60}: {was['logprob']:.4f} then, {is_now['logprob']:.4f} now"
        first = f"{locator(old.plan)(row)}: {text}"
    return Replay(len(pairs), len(pairs) - len(different), first, Counter(), here, what="scores")


def _scores(out: Store, shards: Iterable[Shard]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    for planned in shards:
        for row in shard.read(out, planned, ["row", "scores"]).to_pylist():
            yield row["row"], row["scores"]
