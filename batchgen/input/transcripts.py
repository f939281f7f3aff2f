"""Texts that hold a whole conversation, with the speakers' names in them."""

import re
from typing import Any, NamedTuple

from ..errors import Reject
from .conversation import ASSISTANT, SYSTEM, USER, Conversation, Utterance, decoded, kind_of, text_of

_NAMES = {"human": USER, "user": USER, "prompter": USER, "assistant": ASSISTANT, "gpt": ASSISTANT, "system": SYSTEM}


class Marks(NamedTuple):
    """How the turns of a text are told apart: head, what such a text begins with; turn, what stands ahead of a turn,
    group 1 its speaker; end, what may stand behind it."""

    head: re.Pattern[str]
    turn: re.Pattern[str]
    end: str = ""


def _lines(user: str, assistant: str, system: str) -> Marks:
    names = f"({user}|{assistant}|{system}):"
    return Marks(re.compile(rf"\s*{names}"), re.compile(f"^{names}", re.MULTILINE))


# Each line that begins with a speaker's name begins a turn: HH-RLHF is copied with one newline, with CRLF, and with
# a blank in the blank line between two turns. A text keeps to the words that it begins with.
_HH = [
    _lines("Human", "Assistant", "System"),
    _lines("human", "assistant", "system"),
    _lines("User", "Assistant", "System"),
    _lines("USER", "ASSISTANT", "SYSTEM"),
    _lines("user", "assistant", "system"),
]
_HH_CUE = "Assistant"  # on the last line it calls for an answer too, without its colon
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
_LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


# Name of the format -> what such a text begins with, for people.
TRANSCRIPTS = {"hh": "Human:", "guanaco": "### Human:", "chatml": "<|im_start|>", "llama2": "[INST]"}
# The heads of all of them, for a cheap look ahead of the expressions: most texts are no transcripts.
_HEADS = tuple(
    """Human: human: User: USER: user: Assistant: assistant: ASSISTANT: System: system: SYSTEM: ### <|im_start|> [INST]
    <s>""".split()
)


def kind_of_transcript(value: Any) -> str | None:
    """The name of the format if a value is a transcript."""
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
    """Whether two speak in it. HH-RLHF's own texts begin with an empty line, which a lone question does not."""
    marks = _hh_marks(text)
    text = _without_cue(text, "\nAssistant:")
    speakers = {mark[1] for mark in marks.turn.finditer(text)} if marks else set()
    return len(speakers) > 1 or ("Human" in speakers and text[:1] in "\r\n")


def _without_cue(text: str, instead: str = "") -> str:
    """(An expression would try every newline of a run of them, each to the run's end.)"""
    bare = text.rstrip()
    before = bare.removesuffix(_HH_CUE)
    said = before.rstrip()
    newline = before.find("\n", len(said))
    return before[:newline] + instead if len(before) < len(bare) and newline >= 0 else text


def _hh_marks(text: str) -> Marks | None:
    """The marks of the words that a text has for its speakers: the ones it begins with, the user among them."""
    for marks in _HH:
        if marks.head.match(text) and any(_NAMES[mark[1].lower()] == USER for mark in marks.turn.finditer(text)):
            return marks
    return None


def split(value: Any, name: str, where: str) -> Conversation:
    """The conversation of a transcript; a turn of the assistant that is empty at its end is where the answer is to
    begin. Raises Reject(bad_shape | empty | invalid_utf8)."""
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
        raise Reject("bad_shape", f"{where} does not begin with {TRANSCRIPTS[name]} and go on in turns")
    if turns[-1] == (ASSISTANT, ""):
        turns.pop()
    said = [turn for turn in turns if turn.speaker != SYSTEM or turn.text]
    return [Utterance(turn.speaker, text_of(turn.text, f"{where}, turn {number}")) for number, turn in enumerate(said)]


def _marked_turns(text: str, marks: Marks | None) -> Conversation:
    found = list(marks.turn.finditer(text)) if marks else []
    if not marks or not found or text[: found[0].start()].strip():
        return []
    ends = [mark.start() for mark in found[1:]] + [len(text)]
    said = [text[mark.end() : end].strip().removesuffix(marks.end) for mark, end in zip(found, ends, strict=True)]
    speakers = [_NAMES.get(mark[1].lower()) for mark in found]
    if None in speakers:
        odd = found[speakers.index(None)][1]
        raise Reject("unknown_speaker", f"{odd!r:.40} is none of {', '.join(_NAMES)}")
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
    """Question, answer and where the next turn begins, of the turn that begins here. (No expression: those that know
    where an answer ends take the square of a run of blanks.)"""
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
