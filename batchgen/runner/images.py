"""A job with images: what it needs, and what it does not go with."""

from importlib.util import find_spec
from typing import Any

from ..engine.installed import has, versions
from ..errors import JobError
from ..input.images import Images
from ..input.plan import Plan
from ..job.spec import JobSpec
from ..model.model import Model
from ..model.tokenizer import Tokenizer
from ..model.vision import SQUARE, TOKENS
from ..prompt.checker import Checker
from ..prompt.pictures import Album
from ..task.sight import Sight

PREPROCESSING = f"BLIP-2: RGB, bicubic to {SQUARE} x {SQUARE}"


def check(spec: JobSpec, model: Model, format: str) -> None:
    """Raises JobError if the job has images and cannot have them, or has none and needs them."""
    if not spec.input.image:
        if model.vision:
            raise JobError("[model] vision: the job has no images; name their column in [input] image (--image-column)")
        return
    if not (model.vision or model.takes_images):
        what = "a MiniGPT-4 model needs [model] vision" if (model.folder / "checkpoint.pth").exists() else ""
        raise JobError(f"[input] image: {model.name} takes no images{f'; {what}' if what else ''}")
    if spec.translate.fields or spec.score.mode != "off":
        raise JobError(f"[input] image: [{'translate' if spec.translate.fields else 'score'}] has no use for images")
    if not model.vision and format != "chat-template":
        raise JobError(f"[input] image: {model.name} takes images by its chat template alone, not in format {format}")
    if spec.prompt.on_overlength == "clip":
        raise JobError(
            "[prompt] on_overlength: clip might cut an image; set reject or drop-turns for a job with images"
        )
    if find_spec("PIL") is None:
        raise JobError("[input] image: needs Pillow, which is not installed: pip install pillow")
    if "vllm" not in versions():
        return
    if model.vision and not has("mixed_prompts"):
        raise JobError(
            f"[model] vision: vLLM {versions()['vllm']} takes no prompts with ids and embeddings; install 0.31"
        )
    if not model.vision and find_spec("torchvision") is None:
        raise JobError(
            f"[input] image: vLLM needs torchvision for {model.model_type} models; see `batchgen manual models`"
        )


def sight_of(spec: JobSpec, model: Model, plan: Plan, checker: Checker) -> Sight | None:
    """How its images come to the model; None for a job without."""
    if not spec.input.image:
        return None
    checker.set_up_pictures(SQUARE if model.vision else None, spec.limits.image_pixels)
    tokens = [model.tokenizer.pad_id] * TOKENS if isinstance(model.tokenizer, Tokenizer) else []
    return Sight(Images(spec.input, plan.files, spec.limits), Album(checker.look_at), tokens)


def results_of(model: Model) -> dict[str, Any]:
    """What decides results beside the keys of the job and the model's files."""
    return {"preprocessing": PREPROCESSING} if model.vision else {}
