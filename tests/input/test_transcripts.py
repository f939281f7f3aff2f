import pytest

from batchgen.input import transcripts

TEXTS = [
    "\n\nHuman: Hi\n\nAssistant: Yes: no\n\nHuman: Go\n\nAssistant:",
    "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: Go\n\nAssistant",
    "Human: Hi\r\n\r\nAssistant: Two\nlines",
    "USER: Hi\nASSISTANT: Yes",
    "### Human: Hi### Assistant: Yes",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n",
    "<s>[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nHi [/INST] Yes </s><s>[INST] Go [/INST]",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_spans_of_turns_hold_what_the_conversation_says(text):
    name = transcripts.kind_of_transcript(text)
    assert name
    said = [text[begin:end].strip() for begin, end in transcripts.turn_spans(text)]
    assert [turn for turn in said if turn] == [turn.text for turn in transcripts.split(text, name, "text") if turn.text]


@pytest.mark.parametrize("text", ["", "Hello", "Human: only one speaks", "The Human: and the Assistant: of a text"])
def test_a_text_that_is_no_transcript_has_no_turns(text):
    assert transcripts.turn_spans(text) is None
