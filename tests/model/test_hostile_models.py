"""Model folders that strangers made: broken, mutated, or asking for code and for files elsewhere. One line, soon."""

import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from pickle import UnpicklingError

import msgspec
import pytest
import torch
from conftest import MODEL
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from batchgen.errors import JobError, in_one_line
from batchgen.host import trial
from batchgen.job.drift import fingerprint
from batchgen.job.spec import load
from batchgen.model.model import load_model
from batchgen.output import opening
from batchgen.runner import death
from batchgen.runner.messages import Exit, ExitKind
from batchgen.runner.prepare import prepare

CONFIG = json.loads((MODEL / "config.json").read_text())
SECONDS, BYTES = 5, 1 << 30  # that any folder may cost

# Two files of one MD5 (Wang and others, 2004) differ in the highest bit of some bytes.
ONE = bytes.fromhex(
    "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a"
    "085125e8f7cdc99fd91dbdf280373c5bd8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0"
    "e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
)
DIFFERENT = (19, 45, 59, 83, 109, 123)

# What stands in a mutated file where something else was: JSON, and what is none.
NASTY = [
    *("null", "true", "0", "-1", "1", "0.5", "1e308", "-0", str(10**30), "9" * 5000, "NaN", "Infinity", "4294967296"),
    *('""', '"x"', '"aaa"', '"\\ud800"', '"1"', '"nan"', '"../../x"', '"(a+)+$"', '"/dev/zero"', '"\\u0000"'),
    *("[]", "{}", "[1]", '["x"]', '{"x": 1}', "[[[]]]", "[" * 1000, "[" * 60 + "]" * 60, "[" * 100_000),
    *('"' + "x" * 1_000_000 + '"', "[" + "1," * 100_000 + "1]", "", "}", '"'),
]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Values of JSON replaced, keys that are not its own, bytes changed, lost, or said twice."""
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        begin = chance.randrange(len(content) + 1)
        match chance.randrange(5):
            case 0 | 1:
                colons = [place for place, byte in enumerate(content) if byte == ord(":")]
                if colons:
                    begin = chance.choice(colons) + 1
                    end = min((e for e in (content.find(mark, begin) for mark in b",}]\n") if e > 0), default=begin)
                    content = content[:begin] + chance.choice(NASTY).encode() + content[end:]
            case 2:
                content = content[:begin] + bytes([chance.randrange(256)]) + content[begin + 1 :]
            case 3:
                content = content[:begin] + content[begin + chance.choice([1, 10, len(content)]) :]
            case 4:
                content = content[:begin] + content[chance.randrange(len(content) + 1) :][:200] + content[begin:]
    return content


@pytest.fixture
def ours(tmp_path):
    """The demo model, whose weights nobody reads here."""
    shutil.copytree(MODEL, tmp_path / "ours")
    (tmp_path / "ours" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "ours" / "generation_config.json").write_text('{"eos_token_id": 3, "temperature": 0.5}')
    return tmp_path / "ours"


@pytest.fixture
def theirs(tmp_path):
    """A model of another kind with a small tokenizer of Hugging Face's."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(["Monday Tuesday"], trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"]))
    bpe.save(str(folder / "tokenizer.json"))
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "model_max_length": 10**30}
    tokens["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens, indent=1))
    config = CONFIG | {"model_type": "llama", "num_key_value_heads": 1, "head_dim": 32}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1], "temperature": 0.5}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def refusal(batchgen, folder: Path) -> str:
    result = batchgen("inspect", folder)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    return result.stderr


def change(path: Path, **keys) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


# --- configs


@pytest.mark.parametrize(
    ("file", "keys", "told"),
    [
        ("config.json", {"num_attention_heads": 0}, "config.json: num_attention_heads: expected int >= 1"),
        ("config.json", {"hidden_size": 10**30}, "config.json: hidden_size: expected int <= "),
        ("config.json", {"vocab_size": True}, "config.json: vocab_size: expected int, got bool"),
        ("config.json", {"head_dim": "aaa"}, "config.json: head_dim: expected int, got str"),
        ("config.json", {"head_dim": 1e308}, "config.json: head_dim: expected int, got float"),
        ("config.json", {"num_key_value_heads": [1]}, "config.json: num_key_value_heads: expected int, got array"),
        ("config.json", {"text_config": "x"}, "config.json: text_config: expected object, got str"),
        ("config.json", {"text_config": None}, "config.json: text_config: expected object, got null"),
        ("config.json", {"text_config": {}}, "config.json: text_config: object missing required field vocab_size"),
        ("config.json", {"rope_scaling": "x"}, "config.json: rope_scaling: expected object, got str"),
        (
            "config.json",
            {"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 1e308}},
            "config.json: rope_scaling has the factor 1e+308, not a number from 1 to 65,536",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": []},
            "added_tokens_decoder is not an object",
        ),
        ("tokenizer_config.json", {"eos_token": "x" * 1_000_000}, "is not a plain token"),
        ("generation_config.json", {"eos_token_id": "x"}, "generation_config.json: eos_token_id: expected int | array"),
        ("generation_config.json", {"eos_token_id": -1}, "generation_config.json: eos_token_id: expected int >= 0"),
        ("config.json", {"vocab_size": 1024, "text_config": CONFIG | {"vocab_size": 2}}, "but the model only 2 "),
        (
            "generation_config.json",
            {"temperature": 1e308},
            "config.json: temperature: expected float <= 2.0",
        ),
        ("generation_config.json", {"top_p": 0}, "generation_config.json: top_p: expected float > 0.0"),
        ("generation_config.json", {"temperature": "hot"}, "generation_config.json: temperature: expected float, got"),
    ],
)
def test_a_value_that_no_model_has_is_told_by_file_and_key(batchgen, ours, file, keys, told):
    change(ours / file, **keys)
    line = refusal(batchgen, ours)
    assert told in line and len(line) < 500


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content",
    [
        *(b"[" * 100_000, b'{"x": ' * 100_000, b'{"x": ' + b"[" * 60 + b"]" * 60 + b"}", b"[]", b"", b"\xff", b"NaN"),
        b'{"x": [' + b"1," * 600_000 + b"1]}",
        *(b'{"eos_token": "\\ud800"}', b'{"vocab_size": ' + b"9" * 5000 + b"}", b'{"x": "' + bytes(5 << 20) + b'"}'),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_config_is_told_by_its_file(batchgen, ours, name, content):
    (ours / name).write_bytes(content)
    assert str(ours / name) in refusal(batchgen, ours)


@pytest.mark.parametrize("name", ["config.json", "spiece.model", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize("what", ["FIFO", "device", "folder", "link to nothing"])
def test_only_regular_files_are_read(batchgen, ours, name, what):
    (ours / name).unlink(missing_ok=True)
    match what:
        case "FIFO":
            os.mkfifo(ours / name)
        case "device":
            (ours / name).symlink_to("/dev/zero")
        case "folder":
            (ours / name).mkdir()
        case "link to nothing":
            (ours / name).symlink_to(ours / "gone")
    assert f"{ours / name}: is not a regular file" in refusal(batchgen, ours)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({}, "object missing required field weight_map"),
        ({"weight_map": ["x"]}, "weight_map: expected object, got array"),
        ({"weight_map": {"embed_in": "../x.safetensors"}}, "names ../x.safetensors, which is missing"),
        (
            {"weight_map": {"embed_in": "model-00002-of-00002.safetensors"}},
            "which is missing; download the model again",
        ),
    ],
)
def test_an_index_of_weights_that_are_not_there_is_told_before_an_engine_starts(batchgen, ours, index, told):
    path = ours / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert refusal(batchgen, ours).startswith(f"batchgen: {path}: ")
    assert told in refusal(batchgen, ours)


# --- code, and files elsewhere


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "somebody/else--evil.Model"}}}),
        ("config.json", {"speculators_config": {"verifier": {"name_or_path": "somebody/else"}}}),
        ("config.json", {"model_type": "ultravox", "text_model_id": "somebody/else"}),
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}),
        ("generation_config.json", {"custom_generate": "somebody/else"}),
        ("special_tokens_map.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
    ],
)
def test_a_config_that_points_elsewhere_is_refused_and_nothing_of_it_is_run(batchgen, theirs, file, keys):
    ran = theirs / "ran"
    (theirs / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    change(theirs / file, **keys)
    line = refusal(batchgen, theirs)
    assert line.startswith(f"batchgen: {theirs / file}: ") and " asks for " in line
    assert not ran.exists()


class Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_weights_that_hold_code_are_told_without_advice_to_load_them_all_the_same(tmp_path):
    torch.save(Payload(tmp_path / "ran"), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnpicklingError) as refused:
        torch.load(tmp_path / "pytorch_model.bin", weights_only=True)  # as vLLM loads it
    told = death.explain(Exit(ExitKind.DIED, in_one_line(refused.value)), tmp_path / "engine.log", 0, on_cpu=True)
    assert told.text == death.CODE
    assert not (tmp_path / "ran").exists()


# --- tokenizers


def test_an_end_of_text_that_the_model_cannot_say_is_refused(batchgen, theirs):
    change(theirs / "generation_config.json", eos_token_id=[1, 1024])
    assert "token 1024 ends a text, but the model has 1,024 ids" in refusal(batchgen, theirs)


def test_a_tokenizer_that_takes_all_memory_is_told_in_one_line(batchgen, theirs):
    tokenizer = json.loads((theirs / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    tokenizer["added_tokens"].append({"id": 1, "content": "x" * 20_000_000, **flags})
    (theirs / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "takes more than 1 GiB of memory" in refusal(batchgen, theirs)


def test_a_tokenizer_that_fails_at_a_sign_it_does_not_know_is_told_in_one_line(batchgen, theirs):
    tokenizer = json.loads((theirs / "tokenizer.json").read_text())
    tokenizer["model"] = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"a": 0}}
    tokenizer["model"] |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    (theirs / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "Missing [UNK] token" in refusal(batchgen, theirs)


def panic() -> None:
    raise BaseException("Onig: Regex search error:\nretry-limit-in-match over")


def crash() -> None:
    os.abort()


def hang() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (panic, "Onig: Regex search error: retry-limit-in-match over"),
        (crash, "it takes more than 1 GiB of memory, or ends the process"),
        (hang, "it takes more than 1 s"),
        (lambda: bytearray(2 << 30), "it takes more than 1 GiB of memory, or ends the process"),
        (lambda: bytearray(100 << 20), None),
    ],
)
def test_a_trial_says_what_would_befall_this_process(work, why):
    assert trial.failure(work, 1) == why


def test_a_trial_keeps_the_limits_that_its_user_has():
    lower = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29));"
        "from batchgen.host import trial; print(trial.failure(lambda: None, 5))"
    )
    as_users_are = [] if os.geteuid() else ["setpriv", "--bounding-set=-sys_resource"]
    done = subprocess.run([*as_users_are, sys.executable, "-c", lower], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("None\n", "")


# --- digests


def test_weights_that_changed_are_digested_again_whatever_their_time(ours):
    weights = ours / "model.safetensors"
    before, times = load_model(str(ours)).weights, weights.stat()
    weights.write_bytes(b"y")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights.stat().st_mtime_ns == times.st_mtime_ns
    after = load_model(str(ours)).weights
    assert after == {"model.safetensors": hashlib.md5(b"y").hexdigest()} != before


def test_weights_of_the_same_md5_are_told_apart(ours, write_rows, tmp_path):
    weights = ours / "model.safetensors"
    weights.write_bytes(ONE)
    tables = {"input": {"path": [str(write_rows([{"text": "a"}]))]}, "model": {"path": str(ours)}}
    spec = load(None, {**tables, "output": {"path": str(tmp_path / "out")}})
    job = prepare(spec)
    opening.open_job(job.out, job.record)
    weights.write_bytes(bytes(byte ^ (0x80 if place in DIFFERENT else 0) for place, byte in enumerate(ONE)))
    assert load_model(str(ours)).weights == job.model.weights
    for begun in (None, job.record):
        with pytest.raises(JobError, match=r"model\.safetensors: has the MD5, but not the SHA-256"):
            prepare(spec, begun=begun)


@pytest.mark.parametrize("name", ["generation_config.json", "model.safetensors.index.json", "hf_quant_config.json"])
def test_whatever_the_engine_reads_is_part_of_the_job(batchgen, ours, write_rows, tmp_path, name):
    flags = [write_rows([{"text": "a"}]), "--model", ours, "--output", tmp_path / "out"]
    fingerprints = []
    for content in ({"eos_token_id": 3}, {"eos_token_id": [3, 4]}):
        (ours / name).write_text(json.dumps(content | {"weight_map": {"x": "model.safetensors"}}))
        fingerprints += [line for line in batchgen("plan", *flags).stdout.splitlines() if "fingerprint" in line]
    assert len({*fingerprints}) == 2


def test_a_folder_that_was_begun_without_such_digests_goes_on(ours, write_rows, tmp_path):
    tables = {"input": {"path": [str(write_rows([{"text": "a"}]))]}, "model": {"path": str(ours)}}
    spec = load(None, {**tables, "output": {"path": str(tmp_path / "out")}})
    job = prepare(spec)
    old = {name: digest for name, digest in job.model.digests.items() if name != "generation_config.json"}
    assert old.keys() == {"config.json", "spiece.model", "tokenizer_config.json", "model.safetensors"}
    results = {**job.record.results, "model": old}
    record = msgspec.structs.replace(job.record, results=results, fingerprint=fingerprint(results))
    opening.open_job(job.out, record)
    assert prepare(spec).record.fingerprint == record.fingerprint
    assert prepare(spec, begun=record).record == record
    change(ours / "config.json", rotary_emb_base=20000)
    assert prepare(spec).record.fingerprint != record.fingerprint


# --- by chance


def inspect_mutated(batchgen, folder: Path, count: int, seed: int) -> dict[int, int]:
    """Exit codes of `inspect`, by how many of the mutated folders had them."""
    texts = {path: path.read_bytes() for path in sorted(folder.glob("*.json"))}
    chance, codes = random.Random(seed), dict[int, int]()
    assert batchgen("inspect", folder).exit_code == 0  # and libraries that take seconds to import are there
    for number in range(count):
        path = chance.choice(list(texts))
        path.write_bytes(mutated(texts[path], chance))
        begin = time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        result = batchgen("inspect", folder)
        took = time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begin
        assert result.exit_code in (0, 2), (number, result.stderr)
        assert result.stderr.count("\n") == (result.exit_code != 0), (number, result.stderr)
        assert took < SECONDS, (number, path.read_bytes()[:1000])
        codes[result.exit_code] = codes.get(result.exit_code, 0) + 1
        path.write_bytes(texts[path])
    return codes


@pytest.mark.parametrize(("folder", "count"), [("ours", 300), ("theirs", 40)])
def test_mutated_folders_are_taken_or_refused_in_one_line_and_soon(batchgen, request, folder, count):
    codes = inspect_mutated(batchgen, request.getfixturevalue(folder), count, seed=1)
    assert codes[0] > count // 20 and codes[2] > count // 2


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "count"), [("ours", 6000), ("theirs", 4000)])
def test_ten_thousand_mutated_folders(batchgen, request, folder, count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    codes = inspect_mutated(batchgen, request.getfixturevalue(folder), count, seed=2)
    assert codes[0] > count // 20 and codes[2] > count // 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < BYTES
