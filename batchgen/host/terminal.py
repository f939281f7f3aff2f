"""Showing untrusted text on a terminal: a row, a file name or an error must not move the cursor, hide text or pass for
a line of batchgen's. Everything that commands print goes through here.
"""

import json
import os
import re

from .credentials import is_secret_name, redacted

# C0, DEL and C1 except the newline; invisible characters and those that change the direction of writing, except the
# joiners, which emoji and some scripts need; line separators; lone surrogates; tag characters, which are invisible.
UNSAFE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    "\uffa0\ufff9-\ufffc\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_SHORTEST = 12  # characters of a secret in the environment: a shorter value may be an ordinary word of the text


def lines(text: str) -> str:
    """A text that is safe on any terminal. Its newlines are kept."""
    return UNSAFE.sub(lambda sign: ascii(sign[0])[1:-1], text)


def line(text: str) -> str:
    """The same on one line, for text that is not ours."""
    return lines(text).replace("\n", "\\n")


def message(text: str) -> str:
    """A line of our own, without secrets: it may quote untrusted text, or a library's error with the URI it got."""
    return line(hidden(text))


def hidden(text: str) -> str:
    """A text without secrets: neither those in URIs nor those in our environment."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and is_secret_name(name):
            text = text.replace(value, "***")
    return redacted(text)


def document(encoded: bytes) -> str:
    """JSON text with everything that a terminal would act on escaped, so that it is still the same JSON."""
    return UNSAFE.sub(lambda sign: json.dumps(sign[0])[1:-1], encoded.decode())
