from pathlib import Path

import minigpt4 as tiny
import pictured
import pyarrow.parquet as pq
import pytest
import torch
from conftest import MODEL, generating
from minigpt4 import minigpt4  # noqa: F401
from transformers import AutoModelForCausalLM

from batchgen.engine import vision
from batchgen.engine.vision import MiniGpt4
from batchgen.engine.vllm import VllmEngine
from batchgen.errors import JobError
from batchgen.model.model import load_model
from batchgen.prompt.pictures import Album, looked_at

MARK = "<Img><ImageHere></Img>"


@pytest.fixture(scope="module")
def model(minigpt4):  # noqa: F811
    return load_model(str(minigpt4.model), vision=str(minigpt4.vision), images=True)


@pytest.fixture(scope="module")
def seeing(model):
    return VllmEngine(model, {"dtype": "float32", "max_num_seqs": 16}, model.context)


@pytest.fixture
def generate_seeing(seeing, minigpt4, tmp_path):  # noqa: F811
    """`generate` of conftest with images."""
    run = generating(seeing, tmp_path)

    def generate(rows: Path, out: str, **tables) -> list[dict]:
        tables["model"] = {"path": str(minigpt4.model), "vision": str(minigpt4.vision)}
        tables["input"] = {"image": "image", **tables.get("input", {})}
        folder = run([rows], out=out, **tables)
        return [row for part in sorted(folder.glob("part-*")) for row in pq.read_table(part).to_pylist()]

    return generate


def files(folder: Path, count: int) -> list[str]:
    for number in range(count):
        (folder / f"{number}.png").write_bytes(pictured.photo(number))
    return [f"{number}.png" for number in range(count)]


def test_an_image_becomes_what_lavis_makes_of_it(minigpt4, model):  # noqa: F811
    eyes = MiniGpt4(model.vision, model.tokenizer.pad_id, model.width, torch.float32, "cpu")
    album = Album(lambda content: looked_at(content, 224, 1 << 30))
    for content in pictured.every_kind().values():
        picture = album.picture(content)
        prompt = eyes.prompt([5, *[model.tokenizer.pad_id] * 32, 6], [picture])
        assert prompt["is_token_ids"] == [True, *[False] * 32, True]
        assert (prompt["prompt_embeds"][1:-1] - tiny.reference(minigpt4, content)).abs().max() < 1e-5


def test_an_image_that_was_forgotten_is_seen_as_before(minigpt4, model, monkeypatch):  # noqa: F811
    """Two are remembered, so that each is forgotten, and another one takes its place, before it comes again."""
    monkeypatch.setattr(vision, "CACHE", 2 * 32 * model.width * 4)
    eyes = MiniGpt4(model.vision, model.tokenizer.pad_id, model.width, torch.float32, "cpu")
    album = Album(lambda content: looked_at(content, 224, 1 << 30))
    contents = [pictured.photo(number) for number in range(5)]
    pictures = [album.picture(content) for content in contents]
    expected = torch.cat([tiny.reference(minigpt4, content) for content in contents])
    for several in (range(5), (4, 0, 3, 1, 2, 1), range(5)):
        eyes.look_at(pictures[number] for number in several)
        for number in several:
            seen = eyes.prompt([model.tokenizer.pad_id] * 32, [pictures[number]])["prompt_embeds"]
            assert (seen - expected[32 * number :][:32]).abs().max() < 1e-5
    every = eyes.prompt([model.tokenizer.pad_id] * 160, pictures)["prompt_embeds"]
    assert (every - expected).abs().max() < 1e-5


def test_greedy_answers_are_those_of_transformers(generate_seeing, minigpt4, model, write_rows, tmp_path):  # noqa: F811
    """40 prompts with one and two images; transformers gets embeddings alone."""
    names = files(tmp_path, 20)
    rows = [{"text": f"What is {number}?", "image": names[number]} for number in range(20)]
    rows += [{"text": f"{number} {MARK} or {MARK}?", "image": [names[number], names[-number]]} for number in range(20)]
    answers = generate_seeing(
        write_rows(rows), "greedy", sampling={"temperature": 0.0, "max_tokens": 24}, output={"include": ["prompt"]}
    )
    network = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    embed, encode = network.get_input_embeddings(), model.tokenizer.encode
    same = 0
    for row, answer in zip(rows, answers, strict=True):
        named = row["image"] if isinstance(row["image"], list) else [row["image"]]
        assert answer["prompt"].startswith(f"ユーザー: {MARK} What is " if len(named) == 1 else "ユーザー: ")
        first, *others = (embed(torch.tensor(encode(part))) for part in answer["prompt"].split("<ImageHere>"))
        seen = [tiny.reference(minigpt4, (tmp_path / name).read_bytes()) for name in named]
        parts = [first, *(part for pair in zip(seen, others, strict=True) for part in pair)]
        whole = torch.cat(parts)[None]
        with torch.inference_mode():
            ids = network.generate(
                inputs_embeds=whole,
                attention_mask=torch.ones(whole.shape[:2], dtype=torch.long),
                do_sample=False,
                max_new_tokens=24,
                pad_token_id=0,
            )[0]
        assert answer["prompt_tokens"] == len(whole[0])
        same += model.tokenizer.decode(ids.tolist()) == answer["response"]
    assert same == 40
    assert len({answer["response"] for answer in answers}) > 20


def test_sampled_answers_are_the_same_alone_and_in_a_batch(generate_seeing, write_rows, tmp_path):
    names = files(tmp_path, 12)
    rows = [{"id": str(number), "text": f"What is {number % 3}?", "image": names[number]} for number in range(12)]
    sampling = {"temperature": 1.0, "max_tokens": 20, "repetition_penalty": 1.3, "stop": ["火"]}
    together = generate_seeing(write_rows(rows), "together", sampling=sampling)
    for number in (0, 5, 11):
        [alone] = generate_seeing(write_rows([rows[number]], "alone.jsonl"), f"alone{number}", sampling=sampling)
        assert {**alone, "row": number} == together[number]
    assert together[3]["images"][0].keys() == {"sha256", "width", "height", "animated"}


def test_a_row_whose_image_cannot_be_seen_is_rejected_and_costs_no_other(generate_seeing, write_rows, tmp_path):
    (tmp_path / "0.png").write_bytes(pictured.photo())
    (tmp_path / "cut.png").write_bytes(pictured.photo()[:99])
    values = ["0.png", "no.png", "cut.png", None, "0.png", []]
    rows = write_rows([{"text": "What?", "image": value} for value in values])
    answers = generate_seeing(rows, "out", sampling={"max_tokens": 4})
    assert [answer["row"] for answer in answers] == [0, 4, 5]
    assert [len(answer["images"]) for answer in answers] == [1, 1, 0]
    rejects = pq.read_table if False else (tmp_path / "out" / "_rejects").glob("*")
    text = "".join(file.read_text() for file in rejects)
    assert text.count('"image_missing"') == 2 and text.count('"image_unreadable"') == 1


@pytest.mark.parametrize("name", ["checkpoint.pth", "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth"])
def test_weights_that_are_not_what_they_should_be_are_one_line(minigpt4, model, tmp_path, name):  # noqa: F811
    import shutil

    for folder in (minigpt4.model, minigpt4.vision):
        shutil.copytree(folder, tmp_path / folder.name)
    [path] = tmp_path.rglob(name)
    for content in (b"not a pickle", {"model": {"a": torch.ones(2)}}):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        damaged = load_model(str(tmp_path / minigpt4.model.name), vision=str(tmp_path / minigpt4.vision.name))
        with pytest.raises(JobError, match=r"^\S.*(cannot be read|no llama_proj|not BLIP-2's|no query_tokens)"):
            MiniGpt4(damaged.vision, 0, model.width, torch.float32, "cpu")
