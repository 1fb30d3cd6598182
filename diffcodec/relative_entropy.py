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

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from diffcodec.diffusion import LOG2_E
from diffcodec.randomness import random_words

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Bits = NDArray[np.uint8]  # 0 or 1 each

# Part of the file format, all of these.
RELATIVE_ENTROPY = 4  # purpose of the shared randomness
STATE_BITS = 12  # memory of the trellis; the encoder's work doubles with each
RATE = 1.03  # stages per bit of KL
SURCHARGE = 32  # b bits of a dimension count as b + b^2 / SURCHARGE: large ones need more
START = 3  # further stages, since a path begins at one known state
MOST_BITS = 3  # of a dimension on the trellis
MOST_QUOTIENT = 32  # of a Rice code; what lies farther out is moved here
MOST_RATIO = 2.0**60  # of W to Q
SEGMENT = 4096  # stages after which the trellis begins again at state 0
MOST_STRETCH = 48  # stages are scaled by 2^(k / 8), |k| at most this
SEQUENCES = 64  # independent sequences of noise; stages of more dimensions shift them
OFFSETS = 16  # stages begin at so many sequences in turn
NOISE_STEPS = 32  # shared noise is a multiple of 1/32
_UNIT = 1 << 24  # of expected bits
_LOG_STEPS = 4096

# The encoder's alone.
_EXACT_LIMIT = 2.0**24  # float32 holds every integer up to here
_SQUARE_STEPS = 8  # of squared noise
_BLOCK = 256  # stages scored at once
_MOST_MEAN = 16.0  # a mean farther out than all noise needs no further resolution


def _noise_table() -> NDArray[np.int8]:
    """Quantiles of the standard normal at the centres of 2^16 equal parts, in units of 1/32."""
    quantiles = ndtri((np.arange(1 << 16) + 0.5) / (1 << 16))
    table: NDArray[np.int8] = np.clip(np.rint(NOISE_STEPS * quantiles), -127, 127).astype(np.int8)
    return table


def _round30(values: Array) -> Array:
    """To multiples of 2^-30, which every maths library agrees on."""
    rounded: Array = np.rint(values * 2.0**30) / 2.0**30
    return rounded


_NOISE = _noise_table()
_LOG = _round30(np.log2(1 + np.arange(_LOG_STEPS + 1) / _LOG_STEPS))
_STRETCH = _round30(2.0 ** (np.arange(-MOST_STRETCH, MOST_STRETCH + 1) / 8))


def half_log2(ratio: Array) -> Integers:
    """``0.5 log2(ratio)``, ratio >= 1, in units of 2^-24; from a table, within two units."""
    mantissa, exponent = np.frexp(ratio)  # ratio = 2 mantissa 2^(exponent - 1)
    position = (2 * mantissa - 1) * _LOG_STEPS
    k = np.minimum(position.astype(np.int64), _LOG_STEPS - 1)
    log = _LOG[k] + (position - k) * (_LOG[k + 1] - _LOG[k])
    bits: Integers = np.rint((exponent - 1 + log) * (_UNIT / 2)).astype(np.int64)
    return bits


# --- bits ----------------------------------------------------------------------------------------


class BitWriter:
    """Bits in the order of the file."""

    def __init__(self) -> None:
        self._parts: list[Bits] = []
        self.count = 0

    def write(self, bits: Bits) -> None:
        """Append zeros and ones."""
        self._parts.append(bits)
        self.count += len(bits)

    def bits(self) -> Bits:
        """All bits."""
        return np.concatenate([np.zeros(0, np.uint8), *self._parts])

    def to_bytes(self) -> bytes:
        """All bits, the first the highest of its byte; the last byte is filled up with zeros."""
        return np.packbits(self.bits()).tobytes()


class BitReader:
    """Inverse of :class:`BitWriter`."""

    def __init__(self, data: bytes):
        self._bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        self.position = 0

    @property
    def left(self) -> int:
        """Bits that follow."""
        return len(self._bits) - self.position

    def read(self, count: int) -> Bits:
        """The next bits.

        Raises:
            ValueError: if there are not so many.
        """
        if count > self.left:
            raise ValueError(f"the data end early: {count} bits wanted, {self.left} left")
        self.position += count
        return self._bits[self.position - count : self.position]


def _stretch_code(change: int) -> Bits:
    """0; or 1, the sign, and the magnitude less one in unary."""
    if not change:
        return np.zeros(1, np.uint8)
    return np.array([1, change < 0, *[1] * (abs(change) - 1), 0], np.uint8)


def _read_stretch_change(reader: BitReader) -> int:
    if not reader.read(1)[0]:
        return 0
    sign = -1 if reader.read(1)[0] else 1
    magnitude = 1
    while reader.read(1)[0]:
        magnitude += 1
    return sign * magnitude


def rice_code(values: Integers, parameter: Integers) -> Bits:
    """Signed integers, [n]: first their low bits, ``parameter`` each, then the rest in unary.

    Value by value and plane by plane; a quotient of MOST_QUOTIENT needs no end.
    """
    folded = np.where(values < 0, -2 * values - 1, 2 * values)
    parts = [
        (folded[parameter > bit] >> bit & 1).astype(np.uint8)
        for bit in range(int(parameter.max(initial=0)))
    ]
    quotient = folded >> parameter
    for plane in range(MOST_QUOTIENT):
        quotient = quotient[quotient >= plane]
        parts.append((quotient > plane).astype(np.uint8))
    return np.concatenate(parts)


def read_rice_code(reader: BitReader, parameter: Integers) -> Integers:
    """Inverse of :func:`rice_code`."""
    folded = np.zeros(len(parameter), dtype=np.int64)
    for bit in range(int(parameter.max(initial=0))):
        here = parameter > bit
        folded[here] |= reader.read(int(here.sum())).astype(np.int64) << bit
    left = np.arange(len(parameter))
    for _ in range(MOST_QUOTIENT):
        left = left[reader.read(len(left)) > 0]
        folded[left] += np.int64(1) << parameter[left]
    return np.where(folded & 1, -(folded + 1) // 2, folded // 2)


# --- the trellis ---------------------------------------------------------------------------------


class Key(NamedTuple):
    """What a step draws its shared randomness with."""

    tile: int
    timestep: int

    def words(self, kind: int, count: int) -> NDArray[np.uint32]:
        """Uniform words of one of four kinds."""
        return random_words(RELATIVE_ENTROPY, self.tile, count, self.timestep << 2 | kind)


class Layout(NamedTuple):
    """Where the dimensions lie on the trellis. Arrays by place, [n], but for order."""

    order: Integers  # the dimension at each place
    stage: Integers  # increasing
    row: Integers  # of the codebook
    sign: NDArray[np.int8]  # of its noise
    stages: int  # bits of the path


def count_stages(bits: float, rate: float) -> int:
    """Stages of a path that is worth so many bits."""
    return round(bits * rate + min(bits, START))


def stretched_stages(bits: Integers, rate: float, stretch: int) -> int:
    """Stages of a step; see :func:`make_layout`."""
    return count_stages(int(bits.sum()) / _UNIT * float(_STRETCH[stretch + MOST_STRETCH]), rate)


def make_layout(bits: Integers, key: Key, rate: float, stretch: int = 0) -> Layout:
    """Cut the dimensions, in pseudo-random order, into stages of equal expected bits.

    A dimension of several bits comes last in those it is worth, so that they all tell of it.

    Args:
        bits: expected of each dimension, in units of 2^-24, [n].
        key: of the step.
        rate: stages per bit.
        stretch: bits are 2^(stretch / 8) times the expected ones.
    """
    n, total = len(bits), int(bits.sum())
    stages = stretched_stages(bits, rate, stretch)
    # By random words; each carries its index, so that none are equal and any sort will do.
    tagged = np.arange(n, dtype=np.uint64)
    tagged |= key.words(0, n).astype(np.uint64) << np.uint64(32)
    order = (np.sort(tagged) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    stage = np.zeros(n, dtype=np.int64)
    if stages:
        quotient, remainder = divmod(total, stages)
        j = np.arange(1, stages, dtype=np.int64)
        ends = j * quotient + j * remainder // stages
        ordered = bits[order]
        stage = np.searchsorted(ends, np.cumsum(ordered) - 1, side="right")
    first = np.searchsorted(stage, np.arange(max(stages, 1)))
    row = np.arange(n) - first[stage] + stage % OFFSETS
    sign = 1 - 2 * (key.words(1, n) & np.uint32(1)).astype(np.int8)
    return Layout(order, stage, row, sign, stages)


class Codebook:
    """The shared noise of every row and branch: N(0, 1) in units of 1/32.

    Row k is sequence k mod 64 shifted by k div 64 branches.
    """

    def __init__(self, key: Key, state_bits: int, rows: int):
        self.branches, self.rows = 2 << state_bits, rows
        sequences = min(rows, SEQUENCES)
        words = key.words(2, sequences * self.branches // 2)
        halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], -1)
        self.sequences = _NOISE[halves].reshape(sequences, self.branches)

    def noise(self, row: Integers, branch: Integers) -> NDArray[np.int8]:
        """Elementwise, [n]."""
        place = (branch + row // SEQUENCES) % self.branches
        chosen: NDArray[np.int8] = self.sequences[row % SEQUENCES, place]
        return chosen

    def letters(self) -> torch.Tensor:
        """Noise and its square for scoring: columns h to h + branches are rows from 64 h on."""
        shifts = (self.rows - 1) // SEQUENCES
        repeats = 2 + shifts // self.branches
        noise = np.tile(self.sequences, repeats)[:, : self.branches + shifts].astype(np.float32)
        squares = np.rint(noise * noise * np.float32(_SQUARE_STEPS / NOISE_STEPS**2))
        return torch.from_numpy(np.stack([noise, squares]))


def path_branches(path: Bits, state_bits: int) -> Integers:
    """The branch of each stage: its bit, the state_bits - 1 before, and at the top the one lost."""
    branches = np.zeros(len(path), dtype=np.int64)
    for start in range(0, len(path), SEGMENT):
        bits = np.concatenate([np.zeros(state_bits, np.int64), path[start : start + SEGMENT]])
        here = branches[start : start + SEGMENT]
        n = len(here)
        for age in range(state_bits):
            here += bits[state_bits - age :][:n] << (state_bits - 1 - age)
        here += bits[:n] << state_bits
    return branches


def path_noise(layout: Layout, codebook: Codebook, path: Bits, state_bits: int) -> Array:
    """u of every dimension, [n]."""
    branches = path_branches(path, state_bits) if layout.stages else np.zeros(1, dtype=np.int64)
    u = np.empty(len(layout.order))
    u[layout.order] = layout.sign * codebook.noise(layout.row, branches[layout.stage])
    return u / NOISE_STEPS


def _scores(
    linear: Array,
    square: Array,
    layout: Layout,
    letters: torch.Tensor,
    stages: range,
    branches: int,
) -> NDArray[np.float32]:
    """``sum linear u - square u^2`` of all branches of a block of stages, [stages, branches]."""
    begin, end = np.searchsorted(layout.stage, [stages.start, stages.stop])
    stage, row = layout.stage[begin:end] - stages.start, layout.row[begin:end]
    sequences = letters.shape[1]
    shifts = int(row.max(initial=0)) // SEQUENCES + 1
    weights = np.zeros((shifts, 2, len(stages), sequences), dtype=np.float32)
    weights[row // SEQUENCES, 0, stage, row % SEQUENCES] = linear[begin:end]
    weights[row // SEQUENCES, 1, stage, row % SEQUENCES] = -square[begin:end]
    total = torch.zeros(len(stages), branches, dtype=torch.float32)
    for shift, pair in enumerate(torch.from_numpy(weights)):
        for weight, letter in zip(pair, letters, strict=True):
            total.addmm_(weight, letter[:, shift : shift + branches])
    scores: NDArray[np.float32] = total.numpy()
    return scores


def best_path(m: Array, rho: Array, layout: Layout, codebook: Codebook, state_bits: int) -> Bits:
    """The path of the largest density ratio, by the Viterbi algorithm.

    ``ln q(u) / p(u) = sum u m / rho - u^2 (1 / rho - 1) / 2`` and a constant. m, rho: [n].
    """
    linear = layout.sign * (np.clip(m, -_MOST_MEAN, _MOST_MEAN) / rho)[layout.order] / NOISE_STEPS
    square = (0.5 * (1 / rho - 1))[layout.order] / _SQUARE_STEPS
    # The largest power of two for which no sum leaves float32's integers.
    largest = np.bincount(layout.stage, np.abs(linear) + square).max()
    scale = 2.0 ** int(np.frexp(_EXACT_LIMIT / 127 / max(largest, 2.0**-100))[1])
    while True:
        sums = np.bincount(layout.stage, np.rint(np.abs(linear) * scale) + np.rint(square * scale))
        if 127 * sums.max() < _EXACT_LIMIT:
            break
        scale /= 2
    linear, square = np.rint(linear * scale), np.rint(square * scale)
    letters = codebook.letters()
    states = 1 << state_bits
    kept = np.empty((SEGMENT, states // 8), dtype=np.uint8)
    candidates = np.empty((2, 2, states // 2), dtype=np.float32)
    path = np.empty(layout.stages, dtype=np.uint8)
    for start in range(0, layout.stages, SEGMENT):
        stop = min(start + SEGMENT, layout.stages)
        value = np.full(states, -1e30, dtype=np.float32)
        value[0] = 0
        for first in range(start, stop, _BLOCK):
            block = range(first, min(first + _BLOCK, stop))
            scores = _scores(linear, square, layout, letters, block, codebook.branches)
            # Axes: the bit that is lost, the new one (the next state's top), the rest of the state.
            for j, branch in enumerate(scores.reshape(-1, 2, 2, states // 2), first - start):
                np.add(branch[0], value[0::2], out=candidates[0])
                np.add(branch[1], value[1::2], out=candidates[1])
                kept[j] = np.packbits(candidates[1] > candidates[0])
                value = np.maximum(candidates[0], candidates[1]).reshape(-1)
            value -= value.max()
        state = int(value.argmax())
        for j in range(stop - start - 1, -1, -1):
            path[start + j] = state >> (state_bits - 1)
            lost = int(kept[j, state >> 3]) >> (7 - (state & 7)) & 1
            state = (state << 1 & (states - 1)) | lost
    return path


# --- one step ------------------------------------------------------------------------------------


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
        while np.any(large := half_log2(self.gain) > MOST_BITS * _UNIT):
            self.gain[large] = np.sqrt(self.gain[large])
        bits = half_log2(self.gain)
        self.bits = bits + bits * bits // (SURCHARGE * _UNIT)  # in units of 2^-24
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
        deviation = half_log2(np.maximum(excess[self.far] / (12 * error), 1)) // _UNIT
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
        self._choose_stretch(int(step.bits.sum()) / _UNIT, surprise_bits(m, step.gain))
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
            stages = count_stages(expected * float(_STRETCH[stretch + MOST_STRETCH]), self.rate)
            return abs(stages - wanted) + len(_stretch_code(stretch - self.stretch))

        best = min(range(-MOST_STRETCH, MOST_STRETCH + 1), key=cost)
        self.writer.write(_stretch_code(best - self.stretch))
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
        self.stretch += _read_stretch_change(self.reader)
        if abs(self.stretch) > MOST_STRETCH:
            raise ValueError(f"stretch {self.stretch}, expected at most {MOST_STRETCH}")
        stages = stretched_stages(step.bits, self.rate, self.stretch)
        if stages > self.reader.left:  # before memory is taken for them
            raise ValueError(f"the data end early: {stages} bits wanted, {self.reader.left} left")
        layout, codebook = step.lay_out(self.rate, self.stretch)
        return step.sample(p_mean, layout, codebook, self.reader.read(layout.stages))
