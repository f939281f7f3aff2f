"""Scores: how likely the model finds given texts."""

import math
from collections.abc import Iterator

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..input.plan import Shard
from ..output import shard
from .cases import Answer, Case, digests, name, text
from .figures import STEP
from .outcome import Outcome
from .responses import FAILED_CHECK, MOST_BAD, chosen_rows, turns_of, whole
from .svg import number
from .tally import MOST, Array, scrambled


class Score(msgspec.Struct):
    text: str | None
    logprob: float | None
    tokens: int | None
    logprob_per_token: float | None = None
    greedy: bool | None = None
    without_prompt: float | None = None


class Scored(msgspec.Struct):
    """A row of a shard, as far as it is shown."""

    id: str
    row: int
    scores: list[Score]
    conversation: list[dict[str, str | None]] | None = None
    best: int | None = None
    right: bool | None = None
    perplexity: float | None = None


class Scores:
    """A Kind."""

    noun, case, answer, done = "scored rows", "row", "text", "scored"

    def look(self, out: Outcome, planned: Shard) -> None:
        tally = out.tally
        columns = ["row", "prompt_tokens", "scores", "best", "right", "perplexity"]
        found = shard.read(out.store, planned, columns + (["id"] if tally.is_joined else []))
        if not found.num_rows:
            return
        rows, right = whole(found["row"]), found["right"]
        tally.spread("prompt tokens", whole(found["prompt_tokens"]))
        tally.spread("tokens of a text", whole(pc.struct_field(pc.list_flatten(found["scores"]), "tokens")))
        known = pc.is_valid(right).to_numpy()
        if known.any():
            words = pc.if_else(right.drop_null(), "right", "wrong")
            tally.count("the likeliest is", words)
            tally.go_along("right", rows[known], right.drop_null().to_numpy())
        texts = whole(pc.list_value_length(found["scores"]))
        if texts.max() > 1:
            tally.answers = max(tally.answers, int(texts.max()))
            tally.count("place of the likeliest text", pc.cast(found["best"].drop_null(), pa.string()))
        bad = FAILED_CHECK * (known & ~right.fill_null(True).to_numpy())
        unlikely = found["perplexity"].fill_null(1.0).cast(pa.float64()).to_numpy()
        steps = np.log(np.clip(np.nan_to_num(unlikely, nan=1.0), 1.0, STEP**2000)) / math.log(STEP)
        if found["perplexity"].null_count < found.num_rows:
            tally.spread("perplexity", np.round(steps[pc.is_valid(found["perplexity"]).to_numpy()]))
        bad = np.clip(bad + steps, 0, MOST_BAD).astype(np.int64)
        keys, digest = scrambled(rows), np.zeros(len(rows), np.uint64)
        if tally.is_joined:
            keys = digests(found["id"].to_pylist())
            digest = np.clip(whole(found["best"]), 0, MOST).astype(np.uint64)
        tally.choose(keys, rows, bad, digest)

    def cases(self, out: Outcome, planned: Shard, places: Array) -> Iterator[tuple[int, Case]]:
        """places: row numbers"""
        for batch in chosen_rows(out, planned, list(Scored.__struct_fields__), places):
            for row in msgspec.convert(batch.to_pylist(), list[Scored]):
                yield row.row, _case(row)


def _case(row: Scored) -> Case:
    answers = [_answer(score, place, row) for place, score in enumerate(row.scores)]
    length = max((score.tokens or 0 for score in row.scores), default=0)
    about = "" if row.perplexity is None else f"perplexity {row.perplexity:.4g}"
    made = Case(name(row.id), row.row, turns_of(row.conversation), answers, about, length=length)
    made.tags = [] if row.right is None else ["right" if row.right else "wrong"]
    return made


def _answer(score: Score, place: int, row: Scored) -> Answer:
    tags = ["likeliest"] if len(row.scores) > 1 and place == row.best else []
    tags += ["right" if row.right else "wrong"] if tags and row.right is not None else []
    known = [
        ("log probability", score.logprob),
        ("a token", score.logprob_per_token),
        ("without prompt", score.without_prompt),
    ]
    notes = [f"{what} {number(round(value, 4))}" for what, value in known if value is not None]
    notes += [f"{score.tokens or 0:,} tokens"] + (["each the likeliest"] if score.greedy else [])
    return Answer(text(score.text), [0], tags=tags, note=", ".join(notes))
