"""Images to files that keep every sample."""

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, Any

import numpy as np
from PIL import Image

from diffcodec.errors import UnsupportedError
from diffcodec.images.formats import EXACT_MODES, LOSSY_MODES, MAX_SIDES
from diffcodec.images.metadata import extra_chunks, kept_fields
from diffcodec.images.modes import as_image
from diffcodec.images.png import insert, xmp_chunk
from diffcodec.limits import DEFAULT_LIMITS

_KEPT = {  # fields that Pillow writes, by format; a PNG gets the others as chunks
    "PNG": ("icc_profile", "exif", "dpi", "transparency"),
    "TIFF": ("icc_profile", "xmp", "dpi"),
    "WEBP": ("icc_profile", "exif", "xmp"),
    "JPEG": ("icc_profile", "exif", "xmp", "dpi"),
    "BMP": ("dpi",),
    "PPM": (),
}
_IN_WORDS = {
    "icc_profile": "the ICC profile",
    "exif": "EXIF",
    "xmp": "XMP",
    "dpi": "the resolution",
    "aspect": "the aspect of pixels",
    "srgb": "the mark of sRGB",
    "png_chunks": "text and other chunks of PNG",
}
_TIFF_XMP = 700
_EXIF, _MARKER = b"Exif\0\0", 65533  # how EXIF begins in a JPEG, and the bytes of a marker
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "TIFF": {"compression": "tiff_adobe_deflate"},
    "WEBP": {"lossless": True, "exact": True},
    "JPEG": {"quality": 95, "subsampling": 0},
}


def write_image(
    image: Image.Image, stream: IO[bytes], format: str = "PNG", exact: bool = True
) -> list[str]:
    """Write an image so that :func:`read_image` gives back the same mode and samples.

    Metadata is kept as far as the format can: all of it by PNG, which rounds the resolution to
    pixels per metre, writes a palette as RGB with alphas, and lengthens one shorter than the
    indices need; profile, EXIF and XMP by WebP; profile, XMP and resolution by TIFF (where Pillow
    would rotate by the EXIF); resolution by BMP; none by PPM.

    Returns:
        What the format does not keep of the metadata, in words.

    Args:
        image: in one of the modes that are coded.
        stream: to write to.
        format: of ``EXACT_MODES`` or, of an image that is none exactly, ``LOSSY_MODES``.
        exact: whether every sample must be kept. If not, JPEG is of quality 95, and WebP still
            without loss, but grey as RGB.

    Raises:
        UnsupportedError: the format does not keep this image exactly; PNG does.
        OSError: the stream cannot be written.
    """
    # It is in memory already: a limit now would only lose it.
    own = replace(DEFAULT_LIMITS, pixels=image.width * image.height, side=max(image.size))
    image = as_image(image, own)
    fields = kept_fields(image)
    plain = image.copy()
    plain.info = {}
    lost = ""
    modes = EXACT_MODES.get(format, ()) + (() if exact else LOSSY_MODES.get(format, ()))
    if exact and format not in EXACT_MODES:
        lost = "every sample"
    elif plain.mode not in modes:
        lost = f"mode {plain.mode}"
    elif format != "PNG" and "transparency" in fields:
        lost = "the transparent colour"
    elif max(plain.size) > MAX_SIDES.get(format, max(plain.size)):
        lost = f"sides over {MAX_SIDES[format]} pixels"
    elif format == "WEBP" and plain.mode == "RGBA" and _is_opaque(plain):
        lost = "an alpha channel that is opaque throughout"
    if lost:
        raise UnsupportedError(f"{format} does not keep {lost}: write PNG")
    if plain.mode == "P":
        _lengthen_palette(plain, fields.get("transparency", 0))
    kept = {name: fields[name] for name in _KEPT[format] if name in fields}
    if format == "JPEG":
        kept = _in_markers(kept)
    coded = io.BytesIO()  # Pillow seeks in the stream, which standard output cannot
    plain.save(coded, format, **_options(kept, format, plain.mode))
    if format != "PNG":
        stream.write(coded.getbuffer())
        return [_IN_WORDS.get(name, name) for name in fields if name not in kept]
    chunks = extra_chunks(fields) + ([xmp_chunk(fields["xmp"])] if "xmp" in fields else [])
    stream.write(insert(coded.getvalue(), chunks) if chunks else coded.getbuffer())
    return []


def _options(kept: Mapping[str, Any], format: str, mode: str) -> dict[str, Any]:
    """What Pillow is told, to write a mode with these fields in a format."""
    options = dict(kept)
    if mode == "1" and "transparency" in options:
        options["transparency"] = min(1, options["transparency"])  # in a PNG of one bit
    if format == "TIFF" and "xmp" in options:
        options["tiffinfo"] = {_TIFF_XMP: options.pop("xmp")}
    return options | _SAVE_OPTIONS.get(format, {})


def _in_markers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the markers of a JPEG hold of its fields: of most 64 KiB, resolutions in two bytes."""
    kept = dict(fields)
    if "exif" in kept:
        kept["exif"] = _EXIF + kept["exif"].removeprefix(_EXIF)
    sizes = {"exif": _MARKER, "xmp": _MARKER - 29, "icc_profile": 255 * (_MARKER - 14)}
    for name, most in sizes.items():
        if len(kept.get(name, b"")) > most:
            del kept[name]
    if not all(1 <= round(dots) < 1 << 16 for dots in kept.get("dpi", ())):
        del kept["dpi"]
    return kept


def _is_opaque(image: Image.Image) -> bool:
    return image.getchannel("A").getextrema() == (255, 255)


def _lengthen_palette(image: Image.Image, transparency: bytes | int) -> None:
    """Give every index a colour: Pillow's PNG cuts the indices to the bits of a short palette."""
    mode = image.palette.mode if image.palette else "RGB"
    palette = bytes(image.getpalette(mode) or [])
    indices = np.frombuffer(image.tobytes(), np.uint8)
    last = len(transparency) - 1 if isinstance(transparency, bytes) else transparency
    missing = max(int(indices.max()), last) + 1 - len(palette) // len(mode)
    if missing > 0:
        image.putpalette(palette + missing * bytes([0, 0, 0, 255][: len(mode)]), mode)
