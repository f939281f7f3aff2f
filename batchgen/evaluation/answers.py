"""Whether a written answer is one of the right ones, after the normalisation of the fork: emoji taken out, and what
neologdn's `normalize` does.

Written from neologdn's description, not from its code. It may differ in rare characters: enclosed ones, and which of
several similar signs it keeps. An answer and the right ones are normalised alike, so that only pairs count that the two
would not equate alike.
"""

from collections.abc import Iterable

import regex

# Full width to half width: letters, digits and signs. The hyphen-minus and the tilde have their own rules.
_HALF = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5E) if code != 0xFF0D}
_HALF |= {ord("”"): ord('"'), ord("’"): ord("'"), ord("‘"): ord("`"), ord("￥"): ord("¥")}
_KANA = str.maketrans(
    "｡｢｣､･ｦｧｨｩｪｫｬｭｮｯｱｲｳｴｵｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾅﾆﾇﾈﾉﾊﾋﾌﾍﾎﾏﾐﾑﾒﾓﾔﾕﾖﾗﾘﾙﾚﾛﾜﾝﾞﾟ",
    "。「」、・ヲァィゥェォャュョッアイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワン゛゜",
)
_VOICED = dict(
    zip("ウカキクケコサシスセソタチツテトハヒフヘホ", "ヴガギグゲゴザジズゼゾダヂヅデドバビブベボ", strict=True)
)
_HALF_VOICED = dict(zip("ハヒフヘホ", "パピプペポ", strict=True))

_EMOJI = regex.compile(
    r"[\p{Extended_Pictographic}\p{Emoji_Modifier}\p{Regional_Indicator}\u200d\ufe0f\u20e3--[©®™]]", regex.V1
)
_HYPHENS = regex.compile("[˗֊‐‑‒–⁃⁻₋−-]+")
_LONG_VOWELS = regex.compile("[﹣－ｰ—―─━ー]+")
_TILDES = regex.compile("[~∼∾〜〰～]")
_VOICE_MARKS = regex.compile("([ウカキクケコサシスセソタチツテトハヒフヘホ])゛|([ハヒフヘホ])゜")
_WIDE = r"[\p{Han}\p{Hiragana}\p{Katakana}\u3000-\u303f\u30fb\u30fc\uff00-\uffef]"
_SPACE_BESIDE_WIDE = regex.compile(rf"(?<={_WIDE}) | (?={_WIDE})")


def is_right(answer: str, right: Iterable[str]) -> bool:
    found = normalise(answer)
    return any(found == normalise(each) for each in right)


def normalise(text: str) -> str:
    """A text without emoji, tildes and spaces beside Japanese; signs that look alike made one."""
    text = _EMOJI.sub("", text)
    text = _LONG_VOWELS.sub("ー", _HYPHENS.sub("-", text))
    text = _TILDES.sub("", text).translate(_KANA).translate(_HALF)
    text = _VOICE_MARKS.sub(lambda found: _VOICED[found[1]] if found[1] else _HALF_VOICED[found[2]], text)
    return _SPACE_BESIDE_WIDE.sub("", " ".join(text.split()))
