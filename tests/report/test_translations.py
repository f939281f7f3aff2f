import msgspec
from reported import Parsed, answered
from translated import segment

from batchgen.report.make import page_of

ASKED = {"fields": ["text"], "from": "English", "into": "Chinese", "protect": ["url"]}
REPORT = {"segments": 1, "failed": 0, "tries": 1, "checks": []}


def cases(content: bytes) -> list[dict]:
    return Parsed(content).data["cases"]


def test_what_is_protected_is_kept_or_lost(tmp_path):
    both = segment("see https://a.example now", "看 https://a.example 吧")
    lost = segment("go to https://b.example now", "走吧")
    made = cases(make_page(tmp_path, [[both], [lost]]))
    sides = {case["q"][0][1]["p"][0][0]: (case["q"][0][1]["p"], case["a"][0]["t"]["p"]) for case in made}
    assert sides["see "][0][1] == ["https://a.example", "kept"] and ["https://a.example", "kept"] in sides["see "][1]
    assert sides["go to "][0][1] == ["https://b.example", "lost"]


def test_chinese_characters_are_the_language_that_is_translated_into(tmp_path):
    [case] = cases(make_page(tmp_path, [[segment("water", "水")]]))
    assert case["a"][0]["t"]["l"] == "zh"


def test_segments_that_fail_are_told_by_their_checks(tmp_path):
    failed = segment("a", "b", ["copy"], tries=3)
    content = make_page(tmp_path, [[failed, segment("c", "d")]])
    assert ["fails copy", 1] in Parsed(content).data["tags"]
    assert "3 tries" in Parsed(content).texts


def test_two_translations_are_joined_on_the_source_whatever_their_prompts(tmp_path):
    one, two = segment("water", "水"), msgspec.structs.replace(segment("water", "お水"), key="0" * 32)
    for name, row in (("one", one), ("two", two)):
        make_page(tmp_path, [[row]], name)
    [case] = cases(page_of([tmp_path / "one", tmp_path / "two"]))
    assert [(answer["t"]["p"][0][0], answer["g"]) for answer in case["a"]] == [("水", [0]), ("お水", [1])]


def make_page(folder, shards, name="out") -> bytes:
    """The page about a translation of these segments, shard by shard."""
    rows = [[{"id": f"{at}", "row": at, "record": "{}", "translation": REPORT}] for at in range(len(shards))]
    tables = {"translate": ASKED, "prompt": {"template": "{text}"}}
    return page_of([answered(folder / name, rows, shard_rows=1, segmented=shards, **tables)])
