"""How long it takes to cut texts into segments, and to find the terms of a large glossary in them.

    python segments.py [TEXTS]

On one core, 100,000 lines of 10 to 130 characters took 1.4 s by paragraphs and 3.6 s by sentences, without a
count; 20,000 paragraphs of 3 to 12 sentences 4 s at 384 tokens and 11 s at 64 (206,000 segments); 30,000 terms 8 s, of
which ten occurred in each text.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

import batchgen.demo
from batchgen.model.tokenizer import Tokenizer
from batchgen.segment.cut import Rule, pieces
from batchgen.segment.glossary import Glossary, missing
from batchgen.segment.pieces import Segment
from batchgen.segment.protect import Protect

EN = (
    "the quick brown fox jumps over lazy dogs while people in Tokyo watch television and eat noodles at $5 each".split()
)
JA = "今日は天気がいいので公園に行きましょう彼女は東京で働いています本を読むのが好きです"
TERMS = 30_000


def sentence(chance: random.Random, english: bool) -> str:
    if english:
        return " ".join(chance.choices(EN, k=chance.randint(6, 25))).capitalize() + "."
    return "".join(chance.choices(JA, k=chance.randint(10, 60))) + "。"


def texts(chance: random.Random, number: int, longest: int) -> list[str]:
    """Every other one is English."""
    return [
        (" " if k % 2 else "").join(
            sentence(chance, bool(k % 2)) for _ in range(chance.randint(min(longest, 3), longest))
        )
        for k in range(number)
    ]


def cut(name: str, given: list[str], unit: str, most: int) -> None:
    tokenizer = Tokenizer.load(Path(batchgen.demo.__file__).parent / "model")
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += 1
        return len(tokenizer.encode(text))

    protect = Protect(["code", "url", "placeholder", "markup"])
    rules = {ascii: Rule(unit, most, count, "en" if ascii else "ja", protect) for ascii in (True, False)}
    began = time.perf_counter()
    found = sum(isinstance(piece, Segment) for text in given for piece in pieces(text, rules[text.isascii()]))
    took = time.perf_counter() - began
    print(f"{name:10} {unit:9} {most:3} tokens: {found:7} segments, {counted:7} counted, {took:5.1f} s", flush=True)


def find_terms(chance: random.Random, given: list[str]) -> None:
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 9))) for _ in range(8000)] + EN
    lines = [" ".join(chance.choices(words, k=chance.randint(1, 3))) + "\t用語\n" for _ in range(TERMS // 2)]
    lines += ["".join(chance.choices(JA, k=chance.randint(2, 6))) + "\tterm\n" for _ in range(TERMS // 2)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "terms.tsv"
        path.write_text("".join(lines), "utf-8")
        began = time.perf_counter()
        glossary = Glossary.load(str(path))
    loaded = time.perf_counter()
    found = [glossary.terms(text) for text in given]
    looked = time.perf_counter()
    for terms in found:
        missing(terms, "これは用語 term")
    checked = time.perf_counter()
    print(
        f"glossary of {TERMS} terms: read in {loaded - began:.1f} s; {sum(map(len, found))} terms of {len(given)} texts"
    )
    print(f"found in {looked - loaded:.1f} s, looked for in answers in {checked - looked:.1f} s")


def main(number: int) -> None:
    chance = random.Random(1)
    lines, paragraphs = texts(chance, number, 1), texts(chance, number // 5, 12)
    for unit in ("whole", "paragraph", "sentence"):
        cut("lines", lines, unit, 384)
        cut("paragraphs", paragraphs, unit, 384)
    cut("paragraphs", paragraphs, "paragraph", 64)
    find_terms(chance, lines)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
