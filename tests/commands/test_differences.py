"""`batchgen show --diff`: two outputs joined on their ids, and what differs within the texts."""

import json

import pytest

from batchgen.commands.differences import spans


def marked(old: str, new: str) -> str:
    signs = {"same": "{}", "old": "[-{}-]", "new": "{{+{}+}}"}
    return "".join(signs[kind].format(text) for kind, text in spans(old, new))


def test_english_is_compared_by_words_and_japanese_by_signs():
    assert marked("It takes four hours.", "It takes forty hours.") == "It takes [-four-]{+forty+} hours."
    assert marked("タオルを2枚ください。", "タオルを12枚ください。") == "タオルを[-2-]{+12+}枚ください。"
    assert marked("今日の午前8時", "今日の午後8時") == "今日の午[-前-]{+後+}8時"
    assert marked("", "new") == "{+new+}"


@pytest.mark.parametrize(
    "old, new", [("a b" * 50, "a c" * 40), ("今日は" * 9, "昨日は" * 8), ("same", "same"), ("", "")]
)
def test_the_spans_make_up_both_texts(old, new):
    found = spans(old, new)
    assert "".join(text for kind, text in found if kind != "new") == old
    assert "".join(text for kind, text in found if kind != "old") == new


def test_texts_that_have_nothing_in_common_and_are_long_take_no_time():
    one, other = ("".join(chr(0x4E00 + start + place) for place in range(4000)) for start in (0, 5000))
    assert [kind for kind, _ in spans(one, other)] == ["old", "new"]


@pytest.fixture
def outs(instantly, write_rows):
    """Two outputs with some rows in common, in another order, with other answers to two of them."""
    rows = {f"a-{day}": {"id": f"a-{day}", "text": f"May {day}"} for day in range(8)}
    one = instantly([write_rows(list(rows.values())[:6], "one.jsonl")], out="one", output={"shard_rows": 2})
    changed = {name: {**rows[name], "seed": 5} for name in ("a-2", "a-5")}
    others = [changed.get(name, row) for name, row in reversed(rows.items()) if name != "a-0"]
    other = instantly([write_rows(others, "two.jsonl")], out="two", input={"seed": "seed"}, output={"shard_rows": 3})
    return one, other


def test_rows_are_joined_on_their_ids_and_counted(outs, batchgen):
    done = batchgen("show", outs[0], "--diff", outs[1])
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("row ")] == ["row 2, id a-2", "row 5, id a-5"]
    assert done.stdout.endswith("\n3 rows are the same, 2 differ, 1 only in the first, 2 only in the second\n")
    assert "[-" in done.stdout and "{+" in done.stdout


def test_as_json_both_answers_are_there_and_then_the_counts(outs, batchgen):
    lines = list(
        map(json.loads, batchgen("show", outs[0], "--diff", outs[1], "--json", "--random", 1).stdout.splitlines())
    )
    assert lines[0]["changes"][0].keys() == {"old", "new"}
    assert lines[1:] == [{"same": 3, "different": 2, "old": 1, "new": 2}]


def test_outputs_of_two_kinds_are_not_compared(outs, instantly, write_rows, batchgen):
    scores = instantly([write_rows([{"text": "May 1"}])], out="scores", score={"mode": "text"})
    done = batchgen("show", outs[0], "--diff", scores)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "scores" in done.stderr


def test_an_output_is_the_same_as_itself(outs, batchgen):
    assert batchgen("show", outs[0], "--diff", outs[0]).stdout == "6 rows are the same, 0 differ\n"
