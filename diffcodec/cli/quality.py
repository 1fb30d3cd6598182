"""Qualities from 0 to 100, as other codecs have them, and the noise that each leaves."""

import math
from collections.abc import Sequence

from diffcodec.diffusion.plan import nearest

LOSSLESS = 100
_SIGMAS = {  # grey levels; the PSNR that files which stop there have on Kodak is in docs/cli.md
    0: 190.0,
    10: 60.0,
    25: 20.0,
    50: 10.6,
    75: 5.7,
    90: 2.85,
    95: 1.9,
    99: 1.118,
}


def quality_sigma(quality: float) -> float:
    """The noise level for a quality below 100, geometrically between those of the table."""
    quality = min(quality, max(_SIGMAS))
    above = min(q for q in _SIGMAS if q >= quality)
    below = max(q for q in _SIGMAS if q <= quality)
    share = (quality - below) / max(1, above - below)
    return math.exp((1 - share) * math.log(_SIGMAS[below]) + share * math.log(_SIGMAS[above]))


def quality_timestep(quality: float, levels: Sequence[float]) -> int:
    """The timestep of a plan whose noise is nearest to that of a quality below 100."""
    return 1 + nearest(levels, quality_sigma(quality))
