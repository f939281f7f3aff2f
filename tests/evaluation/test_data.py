"""The datasets' own files: found by their usual names, read, and refused in one line if they are of another form."""

import card_data
import pytest

from batchgen.errors import JobError
from batchgen.evaluation import data
from batchgen.evaluation.card import TASKS

VALID = {
    "jcommonsenseqa": "jcommonsenseqa-v1.1/valid-v1.1.json",
    "jnli": "jnli-v1.1/valid-v1.1.json",
    "marc_ja": "marc_ja-v1.0/valid-v1.0.json",
    "jsquad": "jsquad-v1.1/valid-v1.1.json",
    "jaqket_v2": "dev_jaqket_59.350.json",
    "xwinograd_ja": "xwinograd/test/jp.jsonl",
}


@pytest.mark.parametrize("name", TASKS)
def test_files_are_found_in_folders_below(name, tmp_path):
    folder = card_data.write(tmp_path / "deep" / "datasets")
    assert data.find(tmp_path, name, data.VALID) == folder / VALID[name]


def test_of_several_versions_that_of_the_published_values_is_read(tmp_path):
    card_data.write(tmp_path)
    card_data.lines(tmp_path / "jnli-v1.3/valid-v1.3.json", [card_data.inference(9, "neutral")])
    assert data.find(tmp_path, "jnli", data.VALID) == tmp_path / VALID["jnli"]


def test_two_files_of_which_neither_is_preferred_are_refused(tmp_path):
    card_data.write(tmp_path)
    card_data.lines(tmp_path / "xwinograd/jp.jsonl", [])
    with pytest.raises(JobError, match=r"needs one of .*jp\.jsonl, .*jp\.jsonl; leave only one"):
        data.find(tmp_path, "xwinograd_ja", data.VALID)


@pytest.mark.parametrize("name", TASKS)
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(JobError, match=f"{tmp_path}: {name} needs .*json"):
        data.find(tmp_path, name, data.VALID)


def test_the_context_of_jsquad_is_what_stands_behind_its_last_separator(tmp_path):
    article = card_data.article(1, ["駅", "駅前"])
    article["paragraphs"][0]["context"] = "題 [SEP] 副題 [SEP]  本文。 "
    card_data.squad(tmp_path / "valid.json", [article])
    [example] = data.read(tmp_path / "valid.json", "jsquad")
    assert example == data.Example("文脈：本文。\n質問：問1は？", ["駅", "駅前"], [])


def test_jaqket_may_be_json_lines_as_well_as_one_list(tmp_path):
    rows = [card_data.quiz(0, ["骨川"]), card_data.quiz(1, ["源"], contexts=3)]
    card_data.whole(tmp_path / "dev.json", rows)
    card_data.lines(tmp_path / "dev.jsonl", rows)
    read = data.read(tmp_path / "dev.json", "jaqket_v2")
    assert read == data.read(tmp_path / "dev.jsonl", "jaqket_v2")
    assert read[1].question == "文脈：文0\n文1\n文2\n質問：問1は？"


@pytest.mark.parametrize(
    "name, content",
    [
        ("jp.jsonl", '{"sentence1": "猫が好き。", "sentence2": "犬が好き。", "answer": 2}\n'),
        ("jp.jsonl", '{"sentence": "_が好き。", "option1": "猫", "option2": "犬", "answer": "2"}\n'),
        ("jp.tsv", "sentence\toption1\toption2\tanswer\n_が好き。\t猫\t犬\t2\n"),
    ],
    ids=["sentences", "options", "tsv"],
)
def test_xwinograd_is_read_in_each_of_its_forms(name, content, tmp_path):
    (tmp_path / name).write_text(content, "utf-8")
    [example] = data.read(tmp_path / name, "xwinograd_ja")
    assert (example.choices, example.gold) == (["猫が好き。", "犬が好き。"], 1)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("jnli", '{"sentence1": "a", "sentence2": "b"}', "row 0: not of the form of jnli: no 'label'"),
        ("jnli", '{"sentence1": "a", "sentence2": "b", "label": "maybe"}', "'label' is 'maybe', not entailment or"),
        ("jnli", '{"sentence1": 1, "sentence2": "b", "label": "neutral"}', "'sentence1' is 1, not a text"),
        ("jnli", '{"sentence1": "a", "sentence2": "b", "label": "neutral"}\n{', "row 1: not JSON"),
        ("jnli", "[1]", "row 0: not of the form of jnli"),
        ("jnli", "\n", "no examples of jnli in it"),
        ("jcommonsenseqa", '{"question": "q", "choice0": "a", "label": 0}', "no 'choice1'"),
        ("marc_ja", '{"sentence": "a", "label": []}', "row 0: not of the form of marc_ja"),
        ("jsquad", '{"version": "1.1"}', "not of SQuAD's form, an object with a list 'data'"),
        ("jsquad", '{"data": [{"title": "t"}]}', "row 0: not of the form of jsquad: no 'paragraphs'"),
        ("jaqket_v2", '{"question": "q", "answers": "a", "ctxs": []}', "'answers' is not a list of texts"),
        ("jaqket_v2", '{"question": "q", "answers": [], "ctxs": []}', "a question has no answers"),
        ("jaqket_v2", '{"qid": "q", "question": "q", "answers": ["a"]}', "no 'ctxs'"),
        ("xwinograd_ja", '{"sentence": "a", "option1": "b", "option2": "c", "answer": "1"}', "has no _ in the place"),
        ("xwinograd_ja", '{"sentence1": "a", "sentence2": "c", "answer": "3"}', "'answer' is '3', not 1 or 2"),
    ],
)
def test_a_file_of_another_form_is_one_line_with_file_and_row(name, content, said, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(content, "utf-8")
    with pytest.raises(JobError) as caught:
        data.read(path, name)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert len(caught.value.lines) == 1


def test_a_file_that_is_not_utf8_is_one_line(tmp_path):
    (tmp_path / "file.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(JobError, match="not UTF-8 at byte 7"):
        data.read(tmp_path / "file.json", "jnli")
