from reported import Parsed, answered

from batchgen.report.make import page_of


def scored(row: int, best: int, right: bool | None, perplexity: float | None = None) -> dict:
    texts = ["yes", "no"] if perplexity is None else ["yes"]
    scores = [
        {"text": text, "logprob": -1.25 * (1 + abs(at - best)), "tokens": 3, "greedy": at == best}
        for at, text in enumerate(texts)
    ]
    return {
        "id": f"s{row}",
        "row": row,
        "conversation": [{"speaker": "ユーザー", "text": f"question {row}"}],
        "prompt_tokens": 5,
        "truncated": 0,
        "scores": scores,
        "best": best,
        "right": right,
        "perplexity": perplexity,
    }


def test_the_likeliest_is_named_and_the_wrong_ones_come_first_if_asked_for(tmp_path):
    rows = [scored(0, 0, True), scored(1, 1, False), scored(2, 1, True), scored(3, 0, None)]
    page = Parsed(page_of([answered(tmp_path / "out", [rows], score={"mode": "choices", "column": "text"})]))
    worst = max(page.data["cases"], key=lambda case: case.get("b", 0))
    assert worst["i"] == "s1" and worst["f"] == ["wrong", "likeliest"]
    assert [answer.get("f") for answer in worst["a"]] == [None, ["likeliest", "wrong"]]
    assert "66.7 %" in page.texts and "log probability -1.25" in page.texts


def test_a_text_that_cannot_be_is_no_obstacle(tmp_path):
    row = scored(0, 0, None)
    row["scores"][1] |= {"logprob": float("-inf"), "logprob_per_token": float("nan")}
    page = Parsed(page_of([answered(tmp_path / "out", [[row]], score={"mode": "choices", "column": "text"})]))
    assert "log probability -inf, a token nan" in page.texts


def test_perplexities_are_told_by_their_median_whatever_they_are(tmp_path):
    values = [2.0, 20.0, 40.0, float("inf"), float("nan")]
    rows = [scored(row, 0, None, value) for row, value in enumerate(values)]
    page = Parsed(page_of([answered(tmp_path / "out", [rows], shard_rows=5, score={"mode": "text"})]))
    assert "median perplexity20" in page.texts
