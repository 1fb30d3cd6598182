"""Images to files: each tile by the chain or a fallback coder, whichever is smaller."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, product
from os import PathLike
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcodec.codec.adapting import fit
from diffcodec.codec.arguments import find_source
from diffcodec.codec.batches import count_evaluations, progress_bar, run
from diffcodec.codec.estimates import expected_bytes
from diffcodec.codec.jobs import DEFAULT_CHOICES, Choices, Job, Part, encode_job, make_chain
from diffcodec.codec.layered_encoding import Target, encode_layers
from diffcodec.codec.planes import (
    adaptation_entry,
    coded_channels,
    colors_entry,
    crop,
    integers,
    tiles_entry,
)
from diffcodec.codec.tiles import fallback_tiles, smaller_tile
from diffcodec.coding.adaptation import Adaptation
from diffcodec.coding.bits_back import EncodedTile
from diffcodec.container.parts import (
    EDGE_MULTIPLE,
    LEAST_TILE_SIDE,
    MOST_DRAW,
    PLAN_NAMES,
    TILE_SIDE,
    Box,
    Container,
    Tile,
    tile_count,
    tile_grid,
)
from diffcodec.container.writer import pack
from diffcodec.errors import UnsupportedError
from diffcodec.images.metadata import get_metadata
from diffcodec.images.modes import pixel_crc
from diffcodec.images.outliers import Found, find_colors
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import Model, loaded
from diffcodec.values import flag, integer, number, optional_integer, several_integers

if TYPE_CHECKING:
    from torch import Tensor

ImageLike = Union[str, PathLike[str], Image.Image, NDArray[Any], "Tensor"]

Labelled = tuple[Image.Image, Sequence[int | None]]  # and the classes to try

NO_MODEL = bytes(4)
AUTO = "auto"  # for the class of the smallest file


def encode(
    image: ImageLike,
    model: str | PathLike[str] | Model = DEFAULT_MODEL,
    plan: str = "default",
    progress: bool = False,
    *,
    timestep: int | None = None,
    bpp: float | None = None,
    psnr: float | None = None,
    progressive: bool = False,
    previews: Sequence[int] | None = None,
    draws: int = 1,
    label: int | str | None = None,
    tile_side: int = TILE_SIDE,
    adapt: bool = False,
    strip: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    device: str | None = None,
) -> bytes:
    """Code an image without loss, or down to a timestep, rate or quality, or both in one file.

    Args:
        image: path, PIL image, array (uint8 [h, w], [h, w, 1..4], uint16 [h, w] or bool [h, w]) or
            torch tensor (uint8 [1..4, h, w]). Of a PNG of 16 bits a channel a path: Pillow drops 8.
        model: a shipped model's name, a path or a loaded model. One that is loaded as "float" makes
            files for research: they may not decode on another machine.
        plan: "fast", "default" or "best", from few network evaluations per tile to many.
        progress: show a bar on a terminal when it takes over two seconds.
        timestep: stop at z_t. With ``progressive`` this and the next two say where previews end.
        bpp: stop at no more bits per pixel, the whole file counted; within a timestep if lossy.
        psnr: stop where it is at least so many dB; within a timestep if lossy.
        progressive: previews first, as in a lossy file, then the exact image.
        previews: the timesteps that the file can be cut at, instead of about every 1.5 dB.
        draws: code each tile so often, each by other randomness, and keep the smallest.
        label: class that a model of classes is told, from 0 on; "auto": try all, but no previews.
        tile_side: the longest, a multiple of 8 from 96: a region of small tiles costs less.
        adapt: fit a model in phases to the image, where it pays; it takes longer.
        strip: leave out all metadata; palette and transparency stay, being part of the picture.
        limits: the sizes to accept; a larger image takes larger limits to decode, too.
        device: where the model computes; see :func:`diffcodec.load_model`.

    Returns:
        The file's bytes. A warning tells of metadata that can't be kept.

    Raises:
        TypeError: for anything but the types above.
        UnsupportedError, LimitError: for what cannot be coded, and images over a limit.
        ModelMismatchError: if there is no such model, or its numbers overflow.
    """
    target = _target(timestep, bpp, psnr, progressive, previews)
    used, source = load_planned(model, plan, device), find_source(image, limits, strip)
    side = check_tile_side(tile_side)
    if target == Target():
        code = partial(encode_together, draws=check_draws(draws), adapt=flag("adapt", adapt))
        one, choices = (source, labels_to_try(used, label)), Choices(tile_side=side)
        return b"".join(code([one], used, plan, progress, limits=limits, choices=choices))
    target = target._replace(label=_label_of_previews(used, draws, adapt, label), tile_side=side)
    return _with_previews(source, used, plan, target, progress, limits)


def _with_previews(
    source: Image.Image, model: Model, plan: str, target: Target, progress: bool, limits: Limits
) -> bytes:
    limits.check_tiles(tile_count(*source.size, whole=False, most=target.tile_side))
    limits.check_memory(expected_bytes(*source.size, uses_model=True, layered=True))
    chosen = plan if target.exact else model.info.lossy_plan(plan)
    return encode_layers(source, model, chosen, target, progress)


def _target(timestep: Any, bpp: Any, psnr: Any, progressive: Any, previews: Any) -> Target:
    """The goal of these arguments, each of its type."""
    return Target(
        optional_integer("timestep", timestep),
        number("bpp", bpp),
        number("psnr", psnr),
        flag("progressive", progressive),
        None if previews is None else several_integers("previews", previews, "a list of timesteps"),
    )


def encode_together(
    sources: Sequence[Labelled],
    model: Model,
    plan: str,
    progress: bool = False,
    *,
    draws: int = 1,
    adapt: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    choices: Choices = DEFAULT_CHOICES,
) -> Iterator[bytes]:
    """The files of several images, whose tiles go through the network side by side.

    Args:
        sources: plain images, each with the classes to try.
        model, plan, progress, draws, adapt, limits: see :func:`encode`.
        choices: others than the default are for experiments.

    Guarantee: the bytes of a file do not depend on the images coded beside it.
    """
    for source, _ in sources:
        limits.check_tiles(tile_count(*source.size, whole=False, most=choices.tile_side))
    pixels = sum(source.width * source.height for source, _ in sources)
    limits.check_memory(expected_bytes(pixels, 1, uses_model=True, layered=False))
    looked_at = [
        find_colors(source) if coded_channels(source.mode, model.color) else Found(source)
        for source, _ in sources
    ]
    adaptations = [
        fit(model, plan, source, found, labels[0]) if adapt else None
        for (source, labels), found in zip(sources, looked_at, strict=True)
    ]
    tiles = [
        (source, found, ways)
        for (source, labels), found, adaptation in zip(sources, looked_at, adaptations, strict=True)
        for ways in _ways(model, plan, source, choices.tile_side, draws, labels, adaptation)
    ]
    chains = (
        encode_part(model, source, found, part, choices)
        for source, found, ways in tiles
        for part in ways
    )
    parts = [part for *_, ways in tiles for part in ways]
    with progress_bar(count_evaluations(parts, model), progress) as bar:
        coded = _smallest(run(chains, parts, model, bar), [len(ways) for *_, ways in tiles])
        for (source, _), found, fitted in zip(sources, looked_at, adaptations, strict=True):
            yield _assemble(source, model, plan, coded, found, fitted, choices)


def check_draws(draws: Any) -> int:
    """How many draws to take.

    Raises:
        TypeError, UnsupportedError: no number, or none of those that a file can tell.
    """
    if not 1 <= (count := integer("draws", draws)) <= MOST_DRAW + 1:
        raise UnsupportedError(f"{draws} draws: expected 1 to {MOST_DRAW + 1}")
    return count


def check_tile_side(side: Any) -> int:
    """The longest side of a tile.

    Raises:
        TypeError, UnsupportedError: no number, or none that a file can tell.
    """
    found = integer("tile_side", side)
    if not LEAST_TILE_SIDE <= found <= TILE_SIDE or found % EDGE_MULTIPLE:
        raise UnsupportedError(
            f"tiles of side {found}: expected a multiple of {EDGE_MULTIPLE} from "
            f"{LEAST_TILE_SIDE} to {TILE_SIDE}"
        )
    return found


def _ways(
    model: Model,
    plan: str,
    source: Image.Image,
    side: int,
    draws: int,
    labels: Sequence[int | None],
    adaptation: Adaptation | None,
) -> list[list[Part]]:
    """The ways to code each tile; none of an image that no chain codes."""
    if not coded_channels(source.mode, model.color):
        return []
    return [
        [Part(plan, index, box, *which, adaptation) for which in product(range(draws), labels)]
        for index, box in enumerate(tile_grid(*source.size, side))
    ]


def labels_to_try(model: Model, label: Any) -> list[int | None]:
    """What the model is to be told of an image's class.

    Raises:
        UnsupportedError: it knows no such class.
    """
    if label == AUTO:
        model.check_label(0)
        return [None, *range(model.classes)]
    found = optional_integer("label", label)
    if found is not None:
        model.check_label(found)
    return [found]


def _label_of_previews(model: Model, draws: Any, adapt: Any, label: Any) -> int | None:
    """The class of all tiles of a file with previews, which goes one way."""
    if flag("adapt", adapt):
        raise UnsupportedError("an adaptation and previews: expected one or the other")
    if integer("draws", draws) != 1:
        raise UnsupportedError(f"{draws} draws and previews: expected one or the other")
    if label == AUTO:
        raise UnsupportedError("the class 'auto' and previews: give the number of the class")
    return labels_to_try(model, label)[0]


def _smallest(
    coded: Iterator[EncodedTile | None], ways: Iterable[int]
) -> Iterator[EncodedTile | None]:
    """The smallest of the ways of each tile, so many, which come one after another."""
    for count in ways:
        group = filter(None, islice(coded, count))
        yield min(group, key=lambda tile: tile.size, default=None)


def load_planned(model: str | PathLike[str] | Model, plan: str, device: str | None) -> Model:
    """A model that has a plan.

    Raises:
        UnsupportedError, DiffcodecError: it has none, or there is no such model.
    """
    if not isinstance(plan, str) or plan not in PLAN_NAMES:
        raise UnsupportedError(f"plan {plan!r}: expected one of {', '.join(PLAN_NAMES)}")
    model = loaded(model, device=device)
    if plan not in model.plans:
        raise UnsupportedError(
            f"model {model.info.name} has no plan {plan!r}: expected one of "
            f"{', '.join(model.plans)}"
        )
    return model


def encode_part(
    model: Model,
    source: Image.Image,
    found: Found,
    part: Part,
    choices: Choices = DEFAULT_CHOICES,
) -> Job[EncodedTile | None]:
    """One tile through the chain, or None where the chain has no code for it."""
    x = integers(found.image, part.box, model.color).astype(np.float64)
    chain = make_chain(model, source.mode, part, found.colors)
    return (yield from encode_job(model, chain, x, pixel_crc(crop(source, part.box)), choices))


def _assemble(
    source: Image.Image,
    model: Model,
    plan: str,
    coded: Iterator[EncodedTile | None],
    found: Found,
    adaptation: Adaptation | None,
    choices: Choices,
) -> bytes:
    """The smaller of two files: tile by tile the best coder, or one fallback for the whole."""
    metadata = get_metadata(source)

    def file(tiles: Sequence[Tile], whole: bool) -> bytes:
        uses_model = any(tile.plan for tile in tiles)
        container = Container(
            mode=source.mode,
            width=source.width,
            height=source.height,
            model=model.info.id if uses_model else NO_MODEL,
            whole=whole,
            metadata={
                **metadata,
                **colors_entry(found.colors if uses_model else None),
                **adaptation_entry(adaptation if uses_model else None),
                **({} if whole else tiles_entry(choices.tile_side, source.size)),
            },
            tiles=tuple(tiles),
            float_arithmetic=uses_model and model.arithmetic == "float",
        )
        return pack(container)

    everything = Box(0, 0, *source.size)
    by_chain = coded_channels(source.mode, model.color)
    boxes = tile_grid(*source.size, choices.tile_side) if by_chain else ()
    has_marks = source.width * source.height >= choices.marks_from_pixels
    others = [box for box in boxes if box != everything]
    with fallback_tiles(source, found, [everything, *others]) as (whole, *fallbacks):
        tiles = [
            smaller_tile(fallback.result(), chain, plan, has_marks)
            for fallback, chain in zip((fallbacks or [whole])[: len(boxes)], coded, strict=False)
        ]
        in_tiles = sum(tile.size for tile in tiles)
        one = whole.result()
        everywhere = one.unless_below(in_tiles) if tiles else one.thorough()
        candidates = [file([everywhere], whole=True)]
    if tiles:
        candidates.append(file(tiles, whole=False))
    return min(candidates, key=len)
