"""Known answers: whether this machine computes what every other machine computes.

A file decodes wherever these digests come out the same. Those of the parts that all models share
are written down here; a model's own are in its file, from the machine that exported it.
"""

import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from diffcodec.arrays import Array
from diffcodec.coding import randomness
from diffcodec.coding.ans import Stack, lower_tail, truncated_gaussian
from diffcodec.coding.bits_back import decode_tile, encode_tile
from diffcodec.coding.chain import Answer, Asked, TileChain, drive
from diffcodec.coding.steps import OutOfRangeError
from diffcodec.container.parts import LOSSY_PLAN
from diffcodec.diffusion.color import to_domain
from diffcodec.diffusion.phases import PLANES
from diffcodec.diffusion.plan import Plan
from diffcodec.models.answering import answer
from diffcodec.networks import integer, integer_layers

if TYPE_CHECKING:
    from diffcodec.models.model import Model


HEIGHT, WIDTH = 20, 28  # of the image: no multiples of what the network takes
DIGEST_DIGITS = 16
NO_CODE = "no code"

SHARED_ANSWERS = {
    "randomness": "7a13ef9f4dae9b60",
    "tables": "ff1824e8e6ac2e3f",
    "coder": "d4cf8ae6245790c8",
}


def environment() -> dict[str, str]:
    """What may make a machine compute differently: versions, processor, instruction sets."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scipy", "constriction")},
        "machine": f"{platform.machine()}, {platform.system()}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def differing(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Names of the answers that are not as expected."""
    return [name for name, answer in expected.items() if found.get(name) != answer]


def shared_answers() -> dict[str, str]:
    """Digests of the parts that all models share, to hold against ``SHARED_ANSWERS``."""
    return {
        "randomness": _digest(
            randomness.random_words(randomness.SEED_WORDS, 3, 1001, level=2),
            randomness.dither(1, (3, HEIGHT, WIDTH), (2, 3, 4)),
            randomness.approximate_normals(1, 2, (HEIGHT, WIDTH)),
        ),
        "tables": _digest(
            integer_layers.silu_table(),
            integer.variance_table(),
            *(table.numpy() for table in integer.phase_tables()),
            lower_tail(np.arange(0, 10, 1 / 1000)),
        ),
        "coder": _digest(_coded_words()),
    }


def model_answers(model: "Model") -> dict[str, str]:
    """Digests of a model's "network" at all its noise levels, and of an image coded by each plan.

    That is without loss: not by a plan for lossy files.

    Raises:
        ValueError: if a coded image does not come back.
    """
    x = to_domain(sample_image(), model.color).astype(np.float64)
    answers = {"network": _digest(*_network_outputs(model, x))}
    for name, plan in model.plans.items():
        if name == LOSSY_PLAN:
            continue

        def chain(plan: Plan = plan) -> TileChain:
            return TileChain(plan, model.domain, 0, 3, (HEIGHT, WIDTH), phased=model.phased)

        def posterior(request: Asked, plan: Plan = plan) -> Answer:
            return answer(model, plan, [request])[0]

        try:
            coded = drive(encode_tile(chain(), x), posterior)
        except OutOfRangeError:
            answers[name] = NO_CODE
            continue
        again = drive(decode_tile(chain(), coded.words), posterior)
        if not np.array_equal(again, x):
            raise ValueError(f"an image coded by the plan {name!r} does not come back")
        answers[name] = _digest(coded.words, np.array([coded.seed_words]))
    return answers


def sample_image() -> NDArray[np.int16]:
    """A gradient with an edge and some grain, RGB [3, height, width]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grain = randomness.random_words(randomness.SEED_WORDS, 0, 3 * HEIGHT * WIDTH) >> np.uint32(29)
    shades = np.stack([4 * x + 3 * y, 200 - 5 * y, 60 + 2 * x + 80 * (x > y)])
    pixels: NDArray[np.int16] = (shades + grain.reshape(shades.shape)).astype(np.int16)
    return pixels


def _network_outputs(model: "Model", x: Array) -> Iterator[Array]:
    for i, (sigma, which) in enumerate(model.asked()):
        z = (x + sigma * randomness.approximate_normals(0, i, x.shape))[None]
        if which is None:
            yield from model.posterior_x(z, sigma)
            if model.classes:
                yield from model.posterior_x(z, sigma, [i % model.classes])
            continue
        *fields, shared = model.begin_phases(which, z, sigma)
        yield from fields
        told = np.zeros((1, PLANES[which], HEIGHT, WIDTH))
        for number, each in enumerate(shared):
            yield model.phase_parameters(which, sigma, number, each, told).astype(np.float64)


def _coded_words() -> NDArray[np.uint32]:
    """The coder's words after pushes and pops under Gaussians and tables of many shapes."""
    stack = Stack(randomness.random_words(randomness.SEED_WORDS, 5, 4000) | np.uint32(1))
    count = 2000
    units = (randomness.random_words(randomness.SEED_WORDS, 6, 2 * count) / 2.0**32).reshape(2, -1)
    mean, std = 40 * units[0] - 20, 0.25 + 12 * units[1] * units[1]
    stack.push_gaussian(stack.pop_gaussian(mean, std, 16), mean + units[1], 1.5 * std, 2000)
    table = truncated_gaussian(4 * units[1], std, 4)
    stack.push_categorical(stack.pop_categorical(table), table[::-1])
    return stack.words()


def _digest(*arrays: NDArray[np.generic]) -> str:
    """The digest of the arrays' numbers in little-endian order."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return sha.hexdigest()[:DIGEST_DIGITS]
