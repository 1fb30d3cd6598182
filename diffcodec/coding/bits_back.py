"""Bits-back coding of a tile: the chain's steps on a stack, upward to encode, downward to decode.

Why decoding works: push and pop of an ANS coder (Duda 2013) are inverse to each other. The decoder
does the inverse of each step in reverse order, so it retraces the encoder's stacks down to the seed
under the first of them: the bits that pops took come back.
"""

import math
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt32

from diffcodec.arrays import Array, Words
from diffcodec.coding import randomness
from diffcodec.coding.ans import Stack
from diffcodec.coding.chain import Answer, Asked, TileChain
from diffcodec.coding.steps import OutOfRangeError, coding_steps

SPARE_SEED_WORDS = 8  # left untouched under the stack, so that its state never runs dry


class SeedSpentError(Exception):
    """More of the seed is used up than the caller allows.

    Attributes:
        heights: of the stack in words after each step so far, the last a push.
    """

    def __init__(self, heights: tuple[int, ...]):
        super().__init__("the stack has run empty")
        self.heights = heights


class EncodedTile(NamedTuple):
    """Words of a tile in the decoder's order (top of the stack first), and what lies around."""

    words: UInt32[Words, " words"]
    seed_words: int  # words of the shared seed that were consumed
    marks: tuple[int, ...]  # words needed to reach timestep T, ..., 1
    heights: tuple[int, ...]  # of the stack in words after each step
    preview: int = 0  # the timestep s of a preview z_s of the tile's own, or 0
    preview_payload: bytes = b""  # it, by relative entropy coding
    draw: int = 0  # of the shared randomness
    label: int | None = None  # the class that the model was told

    @property
    def size(self) -> int:
        """The tile's size in bytes, with those that tell the draw, the class and the preview."""
        told = (self.draw > 0) + (0 if self.label is None else 1 + (self.label > 127))
        told += (2 + (len(self.preview_payload) > 127)) * (self.preview > 0)
        return 4 * len(self.words) + len(self.preview_payload) + told


def seed(tile: int, count: int, draw: int = 0) -> UInt32[Words, " {count}"]:
    """The words under a tile's stack, the top last; a deeper seed only adds words below."""
    words = randomness.random_words(randomness.SEED_WORDS, tile, count, draw)
    words[0] |= 1  # the top must not be zero
    return words[::-1]


def stack_of(words: UInt32[Words, " words"], seeds: UInt32[Words, " seeds"]) -> Stack:
    """A decoder's: the words of a payload on what is left of the seed.

    Raises:
        ValueError: if these are not what lay on a stack.
    """
    if not words.size or words[0] == 0:
        raise ValueError("no stack of words")
    return Stack(np.concatenate([seeds[:SPARE_SEED_WORDS], words[::-1]]))


def untouched_words(words: UInt32[Words, " words"], seeds: UInt32[Words, " seeds"]) -> int:
    """How many words of the seed lie under a stack as they were."""
    shared = min(len(words), len(seeds))
    different = np.flatnonzero(words[:shared] != seeds[:shared])
    return int(different[0]) if different.size else shared


def most_seed_words(chain: TileChain) -> int:
    """Words of the shared seed that a tile may use; a file that claims more is not valid."""
    return math.prod(chain.shape) // 4 + 64


def encode_tile(
    chain: TileChain, x: Float64[Array, "3 height width"], allowed: float = math.inf
) -> Generator[Asked, Answer, EncodedTile]:
    """Code one tile; a coroutine that yields what it asks of the model.

    Args:
        chain: of the tile's plan and shape.
        x: integers of the colour domain.
        allowed: words of the seed that may be used up.

    Raises:
        OutOfRangeError: if the chain has no code for the tile.
        SeedSpentError: as soon as more words of the seed are used up.
    """
    chain.set_image(x)
    seeds = seed(chain.tile, most_seed_words(chain), chain.draw)
    stack = Stack(seeds)
    steps = coding_steps(len(chain.levels), chain.preview, chain.phased)
    heights = [stack.height]
    for step in steps:
        yield from (step.push if step.pushes else step.pop)(chain, stack)
        heights.append(stack.height)
        if step.pushes and heights[0] - min(heights) > allowed:
            raise SeedSpentError(tuple(heights[1:]))
    if min(heights) <= SPARE_SEED_WORDS:
        raise OutOfRangeError("the seed is used up")
    words = stack.words()
    untouched = untouched_words(words, seeds)
    marks = []
    low = heights[-1]
    for step, before in zip(reversed(steps), reversed(heights[:-1]), strict=True):
        low = min(low, before)
        if step.pushes and step.timestep > 0:
            marks.append(min(len(words) - low + 2, len(words) - untouched))
    return EncodedTile(
        words=words[untouched:][::-1],
        seed_words=len(seeds) - untouched,
        marks=tuple(marks),
        heights=tuple(heights[1:]),
        draw=chain.draw,
        label=chain.label,
    )


def decode_tile(
    chain: TileChain, words: UInt32[Words, " words"], seed_words: int, timestep: int = 0
) -> Generator[Asked, Answer, Array]:
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
    stack = stack_of(words, seeds)
    for step in reversed(coding_steps(len(chain.levels), chain.preview, chain.phased)):
        yield from (step.pop if step.pushes else step.push)(chain, stack)
        if step.pushes and step.timestep == timestep > 0:
            posterior = yield from chain.posterior(timestep)
            return np.concatenate([posterior.mean[: chain.coded], chain.known_channels(0)])
    if not np.array_equal(stack.words(), seeds):
        raise ValueError("the seed did not come back")
    return chain.z[0]
