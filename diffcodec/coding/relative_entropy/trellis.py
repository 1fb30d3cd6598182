"""The trellis: shared noise by path, and the path of the largest density ratio."""

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int8, Int64, UInt8

from diffcodec.arrays import Array, Bits, Bytes, Flags, Float32s, Int8s, Integers
from diffcodec.coding.relative_entropy.layout import Key, Layout
from diffcodec.compiled import Loop, compiled, works
from diffcodec.networks.exact import EXACT_LIMIT, may_round_float32

# Part of the file format.
START = 3  # further stages, since a path begins at one known state
SEQUENCES = 64  # independent sequences of noise; stages of more dimensions shift them
NOISE_STEPS = 32  # shared noise is a multiple of 1/32
# The encoder's alone.
_SQUARE_STEPS = 8  # of squared noise
_BLOCK = 256  # stages scored at once
_MOST_MEAN = 16.0  # a mean farther out than all noise needs no further resolution
LEAST_COMPILED = 1 << 10  # stages that the compiled loops are for: they take a while to load


@dataclass(frozen=True)
class Trellis:
    """What both sides must agree on; files have the defaults.

    Attributes:
        state_bits: its memory; the encoder's work doubles with each.
        rate: stages per bit of KL.
        segment: stages after which it begins again at state 0.
    """

    state_bits: int = 12
    rate: float = 1.03
    segment: int = 4096

    @property
    def branches(self) -> int:
        """The branches of a stage: the states, each with a further bit."""
        return 2 << self.state_bits

    def stages(self, bits: float) -> int:
        """The number of stages of a path that is worth so many bits."""
        return round(bits * self.rate + min(bits, START))


TRELLIS = Trellis()


@cache
def _noise_table() -> Int8[Int8s, "65536"]:
    """Quantiles of the standard normal at the centres of 2^16 equal parts, in units of 1/32."""
    normal = NormalDist()  # SciPy's takes a while to load
    quantiles = [normal.inv_cdf((i + 0.5) / (1 << 16)) for i in range(1 << 16)]
    table: Int8s = np.clip(np.rint(NOISE_STEPS * np.array(quantiles)), -127, 127).astype(np.int8)
    return table


class Codebook:
    """The shared noise of every row and branch: N(0, 1) in units of 1/32.

    Row k is sequence k mod 64 shifted by k div 64 branches.
    """

    def __init__(self, key: Key, trellis: Trellis, rows: int):
        self.trellis, self.rows = trellis, rows
        sequences = min(rows, SEQUENCES)
        words = key.words(2, sequences * trellis.branches // 2)
        halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], -1)
        self.sequences = _noise_table()[halves].reshape(sequences, trellis.branches)

    def noise(self, row: Int64[Integers, " n"], branch: Int64[Integers, " n"]) -> Int8[Int8s, " n"]:
        """The noise of each branch in its row, elementwise."""
        place = (branch + row // SEQUENCES) % self.trellis.branches
        noise: Int8s = self.sequences[row % SEQUENCES, place]
        return noise

    def letters(self) -> Int8[Int8s, "2 sequences columns"]:
        """Noise and its square for scoring: columns h to h + branches are rows from 64 h on."""
        branches, shifts = self.trellis.branches, (self.rows - 1) // SEQUENCES
        repeats = 2 + shifts // branches
        noise = np.tile(self.sequences, repeats)[:, : branches + shifts]
        square = noise.astype(np.float32) ** 2
        squares = np.rint(square * np.float32(_SQUARE_STEPS / NOISE_STEPS**2))
        return np.stack([noise, squares.astype(np.int8)])


def path_branches(path: UInt8[Bits, " stages"], trellis: Trellis) -> Int64[Integers, " stages"]:
    """The branch of each stage: its bit, the state_bits - 1 before, and at the top the one lost."""
    memory = trellis.state_bits
    branches = np.zeros(len(path), dtype=np.int64)
    for start in range(0, len(path), trellis.segment):
        bits = np.concatenate([np.zeros(memory, np.int64), path[start : start + trellis.segment]])
        here = branches[start : start + trellis.segment]
        n = len(here)
        for age in range(memory):
            here += bits[memory - age :][:n] << (memory - 1 - age)
        here += bits[:n] << memory
    return branches


def path_noise(
    layout: Layout, codebook: Codebook, path: UInt8[Bits, " stages"]
) -> Float64[Array, " n"]:
    """The noise u of every dimension; of those behind the end of the path any."""
    branches = np.zeros(max(layout.stages, 1), np.int64)
    branches[: len(path)] = path_branches(path, codebook.trellis)
    u = np.empty(len(layout.order))
    u[layout.order] = layout.sign * codebook.noise(layout.row, branches[layout.stage])
    return u / NOISE_STEPS


def _whole_scores(
    m: Float64[Array, " n"], rho: Float64[Array, " n"], layout: Layout
) -> tuple[Float64[Array, " n"], Float64[Array, " n"]]:
    """Weights of u and of its square, by place: integers whose sums float32 holds exactly."""
    linear = layout.sign * (np.clip(m, -_MOST_MEAN, _MOST_MEAN) / rho)[layout.order] / NOISE_STEPS
    square = (0.5 * (1 / rho - 1))[layout.order] / _SQUARE_STEPS
    # The largest power of two for which no sum leaves float32's integers.
    largest = np.bincount(layout.stage, np.abs(linear) + square).max()
    scale = 2.0 ** int(np.frexp(EXACT_LIMIT / 127 / max(largest, 2.0**-100))[1])
    while True:
        whole = np.rint(linear * scale), np.rint(square * scale)
        if 127 * np.bincount(layout.stage, np.abs(whole[0]) + whole[1]).max() < EXACT_LIMIT:
            return whole
        scale /= 2


def best_path(
    m: Float64[Array, " n"], rho: Float64[Array, " n"], layout: Layout, codebook: Codebook
) -> UInt8[Bits, " stages"]:
    """The path of the largest density ratio, by the Viterbi algorithm.

    ``ln q(u) / p(u) = sum u m / rho - u^2 (1 / rho - 1) / 2`` and a constant.
    """
    linear, square = _whole_scores(m, rho, layout)
    letters, trellis = codebook.letters(), codebook.trellis
    is_worth_loops = layout.stages >= LEAST_COMPILED and _loops_work()
    extend, trace_back = _by_loops() if is_worth_loops else _BY_ARRAYS
    bounds = np.searchsorted(layout.stage, np.arange(layout.stages + 1))
    states = 1 << trellis.state_bits
    odd = np.empty((_BLOCK, states), dtype=np.bool_)
    kept = np.empty((trellis.segment, states // 8), dtype=np.uint8)  # [stage, next state], packed
    path = np.empty(layout.stages, dtype=np.uint8)
    for start in range(0, layout.stages, trellis.segment):
        stop = min(start + trellis.segment, layout.stages)
        value = np.full(states, -1e30, dtype=np.float32)
        value[0] = 0
        for first in range(start, stop, _BLOCK):
            count = min(_BLOCK, stop - first)
            here = bounds[first : first + count + 1]
            extend(here, layout.row, linear, square, letters, value, odd)
            kept[first - start :][:count] = np.packbits(odd[:count], axis=1)
            value -= value.max()
        trace_back(kept, int(value.argmax()), path[start:stop])
    return path


def _extend(
    bounds: Integers,
    row: Integers,
    linear: Array,
    square: Array,
    letters: Int8s,
    value: Float32s,
    odd: Flags,
) -> None:
    """Extend the best path of each state by stages, as :func:`_extend_by_arrays` does."""
    half = len(value) // 2
    evens, odds = np.empty(half, np.float32), np.empty(half, np.float32)
    score = np.empty(4 * half, np.float32)
    for j in range(len(bounds) - 1):
        score[:] = 0
        for i in range(bounds[j], bounds[j + 1]):
            shift, sequence = row[i] // SEQUENCES, row[i] % SEQUENCES
            noise, squares = letters[0, sequence, shift:], letters[1, sequence, shift:]
            of_noise, of_square = np.float32(linear[i]), np.float32(square[i])
            for k in range(4 * half):
                score[k] += of_noise * np.float32(noise[k]) - of_square * np.float32(squares[k])
        for i in range(half):
            evens[i] = value[2 * i]
            odds[i] = value[2 * i + 1]
        for new in range(2):  # the next state's top bit
            begin, end = new * half, (new + 1) * half
            of_even, of_odd = score[begin:end], score[2 * half + begin : 2 * half + end]
            best, is_odd = value[begin:end], odd[j, begin:end]
            for i in range(half):
                by_even, by_odd = of_even[i] + evens[i], of_odd[i] + odds[i]
                is_odd[i] = by_odd > by_even
                best[i] = max(by_even, by_odd)


def _extend_by_arrays(
    bounds: Int64[Integers, " stages+1"],
    row: Int64[Integers, " n"],
    linear: Float64[Array, " n"],
    square: Float64[Array, " n"],
    letters: Int8[Int8s, "2 sequences columns"],
    value: Float32[Float32s, " states"],
    odd: Bool[Flags, "most_stages states"],
) -> None:
    """Extend the best path of each state by stages.

    Args:
        bounds: between the dimensions of one stage and the next.
        row: of each dimension, in the codebook.
        linear, square: weights of its noise u and of -u^2.
        letters: of the codebook.
        value: of the best path to each state, which is changed.
        odd: is filled with whether the best path to each next state is from an odd one.
    """
    half = len(value) // 2
    candidates = np.empty((2, 2, half), dtype=np.float32)  # [lost bit, new bit, the others]
    scores = _scores(bounds, row, linear, square, letters, 4 * half)
    # The new bit is the next state's top.
    for j, branch in enumerate(scores.reshape(-1, 2, 2, half)):
        np.add(branch[0], value[0::2], out=candidates[0])
        np.add(branch[1], value[1::2], out=candidates[1])
        odd[j] = (candidates[1] > candidates[0]).ravel()
        np.maximum(candidates[0], candidates[1], out=value.reshape(2, half))


def _scores(
    bounds: Integers,
    row: Integers,
    linear: Array,
    square: Array,
    letters: Int8s,
    branches: int,
) -> Float32[Float32s, "stages branches"]:
    """``sum linear u - square u^2`` of all branches of a block of stages."""
    stages, here = len(bounds) - 1, slice(bounds[0], bounds[-1])
    stage = np.repeat(np.arange(stages), np.diff(bounds))
    shift, sequence = np.divmod(row[here], SEQUENCES)
    weights = np.zeros((int(shift.max(initial=0)) + 1, 2, stages, letters.shape[1]), np.float32)
    weights[shift, 0, stage, sequence] = linear[here]
    weights[shift, 1, stage, sequence] = -square[here]
    exact = torch.float64 if may_round_float32() else torch.float32
    total = torch.zeros(stages, branches, dtype=exact)
    noise_and_squares = torch.from_numpy(letters).to(exact)
    for first, pair in enumerate(torch.from_numpy(weights).to(exact)):
        for weight, letter in zip(pair, noise_and_squares, strict=True):
            total.addmm_(weight, letter[:, first : first + branches])  # [stages, branches]
    return total.float().numpy()


def _trace_back(kept: Bytes, state: int, path: Bits) -> None:
    """Fill the path that ends in a state; kept says which states had come from odd ones."""
    states = 8 * kept.shape[1]
    for j in range(len(path) - 1, -1, -1):
        path[j] = state >= states // 2
        lost = int(kept[j, state >> 3]) >> (7 - (state & 7)) & 1
        state = (state << 1 & (states - 1)) | lost


_BY_ARRAYS: tuple[Loop, Loop] = _extend_by_arrays, _trace_back


def _by_loops() -> tuple[Loop, Loop]:
    return compiled(_extend, fuses=True), compiled(_trace_back)


@cache
def _loops_work() -> bool:
    """Whether there is a compiler and the compiled loops give what NumPy gives, bit for bit."""

    def is_exact() -> bool:
        rng = np.random.default_rng(0)
        letters = rng.integers(-127, 128, (2, SEQUENCES, 70)).astype(np.int8)
        bounds = np.sort(rng.integers(200, size=41))
        row, weights = rng.permutation(5 * SEQUENCES)[:200], rng.integers(-99, 99, (2, 200))
        found = []
        for extend, trace_back in (_by_loops(), _BY_ARRAYS):
            value, odd = np.zeros(32, dtype=np.float32), np.empty((40, 32), dtype=np.bool_)
            path = np.empty(40, dtype=np.uint8)
            extend(bounds, row, *weights.astype(np.float64), letters, value, odd)
            trace_back(np.packbits(odd, axis=1), 5, path)
            found.append((value, odd, path))
        return all(map(np.array_equal, *found))

    return works(is_exact)
