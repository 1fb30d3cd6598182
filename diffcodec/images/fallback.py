"""Plain coders, for what the diffusion chain does not code or cannot beat.

``webp`` is lossless WebP, ``png`` is PNG (only where WebP does not reach: sides over 16383),
``planes`` is one of these of the Y, U and V that an image was converted from, behind a byte that
names the conversion, ``planes-420`` the same of chroma at half the resolution, ``raw`` is the
samples themselves. All code samples only; palette and metadata go beside them.
"""

import io
import struct
from typing import Any

from PIL import Image, ImageChops

from diffcodec.container.parts import MODES
from diffcodec.container.primitives import ByteReader, varint
from diffcodec.errors import CorruptError, FormatError, UnsupportedError
from diffcodec.images.color_sets import CONVERSIONS
from diffcodec.images.formats import WEBP_MAX_SIDE
from diffcodec.images.opening import open_image, webp_size
from diffcodec.images.png import SIGNATURE
from diffcodec.images.source_planes import Halved, from_halved, from_planes, to_halved, to_planes

# WebP's (method, quality); none is always the best. Pillow's default wins on small photographs, by
# 1 %; method 6 at 90 on larger ones, by 1 %, and on grey, by 3 %; each takes 1 to 3 seconds a
# megapixel. Trying everything (6 at 100) gains 5 to 8 % on palettes at 25 seconds a megapixel; in
# colour it gains 0.6 % at best, at 23 to 150.
WEBP_SETTINGS = ((4, 80), (6, 90))
WEBP_PLANES_SETTING = (6, 90)  # nearly always the smaller one of them
WEBP_PALETTE_SETTING = (6, 100)
WEBP_PALETTE_MAX_PIXELS = 2**18
# Of what the first setting makes; by trying all it loses 8 % at most, and where it is large, in
# colour and of no conversion, whose luma is coded alone, 5 %.
LEAST_LEFT, LEAST_LEFT_OF_COLOR = 0.9, 0.94
LARGE_PIXELS = 1 << 15


def encode_fallback(
    image: Image.Image, conversion: str | None = None, thorough: bool = True
) -> tuple[str, bytes]:
    """Code the samples of an image in any of ``MODES`` by the smallest of the plain coders.

    Args:
        image: to code.
        conversion: one of ``CONVERSIONS`` that reaches every pixel, if there is one.
        thorough: whether to try all of WebP's settings that may be the best; else the first alone,
            in a quarter of the time, of which the best leaves :func:`least_left` or more.

    Returns:
        The coder's name, and the payload: never larger than the raw samples, nor than lossless
        WebP of the same samples at Pillow's defaults (exact) where both sides are at most 16383.

    Raises:
        UnsupportedError: another mode.
    """
    if image.mode not in MODES:
        raise UnsupportedError(f"found mode {image.mode}, expected one of {', '.join(MODES)}")
    raw = image.tobytes()
    samples = Image.frombytes(_sample_mode(image.mode), image.size, raw)
    coder = "png" if max(image.size) > WEBP_MAX_SIDE else "webp"
    payloads = [("raw", raw)]  # first, so that it wins a tie
    settings, of_planes = _webp_settings(image), WEBP_PLANES_SETTING
    if not thorough:
        settings, of_planes = settings[:1], settings[0]
    payloads += [(coder, _coded(samples, setting)) for setting in settings]
    if conversion not in (None, "grey"):  # WebP finds out itself that RGB is grey
        number, planes = bytes([CONVERSIONS[conversion]]), to_planes(image, conversion)
        payloads.append(("planes", number + _coded(planes, of_planes)))
        halved = to_halved(image, planes, conversion)
        if halved:
            coded = _coded_halved(image, halved, conversion, of_planes)
            payloads.append(("planes-420", number + coded))
    return min(payloads, key=lambda payload: len(payload[1]))


def least_left(mode: str, pixels: int, conversion: str | None = None) -> float:
    """The share of what :func:`encode_fallback` makes at once that remains if it is thorough."""
    is_large_color = mode == "RGB" and conversion is None and pixels >= LARGE_PIXELS
    return LEAST_LEFT_OF_COLOR if is_large_color else LEAST_LEFT


def _coded(samples: Image.Image, setting: tuple[int, int]) -> bytes:
    """WebP by these settings, or PNG where that does not reach."""
    if max(samples.size) > WEBP_MAX_SIDE:
        return _save(samples, "PNG", optimize=True)
    method, quality = setting
    options = {"lossless": True, "exact": True, "method": method, "quality": quality}
    return _save(_to_color(samples), "WEBP", **options)


def _coded_halved(
    image: Image.Image, halved: Halved, conversion: str, setting: tuple[int, int]
) -> bytes:
    """Where squares begin, luma, chroma, and what is to be added to the samples, if anything."""
    luma, chroma = (_coded(part, setting) for part in (halved.luma, halved.chroma))
    missing = ImageChops.subtract_modulo(image, from_halved(halved, conversion))
    added = _coded(missing, setting) if missing.getbbox() else b""
    begins = bytes([halved.left + 2 * halved.top])
    return begins + varint(len(luma)) + varint(len(chroma)) + luma + chroma + added


def _webp_settings(image: Image.Image) -> tuple[tuple[int, int], ...]:
    if max(image.size) > WEBP_MAX_SIDE:
        return WEBP_SETTINGS[:1]  # PNG has none
    if image.mode == "P" and image.width * image.height <= WEBP_PALETTE_MAX_PIXELS:
        return (*WEBP_SETTINGS, WEBP_PALETTE_SETTING)
    return WEBP_SETTINGS


def _save(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def decode_fallback(coder: str, payload: bytes, mode: str, size: tuple[int, int]) -> Image.Image:
    """Inverse of :func:`encode_fallback`, exact; in mode P still without its palette.

    Args:
        coder: the coder's name.
        payload: what it made.
        mode: of the image, one of ``MODES``.
        size: width and height.

    Raises:
        CorruptError: the payload is malformed, or not an image of that mode and size.
        UnsupportedError: an unknown coder or mode.
    """
    if coder not in ("webp", "png", "planes", "planes-420", "raw") or mode not in MODES:
        raise UnsupportedError(f"found coder {coder} for mode {mode}: use a newer version")
    if min(size) < 1:
        raise CorruptError(f"found an image of size {size}, expected some pixels")
    if coder == "raw":
        expected = (size[0] * MODES[mode].bits + 7) // 8 * size[1]
        if len(payload) != expected:
            raise CorruptError(f"found {len(payload)} bytes of samples, expected {expected}")
        return Image.frombytes(mode, size, payload)
    if coder in ("planes", "planes-420"):
        decoder = _decode_planes if coder == "planes" else _decode_halved
        return decoder(payload[1:], _conversion(payload, mode), size)
    image = _open(coder, payload, size)
    if coder == "webp":
        image = _from_color(image, _sample_mode(mode))
    if image.mode != _sample_mode(mode):
        raise CorruptError(f"found {coder} of mode {image.mode}, expected {_sample_mode(mode)}")
    return Image.frombytes(mode, size, image.tobytes())


def _conversion(payload: bytes, mode: str) -> str:
    """The name of the conversion that a payload of planes begins with."""
    names = {number: name for name, number in CONVERSIONS.items()}
    if mode != "RGB":
        raise CorruptError(f"found planes of an image of mode {mode}, expected RGB")
    if not payload:
        raise CorruptError("found no conversion of planes, expected a byte that names it")
    if payload[0] not in names:
        raise UnsupportedError(f"found the conversion {payload[0]} of planes: use a newer version")
    return names[payload[0]]


def _decode_planes(payload: bytes, conversion: str, size: tuple[int, int]) -> Image.Image:
    return from_planes(_decode_either(payload, "RGB", size), conversion)


def _decode_halved(payload: bytes, conversion: str, size: tuple[int, int]) -> Image.Image:
    reader, what = ByteReader(payload), "planes of 4:2:0"
    try:
        begins, *lengths = (reader.u8(what), reader.varint(what), reader.varint(what))
        parts = [reader.take(length, what) for length in lengths]
    except FormatError as error:
        raise CorruptError(f"damaged {what}: {error}") from error
    if begins > 3:
        raise CorruptError(f"found squares that begin at {begins}, expected 0 to 3")
    left, top = begins % 2, begins // 2
    half = (size[0] + left + 1) // 2, (size[1] + top + 1) // 2
    chroma = _decode_either(parts[1], "RGB", half)
    if chroma.getchannel("B").getbbox():
        raise CorruptError("found three channels of chroma, expected two and zeros")
    halved = Halved(_decode_either(parts[0], "L", size), chroma, left, top)
    image = from_halved(halved, conversion)
    if not reader.remaining:
        return image
    missing = _decode_either(reader.take(reader.remaining, what), "RGB", size)
    return ImageChops.add_modulo(image, missing)


def _decode_either(payload: bytes, mode: str, size: tuple[int, int]) -> Image.Image:
    """A PNG if it begins as one, else a WebP."""
    coder = "png" if payload.startswith(SIGNATURE) else "webp"
    return decode_fallback(coder, payload, mode, size)


def _sample_mode(mode: str) -> str:
    return "L" if mode == "P" else mode  # indices are coded as if grey levels


def _claimed_size(coder: str, payload: bytes) -> tuple[int, int]:
    """What a payload says of itself; zeros where it is no such file.

    Of WebP only the simple lossless kind: RIFF with a VP8L chunk alone.
    """
    if coder == "webp":
        return webp_size(payload) if payload[12:16] == b"VP8L" else (0, 0)
    if len(payload) < 24 or payload[:8] != SIGNATURE or payload[12:16] != b"IHDR":
        return 0, 0
    width, height = struct.unpack_from(">2I", payload, 16)
    return width, height


def _open(coder: str, payload: bytes, size: tuple[int, int]) -> Image.Image:
    claimed = _claimed_size(coder, payload)
    if claimed == (0, 0):
        raise CorruptError(f"damaged {coder} payload: it does not begin as one")
    try:
        image = open_image(payload, [coder.upper()]) if claimed == size else None
        if image is None or image.size != size or getattr(image, "n_frames", 1) != 1:
            raise CorruptError(f"found {coder} of size {claimed}, expected one of {size}")
        image.load()
        return image
    except CorruptError:
        raise
    except Exception as error:  # Pillow's plug-ins raise almost anything on damaged data
        raise CorruptError(f"damaged {coder} payload: {error}") from error


def _to_color(image: Image.Image) -> Image.Image:
    """The same samples in RGB or RGBA, which are all that WebP has."""
    if image.mode == "LA":
        return image.convert("RGBA")
    if image.mode in ("1", "L"):
        return image.convert("L").convert("RGB")
    if image.mode == "I;16":
        low, high = Image.frombytes("LA", image.size, image.tobytes()).split()
        return Image.merge("RGB", (high, low, Image.new("L", image.size)))
    return image


def _from_color(color: Image.Image, mode: str) -> Image.Image:
    """Inverse of :func:`_to_color`; refuses what that never makes."""
    if mode in ("LA", "RGBA"):
        color = color.convert("RGBA")  # WebP drops an alpha that is opaque throughout
    if mode == "LA":
        image = Image.merge("LA", (color.getchannel("R"), color.getchannel("A")))
    elif mode in ("1", "L"):
        image = color.getchannel("R").convert(mode, dither=Image.Dither.NONE)
    elif mode == "I;16":
        high_low = Image.merge("LA", (color.getchannel("G"), color.getchannel("R")))
        image = Image.frombytes("I;16", color.size, high_low.tobytes())
    else:
        image = color
    if _to_color(image).tobytes() != color.tobytes():
        raise CorruptError(f"found channels in a webp payload that mode {mode} does not have")
    return image
