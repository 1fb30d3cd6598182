"""Files with previews: all tiles of an image go down together: every beginning is a picture.

A layer holds the bits of all tiles for some timesteps. What follows the layers in an exact file are
tiles as in any other, by the chain below the last preview or by a fallback coder.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffcodec.arrays import Bits
from diffcodec.codec.batches import progress_bar
from diffcodec.codec.planes import check_pixels, coded_channels, crop
from diffcodec.codec.previews import Previews
from diffcodec.container.parts import LEAST_PREVIEW, Container, Layers, Tile
from diffcodec.container.reader import FileReader
from diffcodec.container.writer import pack
from diffcodec.diffusion.plan import Plan
from diffcodec.errors import FormatError, UnsupportedError
from diffcodec.images.fallback import encode_fallback
from diffcodec.images.metadata import apply_metadata, get_metadata
from diffcodec.images.modes import pixel_crc, psnr
from diffcodec.models.model import Model

LAYER_BYTES = 100  # of a layer at least, for each tile: a length and a CRC cost 6
PREVIEW_SIGMA = 9.0  # grey levels: where previews end and bits-back coding is cheaper
_Steps = list[list[Bits]]  # by timestep from T down, then by tile


class Target(NamedTuple):
    """Where a file or its previews are to end; see :func:`diffcodec.encode`.

    At most one of the first three.
    """

    timestep: int | None = None
    bpp: float | None = None
    psnr: float | None = None
    exact: bool = False
    previews: Sequence[int] | None = None


def last_preview(plan: Plan) -> int:
    """The timestep at which the previews of an exact file end by default."""
    distance = [abs(math.log(sigma / PREVIEW_SIGMA)) for sigma in plan.levels]
    return max(LEAST_PREVIEW, 1 + distance.index(min(distance)))


def encode_layers(
    source: Image.Image, model: Model, plan: str, target: Target, progress: bool = False
) -> bytes:
    """A file with previews. See :func:`diffcodec.encode`."""
    if not coded_channels(source.mode, model.color):
        raise UnsupportedError(
            f"previews of a {source.mode} image: expected "
            f"{'RGB or L' if model.color == 'ycocg' else 'RGB'}; convert it, or code it without "
            "previews"
        )
    chosen = model.plans[plan]
    end = _check_target(target, chosen)
    levels, pixels = len(chosen.levels), source.width * source.height
    with progress_bar((levels + target.exact) * pixels, progress) as bar:

        def start() -> Previews:
            return Previews(model, source.mode, source.size, plan, bar, encodes=True)

        def file(steps: _Steps, last: Image.Image, tiles: Sequence[Tile] | None = None) -> bytes:
            stops = _stops(steps, chosen, target.previews)
            layers = Layers(plan, stops, _payloads(steps, stops, levels))
            if tiles is not None:
                layers = replace(layers, stops=(*stops, 0))
            return pack(
                Container(
                    *(source.mode, *source.size, model.info.id, pixel_crc(last), False),
                    *(get_metadata(source), tuple(tiles or ())),
                    float_arithmetic=model.arithmetic == "float",
                    layers=layers,
                )
            )

        previews = start()
        steps, shown = _encode_steps(
            # The 0 that says that tiles follow is a byte too.
            *(previews, source, target, end, lambda steps: len(file(steps, source)) + target.exact)
        )
        if not target.exact:
            return file(steps, shown)
        stops = _stops(steps, chosen, target.previews)
        if previews.timestep < stops[-1]:  # one timestep too far
            previews = start()
            for payload, stop in zip(_payloads(steps, stops, levels), stops, strict=True):
                previews.decode_layer(payload, stop, 0)
        tiles = []
        for part, chain in zip(previews.parts, previews.encode_rest(source), strict=True):
            tile = Tile(*encode_fallback(crop(source, part.box)))
            if chain is not None and 4 * len(chain.words) < len(tile.payload):
                tile = Tile(plan, chain.words.astype("<u4").tobytes(), chain.seed_words)
            tiles.append(tile)
        return file(steps, source, tiles)


def _encode_steps(
    previews: Previews,
    source: Image.Image,
    target: Target,
    end: int,
    size: Callable[[_Steps], int],
) -> tuple[_Steps, Image.Image]:
    """Down to the target, or a timestep farther: the steps to keep, and what the last shows.

    The latter is the source where nobody asks for it.

    Args:
        previews: at their start.
        source: the image.
        target: of the file.
        end: the last timestep to try.
        size: of a file down to the end of steps, in bytes.

    Raises:
        UnsupportedError: if the target is out of reach.
    """
    pixels = source.width * source.height
    steps: _Steps = []
    shown, quality = source, 0.0
    while previews.timestep > end:
        steps.append(previews.encode_step(source))
        if target.bpp is not None and (bpp := 8 * size(steps) / pixels) > target.bpp:
            if len(steps) == 1:
                raise UnsupportedError(
                    f"{target.bpp} bits per pixel: the first timestep alone takes {bpp:.4f}; give "
                    "more"
                )
            return steps[:-1], shown
        if target.psnr is not None:
            shown = previews.show()
            quality = psnr(shown, source)
            if quality >= target.psnr:
                return steps, shown
        elif not target.exact and (target.bpp is not None or previews.timestep == end):
            shown = previews.show()
    if target.psnr is not None:
        raise UnsupportedError(
            f"{target.psnr} dB: timestep {end}, the last, has {quality:.2f}; give less, or code "
            "the image without loss"
        )
    return steps, shown


def _check_target(target: Target, plan: Plan) -> int:
    """The last timestep that may be needed.

    Raises:
        UnsupportedError: if the target contradicts itself or the plan.
    """
    goals = [goal for goal in target[:3] if goal is not None]
    if len(goals) > 1:
        raise UnsupportedError("a timestep, a rate and a quality exclude each other; give one")
    if not goals and not target.exact:
        raise UnsupportedError("previews need a timestep, a rate or a quality, or progressive")
    levels, least = len(plan.levels), LEAST_PREVIEW if target.exact else 1
    end = least if target.timestep is None else target.timestep
    if not goals:
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
    steps: Sequence[Sequence[Bits]], plan: Plan, previews: Sequence[int] | None
) -> tuple[int, ...]:
    """The timesteps at which layers end: those given, or the plan's such that none is too small."""
    levels = len(plan.levels)
    last = levels + 1 - len(steps)
    if previews is not None:
        return tuple(sorted({last, *(t for t in previews if t > last)}, reverse=True))
    stops, held = [], 0
    for t, step in zip(range(levels, 0, -1), steps, strict=False):
        held += sum(map(len, step))
        if held >= 8 * LAYER_BYTES * len(step) and t in plan.previews(last):
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
    :func:`diffcodec.codec.decoding.decode`.
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

    See :func:`diffcodec.codec.decoding.iter_decode`.
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
    size = (container.width, container.height)
    return Previews(model, container.mode, size, layers.plan, bar)


def _decode_layer(reader: FileReader, previews: Previews, wanted: int) -> None:
    """Use the layer that was read last."""
    layers = _layers(reader)
    index = len(layers.payloads) - 1
    previews.decode_layer(layers.payloads[index], layers.timesteps[index], wanted)


def _shown(reader: FileReader, previews: Previews, how: str, seed: int) -> Image.Image:
    """What the layers show; at the end of a lossy file held against its checksum."""
    container = reader.container
    ends = previews.timestep == _layers(reader).stops[-1]
    if ends:
        image = previews.show()
        check_pixels(image, container)
    if how != "mean" or not ends:
        image = previews.show(how, seed)
    apply_metadata(image, container.metadata, reader.limits)
    return image


def _exact(
    reader: FileReader, previews: Previews, timestep: int, how: str, seed: int
) -> Image.Image:
    container = reader.container
    image = previews.decode_rest(container.tiles, timestep, how, seed)
    if timestep == 0:
        check_pixels(image, container)
    apply_metadata(image, container.metadata, reader.limits)
    return image
