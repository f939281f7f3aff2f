"""Conversations to prompts, in the formats of the model series."""

from .conversation import ASSISTANT, Conversation

FORMATS = ("speaker",)


def render(conversation: Conversation) -> str:
    """The prompt of the instruction models (rinna's model cards): `speaker: text` lines, then `システム: `."""
    lines = [f"{utterance.speaker}: {utterance.text}" for utterance in conversation]
    return "\n".join([*lines, f"{ASSISTANT}: "])
