import pytest

from batchgen.check.loops import longest_loop


@pytest.mark.parametrize(
    "text, unit",
    [
        ("The cat sat. " * 6, "The cat sat. "),
        ("It begins well. " + "and so on, " * 20 + "It ends.", "and so on, "),
        ("は" * 30, "は"),
        ("私は学生です。" * 8, "私は学生です。"),
    ],
)
def test_a_loop_is_found(text, unit):
    found = longest_loop(text)
    assert found and found in unit * 2 and len(found) == len(unit)


@pytest.mark.parametrize(
    "text",
    ["", "ははははは", "No, no, no!", "A rose is a rose is a rose.", "|---|---|---|---|\n", "1000000000"],
)
def test_what_people_write_is_none(text):
    assert longest_loop(text) is None
