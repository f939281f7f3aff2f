"""Images for tests: one of every kind that a file may hold, and what the reference makes of them."""

import io

import numpy as np
from PIL import Image

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # BLIP-2's
SIZE = 224


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth blots with an edge in them, so that a filter shows."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, channels), dtype=np.uint8).squeeze())
    values = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    values[height // 3 : height // 2] = 255 - values[height // 3 : height // 2]
    return values


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def photo(seed: int = 0, width: int = 90, height: int = 60) -> bytes:
    """A small RGB PNG."""
    return file_of(Image.fromarray(noise(width, height, seed=seed)))


def every_kind() -> dict[str, bytes]:
    """20 files, by what is special about them."""
    rgb, gray = Image.fromarray(noise(120, 80)), Image.fromarray(noise(120, 80, 1))
    rgba = Image.fromarray(noise(120, 80, 4, seed=1))
    deep = Image.fromarray(noise(120, 80, 1).astype(np.uint16) * 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    frames = [Image.fromarray(noise(60, 60, seed=seed)) for seed in range(3)]
    return {
        "JPEG": file_of(rgb, "JPEG", quality=90),
        "gray JPEG": file_of(gray, "JPEG"),
        "CMYK JPEG": file_of(rgb.convert("CMYK"), "JPEG"),
        "progressive JPEG": file_of(rgb, "JPEG", progressive=True),
        "EXIF orientation": file_of(rgb, "JPEG", exif=exif),
        "PNG": file_of(rgb),
        "gray PNG": file_of(gray),
        "alpha": file_of(rgba),
        "gray and alpha": file_of(rgba.convert("LA")),
        "palette": file_of(rgb.convert("P", palette=Image.Palette.ADAPTIVE)),
        "palette with transparency": file_of(rgb.convert("P"), transparency=3),
        "one bit": file_of(rgb.convert("1")),
        "16 bit": file_of(deep),
        "GIF": file_of(rgb.convert("P"), "GIF"),
        "animated GIF": file_of(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50),
        "WEBP": file_of(rgba, "WEBP"),
        "animated WEBP": file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "BMP": file_of(rgb, "BMP"),
        "CMYK TIFF": file_of(rgb.convert("CMYK"), "TIFF"),
        "narrow": photo(5, 3, 700),
    }


def reference(content: bytes) -> np.ndarray:
    """BLIP-2's evaluation transform by its own words: Image.open(...).convert("RGB"), torchvision's Resize to a square
    with bicubic interpolation (of a PIL image that is PIL's own), ToTensor, Normalize. [3, 224, 224], float64."""
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    values = np.asarray(image).astype(np.float64).transpose(2, 0, 1) / 255
    return (values - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
