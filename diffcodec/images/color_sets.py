"""Colours that cannot occur: what a converter to RGB and stretched contrast leave unused.

An image that was converted from 8-bit YCbCr holds a fraction of the RGB triples, one whose contrast
was stretched a fraction of the values of each channel. docs/colour-sets.md has the conversions in
formulas, and how they were found.
"""

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt8
from PIL import Image

from diffcodec.arrays import AnyArray, Bits, Bytes, Flags, Integers
from diffcodec.errors import FormatError, UnsupportedFileError
from diffcodec.forks import held_in_forks

CONVERSIONS = {  # bytes in files
    "photoycc": 1,  # Kodak's PhotoCD
    "jfif": 2,  # JPEG as libjpeg decodes it
    "bt601": 3,  # video as FFmpeg's swscale converts it, where chroma is not subsampled
    "bt709": 4,
    "bt601-420": 5,  # and where it is
    "bt709-420": 6,
    "jfif-420": 7,  # the same of full range
    "webp": 8,  # lossy WebP
    "avif": 9,  # AVIF of full range as libyuv converts it
    "avif-limited": 10,
    "grey": 11,  # in RGB
}
VALUES_BYTES = 32  # of a channel: a bit for each of its values, the lowest first
SAMPLED_PIXELS, TRIED_COLORS = 4096, 64
# Where not all pixels need be reached: pixels, the least share of them, conversions that stay.
TRIALS = ((32, 0.45, 3), (256, 0.6, 2))
LEAST_PIXELS = 256  # what fewer can gain doesn't pay for naming a conversion
NEIGHBOURS = 4  # values on each side, among which a channel's gain is estimated
LEAST_GAIN = 0.15  # bits per sample: one in ten of the neighbouring values doesn't occur
COST_FACTOR = 4  # by how much the gain must exceed what the values take in the file
ALL_VALUES = bytes([0xFF]) * VALUES_BYTES
TABLES_LOCK = held_in_forks()  # so that threads don't build the same table


@dataclass(frozen=True)
class Conversion:
    """An integer conversion of 8-bit Y, U, V to RGB, as five tables of 256 integers.

    Each clipped to 0..255::

        R = (luma[Y] + red[V]) >> 16
        G = (luma[Y] + green_u[U] + green_v[V]) >> 16
        B = (luma[Y] + blue[U]) >> 16

    ``red`` and ``blue`` grow by 2^16 or more a step, so that at most one V leads to an R and one U
    to a B; or all tables but ``luma`` are 0.
    """

    luma: Int64[Integers, "256"]
    red: Int64[Integers, "256"]
    blue: Int64[Integers, "256"]
    green_u: Int64[Integers, "256"]
    green_v: Int64[Integers, "256"]


_V = np.arange(256)  # of Y, U or V
_C = _V - 128


def _photoycc() -> Conversion:
    red, blue = 119374 * (_V - 137), 145352 * (_V - 156)
    return Conversion(89024 * _V, red, blue, -12714 * (blue >> 16), -33358 * (red >> 16))


def _jfif() -> Conversion:
    half = 1 << 15
    green_u, green_v = half - 22554 * _C, -46802 * _C
    return Conversion(_V << 16, 91881 * _C + half, 116130 * _C + half, green_u, green_v)


def _swscale(red: int, blue: int, green_u: int, green_v: int) -> Conversion:
    half, factors = 1 << 12, (red, blue, green_u, green_v)
    luma = 9539 * (_V - 16) + half
    return Conversion(*(table << 3 for table in (luma, *(factor * _C for factor in factors))))


def _swscale_420(
    black: int, luma: int, red: int, blue: int, green_u: int, green_v: int
) -> Conversion:
    tables = [luma * (_V - black), *(factor * _C for factor in (red, blue, green_u, green_v))]
    return Conversion(*(table >> 13 << 16 for table in tables))


def _libwebp() -> Conversion:
    tables = (
        *(19077 * _V >> 8, (26149 * _V >> 8) - 14234, (33050 * _V >> 8) - 17685),
        *(8708 - (6419 * _V >> 8), -(13320 * _V >> 8)),
    )
    return Conversion(*(table << 10 for table in tables))


def _libyuv(luma: int, offset: int, red: int, blue: int, green_u: int, green_v: int) -> Conversion:
    tables = [257 * _V * luma >> 16, *(factor * _C for factor in (red, blue, green_u, green_v))]
    tables[0] += offset
    return Conversion(*(table << 10 for table in tables))


_RULES = {  # those of fewer triples first
    "grey": Conversion(_V << 16, *[0 * _V] * 4),
    "photoycc": _photoycc(),
    "bt601": _swscale(13075, 16525, -3209, -6660),
    "webp": _libwebp(),
    "bt601-420": _swscale_420(16, 9539, 13075, 16525, -3209, -6660),
    "avif-limited": _libyuv(18997, -1160, 102, 128, -25, -52),
    "bt709": _swscale(14686, 17305, -1747, -4366),
    "bt709-420": _swscale_420(16, 9539, 14686, 17305, -1747, -4366),
    "avif": _libyuv(16320, 32, 90, 113, -22, -46),
    "jfif": _jfif(),
    "jfif-420": _swscale_420(0, 8192, 11485, 14516, -2819, -5850),
}


def conversion(name: str) -> Conversion:
    """The tables of one of ``CONVERSIONS``."""
    return _RULES[name]


def triples(name: str) -> Bool[Flags, "16777216"]:
    """Which RGB triples a conversion reaches, by 2^16 R + 2^8 G + B."""
    with TABLES_LOCK:
        return _triples(name)


@lru_cache(4)  # of 16 MiB each
def _triples(name: str) -> Flags:
    rule = conversion(name)
    reached = np.zeros(1 << 24, np.bool_)
    chroma = rule.green_v[:, None] + rule.green_u  # [V, U]
    for luma in rule.luma:
        red, blue = (np.clip((luma + table) >> 16, 0, 255) for table in (rule.red, rule.blue))
        green = np.clip((luma + chroma) >> 16, 0, 255)
        reached[(red << 16)[:, None] + (green << 8) + blue] = True
    reached.setflags(write=False)
    return reached


@dataclass(frozen=True)
class ColorSet:
    """Which samples can occur in an image.

    Attributes:
        conversion: one of ``CONVERSIONS`` that reaches every pixel, or None.
        values: of each channel, 1 or 3, which values occur: 256 bits, lowest first; () if all do.
    """

    conversion: str | None
    values: tuple[bytes, ...] = ()

    def pack(self) -> bytes:
        """The conversion's byte, or 0, and the values compressed as by zlib, if there are any."""
        number = CONVERSIONS[self.conversion] if self.conversion else 0
        return bytes([number]) + (zlib.compress(b"".join(self.values), 9) if self.values else b"")

    @staticmethod
    def unpack(data: bytes, channels: int) -> "ColorSet":
        """What :meth:`pack` gave.

        Args:
            data: as packed.
            channels: of the image, 1 or 3.

        Raises:
            FormatError: it is not laid out so, names a conversion for grey, excludes nothing, or
                leaves a channel no value.
            UnsupportedFileError: another conversion.
        """
        names = {number: name for name, number in CONVERSIONS.items()}
        if not data:
            raise FormatError("the colour set is empty, expected at least a byte; get a whole copy")
        if data[0] and data[0] not in names:
            raise UnsupportedFileError(
                f"unknown conversion of colours: {data[0]}, expected 0 or one of {CONVERSIONS}; "
                "a newer diffcodec may know it"
            )
        name = names.get(data[0])
        if name and channels != 3:
            raise FormatError(
                f"found the conversion {name} to RGB in an image of {channels} channel"
            )
        values = _unpack_values(data[1:], channels) if len(data) > 1 else ()
        if not (name or values):
            raise FormatError("the colour set excludes nothing, expected none in the file")
        return ColorSet(name, values)

    def members(self) -> UInt8[Bytes, "3 1 colors"]:
        """All triples of the set, or all grey values, three times each."""
        every = np.arange(256, dtype=np.uint8)
        values = [every[_unpack_bits(bits)] for bits in self.values] or [every] * 3
        if len(values) == 1:
            return np.stack([values[0][None]] * 3)
        if not self.conversion:
            return np.stack(np.meshgrid(*values, indexing="ij")).reshape(3, 1, -1)
        packed = np.flatnonzero(triples(self.conversion))
        rgb = np.stack([(packed >> shift).astype(np.uint8) for shift in (16, 8, 0)])[:, None]
        return rgb[..., self.allowed(rgb)[0]] if self.values else rgb

    def allowed(
        self, rgb: Integer[AnyArray, "*batch 3 height width"]
    ) -> Bool[Flags, "*batch height width"]:
        """Which triples are in the set.

        Args:
            rgb: any integers; a grey image's value stands in all three.

        Returns:
            False where a sample is not in 0..255.
        """
        if rgb.ndim > 3:  # in pieces, which the processor's cache holds
            return np.stack([self.allowed(part) for part in rgb])
        r, g, b = rgb
        inside: Flags = ((r | g | b) >> 8) == 0
        low = [channel.astype(np.uint8).astype(np.intp) for channel in rgb]
        if self.conversion:
            inside &= triples(self.conversion)[low[0] << 16 | low[1] << 8 | low[2]]
        for bits, channel in zip(self.values, low, strict=False):
            inside &= _unpack_bits(bits)[channel]
        return inside


def _unpack_bits(bits: bytes) -> Bool[Flags, "256"]:
    return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").view(np.bool_)


def _unpack_values(data: bytes, channels: int) -> tuple[bytes, ...]:
    size = channels * VALUES_BYTES
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise FormatError(f"the values of a colour set are damaged ({error})") from error
    if len(found) != size or not stream.eof or stream.unused_data:
        raise FormatError(
            f"the values of a colour set are not laid out right: found {len(found)} bytes of bits "
            f"in {len(data)} bytes, expected {size} and nothing behind; get a whole copy"
        )
    values = tuple(found[i : i + VALUES_BYTES] for i in range(0, size, VALUES_BYTES))
    if not all(map(any, values)):
        raise FormatError("the colour set leaves a channel no value, expected one at least")
    if set(values) == {ALL_VALUES}:
        raise FormatError("all values of a colour set occur, expected none in the file")
    return values


def find_color_set(image: Image.Image) -> ColorSet | None:
    """What every pixel of an image keeps to, or None if nothing that is worth its bytes.

    Args:
        image: of any mode; only RGB and L have sets.
    """
    if image.mode not in ("L", "RGB"):
        return None
    name = _find_conversion(np.asarray(image).reshape(-1, 3)) if image.mode == "RGB" else None
    values = _find_values(np.reshape(image.histogram(), (-1, 256)), image.width * image.height)
    return ColorSet(name, values) if name or values else None


def _find_conversion(samples: UInt8[Bytes, "pixels 3"]) -> str | None:
    """The first of ``_RULES`` that reaches every pixel."""
    some = np.unique(samples[:: -(-len(samples) // SAMPLED_PIXELS)], axis=0)
    some = some[((some > 0) & (some < 255)).all(1)]
    vivid = some[np.argsort(np.ptp(some, axis=1))[-TRIED_COLORS:]]  # greys are in most sets
    if len(samples) < LEAST_PIXELS or not len(vivid):
        return None
    for name, rule in _RULES.items():
        if reaches(rule, vivid).all() and _all_reached(triples(name), samples):
            return name
    return None


def candidates(samples: UInt8[Bytes, "pixels 3"]) -> list[str]:
    """The conversions that may reach nearly all pixels, by a few of them; the likeliest first."""
    some = samples[:: -(-len(samples) // SAMPLED_PIXELS)]
    some = some[((some > 0) & (some < 255)).all(1)]
    names = [name for name in _RULES if name != "grey"] if len(some) else []
    for count, least, most in TRIALS:
        tried = some[:: -(-len(some) // count) or 1]
        shares = {name: float(reaches(conversion(name), tried).mean()) for name in names}
        names = sorted((name for name in names if shares[name] >= least), key=lambda n: -shares[n])
        names = names[:most]
    return names


def reaches(rule: Conversion, colors: UInt8[Bytes, "colors 3"]) -> Bool[Flags, " colors"]:
    """Which of a few unclipped colours a conversion reaches, without its table."""
    r, g, b = colors.T.astype(np.int64)[..., None]  # [n, 1], against [256] of luma
    v, u = (  # the first that is large enough is the only one that can be right
        np.searchsorted(table, (channel << 16) - rule.luma).clip(0, 255)
        for table, channel in ((rule.red, r), (rule.blue, b))
    )
    right = (rule.luma + rule.red[v]) >> 16 == r
    right &= (rule.luma + rule.blue[u]) >> 16 == b
    right &= (rule.luma + rule.green_u[u] + rule.green_v[v]) >> 16 == g
    found: Flags = right.any(1)
    return found


def _all_reached(reached: Flags, samples: UInt8[Bytes, "pixels 3"]) -> bool:
    for start in range(0, len(samples), 1 << 16):
        r, g, b = samples[start : start + (1 << 16)].T.astype(np.intp)
        if not reached[r << 16 | g << 8 | b].all():
            return False
    return True


def _find_values(histograms: Int64[Integers, "channels 256"], pixels: int) -> tuple[bytes, ...]:
    """The values that occur in each channel, all where that gains little; () if it does in all."""
    values = []
    for counts in histograms:
        bits = np.packbits(counts > 0, bitorder="little").tobytes()
        cost_bits = 8 * len(zlib.compress(bits, 9))
        worth = _gain_bits(counts) > max(LEAST_GAIN * pixels, COST_FACTOR * cost_bits)
        values.append(bits if worth else ALL_VALUES)
    return tuple(values) if set(values) != {ALL_VALUES} else ()


def _gain_bits(counts: Integers) -> float:
    """What knowing the values that occur gains: -log2 of their share around each sample's own.

    Only between the least and the largest value, since a network knows the ends.
    """
    occur: Bits = (counts > 0).astype(np.uint8)
    (places,) = np.nonzero(occur)
    low, high = int(places[0]), int(places[-1])
    gain = 0.0
    for value in map(int, places):
        near = occur[max(value - NEIGHBOURS, low) : min(value + NEIGHBOURS, high) + 1]
        gain -= int(counts[value]) * math.log2(near.mean())
    return gain
