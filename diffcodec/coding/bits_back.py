"""Bits-back coding of a tile: the chain's steps on a stack, upward to encode, downward to decode.

Why decoding works: push and pop of an ANS coder (Duda 2013) are inverse to each other. The decoder
does the inverse of each step in reverse order, so it retraces the encoder's stacks down to the seed
under the first of them: the bits that pops took come back.
"""

import math
from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt32

from diffcodec.arrays import Array, Words
from diffcodec.coding import randomness
from diffcodec.coding.ans import Stack
from diffcodec.coding.chain import Answer, Asked, TileChain
from diffcodec.coding.steps import OutOfRangeError, coding_steps
from diffcodec.container.parts import LEAST_PREVIEW

WORD_BYTES = 4
STATE_WORDS = 2  # on top of a stack, which every symbol changes
Checksum = Callable[[Array], int]  # of the integers of an image, in 32 bits


class SeedSpentError(Exception):
    """More of the seed is used up than the caller allows.

    Attributes:
        heights: of the stack in words after each step so far.
    """

    def __init__(self, heights: tuple[int, ...]):
        super().__init__("the stack has run empty")
        self.heights = heights


class SeedAllowance(NamedTuple):
    """Words of the seed that a tile may use up before it is given up.

    Attributes:
        in_all: by all steps.
        by_lowest: by the pop of z_2, of which only the lowest preview relieves.
    """

    in_all: float
    by_lowest: float


UNLIMITED = SeedAllowance(math.inf, math.inf)


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
        return len(self.payload) + len(self.preview_payload) + told

    @property
    def payload(self) -> bytes:
        """The words as a file has them."""
        return payload_of(self.words)


def payload_of(words: UInt32[Words, " words"]) -> bytes:
    """Words in bytes, each the lowest first; the first word without its zeros on top."""
    data = words.astype("<u4").tobytes()
    return data[:WORD_BYTES].rstrip(b"\0") + data[WORD_BYTES:]


def words_of(payload: bytes) -> UInt32[Words, " words"]:
    """The words of a payload.

    Raises:
        ValueError: the first one has zeros on top.
    """
    left_out = -len(payload) % WORD_BYTES
    first = WORD_BYTES - left_out
    if payload[first - 1 : first] == b"\0":
        raise ValueError("the first word has a zero byte on top")
    data = payload[:first] + bytes(left_out) + payload[first:]
    return np.frombuffer(data, "<u4").astype(np.uint32)


def no_checksum(_x: Array) -> int:
    """That of images which are checked elsewhere."""
    return 0


def seed(tile: int, count: int, draw: int = 0, checksum: int = 0) -> UInt32[Words, " {count}"]:
    """The words under a tile's stack, the top last; a deeper seed only adds words below.

    The decoder gets the top one back in any case, so that it carries a checksum for nothing.
    """
    words = randomness.random_words(randomness.SEED_WORDS, tile, count, draw)
    top = int(words[0] | 1) ^ checksum
    words[0] = top or 1  # a stack has no zero on top
    return words[::-1]


def stack_of(words: UInt32[Words, " words"], tile: int, draw: int = 0) -> Stack:
    """A decoder's: the words of a payload, and below them the second one of the seed.

    It is that one which the encoder's first push puts down unchanged; if pops come before, the
    payload has all that the decoder takes.

    Raises:
        ValueError: if these are not what lay on a stack.
    """
    if not words.size or words[0] == 0:
        raise ValueError("no stack of words")
    return Stack(np.concatenate([seed(tile, 2, draw)[:1], words[::-1]]))


def untouched_words(stack: Stack, seeds: UInt32[Words, " seeds"], lowest: int) -> int:
    """How many words of the seed a payload leaves out.

    Args:
        stack: of the encoder at its end.
        seeds: what was under it at its start.
        lowest: its least height meanwhile, in words.

    Raises:
        OutOfRangeError: if the seed does not reach.
    """
    words, start = stack.words(), len(seeds)
    is_kept = lowest == start and words[start - 2] == seeds[-2]
    untouched = start - 1 if is_kept else lowest - STATE_WORDS
    if untouched <= 0:
        raise OutOfRangeError("the seed is used up")
    return untouched


def check_seed(stack: Stack, most: int, tile: int, draw: int = 0, checksum: int = 0) -> None:
    """Hold what a decoder is left with against the seed, of which a tile may use so many words.

    Raises:
        ValueError: it is other.
    """
    words = stack.words()
    count = len(words) - 1
    if not 1 <= count <= most:
        raise ValueError(f"{count} words of the seed, expected 1 to {most}")
    expected = [seed(tile, 2, draw)[:1], seed(tile, count, draw, checksum)]
    if not np.array_equal(words, np.concatenate(expected)):
        raise ValueError("neither the seed nor the checksum in it came back")


def most_seed_words(chain: TileChain) -> int:
    """Words of the shared seed that a tile may use; a file that claims more is not valid."""
    return math.prod(chain.shape) // 4 + 64


def push_image(
    chain: TileChain, x: Float64[Array, "3 height width"], checksum: int = 0
) -> Generator[Asked, Answer, UInt32[Words, " words"]]:
    """Begin to code a tile: the stack with the image on it, which is the same below a preview.

    A coroutine that yields what it asks of the model; arguments and errors as of
    :func:`encode_tile`.
    """
    chain.set_image(x)
    stack = Stack(seed(chain.tile, most_seed_words(chain), chain.draw, checksum))
    yield from coding_steps(len(chain.levels), chain.preview, chain.phased)[0].push(chain, stack)
    return stack.words()


def encode_tile(
    chain: TileChain,
    x: Float64[Array, "3 height width"],
    allowance: SeedAllowance = UNLIMITED,
    checksum: int = 0,
    begun: UInt32[Words, " words"] | None = None,
) -> Generator[Asked, Answer, EncodedTile]:
    """Code one tile; a coroutine that yields what it asks of the model.

    Args:
        chain: of the tile's plan and shape.
        x: integers of the colour domain.
        allowance: words of the seed that may be used up.
        checksum: 32 bits, for the decoder to check.
        begun: what :func:`push_image` gave of the same, if it was asked before.

    Raises:
        OutOfRangeError: if the chain has no code for the tile.
        SeedSpentError: as soon as more words of the seed are used up.
    """
    seeds = seed(chain.tile, most_seed_words(chain), chain.draw, checksum)
    steps = coding_steps(len(chain.levels), chain.preview, chain.phased)
    if begun is None:
        begun = yield from push_image(chain, x, checksum)
    else:
        chain.z[1] = chain.quantised(x)
    stack = Stack(begun)
    heights = [len(seeds), stack.height]
    for step in steps[1:]:
        yield from (step.push if step.pushes else step.pop)(chain, stack)
        heights.append(stack.height)
        is_lowest = step.timestep == LEAST_PREVIEW and not step.pushes
        most = allowance.by_lowest if is_lowest else allowance.in_all
        if (is_lowest or step.pushes) and heights[0] - min(heights) > most:
            raise SeedSpentError(tuple(heights[1:]))
    untouched = untouched_words(stack, seeds, min(heights))
    words = stack.words()
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
    chain: TileChain,
    words: UInt32[Words, " words"],
    timestep: int = 0,
    checksum: Checksum = no_checksum,
) -> Generator[Asked, Answer, Array]:
    """Decode one tile down to a timestep; a coroutine like :func:`encode_tile`.

    Returns:
        At timestep 0 the exact integers of the colour domain; else the posterior mean of x
        given z_t. [3, height, width]

    Raises:
        ValueError: if the words cannot be what the encoder wrote.
        OutOfRangeError: likewise.
    """
    stack = stack_of(words, chain.tile, chain.draw)
    for step in reversed(coding_steps(len(chain.levels), chain.preview, chain.phased)):
        yield from (step.pop if step.pushes else step.push)(chain, stack)
        if step.pushes and step.timestep == timestep > 0:
            posterior = yield from chain.posterior(timestep)
            return np.concatenate([posterior.mean[: chain.coded], chain.known_channels(0)])
    x: Array = chain.z[0]
    check_seed(stack, most_seed_words(chain), chain.tile, chain.draw, checksum(x))
    return x
