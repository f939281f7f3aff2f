"""Rows that are picked from all over the input."""

import json

import pytest

from batchgen.input.plan import PICKED_ROWS, Plan, plan_input, spread_rows
from batchgen.input.rows import read_rows
from batchgen.job.sampling import item_seed


def draw(number: int) -> int:
    return item_seed(0, "a stretch", number)


@pytest.fixture
def plan(tmp_path):
    paths = []
    for name, rows in (("a.jsonl", range(370)), ("b.jsonl", range(370, 1000))):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in rows))
        paths.append(str(path))
    return plan_input(paths, 32)


def numbers(plan: Plan) -> list[int]:
    return [number for shard in plan.shards for number in shard.row_numbers]


def test_there_is_one_of_each_stretch(plan):
    picked = numbers(spread_rows(plan, 130, draw))
    assert picked == sorted(picked)
    begins = [1000 * number // 130 for number in range(131)]
    assert all(begin <= row < end for row, begin, end in zip(picked, begins, begins[1:], strict=False))
    assert len({row - begin for row, begin in zip(picked, begins, strict=False)}) > 5  # anywhere in it
    assert numbers(spread_rows(plan, 130, draw)) == picked


def test_kinds_that_come_in_turns_are_all_met(plan):
    counted = [sum(number % 10 == kind for number in numbers(spread_rows(plan, 100, draw))) for kind in range(10)]
    assert min(counted) >= 3 and max(counted) <= 20  # a step of 10 rows would have met one kind alone


def test_all_are_taken_if_there_are_no_more(plan):
    assert spread_rows(plan, 1000, draw) is plan
    assert len(numbers(spread_rows(plan, 999, draw))) == 999


def test_the_rows_are_read_where_they_are_in_no_more_shards_than_it_takes(plan):
    picked = spread_rows(plan, 130, draw)
    assert len(picked.shards) <= 130 / PICKED_ROWS + 1
    assert all(len(shard.row_numbers) >= PICKED_ROWS for shard in picked.shards[:-1])
    read = [row for shard in picked.shards for row in read_rows(picked, shard, ["text"])]
    assert [row.number for row in read] == numbers(picked)
    assert [row.record()["text"] for row in read] == [f"row {number}" for number in numbers(picked)]
