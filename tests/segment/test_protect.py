import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.errors import JobError, Reject
from batchgen.segment.pieces import Gap, Literal, Segment
from batchgen.segment.protect import Masked, Protect, restore

ALL = Protect(["code", "url", "placeholder", "markup"])


def spans(text, *kinds):
    protect = Protect(kinds) if kinds else ALL
    return [text[span.begin : span.end] for span in protect.spans(text)]


@pytest.mark.parametrize(
    "kind, text",
    [
        ("code", "Call «`f(x)`» and «``a ` b``»."),
        ("code", "Let «$x + y$» be «$2^n$», «\\(a\\)» or «\\[b = c\\]», «$$d$$»."),
        ("code", "It costs $5 and $6, or 5$ to 10$, says US$3 (A$4)."),
        ("code", "It costs $5 for one, 10$ for two."),
        ("code", "«```\nx = 1\n```»\nand «`y`»"),
        ("url", "See «https://a.org/b?c=d#e», or («http://a.org/x_(y)»)."),
        ("url", "詳しくは«https://a.org/b»を、または«www.a.co.jp»。«me.too@a-b.co.jp»まで"),
        ("url", "Ask **«https://a.org»**, «ftp://a.org/»! «a@b.org»."),
        ("url", "https://... is no address, nor are https:// and @name, a@b, http, www.)"),
        ("placeholder", "«{name}», «{{ user.name }}», «${HOME}», «{0}», «{}», «{x:.2f}», «{a[0]}»"),
        ("placeholder", "«%s» of «%d», «%(count)d», «%1$s», «%.2f»"),
        ("placeholder", "50% of 100%, 100% sure, {this is text}, {\n}"),
        ("placeholder", "«%s»さん、«{name}»様"),
        ("markup", "«<b>»bold«</b>»«<br/>» «<a href='x y'>»z«</a>» «<!-- no -->» «<|im_end|>»"),
        ("markup", "Q«&amp;»A «&#169;» «&#xA9;» AT&T; 1 < 2 > 0, a<b"),
    ],
)
def test_spans_of_a_kind_are_found(kind, text):
    assert spans(text.replace("«", "").replace("»", ""), kind) == re.findall("«(.*?)»", text, re.DOTALL)


def test_of_two_that_overlap_the_longer_is_taken():
    assert spans('<a href="https://a.org/{x}"> `<b>` and') == ['<a href="https://a.org/{x}">', "`<b>`"]


def test_only_the_chosen_kinds_are_protected():
    assert spans("{x} <b> `c`", "markup") == ["<b>"]
    assert Protect([]).spans("{x} <b> `c`") == []


def test_a_pattern_of_the_user_is_protected():
    assert spans("Ticket AB-12, or AB-3.", "regex:[A-Z]+-[0-9]+") == ["AB-12", "AB-3"]


def test_a_pattern_that_takes_too_long_rejects_the_row():
    with pytest.raises(Reject, match="too_costly"):
        Protect(["regex:(a|aa)+$"]).spans("a" * 60 + "b")


@pytest.mark.parametrize("kind, said", [("urls", "did you mean url"), ("x" * 9, "valid are"), ("regex:(", "regex:")])
def test_a_kind_that_there_is_none_of_is_an_error(kind, said):
    with pytest.raises(JobError, match=f"protect.*{said}"):
        Protect([kind])


def test_a_text_without_spans_is_not_masked():
    assert ALL.mask("Nothing here, 100 %.") is None


def test_marks_stand_for_spans():
    masked = ALL.mask("Run `ls` at https://a.org, {name}!")
    assert masked == Masked(
        "Run [1] at [2], [3]!", ("[1]", "[2]", "[3]"), ("`ls`", "https://a.org", "{name}"), (1, 2, 3), "[{}]"
    )
    assert restore("[3]、[2]で[1]を", masked) == "{name}、https://a.orgで`ls`を"


@pytest.mark.parametrize(
    "text, style",
    [
        ("a {x}", "[1]"),
        ("a[7] {x}", "⟦1⟧"),
        ("【2】⟦3⟧ {x}", "<1>"),
        ("[1] ⟦1⟧ <1> {x}", "#1#"),
        ("[1] [3] ⟦1⟧ <1> #1# {x}{y}", "[2]"),
    ],
)
def test_a_mark_is_one_that_the_text_does_not_have(text, style):
    masked = Protect(["placeholder"]).mask(text)
    assert masked and masked.marks[0] == style
    assert restore(masked.text, masked) == text


@pytest.mark.parametrize("written", ["[1]", "［１］", "【1】", "[ 1 ]", "[１]", "〔1〕"])
def test_variants_of_a_mark_are_taken_for_it(written):
    masked = ALL.mask("Dear {name}")
    assert masked and restore(f"{written}様", masked) == "{name}様"


@pytest.mark.parametrize("answer", ["様", "[1][1]様", "[1] [2]様", "1様", "{name}様"])
def test_a_lost_a_doubled_and_a_strange_mark_are_noticed(answer):
    masked = ALL.mask("Dear {name}")
    assert masked and restore(answer, masked) is None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*"a1[]⟦⟧<>#{}` ", "{x}", "<b>", "[1]", "#1#", "&lt;", "https://a.b"])).map("".join))
def test_what_is_masked_and_split_comes_back(text):
    masked = ALL.mask(text)
    assert masked is None or restore(masked.text, masked) == text
    assert "".join(piece.text for piece in ALL.split(text)) == text


def test_a_text_is_split_around_its_spans():
    assert ALL.split("Run `ls`, then go to https://a.org.") == [
        Segment("Run"),
        Literal(" `ls`, "),
        Segment("then go to"),
        Literal(" https://a.org."),
    ]


def test_between_japanese_and_a_span_is_a_gap():
    assert ALL.split("詳細は`ls`です<b>よ</b>") == [
        Segment("詳細は"),
        Gap(""),
        Literal("`ls`"),
        Gap(""),
        Segment("です"),
        Literal("<b>"),
        Segment("よ"),
        Literal("</b>"),
    ]


@pytest.mark.parametrize(
    "text, core",
    [
        ("Nothing", "Nothing"),
        ("https://a.org {x}", ""),
        ("See: https://a.org", "See:"),
        ("Done. `x`", "Done."),
        ("See https://a.org", "See https://a.org"),
        ("{x} - a thing", "a thing"),
        ("<p><i>Hi</i> you</p>", "<i>Hi</i> you"),
        ("<li>Hi<br>", "Hi"),
        ("<b>One</b> or <b>two</b>", "<b>One</b> or <b>two</b>"),
    ],
)
def test_the_core_is_without_spans_that_stand_apart(text, core):
    begin, end = ALL.core(text)
    assert text[begin:end] == core


@pytest.mark.parametrize("between", ["\n" * 50_000, " \n" * 30_000, " - " * 20_000], ids=["lines", "blanks", "dashes"])
def test_what_is_between_spans_costs_time_for_its_length_alone(between):
    text = f"See https://example.org{between}and https://example.org"
    begin = time.process_time()
    protect = Protect(["url", "markup", "code", "placeholder"])
    assert protect.core(text)[0] == 0
    assert protect.split(text)
    assert time.process_time() - begin < 1
