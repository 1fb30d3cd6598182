"""Files with previews: all tiles of an image go down together: every beginning is a picture.

A layer holds the bits of all tiles for some timesteps. What follows the layers in an exact file are
tiles as in any other, by the chain below the last preview or by a fallback coder.
"""

import bisect
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffcodec.arrays import Bits
from diffcodec.codec.batches import progress_bar
from diffcodec.codec.jobs import View
from diffcodec.codec.planes import coded_channels, colors_entry, crop, tiles_entry
from diffcodec.codec.previews import Previews
from diffcodec.codec.tiles import fallback_tiles, smaller_tile
from diffcodec.container.parts import (
    LEAST_PREVIEW,
    TILE_SIDE,
    Box,
    Container,
    Layers,
    Tile,
    tile_grid,
)
from diffcodec.container.primitives import CRC_BYTES
from diffcodec.container.writer import pack
from diffcodec.diffusion.plan import Plan, nearest
from diffcodec.errors import UnsupportedError
from diffcodec.images.metadata import get_metadata, kept_fields
from diffcodec.images.modes import pixel_crc, psnr
from diffcodec.images.outliers import Found, find_colors
from diffcodec.models.model import Model

LAYER_BYTES = 100  # of a layer at least, for each tile: a length and a CRC cost 6
WHOLE = 1 << 16  # of a step
TRIALS = 12  # of parts of a step
MOST_OVER, MOST_DB = 0.03, 100.0  # over a quality: good enough, and what is taken for infinite
LOST = 0.2  # dB, about, where bits take the place of noise and some of the image is left out
SQUARE, SQUARES = 128, 6  # of an image, that tell what a timestep takes: sides, about how many
SPARSEST = 16  # of a large image one in so many
AS_SHOWN = View()  # by decoders, if they are not told otherwise
PREVIEW_SIGMA = 9.0  # grey levels: where previews end and bits-back coding is cheaper
_Steps = list[list[Bits]]  # by timestep from T down, then by tile


class Target(NamedTuple):
    """Where a file or its previews are to end, the class and tiles; see :func:`diffcodec.encode`.

    At most one of the first three.
    """

    timestep: int | None = None
    bpp: float | None = None
    psnr: float | None = None
    exact: bool = False
    previews: Sequence[int] | None = None
    label: int | None = None
    tile_side: int = TILE_SIDE


def last_preview(plan: Plan) -> int:
    """The timestep at which the previews of an exact file end by default."""
    return max(LEAST_PREVIEW, 1 + nearest(plan.levels, PREVIEW_SIGMA))


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
    if not target.exact and "transparency" in kept_fields(source):
        raise UnsupportedError(
            "a transparent colour, which loss changes: code the image without loss, or put it on a "
            "background"
        )
    end = _check_target(target, model.plans[plan])
    levels, pixels = len(model.plans[plan].levels), source.width * source.height
    with progress_bar((levels + 1) * pixels, progress) as bar:
        # beside previews they pay in phases alone: else the stack runs empty
        found = find_colors(source) if target.exact and model.phased else Found(source)
        file = _File(source, model, plan, target, bar, found)
        if target.exact:
            previews = file.begin()
            steps = _encode_steps(file, previews, end, levels).steps
            return file.pack(steps, source, file.rest(steps, previews))
        steps, shown, share = _encode_lossy(file, end)
        return file.pack(steps, shown, share=share)


@dataclass(frozen=True)
class _File:
    """A file with previews that is to be."""

    source: Image.Image
    model: Model
    plan: str
    target: Target
    bar: "tqdm[Any]"
    found: Found

    def begin(self) -> Previews:
        """All tiles at their start."""
        source = self.source
        return Previews(
            self.model,
            source.mode,
            size=source.size,
            plan=self.plan,
            bar=self.bar,
            encodes=True,
            colors=self.found.colors,
            exact=self.target.exact,
            boxes=dict(enumerate(tile_grid(*source.size, self.target.tile_side))),
            label=self.target.label,
        )

    def layers(self, steps: _Steps, share: int = WHOLE) -> Layers:
        """The layers of these steps, with a share of the last."""
        plan = self.model.plans[self.plan]
        stops = _stops(steps, plan, self.target.previews)
        *layers, last = _by_layer(steps, stops, len(plan.levels))
        payloads = [tuple(map(_payload, layer)) for layer in layers]
        payloads.append(tuple(_payload(bits, share) for bits in last))
        return Layers(self.plan, stops, tuple(payloads), self.target.label, share < WHOLE)

    def sent(self, steps: _Steps, share: int) -> list[Bits]:
        """What a share of the last step has of its bits, by tile."""
        layers = self.layers(steps, share)
        *_, last = _by_layer(steps, layers.stops, len(self.model.plans[self.plan].levels))
        return [
            bits[-1][: 8 * len(payload) - sum(map(len, bits[:-1]))]
            for bits, payload in zip(last, layers.payloads[-1], strict=True)
        ]

    def pack(
        self,
        steps: _Steps,
        last: Image.Image,
        tiles: Sequence[Tile] = (),
        share: int = WHOLE,
    ) -> bytes:
        """The bytes of the file.

        Args:
            steps: of the layers.
            last: the image that the file ends with.
            tiles: that follow the layers.
            share: how much of the last step there is.
        """
        layers = self.layers(steps, share)
        colors = self.found.colors if not tiles or any(tile.plan for tile in tiles) else None
        container = Container(
            mode=self.source.mode,
            width=self.source.width,
            height=self.source.height,
            model=self.model.info.id,
            pixel_crc=0 if tiles else pixel_crc(last),
            whole=False,
            metadata=get_metadata(self.source)
            | colors_entry(colors)
            | tiles_entry(self.target.tile_side, self.source.size),
            tiles=tuple(tiles),
            float_arithmetic=self.model.arithmetic == "float",
            layers=replace(layers, stops=(*layers.stops, 0)) if tiles else layers,
        )
        return pack(container)

    def size(self, steps: _Steps, share: int = WHOLE) -> int:
        """Bytes down to the end of these steps.

        That tiles follow takes a byte, a 0; they have the checksums then.
        """
        follows = (1 - CRC_BYTES) * self.target.exact
        return len(self.pack(steps, self.source, share=share)) + follows

    def bpp(self, steps: _Steps, share: int = WHOLE) -> float:
        """The same in bits per pixel."""
        return 8 * self.size(steps, share) / (self.source.width * self.source.height)

    def rest(self, steps: _Steps, previews: Previews) -> list[Tile]:
        """The exact tiles below the steps; the previews may have come a step farther."""
        layers = self.layers(steps)
        if previews.timestep < layers.stops[-1]:
            previews = self.begin()
            for payload, stop in zip(layers.payloads, layers.stops, strict=True):
                previews.decode_layer(payload, stop, 0)
        boxes = [part.box for part in previews.parts]
        chains = previews.encode_rest(self.source, self.found.image)
        with fallback_tiles(self.source, self.found, boxes) as fallbacks:
            return [
                # the class stands before the layers
                replace(smaller_tile(fallback.result(), chain, self.plan), label=None)
                for fallback, chain in zip(fallbacks, chains, strict=True)
            ]


class _Coded(NamedTuple):
    """Steps, what the last of them shows by the mean, and how much of that one there is.

    What is shown is the source where nobody asks for it.
    """

    steps: _Steps
    shown: Image.Image
    share: int = WHOLE


def _encode_lossy(file: _File, end: int) -> _Coded:
    """The steps of a lossy file, without what of the image is not worth its bits there.

    Args:
        file: that is to be.
        end: the last timestep to try.

    Raises:
        UnsupportedError: if the target is out of reach.
    """
    target, found = file.target, end
    if target.psnr is not None:
        found = _ends_at_quality(file, target.psnr, end)
    elif target.bpp is not None:
        found = _ends_at_rate(file, target.bpp, end)

    def send_worth(ends_at: int) -> _Coded:
        previews = file.begin()
        previews.leave_out(file.source, ends_at)
        return _encode_steps(file, previews, end, found + 1)  # by other noise a step earlier

    levels = len(file.model.plans[file.plan].levels)
    if found > end:
        with suppress(UnsupportedError):  # a quality that is out of reach without the rest
            coded = send_worth(found)
            if coded.share < WHOLE or len(coded.steps) < levels + 1 - end:
                return coded  # else there is room for the rest
    return send_worth(end)


def _ends_at_quality(file: _File, quality: float, end: int) -> int:
    """The timestep at which a lossy file that sends all of the image has a quality."""

    def is_good(timestep: int) -> bool:
        previews = file.begin()
        previews.arrive_by_noise(file.source, timestep)
        return psnr(previews.picture(seams=False), file.source) >= quality + LOST

    timesteps = range(len(file.model.plans[file.plan].levels), end - 1, -1)
    return timesteps[bisect.bisect_left(timesteps[:-1], True, key=is_good)]


def _ends_at_rate(file: _File, bpp: float, end: int) -> int:
    """The timestep in which a lossy file that sends all of the image comes to a rate, about."""
    image, part = file.source, _squares(file.source)
    if part is not None:
        described = sum(map(len, get_metadata(image).values()))
        bpp -= 8 * described / (image.width * image.height)
        file = replace(file, source=part, found=Found(part))
    previews, steps = file.begin(), list[list[Bits]]()
    while previews.timestep > end:
        steps.append(previews.encode_step(file.source))
        if file.bpp(steps) > bpp:
            break
    return previews.timestep


def _squares(image: Image.Image) -> Image.Image | None:
    """Squares from all rows and columns of an image, beside each other; None if it has too few."""
    columns, rows = (side // SQUARE for side in image.size)
    apart = min(columns * rows // SQUARES, SPARSEST)
    if apart < 2:
        return None
    places = [(row, column) for row in range(rows) for column in range(columns)]
    places = [place for place in places if sum(place) % apart == 0]
    across = math.isqrt(len(places))
    down = len(places) // across
    part = Image.new(image.mode, (SQUARE * across, SQUARE * down))
    for number, (row, column) in enumerate(places[: across * down]):
        square = crop(image, Box(SQUARE * column, SQUARE * row, SQUARE, SQUARE))
        part.paste(square, (SQUARE * (number % across), SQUARE * (number // across)))
    return part


def _encode_steps(file: _File, previews: Previews, end: int, first: int) -> _Coded:
    """The steps down to the target, the last of a lossy file as much as it takes.

    Args:
        file: that is to be.
        previews: at their start.
        end: the last timestep to try.
        first: the first that may have the quality.

    Raises:
        UnsupportedError: if the target is out of reach.
    """
    source, target = file.found.image, file.target
    coded, quality = _Coded([], source), 0.0
    while previews.timestep > end:
        before = previews if target.exact or target.timestep is not None else previews.fork()
        steps = [*coded.steps, previews.encode_step(source)]
        if target.bpp is not None and file.bpp(steps) > target.bpp:
            part = None if target.exact else _part_with_rate(file, before, steps, target.bpp)
            if not (part or coded.steps):
                least = file.bpp(steps, WHOLE if target.exact else 0)
                raise UnsupportedError(
                    f"{target.bpp} bits per pixel: "
                    + ("the first timestep alone takes" if target.exact else "a file takes")
                    + f" {least:.4f}; give more"
                )
            return part or coded
        coded = _Coded(steps, source)
        if target.psnr is not None:
            if previews.timestep > first:
                continue
            quality = psnr(previews.picture(AS_SHOWN), source)
            if quality >= target.psnr:
                part = None
                if not target.exact:
                    part = _part_with_quality(file, before, steps, target.psnr, quality)
                return part or coded._replace(shown=previews.picture())
        elif not (target.exact or (target.timestep is not None and previews.timestep > end)):
            coded = coded._replace(shown=previews.picture())
    if target.psnr is not None:
        raise UnsupportedError(
            f"{target.psnr} dB: timestep {end}, the last, has {quality:.2f}; give less, or code "
            "the image without loss"
        )
    return coded


def _part_with_rate(file: _File, before: Previews, steps: _Steps, bpp: float) -> _Coded | None:
    """What a rate has room for of the last step.

    Args:
        file: that is to be, lossy.
        before: the tiles before the step.
        steps: all of them.
        bpp: the rate.

    Returns:
        None if there is no room, or what there is room for shows no more than nothing of the step.
    """
    share = bisect.bisect_right(range(WHOLE), bpp, key=partial(file.bpp, steps)) - 1
    if share < 0:
        return None
    previews = _after_part(file, before, steps, share)
    if len(steps) > 1:
        shown, shown_before = previews.picture(AS_SHOWN), before.picture(AS_SHOWN)
        if psnr(shown, file.source) <= psnr(shown_before, file.source):
            return None
    return _Coded(steps, previews.picture(), share)


def _part_with_quality(
    file: _File, before: Previews, steps: _Steps, goal: float, quality: float
) -> _Coded | None:
    """About the least of the last step that has a quality.

    Between two timesteps decibels grow about as the bits do, so what is tried next is where a
    straight line crosses the goal, and at times the middle, as the line may lead there slowly.

    Args:
        file: that is to be, lossy.
        before: the tiles before the step.
        steps: all of them.
        goal: the quality, in dB.
        quality: what all of the step has, no less.

    Returns:
        None if that is good enough, or no part that was tried is.
    """
    found: tuple[Previews, int] | None = None
    low, high = 0, WHOLE
    over = min(quality - goal, MOST_DB)
    under = -over
    for trial in range(TRIALS):
        if over < MOST_OVER:
            break
        part = 0.5 if trial % 3 == 2 else (MOST_OVER / 2 - under) / (over - under)
        share = low + round(min(max(part, 0.02), 0.98) * (high - low))
        previews = _after_part(file, before, steps, share)
        reached = min(psnr(previews.picture(AS_SHOWN), file.source) - goal, MOST_DB)
        if reached < 0:
            low, under = share, reached
        else:
            high, over, found = share, reached, (previews, share)
    return _Coded(steps, found[0].picture(), found[1]) if found else None


def _after_part(file: _File, before: Previews, steps: _Steps, share: int) -> Previews:
    """The tiles where a share of the last step leads."""
    previews = before.fork()
    previews.take_part(file.sent(steps, share))
    return previews


def _check_target(target: Target, plan: Plan) -> int:
    """The last timestep that may be needed.

    Raises:
        UnsupportedError: if the target contradicts itself or the plan.
    """
    named = {"timestep": target.timestep, "bpp": target.bpp, "psnr": target.psnr}
    goals = {name: goal for name, goal in named.items() if goal is not None}
    if len(goals) > 1:
        raise UnsupportedError("a timestep, a rate and a quality exclude each other; give one")
    if not goals and not target.exact:
        raise UnsupportedError("previews need a timestep, a rate or a quality, or progressive")
    levels, least = len(plan.levels), LEAST_PREVIEW if target.exact else 1
    end = least if target.timestep is None else target.timestep
    if not goals:
        end = min(target.previews) if target.previews else last_preview(plan)
    for name, goal in goals.items():
        if not goal > 0:  # also of NaN
            raise UnsupportedError(f"{name} {goal}: expected a positive number")
    for t in (end, *(target.previews or ())):
        if not least <= t <= levels:
            raise UnsupportedError(
                f"timestep {t}: this plan has previews at timesteps {least} to {levels}"
            )
        if target.timestep is not None and t < target.timestep:
            raise UnsupportedError(
                f"a preview at timestep {t}, where the last is at {target.timestep}; leave it out"
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


def _by_layer(steps: _Steps, stops: Sequence[int], levels: int) -> list[list[tuple[Bits, ...]]]:
    """The bits of steps, by layer, tile and step."""
    ends = [0, *(levels - stop + 1 for stop in stops)]
    return [list(zip(*steps[first:end], strict=True)) for first, end in pairwise(ends)]


def _payload(bits: Sequence[Bits], share: int = WHOLE) -> bytes:
    """The bits of a tile in the steps of a layer, as bytes; of the last step a share alone."""
    data = np.packbits(np.concatenate(bits)).tobytes()
    if share == WHOLE:
        return data
    before, last = sum(map(len, bits[:-1])), len(bits[-1])
    # what fills a byte would be read for bits of the step
    return data[: max(-(-before // 8), (before + last * share // WHOLE) // 8)]
