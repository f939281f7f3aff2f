"""Responses: what the shards of an ordinary job, or of a sweep, have."""

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..input.plan import Shard
from ..output import shard
from ..task import output_columns
from ..task.output_columns import SETTING
from .cases import Answer, Case, Turn, digests, folded, name, text
from .outcome import CELLS, Outcome, Tally
from .tally import Array, scrambled

BATCH_ROWS = 512  # that are in memory with their texts
# How bad an answer is by what ended it; each failed check is worse than any of these.
ENDED = {"stop": 0, "repetition": 30, "length": 20}
OTHERWISE_ENDED, FAILED_CHECK, MOST_BAD = 10, 100, 0xFFFF


class Response(msgspec.Struct):
    """A row of a shard, as far as it is shown."""

    id: str
    row: int
    finish_reason: str
    response_tokens: int
    conversation: list[dict[str, str | None]] | None = None
    response: str | None = None
    tries: int | None = None
    failed_checks: list[str] | None = None
    setting: int = 0


class Responses:
    """A Kind."""

    noun, case, answer, done = "responses", "row", "response", "answered"

    def look(self, out: Outcome, planned: Shard) -> None:
        tally, optional = out.tally, _own(out, planned, ("tries", "failed_checks", SETTING))
        needed = ["row", "finish_reason", "prompt_tokens", "response_tokens", *optional]
        found = shard.read(out.store, planned, needed + (["id", "response"] if tally.is_joined else []))
        if not found.num_rows:
            return
        rows, lengths = whole(found["row"]), whole(found["response_tokens"])
        tally.spread("prompt tokens", whole(found["prompt_tokens"]))
        tally.spread("response tokens", lengths)
        failed = found["failed_checks"] if "failed_checks" in optional else None
        ended, number_failed = ended_and_failed(tally, found["finish_reason"], failed)
        tries = np.ones(len(rows), np.int64)
        if "tries" in optional:
            tries = whole(found["tries"])
            tally.spread("tries", tries)
        tally.go_along("tokens of a response", rows, lengths)
        tally.go_along("not ended by stop", rows, ended != "stop")
        if SETTING in optional:
            tally.settings = max(tally.settings, int(np.clip(whole(found[SETTING]), 0, CELLS).max()) + 1)
        _choose(tally, found, rows, badness(ended, tries, number_failed))

    def cases(self, out: Outcome, planned: Shard, places: Array) -> Iterator[tuple[int, Case]]:
        """places: row numbers"""
        columns = _own(out, planned, Response.__struct_fields__)
        chosen: dict[int, list[Response]] = {}
        for batch in chosen_rows(out, planned, columns, places):
            for each in msgspec.convert(batch.to_pylist(), list[Response]):
                chosen.setdefault(each.row, []).append(each)
        for row, responses in chosen.items():
            yield row, _case(responses)


def _own(out: Outcome, planned: Shard, names: Iterable[str]) -> list[str]:
    """Which of these columns a shard has that batchgen wrote: the input may have brought others of such a name."""
    own = {column.name for column in output_columns.columns_of(out.spec)}
    return [name for name in names if name in own and name in columns_of(out, planned)]


def _choose(tally: Tally, found: pa.Table, rows: Array, bad: Array) -> None:
    """Gives the rows of a shard to the choice: each with its worst answer, and a digest of its distinct ones."""
    places, firsts, of_row = np.unique(rows, return_index=True, return_inverse=True)
    worst = np.zeros(len(places), np.int64)
    np.maximum.at(worst, of_row, bad)
    tally.answers = max(tally.answers, int(np.bincount(of_row).max()))
    keys, digest = scrambled(places), np.zeros(len(places), np.uint64)
    if tally.is_joined:
        keys = digests(found["id"].take(pa.array(firsts)).to_pylist())
        texts = digests(found["response"].to_pylist())
        order = np.lexsort((texts, of_row))
        texts, of_row = texts[order], of_row[order]
        is_new = np.append(True, (texts[1:] != texts[:-1]) | (of_row[1:] != of_row[:-1]))
        np.add.at(digest, of_row[is_new], texts[is_new])
    tally.choose(keys, places, worst, digest)


def _case(responses: list[Response]) -> Case:
    first = responses[0]
    answers = folded(map(_answer, responses))
    length = max(each.response_tokens for each in responses)
    return Case(name(first.id), first.row, turns_of(first.conversation), answers, length=length)


def _answer(response: Response) -> Answer:
    failed = response.failed_checks or []
    tags = [name(response.finish_reason), *(f"fails {name(each)}" for each in failed)]
    tries = f", {response.tries:,} tries" if (response.tries or 1) > 1 else ""
    note = f"{response.response_tokens:,} tokens{tries}"
    return Answer(text(response.response), [min(max(response.setting, 0), CELLS)], tags=tags, note=note)


# --- what kinds of jobs have in common


def ended_and_failed(tally: Tally, ended: pa.ChunkedArray, failed: pa.ChunkedArray | None) -> tuple[Array, Array]:
    """Counts what ended answers and the checks that they fail. Gives the former as words, and how many they fail."""
    tally.count("ended by", ended)
    if failed is None:
        return _words(ended), np.zeros(len(ended), np.int64)
    tally.count("failed checks", pc.list_flatten(failed))
    return _words(ended), whole(pc.list_value_length(failed))


def _words(column: pa.ChunkedArray) -> Array:
    return column.cast(pa.string()).to_numpy()


def badness(ended: Array, tries: Array, failed: Array) -> Array:
    """How bad answers are: by what ended them, how often they were tried, and how many checks they fail."""
    bad = np.full(len(ended), OTHERWISE_ENDED, np.int64)
    for reason, value in ENDED.items():
        bad[ended == reason] = value
    return np.minimum(bad + np.clip(tries - 1, 0, 9) + FAILED_CHECK * failed, MOST_BAD)


def turns_of(conversation: list[dict[str, str | None]] | None) -> list[Turn]:
    return [Turn(name(turn.get("speaker") or ""), text(turn.get("text"))) for turn in conversation or ()]


def columns_of(out: Outcome, planned: Shard) -> list[str]:
    with shard.opened(out.store, planned) as stream:
        return list(pq.ParquetFile(stream).schema_arrow.names)


def whole(column: pa.ChunkedArray) -> Array:
    """Whole numbers, with 0 where there is none."""
    return column.fill_null(0).cast(pa.int64()).to_numpy()


def chosen_rows(out: Outcome, planned: Shard, columns: list[str], places: Array) -> Iterator[pa.RecordBatch]:
    """The rows of a shard with these numbers, some at a time."""
    here = places[(places >= planned.first_row) & (places < planned.first_row + planned.rows)]
    if not len(here):
        return
    wanted = pa.array(np.asarray(here, np.int64))
    with shard.opened(out.store, planned) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            if (some := batch.filter(pc.is_in(batch["row"], wanted))).num_rows:
                yield some
