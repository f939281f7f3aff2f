"""What is known of vLLM without importing it is what vLLM is when it is imported."""

import importlib
import importlib.util
from pathlib import Path

import pytest

from batchgen.engine import installed


def is_there(feature: str) -> bool:
    """The same as `has`, by importing."""
    file, name = installed.FEATURES[feature]
    module = f"vllm.{file.removesuffix('.py').replace('/', '.')}"
    if not importlib.util.find_spec(module):
        return False
    of = importlib.import_module(module) if name else None
    for part in name.split(".") if name else ():
        of = getattr(of, part, None)
    return of is not None or not name


@pytest.mark.parametrize("feature", installed.FEATURES)
def test_a_feature_is_there_if_vllm_has_it_when_it_is_imported(feature):
    assert installed.has(feature) is is_there(feature)
    assert (feature in installed.lacks()) is not is_there(feature)


@pytest.fixture
def an_empty_vllm(tmp_path, monkeypatch):
    """A vLLM that has nothing."""
    monkeypatch.setattr(installed, "_vllm", lambda: tmp_path)
    installed.has.cache_clear()
    yield tmp_path
    installed.has.cache_clear()


def test_what_is_missing_is_told_by_name(an_empty_vllm):
    assert installed.lacks() == list(installed.FEATURES)


def test_where_no_vllm_is_installed_nothing_is_missing(monkeypatch, an_empty_vllm):
    monkeypatch.setattr(installed, "_vllm", lambda: None)
    assert installed.lacks() == []


def test_a_field_of_another_class_is_not_taken_for_it(an_empty_vllm):
    Path(an_empty_vllm, "sampling_params.py").write_text(
        "class Other:\n    repetition_detection: int = 0\nclass SamplingParams:\n    thinking_token_budget: int\n"
    )
    assert not installed.has("repetition_detection")
    assert installed.has("thinking_token_budget")
