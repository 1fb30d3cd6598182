"""The Y, U and V that an image was converted from, as an image that plain coders make less of.

In RGB such an image spends bits on telling the colours that occur from those that cannot
(:mod:`diffcodec.images.color_sets`); its planes have no others.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8
from PIL import Image

from diffcodec.arrays import AnyArray, Bytes, Integers
from diffcodec.forks import held_in_forks
from diffcodec.images.color_sets import Conversion, conversion

LEAST_SAME = 0.9  # of the pairs of unclipped pixels in a square of 2 x 2, where chroma is repeated
PIXELS_AT_ONCE = 1 << 16
_LOCK = held_in_forks()


def to_planes(image: Image.Image, name: str) -> Image.Image:
    """U, Y and V of an RGB image, as R, G and B of another.

    WebP predicts R and B from G, so luma is there. Of several sources of a colour with a 0 or 255
    any does: the one of the least chroma is taken.

    Args:
        image: every pixel of which the conversion reaches.
        name: of the conversion.
    """
    with _LOCK:  # so that threads don't build the same table
        table = _sources(name)

    def planes(pixels: UInt8[Bytes, "pixels 3"]) -> UInt8[Bytes, "pixels 3"]:
        r, g, b = pixels.T.astype(np.int32)
        found = table[r << 16 | g << 8 | b]
        return np.stack([found >> 8 & 255, found >> 16, found & 255], axis=-1).astype(np.uint8)

    return _mapped(image, planes)


def forget_sources() -> None:
    """Free the 64 MiB of the table that :func:`to_planes` looked into, which makes it anew."""
    with _LOCK:
        _sources.cache_clear()


def from_planes(planes: Image.Image, name: str) -> Image.Image:
    """Inverse of :func:`to_planes`, by the conversion's own formulas."""
    rule = conversion(name)

    def rgb(pixels: UInt8[Bytes, "pixels 3"]) -> UInt8[Bytes, "pixels 3"]:
        u, y, v = pixels.T
        luma = rule.luma[y]
        sums = luma + rule.red[v], luma + rule.green_u[u] + rule.green_v[v], luma + rule.blue[u]
        return np.stack([np.clip(each >> 16, 0, 255).astype(np.uint8) for each in sums], axis=-1)

    return _mapped(planes, rgb)


def _mapped(image: Image.Image, function: Callable[[Bytes], Bytes]) -> Image.Image:
    """An image by what becomes of its pixels, a few at a time, so that little memory is taken."""
    pixels = np.asarray(image).reshape(-1, 3)
    mapped = np.empty_like(pixels)
    for start in range(0, len(pixels), PIXELS_AT_ONCE):
        part = slice(start, start + PIXELS_AT_ONCE)
        mapped[part] = function(pixels[part])
    return Image.frombuffer("RGB", image.size, mapped)


class Halved(NamedTuple):
    """Planes of 4:2:0, whose chroma the converter repeated: 2 x 2 pixels share theirs.

    Attributes:
        luma: of mode L and the image's size.
        chroma: of half the size, rounded up: V, U and 0 as R, G and B.
        left: 1 if the first column of pixels is the second one of its squares, else 0.
        top: the same of the first row.
    """

    luma: Image.Image
    chroma: Image.Image
    left: int
    top: int


def to_halved(image: Image.Image, planes: Image.Image, name: str) -> Halved | None:
    """The planes of an image before its chroma was repeated; None where it does not look so.

    Pixels whose chroma is another than the rest of their square's come out of
    :func:`from_halved` otherwise.

    Args:
        image: every pixel of which the conversion reaches.
        planes: what :func:`to_planes` made of it.
        name: of the conversion.
    """
    samples = np.asarray(image)
    height, width, _ = samples.shape
    sure = ((samples > 0) & (samples < 255)).all(2)  # those of one source
    u, _, v = np.asarray(planes).transpose(2, 0, 1)
    chroma = np.where(sure, u.astype(np.int32) << 8 | v, -1)
    left, top = _first(chroma.T), _first(chroma)
    if left is None or top is None:
        return None
    pads = (top, (height + top) % 2), (left, (width + left) % 2), (0, 0)
    pixels, sources = (
        _squares(np.pad(each, pads, mode="edge")) for each in (samples, np.asarray(planes))
    )
    rule, step = conversion(name), PIXELS_AT_ONCE // 4
    starts = range(0, len(pixels), step)
    y, shared = (
        np.concatenate(parts)
        for parts in zip(
            *(_shared(rule, pixels[i : i + step], sources[i : i + step]) for i in starts),
            strict=True,
        )
    )
    rows, columns = (height + top + 1) // 2, (width + left + 1) // 2
    luma = y.reshape(rows, columns, 2, 2).swapaxes(1, 2).reshape(2 * rows, 2 * columns)
    return Halved(
        Image.fromarray(luma[top : top + height, left : left + width]),
        Image.fromarray(shared.reshape(rows, columns, 3)),
        *(left, top),
    )


def from_halved(halved: Halved, name: str) -> Image.Image:
    """Inverse of :func:`to_halved`, by the conversion's own formulas."""
    width, height = halved.luma.size
    whole = halved.chroma.resize(
        (2 * halved.chroma.width, 2 * halved.chroma.height), Image.Resampling.NEAREST
    )
    box = (halved.left, halved.top, halved.left + width, halved.top + height)
    v, u, _ = whole.crop(box).split()
    return from_planes(Image.merge("RGB", (u, halved.luma, v)), name)


def _first(chroma: Int32[AnyArray, "rows columns"]) -> int | None:
    """Whether pairs of rows that share their chroma begin at 0 or 1; None if there are none.

    Args:
        chroma: a number for each, -1 where it is not known.
    """
    above, below = chroma[:-1], chroma[1:]
    known, same = (above >= 0) & (below >= 0), above == below
    counts = [(int(known[i::2].sum()), int((known & same)[i::2].sum())) for i in (0, 1)]
    shares = [equal / max(count, 1) for count, equal in counts]
    return int(np.argmax(shares)) if max(shares) >= LEAST_SAME else None


def _squares(pixels: UInt8[Bytes, "height width 3"]) -> UInt8[Bytes, "squares 4 3"]:
    height, width, _ = pixels.shape
    cut = pixels.reshape(height // 2, 2, width // 2, 2, 3).swapaxes(1, 2)
    return cut.reshape(-1, 4, 3)


def _shared(
    rule: Conversion, pixels: UInt8[Bytes, "squares 4 3"], sources: UInt8[Bytes, "squares 4 3"]
) -> tuple[UInt8[Bytes, "squares 4"], UInt8[Bytes, "squares 3"]]:
    """The chroma, of those of a square's pixels, that explains the most of them, and their luma."""
    y = np.empty(pixels.shape[:2], np.uint8)
    chroma = np.zeros((len(pixels), 3), np.uint8)
    explained = np.full(len(pixels), -1)
    left = np.arange(len(pixels))
    for pixel in range(4):
        u, v = sources[left, pixel, 0], sources[left, pixel, 2]
        low, high = _lumas(rule, pixels[left], u, v)
        count = (low < high).sum(1)
        better = count > explained[left]
        at = left[better]
        y[at], explained[at] = low[better].clip(0, 255), count[better]
        chroma[at, 0], chroma[at, 1] = v[better], u[better]
        left = left[explained[left] < 4]
    return y, chroma


def _lumas(
    rule: Conversion,
    pixels: UInt8[Bytes, "squares 4 3"],
    u: UInt8[Bytes, " squares"],
    v: UInt8[Bytes, " squares"],
) -> tuple[Int64[Integers, "squares 4"], Int64[Integers, "squares 4"]]:
    """The first Y that gives a pixel, with this chroma, and that behind the last; none if equal."""
    low: Integers = np.zeros(pixels.shape[:2], np.int64)
    high = low + 256
    sums = rule.red[v], rule.green_u[u] + rule.green_v[v], rule.blue[u]
    for channel, added in zip(pixels.transpose(2, 0, 1).astype(np.int64), sums, strict=True):
        first, end = (
            np.searchsorted(rule.luma, (channel + after << 16) - added[:, None]) for after in (0, 1)
        )
        low = np.maximum(low, np.where(channel == 0, 0, first))
        high = np.minimum(high, np.where(channel == 255, 256, end))
    return low, high


@lru_cache(1)  # of 64 MiB
def _sources(name: str) -> Int32[AnyArray, "16777216"]:
    """2^16 Y + 2^8 U + V by 2^16 R + 2^8 G + B, of those that the conversion reaches."""
    rule = conversion(name)
    sources = np.zeros(1 << 24, np.int32)
    distance = np.abs(np.arange(256) - 128)
    chroma = np.maximum(distance[:, None], distance)  # [V, U]
    y = np.arange(256)[:, None]
    luma = rule.luma[:, None]
    for most in range(128, -1, -1):  # those written last stay
        v, u = np.nonzero(chroma == most)
        sums = luma + rule.red[v], luma + rule.green_u[u] + rule.green_v[v], luma + rule.blue[u]
        r, g, b = (np.clip(each >> 16, 0, 255) for each in sums)
        sources[r << 16 | g << 8 | b] = y << 16 | u << 8 | v
    sources.setflags(write=False)
    return sources
