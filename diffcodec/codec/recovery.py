"""What is left of a damaged file: every tile whose parts of the file are whole."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffcodec.arrays import Array
from diffcodec.codec.arguments import FileLike, file_source
from diffcodec.codec.batches import count_evaluations, progress_bar, run
from diffcodec.codec.decoding import decode
from diffcodec.codec.estimates import check_memory
from diffcodec.codec.jobs import Job, Part, decode_job, decoding, make_chain
from diffcodec.codec.opening import find_model
from diffcodec.codec.planes import adaptation_of, check_pixels, color_set, may_end
from diffcodec.codec.seams import Seam, Strips, paste_seam
from diffcodec.codec.tiles import add_to_chains, paste_chains, paste_fallbacks
from diffcodec.coding.chain import TileChain
from diffcodec.coding.top_down import Descent
from diffcodec.container.parts import Box, Tile
from diffcodec.container.primitives import read_stream
from diffcodec.container.salvage import Damage, Salvage, salvage
from diffcodec.errors import UnsupportedError
from diffcodec.images.metadata import apply_metadata
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import Model, loaded
from diffcodec.sampling.edits import inpaint
from diffcodec.values import check_limits, flag

SQUARE = 8  # pixels of a side in the checkerboard
DARK, LIGHT = 85, 170
FILL_MARGIN = 64  # pixels around a lost tile that it is drawn to fit
RESAMPLINGS = 2  # of each step of drawing: a tile is large


class Recovered(NamedTuple):
    """An image with its damage; none where the file is whole."""

    image: Image.Image
    damage: tuple[Damage, ...]


def recover(
    data: FileLike,
    model: str | PathLike[str] | Model | None = None,
    progress: bool = False,
    *,
    limits: Limits = DEFAULT_LIMITS,
    device: str | None = None,
    fill: bool = False,
) -> Recovered:
    """Decode what is whole of a file that is damaged or cut.

    A tile that is lost shows the last preview before the damage, or a checkerboard if there is
    none. The tiles beside it are exact.

    Args:
        data: a file; see :func:`diffcodec.decode`.
        model: the model it was encoded with, if it is not a shipped one; of a file that needs none
            the one to fill by.
        progress: show a bar on a terminal when it takes over two seconds.
        limits: the sizes to accept.
        device: where the model computes; see :func:`diffcodec.load_model`.
        fill: draw the lost tiles by the model to fit those around them, instead of what is above.
            They are invented; ``damage`` says which they are.

    Raises:
        FormatError: if nothing of it is whole, or the header is not.
        UnsupportedError: see :func:`diffcodec.decode`; and if tiles are to be filled of an image
            that is neither RGB nor grey of 8 bits.
        ModelMismatchError, LimitError: see :func:`diffcodec.decode`.
    """
    check_limits(limits)
    source = file_source(data)
    source = source if isinstance(source, bytes) else read_stream(source)
    found = salvage(source, limits)
    if not found.damage:
        return Recovered(decode(source, None, model, progress, limits=limits, device=device), ())
    container = replace(found.container, tiles=tuple(filter(None, found.tiles)))
    check_memory(container, limits)
    image = _checkerboard(container.mode, (container.width, container.height))
    apply_metadata(image, container.metadata, limits)
    used = find_model(container, model, device) if container.uses_model else None
    if used is not None:
        _paste_chains(image, found, used, progress)
    in_place = list(zip(container.boxes(), found.tiles, strict=False))
    paste_fallbacks(image, in_place)
    add_to_chains(image, in_place)
    boxes = {part.tile: part.box for part in found.damage if part.box is not None}
    if flag("fill", fill) and boxes:
        if container.mode not in ("RGB", "L"):
            raise UnsupportedError(
                f"lost tiles of an image in the mode {container.mode} cannot be filled, only those "
                "of RGB and L; leave filling out"
            )
        # Of a file that needs none any model will do.
        _fill(image, list(boxes.values()), used or loaded(model or DEFAULT_MODEL, device=device))
    if not container.has_tiles and all(damage.tile is None for damage in found.damage):
        check_pixels(image, container.pixel_crc, container.float_arithmetic)
    return Recovered(image, found.damage)


def _paste_chains(image: Image.Image, found: Salvage, model: Model, progress: bool) -> None:
    """Put the tiles that are chains in their places, as far down as they go."""
    parts, tiles = list(_chain_parts(found)), dict(enumerate(found.container.boxes()))
    strips, ends = Strips(tiles), dict[int, int]()  # the timesteps of tiles that show previews
    jobs = (_decode(model, found, part, strips, ends) for part in parts)

    def ends_at(timestep: int, seam: Seam) -> list[int]:
        return [index for index in seam.tiles if ends.get(index) == timestep]

    with progress_bar(count_evaluations(parts, model), progress) as bar:
        paste_chains(image, parts, run(jobs, parts, model, bar), model.color)
        if found.damage or not found.container.has_tiles:
            for t, seam, p in strips.seen(model, bar, lambda t, seam: bool(ends_at(t, seam))):
                for index in ends_at(t, seam):
                    paste_seam(image, seam, p.mean, model.color, tiles[index])


def _fill(image: Image.Image, boxes: Sequence[Box], model: Model) -> None:
    """Draw tiles to fit what lies around them, those that are lost all at once."""
    missing = np.zeros((image.height, image.width), dtype=np.bool_)
    for box in boxes:
        missing[box.top : box.top + box.height, box.left : box.left + box.width] = True
    for box in boxes:
        left, top = (max(0, start - FILL_MARGIN) for start in (box.left, box.top))
        right = min(image.width, box.left + box.width + FILL_MARGIN)
        below = min(image.height, box.top + box.height + FILL_MARGIN)
        part = image.crop((left, top, right, below))
        filled = inpaint(model, part, missing[top:below, left:right], resamplings=RESAMPLINGS)
        image.paste(filled.convert(image.mode), (left, top))
        missing[top:below, left:right] = False


def _chain_parts(found: Salvage) -> Iterator[Part]:
    """The tiles that the chain shows something of."""
    layers, adaptation = found.container.layers, adaptation_of(found.container)
    for index, box in enumerate(found.container.boxes()):
        tile = found.tiles[index] if found.tiles else None
        if tile is not None and not tile.plan:
            continue
        if layers:
            yield Part(layers.plan, index, box, label=layers.label)
        elif tile is not None and tile.plan:
            yield Part(tile.plan, index, box, tile.draw, tile.label, adaptation)


def _decode(
    model: Model, found: Salvage, part: Part, strips: Strips, ends: dict[int, int]
) -> Job[Array | None]:
    """A tile as far down as it goes, in the colour domain; None where there is nothing of it."""
    mode, layers, colors = found.container.mode, found.container.layers, color_set(found.container)
    tile = found.tiles[part.index] if found.tiles else None
    if layers is None:
        assert tile is not None
        return (yield from _exact(model, make_chain(model, mode, part, colors), tile))
    descent = Descent(make_chain(model, mode, part, colors, layers.is_exact))
    for end, payloads in zip(layers.timesteps, found.payloads, strict=True):
        payload = payloads[part.index]
        if payload is None:
            break
        with decoding(model, part.index):
            early = may_end(found.container, end)
            yield from descent.decode_layer(payload, end, may_end=early)
        strips.add(part, end, descent.z)
    if tile is not None and descent.timestep == layers.timesteps[-1]:
        return (yield from _exact(model, descent.below(), tile))
    if descent.timestep > layers.timesteps[0]:
        return None
    ends[part.index] = descent.timestep
    with decoding(model, part.index):
        return (yield from descent.mean())


def _exact(model: Model, chain: TileChain, tile: Tile) -> Job[Array]:
    x = yield from decode_job(model, chain, tile)
    assert not isinstance(x, Descent)
    return x


def _checkerboard(mode: str, size: tuple[int, int]) -> Image.Image:
    """What is shown of tiles of which there is nothing."""
    width, height = size
    rows, columns = np.arange(height)[:, None] // SQUARE, np.arange(width) // SQUARE
    light = (rows.astype(np.uint8) ^ columns.astype(np.uint8)) & 1
    if mode == "1":
        return Image.fromarray(light > 0)
    if mode == "P":
        return Image.frombytes(mode, size, light.tobytes())
    grey = DARK + light * np.uint8(LIGHT - DARK)
    if mode == "I;16":
        return Image.fromarray(grey * np.uint16(257))
    return Image.fromarray(grey).convert(mode)
