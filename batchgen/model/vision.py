"""What lets a model see images: MiniGPT-4's files and BLIP-2's, found and digested, or vLLM's own way of it.

rinna/bilingual-gpt-neox-4b-minigpt4 is a `checkpoint.pth` with one linear layer, from what BLIP-2 makes of an image to
the embeddings of the language model bilingual-gpt-neox-4b. engine/vision.py has the arithmetic.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import JobError
from ..job.spec import is_hub_name
from . import hub, model_files
from .hub import Found, Wanted

LANGUAGE_MODEL = "rinna/bilingual-gpt-neox-4b"
# BLIP-2 as LAVIS publishes it: the vision transformer, and the Q-Former that was trained beside FLAN-T5 XXL.
LAVIS = ("eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth")
# BLIP-2 as transformers has it: of its many files those with these parts.
PARTS = ("vision_model.", "qformer.", "query_tokens")
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"

SQUARE = 224  # pixels to which BLIP-2 brings an image, both ways
TOKENS = 32  # that stand for an image in a prompt


@dataclass(frozen=True)
class Vision:
    """The files by which a MiniGPT-4 model sees.

    checkpoint: with the linear layer
    weights: of BLIP-2, LAVIS' two or some of transformers'
    md5, sha256: digests by name, of all of them; those of BLIP-2 begin with `vision/`
    """

    checkpoint: Path
    weights: list[Path]
    md5: dict[str, str]
    sha256: dict[str, str]

    @property
    def is_of_lavis(self) -> bool:
        return self.weights[0].name in LAVIS


def language_model(found: Found) -> Found:
    """Where the language model of a model is: in its own folder, but for a MiniGPT-4 model that has none there. Raises
    JobError."""
    names = os.listdir(found.folder)
    if hub.is_complete(names) or hub.CHECKPOINT not in names:
        return found
    return hub.find(LANGUAGE_MODEL, cache_first=True)


def find(found: Found, named: str) -> Vision | None:
    """What a MiniGPT-4 model sees by; None of another, or if it is to be used for its texts alone. named: `[model]
    vision`. Raises JobError."""
    names = os.listdir(found.folder)
    if not named:
        if hub.is_complete(names) or hub.CHECKPOINT not in names:
            return None
        raise JobError(
            f"{found.name}: a MiniGPT-4 model, which sees by BLIP-2's vision: name its weights in [model] vision "
            f"(--vision), a folder with {' and '.join(LAVIS)}, or Salesforce/blip2-flan-t5-xxl"
        )
    if hub.CHECKPOINT not in names:
        raise JobError(f"[model] vision: {found.name} has no {hub.CHECKPOINT}, so it is no MiniGPT-4 model")
    weights = _weights(named)
    folder = weights[0].parent
    ours, theirs = (
        model_files.digests(found.folder, [found.folder / hub.CHECKPOINT]),
        model_files.digests(folder, weights),
    )
    return Vision(
        checkpoint=found.folder / hub.CHECKPOINT,
        weights=weights,
        md5=ours.md5 | {f"vision/{name}": digest for name, digest in theirs.md5.items()},
        sha256=ours.sha256 | {f"vision/{name}": digest for name, digest in theirs.sha256.items()},
    )


def _weights(named: str) -> list[Path]:
    """BLIP-2's weights, downloaded if need be."""
    folder = hub.find(named, wanted=_exactly(INDEX, or_else=WHOLE), cache_first=True).folder
    if all((folder / name).exists() for name in LAVIS):
        return model_files.matching(folder, LAVIS)
    if (folder / INDEX).exists():
        names = _shards(folder)
        if is_hub_name(named):
            folder = hub.find(named, folder.name, wanted=_exactly(*names)).folder
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise JobError(f"[model] vision: {folder}: {missing[0]} is missing; download it again")
        return [folder / name for name in names]
    if (folder / WHOLE).exists():
        return model_files.matching(folder, (WHOLE,))
    raise JobError(f"[model] vision: {folder}: has neither {' and '.join(LAVIS)} nor {WHOLE}")


def _exactly(*names: str, or_else: str = "") -> Wanted:
    """These files; another one in a repository that has none of them."""
    wanted = [*names]
    return Wanted(
        lambda files: wanted if not or_else or names[0] in files else [or_else],
        wanted,
        lambda there: set(wanted) <= {*there} or or_else in there,
    )


def _shards(folder: Path) -> list[str]:
    """The files that have what is needed, by transformers' index of them."""
    table = model_files.read_table(folder / INDEX)
    try:
        where = msgspec.convert(table.get("weight_map"), dict[str, str])
    except msgspec.ValidationError as error:
        raise JobError(f"{folder / INDEX}: {model_files.readable(error)}") from None
    names = sorted({file for tensor, file in where.items() if tensor.startswith(PARTS)})
    if not names or any("/" in name for name in names):
        raise JobError(f"{folder / INDEX}: names no weights of BLIP-2's vision")
    return names


def is_seen_by_vllm(config: dict[str, Any]) -> bool:
    """Whether a model has a part for images that vLLM runs, going by its config.json."""
    return any(isinstance(config.get(key), dict) for key in ("vision_config", "vision_tower_config", "visual"))
