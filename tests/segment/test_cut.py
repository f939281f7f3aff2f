import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.segment.cut import Rule, joined, pieces
from batchgen.segment.pieces import Gap, Literal, Segment
from batchgen.segment.protect import Protect

ALL = Protect(["code", "url", "placeholder", "markup"])


def rule(unit="paragraph", most=1000, count=len, language="en", protect=ALL):
    return Rule(unit, most, count, language, protect)


def words(text):
    return len(text.split())


def cut(text, *arguments, **named):
    """The pieces, which must be the text."""
    found = pieces(text, rule(*arguments, **named))
    assert "".join(piece.text for piece in found) == text
    return found


def segments(text, *arguments, **named):
    return [piece.text for piece in cut(text, *arguments, **named) if isinstance(piece, Segment)]


# Texts of everything that has a rule, and of what comes between.
ATOMS = st.sampled_from(
    """Hello/there./How are you?/Mr. Smith/e.g. this,/彼は「行く。多分。」と言った。/今日は、晴れ。/（注。）/と/「/」/
    `co. de`/{name}/%s/<b>/<br>/&amp;/$x + y$/\\(z\\)/$$/\\[/\\]/[1]/1,000/50%/é/か\u3099/me@x.org/👨\u200d👩\u200d👧/
    ```/~~~/```py/{"a": [1, "b. c"]}/{/[/]/}/\\begin{align}/\\end{align}/<pre>/<!--/-->/
    Human:/Assistant:/Assistant/### Human:/<|im_start|>user/[INST]/<s>/- /* /1. /> /# /## /・/- [ ] /|/|a |/|---|"""
    .replace("\n    ", "").split("/")
    + ["https://a.b/c?d=e.", "</b>", "</pre>", "[/INST]", "A\u3000.", "\ud800"]
    + ["\n", "\n\n", "\r\n", " ", "  ", "\t", "\u3000", "\u2028", "\x0b"] * 2
)  # fmt: skip
TEXTS = st.lists(ATOMS, max_size=40).map("".join) | st.text(max_size=60)
RULES = st.builds(
    rule,
    st.sampled_from(["whole", "paragraph", "sentence"]),
    st.integers(1, 60),
    st.sampled_from([len, words, lambda text: len(text.encode("utf-8", "surrogatepass"))]),
    st.sampled_from(["en", "ja", "zh", "de", ""]),
    st.sampled_from([ALL, Protect([]), Protect(["url", "regex:[0-9]+"])]),
)


@settings(max_examples=400, deadline=None)
@given(TEXTS, RULES)
def test_pieces_are_the_text_and_their_own_texts_give_it_back(text, how):
    found = pieces(text, how)
    assert "".join(piece.text for piece in found) == text
    answers = [piece.text for piece in found if isinstance(piece, Segment)]
    assert joined(found, answers, how.language, how.language) == text


@settings(max_examples=300, deadline=None)
@given(TEXTS, RULES)
def test_a_segment_has_letters_and_no_white_space_at_its_edges(text, how):
    for piece in pieces(text, how):
        if isinstance(piece, Segment):
            assert piece.text == piece.text.strip() and any(map(str.isalpha, piece.text))


@settings(max_examples=300, deadline=None)
@given(TEXTS, RULES)
def test_a_segment_fits_unless_it_is_one_character_or_holds_a_protected_span(text, how):
    for piece in pieces(text, how):
        if isinstance(piece, Segment) and how.count(piece.text) > how.max_tokens:
            assert how.protect.spans(piece.text) or len(piece.text) <= 11  # a family of emoji has seven characters


@pytest.mark.parametrize("text", ["", " ", "\n\n", "。", "123", "---", "1,000 %", "👍", "\u3000"])
def test_a_text_without_letters_is_literal(text):
    assert segments(text) == []


def test_white_space_around_a_text_is_literal():
    assert cut("\n  Hello. \n") == [Literal("\n  "), Segment("Hello."), Literal(" \n")]


def test_lines_are_segments_of_their_own():
    assert segments("One. Two.\nThree.\r\n\r\nFour") == ["One. Two.", "Three.", "Four"]


def test_a_whole_text_is_one_segment_with_its_line_breaks():
    assert segments("# One\n\n- two\n", "whole") == ["# One\n\n- two"]


def test_a_whole_text_that_does_not_fit_is_cut_as_paragraphs():
    assert segments("One one.\n\n- two two\n", "whole", 10) == ["One one.", "two two"]


@pytest.mark.parametrize(
    "marker",
    [
        "# ",
        "### ",
        "- ",
        "* ",
        "+ ",
        "• ",
        "1. ",
        "12) ",
        "(3) ",
        "> ",
        ">> ",
        "> - ",
        "  - ",
        "- [ ] ",
        "- [x] ",
        "・",
        "① ",
    ],
)
def test_a_marker_at_the_beginning_of_a_line_is_literal(marker):
    assert cut(f"{marker}Buy milk") == [Literal(marker), Segment("Buy milk")]


@pytest.mark.parametrize("text", ["#tag", "-5 degrees", "*bold* text", "1.5 litres", "2023. That was it"])
def test_what_looks_like_a_marker_and_is_none_is_text(text):
    assert segments(text) == [text]


@pytest.mark.parametrize(
    "fence",
    ["```\nx = 1\n```", "```py\n# Say hello.\n\n```", "~~~\nHello\n```\n~~~", "  ```\n  Hello\n  ```",
     "> ```\n> Hi\n> ```", "````\n```\nHello\n```\n````", "```\nnever closed"],
)  # fmt: skip
def test_a_fence_is_literal_whatever_is_protected(fence):
    for protect in (ALL, Protect([])):
        assert segments(f"Before\n{fence}\n" + ("After" if fence[-1] in "`~" else ""), protect=protect)[:1] == [
            "Before"
        ]
        assert segments(fence, protect=protect) == []


def test_text_behind_a_fence_is_text_again():
    assert segments("```\ncode\n```\nAfter") == ["After"]


def test_code_between_ticks_on_one_line_opens_no_fence():
    assert segments("```code``` is here\nAnd there") == ["```code``` is here", "And there"]


@pytest.mark.parametrize(
    "block",
    ['{"a": "Hello"}', '["Hello", "there"]', '{\n  "a": "Hello",\n  "b": [1, 2]\n}', "$$\na = b\n$$", "\\[\na = b\n\\]",
     "\\begin{align}\na &= b\n\\end{align}", "<pre>\nHello\n</pre>", "<!-- Hello -->"],
)  # fmt: skip
def test_blocks_of_json_latex_and_html_are_literal_where_code_is_protected(block):
    assert segments(f"Before\n{block}\nAfter") == ["Before", "After"]
    assert segments(f"Before\n{block}\nAfter", protect=Protect([])) != ["Before", "After"] or "Hello" not in block


@pytest.mark.parametrize("text", ["[see below]", "{name} is here", "[INST", "{'a': Hello}"])
def test_what_only_begins_like_json_is_text(text):
    assert segments(text)


def test_cells_of_a_table_are_segments():
    table = "| Name | Size |\n|:---|---:|\n| a cat | 3 |\n"
    assert segments(table) == ["Name", "Size", "a cat"]


def test_a_table_without_outer_bars_is_known_by_its_rule():
    assert segments("Name | Size\n---|---\na cat | small\n\nThis | that") == [
        "Name",
        "Size",
        "a cat",
        "small",
        "This | that",
    ]


def test_turns_of_a_transcript_are_cut_at_the_speakers():
    text = "\n\nHuman: Hi there. How are you?\n\nAssistant: Fine.\n\nHuman: Good\n\nAssistant:"
    assert cut(text, "whole") == [
        Literal("\n\nHuman: "),
        Segment("Hi there. How are you?"),
        Literal("\n\nAssistant: "),
        Segment("Fine."),
        Literal("\n\nHuman: "),
        Segment("Good"),
        Literal("\n\nAssistant:"),
    ]


def test_a_transcripts_last_speaker_without_a_colon_is_literal():
    assert segments("\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: Go\n\nAssistant") == ["Hi", "Yes", "Go"]


@pytest.mark.parametrize(
    "text",
    ["### Human: Hi there### Assistant: Yes",
     "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n",
     "<s>[INST] <<SYS>>\nHi there\n<</SYS>>\n\nYes [/INST] </s>"],
)  # fmt: skip
def test_other_transcripts_are_cut_at_their_marks(text):
    assert segments(text, protect=Protect([])) == ["Hi there", "Yes"]


def test_turns_follow_the_rules_of_lines():
    text = "\n\nHuman: Write:\n\n- one\n- two\n\nAssistant: Done."
    assert segments(text) == ["Write:", "one", "two", "Done."]


def test_a_paragraph_that_fits_is_one_segment_and_is_not_counted():
    def count(text):
        raise AssertionError("its length is enough")

    assert segments("One. Two. Three.", most=50, count=count) == ["One. Two. Three."]


def test_sentences_of_a_long_paragraph_are_packed():
    found = cut("One one. Two two.  Three three. Four.", most=4, count=words)
    assert found == [Segment("One one. Two two."), Gap("  "), Segment("Three three. Four.")]


def test_each_sentence_is_a_segment_in_unit_sentence():
    assert cut("One. Two?\nThree", "sentence") == [
        Segment("One."),
        Gap(" "),
        Segment("Two?"),
        Literal("\n"),
        Segment("Three"),
    ]


def test_a_long_sentence_is_cut_at_commas_and_marked():
    found = cut("One, two two, three three three; four. Five.", "sentence", 3, words)
    assert found == [
        Segment("One, two two,", cut=True),
        Gap(" "),
        Segment("three three three;", cut=True),
        Gap(" "),
        Segment("four.", cut=True),
        Gap(" "),
        Segment("Five."),
    ]


def test_a_clause_without_commas_is_cut_at_white_space():
    assert segments("one two three four five", "sentence", 2, words) == ["one two", "three four", "five"]


def test_text_without_spaces_is_cut_between_characters():
    found = cut("あ" * 25, most=10, language="ja")
    assert [piece.text for piece in found] == ["あ" * 10, "", "あ" * 10, "", "あ" * 5]
    assert all(piece.cut for piece in found if isinstance(piece, Segment))


def test_what_people_see_as_one_character_is_not_cut():
    assert segments("か\u3099" * 6, most=3, language="ja") == ["か\u3099"] * 6


def test_numbers_are_not_cut_at_their_commas():
    assert segments("It is 1,000,000 yen, more or less", most=3, count=words) == [
        "It is 1,000,000",
        "yen,",
        "more or less",
    ]


@pytest.mark.parametrize("span", ["https://a.org/b.?c=d, e", "`one. two. three`", "<a title='One. Two.'>"])
def test_a_protected_span_is_not_cut(span):
    span = span.removesuffix(", e")
    found = cut(f"See this thing {span} and then that.", "sentence", 2, words)
    assert sum(span in piece.text for piece in found) == 1


def test_a_segment_of_spans_and_signs_is_literal():
    assert segments("- https://a.org, `b`\n- Go to https://a.org") == ["Go to https://a.org"]


@pytest.mark.parametrize(
    "text, found",
    [
        ("Source: https://a.org/b", "Source:"),
        ("<p>Hello <b>you</b></p>", "Hello <b>you</b>"),
        ("<b>Note</b> that", "<b>Note</b> that"),
        ("`name`: what it is called", "what it is called"),
        ("`name` is what it is called", "`name` is what it is called"),
    ],
)
def test_spans_at_an_edge_are_literal_where_they_stand_apart(text, found):
    assert segments(text) == [found]


SPACED = [Segment("a"), Gap(" "), Segment("b"), Literal("\n"), Segment("c")]
UNSPACED = [Segment("a"), Gap(""), Segment("b"), Literal("\n"), Segment("c")]


@pytest.mark.parametrize(
    "found, source, target, text",
    [
        (SPACED, "en", "ja", "12\n3"),
        (SPACED, "en", "de", "1 2\n3"),
        (UNSPACED, "ja", "en", "1 2\n3"),
        (UNSPACED, "ja", "zh", "12\n3"),
        ([Segment("a"), Gap("\u3000"), Segment("b")], "ja", "en", "1 2"),
        ([Segment("a"), Gap(" \n"), Segment("b")], "en", "ja", "1 \n2"),
    ],
)
def test_sentences_are_joined_as_the_target_has_it(found, source, target, text):
    answers = [str(number + 1) for number in range(sum(isinstance(piece, Segment) for piece in found))]
    assert joined(found, answers, source, target) == text


def test_white_space_around_answers_is_dropped():
    assert joined(cut("Hello\n"), [" こんにちは\n"], "en", "ja") == "こんにちは\n"


def test_another_number_of_answers_is_an_error():
    with pytest.raises(ValueError, match="1 answers for 2 segments"):
        joined(cut("One\nTwo"), ["1"], "en", "ja")


def test_a_translated_document_keeps_its_structure():
    text = json.dumps({"k": 1}) + "\n# Title\n\n1. First. Second.\n   > `x` is y\n\n| a | b |\n"
    found = cut(text, "sentence")
    answers = [f"<{piece.text}>" for piece in found if isinstance(piece, Segment)]
    assert joined(found, answers, "en", "ja") == (
        '{"k": 1}\n# <Title>\n\n1. <First.><Second.>\n   > <`x` is y>\n\n| <a> | <b> |\n'
    )
