import time

import pytest

from batchgen.segment.blocks import blocks


def found(text, code=True):
    return [text[begin:end] for begin, end in blocks(text, code)]


def test_a_block_is_whole_lines_without_the_last_newline():
    assert found("a\n  ```\nb\n  ```  \nc") == ["  ```\nb\n  ```  "]


def test_a_fence_is_closed_by_one_that_is_as_long():
    assert found("````\n```\n~~~~\n`````\nb") == ["````\n```\n~~~~\n`````"]


def test_json_over_many_lines_ends_with_a_line():
    assert found('[\n{"a": 1},\n2]\nb') == ['[\n{"a": 1},\n2]']
    assert found('{"a": 1} is what I mean') == []


def test_json_that_is_broken_is_none():
    assert found('{"a": 1,\n"b": [1, 2]\nand so on') == []


def test_latex_whose_environment_is_prose_is_none():
    assert found("\\begin{itemize}\n\\item Hello\n\\end{itemize}") == []


def test_without_code_only_fences_are_blocks():
    assert found('{"a": 1}\n$$\nx\n$$\n```\ny\n```', code=False) == ["```\ny\n```"]


@pytest.mark.parametrize(
    "line", ["[", "{", "[1,", "```a", "~~~b", "$$x", "\\begin{align} a", "<pre> <!--", "- " * 9, "> > ", "\\["]
)
def test_many_openings_take_no_quadratic_time(line):
    began = time.monotonic()
    found(f"{line}\n" * 40_000)
    assert time.monotonic() - began < 10
