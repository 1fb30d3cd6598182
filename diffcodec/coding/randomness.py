"""Shared randomness: numbers that encoder and decoder both know, from a counter-based generator.

Philox (Salmon et al. 2011); NumPy guarantees that a bit generator's raw stream never changes.
Every purpose and tile has a stream of its own, so that nothing depends on the order of use.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, UInt32

from diffcodec.arrays import Array, Words

# One number for each purpose; part of the file format.
SEED_WORDS, DITHER, CHROMA, RELATIVE_ENTROPY, RECONSTRUCTION = 1, 2, 3, 4, 5


def random_words(purpose: int, tile: int, count: int, level: int = 0) -> UInt32[Words, " {count}"]:
    """``count`` uniform 32-bit words; a longer request begins with the shorter one's words."""
    key = np.array([purpose + (level << 32), tile], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw((count + 1) // 2)
    halves = np.stack([raw & np.uint64(0xFFFFFFFF), raw >> np.uint64(32)], -1)
    return halves.astype(np.uint32).reshape(-1)[:count]


def dither(
    tile: int, shape: tuple[int, int, int], steps: Sequence[int], draw: int = 0
) -> Float64[Array, "3 height width"]:
    """Uniform integers d in 0..M-1 per sample; M per channel."""
    words = random_words(DITHER, tile, int(np.prod(shape)), draw).reshape(shape).astype(np.uint64)
    m = np.array(steps, dtype=np.uint64)[:, None, None]
    return ((words * m) >> np.uint64(32)).astype(np.float64)


def approximate_normals(tile: int, level: int, shape: tuple[int, ...]) -> Array:
    """About standard normal numbers by exact arithmetic: the sum of twelve uniform 16-bit ones.

    For the noise of channels that are known (grey images), where only its look matters.
    """
    return _normals(CHROMA, tile, level, shape)


def reconstruction_normals(seed: int, tile: int, level: int, shape: tuple[int, ...]) -> Array:
    """The same for samples that are shown only; the seed is below 2^24, the level below 256."""
    return _normals(RECONSTRUCTION, tile, seed << 8 | level, shape)


def _normals(purpose: int, tile: int, level: int, shape: tuple[int, ...]) -> Array:
    count = int(np.prod(shape))
    words = random_words(purpose, tile, 6 * count, level).reshape(6, count)
    low, high = words & np.uint32(0xFFFF), words >> np.uint32(16)
    total = (low + high).sum(0, dtype=np.int64).reshape(shape)
    return np.asarray((total - 6 * 65535) / 65536.0, dtype=np.float64)
