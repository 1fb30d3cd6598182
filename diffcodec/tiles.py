"""Tiles of images: their chains, and driving many of them side by side through a model."""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from diffcodec.chain import (
    Array,
    EncodedTile,
    OutOfRangeError,
    Posterior,
    Request,
    SeedSpentError,
    TileChain,
    decode_tile,
    encode_tile,
)
from diffcodec.color import from_domain, to_domain
from diffcodec.container import CHAIN_CODERS, Box, Container, Tile
from diffcodec.descent import Descent, encode_below_preview
from diffcodec.errors import CorruptError, ModelMismatchError
from diffcodec.images import pixel_crc
from diffcodec.limits import Limits
from diffcodec.model_file import ModelInfo, find_model_path, model_path, read_model_info
from diffcodec.models import Model, is_posterior, load_model

Result = TypeVar("Result")
Job = Generator[Request, Posterior, Result]

# Words of the seed that make another code worth trying, of all words of a tile; and those that
# leave no doubt of it, in bits per sample and at least.
EMPTY_STACK_SHARE = 0.01
EMPTY_STACK_BITS, EMPTY_STACK_WORDS = 0.1, 256
BATCH_PIXELS = 1 << 18  # of the tiles that go through the network together

# What coding takes at most, measured (tests/test_limits.py): for a batch in the network, and bytes
# per pixel of the image, more where all tiles go down together.
BATCH_BYTES = 1 << 30
PIXEL_BYTES, LAYERED_PIXEL_BYTES = 16, 64


@dataclass(frozen=True)
class Part:
    """A tile that the chain codes: by which plan, its number in the image, and where it lies.

    ``draw`` is which seed and dither of the shared randomness its chain takes.
    """

    plan: str
    index: int
    box: Box
    draw: int = 0

    @property
    def pixels(self) -> int:
        """Area of the tile."""
        return self.box.width * self.box.height


def coded_channels(mode: str, color: str) -> int:
    """How many channels the chain codes: 3, 1 for grey (its chroma is known), 0 for none."""
    if mode == "RGB":
        return 3
    return 1 if mode == "L" and color == "ycocg" else 0


def make_chain(model: Model, mode: str, part: Part) -> TileChain:
    """The chain of a tile.

    Raises:
        CorruptError: if there is none of this plan for the mode.
    """
    coded = coded_channels(mode, model.color)
    if part.plan not in model.plans or not coded:
        raise CorruptError(f"a tile of a {mode} image is coded by {part.plan!r}, which cannot be")
    shape = (part.box.height, part.box.width)
    plan = model.plans[part.plan]
    return TileChain(plan, model.domain, part.index, coded, shape, draw=part.draw)


def crop(source: Image.Image, box: Box) -> Image.Image:
    """A tile's part of an image."""
    return source.crop((box.left, box.top, box.left + box.width, box.top + box.height))


def integers(source: Image.Image, box: Box, color: str) -> NDArray[np.int16]:
    """A tile in the colour domain, [3, height, width]."""
    rgb = np.asarray(crop(source, box).convert("RGB")).transpose(2, 0, 1).astype(np.int16)
    return to_domain(rgb, color)


def paste(image: Image.Image, box: Box, x: NDArray[np.float64], color: str) -> None:
    """Put a tile of the colour domain, [3, height, width], in its place, rounded and clipped."""
    rgb = from_domain(np.rint(x).astype(np.int32), color)
    pixels = np.clip(rgb, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    part = Image.fromarray(pixels if image.mode == "RGB" else pixels[:, :, 0])
    image.paste(part, (box.left, box.top))


def other_probabilities(float_arithmetic: bool) -> str:
    """Why a whole file does not decode."""
    text = (
        "the file is whole, so this machine computed other probabilities than the one that "
        "encoded it"
    )
    if float_arithmetic:
        text += (
            "; it was made with float arithmetic, which is not the same on every machine: encode "
            "the image with --arithmetic integer, the default, to decode it anywhere"
        )
    return text


def check_pixels(image: Image.Image, container: Container) -> None:
    """Hold an image against the checksum of its file.

    Raises:
        CorruptError: if it is another.
    """
    if pixel_crc(image) != container.pixel_crc:
        raise CorruptError(
            "the pixels do not match the file's checksum: "
            + other_probabilities(container.float_arithmetic)
        )


@contextmanager
def encoding(model: Model) -> Iterator[None]:
    """A ValueError of the chain is the model's."""
    try:
        yield
    except ValueError as e:
        raise ModelMismatchError(
            f"model {model.info.name} cannot code this image ({e}); give another model"
        ) from e


@contextmanager
def decoding(model: Model, index: int) -> Iterator[None]:
    """A ValueError of the chain is the file's."""
    try:
        yield
    except (ValueError, OutOfRangeError) as e:
        raise CorruptError(
            f"tile {index} does not decode ({e}): "
            + other_probabilities(model.arithmetic == "float")
        ) from e


def chain_parts(container: Container) -> list[Part]:
    """The tiles that are chains."""
    pairs = zip(container.boxes(), container.tiles, strict=True)
    return [
        Part(tile.coder, index, box, tile.draw)
        for index, (box, tile) in enumerate(pairs)
        if tile.coder in CHAIN_CODERS
    ]


def check_memory(container: Container, limits: Limits, pictures: int = 0) -> None:
    """Hold what decoding a file is expected to take against the limit of memory.

    Args:
        container: the file's.
        limits: to hold it against.
        pictures: how many more than the decoded one are held at a time.

    Raises:
        LimitError: if it is more.
    """
    uses_model, layered = container.uses_model, container.layers is not None
    size = expected_bytes(container.width, container.height, uses_model, layered)
    limits.check_memory(size + 3 * container.width * container.height * pictures)


def expected_bytes(width: int, height: int, uses_model: bool, layered: bool) -> int:
    """Memory that coding an image of such sides takes at most, the program itself left out."""
    per_pixel = LAYERED_PIXEL_BYTES if layered else PIXEL_BYTES
    return per_pixel * width * height + (BATCH_BYTES if uses_model else 0)


def find_model(container: Container, given: str | Model | None) -> Model:
    """The model that the file needs.

    Raises:
        ModelMismatchError: if it is not at hand.
        CorruptError: if it lacks a plan of the file, or timesteps.
    """
    arithmetic = "float" if container.float_arithmetic else "integer"
    if isinstance(given, Model):
        _check_model(given.info, container)
        model = given
    else:
        path = find_model_path(container.model) if given is None else model_path(given)
        _check_model(read_model_info(path)[0], container)
        model = load_model(path, arithmetic)
    if model.arithmetic != arithmetic:
        raise ModelMismatchError(
            f"the file was made with {arithmetic} arithmetic, the model given is loaded as "
            f"{model.arithmetic!r}; load it as {arithmetic!r}"
        )
    plans = {tile.coder for tile in container.tiles if tile.coder in CHAIN_CODERS}
    for plan in plans | ({container.layers.plan} if container.layers else set()):
        if plan not in model.plans:
            raise CorruptError(f"a tile is coded by {plan!r}, which its model does not have")
    for tile in container.tiles:
        if tile.preview and tile.preview > len(model.plans[tile.coder].levels):
            levels = len(model.plans[tile.coder].levels)
            raise CorruptError(f"a preview at timestep {tile.preview}, of {levels}")
    if container.layers:
        stops, levels = container.layers.stops, len(model.plans[container.layers.plan].levels)
        if max(stops) > levels:
            raise CorruptError(f"layers that reach {stops}, of {levels} timesteps")
    return model


def _check_model(info: ModelInfo, container: Container) -> None:
    if info.id != container.model:
        raise ModelMismatchError(
            f"the file was made with model {container.model.hex()}, the one given is "
            f"{info.name} {info.id.hex()}; give the model that it was encoded with"
        )


def encode_job(model: Model, chain: TileChain, x: Array) -> Job[EncodedTile | None]:
    """The shortest code of a tile by a chain, or None where it has none.

    Args:
        model: of the chain.
        chain: of the tile.
        x: integers of the colour domain, [3, height, width].
    """
    allowed = max(EMPTY_STACK_BITS * x.size / 32, EMPTY_STACK_WORDS)
    coded = None
    try:
        with encoding(model):
            coded = yield from encode_tile(chain, x, math.inf if chain.preview else allowed)
        heights = coded.heights
    except OutOfRangeError:
        return None
    except SeedSpentError as e:
        heights = e.heights
    if coded and (chain.preview or coded.seed_words <= EMPTY_STACK_SHARE * len(coded.words)):
        return coded
    try:
        with encoding(model):
            other = yield from encode_below_preview(chain, x, heights)
    except OutOfRangeError:
        return coded
    return min(coded, other, key=lambda tile: tile.size) if coded else other


def decode_job(
    model: Model,
    chain: TileChain,
    tile: Tile,
    timestep: int,
    how: str = "mean",
    seed: int = 0,
) -> Job[NDArray[np.float64]]:
    """What a chain tile shows at a timestep, in the colour domain, [3, height, width]."""
    words = np.frombuffer(tile.payload, "<u4") if len(tile.payload) % 4 == 0 else np.zeros(0)
    with decoding(model, chain.tile):
        if tile.preview:
            descent = Descent(chain)
            yield from descent.decode_layer(tile.preview_payload, tile.preview, timestep)
            if timestep >= tile.preview:
                return (yield from descent.continued(how, seed))
            chain = descent.below()
        if words.size == 0 or words[0] == 0:
            raise ValueError("no stack of words")
        x = yield from decode_tile(chain, words.astype(np.uint32), tile.seed_words, timestep)
        if timestep and how != "mean":
            x = yield from Descent(chain, timestep).continued(how, seed)
    return x


def progress_bar(evaluations: int, progress: bool) -> "tqdm[Any]":
    """Of so many pixels through the network; seen on a terminal, if it takes over two seconds."""
    return tqdm(
        total=evaluations, unit="px", unit_scale=True, delay=2, disable=None if progress else True
    )


def run(
    jobs: Iterable[Job[Result]], parts: Sequence[Part], model: Model, bar: "tqdm[Any]"
) -> Iterator[Result]:
    """Drive the coroutines of many tiles, in groups of bounded size, results in order."""
    group: list[tuple[Job[Result], str]] = []
    held = 0
    for job, part in zip(jobs, parts, strict=True):
        if group and held + part.pixels > BATCH_PIXELS:
            yield from _run_group(group, model, bar)
            group, held = [], 0
        group.append((job, part.plan))
        held += part.pixels
    yield from _run_group(group, model, bar)


def _run_group(
    jobs: Sequence[tuple[Job[Result], str]],
    model: Model,
    bar: "tqdm[Any]",
) -> list[Result]:
    """Drive coroutines side by side: requests of one plan, timestep and shape share a batch."""
    results: dict[int, Result] = {}
    waiting: dict[int, Request] = {}

    def advance(i: int, answer: Posterior | None) -> None:
        job = jobs[i][0]
        try:
            if answer is None:
                waiting[i] = next(job)
            elif is_posterior(*answer):
                waiting[i] = job.send(answer)
            else:  # the job knows what that means for its file
                job.throw(ValueError("a mean or variance of the model is out of range"))
        except StopIteration as stop:
            results[i] = stop.value

    for i in range(len(jobs)):
        advance(i, None)
    while waiting:
        batches: dict[tuple[str, int, tuple[int, ...]], list[int]] = {}
        for i, request in waiting.items():
            batches.setdefault((jobs[i][1], request.timestep, request.z.shape), []).append(i)
        for (plan, timestep, _), members in batches.items():
            z = np.stack([waiting.pop(i).z for i in members])
            mean, variance = model.posterior_x(z, model.plans[plan].levels[timestep - 1])
            bar.update(z.shape[0] * z.shape[2] * z.shape[3])
            for k, i in enumerate(members):
                advance(i, Posterior(mean[k], variance[k]))
    return [results[i] for i in range(len(jobs))]
