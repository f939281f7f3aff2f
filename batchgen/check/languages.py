"""Which language a text is in, as far as its script tells; where two languages share a script, py3langid decides.

Counting scripts took 2 us a text and was wrong for 1 of 25 short texts of Japanese and English; models of languages
take 5 to 200 us and are 5 to 96 MB.
"""

import difflib
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from ..errors import JobError

SHARE = 0.6  # of the letters of a text that its language's script has at least
LETTERS = 20  # fewer say nothing about languages of one script: "OK", "Taxi"
SHORT = 4  # so few letters may be a name, which stays as it is

# Script by the first word of a letter's name in Unicode; Chinese characters are CJK.
_SCRIPTS: dict[str, tuple[str, ...]] = {
    "ja": ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK"),
    "zh": ("CJK", "BOPOMOFO"),
    "ko": ("HANGUL",),
    "th": ("THAI",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "hy": ("ARMENIAN",),
    "ka": ("GEORGIAN",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "bn": ("BENGALI",),
    "km": ("KHMER",),
    "lo": ("LAO",),
    "my": ("MYANMAR",),
    "am": ("ETHIOPIC",),
    "si": ("SINHALA",),
    "ml": ("MALAYALAM",),
    "kn": ("KANNADA",),
    "gu": ("GUJARATI",),
    "pa": ("GURMUKHI",),
    **dict.fromkeys("ru uk be bg mk kk ky mn sr tg".split(), ("CYRILLIC",)),
    **dict.fromkeys("ar fa ur ps ug".split(), ("ARABIC",)),
    **dict.fromkeys("hi mr ne".split(), ("DEVANAGARI",)),
}
_LATIN = ("LATIN",)
_NAMES = dict(
    pair.split("=")
    for pair in """
    english=en japanese=ja chinese=zh korean=ko german=de french=fr spanish=es italian=it portuguese=pt dutch=nl
    russian=ru ukrainian=uk polish=pl czech=cs turkish=tr vietnamese=vi indonesian=id thai=th arabic=ar hebrew=he
    hindi=hi greek=el swedish=sv danish=da norwegian=no finnish=fi hungarian=hu romanian=ro bulgarian=bg persian=fa
    eng=en jpn=ja zho=zh kor=ko deu=de fra=fr spa=es ita=it por=pt nld=nl rus=ru ukr=uk pol=pl tur=tr vie=vi ind=id
    日本語=ja 英語=en 中国語=zh 韓国語=ko ドイツ語=de フランス語=fr スペイン語=es
    """.split()
)


# A code that is none, such as jp, would be taken for a language in Latin letters, and every answer fail.
_CODES = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es
    et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki
    kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no
    nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta
    te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
    """.split()
)


def code(language: str) -> str:
    """ISO 639-1, of a code or a name: "ja" for "Japanese", "日本語" and "ja-JP"; or three letters, of a language that
    has no two. Raises ValueError."""
    word = language.strip().lower()
    found = _NAMES.get(word) or re.split("[-_]", word)[0]
    found = _NAMES.get(found, found)
    if found not in _CODES and not re.fullmatch("[a-z]{3}", found):
        of_country = {"jp": ["ja"], "cn": ["zh"], "kr": ["ko"]}.get(found)
        close = of_country or difflib.get_close_matches(word, _NAMES, n=1, cutoff=0.8)
        hint = f"did you mean {close[0]}?" if close else "write a code such as ja, en or de"
        raise ValueError(f"{language!r} is no language: {hint}")
    return found


def asked(key: str, language: str) -> str:
    """The code of a language that a job names, "" if it names none. key: where. Raises JobError."""
    try:
        return code(language) if language else ""
    except ValueError as error:
        raise JobError(f"{key}: {error}") from None


def share_a_script(one: str, other: str) -> bool:
    return not set(_scripts(one)).isdisjoint(_scripts(other))


def not_in(language: str, text: str, source: str = "", of_source: str = "") -> str | None:
    """Why a text is not in a language; None if it may be.

    source, of_source: what it answers, and the language of that. Words that are copied from there are names, or code.
    """
    counts = _letters(text if not source else _without_copied(text, source, language))
    total = counts.total()
    own = _of_script(language, counts)
    if own < SHARE * total and total > SHORT:
        return f"{own} of {total} letters are {language}"
    if language == "ja" and counts["CJK"] > LETTERS and not (counts["HIRAGANA"] or counts["KATAKANA"]):
        return "there is no kana in it"
    if of_source and of_source != language and share_a_script(language, of_source) and total >= LETTERS:
        if {language, of_source} == {"ja", "zh"}:
            return "it has kana" if language == "zh" and counts["HIRAGANA"] else None
        found = _identifier(language, of_source)(text)
        return None if found == language else f"it reads as {found}"
    return None


def script_share(language: str, text: str) -> float | None:
    """The share of a text's letters that are in the script of a language; None of a text without letters."""
    counts = _letters(text)
    return _of_script(language, counts) / counts.total() if counts else None


def _of_script(language: str, letters: Counter[str]) -> int:
    return sum(letters[script] for script in _scripts(language))


def _scripts(language: str) -> tuple[str, ...]:
    return _SCRIPTS.get(language, _LATIN)


def _without_copied(text: str, source: str, language: str) -> str:
    """Without the words in a foreign script that the source has too."""
    if "LATIN" in _scripts(language):
        return text
    known = set(re.findall(r"[A-Za-z]+", source))
    return re.sub(r"[A-Za-z]+", lambda word: "" if word[0] in known else word[0], text)


def _letters(text: str) -> Counter[str]:
    """Letters by script."""
    return Counter(_script(sign) for sign in text if sign.isalpha() and sign != "ー")


@functools.lru_cache(1 << 16)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "")
    return "LATIN" if name.startswith("FULLWIDTH LATIN") else name.partition(" ")[0]


def require_identifier(language: str, of_source: str) -> None:
    """Raises JobError if these two can only be told apart by a package that is not here."""
    if language != of_source and share_a_script(language, of_source) and {language, of_source} != {"ja", "zh"}:
        _identifier(language, of_source)


@functools.cache
def _identifier(*languages: str) -> Callable[[str], str]:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise JobError(
            f"[check] checks: language: {' and '.join(languages)} have one script, and py3langid, which tells them "
            "apart, is not installed: pip install py3langid"
        ) from None
    # Until 0.3 the model was a pickle.
    load = getattr(LanguageIdentifier, "from_model_file", None) or LanguageIdentifier.from_pickled_model
    identifier = load(MODEL_FILE)
    try:
        identifier.set_languages(list(languages))
    except ValueError as error:
        raise JobError(f"[check] checks: language: py3langid: {error}") from None
    return lambda text: str(identifier.classify(text)[0])
