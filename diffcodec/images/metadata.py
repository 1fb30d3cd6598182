"""What comes with the pixels: profile, EXIF, XMP, text, resolution, palette, transparency, ..."""

import struct
import zlib
from collections.abc import Mapping
from numbers import Real
from typing import Any

from PIL import Image

from diffcodec.container.parts import MODES
from diffcodec.errors import CorruptError, FormatError, LimitError, UnsupportedError
from diffcodec.images import png
from diffcodec.limits import DEFAULT_LIMITS, Limits

MAX_DPI = 1e7  # more does not fit into a PNG
_COMPRESSED = {"icc": "icc_profile", "exif": "exif", "xmp": "xmp"}  # by Pillow's names
KEPT_FIELDS = {*_COMPRESSED.values(), *png.NAMED_FIELDS, "png_chunks", "dpi", "transparency"}
_PALETTE_MODES = {3: "RGB", 4: "RGBA"}  # by channels


def kept_fields(image: Image.Image, info: Mapping[Any, Any] | None = None) -> dict[str, Any]:
    """The part of ``info``, by default the image's, that is kept, by Pillow's names.

    Beside those there is ``png_chunks``, a tuple of pairs, type and content: what a PNG may hold
    that Pillow has no name for.
    Text chunks of a PNG land in ``info`` under names of their own choosing: hence the checks.
    """
    info = image.info if info is None else info
    kept: dict[str, Any] = {
        name: info[name]
        for name in _COMPRESSED.values()
        if isinstance(info.get(name), bytes) and info[name]
    }
    named = (name for name in png.NAMED_FIELDS if name in info)
    kept |= {name: info[name] for name in named if png.named_chunk(name, info[name])}
    chunks = info.get("png_chunks")
    if isinstance(chunks, tuple) and chunks and all(map(png.is_chunk, chunks)):
        kept["png_chunks"] = chunks
    dpi = info.get("dpi")
    if isinstance(dpi, tuple) and _is_resolution(dpi):
        kept["dpi"] = (float(dpi[0]), float(dpi[1]))
    if _is_transparency(info.get("transparency"), image.mode):
        kept["transparency"] = info["transparency"]
    return kept


def _is_resolution(dpi: tuple[Any, ...]) -> bool:
    return len(dpi) == 2 and all(isinstance(v, Real) and 0 < float(v) <= MAX_DPI for v in dpi)


def _is_transparency(value: object, mode: str) -> bool:
    """Whether it is a transparent colour, or the alphas of a palette, as Pillow has for a mode."""
    if mode == "P" and isinstance(value, bytes):
        return 1 <= len(value) <= 256
    if mode in ("LA", "RGBA"):  # which have an alpha of their own
        return False
    channels = value if isinstance(value, tuple) else (value,)
    largest = 255 if mode == "P" else 65535
    return len(channels) == MODES[mode].channels and all(
        isinstance(channel, int) and 0 <= channel <= largest for channel in channels
    )


def stripped(image: Image.Image) -> Image.Image:
    """A copy without metadata, but for what makes the pixels: palette and transparency."""
    kept = kept_fields(image)
    copy = image.copy()
    copy.info.clear()
    copy.info.update((name, kept[name]) for name in kept if name == "transparency")
    return copy


def get_metadata(image: Image.Image) -> dict[str, bytes]:
    """What else than the samples is kept, each item as bytes.

    Returns:
        ``icc``, ``exif`` and ``xmp``: the bytes as Pillow has them, compressed by zlib.
        ``chunks`` and ``text``: what else a PNG may hold, as its chunks, compressed by zlib.
        ``dpi``: horizontal and vertical, float64, little-endian.
        ``palette``: 3 (RGB) or 4 (RGBA) in one byte, and the colours. Always there in mode P.
        ``transparency``: ``b`` and the alphas of the palette, or ``i`` and the transparent index,
        grey level or colour in uint16, little-endian.

    Raises:
        LimitError: an item is over the limit of readers.
        UnsupportedError: the palette is neither RGB nor RGBA.
    """
    kept = kept_fields(image)
    metadata = {}
    items = {key: kept.get(name, b"") for key, name in _COMPRESSED.items()}
    chunks = extra_chunks(kept)
    if len(chunks) > png.MOST_CHUNKS:
        raise LimitError(
            f"found {len(chunks)} chunks of text and other metadata, the limit is "
            f"{png.MOST_CHUNKS}; leave metadata out (strip)"
        )
    items["chunks"] = png.pack_chunks(chunk for chunk in chunks if chunk[0] not in png.TEXT)
    items["text"] = png.pack_chunks(chunk for chunk in chunks if chunk[0] in png.TEXT)
    for key, content in items.items():
        if content:
            DEFAULT_LIMITS.check_metadata(len(content))
            metadata[key] = zlib.compress(content, 9)
    if "dpi" in kept:
        metadata["dpi"] = struct.pack("<2d", *kept["dpi"])
    if image.mode == "P":
        mode = image.palette.mode if image.palette else "RGB"
        if mode not in _PALETTE_MODES.values():
            raise UnsupportedError(f"found a palette in {mode}: use image.convert('RGB')")
        metadata["palette"] = bytes([len(mode), *(image.getpalette(mode) or [])])
    if "transparency" in kept:
        metadata["transparency"] = _pack_transparency(kept["transparency"])
    return metadata


def extra_chunks(kept: Mapping[str, Any]) -> list[png.Chunk]:
    """What Pillow does not write of :func:`kept_fields` into a PNG, but for XMP."""
    named = (png.named_chunk(name, kept[name]) for name in png.NAMED_FIELDS if name in kept)
    return [chunk for chunk in named if chunk] + list(kept.get("png_chunks", ()))


def _pack_transparency(value: bytes | int | tuple[int, ...]) -> bytes:
    if isinstance(value, bytes):
        return b"b" + value
    channels = value if isinstance(value, tuple) else (value,)
    return b"i" + struct.pack(f"<{len(channels)}H", *channels)


def _unpack_transparency(data: bytes) -> bytes | int | tuple[int, ...] | None:
    if data[:1] == b"b":
        return data[1:]
    if data[:1] != b"i" or len(data) not in (3, 7):
        return None
    channels = struct.unpack(f"<{len(data) // 2}H", data[1:])
    return channels if len(channels) == 3 else int(channels[0])


def apply_metadata(
    image: Image.Image, metadata: Mapping[str, bytes], limits: Limits = DEFAULT_LIMITS
) -> None:
    """Give an image what :func:`get_metadata` took from another of its mode; ignore other items.

    Raises:
        CorruptError: an item is malformed, or does not go with the image's mode.
        FormatError: a palette is missing.
        LimitError: an item is over a limit.
    """
    if (image.mode == "P") != ("palette" in metadata):
        raise FormatError(f"mode {image.mode}: a palette goes with mode P and no other")
    image.info.update(_unpack_compressed(metadata, limits))
    if "dpi" in metadata:
        if len(metadata["dpi"]) != 16:
            raise CorruptError(f"found {len(metadata['dpi'])} bytes of dpi, expected 16")
        dpi = struct.unpack("<2d", metadata["dpi"])
        if not _is_resolution(dpi):
            raise CorruptError(f"found a resolution of {dpi} dpi, expected 0 to {MAX_DPI:g}")
        image.info["dpi"] = dpi
    if "palette" in metadata:
        channels, colors = metadata["palette"][:1], metadata["palette"][1:]
        mode = _PALETTE_MODES.get(channels[0] if channels else 0)
        if mode is None or len(colors) % len(mode) or len(colors) > 256 * len(mode):
            raise CorruptError(f"found {len(colors)} bytes of palette, expected 256 RGBA at most")
        image.putpalette(colors, mode)
    if "transparency" in metadata:
        transparency = _unpack_transparency(metadata["transparency"])
        if not _is_transparency(transparency, image.mode):
            raise CorruptError(f"found transparency that does not fit mode {image.mode}")
        image.info["transparency"] = transparency


def _unpack_compressed(metadata: Mapping[str, bytes], limits: Limits) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: _inflate(metadata[key], key, limits)
        for key, name in _COMPRESSED.items()
        if key in metadata
    }
    unnamed: list[png.Chunk] = []
    for key in ("chunks", "text"):
        chunks = png.unpack_chunks(_inflate(metadata[key], key, limits) if key in metadata else b"")
        if chunks is None or any((chunk[0] in png.TEXT) != (key == "text") for chunk in chunks):
            raise CorruptError(f"metadata {key} is damaged: expected PNG chunks of that kind")
        unnamed += chunks
    return fields | png.fields_of(unnamed)


def _inflate(data: bytes, key: str, limits: Limits) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(data, limits.metadata_bytes + 1)
    except zlib.error as error:
        raise CorruptError(f"metadata {key} is damaged: {error}") from error
    limits.check_metadata(len(content))
    if not decompressor.eof or decompressor.unused_data:
        raise CorruptError(f"metadata {key} is damaged: its length is wrong")
    return content
