"""The tokenizer against the reference: recorded in tokenizer/vectors.jsonl.gz, and live in the slow test.

vectors.jsonl.gz has, for each text and each tokenizer, the reference's ids and its two decodings of those.
The slow test installs the reference by itself, unless the environment variable BATCHGEN_REFERENCE_PYTHON
names a Python that has it (transformers 4.57.6, and sentencepiece in the version that is tested).
"""

import gzip
import json
import os
import random
import shutil
import subprocess
import venv
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from batchgen.model.tokenizer import Tokenizer, TokenizerError

DATA = Path(__file__).parent.parent / "tokenizer"
NAMES = ("bilingual", "japanese-3.6b")
TOKENIZERS = {name: Tokenizer.load(DATA / name) for name in NAMES}
MODELS = {name: SentencePieceProcessor(model_file=str(DATA / name / "spiece.model")) for name in NAMES}

SPECIAL = ["<s>", "</s>", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]
FRAGMENTS = [
    *SPECIAL,
    *("[A]", "[A]b"),  # special in odd_copy
    *("<", ">", "[", "]", "s>", "</", "[[", "［PAD］", "＜/s＞", "<S>", "[cls]", "<unk>", "<0x41>"),
    *("\n", "\t", "\r\n", " ", "  ", " " * 30, "\u3000", "\u00a0", "\u200b", "\ufeff", "\u2028", "▁", "▁▁"),
    *("\0", "\x01", "\x0b", "\x1b", "\x7f", "\x85", "\u200d", "\u202e", "\ufffd", "\uffff", "\U0010ffff"),
    *("猫", "吾輩は猫である。", "ユーザー: ", "システム: ", "<NL>", "カ゛", "か\u3099", "鬱龘", "𠮷"),
    *("Hello", "world", " the", "don't", " .", " ,", " n't", "https://a.b/c?d=e", "def f(x):", "```"),
    *("ｱｲｳ", "ＡＢＣ", "ﬀ", "①", "㍿", "e\u0301", "\u0301", "한국어", "ಠ_ಠ", "العربية", "ไทย"),
    *("😀", "👨\u200d👩\u200d👧", "🇯🇵", "👍🏽", "❤️"),
]
BLOCKS = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x2000, 0x2BFF), (0x3000, 0x33FF), (0x4E00, 0x9FFF)]
BLOCKS += [(0xE000, 0xFFFF), (0x10000, 0x10FFFF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF)]

any_name = st.sampled_from(NAMES)
any_part = st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]))
any_text = st.lists(any_part).map("".join)


@pytest.fixture(scope="module")
def vectors() -> list[dict]:
    with gzip.open(DATA / "vectors.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_recorded_reference(name, vectors):
    tokenizer = TOKENIZERS[name]
    batch = tokenizer.encode_batch([vector["text"] for vector in vectors], parse_special=True)
    for vector, from_batch in zip(vectors, batch, strict=True):
        text, ids = vector["text"], vector[name]["ids"]
        assert tokenizer.encode(text, parse_special=True) == from_batch == ids
        assert tokenizer.decode_hf(ids) == vector[name]["decode"]
        assert tokenizer.decode_hf(ids, skip_special_tokens=True) == vector[name]["decode_skip_special"]


@pytest.mark.parametrize("name", NAMES)
def test_ids(name):
    tokenizer = TOKENIZERS[name]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 4096


def test_special_tokens_in_text_of_users_are_text():
    tokenizer = TOKENIZERS["bilingual"]
    text = "a</s>b<s>[UNK][PAD]"
    assert not {0, 1, 2, 3} & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("</s>", parse_special=True) == [tokenizer.eos_id]


def test_decode_shows_or_hides_control_tokens():
    tokenizer = TOKENIZERS["bilingual"]
    ids = tokenizer.encode(" a</s><s>[UNK] b [PAD]", parse_special=True)
    assert tokenizer.decode(ids) == " a b "
    assert tokenizer.decode(ids, skip_special_tokens=False) == " a</s><s>[UNK] b [PAD]"


def test_ids_outside_of_the_vocabulary():
    tokenizer = TOKENIZERS["bilingual"]
    outside = [-1, tokenizer.vocab_size, 10**9]
    assert tokenizer.decode([*outside, *tokenizer.encode("a b"), *outside]) == "a b"
    for i in outside:
        with pytest.raises(IndexError):
            tokenizer.decode_hf([i])


def test_lone_surrogates_are_refused():
    tokenizer = TOKENIZERS["bilingual"]
    for parse_special in (False, True):
        with pytest.raises(UnicodeEncodeError):
            tokenizer.encode("a\ud800", parse_special)
        with pytest.raises(UnicodeEncodeError):
            tokenizer.encode_batch(["a", "\ud800"], parse_special)


def test_threads_share_a_tokenizer(vectors):
    tokenizer = TOKENIZERS["bilingual"]
    texts = [vector["text"] for vector in vectors]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == tokenizer.encode_batch(texts)


@given(any_name, any_text)
def test_decode_gives_the_normalised_text(name, text):
    """So a text that the normaliser leaves unchanged comes back as it was."""
    tokenizer = TOKENIZERS[name]
    assert tokenizer.decode(tokenizer.encode(text)) == MODELS[name].normalize(text).replace("▁", " ")


@given(any_name, st.lists(st.integers(-10, 10_000)))
def test_any_ids_decode(name, ids):
    for skip_special_tokens in (False, True):
        TOKENIZERS[name].decode(ids, skip_special_tokens)
        TOKENIZERS[name].decode_hf([i % 4096 for i in ids], skip_special_tokens)


@given(any_name, st.lists(any_text, max_size=5), st.booleans(), st.sampled_from([-1, 1, 3]))
def test_batch_is_one_by_one(name, batch, parse_special, num_threads):
    tokenizer = TOKENIZERS[name]
    one_by_one = [tokenizer.encode(text, parse_special) for text in batch]
    assert tokenizer.encode_batch(batch, parse_special, num_threads) == one_by_one


def copy_of(name: str, folder: Path, **settings: object) -> Path:
    """A copy of a tokenizer's folder with some settings of tokenizer_config.json set, or None: removed."""
    shutil.copytree(DATA / name, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def odd_copy(folder: Path) -> Path:
    """A tokenizer with all that rinna's do not have and Tokenizer nevertheless gets right.

    A dummy prefix, special tokens outside of the vocabulary, tokens saved as objects, and clean-up of spaces.
    """
    eos = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False, "single_word": False}
    tokens = {"eos_token": eos, "cls_token": "[A]", "sep_token": "[A]b"}
    copy_of("bilingual", folder, **tokens, clean_up_tokenization_spaces=True)
    with open(folder / "spiece.model", "ab") as model:
        model.write(b"\x1a\x02\x18\x01")  # sentencepiece_model.proto: normalizer_spec.add_dummy_prefix = true
    return folder


def test_odd_tokenizer(tmp_path):
    tokenizer = Tokenizer.load(odd_copy(tmp_path / "odd"))
    space = TOKENIZERS["bilingual"].encode(" ")
    a = TOKENIZERS["bilingual"].encode("a")
    ids = tokenizer.encode("[A]ba[A]a", parse_special=True)
    assert ids == [4096, *space, *a, 4097, *space, *a]
    assert tokenizer.decode(ids) == " a a"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "[A]b a[A] a"
    assert tokenizer.decode_hf(TOKENIZERS["bilingual"].encode("a . b")) == "a. b"


def test_config_that_transformers_saved(tmp_path):
    pad = {"content": "[PAD]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings = {"added_tokens_decoder": {"0": pad}, "legacy": True, "add_prefix_space": True}
    tokenizer = Tokenizer.load(copy_of("bilingual", tmp_path / "saved", **settings))
    assert tokenizer.encode("a[PAD]b", parse_special=True)[1] == tokenizer.pad_id == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"eos_token": None}, "has no eos_token"),
        ({"eos_token": 3}, "3 is not a plain token"),
        ({"eos_token": {"content": "</s>", "lstrip": True}}, "is not a plain token"),
        ({"extra_ids": None}, "set extra_ids to 0"),
        ({"do_lower_case": True}, "set do_lower_case to false"),
        ({"added_tokens_decoder": {"4096": "<new>"}}, "remove added token 4096"),
    ],
)
def test_unsupported_config(tmp_path, settings, problem):
    with pytest.raises(TokenizerError, match=problem) as error:
        Tokenizer.load(copy_of("bilingual", tmp_path / "folder", **settings))
    assert "tokenizer_config.json" in str(error.value)


@pytest.mark.parametrize("file", ["spiece.model", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, b"", b"version 1\noid sha256:0\n", b"\xff", b"[]", b"\x00" * 5000])
def test_missing_or_broken_file(tmp_path, file, content):
    folder = copy_of("bilingual", tmp_path / "folder")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(TokenizerError) as error:
        Tokenizer.load(folder)
    message = str(error.value)
    assert message.startswith(str(folder / file))
    assert "\n" not in message


@pytest.fixture(scope="module")
def reference_python(tmp_path_factory) -> str:
    if python := os.environ.get("BATCHGEN_REFERENCE_PYTHON"):
        return python
    folder = tmp_path_factory.mktemp("reference")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    packages = ["transformers==4.57.6", f"sentencepiece=={version('sentencepiece')}"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def random_text(rng: random.Random) -> str:
    """Up to 12 parts: fragments, or a few characters of one Unicode block."""
    parts = []
    for _ in range(rng.randint(0, 12)):
        if rng.random() < 0.7:
            parts.append(rng.choice(FRAGMENTS))
        else:
            first, last = rng.choice(BLOCKS)
            parts += (chr(rng.randint(first, last)) for _ in range(rng.randint(1, 6)))
    return "".join(parts)


def random_ids(rng: random.Random, size: int) -> list[int]:
    """Up to 40 ids: half of them anything, half of one kind (special tokens, spaces, bytes, anything)."""
    last = rng.choice([6, 12, 300, size - 1])
    return [rng.randint(0, rng.choice([last, size - 1])) for _ in range(rng.randint(0, 40))]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "odd"])
def test_live_reference(name, reference_python, tmp_path):
    folder = odd_copy(tmp_path / "odd") if name == "odd" else DATA / name
    tokenizer = Tokenizer.load(folder)
    size = tokenizer.vocab_size + (2 if name == "odd" else 0)
    rng = random.Random(name)
    texts = [random_text(rng) for _ in range(20_000)]
    ids = [random_ids(rng, size) for _ in range(5_000)]

    request = json.dumps({"texts": texts, "ids": ids, "repeat": 1})
    command = [reference_python, str(DATA / "reference.py"), str(folder)]
    run = subprocess.run(command, input=request.encode(), stdout=subprocess.PIPE, check=True)
    reference = json.loads(run.stdout)

    assert tokenizer.encode_batch(texts, parse_special=True) == reference["ids"]
    assert [tokenizer.encode(text, parse_special=True) for text in texts] == reference["ids"]
    assert [tokenizer.decode_hf(i) for i in ids] == reference["decode"]
    assert [tokenizer.decode_hf(i, skip_special_tokens=True) for i in ids] == reference["decode_skip_special"]
