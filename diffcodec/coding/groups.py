"""Bits-back coding of a group: the chains of several images of one size on one stack.

Step by step: what is pushed of all images comes before what is popped of any. So the stack is high
when its bits are first popped, and a group takes little of the seed or nothing, where single images
take some each.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float64, UInt32

from diffcodec.arrays import Array, Words
from diffcodec.coding.ans import Stack
from diffcodec.coding.bits_back import (
    check_seed,
    most_seed_words,
    seed,
    stack_of,
    untouched_words,
)
from diffcodec.coding.chain import Answer, Asked, Result, TileChain
from diffcodec.coding.steps import OutOfRangeError, Step, coding_steps

GroupJob = Generator[list[Asked], list[Answer], Result]  # its requests are of one kind


class NoCodeError(OutOfRangeError):
    """A chain has no code for its image: the others can do without it.

    Attributes:
        index: of the chain in its group.
    """

    def __init__(self, index: int):
        super().__init__(f"image {index} is out of range")
        self.index = index


class EncodedGroup(NamedTuple):
    """Words of a group in the decoder's order, and what lies around."""

    words: UInt32[Words, " words"]
    bits: list[int]  # what each image added to the stack


def encode_group(
    chains: Sequence[TileChain], images: Sequence[Float64[Array, "3 height width"]]
) -> GroupJob[EncodedGroup]:
    """Code images by a chain each, on one stack; a coroutine that yields what it asks of the model.

    Args:
        chains: of one plan and shape, without previews.
        images: integers of the colour domain.

    Raises:
        NoCodeError: if one of the chains has no code for its image.
        OutOfRangeError: if the seed does not reach.
    """
    seeds = seed(0, most_seed_words_of(chains), 0)
    stack = Stack(seeds)
    bits = [0] * len(chains)
    for chain, x in zip(chains, images, strict=True):
        chain.set_image(x)
    lowest = stack.height
    for step in _steps(chains):
        yield from (_push if step.pushes else _pop)(step, chains, stack, bits)
        lowest = min(lowest, stack.height)
    untouched = untouched_words(stack, seeds, lowest)
    return EncodedGroup(stack.words()[untouched:][::-1], bits)


def decode_group(
    chains: Sequence[TileChain], words: UInt32[Words, " words"]
) -> GroupJob[list[Array]]:
    """The exact integers of the colour domain of each image; a coroutine like the encoder's.

    Raises:
        ValueError, NoCodeError: if the words cannot be what the encoder wrote.
    """
    stack = stack_of(words, tile=0)
    bits = [0] * len(chains)
    for step in reversed(_steps(chains)):
        yield from (_pop if step.pushes else _push)(step, chains, stack, bits)
    check_seed(stack, most_seed_words_of(chains), tile=0)
    return [chain.z[0] for chain in chains]


def most_seed_words_of(chains: Sequence[TileChain]) -> int:
    """Words of the shared seed that a group may use."""
    return sum(map(most_seed_words, chains))


def _steps(chains: Sequence[TileChain]) -> list[Step]:
    return coding_steps(len(chains[0].levels), phased=chains[0].phased)


def _push(step: Step, chains: Sequence[TileChain], stack: Stack, bits: list[int]) -> GroupJob[None]:
    """Push a variable of all chains, the last chain first, and forget it."""
    for part in reversed(step.parts(chains[0])):
        codecs = yield from _side_by_side(step.codec(chain, part) for chain in chains)
        for i in reversed(range(len(chains))):
            before = stack.bits
            if not codecs[i].push(stack, chains[i].z[step.timestep][part]):
                raise NoCodeError(i)
            bits[i] += stack.bits - before
    for chain in chains:
        del chain.z[step.timestep]


def _pop(step: Step, chains: Sequence[TileChain], stack: Stack, bits: list[int]) -> GroupJob[None]:
    """Pop a variable of all chains, the first chain first: the inverse of pushing it."""
    for chain in chains:
        step.prepare(chain)
    for part in step.parts(chains[0]):
        codecs = yield from _side_by_side(step.codec(chain, part) for chain in chains)
        for i, codec in enumerate(codecs):
            before = stack.bits
            chains[i].z[step.timestep][part] = codec.pop(stack)
            bits[i] += stack.bits - before


def _side_by_side(jobs: Iterable[Generator[Asked, Answer, Any]]) -> GroupJob[list[Any]]:
    """What coroutines come to that all ask the same of their own variables, if anything."""
    running = list(jobs)
    results: dict[int, Any] = {}
    answers: list[Answer] = [None] * len(running)
    while len(results) < len(running):
        requests = []
        for i, job in enumerate(running):
            try:
                requests.append(job.send(answers[i]))
            except StopIteration as stop:
                results[i] = stop.value
        if requests:
            answers = yield requests
    return [results[i] for i in range(len(running))]
