"""Files with previews: all tiles of an image go down together: every beginning is a picture.

A layer holds the bits of all tiles for some timesteps. What follows the layers in an exact file are
tiles as in any other, by the chain below the last preview or by a fallback coder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffcodec.arrays import Bits
from diffcodec.codec.batches import progress_bar
from diffcodec.codec.planes import coded_channels, colors_entry
from diffcodec.codec.previews import Previews
from diffcodec.codec.tiles import fallback_tiles, smaller_tile
from diffcodec.container.parts import LEAST_PREVIEW, SEAMS, Container, Layers, Tile, tile_grid
from diffcodec.container.writer import pack
from diffcodec.diffusion.plan import Plan
from diffcodec.errors import UnsupportedError
from diffcodec.images.color_sets import ColorSet, find_color_set
from diffcodec.images.metadata import get_metadata
from diffcodec.images.modes import pixel_crc, psnr
from diffcodec.models.model import Model

LAYER_BYTES = 100  # of a layer at least, for each tile: a length and a CRC cost 6
SHOWS_SEAMS = True  # in lossy files; those from before don't
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
    end = _check_target(target, model.plans[plan])
    levels, pixels = len(model.plans[plan].levels), source.width * source.height
    with progress_bar((levels + target.exact) * pixels, progress) as bar:
        # beside previews they pay in phases alone: else the stack runs empty
        colors = find_color_set(source) if target.exact and model.phased else None
        file = _File(source, model, plan, target, bar, colors)
        previews = file.begin()
        steps, shown = _encode_steps(file, previews, end)
        if target.exact:
            return file.pack(steps, source, file.rest(steps, previews))
        return file.pack(steps, shown)


@dataclass(frozen=True)
class _File:
    """A file with previews that is to be."""

    source: Image.Image
    model: Model
    plan: str
    target: Target
    bar: "tqdm[Any]"
    colors: ColorSet | None

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
            colors=self.colors,
            exact=self.target.exact,
        )

    def layers(self, steps: _Steps) -> Layers:
        """The layers of these steps."""
        plan = self.model.plans[self.plan]
        stops = _stops(steps, plan, self.target.previews)
        return Layers(self.plan, stops, _payloads(steps, stops, len(plan.levels)))

    def pack(self, steps: _Steps, last: Image.Image, tiles: Sequence[Tile] = ()) -> bytes:
        """The bytes.

        Args:
            steps: of the layers.
            last: the image that the file ends with.
            tiles: that follow the layers.
        """
        layers = self.layers(steps)
        colors = self.colors if not tiles or any(tile.plan for tile in tiles) else None
        container = Container(
            mode=self.source.mode,
            width=self.source.width,
            height=self.source.height,
            model=self.model.info.id,
            pixel_crc=pixel_crc(last),
            whole=False,
            metadata=get_metadata(self.source) | colors_entry(colors) | self._seams_entry(),
            tiles=tuple(tiles),
            float_arithmetic=self.model.arithmetic == "float",
            layers=replace(layers, stops=(*layers.stops, 0)) if tiles else layers,
        )
        return pack(container)

    def _seams_entry(self) -> dict[str, bytes]:
        """That what a lossy file shows is seen across the borders of its tiles."""
        shows = SHOWS_SEAMS and not self.target.exact and len(tile_grid(*self.source.size)) > 1
        return {SEAMS: b""} if shows else {}

    def size(self, steps: _Steps) -> int:
        """Bytes down to the end of these steps; the 0 that says that tiles follow is one too."""
        return len(self.pack(steps, self.source)) + self.target.exact

    def rest(self, steps: _Steps, previews: Previews) -> list[Tile]:
        """The exact tiles below the steps; the previews may have come a step farther."""
        layers = self.layers(steps)
        if previews.timestep < layers.stops[-1]:
            previews = self.begin()
            for payload, stop in zip(layers.payloads, layers.stops, strict=True):
                previews.decode_layer(payload, stop, 0)
        boxes = [part.box for part in previews.parts]
        with fallback_tiles(self.source, boxes, self.colors) as fallbacks:
            return [
                smaller_tile(fallback.result(), chain, self.plan)
                for fallback, chain in zip(
                    fallbacks, previews.encode_rest(self.source), strict=True
                )
            ]


def _encode_steps(file: _File, previews: Previews, end: int) -> tuple[_Steps, Image.Image]:
    """The steps down to the target, and what the last of them shows.

    The latter is the source where nobody asks for it.

    Args:
        file: that is to be.
        previews: at their start.
        end: the last timestep to try.

    Raises:
        UnsupportedError: if the target is out of reach.
    """
    source, target = file.source, file.target
    pixels = source.width * source.height
    steps: _Steps = []
    shown, quality = source, 0.0
    while previews.timestep > end:
        steps.append(previews.encode_step(source))
        if target.bpp is not None and (bpp := 8 * file.size(steps) / pixels) > target.bpp:
            if len(steps) == 1:
                raise UnsupportedError(
                    f"{target.bpp} bits per pixel: the first timestep alone takes {bpp:.4f}; give "
                    "more"
                )
            return steps[:-1], shown
        if target.psnr is not None:
            shown = previews.picture(seams=SHOWS_SEAMS)
            quality = psnr(shown, source)
            if quality >= target.psnr:
                return steps, shown
        elif not target.exact and (target.bpp is not None or previews.timestep == end):
            shown = previews.picture(seams=SHOWS_SEAMS)
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
        layer = steps[levels - top : levels - stop + 1]
        payloads.append(
            tuple(np.packbits(np.concatenate(bits)).tobytes() for bits in zip(*layer, strict=True))
        )
        top = stop - 1
    return tuple(payloads)
