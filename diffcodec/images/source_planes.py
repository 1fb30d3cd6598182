"""The Y, U and V that an image was converted from, as an image that plain coders make less of.

In RGB such an image spends bits on telling the colours that occur from those that cannot
(:mod:`diffcodec.images.color_sets`); its planes have no others.
"""

import threading
from functools import lru_cache

import numpy as np
from jaxtyping import Int32
from PIL import Image

from diffcodec.arrays import AnyArray
from diffcodec.images.color_sets import conversion

_LOCK = threading.Lock()


def to_planes(image: Image.Image, name: str) -> Image.Image:
    """U, Y and V of an RGB image, as R, G and B of another.

    WebP predicts R and B from G, so luma is there. Of several sources of a colour with a 0 or 255
    any does: the one of the least chroma is taken.

    Args:
        image: every pixel of which the conversion reaches.
        name: of the conversion.
    """
    r, g, b = np.asarray(image).transpose(2, 0, 1).astype(np.int32)
    with _LOCK:  # so that threads don't build the same table
        table = _sources(name)
    found = table[r << 16 | g << 8 | b]
    planes = np.stack([found >> 8 & 255, found >> 16, found & 255], axis=-1)
    return Image.fromarray(planes.astype(np.uint8))


def from_planes(planes: Image.Image, name: str) -> Image.Image:
    """Inverse of :func:`to_planes`, by the conversion's own formulas."""
    rule = conversion(name)
    u, y, v = np.asarray(planes).transpose(2, 0, 1)
    luma = rule.luma[y]
    sums = luma + rule.red[v], luma + rule.green_u[u] + rule.green_v[v], luma + rule.blue[u]
    rgb = np.stack([np.clip(each >> 16, 0, 255).astype(np.uint8) for each in sums], axis=-1)
    return Image.fromarray(rgb)


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
