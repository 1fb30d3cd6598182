"""The formats of image files. No Pillow here: suffixes are looked at before it is needed."""

from os import PathLike
from pathlib import PurePath

from diffcodec.container.parts import MODES
from diffcodec.errors import UnsupportedError

SUFFIXES = {  # of the formats that are read
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pbm": "PPM",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".qoi": "QOI",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
SUFFIX_MODES = {".pbm": "1", ".pgm": "L"}  # the only ones of these; a .ppm may hold all
READ_FORMATS = tuple(sorted(set(SUFFIXES.values())))
EXACT_MODES = {  # what each format that is written gives back with the same mode and samples
    "PNG": tuple(MODES),
    "TIFF": ("1", "L", "LA", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "RGB"),
    "PPM": ("1", "L", "RGB"),
}
LOSSY_MODES = {  # what formats may be written for, where samples are approximate already
    "JPEG": ("L", "RGB"),
    "WEBP": ("L", "RGB"),
}
WEBP_MAX_SIDE = 16383
MAX_SIDES = {"JPEG": 65500, "WEBP": WEBP_MAX_SIDE}


FRAME_IN_SHELL = "choose it with --frame N, the first is 0"


def lossy_format(data: bytes) -> str | None:
    """The name of a format with loss that a readable file is in: its exact pixels take more."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and b"VP8 " in (data[12:16], data[30:34]):
        return "WebP with loss"
    if data[:2] in (b"II", b"MM"):
        from diffcodec.images.opening import open_image

        if open_image(data, ("TIFF",)).info.get("compression") in ("jpeg", "tiff_jpeg"):
            return "TIFF of JPEG"
    return None


def save_format(path: str | PathLike[str]) -> str:
    """The format to write by a path's suffix, for :func:`diffcodec.images.writing.write_image`.

    Raises:
        UnsupportedError: no format that is written has that suffix.
    """
    suffix = PurePath(path).suffix.lower()
    formats = EXACT_MODES | LOSSY_MODES
    written = {suffix: format for suffix, format in SUFFIXES.items() if format in formats}
    if suffix not in written:
        raise UnsupportedError(
            f"found suffix '{suffix}', expected one of {', '.join(written)}: write .png"
        )
    return written[suffix]
