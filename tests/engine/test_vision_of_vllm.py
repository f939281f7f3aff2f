"""Models that have their own vision in vLLM: a LLaVA and a Qwen2-VL of two layers each, with random weights."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pictured
import pyarrow.parquet as pq
import pytest
import torch
from conftest import generating
from llama import config_of, save_tokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from batchgen.engine.vllm import VllmEngine
from batchgen.model.model import load_model

pytestmark = [pytest.mark.slow, pytest.mark.torchvision]  # which their processors import

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ 'IMAGE' if part.type == 'image' else part.text }}{% endfor %}{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIDE, MEAN, STD = 28, [0.48, 0.45, 0.40], [0.26, 0.26, 0.27]
PREPARATION = {
    "image_processor_type": "CLIPImageProcessor",
    **dict.fromkeys(("do_resize", "do_center_crop", "do_normalize", "do_rescale", "do_convert_rgb"), True),
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "image_mean": MEAN,
    "image_std": STD,
}
PROCESSOR = {
    "processor_class": "LlavaProcessor",
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
}

# Of Qwen2-VL: an image becomes 56 x 56 pixels at most, 16 patches, of which 4 are one token.
START, PAD, END, VIDEO = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"
QWEN_PREPARATION = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    **{"min_pixels": 56 * 56, "max_pixels": 56 * 56, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2},
    **{"image_mean": MEAN, "image_std": STD},
}


class Kind(NamedTuple):
    """folder: of the model; mark: what its chat template writes for an image; greedy: what transformers answers to a
    prompt with such marks"""

    folder: Path
    mark: str
    greedy: Callable[[str, list[bytes]], list[int]]


def llava(folder: Path) -> Kind:
    template = TEMPLATE.replace("IMAGE", "<image>")
    tokenizer = save_tokenizer(folder, template, [AddedToken("<image>", special=True)])
    torch.manual_seed(3)
    sight = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=14
    )
    config = LlavaConfig(
        vision_config=sight,
        text_config=config_of(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    network = LlavaForConditionalGeneration(config)
    _make_see(network, "vision_tower", "projector")
    network.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    # vLLM 0.32 knows the names that checkpoints had before transformers 5.
    weights = {name.replace("vision_tower.", "vision_tower.vision_model."): each for name, each in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPARATION))
    (folder / "processor_config.json").write_text(json.dumps(PROCESSOR))
    return Kind(folder, "<image>", lambda prompt, contents: greedy_of_llava(folder, prompt, contents))


def qwen2_vl(folder: Path) -> Kind:
    specials = [AddedToken(text, special=True) for text in (START, PAD, END, VIDEO)]
    tokenizer = save_tokenizer(folder, TEMPLATE.replace("IMAGE", START + PAD + END), specials)
    torch.manual_seed(3)
    text = config_of(tokenizer).to_dict()
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
    config = Qwen2VLConfig(
        text_config={**text, "model_type": "qwen2_vl_text", "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        **{
            f"{what}_token_id": tokenizer.convert_tokens_to_ids(token)
            for what, token in (("vision_start", START), ("image", PAD), ("vision_end", END), ("video", VIDEO))
        },
    )
    network = Qwen2VLForConditionalGeneration(config)
    _make_see(network, "visual")
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(QWEN_PREPARATION))
    of_videos = {**QWEN_PREPARATION, "video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(of_videos))
    return Kind(folder, START + PAD + END, lambda prompt, contents: greedy_of_qwen(folder, prompt, contents))


def _make_see(network: torch.nn.Module, *parts: str) -> None:
    """Larger weights where it sees, or all images look the same to it."""
    for name, weight in network.named_parameters():
        if any(part in name for part in parts):
            torch.nn.init.normal_(weight, std=0.3)


@pytest.fixture(scope="module", params=[llava, qwen2_vl], ids=lambda made: made.__name__)
def kind(request, tmp_path_factory) -> Kind:
    return request.param(tmp_path_factory.mktemp("models") / request.param.__name__)


@pytest.fixture(scope="module")
def generate(kind, tmp_path_factory):
    model = load_model(str(kind.folder), images=True)
    engine = VllmEngine(model, {"dtype": "float32", "max_num_seqs": 8}, model.context)
    run = generating(engine, tmp_path_factory.mktemp("seen"))

    def generate(rows: Path, out: str, **tables) -> list[dict]:
        tables["model"] = {"path": str(kind.folder)}
        tables.setdefault("sampling", {"temperature": 0.0, "max_tokens": 12})
        folder = run([rows], out=out, **tables)
        return [row for part in sorted(folder.glob("part-*")) for row in pq.read_table(part).to_pylist()]

    return generate


def message(*parts: str | dict) -> list[dict]:
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}]


def image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def greedy_of_llava(folder: Path, prompt: str, contents: list[bytes]) -> list[int]:
    """With `<image>` in the prompt for an image, 4 tokens for its 2 x 2 patches, and pixels prepared here."""
    network = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_model(str(folder)).tokenizer
    values = []
    for content in contents:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        scale = SIDE / min(picture.size)
        picture = picture.resize([max(SIDE, int(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
        left, top = ((side - SIDE) // 2 for side in picture.size)
        picture = picture.crop((left, top, left + SIDE, top + SIDE))
        values.append(((np.asarray(picture) / 255 - MEAN) / STD).transpose(2, 0, 1))
    ids = tokenizer.encode(prompt.replace("<image>", "<image>" * 4))
    with torch.inference_mode():
        made = network.generate(
            input_ids=torch.tensor([ids]),
            pixel_values=torch.tensor(np.array(values), dtype=torch.float32),
            do_sample=False,
            max_new_tokens=12,
        )[0]
    return made[len(ids) :].tolist()


def greedy_of_qwen(folder: Path, prompt: str, contents: list[bytes]) -> list[int]:
    """With transformers' own preparation, which has an image's 4 tokens put in the place of its one."""
    network = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    given = AutoProcessor.from_pretrained(folder)(text=[prompt], images=images, return_tensors="pt")
    assert (given["input_ids"] == network.config.image_token_id).sum() == 4 * len(contents)
    with torch.inference_mode():
        made = network.generate(**given, do_sample=False, max_new_tokens=12)[0]
    return made[len(given["input_ids"][0]) :].tolist()


def test_messages_with_images_are_answered_as_by_transformers(generate, kind, write_rows, tmp_path):
    contents = [pictured.photo(number, 40, 40) for number in range(4)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.png").write_bytes(content)
    data = "data:image/png;base64," + base64.b64encode(contents[3]).decode()
    rows = [
        {"messages": message(image("0.png"), "What is it?")},
        {"messages": message("This ", image("1.png"), " or that ", image("2.png"), "?")},
        {"messages": message(image(data), "And <|end|> this?")},
        {"messages": message("No image.")},
    ]
    answers = generate(
        write_rows(rows), "messages", input={"image": "messages"}, output={"include": ["response_token_ids"]}
    )
    expected = [
        kind.greedy(f"<|user|>{kind.mark}What is it?<|end|><|assistant|>", contents[:1]),
        kind.greedy(f"<|user|>This {kind.mark} or that {kind.mark}?<|end|><|assistant|>", contents[1:3]),
    ]
    assert [answer["response_token_ids"] for answer in answers[:2]] == expected
    assert [len(answer["images"]) for answer in answers] == [1, 2, 1, 0]
    assert len({tuple(answer["response_token_ids"]) for answer in answers}) == 4


def test_a_column_of_images_gives_the_same_answers(generate, write_rows, tmp_path):
    (tmp_path / "0.png").write_bytes(pictured.photo(0, 40, 40))
    parts = [{"messages": message(image("0.png"), "What is it?")}]
    column = [{"text": "What is it?", "picture": "0.png"}]
    [one] = generate(write_rows(parts), "parts", input={"image": "messages"})
    [other] = generate(write_rows(column, "column.jsonl"), "column", input={"image": "picture"})
    assert (one["response"], one["images"]) == (other["response"], other["images"])


def test_sampled_answers_are_the_same_alone_and_in_a_batch(generate, write_rows, tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(pictured.photo(number, 40, 40))
    rows = [{"id": str(number), "text": "What?", "image": f"{number}.png"} for number in range(6)]
    more = {"sampling": {"temperature": 1.0, "max_tokens": 12}, "input": {"image": "image"}}
    together = generate(write_rows(rows), "together", **more)
    [alone] = generate(write_rows(rows[4:5], "alone.jsonl"), "alone", **more)
    assert {**alone, "row": 4} == together[4]


def test_an_image_that_vllm_refuses_costs_its_row_alone(generate, write_rows, tmp_path):
    (tmp_path / "0.png").write_bytes(pictured.photo(0, 40, 40))
    rows = [{"text": "What?", "image": name} for name in ("0.png", "0.png", "0.png")]
    rows[1] = {"text": "What? " * 60, "image": ["0.png"] * 8}  # whose places do not fit
    answers = generate(write_rows(rows), "refused", input={"image": "image"})
    assert [answer["row"] for answer in answers] == [0, 2]
