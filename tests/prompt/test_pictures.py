import struct
import zlib

import numpy as np
import pictured
import pytest
from conftest import MODEL

from batchgen.errors import Reject
from batchgen.job.spec import LimitsTable
from batchgen.model.model import load_model
from batchgen.prompt.checker import Checker
from batchgen.prompt.pictures import Album, looked_at

MOST = LimitsTable().image_pixels


def refusal(content: bytes, look=lambda content: looked_at(content, 224, MOST)) -> str:
    with pytest.raises(Reject) as refused:
        look(content)
    return str(refused.value)


def checker(**limits) -> Checker:
    made = Checker(load_model(str(MODEL)), any_whitespace=False, limits=LimitsTable(**limits))
    made.set_up_pictures(224, limits.get("image_pixels", MOST))
    return made


@pytest.mark.parametrize("kind", pictured.every_kind())
def test_a_file_of_any_kind_becomes_the_pixels_that_blip_2_sees(kind):
    content = pictured.every_kind()[kind]
    seen = looked_at(content, 224, MOST)
    pixels = np.frombuffer(seen.pixels, np.uint8).reshape(224, 224, 3).transpose(2, 0, 1)
    mean, std = (np.array(part)[:, None, None] for part in (pictured.MEAN, pictured.STD))
    assert np.abs((pixels / 255 - mean) / std - pictured.reference(content)).max() < 1e-6
    assert seen.is_animated == kind.startswith("animated")


def test_without_a_square_an_image_keeps_its_size():
    seen = looked_at(pictured.photo(0, 31, 17), None, MOST)
    assert (seen.width, seen.height, seen.size, len(seen.pixels)) == (31, 17, (31, 17), 31 * 17 * 3)


def test_what_is_no_image_says_so():
    whole = pictured.photo()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"  # for which Pillow would start Ghostscript
    assert "an empty file" in refusal(b"")
    assert "no image of a known kind" in refusal(b"<html>404</html>")
    assert "no image of a known kind" in refusal(eps)
    assert refusal(whole[: len(whole) // 2]).startswith("image_unreadable: ")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    assert refusal(bytes(damaged)).startswith("image_unreadable: ")


@pytest.mark.parametrize(
    "content",
    [
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7\n1 0 obj <</Type /Catalog>> endobj\n",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(80),
        b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(80),
        b"P6 2 2 255 " + bytes(12),  # of Pillow's other formats
        b"\0\0\1\0" + bytes(60),
    ],
    ids=["SVG", "PDF", "HEIC", "AVIF", "PPM", "ICO"],
)
def test_a_file_of_another_kind_names_those_that_are_known(content):
    why = "image_unreadable: no image of a known kind (JPEG, PNG, WEBP, GIF, BMP, TIFF)"
    assert refusal(content) == why


@pytest.mark.parametrize("kind", pictured.every_kind())
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_file_that_was_cut_is_refused_or_read_and_nothing_else(kind, share):
    content = pictured.every_kind()[kind]
    cut = content[: int(len(content) * share)]
    try:
        seen = looked_at(cut, 224, MOST)
    except Reject as why:
        assert why.reason == "image_unreadable" and "\n" not in why.detail
    else:  # of a GIF or WEBP of several images the first is whole
        assert seen == looked_at(content, 224, MOST) or kind.startswith("animated"), kind


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes with this many white pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * min(height, 2000)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_by_its_head():
    assert "image_unreadable: 60,000 x 60,000 pixels" in refusal(bomb(60_000, 60_000))


@pytest.mark.small_process
def test_an_image_that_takes_too_much_costs_its_row_and_no_more():
    ours = checker(check_mb=16, check_seconds=2.0)
    assert "too_costly: an image takes more than 16 MB" in refusal(bomb(9000, 5000), ours.look_at)
    assert ours.look_at(pictured.photo()).width == 90
    assert "too_costly" in refusal(bomb(6000, 1900), checker(check_seconds=0.01).look_at)


@pytest.mark.small_process
def test_an_image_is_looked_at_once_while_a_row_needs_it():
    ours, looks = checker(), []

    def look_at(content: bytes):
        looks.append(content)
        return ours.look_at(content)

    album = Album(look_at)
    first, other, again = (album.picture(pictured.photo(seed)) for seed in (1, 2, 1))
    assert first is again and first is not other and len(looks) == 2
    assert len(first.pixels()) == 224 * 224 * 3 and first.pixels() != other.pixels()
    del first, again
    album.picture(pictured.photo(1))
    assert len(looks) == 3
