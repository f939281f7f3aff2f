"""The numbers of a text as values, so that 458ドル78セント and $458.78, 午後3時半 and 3:30 p.m. are equal.

English and Japanese are read by the tables here. Of any other language only the figures of three digits and more are
compared, as strings: separators, number words and units differ too much to guess.

Counting digits does not do: of the demo's 2,000 correct pairs the rule of OpusCleaner's num_mismatch.py flags 1,540 and
equal multisets of digits 1,096.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

MOST = 400  # numbers of a text that are matched one by one; of more, only the set of values is compared

Value = Fraction
Values = frozenset[Value]


class Number(NamedTuple):
    """A number as it stands in a text.

    text: as written, for messages
    values: what it may mean: {3, 15} for "3 o'clock"
    is_strong: whether the other text must have it too. "one", "first", 一人 or "half" may well be other words there.
    """

    text: str
    values: Values
    is_strong: bool


def mismatch(source: str, source_language: str, target: str, target_language: str) -> str | None:
    """What is wrong with the numbers of a translation, for people; None if nothing is.

    languages: ISO 639-1 codes; "" for Japanese where a text has kana, and for English where the other one has them
    """
    have_kana = bool(_KANA.search(source)), bool(_KANA.search(target))
    source_language = source_language or _guess(*have_kana)
    target_language = target_language or _guess(*reversed(have_kana))
    readers = _READERS.get(source_language), _READERS.get(target_language)
    if readers[0] and readers[1]:
        ours, theirs = list(readers[0](_plain(source))), list(readers[1](_plain(target)))
    else:
        ours, theirs = list(_long_figures(_plain(source))), list(_long_figures(_plain(target)))
    if missing := _unmatched(ours, theirs):
        return f"{missing.text} of the source is missing"
    if added := _unmatched(theirs, ours):
        return f"{added.text} is not in the source"
    return None


_KANA = re.compile("[ぁ-ゖァ-ヺ]")


def _guess(has_kana: bool, other_has: bool) -> str:
    return "ja" if has_kana else "en" if other_has else ""


def _unmatched(numbers: list[Number], others: list[Number]) -> Number | None:
    """The first strong number for which no number of the others is left."""
    strong = [number for number in numbers if number.is_strong]
    if max(len(strong), len(others)) > MOST:
        known = frozenset[Value]().union(*(other.values for other in others))
        return next((number for number in strong if known.isdisjoint(number.values)), None)
    partner: dict[int, int] = {}  # of the others, by position: which strong number took it

    def take(position: int, asked: set[int]) -> bool:
        """An augmenting path (Kuhn): a partner that is taken may find itself another one."""
        for at, other in enumerate(others):
            if at not in asked and not other.values.isdisjoint(strong[position].values):
                asked.add(at)
                if at not in partner or take(partner[at], asked):
                    partner[at] = position
                    return True
        return False

    return next((number for position, number in enumerate(strong) if not take(position, set())), None)


def _plain(text: str) -> str:
    """NFKC, which makes figures of all kinds ASCII, without the exponents of units: m² is 平方メートル."""
    text = re.sub("[²³¹⁰⁴-⁹]", "", text).replace("㎡", "m").replace("㎥", "m")
    return unicodedata.normalize("NFKC", text)


def _number(text: str, *values: float | Value, strong: bool = True) -> Number:
    """0 and 1 are never strong: the other text may say "an hour", or nothing."""
    exact = frozenset(Fraction(value) for value in values)
    return Number(text.strip(), exact, strong and exact.isdisjoint({Fraction(0), Fraction(1)}))


def _long_figures(text: str) -> Iterator[Number]:
    for found in re.finditer(r"\d[\d.,' ]*\d{2}", text):
        digits = re.sub(r"\D", "", found[0])
        if len(digits) >= 3:
            yield _number(found[0], int(digits))


# --- reading by rules

FIGURE = r"(?<![\d.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
HALF = Fraction(1, 2)
HALVES = HALF, 30, 50, 6  # of one, of an hour, in per cent, of a year in months

# What a rule makes of a match: its numbers, or None to leave it to later rules.
Rule = tuple[str, Callable[[re.Match[str]], Iterable[Number] | None]]


def _read(text: str, rules: list[Rule]) -> Iterator[Number]:
    """The numbers that the rules find. What one rule has read, later ones do not see."""
    for pattern, numbers_of in rules:
        kept, end = [], 0
        for found in re.finditer(pattern, text, re.IGNORECASE):
            numbers = numbers_of(found)
            if numbers is not None:
                yield from numbers
                kept.append(text[end : found.start()])
                end = found.end()
        text = "\0".join([*kept, text[end:]])


def _figure(text: str) -> Value:
    return Fraction(text.replace(",", ""))


def _hint(text: str, *values: float | Value) -> Number:
    return _number(text, *values, strong=False)


def _time(text: str, hour: int, minute: int, half_of_day: str) -> Iterator[Number]:
    """half_of_day: "am", "pm", or "" where it is not said"""
    midnight_or_noon = (0, 12, 24) if hour in (0, 12) else ()
    later = (hour + 12,) if hour < 12 and half_of_day != "am" else ()
    yield _number(text, *(later if half_of_day == "pm" and later else (hour, *later)), *midnight_or_noon)
    if minute:
        yield _number(text, minute)


def _and_a_half(text: str, value: Value) -> Iterator[Number]:
    """Two and a half hours may be two hours and half an hour, or 150 minutes, there."""
    yield _number(text, value + HALF, value, 60 * value + 30, 12 * value + 6)
    yield _hint("half", *HALVES)


def _money(found: re.Match[str]) -> Iterator[Number]:
    """Dollars and cents as one value."""
    whole, cents = found["whole"], Fraction(found["cents"])
    yield _number(found[0], _figure(whole) + cents / 100) if whole else _number(found[0], cents / 100, cents)


_LESS_THAN_ONE: Rule = (r"[$€£] ?0\.(?P<whole>)(?P<cents>\d\d)(?!\d)", _money)  # $0.78 is 78 cents in both languages


# --- English

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {word: value for value, word in enumerate([*_UNITS.split(), "seventeen", "eighteen", "nineteen"])}
_WORDS |= {word: 20 + 10 * at for at, word in enumerate(_TENS)}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SCALES |= {"k": 10**3, "m": 10**6, "mn": 10**6, "bn": 10**9, "b": 10**9, "tn": 10**12}
_LONG_SCALES = "hundred|thousand|million|billion|trillion"
_ORDINALS = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
    fifteenth sixteenth seventeenth eighteenth nineteenth""".split()
_MONTHS = "January February March April May June July August September October November December".split()
_MONTH_NUMBERS = {name[:length]: at for at, name in enumerate(_MONTHS, 1) for length in (3, 4, len(name))}

# Words that may stand for a number, but need not.
_HINTS: dict[str, tuple[float | Value, ...]] = {
    **{word: (value,) for value, word in enumerate(_ORDINALS, 1)},
    **{f"{word}s": (value,) for value, word in enumerate(_ORDINALS, 1) if value > 2},  # two thirds
    **{f"{word[:-1]}ieth": (20 + 10 * at,) for at, word in enumerate(_TENS)},
    **{f"{word[:-1]}ies": (20 + 10 * at,) for at, word in enumerate(_TENS)},  # the twenties
    **dict.fromkeys(("both", "twice", "double", "couple", "pair", "either", "halves", "two-way"), (2,)),
    **dict.fromkeys(("half", "half-price"), HALVES),
    **dict.fromkeys(("dozen", "dozens"), (12,)),
    **dict.fromkeys(("noon", "midday", "midnight"), (0, 12, 24)),
    **dict.fromkeys(("teens", "teenager", "teenagers", "decade", "decades"), (10,)),
    **{"triple": (3,), "fortnight": (2, 14), "century": (100,), "quarter": (4, 15, 25, 45), "quarters": (4,)},
}

_WORD = "|".join([*_WORDS, *_LONG_SCALES.split("|")])
_SPELLED = rf"\b(?:an? (?:{_LONG_SCALES})|{'|'.join(_WORDS)})\b(?:(?: and | |-)(?:{_WORD})\b)*"


def _in_figures(found: re.Match[str]) -> str:
    """Number words in figures: "two hundred and five" is 205, "nineteen ninety-nine" 1999, "two three" 2 3."""
    done: list[int] = []
    total = group = last = 0  # of thousands; below them; the word before
    for word in re.findall(r"[a-z]+", found[0].lower()):
        if word in _WORDS:
            value = _WORDS[word]
            if 10 <= group <= 20 and group == last and value >= 10 and not total:
                group *= 100  # a year: nineteen ninety
            elif last and last < 100 and not (last >= 20 and 0 < value < 10):
                done.append(total + group)
                total = group = 0
            group += value
            last = value or -1
        elif word in _SCALES:
            last = _SCALES[word]
            if word == "hundred":
                group = (group or 1) * 100
            else:
                total, group = total + (group or 1) * last, 0
    return " ".join(map(str, [*done, total + group]))


def _english_time(found: re.Match[str]) -> Iterable[Number] | None:
    day = (found["day"] or "").lower()
    if not (day or found["past"] or found["minute"] or found["clock"]):
        return None
    half_of_day = "am" if re.match("a.?m|in the morning", day) else "pm" if day else ""
    minute = 30 if found["past"] else int(found["minute"] or 0)
    return _time(found[0], int(found["hour"]), minute, half_of_day)


def _quarter_to(found: re.Match[str]) -> Iterable[Number]:
    """15 minutes to four, or 45 past three."""
    hour = int(found["hour"])
    return [_hint(found[0], hour, hour + 12, hour - 1, hour + 11), _hint(found[0], 15, 45)]


def _english_month(found: re.Match[str]) -> Iterable[Number] | None:
    """Strong beside a day or a year. In small letters "may" and "march" are other words."""
    if found[0][0].islower():
        return None
    before, after = found.string[: found.start()], found.string[found.end() :]
    beside = re.match(r"\.?,? ?\d", after) or re.search(r"\d(?:st|nd|rd|th)?(?: of)? ?$", before)
    return [_number(found[0], _MONTH_NUMBERS[found[0].title()], strong=bool(beside))]


def _english_number(found: re.Match[str]) -> Iterable[Number]:
    value = _figure(found["figure"])
    if scale := found["scale"] or found["short"]:
        value *= _SCALES[scale.lower()]
    if found["half"]:
        return _and_a_half(found[0], value)
    return [_number(found[0], value)]


_COIN = r"(?:cents?|pence)\b"
_ENGLISH: list[Rule] = [
    (r"quarter to (?P<hour>\d\d?)\b", _quarter_to),
    (
        rf"(?:(?P<whole>{FIGURE}) ?(?:dollars?|euros?|pounds?),?(?: and)? )?(?<![\d.,])(?P<cents>\d\d?) {_COIN}",
        _money,
    ),
    _LESS_THAN_ONE,
    (
        r"(?P<past>half past )?(?<![\d.,:/$€£])(?P<hour>[01]?\d|2[0-4])(?::(?P<minute>[0-5]\d))?(?!\d|[.,:]\d)"
        r"(?P<clock> ?o'clock)?(?: ?(?P<day>[ap]\.?m\b\.?|in the (?:morning|afternoon|evening)|at night))?",
        _english_time,
    ),
    (rf"\b(?:{'|'.join(_MONTHS)}|(?:{'|'.join(name[:3] for name in _MONTHS)}|Sept)(?=\.? \d))\b", _english_month),
    (
        rf"(?P<figure>{FIGURE})"
        rf"(?:[ -]?(?P<scale>{_LONG_SCALES}|dozen)\b|(?P<short>k|mn?|bn?|tn)\b|(?:st|nd|rd|th)\b)?"
        r"(?P<half>(?: \w+)? and a half\b)?",
        _english_number,
    ),
    (
        rf"\b(?:{'|'.join(sorted(_HINTS, key=len, reverse=True))})\b",
        lambda found: [_hint(found[0], *_HINTS[found[0].lower()])],
    ),
]


def _english(text: str) -> Iterator[Number]:
    text = re.sub(r"\s+", " ", text.replace("’", "'"))
    yield from _read(re.sub(_SPELLED, _in_figures, text, flags=re.IGNORECASE), _ENGLISH)


# --- Japanese

_KANJI = {kanji: value for value, kanji in enumerate("〇一二三四五六七八九")}
_KANJI_TENS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "億": 10**8, "兆": 10**12}
_ERAS = {"令和": 2018, "平成": 1988, "昭和": 1925, "大正": 1911, "明治": 1867}  # the year before the first
_DIGITS, _PLACES = "".join(_KANJI), "".join(_KANJI_TENS)
# Words with several number signs that are no numbers: greengrocer, the syllabary, a festival, a name.
_NOT_NUMBERS = "八百屋|八百長|五十音|五十嵐|七五三|一二三|二三|三々五々|四六時中|十中八九|千万|百千"
_DAYTIMES = {
    "午前": "am",
    "朝": "am",
    "早朝": "am",
    "未明": "am",
    "午後": "pm",
    "夕方": "pm",
    "夜": "",
    "深夜": "",
    "昼": "",
}

_JAPANESE_HINTS: dict[str, tuple[float | Value, ...]] = {
    **{
        word: (value,)
        for value, word in enumerate("ふたつ みっつ よっつ いつつ むっつ ななつ やっつ ここのつ".split(), 2)
    },
    **{
        "ふたり": (2,),
        "両": (2,),
        "双方": (2,),
        "倍": (2,),
        "半": HALVES,
        "ダース": (12,),
        "二十歳": (20,),
        "はたち": (20,),
    },
    **{"正午": (0, 12, 24), "零時": (0, 12, 24), "真夜中": (0, 12, 24), "世紀": (100,), "四半": (4,)},
}


def _kanji_value(text: str) -> int:
    """Of a run of number signs: 二〇二三 is 2023, 千二百 is 1200."""
    if not set(text) & set(_PLACES):
        return int("".join(str(_KANJI[sign]) for sign in text))
    total = digit = 0
    for sign in text:
        if sign in _KANJI_TENS:
            total, digit = total + (digit or 1) * _KANJI_TENS[sign], 0
        else:
            digit = _KANJI[sign]
    return total + digit


def _kanji_in_figures(found: re.Match[str]) -> str:
    """Two and more number signs in figures. One alone is as often part of a word (一緒, 三日月), so it stays."""
    run = found[0]
    is_number = len(run) > 1 and bool(set(run) & set(_PLACES + "〇") or len(run) == 4)
    return str(_kanji_value(run)) if is_number else run


def _with_myriads(found: re.Match[str]) -> Iterable[Number]:
    """1億2,000万 is one number."""
    value, rest = Fraction(0), found[0]
    for part in re.finditer(rf"(?P<figure>{FIGURE}|[{_DIGITS}{_PLACES}])千?(?P<scale>[万億兆])?", rest):
        figure = part["figure"]
        many = Fraction(_kanji_value(figure)) if figure in _DIGITS + _PLACES else _figure(figure)
        many *= 1000 if "千" in part[0][len(figure) :] else 1
        value += many * _MYRIADS.get(part["scale"] or "", 1)
    return [_number(found[0], value)]


def _japanese_time(found: re.Match[str]) -> Iterable[Number] | None:
    half_of_day = _DAYTIMES.get(found["day"] or "", "")
    minute = 30 if found["half"] else int(found["minute"] or found["minutes"] or 0)
    return _time(found[0], int(found["hour"]), minute, half_of_day)


def _era_year(found: re.Match[str]) -> Iterable[Number]:
    year = 1 if found["year"] == "元" else int(found["year"])
    return [_number(found[0], _ERAS[found["era"]] + year, year)]


def _japanese_number(found: re.Match[str]) -> Iterable[Number]:
    value, text = _figure(found["figure"]), found[0]
    if found["half"]:
        return _and_a_half(text, value)
    if found["unit"] == "割":
        return [_number(text, value * 10, value, value / 10)]
    if found["unit"] == "ダース":
        return [_number(text, value * 12, value), _hint(text, 12)]
    if found["unit"] == "千":
        return [_number(text, value * 1000)]
    return [_number(text, value)]


_JAPANESE: list[Rule] = [
    (_NOT_NUMBERS, lambda found: []),
    (rf"(?P<era>{'|'.join(_ERAS)})(?P<year>\d+|元)(?=年)", _era_year),
    (
        rf"(?:(?P<whole>{FIGURE})(?:ドル|ユーロ|ポンド)と?)?(?<![\d.,])(?P<cents>\d\d?)(?:セント|ペンス)",
        _money,
    ),
    _LESS_THAN_ONE,
    (
        rf"(?:(?P<day>{'|'.join(_DAYTIMES)})の?)?(?<![\d.,:/])(?P<hour>[01]?\d|2[0-4])"
        r"(?::(?P<minute>[0-5]\d)(?!\d)|時(?!間|代)(?:(?P<half>半)|(?P<minutes>[0-5]?\d)分)?)",
        _japanese_time,
    ),
    (
        rf"(?:(?:{FIGURE}|[{_DIGITS}{_PLACES}])千?[万億兆])+(?:{FIGURE}|[{_DIGITS[1:]}{_PLACES}](?![万億兆]))?",
        _with_myriads,
    ),
    (
        rf"(?P<figure>{FIGURE})(?P<unit>割|ダース|千)?(?P<half>(?:時間|年|か月|ヶ月|カ月|倍|週間|日)?半)?",
        _japanese_number,
    ),
    (rf"[{_DIGITS[1:]}{_PLACES}]", lambda found: [_hint(found[0], _kanji_value(found[0]))]),
    ("|".join(_JAPANESE_HINTS), lambda found: [_hint(found[0], *_JAPANESE_HINTS[found[0]])]),
]


def _japanese(text: str) -> Iterator[Number]:
    text = re.sub(
        rf"(?!{_NOT_NUMBERS})[{_DIGITS}{_PLACES}]+", _kanji_in_figures, re.sub(r"(?<=\d)\s+(?=\d)", "\0", text)
    )
    yield from _read(text, _JAPANESE)


_READERS: dict[str, Callable[[str], Iterator[Number]]] = {"en": _english, "ja": _japanese}
