"""Small files of the datasets of the model card's tasks, in the form in which they were published."""

import json
from pathlib import Path
from typing import Any


def commonsense(number: int, label: int) -> dict[str, Any]:
    """Its third choice is the shortest."""
    choices = ["電車で行く", "歩いて行く", "船", "車で行く", "家にいる"]
    return {"q_id": number, "question": f"問{number}は？", "label": label} | {
        f"choice{at}": choice for at, choice in enumerate(choices)
    }


def inference(number: int, label: str) -> dict[str, Any]:
    row = {"sentence_pair_id": f"{number}", "yjcaptions_id": f"{number}_1", "label": label}
    return row | {"sentence1": f"前{number}", "sentence2": f"後{number}"}


def review(number: int, label: str) -> dict[str, Any]:
    return {"review_id": f"R{number}", "sentence": f"評{number}", "label": label}


def article(number: int, answers: list[str]) -> dict[str, Any]:
    found = [{"text": answer, "answer_start": 0} for answer in answers]
    asked = {"id": f"a{number}", "question": f"問{number}は？", "answers": found, "is_impossible": False}
    return {"title": f"題{number}", "paragraphs": [{"context": f"題{number} [SEP] 文{number}。", "qas": [asked]}]}


def quiz(number: int, answers: list[str], contexts: int = 12) -> dict[str, Any]:
    found = [
        {"id": f"{at}", "title": f"題{at}", "text": f"文{at}", "score": "1.5", "has_answer": False}
        for at in range(contexts)
    ]
    return {"qid": f"Q{number}", "question": f"問{number}は？", "answers": answers, "ctxs": found}


def write(folder: Path) -> Path:
    """All of them. A model that takes the shortest choice, the first of equally long ones, and writes トウキョウ, is
    right in 3 of 4 of jcommonsenseqa, 2 of 4 of jnli, 3 of 4 of marc_ja, 1 of 4 of jsquad, 1 of 2 of jaqket_v2 and 1 of
    2 of xwinograd_ja."""
    shown = [commonsense(number, number % 5) for number in range(10, 15)]
    lines(folder / "jcommonsenseqa-v1.1/train-v1.1.json", shown)
    lines(
        folder / "jcommonsenseqa-v1.1/valid-v1.1.json",
        [commonsense(at, right) for at, right in enumerate([2, 2, 2, 0])],
    )
    labels = ["entailment", "contradiction", "neutral", "entailment"]
    lines(folder / "jnli-v1.1/train-v1.1.json", [inference(10 + at, label) for at, label in enumerate(labels)])
    lines(folder / "jnli-v1.1/valid-v1.1.json", [inference(at, label) for at, label in enumerate(labels)])
    labels = ["positive", "positive", "negative", "positive"]
    lines(folder / "marc_ja-v1.0/train-v1.0.json", [review(10 + at, label) for at, label in enumerate(labels)])
    lines(folder / "marc_ja-v1.0/valid-v1.0.json", [review(at, label) for at, label in enumerate(labels)])
    answers = [["ﾄｳｷｮｳ", "都"], ["京都"], ["大阪"], ["奈良"]]
    squad(folder / "jsquad-v1.1/train-v1.1.json", [article(10 + at, each) for at, each in enumerate(answers)])
    squad(folder / "jsquad-v1.1/valid-v1.1.json", [article(at, each) for at, each in enumerate(answers)])
    whole(folder / "train_jaqket_59.350.json", [quiz(10, ["骨川"]), quiz(11, ["源"])])
    whole(folder / "dev_jaqket_59.350.json", [quiz(0, ["都", "トウキョウ〜"]), quiz(1, ["京都"])])
    schemas = [("1", "彼", "彼女の"), ("1", "彼女の", "彼")]
    rows = [
        {"sentence": f"猫は_が好き{at}。", "option1": first, "option2": second, "answer": answer}
        for at, (answer, first, second) in enumerate(schemas)
    ]
    lines(folder / "xwinograd/test/jp.jsonl", rows)
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def squad(path: Path, articles: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "1.1", "data": articles}, ensure_ascii=False), "utf-8")


def whole(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
