"""Files with previews: all tiles of an image go down together: every beginning is a picture.

A layer holds the bits of all tiles for some timesteps. What follows the layers in an exact file are
tiles as in any other, by the chain below the last preview or by a fallback coder.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffcodec.chain import Array, EncodedTile, OutOfRangeError, encode_tile
from diffcodec.container import CHAIN_CODERS, Container, FileReader, Layers, Tile, pack, tile_grid
from diffcodec.descent import Descent
from diffcodec.errors import CorruptError, FormatError, UnsupportedError
from diffcodec.fallback import decode_fallback, encode_fallback
from diffcodec.images import apply_metadata, get_metadata, pixel_crc, psnr
from diffcodec.models import Model
from diffcodec.plan import Plan
from diffcodec.relative_entropy import Bits
from diffcodec.tiles import (
    Job,
    Part,
    check_pixels,
    coded_channels,
    crop,
    decode_job,
    decoding,
    encoding,
    integers,
    make_chain,
    paste,
    progress_bar,
    run,
)

LAYER_BYTES = 100  # of a layer at least: its length and CRC cost 6
PREVIEW_SIGMA = 9.0  # grey levels: where previews end and bits-back coding is cheaper
LEAST_PREVIEW = 2  # timestep: below z_1 there is no chain left


class Target(NamedTuple):
    """Where a file is to end, at most one of the first three; see :func:`diffcodec.encode`."""

    timestep: int | None = None
    bpp: float | None = None
    psnr: float | None = None
    exact: bool = False
    previews: Sequence[int] | None = None


def last_preview(plan: Plan) -> int:
    """The timestep at which the previews of an exact file end by default."""
    distance = [abs(math.log(sigma / PREVIEW_SIGMA)) for sigma in plan.levels]
    return max(LEAST_PREVIEW, 1 + distance.index(min(distance)))


class Previews:
    """All tiles of an image on their way down."""

    def __init__(
        self,
        model: Model,
        mode: str,
        size: tuple[int, int],
        plan: str,
        preview: int,
        bar: "tqdm[Any]",
        encodes: bool = False,
    ):
        self.model, self.mode, self.size, self.bar = model, mode, size, bar
        self.encodes = encodes
        boxes = tile_grid(*size)
        self.parts = [Part(plan, index, box) for index, box in enumerate(boxes)]
        self.preview = preview
        self.timestep = len(model.plans[plan].levels) + 1  # of all tiles
        self._descents: list[Descent] = []

    def descent(self, index: int) -> Descent:
        """Of a tile; begun when it is its turn, as a file may claim any number of them."""
        if index == len(self._descents):
            part = self.parts[index]
            self._descents.append(Descent(make_chain(self.model, self.mode, part, self.preview)))
        return self._descents[index]

    def encode_step(self, source: Image.Image) -> list[Bits]:
        """One timestep down: its bits by tile."""

        def job(part: Part, descent: Descent) -> Job[Bits]:
            x = integers(source, part.box, self.model.color).astype(np.float64)
            with encoding(self.model):
                return (yield from descent.encode_step(x))

        bits = list(self._run(job(*pair) for pair in self._pairs()))
        self.timestep -= 1
        return bits

    def decode_layer(self, payloads: Sequence[bytes], end: int, timestep: int) -> None:
        """Down to the end of a layer, or to a timestep above it."""

        def job(part: Part, descent: Descent) -> Job[None]:
            with decoding(self.model, part.index):
                yield from descent.decode_layer(payloads[part.index], end, timestep)

        list(self._run(job(*pair) for pair in self._pairs()))
        self.timestep = max(end, timestep)

    def show(self, how: str = "mean", seed: int = 0) -> Image.Image:
        """The image at the present timestep."""

        def job(part: Part, descent: Descent) -> Job[Array]:
            with encoding(self.model) if self.encodes else decoding(self.model, part.index):
                if how == "mean":
                    return (yield from descent.mean())
                chain = make_chain(self.model, self.mode, part)
                chain.z[descent.timestep] = descent.z
                return (yield from Descent(chain, descent.timestep).continued(how, seed))

        return self.put_together(self._run(job(*pair) for pair in self._pairs()))

    def encode_rest(self, source: Image.Image) -> Iterator[EncodedTile | None]:
        """The exact tiles by the chain below z_t, or None where it has no code."""

        def job(part: Part, descent: Descent) -> Job[EncodedTile | None]:
            x = integers(source, part.box, self.model.color).astype(np.float64)
            descent.chain.z[descent.timestep] = descent.z
            try:
                with encoding(self.model):
                    return (yield from encode_tile(descent.chain, x))
            except OutOfRangeError:
                return None

        return self._run(job(*pair) for pair in self._pairs())

    def decode_rest(self, tiles: Sequence[Tile], timestep: int, how: str, seed: int) -> Image.Image:
        """The image at a timestep below z_t."""

        def job(part: Part, descent: Descent) -> Job[Array | None]:
            tile = tiles[part.index]
            if tile.coder not in CHAIN_CODERS:
                return None
            if tile.coder != part.plan:
                raise CorruptError(f"tile {part.index} is coded by {tile.coder!r} below previews")
            descent.chain.z[descent.timestep] = descent.z
            return (yield from decode_job(self.model, descent.chain, tile, timestep, how, seed))

        shown = self._run(job(*pair) for pair in self._pairs())
        image = self.put_together(shown)
        for part, tile in zip(self.parts, tiles, strict=True):
            if tile.coder not in CHAIN_CODERS:
                size = (part.box.width, part.box.height)
                decoded = decode_fallback(tile.coder, tile.payload, self.mode, size)
                image.paste(decoded, (part.box.left, part.box.top))
        return image

    def put_together(self, shown: Iterator[Array | None]) -> Image.Image:
        """An image of tiles in the colour domain."""
        image = Image.new(self.mode, self.size)
        for part, x in zip(self.parts, shown, strict=True):
            if x is not None:
                paste(image, part.box, x, self.model.color)
        return image

    def _pairs(self) -> Iterator[tuple[Part, Descent]]:
        return ((part, self.descent(part.index)) for part in self.parts)

    def _run(self, jobs: Iterator[Job[Any]]) -> Iterator[Any]:
        return run(jobs, self.parts, self.model, self.bar)


# --- encoding -------------------------------------------------------------------------------------


def encode_layers(
    source: Image.Image, model: Model, effort: str, target: Target, progress: bool = False
) -> bytes:
    """A file with previews. See :func:`diffcodec.encode`."""
    if not coded_channels(source.mode, model.color):
        raise UnsupportedError(
            f"previews of a {source.mode} image: expected "
            f"{'RGB or L' if model.color == 'ycocg' else 'RGB'}; convert it, or code it without "
            "previews"
        )
    plan = model.plans[effort]
    end = _check_target(target, plan)
    preview = end if target.exact else 0
    levels = len(plan.levels)
    with progress_bar((levels + target.exact) * source.width * source.height, progress) as bar:
        previews = Previews(model, source.mode, source.size, effort, preview, bar, encodes=True)
        steps: list[list[Bits]] = []  # by timestep from T down, then by tile
        shown = source

        def container(stops: tuple[int, ...], tiles: Sequence[Tile] = ()) -> Container:
            layers = Layers(effort, stops, _payloads(steps, stops, levels))
            return Container(
                *(source.mode, *source.size, model.info.id, pixel_crc(shown), False),
                *(get_metadata(source), tuple(tiles)),
                float_arithmetic=model.arithmetic == "float",
                layers=layers,
            )

        for t in range(levels, end - 1, -1):
            steps.append(previews.encode_step(source))
            if target.bpp is not None:
                size = len(pack(container(_stops(steps, levels, target.previews))))
                if 8 * size > target.bpp * source.width * source.height:
                    steps.pop()
                    break
            if not target.exact:
                shown = previews.show()
                if target.psnr is not None and psnr(shown, source) >= target.psnr:
                    break
            if t == end and target.psnr is not None:
                raise UnsupportedError(
                    f"{target.psnr} dB: timestep {end}, the last, has {psnr(shown, source):.2f}; "
                    "code the image without loss"
                )
        if not steps:
            raise UnsupportedError(
                f"{target.bpp} bits per pixel: the first timestep alone takes "
                f"{8 * size / (source.width * source.height):.4f}; give more"
            )
        stops = _stops(steps, levels, target.previews)
        if not target.exact:
            return pack(container(stops))
        tiles = []
        for part, chain in zip(previews.parts, previews.encode_rest(source), strict=True):
            tile = Tile(*encode_fallback(crop(source, part.box)))
            if chain is not None and 4 * len(chain.words) < len(tile.payload):
                tile = Tile(effort, chain.words.astype("<u4").tobytes(), chain.seed_words)
            tiles.append(tile)
        return pack(container((*stops, 0), tiles))


def _check_target(target: Target, plan: Plan) -> int:
    """The last timestep that may be needed.

    Raises:
        UnsupportedError: if the target contradicts itself or the plan.
    """
    goals = [goal for goal in target[:3] if goal is not None]
    if len(goals) > 1 or (target.exact and target.timestep is None and goals):
        raise UnsupportedError(
            "one of a timestep, a rate and a quality can be given, of a progressive file the "
            "timestep alone"
        )
    if not goals and not target.exact:
        raise UnsupportedError("previews need a timestep, a rate or a quality, or progressive")
    levels, least = len(plan.levels), LEAST_PREVIEW if target.exact else 1
    end = least if target.timestep is None else target.timestep
    if target.exact and target.timestep is None:
        end = min(target.previews) if target.previews else last_preview(plan)
    if not all(goal > 0 for goal in goals):  # also false for NaN
        raise UnsupportedError(f"{goals[0]}: expected a positive number")
    for t in (end, *(target.previews or ())):
        if not least <= t <= levels:
            raise UnsupportedError(
                f"timestep {t}: this plan has previews at timesteps {least} to {levels}"
            )
    return end


def _stops(
    steps: Sequence[Sequence[Bits]], levels: int, previews: Sequence[int] | None
) -> tuple[int, ...]:
    """The timesteps at which layers end: those given, or such that none is too small."""
    last = levels + 1 - len(steps)
    if previews is not None:
        return tuple(sorted({last, *(t for t in previews if t > last)}, reverse=True))
    stops, held = [], 0
    for t, step in zip(range(levels, 0, -1), steps, strict=False):
        held += sum(map(len, step))
        if held >= 8 * LAYER_BYTES:
            stops.append(t)
            held = 0
    return (*stops[: -1 if stops else None], last)


def _payloads(
    steps: Sequence[Sequence[Bits]], stops: Sequence[int], levels: int
) -> tuple[tuple[bytes, ...], ...]:
    """By layer and tile."""
    payloads, top = [], levels
    for stop in stops:
        if stop == 0:
            break
        layer = steps[levels - top : levels - stop + 1]
        payloads.append(
            tuple(np.packbits(np.concatenate(bits)).tobytes() for bits in zip(*layer, strict=True))
        )
        top = stop - 1
    return tuple(payloads)


# --- decoding -------------------------------------------------------------------------------------


def decode_layers(
    reader: FileReader,
    model: Model,
    timestep: int | None,
    progress: bool,
    allow_partial: bool,
    how: str,
    seed: int,
) -> tuple[int, Image.Image]:
    """The timestep that was reached, and the image; reads no more than it takes.

    The first layer must have been read: until then no claim of the header is to be trusted. See
    :func:`diffcodec.codec.decode`.
    """
    layers = _layers(reader)
    finest, levels = layers.stops[-1], len(model.plans[layers.plan].levels)
    wanted = finest if timestep is None else timestep
    if not finest <= wanted <= levels:
        raise UnsupportedError(
            f"timestep {wanted}: this file has timesteps {finest} (finest) to {levels} (coarsest)"
        )
    pixels = reader.container.width * reader.container.height
    with progress_bar((levels + 2 - wanted) * pixels, progress) as bar:
        previews = _start(reader, model, bar)

        def can(read: Callable[[], object]) -> bool:
            try:
                read()
            except FormatError:
                if not allow_partial:
                    raise
                return False
            return True

        _decode_layer(reader, previews, wanted)
        while previews.timestep > wanted and reader.more_layers:
            if not can(reader.read_layer):
                return previews.timestep, _shown(reader, previews, how, seed)
            _decode_layer(reader, previews, wanted)
        to_the_end = wanted == finest or previews.timestep > wanted
        if to_the_end and not can(reader.read_tiles):
            return previews.timestep, _shown(reader, previews, how, seed)
        if previews.timestep == wanted:
            return wanted, _shown(reader, previews, how, seed)
        return wanted, _exact(reader, previews, wanted, how, seed)


def iter_layers(
    reader: FileReader, model: Model, how: str, seed: int
) -> Iterator[tuple[int, Image.Image]]:
    """The image at each layer as it comes, the first of which has been read.

    See :func:`diffcodec.codec.iter_decode`.
    """
    with progress_bar(0, False) as bar:
        previews = _start(reader, model, bar)
        while True:
            _decode_layer(reader, previews, 0)
            yield previews.timestep, _shown(reader, previews, how, seed)
            if not reader.more_layers:
                break
            reader.read_layer()
        reader.read_tiles()
        if reader.container.tiles:
            yield 0, _exact(reader, previews, 0, how, seed)


def _layers(reader: FileReader) -> Layers:
    layers = reader.container.layers
    assert layers is not None
    return layers


def _start(reader: FileReader, model: Model, bar: "tqdm[Any]") -> Previews:
    layers, container = _layers(reader), reader.container
    levels = len(model.plans[layers.plan].levels)
    if max(layers.stops) > levels or container.whole:
        raise CorruptError(f"layers that reach {layers.stops}, of {levels} timesteps")
    preview = layers.timesteps[-1] if layers.is_exact else 0
    if layers.is_exact and preview < LEAST_PREVIEW:
        raise CorruptError(f"an exact image below timestep {preview}")
    size = (container.width, container.height)
    return Previews(model, container.mode, size, layers.plan, preview, bar)


def _decode_layer(reader: FileReader, previews: Previews, wanted: int) -> None:
    """Use the layer that was read last."""
    layers = _layers(reader)
    index = len(layers.payloads) - 1
    previews.decode_layer(layers.payloads[index], layers.timesteps[index], wanted)


def _shown(reader: FileReader, previews: Previews, how: str, seed: int) -> Image.Image:
    """What the layers show; at the end of a lossy file held against its checksum."""
    container = reader.container
    image = previews.show()
    if previews.timestep == _layers(reader).stops[-1]:
        check_pixels(image, container)
    if how != "mean":
        image = previews.show(how, seed)
    apply_metadata(image, container.metadata)
    return image


def _exact(
    reader: FileReader, previews: Previews, timestep: int, how: str, seed: int
) -> Image.Image:
    container = reader.container
    image = previews.decode_rest(container.tiles, timestep, how, seed)
    if timestep == 0:
        check_pixels(image, container)
    apply_metadata(image, container.metadata)
    return image
