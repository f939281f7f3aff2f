"""What a model is, for people and for programs."""

from collections.abc import Iterator
from typing import Any

import msgspec

from ..input.images import HERE
from ..job.sampling import JobSampling
from ..model import series
from ..model.model import Model
from ..model.vision import TOKENS

_FORMATS = {
    "speaker": "speaker: `ユーザー: text` lines, joined by newlines, then `システム: `",
    "speaker-nl": "speaker-nl: `ユーザー: text` lines, joined by `<NL>`, then `システム: `",
    "raw": "raw: the text alone",
    "chat-template": "chat-template: as the template of the model's tokenizer has it",
}


def describe(model: Model) -> Iterator[tuple[str, str]]:
    """(name, value) of each line; the name is blank on the lines that go on with a value."""
    yield "model", model.name
    if model.revision:
        yield "revision", model.revision
    yield "folder", str(model.folder)
    yield from _lines("family", _family(model))
    yield "prompt format", _FORMATS[model.prompt_format]
    yield "context", f"{model.context:,} tokens"
    yield "vocabulary", f"{model.vocab_size:,} ids in the weights, {model.tokenizer.vocab_size:,} in the tokenizer"
    yield from _lines("card's sampling", [f"{card.models}: {_named(card.sampling)}" for card in model.family.cards])
    format = model.prompt_format
    yield "defaults", _named(msgspec.structs.asdict(JobSampling().with_defaults(model.sampling_defaults(format))))
    if sees := list(_sees(model)):
        yield from _lines("images", sees)
    if model.quantization:
        yield "quantization", model.quantization
    yield from _lines("weights", list(_weights(model)))
    yield from _lines("SHA-256", [f"{digest}  {name}" for name, digest in model.sha256.items()])
    known = [name for md5, name in series.RELEASES.items() if md5 in model.weights.values()]
    yield from _lines("release", known or ["unknown: the MD5 is that of no release listed here"])


def document(model: Model) -> dict[str, Any]:
    """For programs."""
    format = model.prompt_format
    vision = model.vision
    return {
        "model": model.name,
        "revision": model.revision,
        "folder": str(model.folder),
        "model_type": model.model_type,
        "family": model.family.name,
        "prompt_format": format,
        "context": model.context,
        "vocab_size": {"weights": model.vocab_size, "tokenizer": model.tokenizer.vocab_size},
        "cards": [msgspec.to_builtins(card) for card in model.family.cards],
        "defaults": msgspec.structs.asdict(JobSampling().with_defaults(model.sampling_defaults(format))),
        "takes_images": model.takes_images,
        "vision": vision.md5 if vision else None,
        "quantization": model.quantization or None,
        "weights": {
            name: {"bytes": (model.folder / name).stat().st_size, "md5": md5} for name, md5 in model.weights.items()
        },
        "sha256": model.sha256,
        "releases": [name for md5, name in series.RELEASES.items() if md5 in model.weights.values()],
    }


def _named(sampling: dict[str, Any] | None) -> str:
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")
    return ", ".join(f"{name} {sampling[name]}" for name in names if name in sampling) if sampling else "not stated"


def _lines(name: str, values: list[str]) -> Iterator[tuple[str, str]]:
    yield from zip([name] + [""] * (len(values) - 1), values or ["not stated"], strict=True)


def _family(model: Model) -> list[str]:
    if not model.family.cards:
        kind = "a GPT-NeoX of the rinna kind" if model.model_type == "gpt_neox" else f"a {model.model_type} model"
        return [f"{kind}, {model.family.name}"]
    known = series.RELEASES.keys() & model.weights.values()
    if known or len(model.family.cards) == 1:
        return [model.family.name]
    # Config and tokenizer are the same for all of them.
    return [model.family.name, "its base and instruction models differ in the weights alone: instruction is assumed"]


def _sees(model: Model) -> Iterator[str]:
    """By what it sees images, if it does."""
    if model.takes_images:
        yield "by vLLM, where messages have them or [input] image names their column"
    if not model.vision:
        return
    yield f"MiniGPT-4: {TOKENS} embeddings in place of {HERE}, by BLIP-2's vision"
    for path in (model.vision.checkpoint, *model.vision.weights):
        named = path.name if path == model.vision.checkpoint else f"vision/{path.name}"
        yield f"{path}  {path.stat().st_size:,} bytes  MD5 {model.vision.md5[named]}"


def _weights(model: Model) -> Iterator[str]:
    width = max(map(len, model.weights))
    for name, md5 in model.weights.items():
        size = (model.folder / name).stat().st_size
        unused = "" if name in model.digests else "  (not used: there are safetensors)"
        yield f"{name:{width}}  {size:,} bytes  MD5 {md5}{unused}"
