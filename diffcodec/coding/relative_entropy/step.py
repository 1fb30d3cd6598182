"""Both sides of a step: the coarse part, the stretch and the path, and the sample they make."""

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from diffcodec.arrays import Array, Bits, Integers
from diffcodec.coding.relative_entropy.bits import (
    MOST_QUOTIENT,
    MOST_STRETCH,
    BitReader,
    BitWriter,
    EarlyEndError,
    read_rice_code,
    read_stretch_change,
    rice_code,
    stretch_code,
)
from diffcodec.coding.relative_entropy.layout import (
    UNIT,
    Key,
    Layout,
    half_log2,
    make_layout,
    round30,
)
from diffcodec.coding.relative_entropy.trellis import (
    TRELLIS,
    Codebook,
    Trellis,
    best_path,
    path_noise,
)
from diffcodec.diffusion.process import LOG2_E

MOST_BITS = 3  # of a dimension on the trellis
SURCHARGE = 32  # b bits of a dimension count as b + b^2 / SURCHARGE: large ones need more
MOST_RATIO = 2.0**60  # of W to Q
MOST_STAGES = 16  # for each dimension of a path that ends early: what takes memory all the same
_STRETCHES = round30(2.0 ** (np.arange(-MOST_STRETCH, MOST_STRETCH + 1) / 8))


class _Step:
    """What both sides compute of a step; arrays by dimension, [n].

    Let e = q_mean - p_mean, N(0, W) to the decoder, and ``G = (Q + W) / Q``. What is within the
    trellis' reach goes there: u ~ N(e / sqrt(S), 1 / g) with g = G and S = Q + W. Elsewhere ("far")
    g is a root of G, and the quantiser adds a uniform error of variance ``W / (G / g - 1)`` to
    e, which is then known up to the variance ``V = W g / G``. The trellis sends the rest of it in
    noise of variance V / (g - 1), so ``S = V g / (g - 1)``; the estimate of e moves by
    ``V / sqrt(S) u`` and ends as ``W / (Q + W) (z_s - p_mean)``.
    """

    def __init__(
        self,
        variance: Float64[Array, " n"],
        excess: Float64[Array, " n"],
        key: Key,
        trellis: Trellis,
    ):
        self.key, self.trellis = key, trellis
        self.excess, self.total = excess, variance + excess
        gain = self.total / variance
        self.gain = gain.copy()  # g
        while np.any(large := half_log2(self.gain) > MOST_BITS * UNIT):
            self.gain[large] = np.sqrt(self.gain[large])
        bits = half_log2(self.gain)
        self.bits = bits + bits * bits // (SURCHARGE * UNIT)  # in units of 2^-24
        self.expected_bits = int(self.bits.sum()) / UNIT
        self.far = np.flatnonzero(self.gain != gain)
        g, coarse = self.gain[self.far], gain[self.far] / self.gain[self.far]
        self.left = excess[self.far] / coarse  # V
        self.spread = self.total.copy()  # S
        self.spread[self.far] = self.left * g / (g - 1)
        self.estimate = np.zeros(len(excess))
        # The quantiser: its step, dither, the gain of its values, and their Rice parameters.
        error = excess[self.far] / (coarse - 1)
        self.width = np.sqrt(12 * error)
        self.dither = key.words(3, len(self.far)) / 2.0**32
        self.weight = (coarse - 1) / coarse
        deviation = half_log2(np.maximum(excess[self.far] / (12 * error), 1)) // UNIT
        self.parameter = deviation + 1

    def quantise(self, difference: Float64[Array, " n"]) -> Int64[Integers, " far"]:
        """The far dimensions' integers, of the difference q_mean - p_mean."""
        steps = np.floor(difference[self.far] / self.width + self.dither)
        most = (np.int64(MOST_QUOTIENT) << self.parameter) // 2
        return np.clip(steps, -most, most).astype(np.int64)

    def take_coarse(self, steps: Int64[Integers, " far"]) -> None:
        """Estimate e by the quantiser's integers."""
        self.estimate[self.far] = self.weight * (self.width * (steps + 0.5 - self.dither))

    def stages(self, stretch: int) -> int:
        """The number of the path's stages, by its stretch."""
        return self.trellis.stages(self.expected_bits * float(_STRETCHES[stretch + MOST_STRETCH]))

    def lay_out(self, stretch: int) -> tuple[Layout, Codebook]:
        """The dimensions' places and their shared noise."""
        layout = make_layout(self.bits, self.key, self.stages(stretch))
        rows = int(layout.row.max(initial=0)) + 1
        return layout, Codebook(self.key, self.trellis, rows)

    def sample(
        self,
        p_mean: Float64[Array, " n"],
        layout: Layout,
        codebook: Codebook,
        path: UInt8[Bits, " stages"],
    ) -> Float64[Array, " n"]:
        """z_s; NaN where the path ends before it tells."""
        u = path_noise(layout, codebook, path)
        sample = np.sqrt(self.total) * u
        estimate = self.estimate[self.far]
        estimate += self.left / np.sqrt(self.spread[self.far]) * u[self.far]
        sample[self.far] = estimate * (self.total[self.far] / self.excess[self.far])
        if len(path) < layout.stages:
            sample[layout.order[layout.stage >= len(path)]] = np.nan
        return p_mean + sample


def _check(variance: Array, excess: Array, *means: Array) -> None:
    if not all(np.all(np.isfinite(a)) for a in (variance, excess, *means)):
        raise ValueError("a mean or a variance is not finite")
    if not (np.all(variance > 0) and np.all(excess >= 0)):
        raise ValueError("the variance of q must be positive, that of p no smaller")
    if not np.all(excess <= MOST_RATIO * variance):
        raise ValueError("p is wider than q by more than 2^30")


def surprise_bits(m: Float64[Array, " n"], gain: Float64[Array, " n"]) -> float:
    """KL(N(m, 1 / gain) || N(0, 1)) less its expectation 0.5 log2(gain), summed.

    By exact arithmetic, so that a choice may hang on it.
    """
    surprise = np.minimum(1 / gain + m * m, 2.0**30) - 1
    return LOG2_E * int(np.rint(surprise * 2.0**20).astype(np.int64).sum()) / 2.0**21


class Encoder:
    """Codes the steps of one tile, from the highest timestep down; ``writer`` has the bits.

    Args:
        tile: its number, for the shared randomness.
        trellis: of files, but for tests and measurements.
    """

    def __init__(self, tile: int, trellis: Trellis = TRELLIS):
        self.tile, self.trellis = tile, trellis
        self.writer = BitWriter()
        self.stretch = 0

    def encode_step(
        self,
        timestep: int,
        q_mean: Float64[Array, " n"],
        p_mean: Float64[Array, " n"],
        variance: Float64[Array, " n"],
        excess: Float64[Array, " n"],
    ) -> Float64[Array, " n"]:
        """Send a sample of N(q_mean, variance); expected is N(p_mean, variance + excess).

        Args:
            timestep: of the sample, for the shared randomness; below 2^20.
            q_mean: known to the encoder alone.
            p_mean: known to the decoder, as are the variances.
            variance: Q, positive.
            excess: ``W = (1 - r)^2 v``.

        Returns:
            The sample, bit for bit what :meth:`Decoder.decode_step` returns.

        Raises:
            ValueError: if an argument is not finite or out of range.
        """
        _check(variance, excess, q_mean, p_mean)
        difference = q_mean - p_mean
        step = _Step(variance, excess, Key(self.tile, timestep), self.trellis)
        steps = step.quantise(difference)
        self.writer.write(rice_code(steps, step.parameter))
        step.take_coarse(steps)
        m = (difference - step.estimate) / np.sqrt(step.spread)
        self._choose_stretch(step, surprise_bits(m, step.gain))
        layout, codebook = step.lay_out(self.stretch)
        path = np.zeros(0, np.uint8)
        if layout.stages:
            path = best_path(m, 1 / step.gain, layout, codebook)
        self.writer.write(path)
        return step.sample(p_mean, layout, codebook, path)

    def _choose_stretch(self, step: _Step, surprise: float) -> None:
        """A stage too many costs a bit, one too few leaves about a bit unsent.

        START stages more are not worth their bits: without them small images come to the same PSNR
        by slightly fewer.
        """
        wanted = round(max(step.expected_bits + surprise, 0.0) * self.trellis.rate)

        def cost(stretch: int) -> int:
            return abs(step.stages(stretch) - wanted) + len(stretch_code(stretch - self.stretch))

        best = min(range(-MOST_STRETCH, MOST_STRETCH + 1), key=cost)
        self.writer.write(stretch_code(best - self.stretch))
        self.stretch = best


class Decoder:
    """Inverse of :class:`Encoder`; data may be any prefix that holds the steps wanted."""

    def __init__(self, data: bytes, tile: int, trellis: Trellis = TRELLIS):
        self.tile, self.trellis = tile, trellis
        self.reader = BitReader(data)
        self.stretch = 0

    def decode_step(
        self,
        timestep: int,
        p_mean: Float64[Array, " n"],
        variance: Float64[Array, " n"],
        excess: Float64[Array, " n"],
        may_end: bool = False,
    ) -> Float64[Array, " n"]:
        """See :meth:`Encoder.encode_step`.

        Args:
            timestep, p_mean, variance, excess: as there.
            may_end: whether the data may end early; what they do not tell then is NaN.

        Raises:
            ValueError: also if the data end, or cannot be what an encoder wrote.
        """
        _check(variance, excess, p_mean)
        step = _Step(variance, excess, Key(self.tile, timestep), self.trellis)
        try:
            step.take_coarse(read_rice_code(self.reader, step.parameter))
            change = read_stretch_change(self.reader)
        except EarlyEndError:
            if not may_end:
                raise
            return self._nothing(len(p_mean))
        self.stretch += change
        if abs(self.stretch) > MOST_STRETCH:
            raise ValueError(f"stretch {self.stretch}, expected at most {MOST_STRETCH}")
        stages, left = step.stages(self.stretch), self.reader.left
        if stages > left and not may_end:
            raise EarlyEndError(stages, left)
        if stages > max(left, MOST_STAGES * len(p_mean)):  # before memory is taken for them
            return self._nothing(len(p_mean))
        layout, codebook = step.lay_out(self.stretch)
        return step.sample(p_mean, layout, codebook, self.reader.read(min(stages, left)))

    def _nothing(self, dimensions: int) -> Float64[Array, " n"]:
        """A sample that the data don't tell; they end there."""
        self.reader.read(self.reader.left)
        return np.full(dimensions, np.nan)
