"""Compressed files as streams of bytes: gzip, zstd, bz2 and xz of one member or many, and lz4 frames."""

import bz2
import ctypes
import functools
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pyarrow as pa

# The first bytes of each kind of file. (zstd may also begin with a skippable frame.)
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}
_BZ2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # begins a block, or the end of a stream without blocks
_PIECE = 1 << 18  # bytes read at a time
_MOST = 1 << 20  # bytes of text returned at a time
_LONGEST_WINDOW = 31  # log2 of bytes; what `zstd --long=31` needs
_D_WINDOW_LOG_MAX = 100  # ZSTD_dParameter


class Damaged(Exception):
    """The bytes are not valid for the compression, or end too early."""


def compression_of(head: bytes) -> str:
    """The compression of a file, by its first bytes; "" if it is not compressed."""
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "zstd"
    if head.startswith(b"BZh") and head[4:10] not in _BZ2_BLOCKS:
        return ""  # just a text that begins with these letters
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


class _Decoder(Protocol):
    """The interface of bz2's and lzma's decompressors: one member, with a limit on the output of each call."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def decompressed(raw: Any, compression: str) -> Iterator[bytes]:
    """The text of a stream, in pieces of at most 1 MiB. Raises Damaged, and what reading raises.

    Zeros between and after the members are skipped: tapes and some cloud stores pad blocks with them.
    """
    make = _DECODERS[compression]
    if make is None or (make is _zstd and not _libzstd()):
        yield from _by_arrow(raw, compression)
        return
    decoder: _Decoder | None = None
    while data := raw.read(_PIECE):
        while data or (decoder and not decoder.needs_input):
            if decoder is None:
                data = data.lstrip(b"\0")
                if not data:
                    break
                decoder = make()
            try:
                text = decoder.decompress(data, _MOST)
            except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
                raise Damaged(str(error)) from None
            data = b""
            if text:
                yield text
            if decoder.eof:
                data, decoder = decoder.unused_data, None
    if decoder is not None:
        raise Damaged("it ends too early")


def _by_arrow(raw: Any, compression: str) -> Iterator[bytes]:
    source = raw if isinstance(raw, pa.NativeFile) else pa.PythonFile(raw, mode="r")
    stream = pa.CompressedInputStream(source, compression)
    while True:
        try:
            text = stream.read(_MOST)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            hint = "; its window is too large: unpack it with zstd -d --long=31" if "memory" in str(error) else ""
            raise Damaged(f"{error}{hint}") from None
        if not text:
            return
        yield text


class _Gzip:
    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self.eof, self.needs_input, self.unused_data = False, True, b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        text = self._member.decompress(self._member.unconsumed_tail + data, max_length)
        self.eof, self.unused_data = self._member.eof, self._member.unused_data
        self.needs_input = not self._member.unconsumed_tail and len(text) < max_length
        return text


# --- zstd through the system's library, as pyarrow's refuses windows of more than 128 MiB


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer."""

    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


@functools.cache
def _libzstd() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libzstd.so.1")
        library.ZSTD_createDCtx.restype = ctypes.c_void_p
        library.ZSTD_freeDCtx.argtypes = [ctypes.c_void_p]
        library.ZSTD_DCtx_setParameter.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        library.ZSTD_DCtx_setParameter.restype = ctypes.c_size_t
        library.ZSTD_decompressStream.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(_Buffer)] * 2]
        library.ZSTD_decompressStream.restype = ctypes.c_size_t
        library.ZSTD_isError.argtypes = [ctypes.c_size_t]
        library.ZSTD_getErrorName.argtypes = [ctypes.c_size_t]
        library.ZSTD_getErrorName.restype = ctypes.c_char_p
    except (OSError, AttributeError):  # not installed, or older than 1.4
        return None
    return library


class _zstd:
    """One frame."""

    def __init__(self) -> None:
        library = _libzstd()
        assert library
        self._library = library
        self._context = library.ZSTD_createDCtx()
        library.ZSTD_DCtx_setParameter(self._context, _D_WINDOW_LOG_MAX, _LONGEST_WINDOW)
        self._rest = b""
        self._into = ctypes.create_string_buffer(_MOST)
        self.eof, self.needs_input, self.unused_data = False, True, b""

    def __del__(self) -> None:
        self._library.ZSTD_freeDCtx(self._context)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        data = self._rest + data
        source = _Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
        target = _Buffer(ctypes.cast(self._into, ctypes.c_void_p), min(max_length, _MOST), 0)
        left = self._library.ZSTD_decompressStream(self._context, ctypes.byref(target), ctypes.byref(source))
        if self._library.ZSTD_isError(left):
            raise ValueError(self._library.ZSTD_getErrorName(left).decode())
        self._rest = data[source.position :]
        self.eof = left == 0
        self.unused_data = self._rest if self.eof else b""
        self.needs_input = not self._rest and target.position < target.size
        return ctypes.string_at(self._into, target.position)


_DECODERS: dict[str, Callable[[], Any] | None] = {
    "gzip": _Gzip,
    "zstd": _zstd,
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "lz4": None,
}
COMPRESSIONS = frozenset(["", *_DECODERS])
