"""Relative entropy coding: a sample of one reverse step, sent in little more than its KL in bits.

DDPM's Algorithms 3 and 4 made real. The encoder knows ``q(z_s | z_t, x) = N(q_mean, Q)``; both
sides know ``p(z_s | z_t) = N(p_mean, Q + W)`` with ``W = (1 - r)^2 v``. In units of p a sample is
``u = (z_s - p_mean) / sqrt(Q + W)``: shared noise has u ~ N(0, 1), and wanted is u ~ N(m, rho) with
``m = (q_mean - p_mean) / sqrt(Q + W)`` and ``rho = Q / (Q + W)``. That is worth
``0.5 log2(1 + W / Q)`` bits, which both sides know for every dimension.

**A trellis instead of chunks.** Usually (Li and El Gamal's Poisson functional representation)
dimensions are cut into chunks of about 8 bits, one of 2^12 shared candidates is chosen for each,
and its index costs a third more than the KL, or less with a bias toward p. Here the candidates are
the paths of a trellis (source coding with random branch letters, Viterbi and Omura 1974). All
dimensions lie on it in pseudo-random order, cut into stages of equal expected bits. A path has one
bit a stage; the shared noise of a stage depends on its bit and the ``state_bits`` before. The
Viterbi algorithm finds the path of the largest density ratio q(u) / p(u). Were the trellis
perfect, one stage for each bit of KL would give ``u - m`` the variance rho and no correlation with
m; RATE stages are needed. Every bit of the path is a bit of the file: there is no index to model
and no entropy coder, a step's first bits tell its length, and whatever steps a prefix of the file
holds decode.

This is not an exact sample: given q and the shared noise the path is fixed, its noise is right in
mean, variance and spectrum, and Gaussian because the letters are (``python -m bench.overhead``).

**Surprise.** An image's own KL may be far from the expected one, and the number of stages has to
follow the former. So each step multiplies it by a power of 2^(1/8), the *stretch*, coded as a
difference to the step before.

**Large steps.** A dimension worth more than MOST_BITS is sent twice, coarsely by a quantiser with
shared dither and a Rice code, then on the trellis. Observations combine by their precisions
(Gaussians are successively refinable), so that this costs but the quantiser's quarter bit.

**Exact arithmetic.** The decoder computes with integers, tables, and single IEEE operations
(+ - * / sqrt) in float64. The encoder's scores are integers below 2^24 held in float32, so that its
choice doesn't depend on the order of a sum either: the same bytes on every machine.
"""

import numpy as np

from diffcodec.arrays import Array, Bits, Integers
from diffcodec.coding.relative_entropy.bits import (
    MOST_QUOTIENT,
    BitReader,
    BitWriter,
    read_rice_code,
    read_stretch_change,
    rice_code,
    stretch_code,
)
from diffcodec.coding.relative_entropy.layout import (
    MOST_STRETCH,
    STRETCH,
    UNIT,
    Key,
    Layout,
    count_stages,
    half_log2,
    make_layout,
    stretched_stages,
)
from diffcodec.coding.relative_entropy.trellis import (
    RATE,
    STATE_BITS,
    SURCHARGE,
    Codebook,
    best_path,
    path_noise,
)
from diffcodec.diffusion.process import LOG2_E

MOST_BITS = 3  # of a dimension on the trellis
MOST_RATIO = 2.0**60  # of W to Q


class _Step:
    """What both sides compute of a step; arrays by dimension, [n].

    Let e = q_mean - p_mean, N(0, W) to the decoder, and ``G = (Q + W) / Q``. What is within the
    trellis' reach goes there: u ~ N(e / sqrt(S), 1 / g) with g = G and S = Q + W. Elsewhere ("far")
    g is a root of G, and the quantiser adds a uniform error of variance ``W / (G / g - 1)`` to
    e, which is then known up to the variance ``V = W g / G``. The trellis sends the rest of it in
    noise of variance V / (g - 1), so ``S = V g / (g - 1)``; the estimate of e moves by
    ``V / sqrt(S) u`` and ends as ``W / (Q + W) (z_s - p_mean)``.
    """

    def __init__(self, variance: Array, excess: Array, key: Key, state_bits: int):
        self.key, self.state_bits = key, state_bits
        self.excess, self.total = excess, variance + excess
        gain = self.total / variance
        self.gain = gain.copy()  # g
        while np.any(large := half_log2(self.gain) > MOST_BITS * UNIT):
            self.gain[large] = np.sqrt(self.gain[large])
        bits = half_log2(self.gain)
        self.bits = bits + bits * bits // (SURCHARGE * UNIT)  # in units of 2^-24
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

    def quantise(self, difference: Array) -> Integers:
        """The far dimensions' integers; difference: q_mean - p_mean, [n]."""
        steps = np.floor(difference[self.far] / self.width + self.dither)
        most = (np.int64(MOST_QUOTIENT) << self.parameter) // 2
        return np.clip(steps, -most, most).astype(np.int64)

    def take_coarse(self, steps: Integers) -> None:
        """Estimate e by the quantiser's integers."""
        self.estimate[self.far] = self.weight * (self.width * (steps + 0.5 - self.dither))

    def lay_out(self, rate: float, stretch: int) -> tuple[Layout, Codebook]:
        """The dimensions' places and their shared noise."""
        layout = make_layout(self.bits, self.key, rate, stretch)
        rows = int(layout.row.max(initial=0)) + 1
        return layout, Codebook(self.key, self.state_bits, rows)

    def sample(self, p_mean: Array, layout: Layout, codebook: Codebook, path: Bits) -> Array:
        """z_s."""
        u = path_noise(layout, codebook, path, self.state_bits)
        sample = np.sqrt(self.total) * u
        estimate = self.estimate[self.far]
        estimate += self.left / np.sqrt(self.spread[self.far]) * u[self.far]
        sample[self.far] = estimate * (self.total[self.far] / self.excess[self.far])
        return p_mean + sample


def _check(variance: Array, excess: Array, *means: Array) -> None:
    if not all(np.all(np.isfinite(a)) for a in (variance, excess, *means)):
        raise ValueError("a mean or a variance is not finite")
    if not (np.all(variance > 0) and np.all(excess >= 0)):
        raise ValueError("the variance of q must be positive, that of p no smaller")
    if not np.all(excess <= MOST_RATIO * variance):
        raise ValueError("p is wider than q by more than 2^30")


def surprise_bits(m: Array, gain: Array) -> float:
    """KL(N(m, 1 / gain) || N(0, 1)) less its expectation 0.5 log2(gain), summed; [n].

    By exact arithmetic, so that a choice may hang on it.
    """
    surprise = np.minimum(1 / gain + m * m, 2.0**30) - 1
    return LOG2_E * int(np.rint(surprise * 2.0**20).astype(np.int64).sum()) / 2.0**21


class Encoder:
    """Codes the steps of one tile, from the highest timestep down; ``writer`` has the bits.

    Args:
        tile: its number, for the shared randomness.
        state_bits: memory of the trellis. The decoder must have the same.
        rate: stages per expected bit. The decoder must have the same.
    """

    def __init__(self, tile: int, state_bits: int = STATE_BITS, rate: float = RATE):
        self.tile, self.state_bits, self.rate = tile, state_bits, rate
        self.writer = BitWriter()
        self.stretch = 0

    def encode_step(
        self, timestep: int, q_mean: Array, p_mean: Array, variance: Array, excess: Array
    ) -> Array:
        """Send a sample of N(q_mean, variance); expected is N(p_mean, variance + excess).

        Args:
            timestep: of the sample, for the shared randomness; below 2^20.
            q_mean: [n] float64, as are the others.
            p_mean: known to the decoder, as are the variances.
            variance: Q, positive.
            excess: ``W = (1 - r)^2 v``.

        Returns:
            The sample, bit for bit what :meth:`Decoder.decode_step` returns, [n].

        Raises:
            ValueError: if an argument is not finite or out of range.
        """
        _check(variance, excess, q_mean, p_mean)
        difference = q_mean - p_mean
        step = _Step(variance, excess, Key(self.tile, timestep), self.state_bits)
        steps = step.quantise(difference)
        self.writer.write(rice_code(steps, step.parameter))
        step.take_coarse(steps)
        m = (difference - step.estimate) / np.sqrt(step.spread)
        self._choose_stretch(int(step.bits.sum()) / UNIT, surprise_bits(m, step.gain))
        layout, codebook = step.lay_out(self.rate, self.stretch)
        path = np.zeros(0, np.uint8)
        if layout.stages:
            path = best_path(m, 1 / step.gain, layout, codebook, self.state_bits)
        self.writer.write(path)
        return step.sample(p_mean, layout, codebook, path)

    def _choose_stretch(self, expected: float, surprise: float) -> None:
        """A stage too many costs a bit, one too few leaves about a bit unsent.

        START stages more are not worth their bits: without them small images come to the same PSNR
        by slightly fewer.
        """
        wanted = round(max(expected + surprise, 0.0) * self.rate)

        def cost(stretch: int) -> int:
            stages = count_stages(expected * float(STRETCH[stretch + MOST_STRETCH]), self.rate)
            return abs(stages - wanted) + len(stretch_code(stretch - self.stretch))

        best = min(range(-MOST_STRETCH, MOST_STRETCH + 1), key=cost)
        self.writer.write(stretch_code(best - self.stretch))
        self.stretch = best


class Decoder:
    """Inverse of :class:`Encoder`; data may be any prefix that holds the steps wanted."""

    def __init__(self, data: bytes, tile: int, state_bits: int = STATE_BITS, rate: float = RATE):
        self.tile, self.state_bits, self.rate = tile, state_bits, rate
        self.reader = BitReader(data)
        self.stretch = 0

    def decode_step(self, timestep: int, p_mean: Array, variance: Array, excess: Array) -> Array:
        """See :meth:`Encoder.encode_step`.

        Raises:
            ValueError: also if the data end, or cannot be what an encoder wrote.
        """
        _check(variance, excess, p_mean)
        step = _Step(variance, excess, Key(self.tile, timestep), self.state_bits)
        step.take_coarse(read_rice_code(self.reader, step.parameter))
        self.stretch += read_stretch_change(self.reader)
        if abs(self.stretch) > MOST_STRETCH:
            raise ValueError(f"stretch {self.stretch}, expected at most {MOST_STRETCH}")
        stages = stretched_stages(step.bits, self.rate, self.stretch)
        if stages > self.reader.left:  # before memory is taken for them
            raise ValueError(f"the data end early: {stages} bits wanted, {self.reader.left} left")
        layout, codebook = step.lay_out(self.rate, self.stretch)
        return step.sample(p_mean, layout, codebook, self.reader.read(layout.stages))
