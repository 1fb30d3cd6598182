"""The trellis: shared noise by path, and the path of the largest density ratio."""

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int8, Int64, UInt8
from torch import Tensor

from diffcodec.arrays import Array, Bits, Float32s, Int8s, Integers
from diffcodec.coding.relative_entropy.layout import Key, Layout
from diffcodec.networks.exact import EXACT_LIMIT, may_round_float32

# Part of the file format.
START = 3  # further stages, since a path begins at one known state
SEQUENCES = 64  # independent sequences of noise; stages of more dimensions shift them
NOISE_STEPS = 32  # shared noise is a multiple of 1/32
# The encoder's alone.
_SQUARE_STEPS = 8  # of squared noise
_BLOCK = 256  # stages scored at once
_MOST_MEAN = 16.0  # a mean farther out than all noise needs no further resolution


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

    def letters(self) -> Float32[Tensor, "2 sequences columns"]:
        """Noise and its square for scoring: columns h to h + branches are rows from 64 h on."""
        branches, shifts = self.trellis.branches, (self.rows - 1) // SEQUENCES
        repeats = 2 + shifts // branches
        noise = np.tile(self.sequences, repeats)[:, : branches + shifts].astype(np.float32)
        squares = np.rint(noise * noise * np.float32(_SQUARE_STEPS / NOISE_STEPS**2))
        return torch.from_numpy(np.stack([noise, squares]))


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


def _scores(
    linear: Float64[Array, " n"],
    square: Float64[Array, " n"],
    layout: Layout,
    letters: Float32[Tensor, "2 sequences columns"],
    stages: range,
    branches: int,
) -> Float32[Float32s, "stages branches"]:
    """``sum linear u - square u^2`` of all branches of a block of stages."""
    begin, end = np.searchsorted(layout.stage, [stages.start, stages.stop])
    stage, row = layout.stage[begin:end] - stages.start, layout.row[begin:end]
    shifts = int(row.max(initial=0)) // SEQUENCES + 1
    weights = np.zeros((shifts, 2, len(stages), letters.shape[1]), dtype=np.float32)
    weights[row // SEQUENCES, 0, stage, row % SEQUENCES] = linear[begin:end]
    weights[row // SEQUENCES, 1, stage, row % SEQUENCES] = -square[begin:end]
    exact = torch.float64 if may_round_float32() else torch.float32
    pairs, letters = torch.from_numpy(weights).to(exact), letters.to(exact)
    total = torch.zeros(len(stages), branches, dtype=exact)
    for shift, pair in enumerate(pairs):  # [u or u^2, stages, sequences]
        for weight, letter in zip(pair, letters, strict=True):
            total.addmm_(weight, letter[:, shift : shift + branches])  # [stages, branches]
    return total.float().numpy()


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
    states = 1 << trellis.state_bits
    kept = np.empty((trellis.segment, states // 8), dtype=np.uint8)  # [stage, next state], packed
    candidates = np.empty((2, 2, states // 2), dtype=np.float32)  # [lost bit, new bit, the others]
    path = np.empty(layout.stages, dtype=np.uint8)
    for start in range(0, layout.stages, trellis.segment):
        stop = min(start + trellis.segment, layout.stages)
        value = np.full(states, -1e30, dtype=np.float32)
        value[0] = 0
        for first in range(start, stop, _BLOCK):
            block = range(first, min(first + _BLOCK, stop))
            scores = _scores(linear, square, layout, letters, block, trellis.branches)
            # The new bit is the next state's top.
            for j, branch in enumerate(scores.reshape(-1, 2, 2, states // 2), first - start):
                np.add(branch[0], value[0::2], out=candidates[0])
                np.add(branch[1], value[1::2], out=candidates[1])
                kept[j] = np.packbits(candidates[1] > candidates[0])
                value = np.maximum(candidates[0], candidates[1]).reshape(-1)
            value -= value.max()
        state = int(value.argmax())
        for j in range(stop - start - 1, -1, -1):
            path[start + j] = state >> (trellis.state_bits - 1)
            lost = int(kept[j, state >> 3]) >> (7 - (state & 7)) & 1
            state = (state << 1 & (states - 1)) | lost
    return path
