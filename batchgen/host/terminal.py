"""Text of others on a terminal: a row, a file name or an error must not move the cursor, hide text or look like a line
of ours. All that commands print goes through here.
"""

import json
import os
import re

from .credentials import is_secret_name, redacted

# C0, DEL and C1 without the newline; what is invisible or turns the direction of writing, but for the joiners, without
# which emoji and some scripts fall apart; line separators; halves of surrogate pairs; tags, which nobody sees.
_UNSAFE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    "\uffa0\ufff9-\ufffc\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_SHORTEST = 12  # characters of a secret in the environment: what is shorter may be a word of the text


def lines(text: str) -> str:
    """A text as any terminal takes it; its newlines are ours."""
    return _UNSAFE.sub(lambda sign: ascii(sign[0])[1:-1], text)


def line(text: str) -> str:
    """The same in one line: for whatever is not ours."""
    return lines(text).replace("\n", "\\n")


def message(text: str) -> str:
    """A line that we say ourselves. It may quote what is not ours, and errors of others what they were asked with."""
    return line(hidden(text))


def hidden(text: str) -> str:
    """A text without secrets: those of URIs, and those of our environment."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and is_secret_name(name):
            text = text.replace(value, "***")
    return redacted(text)


def document(encoded: bytes) -> str:
    """JSON that stays JSON: what a terminal would obey is escaped as JSON has it."""
    return _UNSAFE.sub(lambda sign: json.dumps(sign[0])[1:-1], encoded.decode())
