"""The trellis: shared noise by path, and the path of the largest density ratio."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from diffcodec.arrays import Array, Bits, Integers
from diffcodec.coding.relative_entropy.layout import Key, Layout

# Part of the file format, all of these.
STATE_BITS = 12  # memory of the trellis; the encoder's work doubles with each
RATE = 1.03  # stages per bit of KL
SURCHARGE = 32  # b bits of a dimension count as b + b^2 / SURCHARGE: large ones need more
SEGMENT = 4096  # stages after which the trellis begins again at state 0
SEQUENCES = 64  # independent sequences of noise; stages of more dimensions shift them
NOISE_STEPS = 32  # shared noise is a multiple of 1/32
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


_NOISE = _noise_table()


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
