"""Terms whose translation is given: a file of lines `source<TAB>target`, and after another tab a comment."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import regex

from ..errors import JobError, shown
from ..host import bucket, safeopen
from ..host.credentials import redacted

LARGEST = 64 << 20  # bytes of a glossary
ALTERNATIVES = "|"  # between target forms of which one is enough

# Scripts that write no spaces, and Korean, whose words have endings.
_CLOSE = (
    r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u318f\u31f0-\u31ff\u3400-\u9fff"
    r"\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_LETTER = rf"[^\W_{_CLOSE}]"
_TOKEN = regex.compile(rf"{_LETTER}++|\S")  # a word; a character of such a script, or a sign
_IN_WORD = regex.compile(_LETTER)

Tokens = tuple[str, ...]


class Term(NamedTuple):
    """source, target: as in the file; tokens: of the source, folded; exact: the tokens, if case matters."""

    source: str
    target: str
    tokens: Tokens
    exact: Tokens | None


class Glossary:
    """The terms of a file.

    A term is found as whole words, or in scripts without spaces anywhere. Case matters if it has capitals inside of a
    word: US is not us. Full-width letters are as plain ones.

    Attributes:
        repeated: one line about terms that are there more than once, of which the first counts; "" if none is.
    """

    def __init__(self, terms: Sequence[Term], repeated: str = ""):
        self.repeated = repeated
        self._terms: dict[Tokens, list[Term]] = {}
        for term in terms:
            self._terms.setdefault(term.tokens[:2], []).append(term)
        for alike in self._terms.values():
            alike.sort(key=lambda term: (-len(term.tokens), term.exact is None))

    @classmethod
    def load(cls, path: str) -> "Glossary":
        """The glossary of a file, or of an object in a bucket. Raises JobError if it cannot be read, or has a line that
        is none of a glossary."""
        terms: dict[tuple[Tokens, Tokens | None], Term] = {}
        repeated: list[tuple[int, str]] = []
        for number, line in enumerate(_lines(path), 1):
            if not line.strip() or line.startswith("#"):
                continue
            term = _term(line, f"{path}:{number}")
            if terms.setdefault((term.tokens, term.exact), term) is not term:
                repeated.append((number, term.source))
        if not repeated:
            return cls(list(terms.values()))
        number, source = repeated[0]
        again = f"{len(repeated)} lines repeat" if len(repeated) > 1 else "one line repeats"
        note = f"{path}: {again} an earlier term, which counts; see line {number}, {shown(source)!r:.60}"
        return cls(list(terms.values()), note)

    def terms(self, text: str) -> list[tuple[str, str]]:
        """The terms that occur in a text, each once: source and target as in the file. Of terms that overlap, the one
        that begins first, and of these the longest."""
        words = _tokens(text)
        folded = [word.casefold() for word in words]
        found: dict[str, str] = {}
        position = 0
        while position < len(words):
            term = self._at(words, folded, position)
            if term:
                found.setdefault(term.source, term.target)
            position += len(term.tokens) if term else 1
        return list(found.items())

    def _at(self, words: list[str], folded: list[str], position: int) -> Term | None:
        for length in (2, 1):
            for term in self._terms.get(tuple(folded[position : position + length]), ()):
                end = position + len(term.tokens)
                if term.tokens == tuple(folded[position:end]) and term.exact in (None, tuple(words[position:end])):
                    return term
        return None


def missing(terms: Sequence[tuple[str, str]], answer: str) -> list[str]:
    """The targets that an answer lacks. "server" is there in "servers", and of "a|b" one is enough."""
    if not terms:
        return []
    said = _plain(answer)
    return [target for _, target in terms if not any(_is_in(form, said) for form in _forms(target))]


def _forms(target: str) -> Iterator[str]:
    return filter(None, map(_plain, target.split(ALTERNATIVES)))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _is_in(form: str, text: str) -> bool:
    """Whether it begins where a word does; endings may follow."""
    position = text.find(form)
    while position > 0 and _IN_WORD.match(form) and _IN_WORD.match(text, position - 1):
        position = text.find(form, position + 1)
    return position >= 0


def content(path: str) -> bytes:
    """Of a glossary, wherever it is. Raises JobError."""
    try:
        return bucket.read(path, LARGEST) if bucket.is_uri(path) else safeopen.read(path, LARGEST)
    except OSError as error:
        why = error.strerror or "no such file"
        raise JobError(f"[translate] glossary: {shown(redacted(path))}: {why}") from None


def _lines(path: str) -> Iterator[str]:
    """Lines without their ends. Raises JobError."""
    for number, line in enumerate(content(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            yield line.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            raise JobError(f"[translate] glossary: {path}:{number}: is not UTF-8: save the file as UTF-8") from None


def _term(line: str, where: str) -> Term:
    source, tab, rest = line.partition("\t")
    source, target = source.strip(), rest.partition("\t")[0].strip()
    if not tab:
        raise JobError(f"[translate] glossary: {where}: has no tab: write source<TAB>target")
    if not source or not next(_forms(target), None):
        raise JobError(f"[translate] glossary: {where}: the {'target' if source else 'source'} is empty")
    words = _tokens(source)
    exact = tuple(words) if any(sign.isupper() for word in words for sign in word[1:]) else None
    return Term(source, target, tuple(word.casefold() for word in words), exact)


def _tokens(text: str) -> list[str]:
    tokens: list[str] = _TOKEN.findall(unicodedata.normalize("NFKC", text))
    return tokens
