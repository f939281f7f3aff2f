"""Images: from the bytes of a file to pixels, in the process of checker.py, as a file may be made to do harm."""

import hashlib
import io
import weakref
from collections.abc import Callable
from typing import Any

import msgspec

from ..errors import Reject, in_one_line
from ..host.spill import Kept, Spill

# What Pillow may take a file for: the formats of datasets. It knows forty more, some of which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class Decoded(msgspec.Struct, frozen=True):
    """An image as the model gets it.

    width, height: of the image in the file
    is_animated: whether the file has more images, of which this is the first
    size: of the pixels: width, height
    pixels: RGB, a byte each, row by row
    """

    width: int
    height: int
    is_animated: bool
    size: tuple[int, int]
    pixels: bytes


def load() -> None:
    """Imports all that `looked_at` needs, so that no image has to pay for it. Raises ImportError without Pillow."""
    from PIL import Image

    for kind in FORMATS:
        Image.new("RGB", (2, 2)).save(file := io.BytesIO(), kind)
        looked_at(file.getvalue(), 2, 4)


def looked_at(content: bytes, square: int | None, most: int) -> Decoded:
    """The image in a file, in RGB. Raises Reject(image_unreadable).

    Nothing is made of its EXIF orientation, its profile or its transparency, and of an animation the first image is
    taken: so BLIP-2's and MiniGPT-4's own preprocessing does it.

    square: width and height that it is brought to, whatever its shape, by Pillow's bicubic filter; None leaves it as it
    is; most: pixels that it may have
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit is ours
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > most:
                what = f"{width:,} x {height:,} pixels, and [limits] image_pixels allows {most:,}"
                raise Reject("image_unreadable", what)
            # A JPEG with several images is of a camera that keeps a preview or a second lens beside it.
            is_animated = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
            image.seek(0)
            seen: Any = image.convert("RGB")
            if square:
                seen = seen.resize((square, square), Image.Resampling.BICUBIC)
            return Decoded(width, height, is_animated, seen.size, seen.tobytes())
    except (Reject, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        what = f"no image of a known kind ({', '.join(FORMATS)})" if content else "an empty file"
        raise Reject("image_unreadable", what) from None
    except Exception as error:  # Pillow's parsers raise what comes up: OSError, ValueError, SyntaxError, struct.error
        raise Reject("image_unreadable", in_one_line(error)) from None


class Picture:
    """An image of a row, for the engine. Its pixels are on the disk for as long as anything refers to it.

    digest: SHA-256 of its file, in hex
    width, height, is_animated, size: see Decoded
    """

    __slots__ = ("__weakref__", "_kept", "digest", "height", "is_animated", "size", "width")

    def __init__(self, digest: str, seen: Decoded, kept: Kept):
        self.digest, self._kept = digest, kept
        self.width, self.height, self.is_animated, self.size = seen.width, seen.height, seen.is_animated, seen.size

    def pixels(self) -> bytes:
        """RGB, a byte each, row by row. Raises Stopped if they cannot be read from the disk."""
        return self._kept.read()


class Album:
    """The images of a job, each looked at once for as long as any row needs it."""

    def __init__(self, look_at: Callable[[bytes], Decoded]):
        """look_at: see Checker."""
        self._look_at = look_at
        self._spill = Spill()
        self._known: weakref.WeakValueDictionary[str, Picture] = weakref.WeakValueDictionary()

    def picture(self, content: bytes) -> Picture:
        """The image in a file. Raises Reject, or Stopped if the disk is full."""
        digest = hashlib.sha256(content).hexdigest()
        if (known := self._known.get(digest)) is not None:
            return known
        seen = self._look_at(content)
        made = self._known[digest] = Picture(digest, seen, self._spill.keep(seen.pixels))
        return made
