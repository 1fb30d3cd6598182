"""Pixels outside of a set of colours that nearly all of an image keeps to.

A logo that was drawn into a decoded JPEG, or retouched pixels, would cost the whole image its set.
So the chain codes an image with a near colour of the set in their place, and what is to be added is
coded apart.
"""

import math
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer
from PIL import Image, ImageChops

from diffcodec.arrays import AnyArray, Flags, Integers
from diffcodec.container.parts import CODERS
from diffcodec.errors import CorruptError
from diffcodec.images.color_sets import (
    SAMPLED_PIXELS,
    ColorSet,
    candidates,
    find_color_set,
)
from diffcodec.images.fallback import decode_fallback, encode_fallback

LEAST_GAIN = 1.3  # of a set, for each bit that its outliers take
LEAST_PIXELS = 4096  # of an image that is looked at so closely
REACH = 4  # grey levels in each channel, within which a near colour is looked for
MOST_FAR = 4096  # colours that have none so near, and members of the set that they are held against
_OFFSETS = sorted(
    product(range(-REACH, REACH + 1), repeat=3), key=lambda d: (sum(n * n for n in d), d)
)
_AROUND = np.array(list(product(range(-2, 3), repeat=3)))
_PLAIN_CODERS = {CODERS[name]: name for name in ("raw", "webp", "png")}


class Found(NamedTuple):
    """An image as it is coded.

    Attributes:
        image: every pixel of which is in the set.
        colors: the set, or None.
        differences: what is to be added to the image's samples, modulo 256; None if nothing is.
    """

    image: Image.Image
    colors: ColorSet | None = None
    differences: Image.Image | None = None


def find_colors(image: Image.Image) -> Found:
    """The colours that an image keeps to, but for outliers if these cost less than the set gains.

    Args:
        image: of any mode; only RGB and L have sets.
    """
    colors = find_color_set(image)
    if colors or image.mode != "RGB" or image.width * image.height < LEAST_PIXELS:
        return Found(image, colors)
    for name in candidates(np.asarray(image).reshape(-1, 3)):
        found = _split(image, ColorSet(name))
        if found:
            return found
    return Found(image)


def _split(image: Image.Image, colors: ColorSet) -> Found | None:
    """An image with near colours for its outliers, if that pays."""
    rgb = np.asarray(image).transpose(2, 0, 1)
    rows = range(0, image.height, -(-(1 << 16) // image.width))
    inside = np.concatenate([colors.allowed(rgb[:, row : row + rows.step]) for row in rows])
    worth_bytes = _gain_bits(rgb, inside, colors) / (8 * LEAST_GAIN)
    if worth_bytes < _least_bytes(inside):
        return None
    red, green, blue = rgb[:, ~inside].astype(np.int64)
    numbers, places = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    near = nearest(np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=-1), colors)
    if near is None:
        return None
    pixels = np.array(image)
    pixels[~inside] = near[places]
    within = Image.fromarray(pixels)
    within.info = dict(image.info)
    differences = ImageChops.subtract_modulo(image, within)
    paid = len(pack_outliers(differences)) <= worth_bytes
    return Found(within, colors, differences) if paid else None


def _gain_bits(rgb: Integer[AnyArray, "3 height width"], inside: Flags, colors: ColorSet) -> float:
    """What a set gains on an image within it: -log2 of the share of its colours around each pixel.

    Seen from some of the pixels that are in the set already.
    """
    some = rgb[:, inside]
    some = some[:, :: -(-some.shape[1] // SAMPLED_PIXELS) or 1, None].astype(np.int64)
    around = some + _AROUND.T[:, None]  # [3, some, 125]
    exists = ((around >= 0) & (around <= 255)).all(0)
    share = colors.allowed(around).sum(1) / exists.sum(1)
    return -float(np.log2(share).sum()) / max(len(share), 1) * inside.size


def _least_bytes(inside: Bool[Flags, "height width"]) -> float:
    """What outliers take at least: where they are, each by its neighbour, and a bit for each."""
    before, after = inside.ravel()[:-1], inside.ravel()[1:]
    pairs = ((before & after, before & ~after), (~before & after, ~before & ~after))
    counts = np.array([[np.count_nonzero(flags) for flags in row] for row in pairs])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    where = -float((counts * np.log2(shares, where=shares > 0, out=np.zeros((2, 2)))).sum())
    return (where + np.count_nonzero(~inside)) / 8


def nearest(rgb: Integer[AnyArray, "n 3"], colors: ColorSet) -> Integer[Integers, "n 3"] | None:
    """The nearest colours of a set; None where too many are far from it.

    Args:
        rgb: colours.
        colors: the set.
    """
    near = rgb.astype(np.int64)
    left = np.arange(len(rgb))
    for offset in _OFFSETS:
        tried = near[left] + offset
        found = colors.allowed(tried.T[:, None])[0]
        near[left[found]] = tried[found]
        left = left[~found]
        if not len(left):
            return near
    if len(left) > MOST_FAR:
        return None
    members = colors.members()[:, 0].T
    some = members[:: -(-len(members) // MOST_FAR)].astype(np.int64)
    for part in np.array_split(left, math.ceil(len(left) / 64)):
        distance = ((near[part, None] - some) ** 2).sum(-1)
        near[part] = some[distance.argmin(1)]
    return near


def pack_outliers(differences: Image.Image) -> bytes:
    """A plain coder's number and what it made of the differences; nothing if all are 0."""
    if differences.getbbox() is None:
        return b""
    coder, payload = encode_fallback(differences)
    return bytes([CODERS[coder]]) + payload


def add_outliers(image: Image.Image, data: bytes, undo: bool = False) -> Image.Image:
    """The image with what :func:`pack_outliers` gave added to it, or taken from it.

    Raises:
        CorruptError: it is malformed, or not of the image's size.
    """
    if not data or data[0] not in _PLAIN_CODERS:
        raise CorruptError(
            f"found the coder {data[:1].hex() or 'none'} of outliers, expected one of "
            f"{_PLAIN_CODERS}; get a whole copy"
        )
    differences = decode_fallback(_PLAIN_CODERS[data[0]], data[1:], image.mode, image.size)
    change = ImageChops.subtract_modulo if undo else ImageChops.add_modulo
    return change(image, differences)
