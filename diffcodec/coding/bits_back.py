"""The chain, written once: the steps that encoder and decoder both drive, in opposite directions.

Bit-Swap order (Kingma et al. 2019). Upward, the encoder pushes the remainder of x given z_1, then
for t = 2..T pops ``z_t ~ q(z_t | z_{t-1})`` and pushes ``z_{t-1} ~ p(z_{t-1} | z_t)``, and at last
pushes z_T under its prior. The decoder runs the same list backward with push and pop exchanged.

Below a preview z_s, which relative entropy coding has sent (:mod:`diffcodec.coding.top_down`),
the chain ends at z_{s-1}: its pops are from the bridge ``q(z_t | z_{t-1}, z_s)``, and instead of a
prior there is ``p(z_{s-1} | z_s)``.

Every z_t lives on a lattice ``spacing * n + offset``; what is coded is the integer n. On the
first level the lattice is that of a dithered quantiser, so z_1 is a function of x.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diffcodec.arrays import Array
from diffcodec.coding import randomness
from diffcodec.coding.ans import Stack, truncated_gaussian
from diffcodec.diffusion.color import ColorDomain
from diffcodec.diffusion.plan import Plan
from diffcodec.diffusion.process import p_first, p_reverse

FORWARD_RADIUS = 16  # bins: a wider window pops an outlier once in a thousand symbols
REVERSE_RADIUS = 2000
MIN_STD_BINS = 0.25  # least width of a reverse transition after the variance correction
SPARE_SEED_WORDS = 8  # left untouched under the stack, so that its state never runs dry


class Request(NamedTuple):
    """What the chain asks of the model: the posterior of x at z_t."""

    z: Array  # [3, height, width]
    timestep: int


class Posterior(NamedTuple):
    """The model's answer: mean and variance of x given z_t, [3, height, width]."""

    mean: Array
    variance: Array


class Step(NamedTuple):
    """One coding step; ``pushes`` in the encoder, its inverse in the decoder.

    ``kind`` names the distribution: "remainder" p(x | z_1), "forward" q(z_t | z_{t-1}) or, below a
    preview, q(z_t | z_{t-1}, z_s), "reverse" p(z_t | z_{t+1}) or "prior" p(z_T), each of the
    variable at ``timestep``.
    """

    kind: str
    timestep: int
    pushes: bool


def coding_steps(timesteps: int, preview: int = 0) -> list[Step]:
    """The steps of a chain of T timesteps in the encoder's order; with a preview those below it."""
    steps = [Step("remainder", 0, True)]
    for t in range(2, preview or timesteps + 1):
        steps += [Step("forward", t, False), Step("reverse", t - 1, True)]
    return [
        *steps,
        Step("reverse", preview - 1, True) if preview else Step("prior", timesteps, True),
    ]


class OutOfRangeError(Exception):
    """A symbol lies outside the coder's window: the tile must be coded another way."""


class SeedSpentError(Exception):
    """More of the seed is used up than the caller allows.

    Attributes:
        heights: of the stack in words after each step so far, the last a "reverse" one.
    """

    def __init__(self, heights: tuple[int, ...]):
        super().__init__("the stack has run empty")
        self.heights = heights


@dataclass(frozen=True)
class Level:
    """One timestep's constants per channel, [3, 1, 1]."""

    sigma: Array
    spacing: Array
    draw_std: Array  # tau'
    bridge_weight: Array  # weight of the preview in the mean of the draw


def make_levels(plan: Plan, domain: ColorDomain, preview: int = 0) -> list[Level]:
    """Constants of timesteps 1..T (list index t - 1); ``preview`` is the timestep s or 0.

    ``tau_t^2 = sigma_t^2 - sigma_{t-1}^2 = tau'^2 + delta^2 / 12``: rounding to the lattice is
    part of the noise. Below a preview tau_t^2 is the variance of the bridge.
    """
    multipliers = np.array(domain.noise_multipliers)[:, None, None]
    steps = np.array(domain.quantiser_steps, dtype=np.float64)[:, None, None]
    levels = [Level(plan.levels[0] * multipliers, steps, 0 * multipliers, 0 * multipliers)]
    for sigma, lattice in zip(plan.levels[1:], plan.lattice_ratios, strict=True):
        s, below = sigma * multipliers, levels[-1].sigma
        variance, bridge_weight = s * s - below * below, 0 * multipliers
        if len(levels) + 1 < preview:
            top = plan.levels[preview - 1] * multipliers
            variance, bridge_weight = bridge(below, s, top, shared=len(levels) > 1)
        draw = np.sqrt(variance / (1 + lattice * lattice / 12))
        levels.append(Level(s, lattice * draw, draw, bridge_weight))
    return levels


def bridge(below: Array, sigma: Array, top: Array, shared: bool) -> tuple[Array, Array]:
    """Variance and b of ``q(z_t | z_{t-1}, z_s) = N((1 - b) z_{t-1} + b z_s, variance)``.

    Such that z_t is x and noise of sigma_t, all of which is in z_s too, as in the forward process.
    z_{t-1} has this already (``shared``), unless it is z_1: the dither knows nothing of z_s.

    Args:
        below, sigma, top: sigma_{t-1} < sigma_t < sigma_s.
        shared: whether the noise of z_{t-1} is part of that of z_s.
    """
    covariance = below * below if shared else 0 * below
    b = (sigma * sigma - covariance) / (top * top - covariance)
    a = 1 - b
    known = a * a * (below * below) + b * b * (top * top) + 2 * a * b * covariance
    return sigma * sigma - known, b


class TileChain:
    """The variables of one tile and the distributions that code them.

    ``coded`` is the number of leading channels that are coded: 3, or 1 for grey images, whose
    chroma is known to be zero and gets its noise from shared randomness. ``preview`` is the
    timestep s whose z_s is known beforehand and must lie in ``z``; 0 for none. ``draw`` is which
    seed and dither of the shared randomness it takes.
    """

    def __init__(
        self,
        plan: Plan,
        domain: ColorDomain,
        tile: int,
        coded: int,
        shape: tuple[int, int],
        preview: int = 0,
        draw: int = 0,
    ):
        self.plan, self.domain = plan, domain
        self.tile, self.coded, self.preview, self.draw = tile, coded, preview, draw
        self.shape = (3, *shape)
        self.levels = make_levels(plan, domain, preview)
        self.z: dict[int, Array] = {}  # timestep -> z_t; 0 is the image
        self._known: dict[int, Array] = {}

    @cached_property
    def dither(self) -> Array:
        """Of the first level, [3, height, width]."""
        return randomness.dither(self.tile, self.shape, self.domain.quantiser_steps, self.draw)

    def steps(self) -> list[Step]:
        """In the encoder's order."""
        return coding_steps(len(self.levels), self.preview)

    def set_image(self, x: Array) -> None:
        """Start of encoding: x and, a function of it, z_1."""
        self.z[0] = x
        self.z[1] = self._quantise(x)

    def _quantise(self, x: Array) -> Array:
        m = self.levels[0].spacing
        return m * np.floor((x + self.dither) / m) + self._first_offset()

    def _first_offset(self) -> Array:
        return (self.levels[0].spacing - 1) / 2 - self.dither

    def known_channels(self, t: int) -> Array:
        """z_t of the channels that are not coded: zero plus shared noise, a walk over t."""
        if t not in self._known:
            c = slice(self.coded, 3)
            if t == 0:
                value = np.zeros(self.shape)[c]
            elif t == 1:
                value = self._quantise(np.zeros(self.shape))[c]
            else:
                low, high = self.levels[t - 2].sigma[c], self.levels[t - 1].sigma[c]
                noise = randomness.approximate_normals(self.tile, t, self.z_shape(c))
                value = self.known_channels(t - 1) + np.sqrt(high * high - low * low) * noise
            self._known[t] = value
        return self._known[t]

    def z_shape(self, c: slice) -> tuple[int, int, int]:
        """Shape of a selection of channels."""
        return (len(range(*c.indices(3))), *self.shape[1:])

    def distribution(self, step: Step) -> Generator[Request, Posterior, tuple[Array, Array]]:
        """Mean and std of the step's variable in grey levels, coded channels only, [c, h, w]."""
        t, c = step.timestep, slice(0, self.coded)
        if step.kind == "forward":
            mean, bridge_weight = self.z[t - 1][c], self.levels[t - 1].bridge_weight[c]
            if self.preview:
                mean = (1 - bridge_weight) * mean + bridge_weight * self.z[self.preview][c]
            return mean, np.broadcast_to(self.levels[t - 1].draw_std[c], self.z_shape(c))
        correction = self.levels[t - 1].spacing ** 2 / 12 if t > 1 else np.zeros((3, 1, 1))
        if step.kind == "prior":
            std = np.array(self.domain.data_std)[:, None, None]
            mean = np.broadcast_to(np.array(self.domain.center)[:, None, None], self.shape)
            variance = self.levels[t - 1].sigma ** 2 + std * std
        else:
            mean, variance = yield Request(self.z[t + 1], t + 1)
        if step.kind == "reverse":
            below, above = self.levels[t - 1].sigma, self.levels[t].sigma
            fields = [mean, variance, self.z[t + 1], below, above]
            if t == 1:
                fields.append(self.levels[0].spacing)
            transition = p_first if t == 1 else p_reverse
            mean, variance = (a.numpy() for a in transition(*map(torch.from_numpy, fields)))
        if t > 1:
            floor = (MIN_STD_BINS * self.levels[t - 1].spacing) ** 2
            variance = np.maximum(variance - correction, floor)
        return mean[c], np.broadcast_to(np.sqrt(variance), self.shape)[c]

    def code(self, stack: Stack, step: Step, push: bool, mean: Array, std: Array) -> None:
        """Push the step's variable, or pop it and keep it.

        Raises:
            OutOfRangeError: if a value has no code.
        """
        t, c = step.timestep, slice(0, self.coded)
        if step.kind == "remainder":
            self._code_remainder(stack, push, mean, std)
            return
        spacing = self.levels[t - 1].spacing[c]
        offset = self._first_offset()[c] if t == 1 else 0.0
        bin_mean, bin_std = ((mean - offset) / spacing).ravel(), (std / spacing).ravel()
        radius = FORWARD_RADIUS if step.kind == "forward" else REVERSE_RADIUS
        if push:
            symbols = np.rint((self.z[t][c] - offset) / spacing)
            if not stack.push_gaussian(symbols.ravel(), bin_mean, bin_std, radius):
                raise OutOfRangeError(f"timestep {t}")
        else:
            symbols = stack.pop_gaussian(bin_mean, bin_std, radius).reshape(mean.shape)
            self.z[t] = np.concatenate([spacing * symbols + offset, self.known_channels(t)])

    def _code_remainder(self, stack: Stack, push: bool, mean: Array, std: Array) -> None:
        lowest = self.z[1] - (self.levels[0].spacing - 1) / 2  # first of the M candidates
        if not push:
            self.z[0] = np.concatenate([np.zeros(mean.shape), self.known_channels(0)])
        order = range(self.coded)
        for c in order if push else reversed(order):
            table = truncated_gaussian(
                (mean[c] - lowest[c]).ravel(), std[c].ravel(), self.domain.quantiser_steps[c]
            )
            if push:
                symbols = (self.z[0][c] - lowest[c]).ravel().astype(np.int32)
                stack.push_categorical(symbols, table)
            else:
                symbols = stack.pop_categorical(table)
                self.z[0][c] = lowest[c] + symbols.reshape(lowest[c].shape)


class EncodedTile(NamedTuple):
    """Words of a tile in the decoder's order (top of the stack first), and what lies around."""

    words: NDArray[np.uint32]
    seed_words: int  # words of the shared seed that were consumed
    marks: tuple[int, ...]  # words needed to reach timestep T, ..., 1
    heights: tuple[int, ...]  # of the stack in words after each step
    preview: int = 0  # the timestep s of a preview z_s of the tile's own, or 0
    preview_payload: bytes = b""  # it, by relative entropy coding
    draw: int = 0  # of the shared randomness

    @property
    def size(self) -> int:
        """In bytes, with those that tell the draw and the preview."""
        told = (self.draw > 0) + (2 + (len(self.preview_payload) > 127)) * (self.preview > 0)
        return 4 * len(self.words) + len(self.preview_payload) + told


def seed(tile: int, count: int, draw: int = 0) -> NDArray[np.uint32]:
    """The words under a tile's stack, the top last; a deeper seed only adds words below."""
    words = randomness.random_words(randomness.SEED_WORDS, tile, count, draw)
    words[0] |= 1  # the top must not be zero
    return words[::-1]


def most_seed_words(chain: TileChain) -> int:
    """Words of the shared seed that a tile may use; a file that claims more is not valid."""
    return math.prod(chain.shape) // 4 + 64


def encode_tile(
    chain: TileChain, x: Array, allowed: float = math.inf
) -> Generator[Request, Posterior, EncodedTile]:
    """Code one tile; a coroutine that yields what it asks of the model.

    Args:
        chain: of the tile's plan and shape.
        x: integers of the colour domain, [3, height, width].
        allowed: words of the seed that may be used up.

    Raises:
        OutOfRangeError: if the chain has no code for the tile.
        SeedSpentError: as soon as more words of the seed are used up.
    """
    chain.set_image(x)
    seeds = seed(chain.tile, most_seed_words(chain), chain.draw)
    stack = Stack(seeds)
    steps = chain.steps()
    heights = [stack.height]
    for step in steps:
        mean, std = yield from chain.distribution(step)
        chain.code(stack, step, step.pushes, mean, std)
        heights.append(stack.height)
        if step.kind == "reverse":
            del chain.z[step.timestep]
            if heights[0] - min(heights) > allowed:
                raise SeedSpentError(tuple(heights[1:]))
    if min(heights) <= SPARE_SEED_WORDS:
        raise OutOfRangeError("the seed is used up")
    words = stack.words()
    shared = min(len(words), len(seeds))
    different = np.flatnonzero(words[:shared] != seeds[:shared])
    untouched = int(different[0]) if different.size else shared
    marks = []
    low = heights[-1]
    for step, before in zip(reversed(steps), reversed(heights[:-1]), strict=True):
        low = min(low, before)
        if step.kind in ("prior", "reverse"):
            marks.append(min(len(words) - low + 2, len(words) - untouched))
    return EncodedTile(
        *(words[untouched:][::-1], len(seeds) - untouched, tuple(marks), tuple(heights[1:])),
        draw=chain.draw,
    )


def decode_tile(
    chain: TileChain, words: NDArray[np.uint32], seed_words: int, timestep: int = 0
) -> Generator[Request, Posterior, Array]:
    """Decode one tile down to a timestep; a coroutine like :func:`encode_tile`.

    Returns:
        At timestep 0 the exact integers of the colour domain; else the posterior mean of x
        given z_t. [3, height, width]

    Raises:
        ValueError: if the words cannot be what the encoder wrote.
        OutOfRangeError: likewise.
    """
    most = most_seed_words(chain)
    if seed_words > most:
        raise ValueError(f"{seed_words} words of the seed, expected at most {most}")
    seeds = seed(chain.tile, seed_words + SPARE_SEED_WORDS, chain.draw)
    stack = Stack(np.concatenate([seeds[:SPARE_SEED_WORDS], words[::-1]]))
    for step in reversed(chain.steps()):
        mean, std = yield from chain.distribution(step)
        chain.code(stack, step, not step.pushes, mean, std)
        if step.kind == "forward":
            del chain.z[step.timestep]
        elif step.timestep == timestep > 0:
            posterior = yield Request(chain.z[timestep], timestep)
            return np.concatenate([posterior.mean[: chain.coded], chain.known_channels(0)])
    if not np.array_equal(stack.words(), seeds):
        raise ValueError("the seed did not come back")
    return chain.z[0]
