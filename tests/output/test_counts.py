"""The accounting: how it adds up, and what it says."""

import msgspec

from batchgen.output.counts import Counts, by_reason
from batchgen.runner.messages import Totals


def test_counts_add_up_by_reason_in_the_order_in_which_reasons_were_seen():
    parts = [Counts(3, 2, {"too_long": 1}, 30, 20), Counts(4, 1, {"empty": 2, "too_long": 1}, 5, 6), Counts(1, 1)]
    found = sum(parts, Counts())
    assert found == Counts(8, 4, {"too_long": 2, "empty": 2}, 35, 26)
    assert list(found.rejects) == ["too_long", "empty"]
    assert parts[0].rejects == {"too_long": 1}
    assert found.rejected == 4


def test_they_have_one_wording():
    counts = Counts(1200, 1199, {"empty": 1, "too_long": 1000})
    assert str(counts) == "1,200 rows, 1,199 responses, 1,001 rejects (empty 1, too_long 1,000)"
    assert f"{Counts(2, 2)}" == Counts(2, 2).summary == "2 rows, 2 responses, 0 rejects"
    assert by_reason({}) == ""
    assert "\x1b" not in by_reason({"\x1b[2J": 1})  # a folder may say anything


def test_their_json_is_that_of_the_files():
    assert msgspec.json.encode(Counts(2, 1, {"empty": 1}, 8, 9)) == (
        b'{"rows":2,"responses":1,"rejects":{"empty":1},"prompt_tokens":8,"response_tokens":9}'
    )


def test_what_a_run_did_adds_up_too():
    found = Totals(rows=1, open_rows=3, kept=1) + Totals(rows=2, rejects={"empty": 1}, open_rows=-2)
    assert found == Totals(rows=3, rejects={"empty": 1}, open_rows=1, kept=1)


def test_a_translation_counts_records_and_segments():
    counts = Counts(3, 3, {}, tries=4, failed=1, segments=9, failed_segments=2) + Counts(1, 1, segments=0)
    assert str(counts) == (
        "4 rows, 4 records, 0 rejects, 9 segments, 4 further tries, 2 segments in 1 records that no try got right"
    )
    assert counts.summary == "4 rows, 4 records, 0 rejects"


def test_how_responses_ended_is_said_only_if_all_shards_say_it():
    one = Counts(3, 3, finish_reasons={"stop": 2, "length": 1}, repetitive=1)
    other = Counts(2, 1, {"empty": 1}, finish_reasons={"length": 1}, empty=1)
    assert (one + other).endings == "stop 2, length 2 (50.0%); 1 empty, 1 repetitive"
    assert (one + other).whole == one + other
    older = Counts(2, 2)
    assert msgspec.json.encode((one + older).whole) == msgspec.json.encode(Counts(5, 5))
    assert (one + older).whole.endings == ""


def test_of_a_translation_it_is_how_its_segments_ended():
    counts = Counts(1, 1, segments=3, finish_reasons={"stop": 3})
    assert (counts.whole, counts.endings) == (counts, "stop 3")
