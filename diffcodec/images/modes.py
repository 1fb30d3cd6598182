"""The kinds of image that are coded exactly."""

import math
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

from diffcodec.arrays import AnyArray
from diffcodec.container.parts import MODES
from diffcodec.errors import DiffcodecError, FormatError, UnsupportedError
from diffcodec.images.described import described
from diffcodec.images.formats import FRAME_IN_SHELL
from diffcodec.images.metadata import kept_fields
from diffcodec.images.opening import open_image
from diffcodec.images.png import SIGNATURE, Parts, grey_scale, split
from diffcodec.images.samples import image_of_samples
from diffcodec.limits import DEFAULT_LIMITS, Limits

_FRAME_IN_PYTHON = "choose it with image.seek(i) and image.copy()"


def as_image(
    source: Image.Image | AnyArray,
    limits: Limits = DEFAULT_LIMITS,
    *,
    frame: int | None = None,
    in_shell: bool = False,
) -> Image.Image:
    """A plain, loaded Pillow image in one of ``MODES``, without converting any pixel.

    Of a PNG or PPM that Pillow has loaded, and of which the file is gone, it can't be seen whether
    it had 16 bits a sample, which Pillow reduces to 8.

    Args:
        source: a Pillow image, or an array: bool [height, width] (mode 1), uint8 [height, width]
            or [height, width, 1 to 4] (L, LA, RGB, RGBA), uint16 [height, width] (I;16); or a
            torch tensor: uint8 [1 to 4, height, width].
        limits: the sizes to accept.
        frame: which of several to take, the first is 0.
        in_shell: whether advice is for users of the command line, not of Python.

    Raises:
        FormatError: a lazily opened file is damaged.
        LimitError: it is over a limit.
        UnsupportedError: another mode or array, an empty image, several frames, or a file whose
            samples Pillow reduces.
    """
    image = source if isinstance(source, Image.Image) else image_of_samples(source, limits)
    if _is_closed(image):
        raise UnsupportedError("found a closed image, expected an open one: open it again")
    if frame is not None:
        _seek(image, frame)
    file = image if isinstance(image, ImageFile) else None
    if image.mode not in MODES and not _is_16_bit_grey(image):
        raise UnsupportedError(
            f"found mode {image.mode}, expected one of {', '.join(MODES)}: "
            f"{mode_advice(image.mode, in_shell)}"
        )
    if min(image.size) < 1:
        raise UnsupportedError(f"found an empty image of size {image.size}, expected some pixels")
    limits.check_image(image.width, image.height)
    rawmode = _raw_mode(file) if file else None
    if file:
        _refuse_conversion(file, rawmode)
    try:
        frames = getattr(image, "n_frames", 1) if frame is None else 1
        parts = _parts(file, limits) if isinstance(file, PngImageFile) else None
        image = _loaded(image, parts)
    except DiffcodecError:
        raise
    except Exception as error:  # see read_image
        raise FormatError(f"damaged or cut short ({error}); get a whole copy") from error
    if frames != 1:
        choice = FRAME_IN_SHELL if in_shell else _FRAME_IN_PYTHON
        raise UnsupportedError(f"found {frames} frames, expected one: {choice}")
    if type(image) is Image.Image and image.mode in MODES:
        return image
    return _plain(image, rawmode, parts)


def _is_closed(image: Image.Image) -> bool:
    if isinstance(image, ImageFile) and image.tile:
        return image.fp is None or image.fp.closed
    with suppress(AssertionError):  # it is not loaded yet
        try:
            return image.im is None
        except ValueError:
            return True
    return False


def _seek(image: Image.Image, frame: int) -> None:
    count = getattr(image, "n_frames", 1)
    try:
        image.seek(frame)
    except (EOFError, ValueError) as error:
        raise UnsupportedError(
            f"found no frame {frame}, expected "
            + (f"0 to {count - 1}" if count > 1 else "0: it is a single image")
        ) from error


def _is_16_bit_grey(image: Image.Image) -> bool:
    """Whether its samples are those of mode I;16, in another order or in more bytes."""
    return image.mode == "I;16B" or (image.mode == "I" and image.format == "PPM")


def in_8_bits(image: Image.Image, mode: str) -> Image.Image:
    """A loaded image in mode RGB or RGBA, grey of 16 bits scaled, which Pillow cuts off at 255.

    Raises:
        UnsupportedError: how far its samples go is not known.
    """
    if image.mode in ("I;16", "I;16L") or _is_16_bit_grey(image):
        samples = np.asarray(image, np.uint32)
        is_seen = samples != image.info.get("transparency", -1)
        image = Image.fromarray(((samples + 128) // 257).astype(np.uint8))
        image.putalpha(Image.fromarray(is_seen).convert("L"))
    elif image.mode.startswith(("I", "F")):
        raise UnsupportedError(f"found mode {image.mode}: {mode_advice(image.mode, in_shell=True)}")
    return image.convert(mode)


def mode_advice(mode: str, in_shell: bool) -> str:
    """What to do with an image of another mode."""
    if mode.startswith(("I", "F")):
        if in_shell:
            return (
                "scale it to 16-bit grey, for example: magick IN -depth 16 -colorspace gray OUT.png"
            )
        if mode.startswith("F"):
            return (
                "pass an array of uint16; of samples from 0 to 1 "
                "numpy.rint(65535 * numpy.asarray(image)).astype('uint16')"
            )
        return (
            "pass an array of uint16; if all samples are from 0 to 65535 "
            "numpy.asarray(image).astype('uint16')"
        )
    if in_shell:
        return "convert it, for example: magick IN -colorspace sRGB OUT.png"
    if mode == "LAB":
        return "convert it to RGB by its profiles, with PIL.ImageCms"
    return f"convert it, for example image.convert('{'RGBA' if 'A' in mode.upper() else 'RGB'}')"


def _raw_mode(file: ImageFile) -> Any:
    """How Pillow decodes the samples of a PNG or PPM; None where that can't be seen.

    Once the image is loaded Pillow has forgotten it; its file may still be there.
    """
    tiles = file.tile
    if not tiles and file.format in ("PNG", "PPM") and file.filename:
        try:
            with Image.open(file.filename, formats=[file.format]) as again:
                tiles = again.tile if (again.mode, again.size) == (file.mode, file.size) else []
        except Exception:  # another file has its name now, or none
            return None
    return tiles[0][3] if tiles and file.format in ("PNG", "PPM") else None


def _refuse_conversion(file: ImageFile, rawmode: Any) -> None:
    """Refuse a file that Pillow loads with fewer bits or channels."""
    found = ""
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        tags = file.tag_v2
        grey_16 = file.mode in ("I;16", "I;16B")
        bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        if 2 in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()):
            found = "signed samples"
        elif grey_16 and bits != 16:
            found = f"{bits} bits a sample"
        elif grey_16 and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            found = "16 bits a sample that are white at 0"
        elif bits > 8 and not grey_16:
            found = "more than 8 bits a sample"
        elif tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) != len(file.getbands()):
            found = "unused channels"
        elif 1 in tags.get(TiffImagePlugin.EXTRASAMPLES, ()):
            found = "premultiplied alpha"
    elif file.format == "PNG" and rawmode:
        if ";16" in rawmode and file.mode != "I;16":
            found = "16 bits a sample"
    elif file.format == "PPM" and file.mode != "I":
        largest = rawmode[1] if isinstance(rawmode, tuple) else 255
        if largest > 255 or ";16" in str(rawmode):
            found = "more than 8 bits a sample"
    if found:
        raise UnsupportedError(
            f"found {found} in a {file.format} of mode {file.mode}, which Pillow would convert: "
            "convert the file to 8 bits a sample (16 only in grey) with plain or no alpha first"
        )


def _parts(file: PngImageFile, limits: Limits) -> Parts | None:
    """What the file of a PNG holds that is not loaded yet; None if that can't be read anew."""
    if not file.tile or "png_chunks" in file.info or file.fp is None:
        return None
    data = b""
    with suppress(OSError, ValueError):  # a stream that can't go back
        position = file.fp.tell()
        file.fp.seek(0)
        data = file.fp.read()
        file.fp.seek(position)
    return split(data, limits.metadata_bytes) if data.startswith(SIGNATURE) else None


def _loaded(image: Image.Image, parts: Parts | None) -> Image.Image:
    """The image with its pixels, of a PNG from its parts where Pillow does not load it.

    It calls a PNG damaged that has more than 1 MiB of text behind the pixels.
    """
    try:
        image.load()
    except ValueError:
        if parts is None:
            raise
        again = open_image(parts.pixels, ["PNG"])
        again.info.update(image.info)
        again.info.update((name, parts.fields[name]) for name in parts.late)
        image = again
        image.load()
    return image


def _plain(image: Image.Image, rawmode: Any, parts: Parts | None) -> Image.Image:
    """A copy detached from its file, with only the metadata that is kept, in one of ``MODES``."""
    if _is_16_bit_grey(image):
        grey = np.asarray(image).astype("<u2")
        plain = Image.frombytes("I;16", image.size, grey.tobytes())
    else:
        plain = image.copy()
    own = parts.fields if parts else {}
    info = described(image, {name: own[name] for name in ("png_chunks", "not_kept") if own})
    plain.info.clear()
    plain.info.update(kept_fields(plain, info))
    if image.format == "PNG" and plain.mode == "L" and "transparency" in plain.info:
        bits = {"L;2": 2, "L;4": 4}.get(rawmode, 8)
        plain.info["transparency"] *= grey_scale(bits)
    if lost := info["not_kept"]:
        plain.info["not_kept"] = lost
    return plain


def pixel_crc(image: Image.Image) -> int:
    """CRC-32 of the samples, as Pillow's ``tobytes``: rows from the top, channels interleaved.

    Mode 1 is packed to bits, each row padded to a byte; I;16 is little-endian; P is the indices.
    """
    return zlib.crc32(image.tobytes())


def psnr(shown: Image.Image | AnyArray, image: Image.Image | AnyArray) -> float:
    """Peak signal-to-noise ratio over all samples in dB; infinite where they are equal."""
    rows = list(zip(np.asarray(shown), np.asarray(image), strict=True))  # for less memory
    error = sum(float(np.mean(np.subtract(a, b, dtype=np.float64) ** 2)) for a, b in rows)
    error /= len(rows)
    return 10 * math.log10(255**2 / error) if error else math.inf
