"""Parallel English and Japanese sentences of everyday life, for the demo model and its data.

A template is a pair of lines with the same slots; a slot is filled with the two sides of one phrase.
Every sentence has exactly one right translation, so a response can be compared with its expected text.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from random import Random
from typing import Any, NamedTuple

HELD_OUT_COUNT = 2_000
HELD_OUT_SEED = 20_230_802
EARLIER_TURN_SHARE = 0.15


class Phrase(NamedTuple):
    en: str
    ja: str


@dataclass(frozen=True)
class Example:
    """One translation task; `direction` is "en-ja" or "ja-en"."""

    source: str
    target: str
    direction: str


def _table(text: str) -> list[Phrase]:
    return [Phrase(*entry.strip().rsplit(" ", 1)) for entry in text.split("|")]


CITIES = _table(
    "Tokyo 東京 | Kyoto 京都 | Osaka 大阪 | Nara 奈良 | Kobe 神戸 | Nagoya 名古屋 | Sapporo 札幌 | "
    "Sendai 仙台 | Fukuoka 福岡 | Hiroshima 広島 | Yokohama 横浜 | Kanazawa 金沢 | Nagano 長野 | "
    "Hakodate 函館 | Kamakura 鎌倉 | Nikko 日光 | Okayama 岡山 | Kumamoto 熊本 | Nagasaki 長崎 | "
    "Kagoshima 鹿児島 | Naha 那覇 | London ロンドン | Paris パリ | New York ニューヨーク | "
    "Seoul ソウル | Singapore シンガポール | Sydney シドニー | Berlin ベルリン"
)
FACILITIES = _table(
    "station 駅 | airport 空港 | museum 博物館 | art museum 美術館 | library 図書館 | "
    "post office 郵便局 | hospital 病院 | bank 銀行 | hotel ホテル | park 公園 | zoo 動物園 | "
    "aquarium 水族館 | castle お城 | market 市場 | university 大学 | city hall 市役所 | bookstore 本屋 | "
    "bakery パン屋 | pharmacy 薬局 | supermarket スーパー | theater 劇場 | movie theater 映画館 | "
    "temple お寺 | shrine 神社 | stadium スタジアム | restaurant レストラン"
)
PEOPLE = _table(
    "my mother 母 | my father 父 | my older sister 姉 | my younger brother 弟 | my friend 友達 | "
    "my teacher 先生 | Emma エマさん | Lisa リサさん | Tom トムさん | Mike マイクさん | "
    "Maria マリアさん | Ken ケンさん | Yuki ユキさん | Hanako 花子さん"
)
SPEAKERS = _table("I 私 | we 私たち")
TRAINS = _table(
    "train 電車 | express train 急行電車 | night train 夜行列車 | bullet train 新幹線 | local train 普通電車"
)
TRANSPORT = _table("train 電車 | bus バス | car 車 | taxi タクシー | bicycle 自転車 | ferry フェリー")
EVENTS = _table(
    "meeting 会議 | concert コンサート | class 授業 | party パーティー | festival お祭り | game 試合 | "
    "exhibition 展覧会 | movie 映画 | tour ツアー | lecture 講演 | interview 面接"
)
FIXTURES = _table(
    "air conditioner エアコン | television テレビ | shower シャワー | light 照明 | heater 暖房 | "
    "telephone 電話 | refrigerator 冷蔵庫 | hair dryer ドライヤー"
)
ROOMS = _table("single シングル | double ダブル | twin ツイン")
COLORS = _table("red 赤い | blue 青い | white 白い | black 黒い | yellow 黄色い | brown 茶色い")
WARES = _table(
    "umbrella 傘 | bag かばん | hat 帽子 | shirt シャツ | coat コート | wallet 財布 | chair 椅子 | "
    "camera カメラ | watch 腕時計 | vase 花瓶 | scarf マフラー | notebook ノート"
)
WEATHER = _table("rain 雨が降る | snow 雪が降る | be sunny 晴れる | be cloudy 曇る")
TURNS = _table("left 左に曲がって | right 右に曲がって")

# By counter: Japanese counts bottles, flat things, books, machines and so on each in its own way.
GOODS = {
    "本": _table(
        "bottle of water 水 | bottle of milk 牛乳 | bottle of wine ワイン | bottle of juice ジュース | "
        "umbrella 傘 | pencil 鉛筆 | banana バナナ"
    ),
    "杯": _table("cup of coffee コーヒー | cup of black tea 紅茶 | cup of green tea 緑茶 | glass of beer ビール"),
    "枚": _table("stamp 切手 | postcard 絵はがき | towel タオル | shirt シャツ | blanket 毛布 | sheet of paper 紙"),
    "冊": _table("book 本 | magazine 雑誌 | notebook ノート | dictionary 辞書"),
    "個": _table(
        "apple りんご | orange オレンジ | egg 卵 | sandwich サンドイッチ | rice ball おにぎり | "
        "lemon レモン | suitcase スーツケース"
    ),
    "台": _table("camera カメラ | computer パソコン | bicycle 自転車"),
    "足": _table("pair of shoes 靴 | pair of socks 靴下"),
    "箱": _table("box of cookies クッキー | box of chocolates チョコレート"),
    "袋": _table("bag of candy キャンディー | bag of potatoes じゃがいも"),
    "キロ": _table(
        "kilogram of rice お米 | kilogram of sugar 砂糖 | kilogram of flour 小麦粉 | kilogram of carrots にんじん"
    ),
    "リットル": _table("liter of olive oil オリーブオイル | liter of soy sauce しょうゆ"),
    "グラム": _table("gram of beef 牛肉 | gram of cheese チーズ | gram of butter バター | gram of salt 塩"),
}
CROWDS = {
    "人います": _table("student 学生 | tourist 観光客 | doctor 医者 | guest お客さん"),
    "匹います": _table("cat 猫 | dog 犬"),
    "羽います": _table("bird 鳥 | duck アヒル"),
    "台あります": _table("car 車 | bicycle 自転車 | truck トラック"),
    "本あります": _table("cherry tree 桜の木 | pine tree 松の木"),
}

NUMBER_WORDS = "one two three four five six seven eight nine".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = _table(
    "Monday 月曜日 | Tuesday 火曜日 | Wednesday 水曜日 | Thursday 木曜日 | Friday 金曜日 | "
    "Saturday 土曜日 | Sunday 日曜日"
)
NAMED_DAYS = _table("today 今日 | tomorrow 明日 | the day after tomorrow あさって")
PAST_DAYS = _table("yesterday 昨日 | the day before yesterday おととい | last week 先週 | last month 先月")

TEMPLATES = """
The {train} to {city} leaves {when} from platform {platform}.
{city}行きの{train}は{when}{platform}番線から出ます。
The {train} from {city} arrives {when}.
{city}からの{train}は{when}着きます。
The flight to {city} leaves {when} from gate {platform}.
{city}行きの飛行機は{when}{platform}番ゲートから出発します。
How long does it take from {city} to {place} by {transport}?
{city}から{place}まで{transport}でどのくらいかかりますか。
It takes {duration} from {place} to {place2} by {transport}.
{place}から{place2}まで{transport}で{duration}かかります。
The fare from {city} to {city2} is {price}.
{city}から{city2}までの運賃は{price}です。
I would like {tickets} to {city} for {date}, please.
{date}の{city}行きの切符を{tickets}お願いします。
Does this {train} go to {place}?
この{train}は{place}に行きますか。
Where is {place}?
{place}はどこですか。
How far is it from {place} to {place2}?
{place}から{place2}までどのくらいの距離ですか。
It is {distance} from {place} to {place2}.
{place}から{place2}まで{distance}です。
Turn {turn} at {place} and walk for {minutes}.
{place}で{turn}、{minutes}歩いてください。

I would like a {room} room for {nights} from {date}.
{date}から{nights}、{room}ルームをお願いします。
How much is a {room} room for {nights} in {city}?
{city}の{room}ルームは{nights}でいくらですか。
A {room} room costs {price} per night.
{room}ルームは1泊{price}です。
Breakfast is on the {floor} floor from {morning}.
朝食は{morning}から{floor}階です。
The {fixture} in room {number} does not work.
{number}号室の{fixture}が壊れています。
Please bring {goods} to room {number}.
{number}号室に{goods}持ってきてください。
Please call a taxi to {place} {when}.
{when}{place}までのタクシーを呼んでください。
I would like to reserve {seats} for the {event} {when}.
{when}始まる{event}の席を{seats}予約したいのですが。
Please change my reservation from {date} to {date2}.
予約を{date}から{date2}に変更してください。
My reservation number is {code}.
私の予約番号は{code}です。

How much is it for {bundle}?
{bundle}でいくらですか。
The price of {bundle} is {price}.
{bundle}の値段は{price}です。
I would like {goods}, please.
{goods}ください。
I would like {goods} and {goods2}, please.
{goods}、{goods2}ください。
This {color} {ware} costs {price}.
この{color}{ware}は{price}です。
Do you have a {color} {ware} for less than {price}?
{price}より安い{color}{ware}はありますか。
{who} bought {goods} at {place} for {price}.
{who}は{place}で{goods}、{price}で買いました。
{who} bought {goods} {past}.
{who}は{past}、{goods}買いました。
{who} bought a {color} {ware} in {city} {past}.
{who}は{past}{city}で{color}{ware}を買いました。
{who} paid {price} for {bundle}.
{who}は{bundle}に{price}払いました。
Please send {goods} to {place} by {date}.
{date}までに{place}に{goods}送ってください。

The {event} starts {when}.
{event}は{when}始まります。
The {event} at {place} has been moved to {date}.
{place}での{event}は{date}に変更になりました。
The {event} lasts {duration}, and tickets cost {price}.
{event}は{duration}で、チケットは{price}です。
{who} will meet {person} at {place} {when}.
{who}は{when}{place}で{person}に会います。
{who} will arrive in {city} {when}.
{who}は{when}{city}に着きます。
{who} will go to {place} with {person} {day}.
{who}は{day}{person}と{place}へ行きます。
{who} will stay in {city} for {nights} from {date}.
{who}は{date}から{city}に{nights}します。
Can we meet at {place} {when}?
{when}{place}で会えますか。
{person}'s birthday is {birthday}.
{person}の誕生日は{birthday}です。
{person} was born in {city} in {year}.
{person}は{year}年に{city}で生まれました。
{place} was built in {year}.
{place}は{year}年に建てられました。
{place} is open from {morning} to {evening}.
{place}は{morning}から{evening}まで開いています。
{place} is closed {every}.
{place}は{every}がお休みです。
There are {crowd} at {place}.
{place}に{crowd}。
It will {weather} in {city} {day}.
{city}では{day}{weather}でしょう。
The temperature in {city} is {degrees} degrees now.
{city}の気温は今{degrees}度です。
"""


def _same(value: object) -> Phrase:
    return Phrase(str(value), str(value))


def _plural(noun: str, count: int) -> str:
    if count == 1:
        return noun
    head, of, rest = noun.partition(" of ")
    if head.endswith(("ch", "x", "s")):
        head += "es"
    elif head.endswith("ry"):
        head = head[:-1] + "ies"
    else:
        head += "s"
    return head + of + rest


def _counted(count: int, noun: str) -> str:
    words = NUMBER_WORDS[count - 1] if count < 10 else str(count)
    return f"{words} {_plural(noun, count)}"


def _count(rng: Random) -> int:
    return rng.randint(1, 9) if rng.random() < 0.7 else rng.randint(10, 60)


def _goods(rng: Random, particle: str) -> Phrase:
    counter = rng.choice([counter for counter, nouns in GOODS.items() for _ in nouns])
    noun = rng.choice(GOODS[counter])
    count = rng.randrange(100, 1000, 50) if counter == "グラム" else _count(rng)
    return Phrase(_counted(count, noun.en), f"{noun.ja}{particle}{count}{counter}")


def _crowd(rng: Random) -> Phrase:
    counter = rng.choice(list(CROWDS))
    noun = rng.choice(CROWDS[counter])
    count = _count(rng) + 1
    return Phrase(_counted(count, noun.en), f"{noun.ja}が{count}{counter}")


def _units(english: str, japanese: str, most: int) -> Callable[[Random], Phrase]:
    def phrase(rng: Random) -> Phrase:
        count = rng.randint(1, most)
        return Phrase(_counted(count, english), f"{count}{japanese}")

    return phrase


def _duration(rng: Random) -> Phrase:
    hours, minutes = rng.randint(0, 6), rng.choice([0, rng.randrange(5, 60, 5)])
    if hours == 0:
        minutes = minutes or 5
    parts = [(hours, "hour", "時間"), (minutes, "minute", "分")]
    return Phrase(
        " and ".join(_counted(count, unit) for count, unit, _ in parts if count),
        "".join(f"{count}{unit}" for count, _, unit in parts if count),
    )


def _price(rng: Random) -> Phrase:
    digits = rng.randint(1, 3)
    amount = rng.randrange(10 ** (digits - 1), 10**digits)
    kind = rng.choice(["dollars", "cents", "yen", "yen", "euros"])
    if kind == "dollars":
        return Phrase(f"${amount}", f"{amount}ドル")
    if kind == "cents":
        cents = rng.randint(1, 99)
        return Phrase(f"${amount}.{cents:02}", f"{amount}ドル{cents}セント")
    if kind == "yen":
        amount = rng.choice([amount * 10, amount * 100, rng.randint(100, 99_999)])
        return Phrase(f"{amount:,} yen", f"{amount:,}円")
    return Phrase(f"{amount + 1} euros", f"{amount + 1}ユーロ")


def _clock(rng: Random, first_hour: int = 0, last_hour: int = 23) -> Phrase:
    hour, minute = rng.randint(first_hour, last_hour), rng.choice([0, 30, rng.randrange(60)])
    if minute == 0 and hour in (0, 12):
        return Phrase("noon", "正午") if hour else Phrase("midnight", "午前0時")
    en_minute = f":{minute:02}" if minute else ""
    ja_minute = {0: "", 30: "半"}.get(minute, f"{minute}分")
    en_half, ja_half = ("a.m.", "午前") if hour < 12 else ("p.m.", "午後")
    return Phrase(f"{hour % 12 or 12}{en_minute} {en_half}", f"{ja_half}{hour % 12}時{ja_minute}")


def _calendar_day(rng: Random) -> date:
    return date.fromordinal(rng.randrange(date(2024, 1, 1).toordinal(), date(2040, 1, 1).toordinal()))


def _month_day(day: date) -> Phrase:
    return Phrase(f"{MONTHS[day.month - 1]} {day.day}", f"{day.month}月{day.day}日")


def _date(rng: Random) -> Phrase:
    """A date with or without its year and weekday; the weekday is the true one of that year."""
    day = _calendar_day(rng)
    weekday = WEEKDAYS[day.weekday()]
    en, ja = _month_day(day)
    if rng.random() < 0.4:
        en, ja = f"{en}, {day.year}", f"{day.year}年{ja}"
    if rng.random() < 0.3:
        en, ja = f"{weekday.en}, {en}", f"{ja}{weekday.ja}"
    return Phrase(en, ja)


def _any_day(rng: Random) -> Phrase:
    """A day as an adverb: the English with its preposition, the Japanese without its particle."""
    kind = rng.choice(["named", "weekday", "next", "date", "date"])
    if kind == "named":
        return rng.choice(NAMED_DAYS)
    if kind == "date":
        day = _date(rng)
        return Phrase(f"on {day.en}", day.ja)
    weekday = rng.choice(WEEKDAYS)
    if kind == "next":
        return Phrase(f"next {weekday.en}", f"来週の{weekday.ja}")
    return Phrase(f"on {weekday.en}", weekday.ja)


def _day(rng: Random) -> Phrase:
    day = _any_day(rng)
    return day if day in NAMED_DAYS else Phrase(day.en, day.ja + "に")


def _past(rng: Random) -> Phrase:
    if rng.random() < 0.5:
        return rng.choice(PAST_DAYS)
    weekday = rng.choice(WEEKDAYS)
    return Phrase(f"last {weekday.en}", f"先週の{weekday.ja}に")


def _when(rng: Random) -> Phrase:
    clock, day = _clock(rng), _any_day(rng)
    return Phrase(f"at {clock.en} {day.en}", f"{day.ja}の{clock.ja}に")


def _every(rng: Random) -> Phrase:
    first, second = sorted(rng.sample(range(7), 2))
    one, two = WEEKDAYS[first], WEEKDAYS[second]
    if rng.random() < 0.5:
        return Phrase(f"every {one.en}", f"毎週{one.ja}")
    return Phrase(f"every {one.en} and {two.en}", f"毎週{one.ja}と{two.ja}")


def _place(rng: Random) -> Phrase:
    facility, city = rng.choice(FACILITIES), rng.choice(CITIES)
    if rng.random() < 0.4:
        return Phrase(f"the {facility.en}", facility.ja)
    return Phrase(f"the {facility.en} in {city.en}", f"{city.ja}の{facility.ja}")


def _floor(rng: Random) -> Phrase:
    number = rng.randint(1, len(ORDINALS))
    return Phrase(ORDINALS[number - 1], str(number))


def _pick(table: list[Phrase]) -> Callable[[Random], Phrase]:
    return lambda rng: rng.choice(table)


SLOTS: dict[str, Callable[[Random], Phrase]] = {
    "birthday": lambda rng: _month_day(_calendar_day(rng)),
    "bundle": lambda rng: _goods(rng, particle=""),
    "city": _pick(CITIES),
    "code": lambda rng: _same(rng.randint(10_000, 99_999)),
    "color": _pick(COLORS),
    "crowd": _crowd,
    "date": _date,
    "day": _day,
    "degrees": lambda rng: _same(rng.randint(2, 38)),
    "distance": _units("kilometer", "キロ", 99),
    "duration": _duration,
    "evening": lambda rng: _clock(rng, 16, 23),
    "event": _pick(EVENTS),
    "every": _every,
    "fixture": _pick(FIXTURES),
    "floor": _floor,
    "goods": lambda rng: _goods(rng, particle="を"),
    "minutes": _units("minute", "分", 30),
    "morning": lambda rng: _clock(rng, 5, 11),
    "nights": _units("night", "泊", 9),
    "number": lambda rng: _same(rng.randint(101, 1999)),
    "past": _past,
    "person": _pick(PEOPLE),
    "place": _place,
    "platform": lambda rng: _same(rng.randint(1, 40)),
    "price": _price,
    "room": _pick(ROOMS),
    "seats": _units("seat", "席", 9),
    "tickets": _units("ticket", "枚", 20),
    "train": _pick(TRAINS),
    "transport": _pick(TRANSPORT),
    "turn": _pick(TURNS),
    "ware": _pick(WARES),
    "weather": _pick(WEATHER),
    "when": _when,
    "who": _pick(SPEAKERS + PEOPLE),
    "year": lambda rng: _same(rng.randint(1900, 2025)),
}


def _templates() -> list[tuple[Phrase, list[str]]]:
    """Each template with the names of its slots."""
    lines = [line for line in TEMPLATES.splitlines() if line]
    pairs = [Phrase(en, ja) for en, ja in zip(lines[::2], lines[1::2], strict=True)]
    return [(pair, re.findall(r"{(\w+)}", pair.en)) for pair in pairs]


PARSED_TEMPLATES = _templates()


def _sentence(rng: Random) -> Phrase:
    template, names = rng.choice(PARSED_TEMPLATES)
    slots: dict[str, Phrase] = {}
    for name in names:
        draw = SLOTS[name.rstrip("2")]
        # Nobody travels from Kyoto to Kyoto.
        while (phrase := draw(rng)) in slots.values():
            pass
        slots[name] = phrase
    en = template.en.format_map({name: phrase.en for name, phrase in slots.items()})
    ja = template.ja.format_map({name: phrase.ja for name, phrase in slots.items()})
    return Phrase(en[0].upper() + en[1:].replace("..", "."), ja)


def _example(rng: Random, exclude: Collection[str]) -> Example:
    while (sentence := _sentence(rng)).en in exclude or sentence.ja in exclude:
        pass
    if rng.random() < 0.5:
        return Example(sentence.en, sentence.ja, "en-ja")
    return Example(sentence.ja, sentence.en, "ja-en")


def examples(count: int, seed: int, exclude: Collection[str] = ()) -> Iterator[Example]:
    """Yield `count` examples of distinct sources; none has its source or target in `exclude`."""
    return _distinct(Random(seed), count, exclude)


def _distinct(rng: Random, count: int, exclude: Collection[str]) -> Iterator[Example]:
    seen: set[str] = set()
    while len(seen) < count:
        example = _example(rng, exclude)
        if example.source not in seen:
            seen.add(example.source)
            yield example


def conversations(count: int, seed: int, exclude: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield `count` records {id, conversation, expected}, distinct in their last sentence."""
    rng = Random(seed)
    for number, example in enumerate(_distinct(rng, count, exclude)):
        turns = [("ユーザー", example.source)]
        if rng.random() < EARLIER_TURN_SHARE:
            earlier = _example(rng, exclude)
            turns = [("ユーザー", earlier.source), ("システム", earlier.target), *turns]
        yield {
            "id": f"demo-{number:05}",
            "conversation": [{"speaker": speaker, "text": text} for speaker, text in turns],
            "expected": example.target,
        }


def held_out_conversations() -> Iterator[dict[str, Any]]:
    """The conversations that ship as data and on which the model is measured."""
    return conversations(HELD_OUT_COUNT, HELD_OUT_SEED)


@cache
def held_out_sentences() -> frozenset[str]:
    """Both sides of every sentence the model is measured on, to be excluded from its training."""
    return frozenset(
        text for record in held_out_conversations() for text in (record["conversation"][-1]["text"], record["expected"])
    )
