"""Transcripts: texts that hold a whole conversation, with the speakers' names in them."""

import re
from itertools import pairwise
from typing import Any, NamedTuple

from ..errors import Reject
from .conversation import ASSISTANT, SYSTEM, USER, Conversation, Utterance, decoded, kind_of, text_of

_NAMES = {"human": USER, "user": USER, "prompter": USER, "assistant": ASSISTANT, "gpt": ASSISTANT, "system": SYSTEM}


class Marks(NamedTuple):
    """How the turns of a transcript are told apart.

    Attributes:
        head: how such a text begins.
        turn: what introduces a turn; group 1 is its speaker.
        end: what may follow a turn.
    """

    head: re.Pattern[str]
    turn: re.Pattern[str]
    end: str = ""


def _lines(user: str, assistant: str, system: str) -> Marks:
    names = f"({user}|{assistant}|{system}):"
    return Marks(re.compile(rf"\s*{names}"), re.compile(f"^{names}", re.MULTILINE))


# Every line that begins with a speaker's name begins a turn: copies of HH-RLHF have one newline, CRLF, or a blank in
# the empty line between two turns. Within a text the speakers' names are spelled one way.
_HH = [
    _lines("Human", "Assistant", "System"),
    _lines("human", "assistant", "system"),
    _lines("User", "Assistant", "System"),
    _lines("USER", "ASSISTANT", "SYSTEM"),
    _lines("user", "assistant", "system"),
]
_HH_CUE = "Assistant"  # on the last line it asks for an answer, even without its colon
_GUANACO = Marks(
    re.compile(r"\s*### ?(?:Human|User|System) ?:", re.IGNORECASE),
    re.compile(r"### ?(Human|User|Assistant|System) ?:", re.IGNORECASE),
)
_CHATML = Marks(
    re.compile(r"\s*<\|im_start\|>(?:system|user|human)\b"),
    re.compile(r"<\|im_start\|>(\w+)[ \t]*\r?\n?"),
    end="<|im_end|>",
)
_BLANKS = re.compile(r"\s*")
# What is no speech in a transcript. `split` needs less of it, to tell the turns apart.
_MARKS = {
    "guanaco": _GUANACO.turn,
    "chatml": re.compile(r"<\|im_start\|>\w+[ \t]*\r?\n?|<\|im_end\|>"),
    "llama2": re.compile(r"</?s>|\[/?INST\]|<</?SYS>>"),
}
_LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


# Name of the shape -> how such a text begins, for people.
TRANSCRIPTS = {"hh": "Human:", "guanaco": "### Human:", "chatml": "<|im_start|>", "llama2": "[INST]"}
# How any transcript may begin, for a cheap check before the expressions: most texts are not transcripts.
_HEADS = tuple(
    """Human: human: User: USER: user: Assistant: assistant: ASSISTANT: System: system: SYSTEM: ### <|im_start|> [INST]
    <s>""".split()
)


def kind_of_transcript(value: Any) -> str | None:
    """The name of the transcript's shape; None if the value is not a transcript."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str) or not value[:200].lstrip().startswith(_HEADS):
        return None
    if _llama_turn(value, 0):
        return "llama2"
    if _GUANACO.head.match(value):
        return "guanaco"
    if _CHATML.head.match(value):
        return "chatml"
    return "hh" if _is_hh(value) else None


def _is_hh(text: str) -> bool:
    """Whether there are two speakers. A text of HH-RLHF with a single question begins with an empty line."""
    marks = _hh_marks(text)
    text = _without_cue(text, "\nAssistant:")
    speakers = {mark[1] for mark in marks.turn.finditer(text)} if marks else set()
    return len(speakers) > 1 or ("Human" in speakers and text[:1] in "\r\n")


def _without_cue(text: str, instead: str = "") -> str:
    """The text without a final "Assistant:", which only says that the answer comes next.

    (A regular expression would take quadratic time for a run of newlines.)
    """
    bare = text.rstrip()
    before = bare.removesuffix(_HH_CUE)
    said = before.rstrip()
    newline = before.find("\n", len(said))
    return before[:newline] + instead if len(before) < len(bare) and newline >= 0 else text


def _hh_marks(text: str) -> Marks | None:
    """The marks for the speakers' names that a text begins with, if the user is among them."""
    for marks in _HH:
        if marks.head.match(text) and any(_NAMES[mark[1].lower()] == USER for mark in marks.turn.finditer(text)):
            return marks
    return None


def split(value: Any, name: str, where: str) -> Conversation:
    """The conversation of a transcript. An empty turn of the assistant at its end only says that the answer comes next.

    Args:
        value: the transcript.
        name: its shape.
        where: its column, for the reject.

    Raises:
        Reject: bad_shape, empty, unknown_speaker or invalid_utf8
    """
    text = decoded(value, where) if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise Reject("bad_shape", f"{where} is {kind_of(text)}, not text")
    if name == "llama2":
        turns = _llama_turns(text)
    elif name == "hh":
        turns = _marked_turns(_without_cue(text), _hh_marks(text))
    else:
        turns = _marked_turns(text, {"guanaco": _GUANACO, "chatml": _CHATML}[name])
    if not turns:
        raise Reject("bad_shape", f"{where} does not consist of turns that begin with {TRANSCRIPTS[name]}")
    if turns[-1] == (ASSISTANT, ""):
        turns.pop()
    said = [turn for turn in turns if turn.speaker != SYSTEM or turn.text]
    return [Utterance(turn.speaker, text_of(turn.text, f"{where}, turn {number}")) for number, turn in enumerate(said)]


def turn_spans(text: str) -> list[tuple[int, int]] | None:
    """Begin and end of what each turn of a transcript says, white space around it included; None if it is none.

    What lies between them are the speakers' names and other marks, to the end of the text.
    """
    name = kind_of_transcript(text)
    if name is None:
        return None
    hh = _hh_marks(text) if name == "hh" else None
    pattern = hh.turn if hh else _MARKS[name]
    end = len(_without_cue(text)) if hh else len(text)
    marks = [mark.span() for mark in pattern.finditer(text, 0, end)]
    return [(begin, stop) for (_, begin), (stop, _) in pairwise([*marks, (end, end)])]


def _marked_turns(text: str, marks: Marks | None) -> Conversation:
    found = list(marks.turn.finditer(text)) if marks else []
    if not marks or not found or text[: found[0].start()].strip():
        return []
    ends = [mark.start() for mark in found[1:]] + [len(text)]
    said = [text[mark.end() : end].strip().removesuffix(marks.end) for mark, end in zip(found, ends, strict=True)]
    speakers = [_NAMES.get(mark[1].lower()) for mark in found]
    if None in speakers:
        odd = found[speakers.index(None)][1]
        raise Reject("unknown_speaker", f"{odd!r:.40} is not one of {', '.join(_NAMES)}")
    return [Utterance(who or USER, what.strip()) for who, what in zip(speakers, said, strict=True)]


def _llama_turns(text: str) -> Conversation:
    """`<s>[INST] <<SYS>> system <</SYS>> question [/INST] answer </s>`, and so on."""
    turns: Conversation = []
    position = 0
    while found := _llama_turn(text, position):
        question, answer, position = found
        if system := _LLAMA_SYSTEM.match(question):
            turns.append(Utterance(SYSTEM, system[1].strip()))
            question = question[system.end() :]
        turns += [Utterance(USER, question.strip()), Utterance(ASSISTANT, answer.strip())]
    return turns if not text[position:].strip() else []


def _llama_turn(text: str, position: int) -> tuple[str, str, int] | None:
    """(question, answer, position of the next turn) of the turn that begins here; None if none does.

    (A regular expression that finds the end of an answer would take quadratic time for a run of blanks.)
    """
    begin = _behind_blanks(text, position)
    if text.startswith("<s>", begin):
        begin = _behind_blanks(text, begin + len("<s>"))
    asked = begin + len("[INST]")
    if not text.startswith("[INST]", begin) or (end := text.find("[/INST]", asked)) < 0:
        return None
    answered = end + len("[/INST]")
    following = text.find("[INST]", answered)
    last = len(text) if following < 0 else answered + len(text[answered:following].rstrip())
    if following >= 0 and text.endswith("<s>", answered, last):
        last -= len("<s>")
    stop = text.find("</s>", answered, last)
    if stop >= 0:
        return text[asked:end], text[answered:stop], stop + len("</s>")
    return text[asked:end], text[answered:last], last


def _behind_blanks(text: str, position: int) -> int:
    blanks = _BLANKS.match(text, position)
    assert blanks
    return blanks.end()
