"""The metrics by their names: what each says of a response, and which of them a job has."""

import time

import pytest

from batchgen.check import languages
from batchgen.errors import JobError
from batchgen.job.spec import CheckTable, MetricsTable
from batchgen.metrics import chrf, metrics
from batchgen.metrics.metrics import METRICS, Answer, best_of, choose, tools_of
from batchgen.metrics.scorer import Scorer


class Letters:
    """A token for each character."""

    def encode(self, text):
        text.encode()  # which fails for half a character, as sentencepiece does
        return [ord(sign) for sign in text]


TOOLS = tools_of(MetricsTable(reference="r", language="ja"), CheckTable(source_language="en"), Letters())


def value(name, *responses, references=("今日は晴れ",), source="It is sunny today, is it not?", **output):
    answers = [Answer({"response": text, **output}, references, source, TOOLS) for text in responses]
    return METRICS[name].measure(answers)


@pytest.mark.parametrize(
    ("name", "response", "expected"),
    [
        ("exact", "今日は晴れ", 1),
        ("exact", "今日は晴れ ", 0),
        ("exact", None, 0),  # left out for its failed checks
        ("exact_folded", "　今日は晴れ\n", 1),
        ("exact_folded", "今日は雨", 0),
        ("chrf", "今日は晴れ", 100),
        ("chrf", "", 0),
        ("rouge_l", "今日晴れ", 8 / 9),
        ("seq_rep_4", "ああああああああ", 0.8),
        ("longest_loop", "よし。" + "あい" * 10, 20),
        ("longest_loop", "今日は晴れ", 0),
        ("language", "今日は晴れです", 1),
        ("language", "The weather forecast says rain", 0),
        ("script", "今日ok", 0.5),
        ("script", "12.5", None),
        ("copy", "It is sunny today, is it not?", 1),
        ("copy", "今日は晴れ", 0),
        ("empty", " \n", 1),
        ("empty", "x", 0),
        ("distinct_1", "ああいい", 0.5),
        ("distinct_2", "あああい", 2 / 3),
    ],
)
def test_a_response(name, response, expected):
    assert value(name, response) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("name", ["exact", "exact_folded", "chrf", "rouge_l"])
def test_of_several_references_the_best_fitting_counts_and_without_one_there_is_no_value(name):
    alone = value(name, "今日は晴れ")
    assert value(name, "今日は晴れ", references=("別の文", "今日は晴れ", "雨")) == alone > 0
    assert value(name, "今日は晴れ", references=()) is None


@pytest.mark.parametrize("reason", ["stop", "length", "repetition"])
def test_how_responses_ended(reason):
    assert value(f"finish_{reason}", "a", "b", finish_reason=reason) == 1
    assert value(f"finish_{reason}", "a", "b", finish_reason="other") == 0


def test_what_the_output_row_says():
    assert value("response_tokens", "a", response_tokens=7) == 7
    assert value("failed_checks", "a", failed_checks=["language"]) == 1
    assert value("failed_checks", "a", failed_checks=[]) == 0
    assert value("failed_checks", "a") is None
    steps = [[{"token_id": 3, "logprob": -0.5}, {"token_id": 4, "logprob": -0.1}], [{"token_id": 5, "logprob": -1.5}]]
    assert value("logprob", "a", logprobs=steps) == -1  # of the tokens that were chosen
    assert value("logprob", "a", mean_logprob=-0.25) == -0.25
    assert value("logprob", "a") is None


def test_agreement_of_samples():
    assert value("agreement", "a", "a", "b") == pytest.approx(1 / 3)
    assert value("agreement", "a") is None
    one, other = "今日は晴れです", "今日は雨です。"
    both = (chrf.Chrf()(one, (other,)) + chrf.Chrf()(other, (one,))) / 2
    assert value("agreement_chrf", one, other) == pytest.approx(both)
    assert value("agreement_chrf", "", "") == 100  # equal, though sacrebleu finds nothing in them
    assert value("agreement_chrf", one) is None


def test_a_mean_over_samples():
    assert value("exact", "今日は晴れ", "x", "y", "今日は晴れ") == 0.5


HOSTILE = {
    "empty": "",
    "half a character": "\ud800" * 50 + "あ",
    "nothing seen": "\u200b\x00\x1b[2J",
    "grows in NFKC": "\ufdfa" * 20_000,
    "a megabyte of one": "a" * 1_000_000,
    "a megabyte of kana": "あ" * 1_000_000,
    "a megabyte of marks": "\u0301" * 1_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", METRICS)
def test_any_text_has_a_value_soon(name, text):
    began = time.process_time()
    output = {"finish_reason": "stop", "response_tokens": 3, "failed_checks": []}
    found = value(name, text, text[:-1], references=(text, "今日"), source=text, **output)
    assert name == "logprob" or found is None or 0 <= found <= 1_000_000
    assert time.process_time() - began < 3


# --- which of them a job has


def chosen(table, check=CheckTable(), tokenizer=Letters()):  # noqa: B008
    scorer = Scorer(table.scorer) if table.scorer else None
    return choose(table, tools_of(table, check, tokenizer), scorer)


@pytest.fixture
def without_sacrebleu(monkeypatch):
    monkeypatch.setattr(metrics.chrf, "find", lambda: None)


@pytest.fixture
def scorer(tmp_path):
    file = tmp_path / "my.py"
    file.write_text("def score(row, response): return 1\ndef exact(row, response): return 1\n")
    return f"{file}:score"


OF_REFERENCE = {"exact", "exact_folded", "chrf", "rouge_l"}


def test_by_default_there_is_every_one_that_can_be_had():
    assert chosen(MetricsTable()) == (
        {name: METRICS[name] for name in METRICS if name not in OF_REFERENCE | {"language", "script"}},
        [],
    )
    assert set(chosen(MetricsTable(reference="r")).kinds) == set(METRICS) - {"language", "script"}
    assert set(chosen(MetricsTable(reference="r", language="Japanese")).kinds) == set(METRICS)
    assert set(chosen(MetricsTable(reference="r"), CheckTable(language="ja")).kinds) == set(METRICS)


def test_what_is_left_out_for_want_of_a_package_is_told(without_sacrebleu):
    kinds, notes = chosen(MetricsTable(reference="r"))
    assert "chrf" not in kinds and "rouge_l" in kinds
    assert notes == ["left out: chrf, agreement_chrf: sacrebleu is not installed: pip install sacrebleu"]


def test_without_a_tokenizer_there_is_none_that_counts_tokens():
    kinds, notes = chosen(MetricsTable(reference="r"), tokenizer=None)
    assert not {"rouge_l", "seq_rep_4", "distinct_1", "distinct_2"} & set(kinds)
    assert notes == ["left out: rouge_l, seq_rep_4, distinct_1, distinct_2: the model's tokenizer is not at hand"]


def test_those_that_are_asked_for(scorer):
    assert list(chosen(MetricsTable(use=["empty", "agreement", "empty"])).kinds) == ["empty", "agreement"]
    assert list(chosen(MetricsTable(use=["empty"], best="finish_stop")).kinds) == ["empty", "finish_stop"]
    assert list(chosen(MetricsTable(use=["score.a", "empty"], scorer=scorer)).kinds) == ["empty"]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"use": ["chrff"]}, "[metrics] use: 'chrff' is none; did you mean chrf?"),
        ({"best": "finish_stp"}, "[metrics] best: 'finish_stp' is none; did you mean finish_stop?"),
        ({"best": "response_tokens"}, "[metrics] best: neither more nor less of response_tokens is better"),
        ({"use": ["empty"], "best": "chrff"}, "[metrics] best: 'chrff' is none; did you mean chrf?"),
        ({"use": ["chrf"]}, "[metrics] use: chrf: set [metrics] reference to the column with the right answer"),
        ({"use": ["script"]}, "[metrics] use: script: set [metrics] language, to ja or en for instance"),
        ({"language": "jp"}, "[metrics] language: 'jp' is no language: did you mean ja?"),
        ({"use": ["scor"]}, "[metrics] use: 'scor' is none; did you mean script?"),
    ],
)
def test_what_cannot_be_is_told(table, told):
    with pytest.raises(JobError) as caught:
        chosen(MetricsTable(**table))
    assert str(caught.value) == told


def test_chrf_without_sacrebleu_is_told(without_sacrebleu):
    with pytest.raises(JobError) as caught:
        chosen(MetricsTable(reference="r", use=["chrf"]))
    assert str(caught.value) == "[metrics] use: chrf: sacrebleu is not installed: pip install sacrebleu"


def test_two_languages_of_one_script_without_what_tells_them_apart(monkeypatch):
    def missing(*languages):
        raise JobError("en and de have one script, and py3langid is not installed")

    monkeypatch.setattr(languages, "_identifier", missing)
    kinds, notes = chosen(MetricsTable(language="de"), CheckTable(source_language="en"))
    assert "script" in kinds and "language" not in kinds
    assert notes == ["left out: language: en and de have one script, and py3langid is not installed"]


def test_a_scorer_may_not_have_the_name_of_a_metric(scorer):
    with pytest.raises(JobError, match="there is a metric exact already; give your function another name"):
        chosen(MetricsTable(scorer=scorer.replace(":score", ":exact")))


def test_what_chooses_by_default(scorer):
    own = Scorer(scorer)
    every = ["score.a", *METRICS]
    assert best_of(MetricsTable(), every, own) == "score.a"
    assert best_of(MetricsTable(), every, None) == "chrf"
    assert best_of(MetricsTable(), ["exact_folded", "empty", "rouge_l"], None) == "rouge_l"
    assert best_of(MetricsTable(), ["finish_stop", "failed_checks"], None) == "failed_checks"
    assert best_of(MetricsTable(), ["empty"], None) == ""
    assert best_of(MetricsTable(best="empty"), ["empty", "chrf"], None) == "empty"
    assert best_of(MetricsTable(best="logprob"), ["empty"], None) == ""
