"""The task of translating: what it asks, what it makes of answers, and that all else of a record stays."""

import contextlib
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MODEL
from translator import Translator, job_of, work

from batchgen.errors import JobError, Stopped
from batchgen.job.sampling import item_seed
from batchgen.output import layout

ROLE = pa.dictionary(pa.int32(), pa.string())
JA = {"Hello.": "こんにちは。", "Good night.": "おやすみなさい。", "See you.": "またね。"}


def says(text, attempt):
    return JA[text]


def read(job, *columns) -> list[dict]:
    return pq.read_table(sorted(Path(job.out.location).glob("part-*.parquet"))).to_pylist()


def segments(job) -> list[dict]:
    return pq.read_table(sorted(Path(job.out.location).glob("_segments/part-*.parquet"))).to_pylist()


def rejects(job) -> list[dict]:
    files = sorted(Path(job.out.location).glob("_rejects/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture
def lines(tmp_path):
    def write(*lines: str | dict, name: str = "in.jsonl") -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_bytes("".join(f"{text}\n" for text in texts).encode())
        return path

    return write


@pytest.fixture
def translate(tmp_path):
    """Translates a file; gives engine and job."""

    def run(path, fields, says=says, out="out", **tables):
        job, engine = job_of([path], tmp_path / out, fields, **tables), Translator(says)
        work(job, engine)
        return engine, job

    return run


# --- the record


def test_the_chosen_texts_are_replaced_and_every_other_byte_of_a_line_stays(lines, translate):
    before = (
        '{"a" : 1.0,\t"text":"Hello.", "n": 12345678901234567890, "more": [{"text":"See you."}], "u": "\\u3042\\/"}'
    )
    _, job = translate(lines(before), ["text", "more[*].text"])
    [row] = read(job)
    assert row["record"] == before.replace("Hello.", JA["Hello."]).replace("See you.", JA["See you."])
    assert (row["id"], row["row"]) == ("0", 0)
    assert row["translation"] == {"segments": 2, "failed": 0, "tries": 2, "checks": []}


def test_a_columnar_input_keeps_its_schema_and_gets_one_column(tmp_path, translate):
    schema = pa.schema(
        [
            pa.field("id", pa.int16(), nullable=False, metadata={"what": "number"}),
            (
                "turns",
                pa.large_list(pa.struct([("role", ROLE), ("text", pa.string())])),
            ),
            ("at", pa.timestamp("ns", "Asia/Tokyo")),
        ]
    )
    rows = [{"id": 7, "turns": [{"role": "user", "text": "Hello."}, None, {"role": None, "text": None}], "at": 1}]
    rows += [{"id": 8, "turns": None, "at": None}, {"id": 9, "turns": [], "at": 1_700_000_000_000_000_001}]
    table = pa.Table.from_pylist(rows, schema.remove_metadata())
    pq.write_table(table, path := tmp_path / "in.parquet")
    _, job = translate(path, ["turns[*].text"])
    made = pq.read_table(next(Path(job.out.location).glob("part-*.parquet")))
    assert made.schema.remove(made.schema.names.index("translation")).equals(table.schema)
    assert made["at"].equals(table["at"]) and made["id"].equals(table["id"])
    assert made["turns"].to_pylist() == [
        [{"role": "user", "text": "こんにちは。"}, None, {"role": None, "text": None}],
        None,
        [],
    ]


def test_a_dictionary_whose_index_is_too_small_for_the_new_texts_is_no_trouble(tmp_path, translate):
    texts = pa.array([f"text {number}" for number in range(100)] * 3).cast(pa.dictionary(pa.int8(), pa.string()))
    pq.write_table(pa.table({"text": texts, "n": range(300)}), path := tmp_path / "in.parquet")
    answers = iter(range(1000))
    _, job = translate(path, ["text"], lambda text, attempt: f"訳 {next(answers)}", output={"shard_rows": 300})
    assert sorted({row["text"] for row in read(job)}) == sorted(f"訳 {number}" for number in range(100))


def test_a_row_without_a_chosen_text_stays_as_it_is_and_asks_nothing(lines, translate):
    engine, job = translate(lines({"text": "Hello."}, {"other": 1}, {"text": None}, {"text": " "}), ["text"])
    assert engine.asked == [("Hello.", 0)]
    assert [json.loads(row["record"]) for row in read(job)[1:]] == [{"other": 1}, {"text": None}, {"text": " "}]


def test_white_space_around_texts_and_lines_is_the_source_s(lines, translate):
    _, job = translate(lines({"text": "\n  Hello.\n\n\tSee you. \n"}), ["text"])
    assert json.loads(read(job)[0]["record"]) == {"text": "\n  こんにちは。\n\n\tまたね。 \n"}


def test_the_identity_gives_every_line_back(lines, translate):
    given = [
        '{"text": "\\u3042 \\ud83d\\ude00 x", "k": [1, 2.50, "y"]}',
        '  {"k":{"text":"z"},"text":"# Head\\n\\n- one\\n- two\\n\\n```py\\nprint(1)\\n```"}',
        '{"text":"| a | b |\\n|---|---|\\n| c | d |"}',
    ]
    _, job = translate(lines(*given), ["text"], lambda text, attempt: text, translate={"into": "English"})
    assert [row["record"] for row in read(job)] == given


# --- requests


def test_equal_segments_are_asked_for_once_and_counted(lines, translate):
    engine, job = translate(lines({"text": "Hello."}, {"text": "See you.\nHello."}), ["text"])
    assert sorted(engine.asked) == [("Hello.", 0), ("See you.", 0)]
    assert {row["source"]: row["uses"] for row in segments(job)} == {"Hello.": 2, "See you.": 1}


def test_a_segment_has_the_same_seed_in_every_row_and_shard(lines, translate):
    engine, job = translate(lines({"text": "Hello."}, {"text": "Hello."}), ["text"], output={"shard_rows": 1})
    assert len({seed for _, _, _, seed in engine.requests}) == 1
    keys = {row["key"] for row in segments(job)}
    assert [item_seed(0, key, 0) for key in keys] == [engine.requests[0][3]]


def test_what_else_is_in_the_prompt_changes_the_seed(lines, translate):
    engine, _ = translate(lines({"text": "Hello.\nHello."}), ["text"], lambda text, attempt: JA["Hello."])
    assert len(engine.asked) == 1
    engine, _ = translate(
        lines({"text": "Hello.\nHello."}),
        ["text"],
        lambda text, attempt: JA["Hello."],
        out="context",
        template="{before}|{text}",
        translate={"context": 1},
    )
    assert sorted(text for text, _ in engine.asked) == ["Hello.|Hello.", "|Hello."]
    assert len({seed for _, _, _, seed in engine.requests}) == 2


def test_max_tokens_comes_from_the_segment(lines, translate):
    engine, job = translate(lines({"text": "Hello."}, {"text": "See you."}), ["text"], sampling={"max_tokens": 10})
    assert {sampling.max_tokens for _, _, sampling, _ in engine.requests} == {10}
    engine, job = translate(lines({"text": "Hello."}), ["text"], out="two")
    [(_, _, sampling, _)] = engine.requests
    assert sampling.max_tokens == 3 * len(job.model.tokenizer.encode("Hello.")) + 32
    assert segments(job)[0]["sampling"]["max_tokens"] == sampling.max_tokens


# --- tries, and what becomes of failures


def test_a_segment_that_fails_is_tried_again_by_itself(lines, translate):
    def stumbles(text, attempt):
        return " " if text == "Hello." and attempt < 2 else JA[text]

    engine, job = translate(lines({"text": "Hello.\nSee you."}), ["text"], stumbles)
    assert sorted(engine.asked) == [("Hello.", 0), ("Hello.", 1), ("Hello.", 2), ("See you.", 0)]
    [row] = read(job)
    assert json.loads(row["record"]) == {"text": "こんにちは。\nまたね。"}
    assert row["translation"] == {"segments": 2, "failed": 0, "tries": 4, "checks": []}


ALL = {"checks": []}  # those that a translation has by itself
FAILS = {"Hello.": " ", "See you.": "またね。"}


@pytest.mark.parametrize(("policy", "text"), [("source", "Hello.\nまたね。"), ("null", None), ("best", "\nまたね。")])
def test_on_failure_says_what_stands_where_every_try_fails(lines, translate, policy, text):
    path = lines({"text": "Hello.\nSee you.", "other": "x"})
    _, job = translate(path, ["text"], lambda text, attempt: FAILS[text], translate={"on_failure": policy})
    [row] = read(job)
    assert json.loads(row["record"]) == {"text": text, "other": "x"}
    assert row["translation"] == {"segments": 2, "failed": 1, "tries": 4, "checks": ["empty"]}


def test_on_failure_reject_rejects_the_row_and_says_where(lines, translate):
    path = lines({"a": [{"text": "See you."}, {"text": "Hello."}]}, {"a": [{"text": "See you."}]})
    _, job = translate(path, ["a[*].text"], lambda text, attempt: FAILS[text], translate={"on_failure": "reject"})
    assert [row["row"] for row in read(job)] == [1]
    [line] = rejects(job)
    assert (line["row"], line["reason"]) == (0, "check_failed")
    assert line["detail"] == "a[1].text: empty: each of 3 tries failed"


def test_a_line_that_is_answered_by_two_fails(lines, translate):
    def chats(text, attempt):
        return JA[text] if attempt else f"{JA[text]}\n\nLet me know if you need more!"

    engine, job = translate(lines({"text": "Hello."}), ["text"], chats)
    assert json.loads(read(job)[0]["record"]) == {"text": "こんにちは。"}
    assert len(engine.asked) == 2


@pytest.mark.parametrize("answer", ['"こんにちは。"', "「こんにちは。」", " こんにちは。\n"])
def test_quotes_and_white_space_that_a_model_adds_are_dropped(lines, translate, answer):
    _, job = translate(lines({"text": "Hello."}), ["text"], lambda text, attempt: answer)
    assert json.loads(read(job)[0]["record"]) == {"text": "こんにちは。"}


SOURCE = "Ken bought 12 boxes of cookies for 30 dollars at the station."
RIGHT = "ケンさんは駅でクッキーを12箱、30ドルで買いました。"
WRONG = {
    "empty": (" ", "stop"),
    "truncated": (RIGHT[:-5], "length"),
    "repetition": ("12箱、30ドル。" + "ケンさんは、" * 20, "stop"),
    "copy": (SOURCE, "stop"),
    "language": ("Ken san wa eki de kukkii wo 12 hako, 30 doru de kaimashita.", "stop"),
    "length": (f"{RIGHT}12と30。" + "それはとても良い日で、みんなが駅の前で話していました。" * 4, "stop"),
    "numbers": (RIGHT.replace("12", "13"), "stop"),
}


@pytest.mark.parametrize("check", WRONG)
def test_each_kind_of_wrong_answer_is_caught_and_tried_again(lines, translate, check):
    path = lines({"text": SOURCE})
    engine, job = translate(path, ["text"], lambda text, attempt: WRONG[check] if not attempt else RIGHT, check=ALL)
    assert (len(engine.asked), json.loads(read(job)[0]["record"])) == (2, {"text": RIGHT})
    _, job = translate(path, ["text"], lambda text, attempt: WRONG[check], out="always", check=ALL)
    assert check in read(job)[0]["translation"]["checks"]
    assert json.loads(read(job)[0]["record"]) == {"text": SOURCE}


# --- protection


def test_what_is_protected_is_masked_and_comes_back(lines, translate):
    def keeps(text, attempt):
        return text.replace("See", "見て").replace("now", "今")

    engine, job = translate(
        lines({"text": "See https://example.org/a?b=1 now"}), ["text"], keeps, translate={"protect": ["url"]}
    )
    assert [text for text, _ in engine.asked] == ["See [1] now"]
    assert json.loads(read(job)[0]["record"]) == {"text": "見て https://example.org/a?b=1 今"}


def test_a_lost_mark_makes_the_next_try_split_the_text_there(lines, translate):
    engine, job = translate(
        lines({"text": "See https://example.org now"}),
        ["text"],
        lambda text, attempt: {"See": "見て", "now": "今"}.get(text, "見て今"),
        translate={"protect": ["url"]},
    )
    assert [text for text, _ in engine.asked] == ["See [1] now", "See", "now"]
    assert json.loads(read(job)[0]["record"]) == {"text": "見て https://example.org 今"}
    whole = next(row for row in segments(job) if row["source"] == "See https://example.org now")
    assert (whole["answer"], whole["failed_checks"], whole["tries"]) == ("見て https://example.org 今", [], 3)


def test_protect_by_split_splits_at_once(lines, translate):
    engine, job = translate(
        lines({"text": "See https://example.org now"}),
        ["text"],
        lambda text, attempt: {"See": "見て", "now": "今"}[text],
        translate={"protect": ["url"], "protect_by": "split"},
    )
    assert [text for text, _ in engine.asked] == ["See", "now"]
    assert json.loads(read(job)[0]["record"]) == {"text": "見て https://example.org 今"}


# --- glossary


def test_a_glossary_shows_what_occurs_and_tries_again_what_lacks_it(lines, translate, tmp_path):
    (tmp_path / "terms.tsv").write_text("shard\tシャード\nrow\t行\n", "utf-8")

    def forgets(text, attempt):
        return "シャードです。" if attempt else "かけらです。"

    engine, job = translate(
        lines({"text": "It is a shard."}),
        ["text"],
        forgets,
        template="{glossary}|{text}",
        translate={"glossary": str(tmp_path / "terms.tsv")},
    )
    assert [text for text, _ in engine.asked] == ["shard = シャード|It is a shard."] * 2
    assert json.loads(read(job)[0]["record"]) == {"text": "シャードです。"}


# --- memory


def test_a_second_night_with_memory_asks_nothing_and_gives_the_same(lines, translate, tmp_path):
    path = lines({"text": "Hello.\nSee you."}, {"text": "Good night."})
    _, first = translate(path, ["text"])
    engine, second = translate(path, ["text"], out="second", translate={"memory": [first.out.location]})
    assert engine.asked == []
    assert read(second) == read(first)
    assert segments(second) == segments(first)


def test_memory_saves_what_it_has_and_the_rest_is_generated(lines, translate):
    _, first = translate(lines({"text": "Hello."}), ["text"])
    path = lines({"text": "Hello.\nSee you."}, name="more.jsonl")
    engine, second = translate(path, ["text"], out="second", translate={"memory": [first.out.location]})
    assert engine.asked == [("See you.", 0)]
    assert json.loads(read(second)[0]["record"]) == {"text": "こんにちは。\nまたね。"}


def test_a_job_that_grows_does_not_generate_again_what_it_has(lines, translate, tmp_path):
    path = lines({"text": "Hello."})
    translate(path, ["text"], input={"incremental": True})
    with path.open("a") as file:
        file.write('{"text": "Hello.\\nSee you."}\n')
    engine, job = translate(path, ["text"], input={"incremental": True})
    assert engine.asked == [("See you.", 0)]
    assert len(read(job)) == 2


def test_a_memory_of_another_language_is_none_even_if_the_template_does_not_say_the_language(lines, translate):
    _, first = translate(lines({"text": "Hello."}), ["text"])
    tables = {"translate": {"into": "French", "memory": [first.out.location]}}
    engine, second = translate(lines({"text": "Hello."}), ["text"], lambda *_: "Bonjour.", out="second", **tables)
    assert engine.asked == [("Hello.", 0)]
    assert json.loads(read(second)[0]["record"]) == {"text": "Bonjour."}


def loses_marks(text, attempt):
    return {"See": "見て", "now": "今"}.get(text, "訳")


def test_the_pieces_of_a_segment_that_was_split_are_there_with_a_memory_as_without(lines, translate):
    path, url = lines({"text": "See https://example.org now"}), {"protect": ["url"]}
    _, first = translate(path, ["text"], loses_marks, translate=url)
    engine, second = translate(
        path, ["text"], loses_marks, out="second", translate={**url, "memory": [first.out.location]}
    )
    assert engine.asked == []
    assert [(row["source"], row["split"]) for row in segments(second)] == [
        ("See https://example.org now", True),
        ("See", False),
        ("now", False),
    ]
    assert segments(second) == segments(first)


def test_what_a_journal_has_stays_with_its_segment_while_the_memory_of_a_job_grows(lines, tmp_path):
    path, text = tmp_path / "in.jsonl", "See https://example.org now"
    tables = {"input": {"incremental": True}, "translate": {"protect": ["url"]}, "output": {"shard_rows": 1}}

    def night(text: str) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"text": text}) + "\n")

    def run(*which: int, stop_after: int = 0):
        job = job_of([path], tmp_path / "out", ["text"], **tables)
        shards = [job.plan.shards[number] for number in which]
        work(job, Translator(says), stop_after=stop_after, shards=shards)
        return job

    def says(text, attempt):
        return JA.get(text) or text.replace("See", "見て").replace("now", "今")

    night("Hello.")
    run(0)
    night(text)
    run()
    night(f"{text}\nHello.\nGood night.\nSee you.\nGood night.\n{text} now")
    with pytest.raises(Stopped):  # the third night's shard is begun before the second's is there
        run(2, stop_after=2)
    run(1)
    assert json.loads(read(run(2))[-1]["record"])["text"].splitlines() == [
        *("見て https://example.org 今", "こんにちは。", "おやすみなさい。", "またね。", "おやすみなさい。"),
        "見て https://example.org 今 今",
    ]


# --- stops


def bytes_of(job) -> dict[str, bytes]:
    out = Path(job.out.location)
    files = [*out.glob("part-*"), *out.glob("_segments/*"), *out.glob("_rejects/*"), out / "_SUCCESS"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


MIXED = [
    {"a": "Hello.\nSee you.", "b": "Go to https://example.org/1 soon"},
    {"a": "See you.", "b": "Good night. {name} of https://example.org/2"},
    {"a": "Hello.\n\n- Good night.\n- fails\n- Go to https://example.org/1 soon"},
]


def stumbles(text, attempt):
    """Fails some first tries, one always, and loses marks."""
    if text == "fails" or (text == "Hello." and not attempt):
        return " "
    return {**JA, "Go to": "行く先は", "soon": "すぐ", "of": "の"}.get(text, text.replace("[1]", ""))


@pytest.mark.parametrize("answers", range(1, 13))
def test_a_job_that_is_stopped_goes_on_and_writes_the_same_bytes(lines, tmp_path, answers):
    path = lines(*MIXED)
    tables = {"fields": ["a", "b"], "translate": {"protect": ["url", "placeholder"]}, "output": {"shard_rows": 2}}
    whole, all_at_once = job_of([path], tmp_path / "whole", **tables), Translator(stumbles)
    work(whole, all_at_once)
    first, second = Translator(stumbles), Translator(stumbles)
    with pytest.raises(Stopped):
        work(job_of([path], tmp_path / "out", **tables), first, stop_after=answers)
    job = job_of([path], tmp_path / "out", **tables)
    work(job, second)
    assert bytes_of(job) == bytes_of(whole)
    assert sorted(first.asked + second.asked) == sorted(all_at_once.asked)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_order_answers_come_in_and_whatever_journals_lose_the_bytes_are_the_same(lines, tmp_path, seed):
    path, chance = lines(*MIXED, *MIXED[::-1]), random.Random(seed)
    on_failure = ["source", "best", "null", "reject"][seed % 4]
    asked = {"protect": ["url", "placeholder"], "on_failure": on_failure}
    tables = {"translate": asked, "output": {"shard_rows": 4}, "check": {"tries": 1 + seed % 3}}
    whole = job_of([path], tmp_path / "whole", ["a", "b"], **tables)
    work(whole, Translator(stumbles))
    for stop_after in [*(chance.randrange(1, 6) for _ in range(4)), 0]:
        job = job_of([path], tmp_path / "out", ["a", "b"], **tables)
        with contextlib.suppress(Stopped):
            work(job, Translator(stumbles, order=chance), stop_after=stop_after)
        for journal in (tmp_path / "out" / layout.JOURNALS).glob("*"):
            written = journal.read_bytes()
            another = journal.with_name(f"{journal.name.partition('.')[0]}.other{seed}.journal")
            chance.choice([journal, another]).write_bytes(written[: chance.randrange(len(written) + 1)])
    assert bytes_of(job) == bytes_of(whole)


# --- checks of the user's own


def test_a_check_that_looks_at_the_path_judges_a_segment_at_each_path_by_itself(lines, translate, tmp_path):
    (tmp_path / "own.py").write_text("def check(row, response):\n    return 'bad' if row['path'] == 'a' else None\n")
    tables = {"check": {"checks": [f"{tmp_path}/own.py:check"]}}
    _, job = translate(lines({"a": "Hello.", "b": "Hello."}), ["a", "b"], **tables)
    assert json.loads(read(job)[0]["record"]) == {"a": "Hello.", "b": "こんにちは。"}
    assert [(row["path"], bool(row["failed_checks"])) for row in segments(job)] == [("a", True), ("b", False)]


# --- what is wrong with a job


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"translate": {"into": "Klingonese tongue"}}, "[translate] into: 'Klingonese tongue' is no language"),
        ({"translate": {"on_failure": "keep"}}, "[translate] on_failure: invalid enum value 'keep'"),
        ({"template": "Translate"}, "it names no column"),
        ({"template": "{txt}"}, "{txt} is not known; did you mean text?"),
        ({"template": "{from}"}, "{text} is missing"),
        ({"translate": {"context": 2}}, "{before} is missing for [translate] context"),
        ({"check": {"on_failure": "reject"}}, "[check] on_failure: what becomes of a translation"),
        ({"sampling": {"n": 2}}, "[sampling] n: a text is translated once"),
        ({"prompt": {"template": "{text}", "on_overlength": "clip"}}, "[prompt] on_overlength: clip would leave out"),
        ({"output": {"columns": ["other"]}}, "[output] columns and include"),
        ({"translate": {"protect": ["urls"]}}, "urls"),
        ({"translate": {"report": "row"}}, "[translate] report: the output has a column row already"),
        ({"input": {"format": "openai"}}, "[input] format: is for conversations"),
        ({"input": {"seed": "number"}}, "[input] seed: is for conversations"),
        ({"model": {"path": str(MODEL), "reasoning_parser": "qwen3"}}, "[model] reasoning_parser: max_tokens"),
        ({"model": {"path": str(MODEL), "adapter": {"ja": "x"}}}, "[model] adapter: one translates all texts"),
        ({"translate": {"memory": ["/nothing"]}}, "[translate] memory: /nothing: no batchgen output folder"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(lines, tmp_path, tables, says):
    path = lines({"text": "Hello."})
    with pytest.raises(JobError) as error:
        job_of([path], tmp_path / "out", ["text"], **tables)
    assert says in str(error.value)


def test_a_field_that_no_row_has_is_told(lines, tmp_path):
    with pytest.raises(JobError, match=r"\[translate\] fields: txt: no row has txt; did you mean text"):
        job_of([lines({"text": "Hello."})], tmp_path / "out", ["txt"])


def test_files_of_two_kinds_are_told(lines, tmp_path):
    pq.write_table(pa.table({"text": ["Hello."]}), other := tmp_path / "x.parquet")
    with pytest.raises(JobError, match="make a job of each"):
        job_of([lines({"text": "Hello."}), other], tmp_path / "out", ["text"])


def test_a_row_of_too_many_segments_is_rejected_by_itself(lines, translate):
    path = lines({"text": "Hello.\nSee you.\nHello."}, {"text": "Hello.\nSee you."})
    _, job = translate(path, ["text"], limits={"segments": 2})
    assert [row["row"] for row in read(job)] == [1]
    [line] = rejects(job)
    assert (line["reason"], line["detail"]) == (
        "too_large",
        "text: more than 2 segments, and [limits] segments allows no more",
    )


def test_a_row_that_is_no_record_is_rejected_by_itself(lines, translate):
    _, job = translate(lines({"text": "Hello."}, '{"text": ', "[1]"), ["text"])
    assert [row["row"] for row in read(job)] == [0]
    assert [line["row"] for line in rejects(job)] == [1, 2]
