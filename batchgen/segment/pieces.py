"""What a text is cut into. The pieces' texts, joined, are the text."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Literal:
    """Goes through as it is: white space, marks of lists and tables, fences."""

    text: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Stands between two sentences, or two parts of one, and depends on the language: Japanese has no space there."""

    text: str


@dataclass(frozen=True, slots=True)
class Segment:
    """Is translated. There is no white space at its edges.

    cut: whether it is a part of a sentence that was too long.
    """

    text: str
    cut: bool = False


Piece = Literal | Gap | Segment


def tidy(pieces: list[Piece]) -> list[Piece]:
    """The same with neighbouring literals as one, and without empty ones."""
    tidied: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Literal):
            if not piece.text:
                continue
            if tidied and isinstance(last := tidied[-1], Literal):
                tidied[-1] = Literal(last.text + piece.text)
                continue
        tidied.append(piece)
    return tidied


def has_letters(text: str) -> bool:
    return any(map(str.isalpha, text))


def without_edges(text: str) -> tuple[str, str, str]:
    """White space, the text without it, white space."""
    bare = text.strip()
    if len(bare) == len(text):
        return "", text, ""
    begin = len(text) - len(text.lstrip()) if bare else len(text)
    return text[:begin], bare, text[begin + len(bare) :]
