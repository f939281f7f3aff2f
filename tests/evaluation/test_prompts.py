"""Prompts of the model card's tasks: written out by hand, in the fork's order, with the fork's examples."""

import random

import card_data
import pytest

from batchgen.evaluation import data, prompts
from batchgen.evaluation.data import Example

# The first document that is asked of each: Random(42) puts [0, 1, 2, 3] into the order [2, 1, 3, 0], and [0, 1] into
# [1, 0], and draws the examples next.
READING = "ユーザー: 与えられた文脈から、質問に対する答えを抜き出してください。\nシステム: 分かりました。\n"
CHOICES = "選択肢：\n- 電車で行く\n- 歩いて行く\n- 船\n- 車で行く\n- 家にいる\n"
CONTEXTS = "文0\n文1\n文2\n文3\n文4\n文5\n文6\n文7\n文8\n文9"
FIRST = {
    "jcommonsenseqa": (
        "ユーザー: 与えられた選択肢の中から、最適な答えを選んでください。\nシステム: 分かりました。\n"
        f"ユーザー: 質問：問11は？\n{CHOICES}システム: 歩いて行く\n"
        f"ユーザー: 質問：問14は？\n{CHOICES}システム: 家にいる\n"
        f"ユーザー: 質問：問10は？\n{CHOICES}システム: 電車で行く\n"
        f"ユーザー: 質問：問2は？\n{CHOICES}システム: "
    ),
    "jnli": (
        "ユーザー: 与えられた前提と仮説の関係を回答してください。出力は以下から選択してください：\n含意\n矛盾\n中立\n"
        "システム: 分かりました。\n"
        "ユーザー: 前提：前11\n仮説：後11\nシステム: 矛盾\n"
        "ユーザー: 前提：前10\n仮説：後10\nシステム: 含意\n"
        "ユーザー: 前提：前12\n仮説：後12\nシステム: 中立\n"
        "ユーザー: 前提：前2\n仮説：後2\nシステム: "
    ),
    "marc_ja": (
        "ユーザー: 与えられた製品レビューを、ポジティブまたはネガティブの感情クラスのいずれかに分類してください。\n"
        "システム: 分かりました。\n"
        "ユーザー: 評11\nシステム: ポジティブ\n"
        "ユーザー: 評10\nシステム: ポジティブ\n"
        "ユーザー: 評12\nシステム: ネガティブ\n"
        "ユーザー: 評2\nシステム: "
    ),
    "jsquad": (
        f"{READING}"
        "ユーザー: 文脈：文11。\n質問：問11は？\nシステム: 京都\n"
        "ユーザー: 文脈：文10。\n質問：問10は？\nシステム: ﾄｳｷｮｳ\n"
        "ユーザー: 文脈：文2。\n質問：問2は？\nシステム: "
    ),
    "jaqket_v2": (
        f"{READING}"
        f"ユーザー: 文脈：{CONTEXTS}\n質問：問10は？\nシステム: 骨川\n"
        f"ユーザー: 文脈：{CONTEXTS}\n質問：問1は？\nシステム: "
    ),
    "xwinograd_ja": "",
}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_prompt_of_a_task_is_the_forks(name, tmp_path):
    [first, *others] = prompts.documents(card_data.write(tmp_path), name)
    assert first["prompt"] == FIRST[name]
    assert len(others) == (1 if name in ("jaqket_v2", "xwinograd_ja") else 3)


def test_a_document_has_its_answers_and_the_number_of_the_right_choice(tmp_path):
    folder = card_data.write(tmp_path)
    first = prompts.documents(folder, "jnli")[0]
    assert (first["choices"], first["gold"], first["answers"]) == (["含意", "矛盾", "中立"], 2, ["中立"])
    first = prompts.documents(folder, "xwinograd_ja")[0]
    assert (first["choices"], first["gold"]) == (["猫は彼女のが好き1。", "猫は彼が好き1。"], 0)
    first = prompts.documents(folder, "jsquad")[0]
    assert (first["choices"], first["gold"], first["answers"]) == ([], -1, ["大阪"])


def test_one_generator_shuffles_the_documents_and_then_draws_the_examples_of_each():
    tested = [Example(f"t{number}", ["a"], []) for number in range(30)]
    shown = [Example(f"s{number}", ["a"], []) for number in range(40)]
    drawn = [
        (example.question, [each.question for each in found]) for example, found in prompts.drawn(tested, shown, 2)
    ]
    assert sorted(question for question, _ in drawn) == sorted(example.question for example in tested)
    generator = random.Random(42)
    order = list(range(30))
    generator.shuffle(order)
    assert drawn == [(f"t{at}", [f"s{number}" for number in generator.sample(range(40), 2)]) for at in order]


def test_without_shots_no_training_file_is_needed(tmp_path):
    card_data.write(tmp_path)
    assert data.FILES["xwinograd_ja"].train == ()
    assert len(prompts.documents(tmp_path, "xwinograd_ja")) == 2
