"""The page as whoever opens it gets it: what it says, and that nothing of the data becomes a part of it."""

import base64
import hashlib
import json
import random
import re
from collections import Counter

from reported import Parsed, answered, reject, response

from batchgen.report.make import page_of

# In one text all that may end an element, an attribute, a script, a style or a comment, or make another one.
HOSTILE = "<img src=x onerror=alert(1)></script></style></title>--><!--]]>\"'`><svg/onload=1>&lt;\u2028\u202e\x1b[2J\0"
HOSTILE_ID = f"i{HOSTILE}"


def hostile(out, text):
    rows = [
        response(
            row,
            text,
            id=f"{row}{text}",
            conversation=[{"speaker": text, "text": text}],
            finish_reason=text if row else "stop",
            response_tokens=5,
        )
        for row in range(3)
    ]
    model = {"name": text, "revision": text, "digests": {text: text}}
    made_by = {name: text for name in ("dtype", "device", "runner", "noise")}
    made_by |= {"model": model, "versions": {text: text}}
    rejected = [reject(3, text, text, text)]
    return answered(out, [rows], rejects=rejected, made_by=made_by)


def test_nothing_of_the_data_becomes_markup(tmp_path):
    """The page of hostile data has the elements and attributes of the page of plain data, and no others."""
    plain = Parsed(page_of([hostile(tmp_path / "plain", "plain")]))
    page = Parsed(page_of([hostile(tmp_path / "hostile", HOSTILE)]))
    assert page.tags == plain.tags
    names = lambda parsed: Counter(name for name, _ in parsed.attributes)  # noqa: E731
    assert names(page) - Counter({"lang": 99}) == names(plain) - Counter({"lang": 99})
    assert not any(
        name.startswith("on") or "alert" in (value or "") for name, value in page.attributes if name != "title"
    )
    assert "<img src=x onerror=alert(1)></script>" in page.texts


def test_control_characters_and_directions_are_made_visible(tmp_path):
    page = page_of([hostile(tmp_path / "out", HOSTILE)]).decode()
    parsed = Parsed(page.encode())
    for text in (page, json.dumps(parsed.data, ensure_ascii=False)):
        assert not re.search("[\0\x1b\u2028\u202e]", text)
    assert "⟨U+202E⟩" in parsed.texts and "␛[2J" in parsed.texts


def test_only_the_pages_own_style_and_script_may_run(tmp_path):
    page = page_of([answered(tmp_path / "out", [[response(0)]])])
    parsed = Parsed(page)
    [policy] = [value for name, value in parsed.attributes if name == "content" and "default-src" in value]
    digests = re.findall(r"'sha256-([^']+)'", policy)
    own = [parsed.scripts[0], parsed.scripts[2]]
    assert digests == [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in own]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert not [value for name, value in parsed.attributes if name in ("style", "src", "href")]


def test_it_names_nothing_of_this_machine(tmp_path):
    page = page_of([answered(tmp_path / "out", [[response(0)]], rejects=[reject(1)])]).decode()
    assert str(tmp_path) not in page and "out.jsonl:2" in page


def test_it_shows_what_the_job_came_to(tmp_path):
    rows = [
        *(response(row, "x" * row) for row in range(6)),
        response(6, "cut", finish_reason="length"),
    ]
    out = answered(tmp_path / "out", [rows[:4], rows[4:]], rejects=[reject(7, "too_long", "far too long")])
    page = Parsed(page_of([out]))
    assert "7 of 8 rows answered by made-up" in page.texts
    for said in ("85.7 %", "too_long", "far too long", "out.jsonl:8", "float32", "SplitMix64"):
        assert said in page.texts
    assert ["length", 1] in page.data["tags"] and len(page.data["cases"]) == 7


def test_the_first_samples_are_there_without_the_script(tmp_path):
    out = answered(tmp_path / "out", [[response(row, f"answer {row}") for row in range(40)]], shard_rows=40)
    page = Parsed(page_of([out]))
    shown = {f"answer {row}" for row in range(40) if f"answer {row}<" in page_of([out]).decode()}
    assert len(shown) == 20 and page.tags["article"] == 20
    assert [case["i"] for case in page.data["cases"]][:20] == re.findall(r"r\d+(?=row)", page.texts)


def test_an_unfinished_job_says_so(tmp_path):
    out = answered(tmp_path / "out", [[response(row) for row in range(4)]], rows=12)
    page = Parsed(page_of([out]))
    assert "out is not finished: 2 of its 3 shards are missing" in page.texts and "4 of 12 rows" in page.texts


def test_a_job_that_has_nothing_yet_has_a_page(tmp_path):
    page = Parsed(page_of([answered(tmp_path / "out", [], rows=12)]))
    assert "3 of its 3 shards are missing" in page.texts and page.tags["article"] == 0


def test_the_worst_are_among_the_samples_and_come_first_if_asked_for(tmp_path):
    shards = [
        [response(row, finish_reason="length" if row == 3999 else "stop") for row in range(begin, begin + 1000)]
        for begin in range(0, 4000, 1000)
    ]
    cases = Parsed(page_of([answered(tmp_path / "out", shards, shard_rows=1000)])).data["cases"]
    assert len(cases) == 1000
    assert [case["r"] for case in cases if case.get("b")] == [3999]


def test_a_page_stays_small_whatever_the_texts_are(tmp_path):
    signs = [chr(code) for code in range(0x4E00, 0x9F00)]
    noise = random.Random(1).choices(signs, k=3_000_000)  # which compresses to two bytes a sign
    rows = [response(row, "".join(noise[row * 3000 : (row + 1) * 3000])) for row in range(1000)]
    page = page_of([answered(tmp_path / "out", [rows], shard_rows=1000)])
    assert len(page) < 5_000_000 and len(Parsed(page).data["cases"]) < 1000
    assert "further samples were left out" in Parsed(page).texts


def test_columns_of_the_input_that_are_called_like_batchgens_own_are_no_obstacle(tmp_path):
    brought = {name: f"the input's {name}" for name in ("setting", "tries", "failed_checks")}
    rows = [response(row, **brought) for row in range(4)]
    out = answered(tmp_path / "out", [rows], given=brought, output={"columns": list(brought)})
    assert len(Parsed(page_of([out])).data["cases"]) == 4


# --- several outputs


def pair(tmp_path, second):
    one = answered(tmp_path / "one", [[response(row, f"text {row}") for row in range(4)]])
    return page_of([one, answered(tmp_path / "two", [second])])


def test_two_outputs_are_joined_on_ids(tmp_path):
    second = [response(row, "text 1" if row == 2 else "another", id=f"r{3 - row}") for row in range(4)]
    page = Parsed(pair(tmp_path, second))
    found = {case["i"]: [(answer["t"]["p"][0][0], answer["g"]) for answer in case["a"]] for case in page.data["cases"]}
    assert found["r1"] == [("text 1", [0, 1])]
    assert found["r2"] == [("text 2", [0]), ("another", [1])]
    assert page.data["groups"] == ["one", "two"] and {tag for tag, _ in page.data["tags"]} >= {"same", "differs"}
    assert "1 of 4 rows that all of them have (25.0 %)" in page.texts


def test_answers_are_the_same_however_many_samples_there_are(tmp_path):
    one = answered(tmp_path / "one", [[response(0, "a"), response(1, "b")]])
    rows = [response(row, text, sample=at) for row in (0, 1) for at, text in enumerate("aa" if row == 0 else "bc")]
    page = Parsed(page_of([one, answered(tmp_path / "two", [rows])]))
    assert "1 of 2 rows that all of them have (50.0 %)" in page.texts
    assert sorted(tag for case in page.data["cases"] for tag in case["f"] if tag != "stop") == ["differs", "same"]


def test_outputs_of_which_one_has_checks_are_compared(tmp_path):
    checked = [response(row, tries=2, failed_checks=["empty"]) for row in range(4)]
    one = answered(tmp_path / "one", [checked], check={"checks": ["empty"]})
    page = Parsed(page_of([one, answered(tmp_path / "two", [[response(row) for row in range(4)]])]))
    assert ["fails empty", 4] in page.data["tags"] and "Failed checks" in page.texts


def test_outputs_are_measured_beside_each_other(tmp_path):
    page = Parsed(pair(tmp_path, [response(row, "x", finish_reason="length") for row in range(4)]))
    assert "2 outputs on 4 rows" in page.texts and "finish_length" in page.texts


def test_outputs_without_a_common_row_are_told(tmp_path):
    page = Parsed(pair(tmp_path, [response(row, id=f"other {row}") for row in range(4)]))
    assert "No row is in all of them" in page.texts


def test_outputs_of_one_name_are_numbered(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        answered(tmp_path / name / "out", [[response(0)]])
    page = Parsed(page_of([tmp_path / "a" / "out", tmp_path / "b" / "out"]))
    assert page.data["groups"] == ["out (1)", "out (2)"]
